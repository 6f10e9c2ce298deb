"""Which modules of a model an adapter is on, by the names in its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..config import LoRAConfig, named
from ..errors import AdapterError
from .low_rank import LowRank
from .whole import Whole


def carries(module: nn.Module) -> bool:
    """Whether adapters are on a module, so that its weight is not all that it computes with."""
    return isinstance(module, LowRank | Whole)


def own(model: nn.Module, path: str) -> nn.Module:
    """The model's own module of a name, without what adapters put around it."""
    module = model.get_submodule(path)
    return module.base if carries(module) else module


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → every module of the model's own."""
    around = {path for path, module in model.named_modules() if carries(module)}
    return {
        path: own(model, path) for path, _ in model.named_modules()
        if not any(path.startswith(f"{outer}.") for outer in around)
    }


def own_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name → shape of the model's own parameters, and of the biases that its linears might have."""
    found = {
        f"{path}.{leaf}".removeprefix("."): tuple(value.shape) for path, module in own_modules(model).items()
        for leaf, value in module.named_parameters(recurse=False)
    }
    return found | {
        f"{path}.bias": (module.out_features,) for path, module in own_modules(model).items()
        if isinstance(module, nn.Linear)
    }


def biased_linears(
    model: nn.Module, config: LoRAConfig, targeted: Sequence[str], whole: Sequence[str]
) -> list[str]:
    """The linears whose biases an adapter trains, but those that it trains whole."""
    if config.bias == "none":
        return []
    modules = own_modules(model)
    found = [
        path for path, module in modules.items()
        if isinstance(getattr(module, "bias", None), nn.Parameter) and path not in whole
        and (config.bias == "all" or path in targeted)
    ]
    strange = [path for path in found if not isinstance(modules[path], nn.Linear)]
    if strange:
        raise AdapterError(f"bias: {strange[0]} has one and is no linear; name it in modules_to_save instead")
    if not found:
        raise AdapterError(f"bias: {config.bias} is nothing, none of the linears meant has a bias")
    return found


def whole_modules(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The modules that an adapter trains whole."""
    modules, found = own_modules(model), []
    for name in config.modules_to_save:
        paths = [path for path in modules if named(path, _outer(model, name))]
        if not paths:
            raise AdapterError(f"modules_to_save: the model has no module named {name}")
        for path in paths:
            if next(modules[path].children(), None) is not None:
                raise AdapterError(f"modules_to_save: {path} is made of several modules; name those that are meant")
            if next(modules[path].parameters(), None) is None:
                raise AdapterError(f"modules_to_save: {path} has no weights")
        found += paths
    return list(dict.fromkeys(found))


def _outer(model: nn.Module, name: str) -> str:
    """The checkpoint's own name of a module beside the blocks' linears, by Llama's."""
    return getattr(model, "names", {}).get(name, name)


def targeted(model: nn.Module, config: LoRAConfig) -> tuple[tuple[str, ...], list[str]]:
    """(targets by the checkpoint's own names, paths of the linears whose names end so, less the excluded, in order).

    Llama's names are understood where the checkpoint has others (`ModelConfig.linear_names`); a linear that stands
    for several of them must be meant whole.
    """
    known: Mapping[str, str] = getattr(model, "linear_names", {})
    wanted = tuple(dict.fromkeys(known.get(target, _outer(model, target)) for target in config.targets))
    modules = own_modules(model)
    linears = [path for path, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding)]
    for name in wanted:
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
    found = [path for path in linears if any(named(path, name) for name in wanted)]
    for kind, names in (("exclude", config.exclude), ("ranks", config.ranks), ("alphas", config.alphas)):
        strange = [name for name in names if not any(named(path, name) for path in found)]
        if strange:
            raise AdapterError(f"{kind}: no targeted linear is named {', '.join(strange)}")
    kept = [path for path in found if not any(named(path, name) for name in config.exclude)]
    if not kept:
        raise AdapterError("exclude: leaves no linear to adapt")
    return wanted, kept
