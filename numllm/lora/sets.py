"""Sets of adapters on a model: attached, chosen, saved and read in PEFT's format."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapter import PREFIX, WEIGHTS, read_adapter, write_adapter
from ..checkpoint import read_header, read_tensor
from ..config import LoRAConfig, named
from ..errors import AdapterError
from .layer import LoRALinear, Selection
from .starts import begin

_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linears that read what another one reads, by Llama's names."""


class AdapterSet:
    """The adapters of one model: which are on, their parameters, saving.

    Attributes: names (in order); modules (name in the checkpoint → LoRALinear); configs (name → LoRAConfig, of the
    adapters that were made here).
    """

    def __init__(self, model: nn.Module, impl: str = "auto") -> None:
        self.names: tuple[str, ...] = ()
        self.modules: dict[str, LoRALinear] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self._model = model
        self._selection = Selection(impl=impl)

    def add(self, name: str, config: LoRAConfig, *, seed: int = 0) -> None:
        """Puts a fresh adapter on the targeted linears, in place.

        Its start (`starts`) depends on the seed, its name and the module only, so it is the same whether it is
        trained alone or with others. fp32 factors. AdapterError when a target is not in the model, the name is
        taken or means a selection, or the rank is more than the start allows.
        """
        self._take(name)
        targets, paths = _targets(self._model, config)
        for path in paths:
            module = self._wrap(path)
            rank, scale = config.of(path)
            key = hashlib.sha256(f"{seed}\0{name}\0{path}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            try:
                (a, b), first = begin(config.start, module.base.weight, rank, scale, generator)
            except ValueError as error:
                raise AdapterError(f"{path}: {error}") from error
            module.add(
                name, a, b, scale, trainable=True, first=first, dropout=config.dropout,
                magnitude=module.norms() if config.dora else None,
            )
        self.names = (*self.names, name)
        self.configs[name] = dataclasses.replace(config, targets=targets)

    def read(self, name: str, folder: str | Path, weight: float = 1.0) -> None:
        """Puts an adapter read from a PEFT folder on the model, its scale times `weight`, frozen.

        AdapterError when it is not for this model, or is DoRA with a weight other than 1.
        """
        self._take(name)
        shapes = {
            f"{path}.weight": tuple((module.base if isinstance(module, LoRALinear) else module).weight.shape)
            for path, module in self._model.named_modules() if isinstance(module, nn.Linear | LoRALinear)
            and not path.endswith(".base")
        }
        file = read_adapter(folder, base_shapes=shapes)
        for path, info in file.modules.items():
            factors = info.read()
            magnitude = None if info.magnitude is None else read_tensor(info.magnitude).float()
            if magnitude is not None and weight != 1:
                raise AdapterError(f"{folder}: is DoRA, which rescales the base's rows; it has no weight but 1")
            self._wrap(path).add(
                name, factors.a.float(), factors.b.float(), factors.scale * weight, trainable=False,
                magnitude=magnitude,
            )
        self.names = (*self.names, name)

    def remove(self, name: str) -> None:
        """Takes an adapter off the model; linears that carry none any more are put back."""
        self._known(name)
        for path, module in list(self.modules.items()):
            module.remove(name)
            if not module.scale:
                owner, _, leaf = path.rpartition(".")
                setattr(self._model.get_submodule(owner), leaf, module.base)
                del self.modules[path]
        self.names = tuple(other for other in self.names if other != name)
        self.configs.pop(name, None)

    def _take(self, name: str) -> None:
        if name in ("all", "none") or not name or "." in name:
            raise AdapterError(f"an adapter cannot be named {name!r}; \"all\" and \"none\" mean selections")
        if name in self.names:
            raise AdapterError(f"there is an adapter {name!r} already; remove it first")

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise AdapterError(f"there is no adapter {name!r}; there are: {', '.join(self.names) or 'none'}")

    def _wrap(self, path: str) -> LoRALinear:
        if path not in self.modules:
            owner, _, leaf = path.rpartition(".")
            reads = f"{owner}.{_SAME_INPUT.get(part := self._part(leaf), part)}"
            module = LoRALinear(self._model.get_submodule(path), self._selection, path, reads)
            module.train(self._model.training)
            setattr(self._model.get_submodule(owner), leaf, module)
            self.modules[path] = module
        return self.modules[path]

    def _part(self, leaf: str) -> str:
        """Llama's name of a linear."""
        known: Mapping[str, str] = getattr(self._model, "linear_names", {})
        return next((part for part, own in known.items() if own == leaf), leaf)

    @contextlib.contextmanager
    def use(
        self, which: str | Sequence[str] | Tensor, *, picked: Tensor | None = None, seed: int | None = None
    ) -> Iterator[None]:
        """Within the block the model goes through: "all", "none", one adapter or several by name, or, for a
        tensor (B,) of indexes into `names`, each batch row through the adapter it names (−1: none).

        picked (S,) int64: the batch row of each token that comes without rows, in an x of (S, K), as the last MLP
        sees the positions that `Transformer.hidden` is to select. seed: of dropout in training mode, together with
        each linear's name; the same seed drops the same entries. Default: each call draws from torch's generator.
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
        with self._chosen(Selection(active, rows, picked, seed)):
            yield

    def recomputing(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """(nothing, the selection of this moment, restored): `context_fn` of `torch.utils.checkpoint.checkpoint`."""
        return contextlib.nullcontext(), self._chosen(dataclasses.replace(self._selection))

    @contextlib.contextmanager
    def _chosen(self, chosen: Selection) -> Iterator[None]:
        before = dataclasses.replace(self._selection)
        self._selection.take(chosen)
        try:
            yield
        finally:
            self._selection.take(before)

    def factors(self, name: str) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(A, B) of an adapter on every module it is on, in order."""
        return [(module.a[name], module.b[name]) for module in self.modules.values() if name in module.scale]

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What an adapter trains: A and B of every module in order, then DoRA's magnitudes."""
        magnitudes = [module.magnitude[name] for module in self.modules.values() if name in module.magnitude]
        return [part for pair in self.factors(name) for part in pair] + magnitudes

    def save(self, name: str, folder: str | Path, *, base_model: str | None = None) -> None:
        """Writes an adapter in PEFT's format (adapter_config.json, adapter_model.safetensors).

        One begun by PiSSA or OLoRA is written with its start, s (B A − B₀ A₀) = s [B −B₀] [A; A₀], so it fits the base
        as it is, twice the rank.
        """
        self._known(name)
        config = self.configs[name]
        modules = {path: module for path, module in self.modules.items() if name in module.scale}
        doubled = any(name in module.first_a for module in modules.values())
        times = 2 if doubled else 1
        stored = {
            path: {key: torch.cat(parts, dim).detach() for key, (dim, parts) in module.stored(name).items()}
            for path, module in modules.items()
        }
        write_adapter(
            folder, {path: (held["lora_A.weight"], held["lora_B.weight"]) for path, held in stored.items()},
            rank=times * config.rank, alpha=times ** (0.5 if config.rslora else 1) * config.alpha,
            targets=config.targets, base_model=base_model, exclude=config.exclude, rslora=config.rslora,
            ranks={module: times * rank for module, rank in config.ranks.items()},
            alphas={module: times ** (0.5 if config.rslora else 1) * alpha for module, alpha in config.alphas.items()},
            magnitudes={
                path: held["lora_magnitude_vector"] for path, held in stored.items() if "lora_magnitude_vector" in held
            },
        )

    def load(self, name: str, folder: str | Path) -> None:
        """Takes up the values that `save` wrote, to the bit; the adapter must have been added with the same settings.

        AdapterError when its tensors are not those of this adapter.
        """
        self._known(name)
        file = Path(folder) / WEIGHTS
        header, _ = read_header(file)
        with torch.no_grad():
            for path, module in self.modules.items():
                if name not in module.scale:
                    continue
                for key, (dim, parts) in module.stored(name).items():
                    info = header.get(f"{PREFIX}{path}.{key}")
                    value = None if info is None else read_tensor(info)
                    if value is None or value.shape != torch.cat(parts, dim).shape:
                        raise AdapterError(f"{file}: holds no {key} of {path} for this adapter")
                    for part, own in zip(parts, value.split([part.shape[dim] for part in parts], dim), strict=True):
                        part.copy_(own)


def _targets(model: nn.Module, config: LoRAConfig) -> tuple[tuple[str, ...], list[str]]:
    """(targets by the checkpoint's own names, paths of the linears whose names end so, less the excluded, in order).

    Llama's names are understood where the checkpoint has others (`ModelConfig.linear_names`); a linear that stands
    for several of them must be meant whole.
    """
    known: Mapping[str, str] = getattr(model, "linear_names", {})
    own = tuple(dict.fromkeys(known.get(target, target) for target in config.targets))
    linears = [
        path for path, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear) and not path.endswith(".base")
    ]
    for name in own:
        parts = [part for part, stored in known.items() if stored == name]
        missing = [part for part in parts if part not in config.targets]
        if missing and name not in config.targets:
            raise AdapterError(
                f"targets: {name} computes {', '.join(parts)} at once, so an adapter is on all of them or none; add "
                f"{', '.join(missing)}, or name {name}"
            )
        if not any(named(path, name) for path in linears):
            names = sorted({*known.values()} or {path.rpartition(".")[2] for path in linears})
            raise AdapterError(f"targets: the model has no linear named {name}; it has: {', '.join(names)}")
    found = [path for path in linears if any(named(path, name) for name in own)]
    for kind, names in (("exclude", config.exclude), ("ranks", config.ranks), ("alphas", config.alphas)):
        strange = [name for name in names if not any(named(path, name) for path in found)]
        if strange:
            raise AdapterError(f"{kind}: no targeted linear is named {', '.join(strange)}")
    kept = [path for path in found if not any(named(path, name) for name in config.exclude)]
    if not kept:
        raise AdapterError("exclude: leaves no linear to adapt")
    return own, kept


def attach(
    model: nn.Module, configs: Mapping[str, LoRAConfig], *, seed: int = 0, impl: str = "auto"
) -> AdapterSet:
    """Puts fresh adapters on the targeted linears of `model`, in place; all else is frozen (`AdapterSet.add`)."""
    model.requires_grad_(False)
    adapters = AdapterSet(model, impl)
    for name, config in configs.items():
        adapters.add(name, config, seed=seed)
    return adapters


def load_adapters(
    model: nn.Module, adapters: Mapping[str, tuple[str | Path, float]], *, impl: str = "auto"
) -> AdapterSet:
    """Puts adapters read from PEFT folders on `model`: {name: (folder, weight)} (`AdapterSet.read`)."""
    loaded = AdapterSet(model, impl)
    for name, (folder, weight) in adapters.items():
        loaded.read(name, folder, weight)
    return loaded
