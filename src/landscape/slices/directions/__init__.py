"""Directions of slices: one file per kind, each with `Options` and `make(around, options, count)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from landscape.errors import UsageError
from landscape.slices.directions import between, file, gradient, hessian, pca, random
from landscape.slices.directions.direction import Around, Direction, Spec, options_of

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
        UsageError: other numbers of directions than `axes`, or one of zero length.
    """
    count = axes if len(specs) == 1 else 1
    found: list[Direction] = []
    for number, spec in enumerate(specs):
        kind = TABLE[spec.kind]
        found += kind.make(replace(around, number=number), options_of(kind.Options, spec), count)
    named = "+".join(spec.kind for spec in specs)
    if not 1 <= len(found) <= 2 or (axes is not None and len(found) != axes):
        wanted = "one or two" if axes is None else "one" if axes == 1 else "two"
        raise UsageError(
            f"--dirs {named} gives {len(found)} directions, and {wanted} are needed",
            "join two kinds with + for a plane, or give --points 51 for a line and --points 41x41 for a plane",
        )
    for d in found:
        if not float(d.vector.norm()) > 0:
            raise UsageError(
                f"the direction {d.label!r} has length zero",
                "filter-normalised directions are zero where all weights are; try norm=none",
            )
    if len(found) == 2:
        a, b = (d.vector.double() for d in found)
        if abs(float(a @ b)) > (1 - PARALLEL) * float(a.norm() * b.norm()):
            raise UsageError(f"the two directions of --dirs {named} are parallel", "choose two different ones")
    return found
