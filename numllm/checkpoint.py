"""Hugging Face-layout folders of safetensors: resolve, check, read, write.

The format is the one of https://github.com/huggingface/safetensors: eight bytes of header length (little
endian), a JSON header, then the tensors' bytes. Headers are checked here before a byte of data is used;
tensors are read straight into their own memory, one at a time or some rows at a time, never through mmap.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import ModelConfig
from .errors import CheckpointError, DataError, short
from .files import parse_json, read_json, write_aside
from .hub import INDEX, SINGLE, download

if TYPE_CHECKING:
    import torch

DEMO = Path(__file__).parent / "demo" / "base"
MAX_HEADER = 100_000_000  # the limit of the safetensors library

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by the dtype names of the format."""

_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_PICKLES = (
    "is a pickle, which can run code when read; take the checkpoint's safetensors, or load it where you trust it and "
    "save it with save_pretrained(folder, safe_serialization=True)"
)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a format dtype name: "BF16" → torch.bfloat16."""
    import torch

    return getattr(torch, _TORCH_NAMES[name])


@functools.cache
def dtype_names() -> Mapping[torch.dtype, str]:
    """torch dtype → format dtype name."""
    return {torch_dtype(name): name for name in _TORCH_NAMES}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the file (absolute)."""
    end: int
    """One past the last byte."""

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.start


