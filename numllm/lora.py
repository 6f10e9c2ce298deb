"""LoRA adapters on the linears of any module, several at once (LoRA, arXiv 2106.09685).

For adapters i = 1..n stacked into A (ΣR × K) and B (N × ΣR), m holding each token's scale in the columns of
its adapter and 0 elsewhere:

    s = (x Aᵀ) ⊙ m        y = x Wᵀ + bias + s Bᵀ

Which adapters a token goes through is chosen by `AdapterSet.use`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .adapter import LoRAFactors, read_adapter, write_adapter
from .config import LoRAConfig
from .errors import AdapterError


@dataclasses.dataclass
class _Selection:
    """What the linears of one model share: which adapters are on, and each row's adapter when they differ."""

    active: tuple[str, ...] = ()
    rows: Tensor | None = None
    impl: str = "auto"


class LoRALinear(nn.Module):
    """A frozen linear with low-rank adapters: y = x Wᵀ + bias + ((x Aᵀ) ⊙ m) Bᵀ.

    base: the linear it sits on. a[name] (r, K) and b[name] (N, r): the adapters' factors, fp32 when trained.
    scale[name]: alpha / rank, times the adapter's weight.
    """

    def __init__(self, base: nn.Linear, selection: _Selection) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self._selection = selection
        self._columns: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    def add(self, name: str, a: Tensor, b: Tensor, scale: float, *, trainable: bool) -> None:
        """Puts an adapter on: a (r, K), b (N, r)."""
        n, k = self.base.weight.shape
        if a.shape[1] != k or b.shape[0] != n or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"adapter {name!r}: factors {tuple(a.shape)} and {tuple(b.shape)} do not fit a linear of "
                f"{n} × {k}; it is for another model"
            )
        device = self.base.weight.device
        self.a[name] = nn.Parameter(a.to(device), requires_grad=trainable)
        self.b[name] = nn.Parameter(b.to(device), requires_grad=trainable)
        self.scale[name] = scale
        self._columns.clear()

    def _stack(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """(scales (R,) fp32, columns (R,) int32) of the stacked adapters; the column's index is that in `names`."""
        if names not in self._columns:
            ranks = torch.tensor([self.a[name].shape[0] for name in names])
            scales = torch.tensor([self.scale[name] for name in names]).repeat_interleave(ranks)
            columns = torch.arange(len(names), dtype=torch.int32).repeat_interleave(ranks)
            device = self.base.weight.device
            self._columns[names] = scales.to(device), columns.to(device)
        return self._columns[names]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N), through the adapters that are on."""
        selection = self._selection
        names = tuple(name for name in selection.active if name in self.scale)
        if not names:
            return F.linear(x, self.base.weight, self.base.bias)
        scales, columns = self._stack(names)
        a = self.a[names[0]] if len(names) == 1 else torch.cat([self.a[name] for name in names])
        b = self.b[names[0]] if len(names) == 1 else torch.cat([self.b[name] for name in names], dim=1)
        rows = selection.rows
        if rows is None:
            columns = None
        else:
            if names != selection.active:  # an adapter is not on this linear: its rows see none
                places = [names.index(name) if name in names else -1 for name in selection.active]
                rows = torch.tensor(places, dtype=torch.int32, device=rows.device)[rows.long()]
            rows = rows.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
        return ops.lora_linear(
            x, self.base.weight, self.base.bias, a, b, scales, columns, rows, impl=selection.impl
        )


class AdapterSet:
    """The adapters of one model: which are on, their parameters, saving.

    Attributes: names (in order); modules (name in the checkpoint → LoRALinear).
    """

    def __init__(self, names: Iterable[str], impl: str = "auto") -> None:
        self.names: tuple[str, ...] = tuple(names)
        for name in self.names:
            if name in ("all", "none") or not name or "." in name:
                raise AdapterError(f"an adapter cannot be named {name!r}; \"all\" and \"none\" mean selections")
        self.modules: dict[str, LoRALinear] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self._selection = _Selection(impl=impl)

    def _wrap(self, model: nn.Module, path: str) -> LoRALinear:
        if path not in self.modules:
            owner, _, leaf = path.rpartition(".")
            module = LoRALinear(model.get_submodule(path), self._selection)
            setattr(model.get_submodule(owner), leaf, module)
            self.modules[path] = module
        return self.modules[path]

    @contextlib.contextmanager
    def use(self, which: str | Sequence[str] | Tensor) -> Iterator[None]:
        """Within the block the model goes through: "all", "none", one adapter or several by name, or, for a
        tensor (B,) of indexes into `names`, each batch row through the adapter it names (−1: none).
        """
        if isinstance(which, Tensor):
            if which.dim() != 1:
                raise ValueError(f"rows must be one adapter index a batch row, got shape {tuple(which.shape)}")
            if which.numel() and not -1 <= int(which.min()) <= int(which.max()) < len(self.names):
                raise ValueError(f"adapter indexes must be in -1..{len(self.names) - 1}, got {which.tolist()}")
            active, rows = self.names, which.to(torch.int32)
        else:
            names = {"all": self.names, "none": ()}.get(which, (which,)) if isinstance(which, str) else which
            unknown = [name for name in names if name not in self.names]
            if unknown:
                raise ValueError(f"there is no adapter {unknown[0]!r}; there are: {', '.join(self.names)}")
            active, rows = tuple(names), None
        with self._restored(active, rows):
            yield

    def recomputing(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """(nothing, the selection of this moment, restored): `context_fn` of `torch.utils.checkpoint.checkpoint`."""
        return contextlib.nullcontext(), self._restored(self._selection.active, self._selection.rows)

    @contextlib.contextmanager
    def _restored(self, active: tuple[str, ...], rows: Tensor | None) -> Iterator[None]:
        selection, before = self._selection, (self._selection.active, self._selection.rows)
        selection.active, selection.rows = active, rows
        try:
            yield
        finally:
            selection.active, selection.rows = before

    def parameters(self, name: str) -> list[nn.Parameter]:
        """A and B of an adapter on every module, in order."""
        return [p for m in self.modules.values() if name in m.scale for p in (m.a[name], m.b[name])]

    def save(self, name: str, folder: str | Path, *, base_model: str | None = None) -> None:
        """Writes an adapter in PEFT's format (adapter_config.json, adapter_model.safetensors)."""
        config = self.configs[name]
        write_adapter(
            folder,
            {path: (m.a[name].detach(), m.b[name].detach())
             for path, m in self.modules.items() if name in m.scale},
            rank=config.rank, alpha=config.alpha, targets=config.targets, base_model=base_model,
        )


