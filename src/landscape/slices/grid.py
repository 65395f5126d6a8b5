"""A slice, step by step: its frame (directions, ranges, checks), its cells in any order and number, the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.slices.cells import CellPlan, Surface, cell_values, columns
from landscape.slices.directions.direction import Direction

# Shares of the planes at which bands are drawn.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# A default range ends where the curvature has raised the loss by this many times itself, or by this much.
RISE, LEAST_LOSS = 4.0, 1e-3


@dataclass(frozen=True)
class Grid:
    """The cells of a slice: x [nx], y [ny] (0 alone for a line), in a number of planes.

    Cells are numbered plane by plane, row by row.
    """

    x: np.ndarray
    y: np.ndarray
    line: bool
    planes: int = 1

    @property
    def each(self) -> int:
        """Cells of a plane."""
        return len(self.x) * len(self.y)

    @property
    def cells(self) -> int:
        """Cells of all planes."""
        return self.each * self.planes

    def point(self, cell: int) -> tuple[float, ...]:
        """Coordinates of a cell within its plane."""
        row, column = divmod(cell % self.each, len(self.x))
        return (float(self.x[column]),) if self.line else (float(self.x[column]), float(self.y[row]))


def axis_of(low: float, high: float, points: int) -> np.ndarray:
    """Equal steps from low to high; exactly 0 where one of them is meant to be."""
    made = low + (high - low) * np.arange(points) / (points - 1)
    made[np.abs(made) < 1e-9 * (high - low)] = 0.0
    return made


def default_reach(value: float, slope: float, curvature: float, norm: float) -> float:
    """Half of a range along a unit direction: to where the quadratic model has risen by `RISE` losses, or twice
    to its minimum; at most the norm of θ."""
    if abs(curvature) < 1e-12:
        return 0.5 * max(norm, 1e-6)
    rise = math.sqrt(2 * RISE * max(abs(value), LEAST_LOSS) / abs(curvature))
    return min(max(norm, 1e-6), max(rise, 2 * abs(slope / curvature)))


@dataclass
class Cells:
    """What has been computed: values [cells, columns], and which of them are there."""

    values: Tensor
    done: Tensor

    @classmethod
    def empty(cls, grid: Grid, metrics: Sequence[str]) -> Cells:
        """None of them."""
        shape = (grid.cells, len(columns(metrics)))
        return cls(torch.full(shape, torch.nan, dtype=torch.float64), torch.zeros(grid.cells, dtype=torch.bool))

    def take(self, other: Cells) -> None:
        """What another process has computed."""
        new = other.done & ~self.done
        self.values[new], self.done[new] = other.values[new], True

    def as_plain(self) -> dict[str, Tensor]:
        """Tensors; `Cells(**plain)` makes it again."""
        return {"values": self.values.clone(), "done": self.done.clone()}


def tiles(grid: Grid, plan: CellPlan, share: tuple[int, int] = (0, 1)) -> Iterator[range]:
    """Cells that go through one launch, always the same ones together; every n-th from the i-th for share (i, n)."""
    number = 0
    for plane in range(grid.planes):
        start = plane * grid.each
        for first in range(start, start + grid.each, plan.points):
            if number % share[1] == share[0]:
                yield range(first, min(first + plan.points, start + grid.each))
            number += 1


def fill(
    cells: Cells,
    grid: Grid,
    plan: CellPlan,
    surface_of: Callable[[int], Surface],
    each: Callable[[int], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Compute what is missing.

    Args:
        surface_of: the surface of a plane, already cut as the plan says. each: called after every launch with the
            number of cells that are there.
    """
    plane, surface = -1, None
    for tile in tiles(grid, plan, share):
        index = torch.arange(tile.start, tile.stop)
        if bool(cells.done[index].all()):
            continue
        if tile.start // grid.each != plane or surface is None:
            plane = tile.start // grid.each
            surface = surface_of(plane)
        cells.values[index] = cell_values(surface, plan, [grid.point(c) for c in tile])
        cells.done[index] = True
        each(int(cells.done.sum()))