def read_header(path: str | Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors (in order of their data) and metadata of a safetensors file.

    CheckpointError when the header is damaged or unsafe: longer than the file or than 100 MB, not JSON,
    repeated names, names with NUL or path separators' `..`, unknown dtypes, sizes that do not agree with
    dtype and shape, holes, overlaps, data past the end of the file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(8)
            if len(raw) < 8:
                raise CheckpointError(f"{path}: not a safetensors file: only {size} bytes long")
            (length,) = struct.unpack("<Q", raw)
            if length > MAX_HEADER or 8 + length > size:
                raise CheckpointError(
                    f"{path}: not a whole safetensors file: the header claims {length:,} bytes, "
                    f"the file has {size:,}; download it again"
                )
            text = file.read(length).decode("utf-8")
        header = parse_json(text, f"{path}: header")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a safetensors file: its header is not UTF-8") from error
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings")
    first = 8 + length
    found = [_entry(path, name, entry, first) for name, entry in header.items()]
    found.sort(key=lambda info: (info.start, info.end))
    at = first
    for info in found:
        if info.start != at:
            kind = "overlaps the one before it" if info.start < at else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {short(info.name)} {kind}")
        at = info.end
    if at != size:
        raise CheckpointError(
            f"{path}: the tensors end at byte {at:,}, the file at {size:,}; it is truncated or has a tail, "
            "download it again"
        )
    return {info.name: info for info in found}, metadata


def _entry(path: Path, name: str, entry: Any, first: int) -> TensorInfo:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    if not name or "\0" in name or ".." in name or name.startswith("/") or "\\" in name:
        raise CheckpointError(f"{path}: unsafe tensor name {short(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: tensor {short(name)} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise CheckpointError(f"{path}: tensor {short(name)} has the unknown dtype {short(dtype)}")
    if not isinstance(shape, list) or not all(map(whole, shape)):
        raise CheckpointError(f"{path}: tensor {short(name)} has the shape {short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)):
        raise CheckpointError(f"{path}: tensor {short(name)} has the offsets {short(offsets)}")
    needed = min(math.prod(shape) * BYTES[dtype], 1 << 63)  # no more digits than can be shown
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{path}: tensor {short(name)} of {dtype} {short(shape)} needs {needed:,} bytes, "
            f"its offsets give {short(offsets[1] - offsets[0])}"
        )
    return TensorInfo(name, path, dtype, tuple(shape), first + offsets[0], first + offsets[1])


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """The tensor, in the dtype it has on disk, on the CPU."""
    return _read(info, info.shape, info.start)


def read_rows(info: TensorInfo, first: int, last: int) -> torch.Tensor:
    """Rows first..last-1 of the first dimension, in the dtype on disk, on the CPU."""
    row = info.nbytes // info.shape[0]
    return _read(info, (last - first, *info.shape[1:]), info.start + first * row)


def row_spans(info: TensorInfo, elements: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of blocks of whole rows, about `elements` in each. The tensor must have a dimension."""
    if 0 not in info.shape:
        step = max(1, elements * info.shape[0] // math.prod(info.shape))
        for first in range(0, info.shape[0], step):
            yield first, min(first + step, info.shape[0])


class RowReader:
    """Rows of a tensor's first dimension, read from a file opened once into the caller's memory, which several threads
    may do at once. CheckpointError when the file cannot be read or ends too early.
    """

    def __init__(self, info: TensorInfo) -> None:
        self.info, self._row = info, info.nbytes // info.shape[0]
        self._file = _open(info)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """Fills `rows`, contiguous on the CPU and in the dtype on disk, from row `first` on."""
        _fill(rows, self._file, self.info, self.info.start + first * self._row)
        return rows


def row_blocks(info: TensorInfo, elements: int = 1 << 20) -> Iterator[torch.Tensor]:
    """The tensor in blocks of whole rows, about `elements` in each, so that no more is in memory."""
    if not info.shape:
        yield read_tensor(info)
        return
    for first, last in row_spans(info, elements):
        yield read_rows(info, first, last)


def _read(info: TensorInfo, shape: tuple[int, ...], start: int) -> torch.Tensor:
    import torch

    tensor = torch.empty(shape, dtype=torch_dtype(info.dtype))
    if tensor.numel():
        with _open(info) as file:
            _fill(tensor, file, info, start)
    return tensor


def _open(info: TensorInfo) -> io.FileIO:
    try:
        return open(info.file, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot be read: {error.strerror}") from error


def _fill(tensor: torch.Tensor, file: io.FileIO, info: TensorInfo, start: int) -> None:
    """Reads a contiguous tensor's bytes from byte `start` on."""
    import torch

    view = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    try:
        at = 0
        while at < len(view):
            count = os.preadv(file.fileno(), [view[at:]], start + at)
            if not count:
                raise CheckpointError(f"{info.file}: ended inside tensor {short(info.name)}")
            at += count
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot be read: {error.strerror}") from error


def write_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file: aside, fsynced, renamed. `metadata` defaults to {"format": "pt"}."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                metadata=dict(metadata or {"format": "pt"}))
    with write_aside(path, "wb") as file:
        file.write(data)


def resolve(name: str | Path) -> Path:
    """The folder of a checkpoint: a local folder, a .safetensors file in one, `demo`, or a Hub id with an optional
    `@revision` (see `hub.download`). CheckpointError when there is no such folder or repository.
    """
    text = str(name)
    if text == "demo":
        return DEMO
    path = Path(name)
    if path.is_dir():
        return path
    if path.suffix in _PICKLES and path.exists():
        raise CheckpointError(f"{text}: {_NO_PICKLES}")
    if path.exists():
        if path.suffix != ".safetensors" or not (path.parent / "config.json").is_file():
            raise CheckpointError(
                f"{text}: wanted a checkpoint folder, or a .safetensors file with config.json beside it; got a file"
            )
        return path.parent
    if not is_hub_id(name):
        raise CheckpointError(
            f"{text}: no such folder; give a local folder, a Hub id such as Qwen/Qwen2.5-7B, or demo"
        )
    return download(text)


def is_hub_id(name: str | Path) -> bool:
    """Whether a checkpoint's name is a Hub id, with an optional `@revision`, and no path that is there."""
    text = str(name)
    form = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text)
    return form is not None and not text.startswith(".") and not Path(name).exists()


def _inside(folder: Path, name: Any) -> Path:
    """The path of a weight file named by an index; refused when it leaves the folder."""
    if (
        not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name
        or name != os.path.basename(name) or "\\" in name or ":" in name
    ):
        raise CheckpointError(f"{folder / INDEX}: unsafe file name {short(name)}")
    path = folder / name
    real, root = path.resolve(), folder.resolve()
    # The Hub's cache keeps snapshots/<commit>/<file> as links to blobs/<digest> of the same repository.
    cache = root.parent.parent if root.parent.name == "snapshots" else root
    if not real.is_relative_to(root) and not real.is_relative_to(cache / "blobs"):
        raise CheckpointError(f"{path}: is a link to outside its folder; copy the file instead")
    return path


class Checkpoint:
    """An open checkpoint folder: checked headers, no tensor in memory.

    Attributes: folder; raw_config (dict of config.json); tensors (name → TensorInfo); files (weight files in
    order); sharded; metadata (of the first weight file). single: the name of the one weight file to read.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self.folder, self._single = folder, single
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: has no config.json; give the folder of a checkpoint")
        try:
            self.raw_config: dict[str, Any] = read_json(folder / "config.json")
            self.files = self._weight_files()
        except DataError as error:
            raise CheckpointError(str(error)) from error
        if not isinstance(self.raw_config, dict):
            raise CheckpointError(f"{folder / 'config.json'}: wanted a JSON object, got {short(self.raw_config)}")
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        for path in self.files:
            found, metadata = read_header(path)
            self.metadata = self.metadata or metadata
            for name, info in found.items():
                if name in self.tensors:
                    raise CheckpointError(f"{path}: tensor {short(name)} stands in two files")
                self.tensors[name] = info
        if self.sharded:
            self._check_index()

    @classmethod
    def open(cls, name: str | Path) -> Checkpoint:
        """Resolves `name` (see `resolve`) and checks config, index and headers. CheckpointError, DataError."""
        folder, path = resolve(name), Path(name)
        return cls(folder, path.name if path.suffix == ".safetensors" and path.is_file() else SINGLE)

    @functools.cached_property
    def config(self) -> ModelConfig:
        """config.json as a ModelConfig. ConfigError when it is not supported."""
        return ModelConfig.from_hf(self.raw_config)

    @property
    def sharded(self) -> bool:
        """Whether the weights have an index."""
        return (self.folder / INDEX).exists()

    def _weight_files(self) -> list[Path]:
        folder = self.folder
        if self.sharded:
            if self._single != SINGLE:
                raise CheckpointError(f"{folder / self._single}: the folder has an index of its files; give the folder")
            index = read_json(folder / INDEX)
            names = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(names, dict) or not names:
                raise CheckpointError(f"{folder / INDEX}: has no weight_map")
            self.weight_map: dict[str, str] = names
            # One look at each file: a run of tensors names the same one.
            paths = list(dict.fromkeys(_inside(folder, name) for name, _ in itertools.groupby(names.values())))
            for path in paths:
                if not path.is_file():
                    raise CheckpointError(f"{path}: named by the index but missing; download it again")
            return paths
        if (folder / self._single).is_file():
            return [_inside(folder, self._single)]
        pickles = sorted(
            path.name for path in folder.iterdir()
            if path.suffix in _PICKLES or path.name.endswith(".bin.index.json")
        )
        if pickles:
            raise CheckpointError(f"{folder}: has no safetensors; {pickles[0]} {_NO_PICKLES}")
        raise CheckpointError(
            f"{folder}: has neither {SINGLE} nor {INDEX}; give a folder that has, or the .safetensors file itself"
        )

    def _check_index(self) -> None:
        claimed = set(self.weight_map)
        missing, extra = claimed - set(self.tensors), set(self.tensors) - claimed
        if missing or extra:
            name = min(missing or extra)
            where = "named by the index but in no file" if missing else "in a file but not in the index"
            raise CheckpointError(f"{self.folder / INDEX}: tensor {short(name)} is {where}")
        for name, file in self.weight_map.items():
            if self.tensors[name].file.name != file:
                raise CheckpointError(f"{self.folder / INDEX}: tensor {short(name)} is not in {file}")

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies. CheckpointError when there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: lacks the tensor {short(name)}") from None

    def read(
        self, name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """One tensor, converted to `dtype` (None: as on disk) on `device`."""
        return read_tensor(self.info(name)).to(device=device, dtype=dtype)


def expected_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tensor name, shape) of every weight a model of this configuration has, the tied head left out."""
    name, d = config.family.name, config.hidden_size
    body = name("model")
    yield f"{body}.{name('embed_tokens')}.weight", (config.vocab_size, d)
    for layer in range(config.layers):
        block = f"{body}.{name('layers')}.{layer}"
        for norm in config.block_norms():
            yield f"{block}.{name(norm)}.weight", (d,)
        for owner, linears in (("self_attn", config.attention_linears()), ("mlp", config.mlp_linears())):
            for linear, (outputs, inputs, bias) in linears.items():
                yield f"{block}.{name(owner)}.{name(linear)}.weight", (outputs, inputs)
                if bias:
                    yield f"{block}.{name(owner)}.{name(linear)}.bias", (outputs,)
        if config.family.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield f"{block}.{name('self_attn')}.{name(norm)}.weight", (config.head_dim,)
    yield f"{body}.{name('norm')}.weight", (d,)
    if not config.tied:
        yield f"{name('lm_head')}.weight", (config.vocab_size, d)
