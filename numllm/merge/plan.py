"""A merge checked from headers and configurations, before anything is written."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..adapter import AdapterFile
from ..adapter_config import CONFIG
from ..checkpoint import INDEX, Checkpoint, TensorInfo, read_rows, read_tensor
from ..errors import AdapterError, DataError, MergeError, short
from ..files import read_json
from .factors import Part, Target, Whole
from .methods import BLOCK
from .options import ENTRYWISE, Options

LARGEST = 1e40
"""What a weight stays below: no dtype holds as much, and the squares of what is merged are finite in fp64."""
REPORT = "numllm_merge.json"
CARD = "README.md"

_LEFT_BEHIND = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack",
    ".ot", ".npz", ".tflite", ".llamafile", ".index.json",
)  # fmt: skip
"""Ends of the names of files that hold weights, in any format, or that point to them."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One adapter of a merge."""

    file: AdapterFile
    weight: float
    name: str
    start: AdapterFile | None = None
    """The adapter as it was before training, where its start was taken off the base's weights."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Module → its own weight, in place of `weight`."""

    def weight_of(self, module: str) -> float:
        """The weight of all it does to a module."""
        return self.weights.get(module, self.weight)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything it is read from."""
        return (*self.file.files, *(self.start.files if self.start else ()))


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """A checked merge: nothing in it is left to go wrong but the reading and the writing."""

    base: Checkpoint
    base_name: str
    adapters: tuple[Source, ...]
    options: Options
    targets: dict[str, Target]
    """Weight name → what happens to it, in the order of the base's files."""
    carried: tuple[str, ...]
    """Files beside the weights that go along, relative to the base's folder."""
    stamps: dict[Path, tuple[int, int, int]]
    """Size, time of change and inode of every input, to tell whether one changes while it is read."""
    device: torch.device | None = None
    """Where merged weights are computed; None: on the CPU, in its own faster way."""

    @property
    def names(self) -> list[str]:
        """The adapters' names."""
        return [source.name for source in self.adapters]

    @functools.cached_property
    def largest(self) -> int:
        """The largest rank among the adapters: what svd keeps unless told otherwise."""
        return max(source.file.rank for source in self.adapters)

    def most_kept(self, target: Target) -> int | None:
        """The rank of the target's Δ, or a bound of it where that takes its singular values to tell; None where the
        change is of no low rank.
        """
        options = self.options
        if not target.parts or target.rescaled or options.method in ENTRYWISE:
            return None
        if options.method == "svd" and options.energy is None and not options.noise:
            return min(options.rank or self.largest, target.full_rank)
        if options.method in ("linear", "peft-ties"):
            return min(max(part.rank for part in target.parts), *target.info.shape)
        return target.full_rank

    @property
    def needs_model(self) -> str | None:
        """Why the result cannot be an adapter, or None."""
        if self.options.method in ENTRYWISE:
            return f"the change that {self.options.method} makes is not of low rank"
        for source in self.adapters:
            if not source.file.plain:
                return f"adapter {source.name} does more than add B A to linears (DoRA, biases, whole modules, …)"
        return None


