"""The line to another checkpoint, or the plane through two others (Garipov et al. 2018, §3)."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.errors import UsageError
from landscape.slices.directions.direction import Around, Direction

MARGIN = 0.25


@dataclass(frozen=True)
class Options:
    """to: the other checkpoint, at 1 on the first axis. third: one that spans the plane with the two."""

    to: str
    third: str = ""


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """θ' − θ; with a third checkpoint also the part of θ'' − θ orthogonal to it, scaled to the same length."""
    theta = around.objective.point()
    for name in filter(None, (options.to, options.third)):
        if name not in around.points:
            raise UsageError(f"no checkpoint {name!r} is given", "beside=Beside(points={name: problem}) in Python")
    first = (around.points[options.to].to(theta) - theta).double()
    found = [Direction(f"to {options.to}", first.to(theta), -MARGIN, 1 + MARGIN)]
    size = float(first.norm())
    if size == 0:
        raise UsageError(f"{options.to} has the same parameters as the checkpoint", "name another one with to=")
    if not options.third:
        return found
    other = (around.points[options.third].to(theta) - theta).double()
    along = float(other @ first) / size**2
    rest = other - along * first
    height = float(rest.norm()) / size
    if height < 1e-9:
        raise UsageError(f"{options.third} lies on the line through the other two", "name a third one off that line")
    second = rest / height
    low, high = min(0.0, along), max(1.0, along)
    room = MARGIN * (high - low)
    return [
        Direction(found[0].label, found[0].vector, low - room, high + room),
        Direction(
            f"towards {options.third}", second.to(theta), -MARGIN * max(1.0, height), height + MARGIN * max(1.0, height)
        ),
    ]
