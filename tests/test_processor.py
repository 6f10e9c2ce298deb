"""The compiled fold: every element the number nearest to the sum, at any width of vector; and where there is none."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from numllm.merge.rounding import bits, nearest
from numllm_kernels import processor

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WIDTHS = {"native": ("-march=native",), "avx2": ("-mavx2", "-mfma"), "least": ()}

pytestmark = pytest.mark.skipif(processor.library() is None, reason=f"no compiled kernels: {processor.why_not()}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' own libraries are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=list(WIDTHS))
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[str]:
    """The kernels compiled for vectors of other widths than this processor's, too."""
    if request.param == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    flags = [flag for flag in processor.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(processor, "FLAGS", (*flags, *WIDTHS[request.param]))
    processor._load.cache_clear()
    assert processor.library() is not None
    yield request.param
    processor._load.cache_clear()


def folded(w: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, float, int, bool, bool]:
    """W' in poisoned memory with a margin, in blocks of 24 rows, and what is told of it."""
    fold = processor.Fold(b, a)
    memory = torch.full((w.numel() + 16,), 777.0, dtype=w.dtype)
    out = memory[: w.numel()].view(w.shape)
    told = [fold(w[at : at + 24], out[at : at + 24], at) for at in range(0, len(w), 24)]
    assert bool((memory[w.numel() :] == 777.0).all())
    squares, changed, sound, finite = zip(*told, strict=True)
    return out, math.fsum(squares), sum(changed), all(sound), all(finite)


def check(w: Tensor, b: Tensor, a: Tensor, wanted: Tensor) -> None:
    """wanted: the sum in fp64."""
    out, square, changed, sound, finite = folded(w, b, a)
    best = nearest(wanted.reshape(-1), w.dtype).view(w.shape)
    assert bool((bits(out) == bits(best)).all())
    assert square == pytest.approx(float(w.double().square().sum()), rel=1e-12)
    assert changed == int((bits(best) != bits(w)).sum())
    assert sound and finite


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (24, 32, 8), (49, 100, 33), (7, 31, 300), (100, 65, 9)])
@pytest.mark.parametrize("size", [0.02, 1e-3])
@pytest.mark.parametrize("in_fp32", ["", "a", "b", "ab"])
def test_random_weights(width: str, dtype: torch.dtype, shape: tuple[int, int, int], size: float, in_fp32: str) -> None:
    rows, columns, rank = shape
    generator = torch.Generator().manual_seed(rows + rank)
    w = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
    b = torch.randn(rows, rank, generator=generator, dtype=torch.float64) * size
    a = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    b, a = b.float().double() if "b" in in_fp32 else b, a.float().double() if "a" in in_fp32 else a
    check(w, b, a, w.double() + b @ a)


EXPONENTS = {torch.bfloat16: (-133, 127, 8), torch.float16: (-24, 15, 11), torch.float32: (-149, 127, 24)}


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_sums_at_and_beside_the_middle(dtype: torch.dtype, data: st.DataObject) -> None:
    """Sums that fp64 holds exactly, most of them in the middle between two numbers or a little beside it: where fp32
    cannot decide, and where rounding twice errs. Subnormal numbers and the largest among them.
    """
    least, most, digits = EXPONENTS[dtype]
    rows, columns = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 40))
    w, b = torch.zeros(rows, columns, dtype=dtype), torch.zeros(rows, 2, dtype=torch.float64)
    exponent = data.draw(st.integers(least + 1, most - 1))
    # One step of the dtype at 2^exponent, and steps of down to 2⁻⁴⁰ of it in A's second row.
    step = 2.0 ** max(exponent - digits + 1, least)
    random = data.draw(st.randoms(use_true_random=False))
    for i in range(rows):
        for j in range(columns):
            sign = random.choice((-1, 1))
            w[i, j] = sign * min(random.randrange(1 << digits) * step, float(torch.finfo(dtype).max) / 4)
        b[i] = torch.tensor([random.choice((-1.0, 0.0, 1.0, 3.0)), random.choice((-1.0, 0.0, 1.0))])
    a = torch.tensor([
        [step / 2 * random.choice((0, 1, 1, 1, 2, 5)) for _ in range(columns)],
        [step * 2.0 ** -random.choice((2, 10, 20, 30, 38)) for _ in range(columns)],
    ], dtype=torch.float64)
    exact = [
        [float(Fraction(float(w[i, j])) + sum(Fraction(float(b[i, r])) * Fraction(float(a[r, j])) for r in (0, 1)))
         for j in range(columns)] for i in range(rows)
    ]
    wanted = torch.tensor(exact, dtype=torch.float64)
    out, *_ = folded(w, b, a)
    best = nearest(wanted.reshape(-1), dtype).view(w.shape)
    # The sum of nothing is 0 or -0 as the terms have it: numbers are compared, not signs of zeros.
    assert ((bits(out) == bits(best)) | ((out == 0) & (best == 0)).numpy()).all()