def plan_merge(
    base: Checkpoint, adapters: Sequence[Source], options: Options | None = None, *, base_name: str | None = None,
    device: torch.device | None = None,
) -> MergePlan:
    """Checks that the adapters can be merged into the base, from the headers.

    MergeError or AdapterError, in one line, when it cannot be done right.
    """
    options = options or Options()
    if not adapters:
        raise MergeError("a merge needs at least one adapter, got none")
    _check_adapters(adapters)
    _check_base(base)
    shapes = {name: info.shape for name, info in base.tensors.items()}
    parts: dict[str, list[Part]] = {}
    wholes: dict[str, list[Whole]] = {}
    for index, source in enumerate(adapters):
        _check_tied(base, source.file)
        source.file.check_fits(shapes)
        for copy, info in source.file.base_copies.items():
            _check_copy(base, source.file, copy, info)
        _check_start(source)
        _check_method(source, options)
        for module, factors in source.file.modules.items():
            if weight := source.weight_of(module):
                start = source.start.modules[module] if source.start else None
                parts.setdefault(f"{module}.weight", []).append(Part(index, factors, weight, start))
        for name, info in source.file.replaced.items():
            if weight := source.weight_of(name.rpartition(".")[0]):
                wholes.setdefault(name, []).append(Whole(index, info, weight, True))
        for name, (info, scale) in source.file.added.items():
            if weight := source.weight_of(name.rpartition(".")[0]):
                wholes.setdefault(name, []).append(Whole(index, info, weight * scale, False))
        known = {*source.file.modules, *(name.rpartition(".")[0] for name in source.file.replaced)}
        if strange := sorted(set(source.weights) - known):
            raise MergeError(f"weights of {source.name}: the adapter has no module {strange[0]}")
    targets = {}
    for name, info in base.tensors.items():
        if name not in parts and name not in wholes:
            continue
        if info.dtype not in ("F32", "F16", "BF16"):
            raise MergeError(
                f"{base.folder}: {name} is {info.dtype}; an adapter can be folded into F32, F16 and BF16 weights "
                "only, so take the checkpoint before it was quantised"
            )
        if not info.shape or 0 in info.shape:
            raise MergeError(f"{base.folder}: {name} has the shape {info.shape}; there is nothing to merge into")
        targets[name] = Target(info, tuple(parts.get(name, ())), tuple(wholes.get(name, ())))
    if not targets:
        raise MergeError("the weights of all modules are 0, so nothing would change")
    largest = max(math.prod(target.info.shape) for target in targets.values())
    if options.method == "ties" and options.share * largest < 1:
        raise MergeError(f"density {options.share:g} keeps no entry of any weight, so nothing would change; raise it")
    carried = _carried(base.folder)
    inputs = [*base.files, *(base.folder / name for name in carried)]
    inputs += [path for source in adapters for path in source.files]
    return MergePlan(
        base, base_name or base.folder.name, tuple(adapters), options, targets, carried,
        {path: stamp(path) for path in inputs}, device,
    )


