"""Fields of a settings dataclass: their types, checked; their docstrings, for the command line's help."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from .errors import ConfigError, short

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@functools.cache
def types_of(cls: type) -> dict[str, Any]:
    """Name → type of each field, resolved."""
    return typing.get_type_hints(cls)


@functools.cache
def docs_of(cls: type) -> dict[str, str]:
    """Name → the docstring under each field, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = definition.body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def plain(kind: Any) -> Any:
    """A field's type without "or None"."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    return kind


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a number, true and false are neither."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def in_words(kind: Any) -> str:
    """A field's type as a message says it."""
    kind = plain(kind)
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return f"{', '.join(inner[:-1])} or {inner[-1]}"
    if typing.get_origin(kind) is tuple:
        return "a list of text"
    if typing.get_origin(kind) is Mapping:
        return f"a table of names and {_WORDS[inner[1]].removeprefix('a ')}s"
    return _WORDS.get(kind, kind.__name__)


def check_types(config: Any) -> None:
    """ConfigError when a field of a dataclass does not hold what its type says."""
    for name, kind in types_of(type(config)).items():
        value = getattr(config, name)
        if not fits(value, kind):
            raise ConfigError(f"{name} must be {in_words(kind)}, got {short(value)}")
