"""Settings as frozen dataclasses whose fields say everything: default, help, limits, spelling. Command line options,
keywords of library functions, TOML tables and checkpoint headers are read into them, mistakes explained."""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from landscape.errors import ProblemError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Words of options that several analyses have.
FLOOR = "Floor, relative to max |eigenvalue|, below which a value counts as zero."
SUBSET = "Use a random subset of the data, with its sampling error."
SEED = "Of every random choice."
DEVICE = "auto, cpu or cuda."
MEMORY = "Limit for the process; without it, a share of what is free."
DESCENT = "Iterations of each descent, at most."
CONTROLS = "Random kicks of the same length to compare with."

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
    """The settings of a library function from its keyword arguments, spelled as Python or the command line does.

    Raises:
        UsageError: one that does not exist, with all that do; a value that is not what it takes, with one that is.
    """
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise UsageError(f"{function} has no setting {name!r}", f"settings are {', '.join(known)}")
    return kind(**{name: _taken(value, known[name], _hints(kind)[name], function) for name, value in values.items()})


def option(
    default: Any,
    text: str,
    *,
    least: int | None = None,
    inside: Interval | None = None,
    flag: str | None = None,
    words: Callable[[str], Any] | None = None,
    example: Any = None,
    metavar: str | None = None,
    many: bool = False,
) -> Any:
    """A dataclass field that is an option of a command and a keyword of a library function.

    Args:
        default: its value where nothing is said. text: one line of help.
        least: smallest number. inside: where a number must lie.
        flag: its name on the command line where that is not the field's, without dashes.
        words: reads the spelling of the command line, and raises UsageError; example: such a value, for hints.
        metavar: what stands for the value in help. many: whether the option may be repeated; a tuple.
    """
    found = {"help": text, "least": least, "inside": inside, "flag": flag, "words": words, "example": example}
    found |= {"metavar": metavar, "many": many}
    return field(default=default, metadata={k: v for k, v in found.items() if v is not None and v is not False})


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, with the ends that belong to it: "[)", "()" …"""

    low: float
    high: float
    ends: str = "[)"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


# A share of something.
SHARE = Interval(0, 1)


def flag_of(setting: Field[Any]) -> str:
    """The option of a field, with its dashes."""
    return f"--{setting.metadata.get('flag', setting.name)}".replace("_", "-")


def check_options(settings: DataclassInstance) -> None:
    """Limits and choices of all fields made by `option`.

    Raises:
        UsageError: a value that is out of them, by the name of its option.
    """
    hints = _hints(type(settings))
    for f in fields(settings):
        value, told = getattr(settings, f.name), f.metadata
        choices = choices_of(hints[f.name])
        if choices and value not in choices:
            raise UsageError(f"{flag_of(f)} {value!r} is unknown", f"choose {' or '.join(choices)}")
        if value is None:
            continue
        if "least" in told and value < told["least"]:
            raise UsageError(f"{flag_of(f)} is {value}; it must be at least {told['least']}")
        if "inside" in told and value not in told["inside"]:
            raise UsageError(f"{flag_of(f)} is {value}; it must lie in {told['inside']}")


def choices_of(hint: Any) -> tuple[str, ...]:
    """The texts that a `Literal` allows; () for any other type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def documented(kind: type[S]) -> type[S]:
    """The dataclass with the help of its options as attributes in its docstring."""
    lines = [f"    {f.name}: {f.metadata['help']}" for f in fields(kind) if "help" in f.metadata]
    kind.__doc__ = f"{(kind.__doc__ or '').rstrip()}\n\nAttributes:\n" + "\n".join(lines)
    return kind


def plain_options(settings: DataclassInstance) -> dict[str, Any]:
    """The settings by name, in plain types: for identities and files."""
    return {f.name: _listed(getattr(settings, f.name)) for f in fields(settings)}


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def names_of(params: Sequence[str]) -> tuple[str, ...]:
    """Patterns of one or several comma-separated --params options."""
    return tuple(p.strip() for text in params for p in text.split(",") if p.strip())


def parse_bytes(text: str) -> int:
    """ "6GB", "512 MiB" or a plain number of bytes.

    Raises:
        UsageError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", text.lower())
    try:
        if match and match[2] in _UNITS and (amount := int(float(match[1]) * _UNITS[match[2]])) > 0:
            return amount
    except (ValueError, OverflowError):  # two decimal points; more than a float can hold
        pass
    raise UsageError(f"--memory {text!r} is not an amount of memory", "write it like 6GB, 512MiB or 2000000000")


def _taken(value: Any, setting: Field[Any], hint: Any, function: str) -> Any:
    """A keyword argument as its field has it. Raises UsageError."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, str) and "words" in setting.metadata:
        return setting.metadata["words"](value)
    if value is None and get_origin(hint) is tuple:
        return setting.default
    for option in options:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return _read(value, option)
    wanted = [_called(option) for option in options if option is not type(None)]
    if type(None) in options:
        wanted.append("None")
    usual = _EXAMPLES.get(options[0]) if setting.default in (None, "") else setting.default
    example = setting.metadata.get("example", usual)
    raise UsageError(
        f"{function}: {setting.name} is {value!r}, which is not {' or '.join(wanted)}",
        f"write it like {setting.name}={example!r}",
    )


def _called(kind: Any) -> str:
    if kind is bool:
        return "True or False"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is not tuple:
        return _NAMES[kind]
    inner = get_args(kind)[0]
    return "a tuple of " + ("tuples of numbers" if get_origin(inner) is tuple else _PLURALS[inner])


def _read(value: Any, kind: Any) -> Any:
    """A value as a plain bool, int, float, str, None or tuple. Raises ValueError or TypeError where it is another."""
    if kind is type(None):
        if value is not None:
            raise TypeError
        return None
    if get_origin(kind) is Literal:
        value = _read(value, str)
        if value not in get_args(kind):
            raise ValueError
        return value
    if get_origin(kind) is tuple:
        if hasattr(value, "tolist"):  # of NumPy and PyTorch
            value = value.tolist()
        items = value if isinstance(value, list | tuple) else (value,)
        inner = get_args(kind)[0]
        if get_origin(inner) is tuple and not all(isinstance(item, list | tuple) for item in items):
            raise TypeError
        return tuple(_read(item, inner) for item in items)
    if kind is bool or isinstance(value, bool) or type(value).__name__ == "bool":  # of NumPy, the last
        if kind is not bool or type(value).__name__ != "bool":
            raise TypeError
        return bool(value)
    if kind is str:
        if type(value).__module__ == "torch" and not isinstance(value, str):  # a dtype or a device
            return str(value).removeprefix("torch.")
        if not isinstance(value, str):
            raise TypeError
        return value
    if kind is int and not isinstance(value, str):
        return operator.index(int(value) if isinstance(value, float) and value.is_integer() else value)
    return kind(value)


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


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    type(None): "nothing",
}
_PLURALS: dict[Any, str] = {int: "integers", float: "numbers", str: "texts"}
_EXAMPLES: dict[Any, Any] = {bool: True, int: 100, float: 0.5, str: "0"}
