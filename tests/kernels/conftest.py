"""The kernels under test: compiled where there is a CUDA device, in Triton's interpreter elsewhere."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

NAMES = ("numllm_kernels.lora", "numllm_kernels.tiles", "numllm_kernels")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def kernels(device: torch.device) -> Iterator[ModuleType]:
    """numllm_kernels.lora; without a GPU a second copy of it, made for the interpreter.

    TRITON_INTERPRET counts when a kernel is decorated, so it is set for that moment only. triton itself is
    imported before, as the compiler's, and the modules that other tests import stay what they are.
    """
    if device.type == "cuda":
        yield importlib.import_module("numllm_kernels.lora")
        return
    importlib.import_module("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        copy = importlib.import_module("numllm_kernels.lora")
        for name in NAMES:
            sys.modules.pop(name, None)
    assert copy.INTERPRETED
    yield copy


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty returns NaN: what a kernel fails to write, or reads without having written, shows."""
    empty = torch.empty

    def filled(*size: object, **options: object) -> torch.Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)
