"""Kernels of the processor: C, compiled at first use by the machine's own compiler for this very processor.

What Triton does for its launchers: `$CC`, gcc or clang makes a shared library, which is kept in the user's cache
(`$XDG_CACHE_HOME/numllm`, else `~/.cache/numllm`) under a name that holds source, compiler, flags and processor. Where
there is no compiler, where it fails, or where `NUMLLM_COMPILE=0` is set, `library()` is None, `why_not()` says why, and
callers do without. `python -m numllm_kernels.processor` compiles, and says what came of it.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("processor.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-Wno-psabi", "-shared", "-fPIC")
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def library(*, build: bool = True) -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none. build: whether to compile, which takes a second, where that was
    not done before.
    """
    return _load(build)[0]


def why_not() -> str | None:
    """Why there are none; None where there are."""
    return _load(True)[1]


@functools.cache
def _load(build: bool) -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("NUMLLM_COMPILE") == "0":
        return None, "NUMLLM_COMPILE=0 is set"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return None, "no C compiler is here: neither $CC nor gcc nor clang"
    try:
        return _declared(ctypes.CDLL(str(_compiled(compiler.split(), build)))), None
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} fails: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{compiler}: {error}"


def _compiled(compiler: list[str], build: bool) -> Path:
    """The library's path: from the cache, or made now. OSError, SubprocessError."""
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    about = program.stat()
    told = [*compiler, *FLAGS, program, about.st_size, about.st_mtime_ns, _processor()]
    key = hashlib.sha256(SOURCE.read_bytes() + repr(told).encode()).hexdigest()[:24]
    folder = cache_folder()
    path = folder / f"processor-{key}.so"
    if not (path.exists() and _own(path)):
        if not build:
            raise FileNotFoundError("not compiled yet")
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / path.name
            subprocess.run(
                [*compiler, *FLAGS, "-o", str(made), str(SOURCE)], capture_output=True, text=True, check=True,
                timeout=120,
            )
            made.replace(path)
    return path


def cache_folder() -> Path:
    """The user's folder for what is made once on a machine; one for this process alone where that cannot be written, or
    others can write it.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numllm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _own(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not to be written; no home
        pass
    return _own_cache()


@functools.cache
def _own_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="numllm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _own(path: Path) -> bool:
    """Whether nobody else can have written it."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> list[str]:
    """What -march=native looks at: a home may be shared by machines of several kinds."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        first = []
    changing = ("processor", "cpu MHz", "bogomips", "apicid", "initial apicid", "core id", "physical id")
    return [platform.machine(), *(line for line in first if not line.startswith(changing))]


class _Factors(ctypes.Structure):
    """`factors` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("b", "last_b", "a", "b_single", "a_single", "b_bound", "a_bound")),
        *((name, ctypes.c_int64) for name in ("rows", "whole", "columns", "pitch", "rank", "single", "same")),
    )


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    found.numllm_fold.argtypes = (
        ctypes.c_int, pointer, pointer, count, count, ctypes.POINTER(_Factors), count, ctypes.POINTER(real),
        ctypes.POINTER(count),
    )
    found.numllm_fold_prepare.argtypes = (ctypes.POINTER(_Factors), pointer, real, real, real)
    found.numllm_fold_prepare.restype = None
    found.numllm_finite.argtypes = (ctypes.c_int, pointer, count)
    found.numllm_triangle.argtypes = (pointer, count, count, count, count, pointer)
    found.numllm_triangle.restype = real
    return found


def all_finite(x: Tensor) -> bool:
    """Whether no element of a contiguous tensor on the CPU, of a dtype of `KINDS`, is NaN or infinite.

    RuntimeError where nothing is compiled.
    """
    found = library(build=False)
    if found is None:
        raise RuntimeError("there are no compiled kernels")
    return bool(found.numllm_finite(KINDS[x.dtype], x.data_ptr(), x.numel()))


WIDEST = 128
"""Columns that `triangle` takes at most."""

SOUND = 2000.0
"""‖R‖ ‖R⁻¹‖ up to which `triangle` gives R: the square of that times 2⁻⁵² is 10⁻⁹."""


def triangle(x: Tensor) -> Tensor | None:
    """R (r, r), fp64, upper triangular with a positive diagonal, of x = Q R; x (n, r), fp64, of any strides, r ≤ n.

    The Cholesky factor of xᵀ x: a quarter of the time of a QR decomposition, but wrong by about 2⁻⁵² κ(x)² (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, §20.4). None where ‖R‖ ‖R⁻¹‖ (Frobenius: at least r and κ) is
    above `SOUND`, where r > `WIDEST`, and without `library()`: take torch.linalg.qr then.
    """
    found = library()
    rows, columns = x.shape
    if found is None or x.dtype != torch.float64 or not 0 < columns <= min(rows, WIDEST):
        return None
    r = torch.empty(columns, columns, dtype=torch.float64)
    condition = found.numllm_triangle(x.data_ptr(), rows, columns, *x.stride(), r.data_ptr())
    return r if 0 < condition <= SOUND else None