@pytest.mark.parametrize("scale", [2.0**40, 2.0**-40, 2.0**-100])
def test_factors_of_any_size(scale: float) -> None:
    """Their product is what counts, not whether they and their bounds are fit for fp32."""
    w, b = torch.randn(30, 70).bfloat16(), torch.randn(30, 4, dtype=torch.float64)
    a = torch.randn(4, 70, dtype=torch.float64)
    check(w, b * scale, a / scale, w.double() + b @ a)
    huge = 2.0**200  # beyond fp32: its infinities must decide nothing
    check(w, b * huge, a / huge, w.double() + b @ a)


def test_large_and_small_weights() -> None:
    w = torch.randn(30, 70).bfloat16()
    b, a = torch.randn(30, 4, dtype=torch.float64), torch.randn(4, 70, dtype=torch.float64)
    for size in (2.0**100, 2.0**-120):
        scaled = (w.float() * size).bfloat16()
        check(scaled, b * size, a, scaled.double() + b @ a * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [(0, 0), (23, 31), (29, 69), (12, 40)])
def test_what_is_not_finite_is_told(width: str, dtype: torch.dtype, place: tuple[int, int]) -> None:
    w, b, a = torch.zeros(30, 70, dtype=dtype), torch.zeros(30, 2, dtype=torch.float64), torch.ones(2, 70).double()
    for value in (math.nan, math.inf, -math.inf):
        w[place] = value
        assert folded(w, b, a)[3] is False
    w[place] = torch.finfo(dtype).max
    *_, sound, finite = folded(w, b, a)
    assert sound and finite
    b[place[0]] = float(torch.finfo(dtype).max) * 2.0**-4
    *_, sound, finite = folded(w, b, a)
    assert sound and not finite


