"""Settings of a training run from several places: defaults, a recipe, a TOML file, flags; the later win.

A layer is a mapping of TrainConfig's fields. `[domain]` and `[numeric]` hold what differs between the adapters, the
fields of LoRAConfig; the same keys outside of them are for both. Paths are as they would be on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .config import LoRAConfig
from .errors import ConfigError, DataError, short
from .fields import fits, in_words, plain, types_of
from .files import read_text
from .train_config import ADAPTERS, TrainConfig

Layer = Mapping[str, Any]

SHARED = tuple(field.name for field in dataclasses.fields(LoRAConfig))
"""Keys that, outside of a table, are for both adapters."""

_ONLY_FOR = {
    "domain": ("corpus", "rows"),
    "numeric": (
        "numct", "questions", "loss", "text_weight", "letter_weight", "digit_weight", "varied", "chat",
    ),
}
_VALIDATED_BY = ("corpus", "numct", "loss")
"""Of these, what a validation of the other adapter uses too."""
_VALIDATION = ("heldout_corpus", "heldout_numct", "validation_size")
"""What validation alone uses."""


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text. DataError, naming `where`, when it is broken."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise DataError(f"{where}: not valid TOML: {error}") from error


def write_toml(values: Mapping[str, Any]) -> str:
    """Values, then tables, as TOML that reads back equal: text, truth, numbers, lists and tables of them.

    A value of None is left out. ConfigError for what TOML cannot hold.
    """
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()
             if value is not None and not isinstance(value, Mapping)]
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(key)}]"]
            lines += [f"{_key(name)} = {_value(value)}" for name, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{short(value)} is not UTF-8 text, which a TOML file must be") from error
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    raise ConfigError(f"TOML has no form for {short(value)}")


def to_toml(config: TrainConfig) -> str:
    """Every setting of a run as TOML, such that `combine(layer)` of it is the same TrainConfig."""
    from . import __version__

    return f"# Settings of a training run, numllm {__version__}.\n" + write_toml(dataclasses.asdict(config))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The layer in a TOML file, its keys and types checked; with "recipe", where the file names one to build on."""
    layer = parse_toml(read_text(path), str(path))
    named = {"recipe": _typed("recipe", layer.pop("recipe"), str, str(path))} if "recipe" in layer else {}
    return named | checked(layer, str(path))


def checked(layer: Layer, where: str) -> dict[str, Any]:
    """A layer with its own shared keys spread over the adapters, each value of its field's type.

    ConfigError, naming `where` the layer is from, for a key that is unknown, with the nearest one that is known, or
    a value of the wrong type.
    """
    kinds = types_of(TrainConfig)
    _refuse_unknown(layer, [*kinds, *SHARED], where)
    done = {
        key: _typed(key, value, kinds[key], where) for key, value in layer.items()
        if key not in SHARED and key not in ADAPTERS
    }
    for adapter in ADAPTERS:
        table = layer.get(adapter, {})
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: {adapter} must be a table, got {short(table)}")
        _refuse_unknown(table, SHARED, f"{where}, [{adapter}]")
        both = {key: layer[key] for key in SHARED if key in layer} | dict(table)
        if both:
            lora = types_of(LoRAConfig)
            done[adapter] = {key: _typed(key, value, lora[key], where) for key, value in both.items()}
    return done


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {short(key)}; {hint}")


def _typed(key: str, value: Any, kind: Any, where: str) -> Any:
    if key == "adapters" and isinstance(value, str):
        value = ADAPTERS if value == "both" else (value,)
    form = typing.get_origin(plain(kind))
    if form in (tuple, Mapping) and isinstance(value, str):  # from the command line
        value = tuple(part.strip() for part in value.split(",") if part.strip())
        if form is Mapping:
            value = _table(key, value, typing.get_args(plain(kind))[1], where)
    if isinstance(value, list):
        value = tuple(value)
    if not fits(value, kind):
        raise ConfigError(f"{where}: {key} must be {in_words(kind)}, got {short(value)}")
    return float(value) if plain(kind) is float else value


def _table(key: str, parts: Iterable[str], kind: type, where: str) -> dict[str, Any]:
    """NAME=NUMBER, … as a table."""
    try:
        return {name.strip(): kind(value) for name, value in (part.split("=") for part in parts)}
    except ValueError:
        raise ConfigError(f"{where}: {key} wants NAME=NUMBER, …, got {short(', '.join(parts))}") from None


def combine(*layers: Layer) -> TrainConfig:
    """The run that checked layers describe, each winning over those before it. ConfigError for what is missing."""
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            values[key] = values.get(key, {}) | value if key in ADAPTERS else value
    for key in ("model", "out"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing; give --{key}, or {key} in the file of --config")
    for adapter in ADAPTERS:
        values[adapter] = LoRAConfig(**values.get(adapter, {}))
    return TrainConfig(**values)


def refuse_contradictions(flags: Layer, config: TrainConfig) -> None:
    """ConfigError when a flag given (the layer before `checked`) would be ignored, being for nothing the run does."""
    for keys, used, reason in (
        (("rows", "questions"), config.tokens is None, f"tokens, which is {config.tokens}, takes its place"),
        (_VALIDATION, config.validate_every > 0, "validate_every is 0, so that nothing is validated"),
        (("letter_weight",), config.loss == "both", f"it is for --loss both, not {config.loss}"),
    ):
        if ignored := [key for key in keys if key in flags and not used]:
            raise ConfigError(f"--{ignored[0].replace('_', '-')} would be ignored: {reason}; drop it or change that")
    for adapter, keys in _ONLY_FOR.items():
        if adapter in config.adapters:
            continue
        for key in flags:
            own = key == adapter or key.startswith(f"{adapter}_") or key in keys
            if own and not (config.validate_every and key in _VALIDATED_BY):
                flag = f"{adapter}-{min(flags[key])}" if key == adapter else key.replace("_", "-")
                raise ConfigError(
                    f"--{flag} is for the {adapter} adapter, which --adapters {','.join(config.adapters)} does not "
                    "train; drop one of the two"
                )
