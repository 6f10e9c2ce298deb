"""The LoRA linear as a module: a frozen linear with any number of adapters on it."""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import AdapterError


@dataclasses.dataclass
class Selection:
    """What the linears of one model share: which adapters are on, each row's adapter when they differ, the rows that
    tokens without rows (S, K) are from, and the seed of dropout (None: drawn from torch's default generator).
    """

    active: tuple[str, ...] = ()
    rows: Tensor | None = None
    picked: Tensor | None = None
    seed: int | None = None
    impl: str = "auto"

    def take(self, other: Selection) -> None:
        """What `other` chooses; how it is computed stays."""
        self.active, self.rows, self.picked, self.seed = other.active, other.rows, other.picked, other.seed


class LoRALinear(nn.Module):
    """A frozen linear with low-rank adapters: y = g ⊙ (x Wᵀ + ((x̃ Aᵀ) ⊙ m) Bᵀ) + bias.

    base: the linear it sits on. a[name] (r, K) and b[name] (N, r): the adapters' factors, fp32 when trained.
    scale[name]: s, alpha / rank times the adapter's weight; m holds it in the columns of a token's adapter.
    first_a, first_b: A₀ and −B₀ of an adapter's start where − s B₀ A₀ is computed beside s B A (`starts`).
    dropout[name]: share of x that is 0 in x̃ in training mode, the rest divided by 1 − dropout.
    magnitude[name] (N,): DoRA's M, where the adapter has one; then g = M / ‖W + s B A‖ by rows, the norm taken as a
    constant (arXiv 2402.09353, 4.3), and 1 otherwise.
    """

    def __init__(self, base: nn.Linear, selection: Selection, path: str = "") -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self.first_a, self.first_b = nn.ParameterDict(), nn.ParameterDict()
        self.magnitude = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self._selection = selection
        self._salt = int.from_bytes(hashlib.sha256(path.encode()).digest()[:7], "big")
        self._columns: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        self._squares: Tensor | None = None

    def add(
        self, name: str, a: Tensor, b: Tensor, scale: float, *, trainable: bool,
        first: tuple[Tensor, Tensor] | None = None, dropout: float = 0.0, magnitude: Tensor | None = None,
    ) -> None:
        """Puts an adapter on: a (r, K), b (N, r), first (A₀, B₀) of the same shapes, magnitude (N,).

        AdapterError when it does not fit the linear.
        """
        n, k = self.base.weight.shape
        if a.shape[1] != k or b.shape[0] != n or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"adapter {name!r}: factors {tuple(a.shape)} and {tuple(b.shape)} do not fit a linear of "
                f"{n} × {k}; it is for another model"
            )

        def parameter(value: Tensor, trainable: bool) -> nn.Parameter:
            # Contiguous: a fused optimizer walks a parameter and its moments in memory, whatever their strides say.
            return nn.Parameter(value.to(self.base.weight.device).contiguous(), requires_grad=trainable)

        self.a[name], self.b[name] = parameter(a, trainable), parameter(b, trainable)
        if first is not None:
            self.first_a[name], self.first_b[name] = parameter(first[0], False), parameter(-first[1], False)
        if magnitude is not None:
            self.magnitude[name] = parameter(magnitude, trainable)
        self.scale[name], self.dropout[name] = scale, dropout
        self._columns.clear()

    def remove(self, name: str) -> None:
        """Takes an adapter off."""
        for held in (self.a, self.b, self.first_a, self.first_b, self.magnitude, self.scale, self.dropout):
            if name in held:
                del held[name]
        self._columns.clear()

    def stored(self, name: str) -> dict[str, tuple[int, list[Tensor]]]:
        """What PEFT's format holds of an adapter: key → (dim, parts that stand there one after the other).

        [A; A₀] and [B −B₀] where its start is beside it, so s B A is all that is added to W.
        """
        held = {
            "lora_A.weight": (0, [self.a[name], *([self.first_a[name]] if name in self.first_a else [])]),
            "lora_B.weight": (1, [self.b[name], *([self.first_b[name]] if name in self.first_b else [])]),
        }
        return held | ({"lora_magnitude_vector": (0, [self.magnitude[name]])} if name in self.magnitude else {})

    def norms(self, name: str | None = None) -> Tensor:
        """‖W + s B A‖ of every row, (N,) fp32; ‖W‖ without a name.

        ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B (A Aᵀ), B⟩ by rows: no N × K matrix is made, beyond W widened once.
        """
        if self._squares is None or self._squares.device != self.base.weight.device:
            self._squares = self.base.weight.float().square().sum(1)
        if name is None:
            return self._squares.sqrt()
        a, b, scale = self.a[name].detach().float(), self.b[name].detach().float(), self.scale[name]
        w = self.base.weight
        cross = w.float() @ a.T
        change = ((2 * scale * cross + scale * scale * (b @ (a @ a.T))) * b).sum(1)
        return (self._squares + change).clamp_min(0).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N), through the adapters that are on."""
        selection, base = self._selection, self.base
        names = tuple(name for name in selection.active if name in self.scale)
        if not names:
            return base(x)
        rescaled = [name for name in names if name in self.magnitude]
        if rescaled and selection.rows is None and len(names) > 1:
            raise AdapterError(f"{rescaled[0]!r} is DoRA, whose change does not add up with others: use one at a time")
        scales, columns = self._stack(names)
        rows = selection.rows
        if rows is not None and names != selection.active:  # an adapter is not on this linear: its rows see none
            places = [names.index(name) if name in names else -1 for name in selection.active]
            rows = torch.tensor(places, dtype=torch.int32, device=rows.device)[rows.long()]
        if rows is not None and x.dim() == 2 and selection.picked is not None:
            rows = rows[selection.picked]
        each = None if rows is None else rows.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
        dropout, seed = self._drops(names, x, each)
        a = _joined(names, self.a, self.first_a, 0)
        b = _joined(names, self.b, self.first_b, 1)
        y = ops.lora_linear(
            x, base.weight, None if rescaled else base.bias, a, b, scales, None if rows is None else columns, each,
            impl=selection.impl, dropout=dropout, seed=seed,
        )
        if not rescaled:
            return y
        y = y * self._gain(names, rows, x).to(y.dtype)
        return y if base.bias is None else y + base.bias

    def _stack(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """(scales (R,) fp32, columns (R,) int32) of the stacked adapters; the column's index is that in `names`."""
        if names not in self._columns:
            # Through lists, whose lengths a compiler knows.
            ranks = [self.a[name].shape[0] * (2 if name in self.first_a else 1) for name in names]
            scales = [self.scale[name] for name, rank in zip(names, ranks, strict=True) for _ in range(rank)]
            columns = [index for index, rank in enumerate(ranks) for _ in range(rank)]
            device = self.base.weight.device
            self._columns[names] = (
                torch.tensor(scales, dtype=torch.float32, device=device),
                torch.tensor(columns, dtype=torch.int32, device=device),
            )
        return self._columns[names]

    def _drops(self, names: tuple[str, ...], x: Tensor, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(each token's share, seed), or nothing when no adapter drops."""
        shares = [self.dropout[name] for name in names]
        if not self.training or not any(shares):
            return None, None
        if rows is None and len(set(shares)) > 1:
            raise AdapterError("adapters with different dropout cannot be trained on the same rows")
        table = torch.tensor([*shares, 0.0], device=x.device)
        each = table[0].expand(x.shape[:-1]) if rows is None else table[rows.long()]
        if self._selection.seed is None:
            return each, torch.randint(2**62, ())
        return each, torch.tensor((self._selection.seed * 0x9E3779B97F4A7C15 + self._salt) % 2**63)

    def _gain(self, names: tuple[str, ...], rows: Tensor | None, x: Tensor) -> Tensor:
        """g: (N,) for all rows, or (B, 1, …, N), each row its adapter's."""
        gains = [
            self.magnitude[name] / self.norms(name) if name in self.magnitude else x.new_ones(self.base.out_features)
            for name in names
        ]
        if rows is None:
            return gains[0]
        table = torch.stack([*gains, torch.ones_like(gains[0])])
        return table[rows.long()].view(len(rows), *[1] * (x.dim() - 2), -1)


def _joined(names: tuple[str, ...], factors: nn.ParameterDict, firsts: nn.ParameterDict, dim: int) -> Tensor:
    """The adapters' A (dim 0) or B (dim 1) stacked, each with its start behind it."""
    parts = [held[name] for name in names for held in (factors, firsts) if name in held]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
