"""Named settings for common models and sizes of GPU (recipes.toml)."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from pathlib import Path
from typing import Any

from .errors import ConfigError, short
from .files import read_text
from .settings import checked, parse_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a run on a given model and GPU; what is left to say is where the data is and how long to train."""

    name: str
    processes: int
    gigabytes: int
    """Of each GPU, 10⁹ bytes."""
    estimate: float
    """Gigabytes a step takes on each, by `memory.estimate`."""
    layer: dict[str, Any]
    """The settings, checked."""


@functools.cache
def recipes() -> dict[str, Recipe]:
    """Name → recipe, in the order of recipes.toml."""
    path = Path(__file__).with_name("recipes.toml")
    tables = parse_toml(read_text(path), str(path))
    shared = tables.pop("all")
    found = {}
    for model, table in tables.items():
        own = {key: value for key, value in table.items() if not isinstance(value, dict)}
        for gpu, settings in table.items():
            if isinstance(settings, dict):
                processes, gigabytes = re.fullmatch(r"(?:(\d+)x)?(\d+)gb", gpu).groups()
                layer = shared | own | settings
                estimate = layer.pop("estimate")
                name = f"{model}-{gpu}"
                found[name] = Recipe(
                    name=name, processes=int(processes or 1), gigabytes=int(gigabytes), estimate=estimate,
                    layer=checked(layer, f"recipe {name}"),
                )
    return found


def recipe(name: str) -> Recipe:
    """The recipe of a name. ConfigError, with the nearest name, when there is none."""
    if name not in recipes():
        near = difflib.get_close_matches(name.lower(), recipes(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else "numllm train --recipes lists them"
        raise ConfigError(f"there is no recipe {short(name)}; {hint}")
    return recipes()[name]
