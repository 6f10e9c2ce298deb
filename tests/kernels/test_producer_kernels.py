"""Norm and SwiGLU with the thin product in them: the producer's results, and s of the y that it has stored.

Without a GPU they run in Triton's interpreter, in fp32 and fp16.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from block_cases import LAYOUTS, Maker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from numllm import reference

EPS = 1e-5
DTYPES = st.sampled_from([torch.float32, torch.float16])
RANKS = st.sampled_from([(1,), (4,), (16,), (8, 4), (16, 5, 3), (64, 80), (256,)])
shapes = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures hold nothing that a run changes
)

pytestmark = pytest.mark.usefixtures("poisoned")


class Adapters(NamedTuple):
    """What s takes beside y; the last two None where every column is on for every token."""

    a: Tensor
    scales: Tensor
    columns: Tensor | None
    rows: Tensor | None


def adapters(make: Maker, tokens: int, size: int, ranks: tuple[int, ...], by_row: bool) -> Adapters:
    """Stacked factors; by_row: tokens go through one adapter or, the first of every few, through none."""
    own = torch.arange(len(ranks), dtype=torch.int32).repeat_interleave(torch.tensor(ranks)).to(make.device)
    a = make.matrix(len(own), size, size=size**-0.5)
    scales = torch.tensor([2.0, 0.7, 1.3], device=make.device)[own.long()]
    turns = (torch.arange(tokens, dtype=torch.int32, device=make.device) % (len(ranks) + 1)) - 1
    return Adapters(a, scales, *((own, turns) if by_row else (None, None)))


def check_like_torch(found: Tensor, rough: Tensor, exact: Tensor, what: str) -> None:
    """|found − fp64| ≤ |torch in the same precision − fp64| + 4 units in the last place, at the largest."""
    assert found.shape == exact.shape and found.dtype == rough.dtype, what
    assert torch.isfinite(found).all(), f"{what} has values that were never written"
    if found.numel():
        allowed = (rough.double() - exact).abs().max() + 4 * torch.finfo(found.dtype).eps * exact.abs().max()
        assert (found.double() - exact).abs().max() <= allowed, what


def check_s(s: Tensor, y: Tensor, given: Adapters) -> None:
    """s is of the y that was stored, rounded as it is: a product with y before its rounding would be off by more."""
    a, *choice = given
    check_like_torch(s, reference.down(y, a, *choice), reference.down(y.double(), a.double(), *choice), "s")
    if given.rows is not None:
        assert not s[given.rows < 0].any() and not s[given.rows[:, None] != given.columns].any()


@shapes
@given(
    tokens=st.sampled_from([0, 1, 5, 16, 33, 70]), size=st.sampled_from([1, 2, 63, 64, 65, 130, 700]), ranks=RANKS,
    by_row=st.booleans(), dtype=DTYPES, layout=st.sampled_from(LAYOUTS), scale=st.sampled_from([None, 1.0, 0.3]),
)
def test_norm(families, device, tokens, size, ranks, by_row, dtype, layout, scale) -> None:
    make = Maker(tokens * 1009 + size, dtype, device, layout)
    x, weight = make.matrix(tokens, size), 1 + make.matrix(1, size)[0]
    more = {} if scale is None else {"added": make.matrix(tokens, size), "scale": scale}
    given = adapters(make, tokens, size, ranks, by_row)
    h, y, rms, s = families["producer"].norm_down(x, weight, EPS, *given, **more)
    apart_h, apart_y, apart_rms = families["norm"].norm(x, weight, EPS, **more)
    assert torch.equal(h, apart_h) and (h is x) == (scale is None)
    torch.testing.assert_close(rms, apart_rms, rtol=1e-6, atol=0)
    check_like_torch(y, reference.rms_norm(h, weight, EPS), reference.rms_norm(h.double(), weight.double(), EPS), "y")
    torch.testing.assert_close(y, apart_y, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    check_s(s, y, given)


@shapes
@given(
    tokens=st.sampled_from([0, 1, 5, 16, 33, 70]), size=st.sampled_from([1, 63, 64, 65, 130, 1500]), ranks=RANKS,
    by_row=st.booleans(), dtype=DTYPES, layout=st.sampled_from(LAYOUTS),
)
def test_swiglu(families, device, tokens, size, ranks, by_row, dtype, layout) -> None:
    make = Maker(tokens * 1019 + size, dtype, device, layout)
    gate, up = make.matrix(tokens, size, size=4), make.matrix(tokens, size)
    given = adapters(make, tokens, size, ranks, by_row)
    y, s = families["producer"].swiglu_down(gate, up, *given)
    assert torch.equal(y, families["swiglu"].swiglu(gate, up))
    check_s(s, y, given)



@pytest.mark.parametrize("added", [False, True], ids=["norm", "sum and norm"])
def test_a_program_takes_several_blocks_of_rows(families, device, monkeypatch, added) -> None:
    """Those that stay in the second cache are fewer than there are: rows end within a block, programs within a turn."""
    producer = families["producer"]
    monkeypatch.setattr(producer.tiles, "PROGRAMS", 2)
    monkeypatch.setattr(producer.tiles, "second_cache", lambda device: 1)
    make = Maker(3, torch.float16, device, "packed")
    x, weight = make.matrix(16 * 7 - 3, 70), make.matrix(1, 70)[0]
    given = adapters(make, len(x), 70, (4, 4), True)
    more = {"added": make.matrix(*x.shape)} if added else {}
    grids = []
    launch = families["common"].launch
    monkeypatch.setattr(
        families["common"], "launch", lambda kernel, grid, *rest, **tile: grids.append(grid) or launch(
            kernel, grid, *rest, **tile
        ),
    )
    _, y, _, s = producer.norm_down(x, weight, EPS, *given, **more)
    assert grids[0] == (2, 1, 1)
    torch.testing.assert_close(y, families["norm"].norm(x, weight, EPS, **more)[1], rtol=2e-3, atol=0)
    check_s(s, y, given)


@pytest.mark.parametrize("kernel", ["norm_down", "swiglu_down"])
def test_s_has_the_bits_of_a_read_of_y(families, device, monkeypatch, kernel) -> None:
    """Where both split K alike, at all tiles and pieces: the sums are in the same order."""
    producer, lora = families["producer"], families["lora"]
    choose = producer.tiles.choose
    monkeypatch.setattr(
        producer.tiles, "choose", lambda name, x, rank: choose(name, x, rank) | {"BLOCK_M": 16, "BLOCK_K": 32},
    )
    monkeypatch.setattr(producer, "_SWIGLU_PROGRAMS", producer.tiles.PROGRAMS)
    make = Maker(5, torch.float16, device, "packed")
    x, up = make.matrix(37, 900), make.matrix(37, 900)
    given = adapters(make, 37, 900, (8, 8), True)
    y, s = (
        producer.norm_down(x, up[0], EPS, *given)[1::2] if kernel == "norm_down"
        else producer.swiglu_down(x, up, *given)
    )
    assert torch.equal(s, lora.down(y, *given))


def test_what_is_off_is_zero_even_where_y_is_infinite(families, device) -> None:
    make = Maker(1, torch.float16, device, "packed")
    gate, up = make.matrix(9, 40), make.matrix(9, 40)
    given = adapters(make, 9, 40, (8, 8), True)
    given.a.abs_(), up.abs_()
    gate[given.rows < 0] = float("inf")
    _, s = families["producer"].swiglu_down(gate, up, *given)
    assert not s[given.rows < 0].any() and torch.isfinite(s).all()
