"""Memory of a LoRA training step, term by term, before a byte of the weights is read.

With P parameters, A adapter parameters, L layers, D hidden size, I intermediate size, q = heads · head size,
k = key/value heads · head size, R the sum of the adapters' ranks on a linear, V vocabulary, n = rows · length
tokens, b bytes of the frozen dtype and c bytes of the dtype that products are taken in (4 on a CPU):

    weights       b P
    adapters      4 A              and 4 A again where several are stacked; c A where products are not in fp32
    moments       8 A              AdamW's two, fp32
    gradients     4 A
    activations   n L (norms + attention + mlp + low rank), saved for backward:
                      norms        2 (4 D + 4) + 2 b D          the input in fp32, 1/rms, the output
                      attention    b (2 q + 2 k) + 4 heads + b length, and 4 (q + k + heads) with query/key norms
                      mlp          4 b I                        gate, silu(gate), up, their product
                  by kernels, on CUDA, norms keep the input as it is, b for 4, and mlp no silu(gate), 3 for 4
                      low rank     c R on each linear
                  selective checkpointing keeps no norm's output and only gate and up; full keeps b D a layer
    logits        min(labels, chunk) V of fp32, of b bytes on CUDA, 3 b D of each token (the last states and their
                  gradient), and on a CPU in 16 bits the block of the head that is widened
    backward      the widest linear's gradients: n I (2 b, with c ≠ b also 2 c), or one whole layer's activations
                  where they are computed anew

    total = weights + adapters + moments + max(activations + max(logits, backward), gradients + backward)

since gradients come as activations go. Allocator overhead and the libraries' own memory are not in it. Only training
without checkpointing has been compared with what a step takes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from .checkpoint import expected_shapes
from .config import LoRAConfig, ModelConfig
from .errors import ConfigError
from .lora import attach
from .model import Transformer
from .ops import head_rows
from .products import WIDE_BLOCK

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHECKPOINTING = ("none", "selective", "full")
"""What is computed anew in backward: nothing; norms and SwiGLU; whole layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training step at its peak; see this module's formula."""

    weights: int
    adapters: int
    moments: int
    gradients: int
    activations: int
    logits: int
    backward: int

    @property
    def total(self) -> int:
        """The peak: gradients come as activations go, logits are gone before backward begins."""
        work = max(self.activations + max(self.logits, self.backward), self.gradients + self.backward)
        return self.weights + self.adapters + self.moments + work

    @property
    def largest(self) -> str:
        """Name of the largest term."""
        terms = dataclasses.asdict(self)
        return max(terms, key=terms.__getitem__)


def linears(config: ModelConfig, lora: LoRAConfig) -> dict[str, tuple[int, int]]:
    """Name → shape (N, K) of every linear an adapter sits on. AdapterError for a target the model lacks."""
    with torch.device("meta"):
        model = Transformer(config)
    adapters = attach(model, {"adapter": _light(lora, bias="none", modules_to_save=())})
    return {path: tuple(module.base.weight.shape) for path, module in adapters.modules.items()}


def _light(lora: LoRAConfig, **changes: Any) -> LoRAConfig:
    """The adapter with factors of rank 1."""
    return dataclasses.replace(lora, rank=1, ranks={}, start="default", dora=False, **changes)


def beside_low_rank(config: ModelConfig, lora: LoRAConfig) -> int:
    """Number of parameters in the biases and whole modules that an adapter trains."""
    if lora.bias == "none" and not lora.modules_to_save:
        return 0
    with torch.device("meta"):
        model = Transformer(config)
    adapters = attach(model, {"adapter": _light(lora)})
    parts = (module for held in (adapters.modules, adapters.whole) for module in held.values())
    return sum(value.numel() for module in parts for value in module.parameters_of("adapter"))


def parameters(config: ModelConfig) -> int:
    """Number of the model's parameters, a tied head counted once."""
    return sum(math.prod(shape) for _, shape in expected_shapes(config))


