"""The LoRA linear as a module: a frozen linear with any number of adapters on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import AdapterError
from .low_rank import LowRank
from .starts import gathered


class LoRALinear(LowRank):
    """A frozen linear with low-rank adapters: y = g ⊙ (x Wᵀ + ((x̃ Aᵀ) ⊙ m) Bᵀ) + bias.

    dropout[name]: share of x that is 0 in x̃ in training mode, the rest divided by 1 − dropout.
    magnitude[name] (N,): DoRA's M, where the adapter has one; then g = M / ‖W + s B A‖ by rows, the norm taken as a
    constant (arXiv 2402.09353, 4.3), and 1 otherwise.
    bias[name] (N,): a trained bias in the base's place; of several adapters the changes add up, each times its weight.
    """

    def add_bias(self, name: str, bias: Tensor, weight: float = 1.0, *, trainable: bool) -> None:
        """Gives an adapter a bias (N,) of its own."""
        self.bias[name], self.bias_weight[name] = self._parameter(bias, trainable), weight

    def stored(self, name: str) -> dict[str, tuple[int, list[Tensor]]]:
        """What PEFT's format holds of an adapter: key → (dim, parts that stand there one after the other).

        [A; A₀] and [B −B₀] where its start is beside it, so s B A is all that is added to W.
        """
        bias = {} if name not in self.bias else {
            "base_layer.bias" if name in self.scale else "bias": (0, [self.bias[name]])
        }
        if name not in self.scale:
            return bias
        held = bias | {
            "lora_A.weight": (0, [self.a[name], *([self.first_a[name]] if name in self.first_a else [])]),
            "lora_B.weight": (1, [self.b[name], *([self.first_b[name]] if name in self.first_b else [])]),
        }
        return held | ({"lora_magnitude_vector": (0, [self.magnitude[name]])} if name in self.magnitude else {})

    def norms(self, name: str | None = None) -> Tensor:
        """‖W + s B A‖ of every row, (N,) fp32; ‖W‖ without a name.

        ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B (A Aᵀ), B⟩ by rows: no N × K matrix is made, beyond W widened once.
        """
        if self._squares is None or self._squares.device != self.base.weight.device:
            self._squares = gathered(self.base.weight).float().square().sum(1)
        if name is None:
            return self._squares.sqrt()
        a, b, scale = self.a[name].detach().float(), self.b[name].detach().float(), self.scale[name]
        w = self.base.weight
        cross = w.float() @ a.T
        change = ((2 * scale * cross + scale * scale * (b @ (a @ a.T))) * b).sum(1)
        return (self._squares + change).clamp_min(0).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N), through the adapters that are on."""
        if not self.on():
            return self.shifted(self.base(x), self._selection.rows_of(x))
        return _adapted([self], x)[0]

    @staticmethod
    def together(x: Tensor, linears: Sequence[nn.Module], thin: ops.Thin | None = None) -> tuple[Tensor, ...]:
        """What linears of one model make of the same x, their adapters computed together where that pays.

        thin: their `thin`, with the s that what made x has given.
        """
        adapted = _carriers(linears)
        if thin is None and (
            len(adapted) < 2 or not ops.reads_once(x, adapted[0]._selection.impl) or _disagree(adapted)
        ):
            return tuple(linear(x) for linear in linears)
        found = iter(_adapted(adapted, x, thin))
        return tuple(next(found) if linear in adapted else linear(x) for linear in linears)

    @staticmethod
    def thin(like: Tensor, linears: Sequence[nn.Module]) -> ops.Thin | None:
        """The thin product of linears of one x, for what makes x to take; None where they are to take it themselves.

        like: a tensor of x's dtype and device, and of its shape but for the last dimension. With dropout they see an x
        of their own.
        """
        adapted = _carriers(linears)
        if not adapted or _disagree(adapted) or (adapted[0].training and any(_shares(adapted))):
            return None
        return _thin(adapted, like) if ops.produces(like, adapted[0]._selection.impl) else None

    def stacked_a(self) -> Tensor:
        """A (R, K) of the adapters that are on, stacked, each with its start behind it."""
        return _joined(self.on(), self.a, self.first_a, 0)

    def stacked_b(self) -> Tensor:
        """B (N, R), in the order of `stacked_a`."""
        return _joined(self.on(), self.b, self.first_b, 1)

    def rescaled(self) -> list[str]:
        """Its adapters that are on and DoRA. AdapterError when one would have to add up with others."""
        found = [name for name in self.on() if name in self.magnitude]
        if found and self._selection.rows is None and len(self.on()) > 1:
            raise AdapterError(f"{found[0]!r} is DoRA, whose change does not add up with others: use one at a time")
        return found

    def shifted(self, y: Tensor, rows: Tensor | None) -> Tensor:
        """y and what trained biases change of it."""
        if not any(name in self.bias for name in self._selection.active):
            return y
        zero = torch.zeros(len(self.base.weight), device=y.device)
        before = zero if self.base.bias is None else self.base.bias.float()
        changes = torch.stack([zero, *(
            self.bias_weight[name] * (self.bias[name].float() - before) if name in self.bias else zero
            for name in self._selection.active
        )])
        if rows is None:
            return y + changes.sum(0).to(y.dtype)
        return y + changes[rows.long() + 1].view(len(rows), *[1] * (y.dim() - 2), -1).to(y.dtype)

    def gain(self, rows: Tensor | None, x: Tensor) -> Tensor:
        """g: (N,) for all rows, or (B, 1, …, N), each row its adapter's."""
        gains = [
            self.magnitude[name] / self.norms(name) if name in self.magnitude else x.new_ones(self.base.out_features)
            for name in (self.on() if rows is None else self._selection.active)
        ]
        if rows is None:
            return gains[0]
        table = torch.stack([*gains, torch.ones_like(gains[0])])
        return table[rows.long()].view(len(rows), *[1] * (x.dim() - 2), -1)


