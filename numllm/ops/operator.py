"""Functions with hand-written gradients that are operators of torch to a compiler, and autograd Functions without one.

The Function's way is shorter, and an operator's first call imports the compiler; both run the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable


class Operator:
    """torch.ops.numllm.<name>, computed by `run`.

    schema: its arguments and results as torch writes them, "(Tensor x) -> Tensor". fake: results of the same shapes,
    dtypes and strides for the same arguments, without values. No result may share memory with an argument.
    """

    def __init__(self, name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.run = self._eager = run
        definition = torch.library.custom_op(f"numllm::{name}", run, mutates_args=(), schema=schema)
        definition.register_fake(fake)
        self._name, self._compiled = name, getattr(torch.ops.numllm, name)

    def differentiate(
        self, setup: Callable[[FunctionCtx, tuple[Any, ...], Any], None], gradients: Callable[..., Any],
        backward: Operator | None = None,
    ) -> None:
        """Makes it differentiable, once.

        setup(ctx, inputs, output) keeps what gradients(ctx, run, *of the outputs) needs to give one for each input,
        None where there is none; run calls `backward`.
        """

        def by(run: Callable[..., Any] | None) -> Callable[..., Any]:
            return lambda ctx, *given: gradients(ctx, run, *given)

        compiled, eager = (None, None) if backward is None else (backward._compiled, backward.run)
        torch.library.register_autograd(f"numllm::{self._name}", by(compiled), setup_context=setup)
        self._eager = type(self._name, (torch.autograd.Function,), {
            "forward": staticmethod(self.run), "setup_context": staticmethod(setup),
            "backward": staticmethod(once_differentiable(by(eager))),
        }).apply

    def __call__(self, *given: Any) -> Any:
        """The results for these arguments, by position."""
        return self._compiled(*given) if torch.compiler.is_compiling() else self._eager(*given)
