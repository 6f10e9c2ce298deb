"""LoRA adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds Δ = scale · B A to a linear's weight W (N × K), A (r × K), B (N × r), where scale is
alpha / r, or alpha / √r with rank-stabilised LoRA (arXiv 2312.03732). What an adapter asks for beyond that
(DoRA, biases, whole modules, …) is read for a merge, and refused by the key of its configuration otherwise;
nothing is left out in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter_config import CONFIG, moves_base, of_module, read_config
from .checkpoint import TensorInfo, read_header, read_tensor, write_safetensors
from .errors import AdapterError, CheckpointError, short
from .files import write_json
from .finite import not_finite

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_MAGNITUDE = ".lora_magnitude_vector"
DTYPES = ("F32", "F16", "BF16", "F64")


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
    transposed: bool = False
    """Whether the weight is stored (K, N): an embedding, or PEFT's fan_in_fan_out."""
    magnitude: TensorInfo | None = None
    """DoRA's m (N,): the row norms of the merged weight (arXiv 2402.09353)."""

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight they are for, as it is stored: (N, K), or (K, N) if transposed."""
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if self.transposed else shape

    def read(self) -> LoRAFactors:
        """The factors, on the CPU, such that b a has the shape of the stored weight."""
        a, b = read_tensor(self.a), read_tensor(self.b)
        return LoRAFactors(b.T, a.T, self.scale) if self.transposed else LoRAFactors(a, b, self.scale)


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
    replaced: dict[str, TensorInfo]
    """Tensors that take the place of the base's (name in the base → where): trained biases, modules_to_save."""
    added: dict[str, tuple[TensorInfo, float]]
    """Tensors that, times a scale, are added to the base's (name in the base → where): lora_bias."""

    @property
    def factors(self) -> Factors:
        """Module name ("model.layers.0.self_attn.q_proj") → factors."""
        return Factors(self.modules)

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(info.rank for info in self.modules.values())

    @property
    def moves_base(self) -> bool:
        """Whether it was trained on W − scale · B₀ A₀ (PiSSA, OLoRA, CorDA), so is nothing without its start."""
        return moves_base(self.config)

    @property
    def plain(self) -> bool:
        """Whether Δ = scale · B A on stored (N, K) weights is all it does."""
        special = any(info.transposed or info.magnitude for info in self.modules.values())
        return not (special or self.replaced or self.added)

    def saves(self, module: str) -> bool:
        """Whether a module of the base is one that the adapter has whole."""
        return _saved_whole(self.config, module)

    @property
    def files(self) -> tuple[Path, Path]:
        """Its configuration and its weights."""
        return self.folder / CONFIG, self.folder / WEIGHTS

    def check_fits(self, base_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """AdapterError unless the base (weight name → shape) has every module it is for, in the right shape, and
        it has factors for every module of the base that its target_modules names.
        """
        wanted = [*(f"{name}.weight" for name in self.modules), *self.replaced, *self.added]
        strange = [name for name in wanted if name not in base_shapes]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise AdapterError(
                f"{self.folder}: is an adapter of another model: the base has no {strange[0]}{more}"
            )
        for name, info in {**self.replaced, **{name: info for name, (info, _) in self.added.items()}}.items():
            if tuple(base_shapes[name]) != info.shape:
                raise AdapterError(
                    f"{self.folder}: its {name} is {info.shape}, the base's {tuple(base_shapes[name])}; it is of "
                    "another or a resized base"
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


def adapter_names(folders: Sequence[str | Path]) -> list[str]:
    """What adapters are called in reports and weight files: their folders' last names, or whole paths where two
    of those are equal.
    """
    last = [Path(folder).resolve().name for folder in folders]
    return last if len(set(last)) == len(last) else [str(folder) for folder in folders]


def read_adapter(
    folder: str | Path, *, base_shapes: Mapping[str, tuple[int, ...]] | None = None, whole: bool = False,
    running: bool = False,
) -> AdapterFile:
    """Reads and checks a PEFT LoRA adapter.

    r, lora_alpha, rank_pattern, alpha_pattern and use_rslora are honoured. base_shapes (weight name → shape)
    is what the adapter must fit. whole: also read what is more than B A, for a merge: biases, modules_to_save,
    fan_in_fan_out, LoRA of embeddings, starts that moved the base, and stored copies of base weights (PEFT writes one
    when a head is targeted), which the caller then compares with the base. running: the same but for fan_in_fan_out and
    starts that moved the base, which take the merged weight.

    AdapterError, in one line: no such adapter, a pickle, a configuration that is not supported (by its key), a
    tensor that is not used, ranks and shapes that disagree, targets without tensors, NaN or infinity.
    """
    folder = Path(folder)
    config = read_config(folder, whole=whole, running=running)
    whole = whole or running
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
    sorted_ = _sort(folder, config, tensors, whole)
    if sorted_.copies and not whole:
        raise AdapterError(
            f"{folder}: holds a copy of the base's {min(sorted_.copies)}.weight; save it again with PEFT's "
            "save_embedding_layers=False"
        )
    modules = {name: _factors(folder, config, name, parts) for name, parts in sorted_.halves.items()}
    added = {f"{name}.bias": (info, modules[name].scale) for name, info in sorted_.added.items()}
    adapter = AdapterFile(folder, config, modules, sorted_.copies, sorted_.replaced, added)
    if base_shapes is not None:
        adapter.check_fits(base_shapes)
    _check_values(adapter)
    return adapter


@dataclasses.dataclass
class _Sorted:
    """Every tensor of an adapter's file, by what it is for."""

    halves: dict[str, dict[str, TensorInfo]] = dataclasses.field(default_factory=dict)
    """Module → A, B and what goes with them."""
    copies: dict[str, TensorInfo] = dataclasses.field(default_factory=dict)
    """Module → stored copy of its base weight."""
    replaced: dict[str, TensorInfo] = dataclasses.field(default_factory=dict)
    added: dict[str, TensorInfo] = dataclasses.field(default_factory=dict)
    """Module → bias of its lora_B."""


_FACTOR = re.compile(
    r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB])|lora_B\.(bias)|lora_(magnitude)_vector(?:\.weight)?)"
)
_AGAIN = re.compile(r"(.+)\.(modules_to_save|original_module)\.(bias)")
"""With `bias`, PEFT writes the bias of a module trained whole once more, and the base's own, by their names in its
wrapper."""
_KINDS = {"lora_embedding_": "embedding LoRA", ".bias": "a trained bias"}


