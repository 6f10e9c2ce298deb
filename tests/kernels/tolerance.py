"""How far a kernel may be off: torch's own error in the same precision, measured against fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def outputs_and_gradients(
    call: Callable[..., Tensor | Sequence[Tensor]], inputs: Mapping[str, Tensor], trained: Sequence[str],
    upstream: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Results of call(**inputs), and the gradients of `trained` for the gradients `upstream` of the results."""
    inputs = {name: value.detach().requires_grad_(name in trained) for name, value in inputs.items()}
    found = call(**inputs)
    found = [found] if isinstance(found, Tensor) else list(found)
    gradients = torch.autograd.grad(found, [inputs[name] for name in trained], list(upstream))
    named = {f"output {place}": value.detach() for place, value in enumerate(found)}
    return named | {f"d({name})": value for name, value in zip(trained, gradients, strict=True)}


def check(
    call: Callable[..., Tensor | Sequence[Tensor]], reference: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Mapping[str, Tensor], trained: Sequence[str], upstream: Sequence[Tensor], units: float = 4,
) -> dict[str, Tensor]:
    """|call − fp64| ≤ |reference in the same precision − fp64| + a few units in the last place at the largest.

    Of the results and of every gradient; both errors are maxima over the tensor. Returns what call gave.
    """

    def wide(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    got = outputs_and_gradients(call, inputs, trained, upstream)
    rough = outputs_and_gradients(reference, inputs, trained, upstream)
    exact = outputs_and_gradients(
        reference, {name: wide(value) for name, value in inputs.items()}, trained, [wide(part) for part in upstream]
    )
    for name, value in got.items():
        assert value.shape == exact[name].shape, name
        assert value.dtype == rough[name].dtype, name
        assert torch.isfinite(value).all(), f"{name} has values that were never written"
        if value.numel():
            eps = torch.finfo(value.dtype).eps
            allowed = (rough[name].double() - exact[name]).abs().max() + units * eps * exact[name].abs().max()
            error = (value.double() - exact[name]).abs().max()
            assert error <= allowed, f"{name}: off by {error:.3g}, torch in {value.dtype} is within {allowed:.3g}"
    return got
