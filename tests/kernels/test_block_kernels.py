"""RMSNorm, SwiGLU and the rotation by kernels against the reference: forward and every gradient.

Without a GPU they run in Triton's interpreter, in fp32 and fp16; bf16 is in test_gpu_blocks.py.
"""

from __future__ import annotations

import block_cases
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import check

from numllm import elementwise

pytestmark = pytest.mark.usefixtures("poisoned", "by_kernels")

DTYPES = st.sampled_from([torch.float32, torch.float16])
LAYOUTS = st.sampled_from(block_cases.LAYOUTS)
shapes = settings(
    max_examples=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures hold nothing that a run changes
)


@shapes
@given(
    rows=st.integers(0, 40), size=st.integers(2, 300), dtype=DTYPES, layout=LAYOUTS,
    trained=st.sampled_from([("x",), ("x", "weight"), ("weight",)]),
)
def test_norm(device, rows, size, dtype, layout, trained) -> None:
    case = block_cases.norm(rows, size, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, trained, case.upstream)


@shapes
@given(
    rows=st.integers(0, 40), size=st.integers(2, 300), dtype=DTYPES, layout=LAYOUTS,
    scale=st.sampled_from([1.0, 0.25, 1.4 / 40**0.5]),
)
def test_sum_and_norm(device, rows, size, dtype, layout, scale) -> None:
    case = block_cases.add_norm(rows, size, scale, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, ("x", "added", "weight"), case.upstream)


@shapes
@given(rows=st.integers(0, 9), size=st.integers(1, 3000), dtype=DTYPES, layout=LAYOUTS)
def test_swiglu(device, rows, size, dtype, layout) -> None:
    case = block_cases.swiglu(rows, size, dtype=dtype, device=device, layout=layout)
    check(case.by("triton"), case.by("torch"), case.inputs, ("gate", "up"), case.upstream)


@shapes
@given(
    batch=st.integers(1, 3), count=st.integers(0, 6), heads=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    pairs=st.integers(1, 20), rest=st.sampled_from([0, 0, 3, 8]), neighbours=st.booleans(), dtype=DTYPES,
    layout=LAYOUTS, apart=st.booleans(),
)
def test_rotation(device, batch, count, heads, pairs, rest, neighbours, dtype, layout, apart) -> None:
    case = block_cases.rotation(
        batch, count, *heads, pairs, rest, neighbours, dtype=dtype, device=device, layout=layout, apart=apart
    )
    found = check(case.by("triton"), case.by("torch"), case.inputs, ("q", "k"), case.upstream)
    expected = case.by("torch")(**case.inputs)
    if dtype == torch.float16:  # with torch's roundings, of torch's results no bit differs
        assert all(torch.equal(found[f"output {place}"], part) for place, part in enumerate(expected))