def _sort(folder: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo], whole: bool) -> _Sorted:
    found = _Sorted()
    where = folder / WEIGHTS
    for key, info in tensors.items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"{where}: tensor {short(key)} is not PEFT's: wanted a name that starts {PREFIX}")
        if len(key) > 500:
            raise AdapterError(f"{where}: tensor name of {len(key)} characters")
        name = key[len(PREFIX):]
        again = _AGAIN.fullmatch(name)
        if whole and again is not None and (plain := tensors.get(f"{PREFIX}{again[1]}.{again[3]}")) is not None:
            if again[2] == "modules_to_save" and not read_tensor(info).equal(read_tensor(plain)):
                raise AdapterError(f"{where}: {short(name)} is not {short(plain.name)}, which it should be a copy of")
            continue
        if info.dtype not in DTYPES:
            raise AdapterError(f"{where}: tensor {short(name)} is {info.dtype}; wanted one of {', '.join(DTYPES)}")
        match = _FACTOR.fullmatch(name)
        if match and (whole or match[2] or match[5]):
            _, plain, embedding, bias, magnitude = match.groups()
            if bias and not config.get("lora_bias"):
                raise AdapterError(f"{where}: {name} is a trained bias, but lora_bias is not set in {CONFIG}")
            if magnitude and not config.get("use_dora"):
                raise AdapterError(f"{where}: {name} is of DoRA, but use_dora is not set in {CONFIG}")
            if bias:
                found.added[match[1]] = info
            else:
                part = plain or magnitude or f"embedding_{embedding}"
                if part in found.halves.setdefault(match[1], {}):
                    raise AdapterError(f"{where}: {match[1]} has two tensors for {part}")
                found.halves[match[1]][part] = info
        elif "lora_" in name:
            kind = next((text for part, text in _KINDS.items() if part in name), "an unknown tensor")
            raise AdapterError(f"{where}: {name} is {kind}, which is not supported")
        else:
            _sort_whole(where, config, name, info, whole, found)
    for name, half in found.halves.items():
        for pair in (("A", "B"), ("embedding_A", "embedding_B")):
            missing = [part for part in pair if part not in half]
            if len(missing) == 1:
                raise AdapterError(f"{where}: {name} has lora_{missing[0]} missing; the file is incomplete")
        if set(half) not in ({"A", "B"}, {"A", "B", "magnitude"}, {"embedding_A", "embedding_B"}):
            raise AdapterError(f"{where}: {name} has {', '.join(sorted(half))}, which do not go together")
        if config.get("use_dora") and "magnitude" not in half:
            raise AdapterError(f"{where}: use_dora is set, but {name} has no lora_magnitude_vector")
    if not found.halves:
        raise AdapterError(f"{where}: holds no LoRA factors")
    strange = set(found.added) - set(found.halves)
    if strange:
        raise AdapterError(f"{where}: {min(strange)} has a lora_B.bias and no factors")
    return found


def _sort_whole(
    where: Path, config: dict[str, Any], name: str, info: TensorInfo, whole: bool, found: _Sorted
) -> None:
    """A tensor that is no factor: a trained bias, part of a module saved whole, or a copy of a base weight."""
    module, _, leaf = name.rpartition(".")
    module = module.removesuffix(".base_layer")
    target = f"{module}.{leaf}"
    if whole and _saved_whole(config, module) or (
        whole and leaf == "bias" and (config.get("bias") or "none") != "none"
    ):
        if target in found.replaced:
            raise AdapterError(f"{where}: {target} stands twice")
        found.replaced[target] = info
    elif leaf == "weight" and module:
        found.copies[module] = info
    else:
        raise AdapterError(f"{where}: tensor {short(name)} would not be used; it is not a LoRA factor")