def _targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Paths of the linears whose last name is in `targets`, in the model's order."""
    found = [
        path for path, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear) and path.rpartition(".")[2] in targets
    ]
    missing = sorted(set(targets) - {path.rpartition(".")[2] for path in found})
    if missing:
        names = {p.rpartition(".")[2] for p, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise AdapterError(
            f"targets: the model has no linear named {', '.join(missing)}; it has: {', '.join(sorted(names))}"
        )
    return found


def attach(
    model: nn.Module, configs: Mapping[str, LoRAConfig], *, seed: int = 0, impl: str = "auto"
) -> AdapterSet:
    """Puts fresh adapters on the targeted linears of `model`, in place; everything else is frozen.

    A ~ U(−1/√K, 1/√K) and B = 0, as in PEFT; an adapter's start depends on the seed, its name and the module
    only, so it is the same whether it is trained alone or with others. fp32 factors. AdapterError when a
    target is not in the model.
    """
    model.requires_grad_(False)
    adapters = AdapterSet(configs, impl)
    adapters.configs = dict(configs)
    for name, config in configs.items():
        for path in _targets(model, config.targets):
            module = adapters._wrap(model, path)
            n, k = module.base.weight.shape
            key = hashlib.sha256(f"{seed}\0{name}\0{path}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            a = (torch.rand(config.rank, k, generator=generator) * 2 - 1) / math.sqrt(k)
            module.add(name, a, torch.zeros(n, config.rank), config.scale, trainable=True)
    return adapters


def load_adapters(
    model: nn.Module, adapters: Mapping[str, tuple[str | Path, float]], *, impl: str = "auto"
) -> AdapterSet:
    """Puts adapters read from PEFT folders on `model`: {name: (folder, weight)}. AdapterError when one is not for it.

    Each adapter's scale is multiplied by its weight; the factors are frozen.
    """
    shapes = {
        f"{path}.weight": tuple(module.weight.shape)
        for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    loaded = AdapterSet(adapters, impl)
    for name, (folder, weight) in adapters.items():
        file = read_adapter(folder, base_shapes=shapes)
        for path, factors in file.factors.items():
            _add(loaded._wrap(model, path), name, factors, weight)
    return loaded


def _add(module: LoRALinear, name: str, factors: LoRAFactors, weight: float) -> None:
    module.add(name, factors.a.float(), factors.b.float(), factors.scale * weight, trainable=False)
