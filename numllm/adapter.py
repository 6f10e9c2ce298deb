"""LoRA adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds Δ = scale · B A to a linear's weight W (N × K), A (r × K), B (N × r), where scale is
alpha / r, or alpha / √r with rank-stabilised LoRA (arXiv 2312.03732). What an adapter asks for beyond that
is refused by the key of its configuration that asks for it, never left out in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import TensorInfo, read_header, read_tensor, write_safetensors
from .errors import AdapterError, CheckpointError, DataError
from .files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
DTYPES = ("F32", "F16", "BF16", "F64")

_REFUSED = {
    "use_dora": "DoRA also rescales the weight's rows, so its change is not B A",
    "bias": "trained biases are not read",
    "lora_bias": "trained biases are not read",
    "modules_to_save": "it replaces whole modules of the base",
    "fan_in_fan_out": "the base's weights would have to be stored transposed",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "LoRA on bare parameters is not read",
    "layer_replication": "it changes the base's layers",
    "alora_invocation_tokens": "it acts only after certain tokens, so it is not a change of the weights",
    "use_qalora": "its A is over pooled inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it trains a diagonal between the factors",
    "monteclora_config": "it samples its factors",
    "velora_config": "it is not known to leave B A as it is",
    "megatron_config": "Megatron's split linears are not read",
    "ensure_weight_tying": "it ties adapters of the embedding and the head",
}
"""Configuration keys that must be absent, null, false, empty or "none", and why."""

_INERT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Keys that are read here, or that do not change what a trained adapter computes."""

_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights, beside true and false, that leave the base's weights as they are."""