ALIGNED = 24
"""Row blocks of a `Fold` begin at multiples of this."""


@functools.lru_cache
def _roundings(rank: int, chain: int) -> Tensor:
    """m_r of `Fold`, and two more for the roundings of the bound itself and of the sum in fp64."""
    place, chains = torch.arange(rank), -(-rank // chain)
    return (2 + 2 + chain - place % chain + chains - place // chain).double()


class Fold:
    """W' = W + b a, b (N, R), a (R, K), fp64, on the CPU: each element the number of W's dtype (bf16, fp16 or fp32)
    nearest to the sum in fp64, ties to even. RuntimeError without `library()`.

    For bf16 most sums are made in fp32. There the products of b a are added up in chains of c, and the chains to each
    other; what is rounded m times, u = 2⁻²⁴ each, is wrong by a factor of at most 1 + m u / (1 − m u) (Higham, Accuracy
    and Stability of Numerical Algorithms, 2002, ch. 3). Product r, the p-th of its chain, that being the q-th of Q, has
    m_r = 2 + (c − p) + (Q − q): b and a are rounded (one less for each that is fp32 already), and it goes through so
    many additions. So b_i a_j is wrong by at most about

        u Σ_r m_r |b_ir a_rj| ≤ u ‖√m b_i‖ ‖√m a_j‖,

    and by less than 2⁻¹²⁰ for numbers below 2⁻¹²⁶. The sums that this leaves open are made again in fp64.
    """

    def __init__(self, b: Tensor, a: Tensor) -> None:
        found = library()
        if found is None:
            raise RuntimeError(f"there is no compiled fold: {why_not()}")
        rows, width, chain = found.numllm_fold_rows(), found.numllm_fold_width(), found.numllm_fold_chain()
        self.shape, rank = (b.shape[0], a.shape[1]), len(a)
        b, a = b.contiguous(), a.contiguous()
        if a.shape[1] % width:
            a = torch.nn.functional.pad(a, (0, -a.shape[1] % width))
        whole = len(b) - len(b) % rows
        last_b = torch.nn.functional.pad(b[whole:], (0, 0, 0, rows - len(b) + whole))
        times, high = _roundings(rank, chain), whole + len(last_b)
        single = torch.empty(high * rank + a.numel() + high + a.shape[1]).split(
            [high * rank, a.numel(), high, a.shape[1]]
        )
        self._fold, self._kept = found.numllm_fold, (b, last_b, a, *single)
        self._factors = _Factors(*(x.data_ptr() for x in self._kept), len(b), whole, self.shape[1], a.shape[1], rank)
        found.numllm_fold_prepare(self._factors, times.data_ptr(), 1.01 * 2.0**-24, 1.01, 2.0**-60)

    def __call__(self, w: Tensor, out: Tensor, first: int) -> tuple[float, int, bool, bool]:
        """Writes rows first.. of W' to `out` from those of W, both (rows, K), contiguous and of one dtype.

        first is a multiple of ALIGNED, and so is the number of rows, unless they are the last. Returns ‖W‖² of these
        rows, how many elements have other bits than before, whether all of W is finite, and whether all of W' is.
        ValueError.
        """
        last = first + len(w)
        if not (
            w.shape == out.shape and w.shape[1] == self.shape[1] and w.dtype == out.dtype and w.dtype in KINDS
            and w.is_contiguous() and out.is_contiguous() and first % ALIGNED == 0 and last <= self.shape[0]
            and (last % ALIGNED == 0 or last == self.shape[0])
        ):
            raise ValueError(
                f"want rows of {self.shape} in one of {', '.join(map(str, KINDS))}, from a multiple of {ALIGNED} on; "
                f"got {tuple(w.shape)} {w.dtype} and {tuple(out.shape)} {out.dtype} from {first} on"
            )
        square, changed = ctypes.c_double(), ctypes.c_int64()
        wrong = self._fold(
            KINDS[w.dtype], w.data_ptr(), out.data_ptr(), len(w), self.shape[1], self._factors, first, square, changed
        )
        return square.value, changed.value, not wrong & 1, not wrong & 2


if __name__ == "__main__":
    print("compiled" if library() else f"not compiled: {why_not()}")