def trained(shapes: Mapping[str, tuple[int, int]], lora: LoRAConfig) -> int:
    """Number of an adapter's parameters on linears of these shapes: Σ rank (N + K), and N with DoRA."""
    return sum(lora.of(path)[0] * (n + k) + n * lora.dora for path, (n, k) in shapes.items())


def estimate(
    config: ModelConfig, lora: LoRAConfig | Mapping[str, LoRAConfig], *, rows: int, length: int, dtype: str,
    checkpointing: str = "none", labels: int | None = None, cuda: bool = False,
) -> Memory:
    """Memory of one step of `rows` rows (of all adapters together) of `length` tokens.

    lora: one adapter, or several by name that train side by side. dtype: "float32", "bfloat16" or "float16", of
    the frozen weights. checkpointing: one of CHECKPOINTING. labels: positions that are scored, default all.
    ConfigError for other values, AdapterError for a target the model lacks.
    """
    if dtype not in BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(BYTES)}, got {dtype!r}")
    if checkpointing not in CHECKPOINTING:
        raise ConfigError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got {checkpointing!r}")
    if rows < 1 or length < 1:
        raise ConfigError(f"rows and length must be positive, got {rows} and {length}")
    adapters = list(lora.values()) if isinstance(lora, Mapping) else [lora]
    shapes = [linears(config, adapter) for adapter in adapters]
    pairs = list(zip(shapes, adapters, strict=True))
    count = sum(trained(*pair) + beside_low_rank(config, pair[1]) for pair in pairs)
    beside = sum(trained(*pair) for pair in pairs if pair[1].start in ("pissa", "olora"))
    b, tokens = BYTES[dtype], rows * length
    c = b if cuda else 4
    copies = c if c != 4 else 4 * (len(adapters) > 1)
    labels = tokens if labels is None else min(labels, tokens)
    ranks = sum(
        adapter.of(path)[0] * (2 if adapter.start in ("pissa", "olora") else 1)
        for found, adapter in pairs for path in found
    )
    rescaled = max(sum(n for n, _ in found.values()) * adapter.dora for found, adapter in pairs)
    kept, whole = _layer(config, b, length, checkpointing, cuda)
    low_rank = c * ranks
    beyond = low_rank + b * rescaled  # DoRA keeps what it rescales
    activations = config.layers * kept + (0 if checkpointing == "full" else beyond)
    again = {"none": 0, "selective": whole - kept, "full": whole + beyond // config.layers}[checkpointing]
    wide = b if cuda else 4
    head = min(labels, head_rows(config.vocab_size, wide, cuda=cuda)) * config.vocab_size * wide
    if b != c:
        head += c * min(WIDE_BLOCK, config.vocab_size * config.hidden_size)
    return Memory(
        weights=b * parameters(config),
        adapters=(4 + copies) * (count + beside),
        moments=8 * count,
        gradients=4 * count,
        activations=tokens * activations,
        logits=head + b * config.hidden_size * (tokens + 2 * labels),
        backward=tokens * (config.intermediate_size * (2 * b + (2 * c if c != b else 0)) + again),
    )


def _layer(config: ModelConfig, b: int, length: int, checkpointing: str, cuda: bool) -> tuple[int, int]:
    """(bytes a token leaves in one layer for backward, the same without checkpointing), low rank left out."""
    d, i = config.hidden_size, config.intermediate_size
    q, k = config.heads * config.head_dim, config.kv_heads * config.head_dim
    wide = b if cuda else 4
    norms = 2 * (wide * d + 4)
    attention = b * (2 * q + 2 * k) + 4 * config.heads + b * length
    if any(name.endswith("q_norm.weight") for name, _ in expected_shapes(config)):
        attention += wide * (q + k) + 4 * (config.heads + config.kv_heads)
    whole = norms + 2 * b * d + attention + (3 if cuda else 4) * b * i
    kept = {"none": whole, "selective": 2 * b * d + attention + 2 * b * i, "full": b * d}[checkpointing]
    return kept, whole