@dataclasses.dataclass(frozen=True)
class LoRAFactors:
    """One module's adapter: Δ = scale · b a, a (r, K), b (N, r), in the dtype they have on disk."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]


@dataclasses.dataclass(frozen=True)
class FactorInfo:
    """Where one module's factors lie, known from the header alone: a (r, K), b (N, r)."""

    a: TensorInfo
    b: TensorInfo
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), the shape of the weight they are for."""
        return self.b.shape[0], self.a.shape[1]

    def read(self) -> LoRAFactors:
        """The factors, on the CPU."""
        return LoRAFactors(read_tensor(self.a), read_tensor(self.b), self.scale)


class Factors(Mapping[str, LoRAFactors]):
    """Module name → its factors, read from the file each time they are asked for, so none stay in memory."""

    def __init__(self, modules: Mapping[str, FactorInfo]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> LoRAFactors:
        return self._modules[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """A checked adapter: folder, PEFT configuration, and its modules by their names in the base checkpoint."""

    folder: Path
    config: dict[str, Any]
    """The configuration as it stands in the file."""
    modules: dict[str, FactorInfo]
    base_copies: dict[str, TensorInfo]
    """Weights of the base that PEFT stored along (module name → where), for the caller to compare with it."""

    @property
    def factors(self) -> Factors:
        """Module name ("model.layers.0.self_attn.q_proj") → factors."""
        return Factors(self.modules)

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(info.rank for info in self.modules.values())

    @property
    def files(self) -> tuple[Path, Path]:
        """Its configuration and its weights."""
        return self.folder / CONFIG, self.folder / WEIGHTS

    def check_fits(self, base_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """AdapterError unless the base (weight name → shape) has every module it is for, in the right shape, and
        it has factors for every module of the base that its target_modules names.
        """
        strange = [name for name in self.modules if f"{name}.weight" not in base_shapes]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise AdapterError(
                f"{self.folder}: is an adapter of another model: the base has no {strange[0]}.weight{more}"
            )
        for name, info in self.modules.items():
            shape = tuple(base_shapes[f"{name}.weight"])
            if shape != info.shape:
                raise AdapterError(
                    f"{self.folder}: is an adapter of another model: {name} is {shape} in the base, "
                    f"its factors are for {info.shape}"
                )
        config = self.config
        targets = config.get("target_modules")
        if not isinstance(targets, list) or config.get("exclude_modules"):
            return
        if config.get("layers_to_transform") is not None:
            return
        ends = tuple(f".{target}.weight" for target in targets)
        for weight in base_shapes:
            module = weight.removesuffix(".weight")
            if f".{weight}".endswith(ends) and module not in self.modules:
                raise AdapterError(
                    f"{self.folder}: target_modules covers {module}, but it has no factors; the file is incomplete"
                )


def read_adapter(
    folder: str | Path, *, base_shapes: Mapping[str, tuple[int, ...]] | None = None, base_copies: bool = False
) -> AdapterFile:
    """Reads and checks a PEFT LoRA adapter.

    r, lora_alpha, rank_pattern, alpha_pattern and use_rslora are honoured. base_shapes (weight name → shape)
    is what the adapter must fit. base_copies: accept stored copies of base weights (PEFT writes one when a
    head is targeted); the caller then compares them with the base.

    AdapterError, in one line: no such adapter, a pickle, a configuration that is not supported (by its key), a
    tensor that is not used, ranks and shapes that disagree, targets without tensors, NaN or infinity.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise AdapterError(
                f"{folder}: has only a pickle ({pickles[0]}), which can run code when read; load it with PEFT "
                "and save it again, which writes safetensors"
            )
        raise AdapterError(f"{folder}: lacks {WEIGHTS}")
    try:
        tensors, _ = read_header(folder / WEIGHTS)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    pairs, copies = _sort(folder, tensors)
    if copies and not base_copies:
        raise AdapterError(
            f"{folder}: holds a copy of the base's {min(copies)}.weight; save it again with PEFT's "
            "save_embedding_layers=False"
        )
    modules = {name: _factors(folder, config, name, pair) for name, pair in pairs.items()}
    adapter = AdapterFile(folder, config, modules, copies)
    if base_shapes is not None:
        adapter.check_fits(base_shapes)
    _check_values(adapter)
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such adapter folder; give the folder that holds {CONFIG}")
    where = folder / CONFIG
    if not where.is_file():
        raise AdapterError(f"{folder}: lacks {CONFIG}; it is not a PEFT adapter")
    try:
        config = read_json(where)
    except DataError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{where}: wanted a JSON object, got {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{where}: peft_type must be LORA, got {config.get('peft_type')!r}")
    for key, value in config.items():
        if not value or value == "none":
            continue
        if key in _REFUSED:
            raise AdapterError(f"{where}: {key}={_short(value)} is not supported: {_REFUSED[key]}")
        if key not in _INERT:
            raise AdapterError(
                f"{where}: {key}={_short(value)} is not known; take the key out if the adapter is B A without it"
            )
    start = config.get("init_lora_weights", True)
    if start is not None and not isinstance(start, bool) and start not in _STARTS:
        raise AdapterError(
            f"{where}: init_lora_weights={_short(start)} is not supported: it changed the base's weights; "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    _check_numbers(where, config)
    return config


def _check_numbers(where: Path, config: dict[str, Any]) -> None:
    def positive(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    def finite(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and value != 0

    for key, good, wanted in (
        ("r", positive, "a positive whole number"), ("lora_alpha", finite, "a finite number other than 0"),
    ):
        if not good(config.get(key)):
            raise AdapterError(f"{where}: {key} must be {wanted}, got {_short(config.get(key))}")
        pattern = "rank_pattern" if key == "r" else "alpha_pattern"
        values = config.get(pattern) or {}
        if not isinstance(values, dict):
            raise AdapterError(f"{where}: {pattern} must map modules to numbers, got {_short(values)}")
        for name, value in values.items():
            if not good(value):
                raise AdapterError(f"{where}: {pattern} of {_short(name)} must be {wanted}, got {_short(value)}")
            _compile(where, pattern, name)
    if not isinstance(config.get("use_rslora") or False, bool):
        raise AdapterError(f"{where}: use_rslora must be true or false, got {_short(config['use_rslora'])}")


def _compile(where: Path, key: str, pattern: str) -> re.Pattern[str]:
    """The pattern as PEFT reads it: the whole name, or its end after a dot.

    Patterns come with files of strangers: those that could take exponential time (a repeated group) or a high
    power of the name's length are refused.
    """
    if len(pattern) > 500 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        raise AdapterError(f"{where}: {key}: the pattern {_short(pattern)} is too involved; name the modules instead")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise AdapterError(f"{where}: {key}: {_short(pattern)} is not a regular expression: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _of_module(folder: Path, config: dict[str, Any], key: str, default: str, name: str) -> Any:
    """The value of rank_pattern or alpha_pattern for a module: the first pattern that matches, else the default."""
    for pattern, value in (config.get(key) or {}).items():
        if _compile(folder / CONFIG, key, pattern).match(name):
            return value
    return config[default]


def _sort(
    folder: Path, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], dict[str, TensorInfo]]:
    """(module → (A, B), module → stored copy of its base weight) of every tensor in the file."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    copies: dict[str, TensorInfo] = {}
    where = folder / WEIGHTS
    for key, info in tensors.items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"{where}: tensor {_short(key)} is not PEFT's: wanted a name that starts {PREFIX}")
        if len(key) > 500:
            raise AdapterError(f"{where}: tensor name of {len(key)} characters")
        name = key[len(PREFIX):]
        if info.dtype not in DTYPES:
            raise AdapterError(f"{where}: tensor {name!r} is {info.dtype}; wanted one of {', '.join(DTYPES)}")
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = info
        elif "lora_" in name:
            kinds = {"lora_embedding_": "embedding LoRA", "lora_magnitude": "DoRA", ".bias": "a trained bias"}
            kind = next((text for part, text in kinds.items() if part in name), "an unknown tensor")
            raise AdapterError(f"{where}: {name} is {kind}, which is not supported")
        elif name.endswith(".weight"):
            copies[name.removesuffix(".weight").removesuffix(".base_layer")] = info
        else:
            raise AdapterError(f"{where}: tensor {name!r} would not be used; it is not a LoRA factor")
    for name, half in halves.items():
        if len(half) == 1:
            raise AdapterError(f"{where}: {name} has lora_{'BA'['B' in half]} missing; the file is incomplete")
    if not halves:
        raise AdapterError(f"{where}: holds no LoRA factors")
    return {name: (half["A"], half["B"]) for name, half in halves.items()}, copies


def _factors(
    folder: Path, config: dict[str, Any], name: str, pair: tuple[TensorInfo, TensorInfo]
) -> FactorInfo:
    a, b = pair
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise AdapterError(
            f"{folder}: {name}: lora_A {a.shape} and lora_B {b.shape} do not fit together as (r, K) and (N, r)"
        )
    rank = _of_module(folder, config, "rank_pattern", "r", name)
    alpha = _of_module(folder, config, "alpha_pattern", "lora_alpha", name)
    if a.shape[0] != rank:
        raise AdapterError(f"{folder}: {name}: {CONFIG} gives it rank {rank}, its tensors have {a.shape[0]}")
    return FactorInfo(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, by the bits: neither has an exponent that is not all ones."""
    import torch

    integer, mask = {
        torch.float64: (torch.int64, 0x7FF << 52), torch.float32: (torch.int32, 0xFF << 23),
        torch.float16: (torch.int16, 0x1F << 10), torch.bfloat16: (torch.int16, 0xFF << 7),
    }[tensor.dtype]
    bits = tensor.view(integer).numpy()
    return not bool(((bits & mask) == mask).any())


def _check_values(adapter: AdapterFile) -> None:
    for name, factors in adapter.factors.items():
        for letter, tensor in (("A", factors.a), ("B", factors.b)):
            if not _finite(tensor):
                raise AdapterError(
                    f"{adapter.folder}: lora_{letter} of {name} holds NaN or infinity; the training went wrong"
                )


def write_adapter(
    folder: str | Path, factors: Mapping[str, tuple[Tensor, Tensor]], *, rank: int, alpha: float,
    targets: Sequence[str], base_model: str | None = None, extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes an adapter in PEFT's format: Δ = (alpha / rank) · b a for each module.

    factors: module name in the base → (a (rank, K), b (N, rank)). targets: what PEFT is to look for, ends of
    module names. The keys written are those every PEFT knows, so none warns of an unknown one.

    An adapter already there is replaced; the configuration is taken away first and written last, so a folder in
    between is refused rather than misread. ValueError when the factors disagree with rank or targets.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise ValueError(
                f"{name}: factors must be ({rank}, K) and (N, {rank}), got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        if not f".{name}".endswith(tuple(f".{target}" for target in targets)):
            raise ValueError(f"{name} is none of the targets {', '.join(targets)}")
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    if not tensors:
        raise ValueError("an adapter needs factors, got none")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "auto_mapping": None, "inference_mode": True,
        "base_model_name_or_path": base_model, "revision": None,
        "r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": 0.0,
        "target_modules": list(targets), "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None,
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    }
    with contextlib.suppress(FileNotFoundError):
        (folder / CONFIG).unlink()
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt", **(extra_metadata or {})})
    write_json(folder / CONFIG, config)
