"""The kernels under test: compiled where there is a CUDA device, in Triton's interpreter elsewhere."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

FAMILIES = ("lora", "norm", "swiglu", "producer", "rope", "cross_entropy")
SHARED = ("common", "tiles", "sums")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def families(device: torch.device) -> dict[str, ModuleType]:
    """The modules of numllm_kernels by name; without a GPU second copies of them, made for the interpreter.

    TRITON_INTERPRET counts when a kernel is decorated, so it is set for that moment only. triton itself is
    imported before, as the compiler's, and the modules that other tests import stay what they are.
    """
    names = {name: f"numllm_kernels.{name}" for name in (*SHARED, *FAMILIES)}
    if device.type == "cuda":
        return {name: importlib.import_module(path) for name, path in names.items()}
    triton = importlib.import_module("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for path in ("numllm_kernels", *names.values()):
            patch.delitem(sys.modules, path, raising=False)
        copies = {name: importlib.import_module(path) for name, path in names.items()}
        for path in ("numllm_kernels", *names.values()):
            sys.modules.pop(path, None)
    assert copies["common"].INTERPRETED
    # The interpreter knows these and reduces by numpy; by others it goes element by element.
    copies["common"].plus = triton.language.standard._sum_combine
    copies["common"].larger = triton.language.standard._elementwise_max
    return copies


@pytest.fixture(scope="session")
def kernels(families: dict[str, ModuleType]) -> ModuleType:
    """numllm_kernels.lora."""
    return families["lora"]


@pytest.fixture
def by_kernels(families: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """impl="triton" leads to these modules."""
    from numllm.ops import implementations

    monkeypatch.setattr(implementations, "load_kernels", families.__getitem__)


@pytest.fixture
def launched(families: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched from here on."""
    names: list[str] = []
    launch = families["common"].launch
    monkeypatch.setattr(
        families["common"], "launch", lambda kernel, *given, **more: names.append(kernel.__name__) or launch(
            kernel, *given, **more
        ),
    )
    return names


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty returns NaN: what a kernel fails to write, or reads without having written, shows."""
    empty = torch.empty

    def filled(*size: object, **options: object) -> torch.Tensor:
        tensor = empty(*size, **options)
        if tensor.is_floating_point():
            tensor.detach().fill_(float("nan"))  # torch makes leaves that require a gradient so, too
        return tensor

    monkeypatch.setattr(torch, "empty", filled)