def stamp(path: Path) -> tuple[int, int, int]:
    """Size, time of change in ns and inode of a file."""
    try:
        found = path.stat()
    except OSError as error:
        raise MergeError(f"{path}: cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def _check_adapters(adapters: Sequence[Source]) -> None:
    seen: dict[Path, str] = {}
    for source in adapters:
        adapter, weight, name = source.file, source.weight, source.name
        if not abs(weight) < LARGEST or weight == 0:
            raise MergeError(
                f"adapter {name}: its weight must be a number other than 0 and smaller than {LARGEST:g}, got {weight}"
            )
        real = adapter.folder.resolve()
        if real in seen:
            raise MergeError(f"adapter {name} is given twice; give it once, with the sum of the weights")
        seen[real] = name
        idle = not any(bool(read_tensor(info.b).any()) for info in adapter.modules.values())
        if idle and not adapter.replaced and not adapter.added and not source.start:
            raise MergeError(f"adapter {name} changes nothing: its B are all zero; it was never trained")


def _check_base(base: Checkpoint) -> None:
    quantised = base.raw_config.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise MergeError(
            f"{base.folder}: the base is quantised ({kind or 'quantization_config'}); merge into the checkpoint "
            "it was made from and quantise the result"
        )


def _check_tied(base: Checkpoint, adapter: AdapterFile) -> None:
    nested = base.raw_config.get("text_config")
    says = [config.get("tie_word_embeddings") for config in (base.raw_config, nested) if isinstance(config, dict)]
    tied = True in says or not any(name.endswith("lm_head.weight") for name in base.tensors)
    ends = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out")
    for module in (*adapter.modules, *(name.removesuffix(".weight") for name in adapter.replaced)):
        if tied and module.rpartition(".")[2] in ends:
            raise MergeError(
                f"{adapter.folder}: changes {module}, but the base ties its head to its embedding: a change of one "
                "would change both; merge into a base saved with tie_word_embeddings=false"
            )


def _check_start(source: Source) -> None:
    adapter, start = source.file, source.start
    if adapter.moves_base and start is None:
        raise AdapterError(
            f"{adapter.folder}: init_lora_weights={adapter.config['init_lora_weights']!r} took the adapter's start off "
            "the base's weights; give the adapter saved before training as its start, or convert it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    if start is None:
        return
    if not adapter.moves_base:
        raise AdapterError(f"{adapter.folder}: has a plain init_lora_weights, so it takes no start")
    here, there = (
        {name: (info.rank, info.shape, info.scale) for name, info in file.modules.items()} for file in (adapter, start)
    )
    if here != there or not start.plain:
        raise AdapterError(f"{start.folder}: is not the start of {adapter.folder}: modules, ranks or scales differ")
    if not adapter.plain:
        raise AdapterError(f"{adapter.folder}: a start is read with plain LoRA only, not with DoRA, biases or modules")


def _check_method(source: Source, options: Options) -> None:
    special = [info for info in source.file.modules.values() if info.magnitude]
    if special and options.method != "exact":
        raise MergeError(
            f"adapter {source.name} is DoRA (use_dora), whose change is not B A; merge with method exact, got "
            f"{options.method}"
        )
    if (source.file.replaced or source.file.added) and options.method not in ("exact", "svd"):
        raise MergeError(
            f"adapter {source.name} has trained biases or whole modules; merge with method exact or svd, got "
            f"{options.method}"
        )
    if source.start and options.method in ("linear", "peft-ties"):
        raise MergeError(f"adapter {source.name} needs its start, so it cannot be merged by {options.method}")


def _check_copy(base: Checkpoint, adapter: AdapterFile, module: str, copy: TensorInfo) -> None:
    """A weight of the base stored with the adapter must be the base's own."""
    info = base.tensors.get(f"{module}.weight")
    same = info is not None and info.shape == copy.shape
    if same:
        rows = max(1, BLOCK // max(1, math.prod(info.shape[1:])))
        for first in range(0, info.shape[0], rows):
            last = min(first + rows, info.shape[0])
            if not torch.equal(read_rows(info, first, last).double(), read_rows(copy, first, last).double()):
                same = False
                break
    if not same:
        raise MergeError(
            f"{adapter.folder}: stores its own {module}.weight, which is not the base's; it was trained on another "
            "or a resized base"
        )


def _carried(folder: Path) -> tuple[str, ...]:
    """Names of the files that go along: all but weights, hidden files, adapters', old merge reports and the card.

    A PEFT configuration is left behind: beside the merged weights transformers would load it on top of them.
    """
    found = []
    root = folder.resolve()
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for where in (folder, folder / "additional_chat_templates"):
        for path in sorted(where.iterdir()) if where.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if path.name.startswith(".") or path.name.endswith(_LEFT_BEHIND) or not path.is_file():
                continue
            if path.name in (CONFIG, REPORT) or name == CARD:
                continue
            real = path.resolve()
            if not real.is_relative_to(root) and not real.is_relative_to(cache):
                raise MergeError(f"{path}: is a link to outside its folder; copy the file instead")
            found.append(name)
    if (folder / INDEX).is_file():
        found.append(INDEX)
    return tuple(found)


def read_weights(path: Path, adapters: Sequence[Source]) -> tuple[Source, ...]:
    """The adapters with the weights of a file: {adapter's name: weight or {module: weight}}.

    A module that is not named keeps its adapter's weight; a weight of 0 leaves the module out. MergeError for
    names the merge does not know, and for values that are no finite numbers.
    """
    try:
        given = read_json(path)
    except DataError as error:
        raise MergeError(str(error)) from error
    if not isinstance(given, dict):
        raise MergeError(f"{path}: wanted an object of adapters, got {type(given).__name__}")
    names = [source.name for source in adapters]
    for name, weights in given.items():
        if name not in names:
            raise MergeError(f"{path}: there is no adapter {name!r}; there are: {', '.join(names)}")
        for value in weights.values() if isinstance(weights, dict) else [weights]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
                raise MergeError(
                    f"{path}: a weight of {name} must be a number smaller than {LARGEST:g}, got {short(value)}"
                )
    found = []
    for source in adapters:
        weights = given.get(source.name, source.weight)
        if isinstance(weights, dict):
            found.append(dataclasses.replace(source, weights={key: float(w) for key, w in weights.items()}))
        else:
            found.append(dataclasses.replace(source, weight=float(weights)))
    return tuple(found)
