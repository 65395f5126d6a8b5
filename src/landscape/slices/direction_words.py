"""How directions of slices are named in words: "random:norm=filter,seed=3", two of them joined with +."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from landscape.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

O = TypeVar("O", bound="DataclassInstance")  # noqa: E741
# Names of options after a comma; where a path may hold commas and equal signs itself, those of the kind only.
NAME, PATHS = r"\w+", {"between": "to|third", "file": "path"}
KINDS = ("random", "hessian", "gradient", "pca", "between", "file")


@dataclass(frozen=True)
class Spec:
    """One kind of direction with its options as they were typed."""

    kind: str
    options: Mapping[str, str]


def parse_directions(text: str) -> list[Spec]:
    """ "random:norm=filter,seed=3" as one spec, "hessian:top=1+hessian:bottom=1" as two.

    Raises:
        UsageError: an unknown kind, or an option without a value.
    """
    found = []
    for part in re.split(rf"\+(?=(?:{'|'.join(KINDS)})(?:[:+]|$))", text):
        kind, colon, rest = part.partition(":")
        if kind not in KINDS:
            raise UsageError(
                f"--dirs {text!r}: there is no kind of direction {kind!r}",
                f"choose from {', '.join(KINDS)}; two are joined with +",
            )
        options: dict[str, str] = {}
        for pair in re.split(rf",(?=(?:{PATHS.get(kind, NAME)})=)", rest) if colon else ():
            name, equals, value = pair.partition("=")
            if not equals or not value or name in options:
                raise UsageError(f"--dirs {text!r}: {pair!r} is not OPTION=VALUE", f"such as {kind}:{_example(kind)}")
            options[name] = value
        found.append(Spec(kind, options))
    return found


def options_of(kind: type[O], spec: Spec) -> O:
    """The options of a kind of direction from their words.

    Raises:
        UsageError: one that does not exist, is missing, or is not what it should be.
    """
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for name, text in spec.options.items():
        if name not in known:
            raise UsageError(
                f"{spec.kind} directions have no option {name!r}", f"they have {', '.join(known) or 'none'}"
            )
        try:
            values[name] = int(text) if hints[name] in (int, int | None) else text
        except ValueError as error:
            raise UsageError(f"--dirs {spec.kind}:{name}={text} is not a number", f"such as {name}=1") from error
    for f in fields(kind):
        if f.default is MISSING and f.name not in values:
            raise UsageError(
                f"{spec.kind} directions need {f.name}", f"such as --dirs {spec.kind}:{_example(spec.kind)}"
            )
    return kind(**values)


def _example(kind: str) -> str:
    examples = {
        "random": "norm=filter,seed=3",
        "hessian": "top=1",
        "between": "to=other.pt",
        "file": "path=directions.pt",
    }
    return examples.get(kind, "option=value")