@pytest.mark.parametrize("in_fp32", ["", "a", "b", "ab"])
def test_the_bound_counts_every_rounding(width: str, in_fp32: str) -> None:
    """b_i and a_j are one vector, so that ‖√m b_i‖ ‖√m a_j‖ is Σ m |b_i a_j|: m by the class's own words."""
    rank, chain = 20, processor.library().numllm_fold_chain()
    exact = torch.rand(rank, generator=torch.Generator().manual_seed(1)).double() + 0.5
    other = exact + 2.0**-30
    b = (exact if "b" in in_fp32 else other).expand(7, rank).contiguous()
    a = (exact if "a" in in_fp32 else other)[:, None].expand(rank, 70).contiguous()
    m = [2 - len(in_fp32) + chain - r % chain + -(-rank // chain) - r // chain for r in range(rank)]
    least = 2.0**-24 * sum(count * float(value) ** 2 for count, value in zip(m, exact, strict=True))
    *_, b_bound, a_bound = processor.Fold(b, a)._kept
    assert least <= float(b_bound[0] * a_bound.max()) <= 2 * least


def test_nothing_changes_nothing() -> None:
    w = torch.randn(30, 70).bfloat16()
    w[3, 3:9] = 0
    out, _, changed, *_ = folded(w, torch.zeros(30, 5).double(), torch.ones(5, 70).double())
    assert changed == 0 and torch.equal(out, w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_finite(width: str, dtype: torch.dtype) -> None:
    x = torch.randn(1000).to(dtype)
    x[5], x[6] = torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4
    assert processor.all_finite(x) and processor.all_finite(x[:0])
    for place in (0, 7, 500, 999):
        for value in (math.nan, math.inf, -math.inf):
            bad = x.clone()
            bad[place] = value
            assert not processor.all_finite(bad)
            assert processor.all_finite(bad[:place]) and processor.all_finite(bad[place + 1 :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_nan_and_infinity_is_seen(width: str, dtype: torch.dtype) -> None:
    """Whatever its payload, and wherever it stands; in a weight whose sums are finite elsewhere."""
    top, kind = {torch.bfloat16: (0x7F80, torch.int16), torch.float16: (0x7C00, torch.int16),
                 torch.float32: (0x7F800000, torch.int32)}[dtype]
    ones = (1 << 8 * dtype.itemsize - 1) - 1 - top  # all the digits below the exponent
    payloads = range(ones + 1) if ones < 2048 else (0, 1, 2, ones >> 1, (ones >> 1) + 1, 0x7FFF, 0x8000, 0xFFFF, ones)
    b, a = torch.full((30, 3), 1e-3).double(), torch.ones(3, 70).double()
    fold = processor.Fold(b, a)
    good = torch.randn(30, 70).to(dtype)
    for number, payload in enumerate(payloads):
        bad = good.clone()
        sign = -(1 << 8 * dtype.itemsize - 1) if number % 2 else 0
        bad.view(kind).view(-1)[number * 37 % bad.numel()] = sign + (top | payload)
        assert fold(bad, torch.empty_like(bad), 0)[2:] == (False, False), hex(payload)
    assert fold(good, torch.empty_like(good), 0)[2:] == (True, True)


def of_condition(rows: int, columns: int, condition: float, seed: int = 0) -> Tensor:
    """A matrix with singular values from 1 down to 1/condition."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    return q * torch.logspace(0, -math.log10(condition), columns, dtype=torch.float64) @ v.T


def triangle_by_qr(x: Tensor) -> Tensor:
    r = torch.linalg.qr(x, "r")[1]
    return r * r.diagonal().sign()[:, None]


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 5), (63, 6), (64, 8), (65, 33), (200, 31), (128, 128), (99, 64)])
@pytest.mark.parametrize("condition", [3.0, 30.0])
def test_triangle(width: str, shape: tuple[int, int], condition: float) -> None:
    rows, columns = shape
    x = of_condition(rows, columns, condition)
    poisoned = torch.full((rows + 2, columns + 3), math.nan, dtype=torch.float64)
    poisoned[1:-1, 2:-1] = x
    for each in (x, x.T.contiguous().T, poisoned[1:-1, 2:-1], poisoned.T.contiguous()[2:-1, 1:-1].T):
        r = processor.triangle(each)
        assert r is not None and torch.equal(r, r.triu())
        # 64 roundings of a block's sums, the square of the condition, and what LAPACK is wrong by itself.
        torch.testing.assert_close(r, triangle_by_qr(x), rtol=0, atol=64 * 2.0**-52 * condition**2)


def test_triangle_leaves_what_it_cannot_do_well() -> None:
    x = of_condition(300, 20, 300.0)
    assert processor.triangle(x) is not None and processor.triangle(x * 1e-100) is not None
    equal = x.clone()
    equal[:, 7] = equal[:, 3]
    for name, bad in {
        "condition": of_condition(300, 20, 3000.0), "lower rank": equal, "zeros": torch.zeros(30, 4).double(),
        "a column of zeros": x * (torch.arange(20) != 19), "wide": x.T, "fp32": x.float(), "no columns": x[:, :0],
        "too small to square": x * 1e-200, "too large to square": x * 1e200, "nan": x.clone().fill_(math.nan),
        "infinity": x.clone().fill_(math.inf), "many columns": of_condition(300, processor.WIDEST + 1, 2.0),
    }.items():
        assert processor.triangle(bad) is None, name


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**32), st.floats(1e-30, 1e30))
def test_the_triangle_has_the_inner_products(columns: int, more: int, seed: int, size: float) -> None:
    x = torch.randn(columns + more, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    r = processor.triangle(x)
    if r is not None:  # a few that are nearly square are too near to a lower rank
        torch.testing.assert_close(r.T @ r, x.T @ x, rtol=0, atol=1e-13 * float(x.square().sum()))


def test_what_does_not_fit_is_refused() -> None:
    fold = processor.Fold(torch.ones(50, 2).double(), torch.ones(2, 10).double())
    w = torch.ones(50, 10)
    for rows, out, first in (
        (w[:24], w[:23], 0), (w[:24], w[:24], 1), (w[:23], w[:23], 0), (w, w, 24), (w[:24, :9], w[:24, :9], 0),
        (w[:24], w[:24].double(), 0), (w[:24].double(), w[:24].double(), 0), (w.T, w.T, 0),
    ):
        with pytest.raises(ValueError, match="want rows of"):
            fold(rows, out, first)
    fold(w[48:], torch.empty(2, 10), 48)


def in_another_process(tmp_path: Path, *, build: bool = True, **variables: str) -> str:
    """What a new process prints of `library` and `why_not()`, with its cache in tmp_path."""
    told = "bool(p.library()), p.why_not()" if build else "bool(p.library(build=False))"
    return subprocess.run(
        [sys.executable, "-c", f"from numllm_kernels import processor as p; print({told})"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True, text=True, check=True,
    ).stdout.strip()


def test_the_library_is_kept(tmp_path: Path) -> None:
    assert in_another_process(tmp_path, build=False) == "False"
    assert in_another_process(tmp_path) == "True None"
    (made,) = (tmp_path / "numllm").iterdir()
    before = made.stat().st_mtime_ns
    assert in_another_process(tmp_path, build=False) == "True"
    assert in_another_process(tmp_path) == "True None" and made.stat().st_mtime_ns == before
    # One that others could have written is not run, but made anew.
    made.chmod(0o777)
    made.write_bytes(b"not a library")
    assert in_another_process(tmp_path) == "True None"
    assert made.stat().st_size > 1000 and not made.stat().st_mode & 0o022


@pytest.mark.parametrize(("variables", "why"), [
    ({"NUMLLM_COMPILE": "0"}, "NUMLLM_COMPILE=0 is set"),
    ({"CC": "/no/such/compiler"}, "/no/such/compiler"),
    ({"CC": "false"}, "false fails"),
    ({"PATH": "/nowhere", "CC": ""}, "no C compiler is here"),
])
def test_why_not(tmp_path: Path, variables: dict[str, str], why: str) -> None:
    found = in_another_process(tmp_path, **variables)
    assert found.startswith("False") and why in found and "\n" not in found


def test_the_command(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "numllm_kernels.processor"], capture_output=True, text=True, check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert told == "compiled\n"


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert in_another_process(tmp_path / "file", TMPDIR=str(tmp_path)) == "True None"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_fold_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "library", lambda: None)
    with pytest.raises(RuntimeError, match="no compiled fold"):
        processor.Fold(torch.ones(2, 1).double(), torch.ones(1, 2).double())
