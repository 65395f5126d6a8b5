"""Settings from outside (TOML tables, checkpoint headers) into frozen dataclasses, mistakes explained."""

from __future__ import annotations

import difflib
import functools
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from landscape.errors import ProblemError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
V = TypeVar("V")


def parse_settings(kind: type[S], values: Mapping[str, Any], what: str) -> S:
    """The dataclass `kind` filled from `values`, its types checked and small conversions made.

    An int is taken for a float and a list for a tuple, because TOML and headers have nothing else; a bool is
    never taken for a number.

    Args:
        kind: a dataclass whose fields are bool, int, float, str, tuple[int, ...] or one of these or None.
        values: name -> value.
        what: whose settings these are, for messages: "model 'mlp'".

    Raises:
        ProblemError: an unknown or missing name, or a value of the wrong type; the dataclass itself may raise
            it for values out of range.
    """
    hints = _hints(kind)
    names = [f.name for f in fields(kind)]
    for name in values:
        if name not in names:
            raise ProblemError(f"{what} has no setting {name!r}", suggestion(str(name), names))
    for f in fields(kind):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ProblemError(f"{what} needs the setting {f.name!r}", f"its settings: {', '.join(names)}")
    return kind(**{name: _converted(value, hints[name], f"{what}: {name}") for name, value in values.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields: looking them up is most of what planning a sweep of thousands of runs takes."""
    return get_type_hints(kind)


def keyword_settings(kind: type[S], values: Mapping[str, Any], function: str) -> S:
    """The settings of a library function from its keyword arguments.

    Raises:
        UsageError: one that does not exist; all that do are listed.
    """
    names = [f.name for f in fields(kind)]
    for name in values:
        if name not in names:
            raise UsageError(f"{function} has no setting {name!r}", f"settings are {', '.join(names)}")
    return kind(**values)


def later(default: Any) -> Any:
    """A dataclass field that was added after files without it had been written: left out of headers at its default,
    so that the same run still gives the same bytes."""
    return field(default=default, metadata={"later": True})


def written(settings: DataclassInstance) -> dict[str, Any]:
    """The settings as a header holds them: plain types, fields that take no part in comparisons left out."""
    kept = [
        f
        for f in fields(settings)
        if f.compare and not (f.metadata.get("later") and getattr(settings, f.name) == f.default)
    ]
    values = {f.name: getattr(settings, f.name) for f in kept}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest known name, if one is near, and all there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    all_of_them = f"known are {', '.join(known)}" if known else "there are none"
    return f"did you mean {near[0]!r}? {all_of_them}" if near else all_of_them


def choose(table: Mapping[str, V], name: object, what: str) -> V:
    """`table[name]`, or a ProblemError that lists what exists; `what` reads like "activation"."""
    if not isinstance(name, str) or name not in table:
        raise ProblemError(f"there is no {what} {name!r}", suggestion(str(name), table))
    return table[name]


def _converted(value: Any, hint: Any, where: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif get_origin(option) is tuple:
            if isinstance(value, list | tuple) and all(type(v) is int for v in value):
                return tuple(value)
        elif option is float:
            if type(value) in (int, float) and math.isfinite(value):
                return float(value)
        elif type(value) is option:
            return value
    wanted = " or ".join(_NAMES.get(option, "a list of integers") for option in options)
    raise ProblemError(f"{where} is {value!r}, which is not {wanted}")


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    type(None): "nothing",
}
