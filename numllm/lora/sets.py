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
from ..config import LoRAConfig
from ..errors import AdapterError
from .embedding import LoRAEmbedding
from .layer import LoRALinear
from .low_rank import LowRank, Selection
from .starts import begin, gathered
from .targets import biased_linears, own, own_shapes, targeted, whole_modules
from .whole import Whole

_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linears that read what another one reads, by Llama's names."""


class AdapterSet:
    """The adapters of one model: which are on, their parameters, saving.

    Attributes: names (in order); modules (name in the checkpoint → LoRALinear or LoRAEmbedding); whole (name → Whole,
    of the modules that adapters have whole); configs (name → LoRAConfig, of the adapters that were made here).
    """

    def __init__(self, model: nn.Module, impl: str = "auto") -> None:
        self.names: tuple[str, ...] = ()
        self.modules: dict[str, LowRank] = {}
        self.whole: dict[str, Whole] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self._model = model
        self._selection = Selection(impl=impl)

    def add(self, name: str, config: LoRAConfig, *, seed: int = 0) -> None:
        """Puts a fresh adapter on the targeted linears and embeddings, in place.

        Its start (`starts`) depends on the seed, its name and the module only, so it is the same whether it is
        trained alone or with others. fp32 factors; biases and whole modules begin as the base's. An embedding that
        the head is tied to is changed where tokens are looked up, and not in the head, as in PEFT.
        AdapterError when a target is not in the model, the name is taken or means a selection, the rank is more than
        the start allows, or a module is targeted and trained whole.
        """
        self._take(name)
        targets, paths = targeted(self._model, config)
        wholes = whole_modules(self._model, config)
        if both := set(paths) & set(wholes):
            raise AdapterError(f"{min(both)} is in targets and in modules_to_save: it is trained whole or in low rank")
        biased = biased_linears(self._model, config, paths, wholes)
        embedded = [path for path in paths if not isinstance(own(self._model, path), nn.Linear)]
        if embedded and (config.dora or config.start != "default"):
            raise AdapterError(f"{embedded[0]} is an embedding, which has no DoRA and no start but the default")
        for path in paths:
            module = self._wrap(path)
            rank, scale = config.of(path)
            key = hashlib.sha256(f"{seed}\0{name}\0{path}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            try:
                start = "embedding" if path in embedded else config.start
                (a, b), first = begin(start, module.base.weight, rank, scale, generator)
            except ValueError as error:
                raise AdapterError(f"{path}: {error}") from error
            module.add(
                name, a, b, scale, trainable=True, first=first, dropout=config.dropout,
                magnitude=module.norms() if config.dora else None,
            )
        for path in biased:
            module = self._wrap(path)
            module.add_bias(name, gathered(module.base.bias.detach()).float().clone(), trainable=True)
        for path in wholes:
            whole = self._wrap_whole(path)
            values = {
                leaf: gathered(value.detach()).float().clone() for leaf, value in whole.base.named_parameters()
            }
            whole.add(name, values, trainable=True)
        self.names = (*self.names, name)
        self.configs[name] = dataclasses.replace(config, targets=targets)

    def read(self, name: str, folder: str | Path, weight: float = 1.0) -> None:
        """Puts an adapter read from a PEFT folder on the model, its scale times `weight`, frozen.

        Trained biases, lora_bias and modules saved whole come with it. AdapterError when it is not for this model, is
        DoRA with a weight other than 1, moved the base (PiSSA and the like, unconverted), or is for weights stored
        transposed.
        """
        self._take(name)
        file = read_adapter(folder, base_shapes=own_shapes(self._model), running=True)
        for path, info in file.base_copies.items():
            held = own(self._model, path).weight
            if not torch.equal(read_tensor(info).to(held), held):
                raise AdapterError(f"{folder}: holds a copy of {path}.weight that is not this base's")
        wholes: dict[str, dict[str, Tensor]] = {}
        for key, info in file.replaced.items():
            path, _, leaf = key.rpartition(".")
            if file.saves(path):
                wholes.setdefault(path, {})[leaf] = read_tensor(info).float()
            else:
                self._wrap(path).add_bias(name, read_tensor(info).float(), weight, trainable=False)
        for path, values in wholes.items():
            self._wrap_whole(path).add(name, values, weight, trainable=False)
        for path, info in file.modules.items():
            factors = info.read()
            magnitude = None if info.magnitude is None else read_tensor(info.magnitude).float()
            if magnitude is not None and weight != 1:
                raise AdapterError(f"{folder}: is DoRA, which rescales the base's rows; it has no weight but 1")
            self._wrap(path).add(
                name, factors.a.float(), factors.b.float(), factors.scale * weight, trainable=False,
                magnitude=magnitude,
            )
        for key, (info, scale) in file.added.items():
            module = self._wrap(key.removesuffix(".bias"))
            bias = scale * read_tensor(info).float()
            bias = bias if module.base.bias is None else module.base.bias.detach().float() + bias
            module.add_bias(name, bias, weight, trainable=False)
        self.names = (*self.names, name)

    def remove(self, name: str) -> None:
        """Takes an adapter off the model; linears that carry none any more are put back."""
        self._known(name)
        for held in (self.modules, self.whole):
            for path, module in list(held.items()):
                module.remove(name)
                if not module.names:
                    self._put(path, module.base)
                    del held[path]
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

    def _put(self, path: str, module: nn.Module) -> None:
        owner, _, leaf = path.rpartition(".")
        setattr(self._model.get_submodule(owner), leaf, module)

    def _wrap(self, path: str) -> LowRank:
        if path in self.whole:
            raise AdapterError(f"{path} is trained whole by an adapter; remove that first")
        if path not in self.modules:
            owner, _, leaf = path.rpartition(".")
            base, part = self._model.get_submodule(path), self._part(leaf)
            if isinstance(base, nn.Embedding):
                module = LoRAEmbedding(base, self._selection, path)
            else:
                module = LoRALinear(base, self._selection, path, f"{owner}.{_SAME_INPUT.get(part, part)}")
            module.train(self._model.training)
            self._put(path, module)
            self.modules[path] = module
        return self.modules[path]

    def _wrap_whole(self, path: str) -> Whole:
        if path in self.modules:
            raise AdapterError(f"{path} has a low-rank adapter, so it cannot be trained whole; remove that first")
        if path not in self.whole:
            self.whole[path] = Whole(self._model.get_submodule(path), self._selection)
            self._put(path, self.whole[path])
        return self.whole[path]

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
        the name of what a linear reads; the same seed drops the same entries, of q, k and v alike. Default: each call
        draws from torch's generator.
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
        """What an adapter trains: A and B of every module in order, then DoRA's magnitudes and biases, then modules
        that it has whole.
        """
        low_rank = [part for pair in self.factors(name) for part in pair]
        return low_rank + [part for _, module in self._of(name) for part in module.parameters_of(name)]

    def _of(self, name: str) -> list[tuple[str, LowRank | Whole]]:
        """(path, module) of all that carry an adapter."""
        return [
            (path, module) for held in (self.modules, self.whole) for path, module in held.items()
            if name in module.names
        ]

    def save(self, name: str, folder: str | Path, *, base_model: str | None = None) -> None:
        """Writes an adapter in PEFT's format (adapter_config.json, adapter_model.safetensors).

        One begun by PiSSA or OLoRA is written with its start, s (B A − B₀ A₀) = s [B −B₀] [A; A₀], so it fits the base
        as it is, twice the rank.
        """
        self._known(name)
        config = self.configs[name]
        times = 2 if any(name in module.first_a for module in self.modules.values()) else 1
        alpha_times = times ** (0.5 if config.rslora else 1)
        stored = {
            path: {key: torch.cat(parts, dim).detach() for key, (dim, parts) in module.stored(name).items()}
            for path, module in self._of(name)
        }
        factors = {
            path: tuple(held.pop(f"lora_{part}.weight") for part in "AB")
            for path, held in stored.items() if "lora_A.weight" in held
        }
        write_adapter(
            folder, factors,
            more={f"{path}.{key}": value for path, held in stored.items() for key, value in held.items()},
            rank=times * config.rank, alpha=alpha_times * config.alpha,
            targets=config.targets, base_model=base_model, exclude=config.exclude, rslora=config.rslora,
            ranks={module: times * rank for module, rank in config.ranks.items()},
            alphas={module: alpha_times * alpha for module, alpha in config.alphas.items()},
            bias=config.bias, modules_to_save=[path for path, module in self._of(name) if isinstance(module, Whole)],
        )

    def load(self, name: str, folder: str | Path) -> None:
        """Takes up the values that `save` wrote, to the bit; the adapter must have been added with the same settings.

        AdapterError when its tensors are not those of this adapter.
        """
        self._known(name)
        file = Path(folder) / WEIGHTS
        header, _ = read_header(file)
        with torch.no_grad():
            for path, module in self._of(name):
                for key, (dim, parts) in module.stored(name).items():
                    info = header.get(f"{PREFIX}{path}.{key}")
                    value = None if info is None else read_tensor(info)
                    if value is None or value.shape != torch.cat(parts, dim).shape:
                        raise AdapterError(f"{file}: holds no {key} of {path} for this adapter")
                    for part, saved in zip(parts, value.split([part.shape[dim] for part in parts], dim), strict=True):
                        part.copy_(saved)


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
