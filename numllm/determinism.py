"""Sums whose order does not depend on which thread comes first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Within the block, torch adds up in one order, so that the same inputs give the same bits on one device.

    Otherwise gradients that meet in one place, as those of a question's options do in its last common token, are added
    in the order in which threads come to them: several threads of a CPU differ from run to run, and, as torch's
    documentation says, so does the backward of CUDA's attention. torch's switch is one for the process, so it is put
    back at the end.

    cuBLAS wants its workspaces fixed for that, by an environment variable that is read once: it is set if it is not.
    An operation that torch has no such way for raises a RuntimeError that names it.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(_CUBLAS, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would write every buffer once more
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
