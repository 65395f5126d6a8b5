"""What a direction of a slice is, what it may look at when it is made, and how directions are named in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from torch import Tensor

from landscape.errors import UsageError
from landscape.problem.objective import Objective

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

O = TypeVar("O", bound="DataclassInstance")  # noqa: E741
# Names of options after a comma; where a path may hold commas and equal signs itself, those of the kind only.
NAME, PATHS = r"\w+", {"between": "to|third", "file": "path"}
KINDS = ("random", "hessian", "gradient", "pca", "between", "file")


@dataclass(frozen=True)
class Direction:
    """One axis of a slice.

    Attributes:
        label: what it is, for axes. vector: [P]; coordinates are multiples of it.
        low, high: the range to draw; None: chosen from slope and curvature.
        explained: share of a trajectory's squared distances; None where there is none.
    """

    label: str
    vector: Tensor
    low: float | None = None
    high: float | None = None
    explained: float | None = None


@dataclass(frozen=True)
class Eigenvectors:
    """Eigenpairs of the Hessian at the checkpoint from an earlier result: values and residuals [k], vectors [k, P];
    `top` descends, `bottom` ascends."""

    top: tuple[Tensor, Tensor, Tensor] | None = None
    bottom: tuple[Tensor, Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Around:
    """What directions may look at.

    Attributes:
        objective: the loss at the checkpoint. seed, plane, number: of random choices; planes differ in the
            second, joined directions of one kind in the third.
        points: θ [P] of other checkpoints by the word that named them.
        trajectory: θ of checkpoints in order, by name.
        tensors: of each file of directions, one mapping of tensors by parameter name per direction.
        eigenvectors: see there. memory: limit in bytes.
        notes: sentences for the user; directions add theirs.
    """

    objective: Objective
    seed: int = 0
    plane: int = 0
    number: int = 0
    points: Mapping[str, Tensor] = field(default_factory=dict)
    trajectory: Sequence[tuple[str, Tensor]] = ()
    tensors: Mapping[str, Sequence[Mapping[str, Tensor]]] = field(default_factory=dict)
    eigenvectors: Eigenvectors | None = None
    memory: int | None = None
    notes: list[str] = field(default_factory=list)


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
