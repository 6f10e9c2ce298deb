"""What every module with low-rank adapters has: the factors, and the model's selection of adapters."""

from __future__ import annotations

import dataclasses
import hashlib

from torch import Tensor, nn

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
    stacks: dict[tuple[tuple[str, ...], ...], tuple[Tensor, Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    """(adapters that are on, paths of linears) → what `_stacked` made of them, until an adapter comes or goes."""

    def take(self, other: Selection) -> None:
        """What `other` chooses; how it is computed stays."""
        self.active, self.rows, self.picked, self.seed = other.active, other.rows, other.picked, other.seed

    def rows_of(self, x: Tensor) -> Tensor | None:
        """Each row's adapter: of the batch rows, or of the tokens where x is (S, K); None where it is one choice."""
        if self.rows is not None and self.picked is not None and x.dim() == 2 and x.is_floating_point():
            return self.rows[self.picked]
        return self.rows


class LowRank(nn.Module):
    """A frozen weight W (N, K) with low-rank adapters, W + Σ s B A.

    base: the module it sits on. a[name] (r, K) and b[name] (N, r): the adapters' factors, fp32 when trained.
    scale[name]: s, alpha / rank times the adapter's weight; m holds it in the columns of a token's adapter.
    first_a, first_b: A₀ and −B₀ of an adapter's start where − s B₀ A₀ is computed beside s B A (`starts`).
    """

    def __init__(self, base: nn.Module, selection: Selection, path: str = "", reads: str | None = None) -> None:
        """path: its name in the model; reads: a name of its input, the same for linears of one x, which then drop
        the same entries of it. Default: the path.
        """
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self.first_a, self.first_b = nn.ParameterDict(), nn.ParameterDict()
        self.magnitude, self.bias = nn.ParameterDict(), nn.ParameterDict()
        self.bias_weight: dict[str, float] = {}
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self._selection = selection
        self._path = path
        self._salt = int.from_bytes(hashlib.sha256((path if reads is None else reads).encode()).digest()[:7], "big")
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
                f"adapter {name!r}: factors {tuple(a.shape)} and {tuple(b.shape)} do not fit a weight of "
                f"{n} × {k}; it is for another model"
            )
        self.a[name], self.b[name] = self._parameter(a, trainable), self._parameter(b, trainable)
        if first is not None:
            self.first_a[name], self.first_b[name] = self._parameter(first[0]), self._parameter(-first[1])
        if magnitude is not None:
            self.magnitude[name] = self._parameter(magnitude, trainable)
        self.scale[name], self.dropout[name] = scale, dropout
        self._selection.stacks.clear()

    def _parameter(self, value: Tensor, trainable: bool = False) -> nn.Parameter:
        # Contiguous: a fused optimizer walks a parameter and its moments in memory, whatever their strides say.
        return nn.Parameter(value.to(self.base.weight.device).contiguous(), requires_grad=trainable)

    def remove(self, name: str) -> None:
        """Takes an adapter off."""
        for held in (
            self.a, self.b, self.first_a, self.first_b, self.magnitude, self.bias, self.bias_weight, self.scale,
            self.dropout,
        ):
            if name in held:
                del held[name]
        self._selection.stacks.clear()

    @property
    def names(self) -> set[str]:
        """The adapters it carries anything of."""
        return {*self.scale, *self.bias}

    @property
    def weight(self) -> Tensor:
        """The frozen W, without adapters."""
        return self.base.weight

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """What it trains of an adapter beside A and B."""
        return [held[name] for held in (self.magnitude, self.bias) if name in held]

    def on(self) -> tuple[str, ...]:
        """The adapters that are on and have factors here."""
        return tuple(name for name in self._selection.active if name in self.scale)