def _saved_whole(config: dict[str, Any], module: str) -> bool:
    """Whether modules_to_save names a module or one that it is part of, as PEFT reads it: by the ends of names."""
    parts = module.split(".")
    paths = (".".join(parts[: count + 1]) for count in range(len(parts)))
    saved = tuple(config.get("modules_to_save") or ())
    return bool(saved) and any(path.endswith(saved) for path in paths)


def _factors(folder: Path, config: dict[str, Any], name: str, half: Mapping[str, TensorInfo]) -> FactorInfo:
    embedding = "embedding_A" in half
    a, b = (half["embedding_A"], half["embedding_B"]) if embedding else (half["A"], half["B"])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise AdapterError(
            f"{folder}: {name}: lora_A {a.shape} and lora_B {b.shape} do not fit together as (r, K) and (N, r)"
        )
    magnitude = half.get("magnitude")
    if magnitude is not None and magnitude.shape != (b.shape[0],):
        raise AdapterError(f"{folder}: {name}: lora_magnitude_vector is {magnitude.shape}, wanted {(b.shape[0],)}")
    rank = of_module(folder, config, "rank_pattern", "r", name)
    alpha = of_module(folder, config, "alpha_pattern", "lora_alpha", name)
    if a.shape[0] != rank:
        raise AdapterError(f"{folder}: {name}: {CONFIG} gives it rank {rank}, its tensors have {a.shape[0]}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return FactorInfo(a, b, scale, embedding or bool(config.get("fan_in_fan_out")), magnitude)


def _check_values(adapter: AdapterFile) -> None:
    held = {f"lora_{part} of {name}": info for name, factors in adapter.modules.items()
            for part, info in (("A", factors.a), ("B", factors.b), ("magnitude_vector", factors.magnitude))
            if info is not None}
    held |= adapter.replaced | {name: info for name, (info, _) in adapter.added.items()}
    if wrong := not_finite(held.values()):
        name = next(name for name, info in held.items() if info == wrong)
        raise AdapterError(f"{adapter.folder}: {name} holds NaN or infinity; the training went wrong")


def write_adapter(
    folder: str | Path, factors: Mapping[str, tuple[Tensor, Tensor]], *, rank: int, alpha: float,
    targets: Sequence[str], base_model: str | None = None, extra_metadata: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (), ranks: Mapping[str, int] | None = None, alphas: Mapping[str, float] | None = None,
    rslora: bool = False, more: Mapping[str, Tensor] | None = None, bias: str = "none",
    modules_to_save: Sequence[str] = (),
) -> None:
    """Writes an adapter in PEFT's format: Δ = (alpha / rank) · b a for each module, or (alpha / √rank) · b a (rslora).

    factors: module name in the base → (a (rank, K), b (N, rank)). targets: what PEFT is to look for, ends of
    module names; exclude: which of them it is not on. ranks, alphas: other ranks and alphas of modules, by names or
    their ends. more: what PEFT's format holds beside them, by its names less the prefix: DoRA's magnitudes, of every
    module of factors or of none; the factors of embeddings; biases (bias: PEFT's word for which) and weights of
    modules_to_save. The keys written are those every PEFT knows, so none warns of an unknown one.

    An adapter already there is replaced; the configuration is taken away first and written last, so a folder in
    between is refused rather than misread. ValueError when the factors disagree with rank or targets.
    """
    folder = Path(folder)
    tensors = {f"{PREFIX}{key}": value for key, value in (more or {}).items()}
    magnitudes = {key.removesuffix(_MAGNITUDE) for key in more or () if key.endswith(_MAGNITUDE)}
    if magnitudes and magnitudes != set(factors):
        raise ValueError("magnitudes are wanted for every module or for none")
    for name, (a, b) in factors.items():
        own = next((value for module, value in (ranks or {}).items() if f".{name}".endswith(f".{module}")), rank)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != own or b.shape[1] != own:
            raise ValueError(
                f"{name}: factors must be ({own}, K) and (N, {own}), got {tuple(a.shape)} and {tuple(b.shape)}"
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
        "r": rank, "lora_alpha": _number(alpha), "lora_dropout": 0.0,
        "target_modules": list(targets), "bias": bias, "fan_in_fan_out": False, "init_lora_weights": True,
        "modules_to_save": list(modules_to_save) or None, "layers_to_transform": None, "layers_pattern": None,
        "rank_pattern": dict(ranks or {}),
        "alpha_pattern": {module: _number(value) for module, value in (alphas or {}).items()},
        "use_rslora": rslora, "use_dora": bool(magnitudes),
    }
    if exclude:
        config["exclude_modules"] = list(exclude)
    with contextlib.suppress(FileNotFoundError):
        (folder / CONFIG).unlink()
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt", **(extra_metadata or {})})
    write_json(folder / CONFIG, config)


def _number(value: float) -> float:
    """The value, whole where it is."""
    return int(value) if float(value).is_integer() else value
