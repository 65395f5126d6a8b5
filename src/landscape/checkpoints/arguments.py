"""Texts of `--set` and of a checkpoint's path as arguments of a problem function, by its annotations and defaults."""

from __future__ import annotations

import ast
import enum
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_CONSTANTS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NOTHING = ("none", "null", "")
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path"}


def parse_setting(text: str) -> Any:
    """The value of a text that nothing is known about: a Python literal where it is one (1e-3, True, None, (1, 2)),
    a list where it is one of words ([relu,tanh]), else the text."""
    if text.strip().lower() in _CONSTANTS:
        return _CONSTANTS[text.strip().lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape in a path
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        words = _words_within(text.strip(), "[]")
        return text if words is None else [parse_setting(word) for word in words]


def _words_within(text: str, brackets: str) -> list[str] | None:
    """What the commas of a text in these brackets separate, those of inner brackets left alone; None where it is not
    such a text."""
    if len(text) < 2 or text[0] + text[-1] != brackets:
        return None
    words, open_ones = [""], []
    for letter in text[1:-1]:
        if letter in "[({":
            open_ones.append({"[": "]", "(": ")", "{": "}"}[letter])
        elif letter in "])}" and (not open_ones or open_ones.pop() != letter):
            return None
        if letter == "," and not open_ones:
            words.append("")
        else:
            words[-1] += letter
    return None if open_ones else [word.strip() for word in words]


class Unconvertible(ValueError):  # noqa: N818 (never seen by users)
    """A text is not what a parameter takes; its text says what that is."""


def kinds_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """What each parameter of a function takes: its annotation, else the type of its default, else Any."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        hints = {}
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if name in hints:
            found[name] = hints[name]
        elif isinstance(default, bool | str | enum.Enum):
            found[name] = type(default)
        elif isinstance(default, int | float):
            found[name] = int | float  # a default of 1 does not say that halves are forbidden
        elif type(default) in (list, tuple, dict, set):
            found[name] = type(default)
        else:
            found[name] = Any
    return found


def converted(value: Any, kind: Any) -> Any:
    """A text, or a number from a path, as what a parameter takes.

    Args:
        value: anything but a text, a number or a truth value stays as it is.
        kind: an annotation: bool, int, float, str, Path, an enumeration, Literal, lists and tuples of these, unions and
            None, bare dict and set; for anything else the text is read as a Python literal where it is one.

    Raises:
        Unconvertible: the text says something else; with what the parameter takes.
    """
    if not isinstance(value, str | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    try:
        return _as(text.strip() if kind is not str else text, kind)
    except (ValueError, KeyError, TypeError, OverflowError, SyntaxError):
        raise Unconvertible(described(kind)) from None


def described(kind: Any) -> str:
    """What a parameter takes, in words."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("none" if option is type(None) else described(option) for option in options))
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in options)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    if kind in (list, tuple) or origin in (list, tuple):
        return f"a list such as {_example(origin or kind)}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _example(origin: Any) -> str:
    return "[64,32]" if origin is list else "(64,32)"


def _as(text: str, kind: Any) -> Any:
    """Raises ValueError and its like where the text is something else."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _as_one_of(text, options)
    if origin is Literal:
        return _one(text, {str(option): option for option in options})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one(text, {str(member.value): member for member in kind} | dict(kind.__members__))
    if kind in (list, tuple) or origin in (list, tuple):
        return _as_sequence(text, origin or kind, options)
    if kind in (dict, set):
        return _literal(text, kind)
    if kind is bool:
        return _BOOLEANS[text.lower()]
    if kind is int:
        number = float(text) if not text.lstrip("+-").isdigit() else int(text)
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if kind is float:
        return float(text)
    if kind in (str, Path):
        return kind(text)
    return parse_setting(text)


def _one(text: str, options: Mapping[str, Any]) -> Any:
    if text in options:
        return options[text]
    return options[str(_BOOLEANS[text.lower()])]  # True, which a path spells true


def _as_one_of(text: str, options: tuple[Any, ...]) -> Any:
    """The first of several that a text can be; texts last, since everything is one."""
    if type(None) in options and text.lower() in _NOTHING:
        return None
    ranked = sorted((o for o in options if o is not type(None)), key=lambda o: (o is Path, o is str))
    for option in ranked[:-1]:
        # 1 is a number before it is a truth value.
        if option is bool and text in ("0", "1") and (int in options or float in options):
            continue
        try:
            return _as(text, option)
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return _as(text, ranked[-1])


def _literal(text: str, kind: Any) -> Any:
    value = parse_setting(text)
    if not isinstance(value, kind):
        raise ValueError(text)
    return value


def _as_sequence(text: str, kind: Any, options: tuple[Any, ...]) -> Any:
    value = parse_setting(text)
    items: list[Any] | None = list(value) if isinstance(value, list | tuple) else None
    # One word is a list of one where it is said of what; a default that is a list says nothing of the kind.
    if items is None and (options or "," in text):
        items = _words_within(text, "()") or _words_within(f"({text})", "()")
    if items is None:
        raise ValueError(text)
    if not options:
        return kind(parse_setting(item) if isinstance(item, str) else item for item in items)
    fixed = kind is tuple and Ellipsis not in options
    if fixed and len(options) != len(items):
        raise ValueError(text)
    each = options if fixed else [options[0]] * len(items)
    return kind(
        _as(item.strip() if isinstance(item, str) else str(item), k) for item, k in zip(items, each, strict=True)
    )