def _carriers(linears: Sequence[nn.Module]) -> list[LoRALinear]:
    """Those that have adapters on."""
    return [linear for linear in linears if isinstance(linear, LoRALinear) and linear.on()]


def _thin(linears: Sequence[LoRALinear], x: Tensor) -> ops.Thin:
    """What the thin product of linears of one x takes, all of which have adapters on."""
    selection = linears[0]._selection
    rows = selection.rows_of(x)
    scales, columns, _ = _stacked(linears)
    a = [linear.stacked_a() for linear in linears]
    return ops.Thin(
        a[0] if len(a) == 1 else torch.cat(a), scales, None if rows is None else columns,
        None if rows is None else rows.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]), selection.impl,
    )


def _adapted(linears: Sequence[LoRALinear], x: Tensor, thin: ops.Thin | None = None) -> list[Tensor]:
    """The outputs of linears of one x that all have adapters on. thin: their thin product where it is there."""
    rows = linears[0]._selection.rows_of(x)
    a, scales, columns, each, impl, s = _thin(linears, x) if thin is None else thin
    dropout, seed = _drops(linears, x, each)
    rescaled = [bool(linear.rescaled()) for linear in linears]
    bases = [linear.base for linear in linears]
    ys = ops.lora_linears(
        x, [base.weight for base in bases],
        [None if dora else base.bias for base, dora in zip(bases, rescaled, strict=True)],
        a, [linear.stacked_b() for linear in linears], scales, columns, each, impl, dropout=dropout, seed=seed, s=s,
    )
    found = []
    for linear, dora, y in zip(linears, rescaled, ys, strict=True):
        if dora:
            y = y * linear.gain(rows, x).to(y.dtype)
            y = y if linear.base.bias is None else y + linear.base.bias
        found.append(linear.shifted(y, rows))
    return found


def _stacked(linears: Sequence[LoRALinear]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the linears' stacked adapters scales (R,) fp32 and columns (R,) int32, a column's index being that in
    `active`, and the dropout of each that is active and of none (fp32).
    """
    selection = linears[0]._selection
    key = selection.active, tuple(linear._path for linear in linears)
    if key not in selection.stacks:
        # Through lists, whose lengths a compiler knows.
        blocks = [
            (linear.a[name].shape[0] * (2 if name in linear.first_a else 1), linear.scale[name], index)
            for linear in linears for index, name in enumerate(selection.active) if name in linear.scale
        ]
        device = linears[0].base.weight.device
        selection.stacks[key] = (
            torch.tensor([scale for rank, scale, _ in blocks for _ in range(rank)], dtype=torch.float32, device=device),
            torch.tensor([index for rank, _, index in blocks for _ in range(rank)], dtype=torch.int32, device=device),
            torch.tensor([*_shares(linears), 0.0], device=device),
        )
    return selection.stacks[key]


def _shares(linears: Sequence[LoRALinear]) -> list[float]:
    """The dropout of each adapter that is on, 0 for those that none of the linears has."""
    held = {name: share for linear in linears for name, share in linear.dropout.items()}
    return [held.get(name, 0.0) for name in linears[0]._selection.active]


def _disagree(linears: Sequence[LoRALinear]) -> bool:
    """Whether they cannot be computed together: the same rows would go through adapters with different dropout."""
    on = {share for linear in linears for name, share in linear.dropout.items() if name in linear.on()}
    return linears[0].training and linears[0]._selection.rows is None and len(on) > 1


def _drops(linears: Sequence[LoRALinear], x: Tensor, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(each token's share, seed), or nothing when no adapter drops."""
    first, shares = linears[0], _shares(linears)
    if not first.training or not any(shares):
        return None, None
    if rows is None and _disagree(linears):
        raise AdapterError("adapters with different dropout cannot be trained on the same rows")
    if rows is None:
        each = torch.full(x.shape[:-1], max(shares), device=x.device)
    else:
        each = _stacked(linears)[2][rows.long()]
    if first._selection.seed is None:
        return each, torch.randint(2**62, ())
    return each, torch.tensor((first._selection.seed * 0x9E3779B97F4A7C15 + first._salt) % 2**63)


def _joined(names: tuple[str, ...], factors: nn.ParameterDict, firsts: nn.ParameterDict, dim: int) -> Tensor:
    """The adapters' A (dim 0) or B (dim 1) stacked, each with its start behind it."""
    parts = [held[name] for name in names for held in (factors, firsts) if name in held]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
