"""What is read out of a stored slice: the grid and its holes, marks, triangles, the self-check's faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import StorageError, UsageError
from landscape.results.reading import StoredLike, values

# Further fields of a cell, in the order in which panels show them.
METRICS = {
    "accuracy": "accuracy",
    "gradient_norm": "norm of the gradient",
    "lambda_max": "largest eigenvalue",
    "lambda_min": "smallest eigenvalue",
}
WIDE = 30.0  # positive numbers whose extremes are further apart than this are shown by decades


@dataclass(frozen=True)
class Grid:
    """Cells of a slice. `loss` [y, x] is NaN in every hole: not computed (`missing`), or NaN or Inf (`broken`)."""

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    missing: np.ndarray
    broken: np.ndarray
    line: bool

    @property
    def holes(self) -> int:
        """Number of cells without a finite loss."""
        return int(self.missing.sum() + self.broken.sum())


@dataclass(frozen=True)
class Marks:
    """Other checkpoints, in order: where they are projected to, how far off they lie, and both losses there."""

    name: np.ndarray
    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    loss: np.ndarray
    surface_loss: np.ndarray


def grid_of(result: StoredLike) -> Grid:
    """The cells of a stored slice. Raises StorageError where fields are absent, UsageError for a surface of one row."""
    x, y, loss, done = (values(result, name) for name in ("x", "y", "loss", "done"))
    if x is None or y is None or loss is None or done is None:
        raise StorageError(
            f"the slice of {result.provenance.checkpoint} lacks its axes, loss or done",
            "repeat the command that wrote it with --force",
        )
    line = bool(result.attributes.get("line", len(y) == 1))
    if not line and min(loss.shape) < 2:
        raise UsageError(
            f"the grid of {result.provenance.checkpoint} has {len(x)} x {len(y)} points; a surface has at least 2 "
            "each way",
            "repeat landscape slice with more --points",
        )
    done = done.astype(bool)
    finite = np.isfinite(loss)
    return Grid(x, y, masked(loss, done), ~done, done & ~finite, line)


def masked(field: np.ndarray, done: np.ndarray) -> np.ndarray:
    """`field` [..., y, x] in float64 with NaN where it is not done or not finite."""
    return np.where(done & np.isfinite(field), field, np.nan).astype(np.float64)


def marks_of(result: StoredLike) -> Marks | None:
    """The projected checkpoints, None where there are none."""
    name = values(result, "mark")
    if name is None or name.size == 0:
        return None
    unknown = np.full(name.shape, np.nan)
    fields = ("mark_x", "mark_y", "mark_distance", "mark_loss", "mark_surface_loss")
    found = [values(result, field) for field in fields]
    return Marks(name, *(unknown if field is None else field.astype(float) for field in found))


def is_wide(*fields: np.ndarray) -> bool:
    """Whether these numbers want decades: none negative, and the positive ones more than `WIDE` apart."""
    every = np.concatenate([np.ravel(field) for field in fields])
    every = every[np.isfinite(every)]
    positive = every[every > 0]
    return bool(positive.size and positive.size >= 0.5 * every.size and every.min() >= 0) and bool(
        positive.max() > WIDE * positive.min()
    )


def faults_of(result: StoredLike) -> list[str]:
    """What the slice's self-check found wrong; nothing where the file carries no self-check."""
    from landscape.results.store import StoredResult, restore
    from landscape.slices.result import Sliced

    carried = StoredResult("slice", dict(result.arrays), dict(result.attributes), result.provenance)
    try:
        return restore(carried, Sliced).faults
    except StorageError:  # a surface of another program
        return []


def inside(marks: Marks, grid: Grid) -> np.ndarray:
    """Which marks are projected into the grid's rectangle."""
    slack = 1e-9
    within = (marks.x >= grid.x.min() - slack) & (marks.x <= grid.x.max() + slack)
    if grid.line:
        return np.asarray(within)
    return np.asarray(within & (marks.y >= grid.y.min() - slack) & (marks.y <= grid.y.max() + slack))


def triangles(there: np.ndarray) -> np.ndarray:
    """Flat indices [n, 3] of triangles that cover the grid wherever all three corners are `there` [y, x].

    A square with all corners gives two, with three corners one: holes stay open and nothing reaches across them.
    """
    index = np.arange(there.size).reshape(there.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    flat = there.ravel()
    full = flat[a] & flat[b] & flat[c] & flat[d]
    found: list[np.ndarray] = []
    for corners, where in (
        ((a, b, c), full),
        ((a, c, d), full),
        ((a, b, c), ~full & ~flat[d]),
        ((a, c, d), ~full & ~flat[b]),
        ((a, b, d), ~full & ~flat[c]),
        ((b, c, d), ~full & ~flat[a]),
    ):
        chosen = where & flat[corners[0]] & flat[corners[1]] & flat[corners[2]]
        found.append(np.stack([corner[chosen] for corner in corners], axis=1))
    every = np.concatenate(found)
    return every[np.lexsort((every[:, 2], every[:, 1], every[:, 0]))]


def one_shape(results: Sequence[StoredLike]) -> list[Grid]:
    """The grids of all results; refuses lines among planes, which share no figure."""
    grids = [grid_of(result) for result in results]
    if len({grid.line for grid in grids}) > 1:
        lines = sum(grid.line for grid in grids)
        raise UsageError(
            f"{lines} of {len(grids)} slices are lines, the others planes; they share no figure",
            "plot the lines and the planes apart",
        )
    return grids
