"""What a checkpoint is, which linears LoRA will touch, and what training on it needs, from the headers.

Only a tied head that is stored beside its embedding is read, to compare the two. Of a checkpoint of the Hub whose
weights are not in the cache, their headers are fetched and nothing is compared.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, is_hub_id
from .config import TARGETS, LoRAConfig, ModelConfig
from .errors import ConfigError, NumLLMError
from .files import read_json
from .hub import outline
from .memory import estimate, linears, parameters, trained
from .report.tables import table
from .tokenizer import Tokenizer
from .weights import matched

DEFAULT_LENGTH = 512
"""Tokens a row, unless the context is shorter."""

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

TERMS = {
    "weights": "frozen weights", "adapters": "adapters", "moments": "AdamW's moments", "gradients": "gradients",
    "activations": "saved activations", "logits": "logits", "backward": "work of backward",
}
"""Term of `memory.Memory` → what it is for a reader."""


def inspect(
    checkpoint: str | Path, *, rank: int = 16, targets: tuple[str, ...] | None = None, count: int = 2, rows: int = 8,
    length: int | None = None, dtype: str | None = None, checkpointing: str = "none", device: str = "cpu",
) -> dict[str, Any]:
    """A checkpoint (see `checkpoint.resolve`), or a config.json alone, as JSON can hold it.

    The memory is that of a step of `count` adapters of `rank`, `rows` rows of `length` tokens (None: 512, or a shorter
    context) for each, with frozen weights in `dtype` (None: as on disk, for a config.json as it says) on a "cpu" or
    "cuda". NumLLMError for what cannot be loaded, and for a length beyond the context.
    """
    with _opened(checkpoint) as (opened, raw):
        config = opened.config if opened else ModelConfig.from_hf(raw)
        tensors = list(opened.tensors.values()) if opened else []
        tokenizer = _tokenizer(opened, config) if opened else None
    length = min(DEFAULT_LENGTH, config.context) if length is None else length
    if length > config.context:
        raise ConfigError(f"length {length} is more than the model's context of {config.context}")
    stored = collections.Counter(info.dtype for info in tensors)
    said = raw.get("torch_dtype") or raw.get("dtype")
    on_disk = _DTYPES.get(max(stored, key=stored.get)) if stored else said if isinstance(said, str) else None
    dtype = dtype or on_disk or "float32"
    lora = LoRAConfig(rank=rank, targets=targets or TARGETS)
    touched = linears(config, lora)
    needed = estimate(
        config, {str(index): lora for index in range(count)}, rows=rows * count, length=length,
        dtype=dtype, checkpointing=checkpointing, cuda=device == "cuda",
    )
    kinds: dict[str, list[tuple[int, int]]] = {}
    for name, shape in touched.items():
        kinds.setdefault(re.sub(r".*\.\d+\.", "", name), []).append(shape)
    return {
        "checkpoint": str(checkpoint),
        "architecture": config.architecture,
        "parameters": parameters(config),
        "dtype": on_disk,
        "tensors": dict(stored),
        "bytes": sum(info.nbytes for info in tensors) if opened else None,
        "context": config.context,
        "vocab_size": config.vocab_size,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "tied": config.tied,
        "rope": config.rope.kind,
        "windows": sorted({window for window in config.windows if window is not None}),
        "tokenizer": tokenizer,
        "lora": {
            "rank": rank, "adapters": count, "parameters": count * trained(touched, lora),
            "linears": [
                {"name": name, "shape": list(shapes[0]), "count": len(shapes),
                 "parameters": sum(rank * (n + k) for n, k in shapes)}
                for name, shapes in kinds.items()
            ],
        },
        "memory": {
            "rows": rows * count, "length": length, "dtype": dtype, "device": device,
            "checkpointing": checkpointing, **dataclasses.asdict(needed), "total": needed.total,
            "largest": needed.largest,
        },
    }


@contextlib.contextmanager
def _opened(checkpoint: str | Path) -> Iterator[tuple[Checkpoint | None, Any]]:
    """(the checkpoint, with every weight matched, or None for a config.json alone; its configuration as it stands)."""
    path = Path(checkpoint)
    if path.is_file() and path.suffix == ".json":
        yield None, read_json(path)
        return
    named = outline(str(checkpoint)) if is_hub_id(checkpoint) else contextlib.nullcontext((checkpoint, True))
    with named as (folder, whole):
        opened = Checkpoint.open(folder)
        for _ in matched(opened, opened.config, headers_only=not whole):
            pass
        yield opened, opened.raw_config


def _tokenizer(opened: Checkpoint, config: ModelConfig) -> dict[str, Any]:
    """What the tokenizer is, or what is wrong with it."""
    try:
        tokenizer = Tokenizer(opened.folder)
        tokenizer.check_fits(config.vocab_size)
    except NumLLMError as error:
        return {"error": str(error)}
    return {
        "file": tokenizer.file, "tokens": tokenizer.vocab_size, "bos": tokenizer.bos_id,
        "ends": list(tokenizer.eos_ids), "adds_bos": tokenizer.adds_bos,
    }


def _size(count: int) -> str:
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= one:
            return f"{count / one:,.1f} {unit}"
    return f"{count} B"


def text(result: dict[str, Any]) -> str:
    """The result for a reader."""
    memory, lora, tokenizer = result["memory"], result["lora"], result["tokenizer"]
    if tokenizer is None:
        known = "none beside a config.json"
    elif "error" in tokenizer:
        known = tokenizer["error"]
    else:
        known = f"{tokenizer['file']}, {tokenizer['tokens']:,} tokens"
    heads = f"{result['heads']} heads of {result['head_dim']}, {result['kv_heads']} for keys and values"
    windows = f", window {', '.join(map(str, result['windows']))}" if result["windows"] else ""
    stored = "" if result["bytes"] is None else f", {_size(result['bytes'])} on disk"
    facts = {
        "architecture": result["architecture"],
        "parameters": f"{result['parameters']:,}{' (head tied to the embedding)' if result['tied'] else ''}",
        "dtype": f"{result['dtype'] or 'not said'}{stored}",
        "layers": f"{result['layers']}, hidden {result['hidden_size']:,}, MLP {result['intermediate_size']:,}",
        "attention": heads + windows,
        "context": f"{result['context']:,} (rotary positions: {result['rope']})",
        "vocabulary": f"{result['vocab_size']:,}",
        "tokenizer": known,
    }
    wide = max(map(len, facts))
    touched = table(
        [{**row, "shape": " × ".join(map(str, row["shape"])), "parameters": f"{row['parameters']:,}"}
         for row in lora["linears"]],
        {"name": "linear", "shape": "shape", "count": "layers", "parameters": f"trained at rank {lora['rank']}"},
    )
    needs = table(
        [{"term": name, "size": _size(memory[term])} for term, name in TERMS.items()]
        + [{"term": "at its peak", "size": _size(memory["total"])}],
        {"term": "memory of a step", "size": "size"},
    )
    return "\n".join([
        *(f"{name:<{wide}}  {value}" for name, value in facts.items()), "", touched, "",
        f"{lora['adapters']} × rank {lora['rank']}: {lora['parameters']:,} parameters are trained", "",
        needs,
        f"({memory['rows']} rows of {memory['length']} tokens, {memory['dtype']} on {memory['device']}, "
        f"checkpointing {memory['checkpointing']}; gradients come as activations go)",
    ])