def cell_fields(cells: Cells, grid: Grid, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """The fields of a result that come from its cells; over several planes medians and quantiles of the loss."""
    shape = (grid.planes, len(grid.y), len(grid.x))
    done = cells.done.reshape(shape).numpy()
    found: dict[str, np.ndarray] = {"done": np.asarray(done.all(0))}
    for i, name in enumerate(columns(metrics)):
        planes = cells.values[:, i].reshape(shape).numpy()
        found[name] = planes[0] if grid.planes == 1 else _quantiles(planes, done, (0.5,))[0]
        if name == "loss" and grid.planes > 1:
            found["plane_loss"] = planes
            found["quantile"] = np.array(QUANTILES)
            found["loss_quantile"] = _quantiles(planes, done, QUANTILES)
    return found


def _quantiles(planes: np.ndarray, done: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Quantiles [shares, y, x] over the planes; NaN counts as larger than everything, missing cells give NaN."""
    high = np.where(np.isnan(planes), np.inf, planes)
    made = np.quantile(high, shares, axis=0, method="inverted_cdf")
    return np.where(done.all(0), made, np.nan)


# ---- other checkpoints -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marks:
    """Other checkpoints seen from a slice: names, coordinates [M, A], distance from the slice, true loss, and the
    surface's loss where they are projected to [M]."""

    names: list[str] = field(default_factory=list)
    coordinates: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    distance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    surface_loss: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def fields(self) -> dict[str, Any]:
        """The fields of a result; {} without marks."""
        if not self.names:
            return {}
        second = self.coordinates[:, 1] if self.coordinates.shape[1] > 1 else np.zeros(len(self.names))
        return {
            "mark": np.array(self.names),
            "mark_x": self.coordinates[:, 0],
            "mark_y": second,
            "mark_distance": self.distance,
            "mark_loss": self.loss,
            "mark_surface_loss": self.surface_loss,
        }


def project(start: Tensor, directions: Tensor, points: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [M, A] of the nearest point of the slice, by least squares, and the distance to it [M]."""
    d = directions.double()
    gram = d @ d.T
    coordinates, distances = [], []
    for theta in points.values():
        moved = theta.to(start).double() - start.double()
        found = torch.linalg.solve(gram, d @ moved)
        coordinates.append(found.cpu().numpy())
        distances.append(float((moved - found @ d).norm()))
    return np.array(coordinates).reshape(len(points), len(d)), np.array(distances)


def barrier(grid: Grid, loss: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
    """max over [0, 1] of L(t) − ((1 − t) L(0) + t L(1)), at grid points (Entezari et al. 2021, Definition 2.1), and
    where it is; 0 at an end where the line lies nowhere above."""
    inside = (grid.x >= 0) & (grid.x <= 1)
    t = np.concatenate([[0.0], grid.x[inside], [1.0]])
    above = np.concatenate([[0.0], loss[inside] - ((1 - t[1:-1]) * ends[0] + t[1:-1] * ends[1]), [0.0]])
    above = np.where(np.isnan(above), np.inf, above)
    best = int(np.argmax(above))
    return float(above[best]), float(t[best])


def as_plain(directions: Sequence[Direction]) -> dict[str, Any]:
    """Directions in plain types and one tensor."""
    names = ("label", "low", "high", "explained")
    plain: dict[str, Any] = {name: [getattr(d, name) for d in directions] for name in names}
    return {**plain, "vectors": torch.stack([d.vector for d in directions]).cpu()}


def from_plain(values: Mapping[str, Any], like: Tensor) -> list[Direction]:
    """Directions again."""
    rows = zip(values["label"], values["vectors"], values["low"], values["high"], values["explained"], strict=True)
    return [Direction(label, vector.to(like), low, high, explained) for label, vector, low, high, explained in rows]
