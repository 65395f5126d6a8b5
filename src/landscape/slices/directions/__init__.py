"""Directions of slices: one file per kind, each with `Options` and `make(around, options, count)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from landscape.errors import UsageError
from landscape.slices.direction_words import Spec, options_of
from landscape.slices.directions import between, file, gradient, hessian, pca, random
from landscape.slices.directions.direction import Around, Direction

# Two directions whose cosine is this near to ±1 span no plane.
PARALLEL = 1e-9


class Kind(Protocol):
    """What every file here holds."""

    Options: type[Any]

    def make(self, around: Around, options: Any, count: int | None) -> list[Direction]:
        """`count` directions, or as many as the kind gives by itself.

        Raises:
            UsageError: options that make no sense here, or a direction of zero length.
        """
        ...


TABLE: dict[str, Any] = {
    "random": random,
    "hessian": hessian,
    "gradient": gradient,
    "pca": pca,
    "between": between,
    "file": file,
}


def make_directions(specs: Sequence[Spec], around: Around, axes: int | None) -> list[Direction]:
    """One or two directions, as the specs say.

    Args:
        axes: 1 for a line, 2 for a plane, None: what the specs give by themselves.

    Raises:
        UsageError: other numbers of directions than `axes`, one of zero length, or two that are parallel.
    """
    found = _made(specs, around, axes)
    named = "+".join(spec.kind for spec in specs)
    if not 1 <= len(found) <= 2 or (axes is not None and len(found) != axes):
        wanted = "one or two" if axes is None else "one" if axes == 1 else "two"
        raise UsageError(
            f"--dirs {named} gives {len(found)} directions, and {wanted} are needed",
            "join two kinds with + for a plane, or give --points 51 for a line and --points 41x41 for a plane",
        )
    zero, parallel = _flaws(found)
    if zero is not None:
        raise UsageError(f"the direction {zero!r} has length zero", _remedy(specs, around, axes))
    if parallel:
        raise UsageError(f"the two directions of --dirs {named} are parallel", _remedy(specs, around, axes))
    return found


def _made(specs: Sequence[Spec], around: Around, axes: int | None) -> list[Direction]:
    count = axes if len(specs) == 1 else 1
    found: list[Direction] = []
    for number, spec in enumerate(specs):
        kind = TABLE[spec.kind]
        found += kind.make(replace(around, number=number), options_of(kind.Options, spec), count)
    return found


def _flaws(found: Sequence[Direction]) -> tuple[str | None, bool]:
    """The label of a direction of zero length, if there is one; whether two are parallel."""
    zero = next((d.label for d in found if not float(d.vector.norm()) > 0), None)
    if len(found) != 2 or zero is not None:
        return zero, False
    a, b = (d.vector.double() for d in found)
    return None, abs(float(a @ b)) > (1 - PARALLEL) * float(a.norm() * b.norm())


def _remedy(specs: Sequence[Spec], around: Around, axes: int | None) -> str:
    """What to write instead. Normalised random directions are zero where all weights of a group are, and where entries
    are ignored; of what that leaves one number may be left. A way out is tried before it is named."""
    for freer in ({"norm": "none"}, {"ignore": "none"}, {"norm": "none", "ignore": "none"}):
        tried = [replace(s, options={**s.options, **freer}) if s.kind == "random" else s for s in specs]
        if tried != list(specs) and _flaws(_made(tried, around, axes)) == (None, False):
            return f"tensors that are zero or ignored stay as they are; write --dirs {'+'.join(map(_written, tried))}"
    if around.objective.layout.total == 1:
        return "there is one parameter only: draw a line, --dirs random:norm=none,ignore=none --points 51"
    return "choose different ones, such as --dirs random:norm=none,ignore=none"


def _written(spec: Spec) -> str:
    options = ",".join(f"{name}={value}" for name, value in spec.options.items())
    return f"{spec.kind}:{options}" if options else spec.kind
