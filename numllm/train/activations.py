"""What a pass keeps for backward: everything, all but what is cheap to compute again, or a block's input alone.

"selective" drops what norms and SwiGLU give, inside and out, and computes it again from their inputs when backward
asks; the products are never repeated. "full" keeps a block's input and computes the whole block again. Offloading
moves what is kept to the host's memory until backward. None of it changes a bit of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..layers import RMSNorm, SwiGLU
from ..lora import AdapterSet
from ..model import Transformer
from ..ops import Thin

T = TypeVar("T")


@dataclasses.dataclass
class _Recipe:
    """A tensor that is computed again when asked for; `asked` times, from the first of which it is held.

    It is what `function` gives, or the first of several results.
    """

    function: Callable[..., Tensor | tuple[Any, ...]]
    inputs: tuple[Tensor, ...]
    asked: int = 0
    value: Tensor | None = None

    def give(self) -> Tensor:
        """The tensor, which is let go when it was given as often as it was asked to be kept."""
        if self.value is None:
            with torch.no_grad():
                self.value = _first(self.function(*self.inputs))
        value = self.value
        self.asked -= 1
        if not self.asked:
            self.value = None
        return value


def _first(found: Tensor | tuple[Any, ...]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


@dataclasses.dataclass
class _Away:
    """A tensor in the host's memory."""

    device: torch.device
    copy: Tensor

    def give(self) -> Tensor:
        """The tensor where it was; a copy where it was on the host already."""
        return self.copy.to(self.device, non_blocking=True)


class _Keeper:
    """Decides, while a block runs, in which form each tensor that backward needs is kept."""

    def __init__(self, model: nn.Module, offload: bool) -> None:
        self.model, self.offload = model, offload
        self.inside = False
        self._recipes: dict[tuple[int, int], tuple[Tensor, _Recipe]] = {}
        self._weights: set[int] = set()

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """While a block runs."""
        self.inside = True
        self._weights = {
            parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()
            if not hasattr(parameter, "to_local")  # a shard: of a block that is not running
        }
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self.inside = False
            self._recipes.clear()

    def again(self, function: Callable[..., T], *inputs: Tensor) -> T:
        """function(*inputs), of which, or of the first of several results, backward keeps the inputs alone."""
        found = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        y = _first(found)
        if not self.offload:  # y itself stays until the block is done, so that its address names it
            recipe = _Recipe(function, tuple(part.detach() for part in inputs))
            self._recipes[y.data_ptr(), y.numel()] = y, recipe
        return found

    def _pack(self, tensor: Tensor) -> Tensor | _Away | tuple[_Recipe, torch.Size]:
        y, recipe = self._recipes.get((tensor.data_ptr(), tensor.numel()), (None, None))
        if recipe is not None and tensor.is_contiguous() and tensor.dtype == y.dtype:
            recipe.asked += 1
            return recipe, tensor.shape
        if self.offload and tensor.untyped_storage().data_ptr() not in self._weights:
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            return _Away(tensor.device, copy.copy_(tensor))
        return tensor

    @staticmethod
    def _unpack(kept: Any) -> Tensor:
        if isinstance(kept, _Away):
            return kept.give()
        if isinstance(kept, tuple):
            recipe, shape = kept
            return recipe.give().view(shape)
        return kept


def keep_less(model: Transformer, adapters: AdapterSet, *, checkpointing: str, offload: bool = False) -> None:
    """Makes the blocks of `model` keep less for backward, in place; see this module. Without gradients nothing changes.

    checkpointing: "none", "selective" or "full".
    """
    if checkpointing == "none" and not offload:
        return
    keeper = _Keeper(model, offload)
    for block in model.model.layers:
        if checkpointing == "selective":
            for module in block.modules():
                if isinstance(module, RMSNorm | SwiGLU):
                    module.forward = _again(keeper, module.forward)
                    module.thinned = _thinned_again(keeper, module.thinned)
                if isinstance(module, RMSNorm):  # apart, so that the sum is kept and its norm is not
                    module.after, module.thinned_after = _apart(module)
        block.forward = _kept(keeper, block.forward, adapters, checkpointing == "full")


def _again(keeper: _Keeper, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        return keeper.again(forward, *inputs) if keeper.inside else forward(*inputs)

    return run


def _thinned_again(
    keeper: _Keeper, thinned: Callable[..., tuple[Tensor, Thin]]
) -> Callable[..., tuple[Tensor, Thin]]:
    """With the thin product when it is computed again too: the norm alone adds in another order."""

    def run(*given: Any) -> tuple[Tensor, Thin]:
        *inputs, thin = given
        if not keeper.inside:
            return thinned(*inputs, thin)
        return keeper.again(lambda *inputs: thinned(*inputs, thin), *inputs)

    return run


def _apart(
    norm: RMSNorm,
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Thin]]]:
    """`RMSNorm.after` and `thinned_after`."""

    def after(x: Tensor, added: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        h = torch.add(x, added, alpha=scale)
        return h, norm(h)

    def thinned_after(x: Tensor, added: Tensor, scale: float, thin: Thin) -> tuple[Tensor, Tensor, Thin]:
        h = torch.add(x, added, alpha=scale)
        return h, *norm.thinned(h, thin)

    return after, thinned_after


def _kept(
    keeper: _Keeper, forward: Callable[..., Tensor], adapters: AdapterSet, full: bool
) -> Callable[..., Tensor]:
    def run(x: Tensor, plan: Any, select: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, plan, select)
        with keeper.block():
            if not full:
                return forward(x, plan, select)
            # Backward comes when the selection of adapters is another one: the block must see its own again.
            return checkpoint(
                forward, x, plan, select, use_reentrant=False, preserve_rng_state=False,
                context_fn=adapters.recomputing,
            )

    return run
