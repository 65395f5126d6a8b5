"""What figures and exports read out of a slice: the grid and its holes, marks, metrics, words, triangles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import StorageError, UsageError
from landscape.figures.quantities import SpectrumLike, number, scalar, values

# Further fields of a cell, in the order in which panels show them.
METRICS = {
    "accuracy": "accuracy",
    "gradient_norm": "norm of the gradient",
    "lambda_max": "largest eigenvalue",
    "lambda_min": "smallest eigenvalue",
}
SEPARATOR = "   ·   "
UNIT = "1 = distance "
Tell = Callable[[float], str]  # how a number is written: mathtext in figures, plain in a page
NEGLIGIBLE = 1e-6  # of the distance within the plane: rounding of a projection
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


def grid_of(result: SpectrumLike) -> Grid:
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


def metrics_of(result: SpectrumLike, grid: Grid) -> list[tuple[str, np.ndarray]]:
    """(title, cells) of what was computed besides the loss, and how far apart quantiles over several planes are."""
    found = [(words, values(result, name)) for name, words in METRICS.items()]
    shown = [(words, masked(field, ~grid.missing)) for words, field in found if field is not None]
    shares, quantiles = values(result, "quantile"), values(result, "loss_quantile")
    if shares is not None and quantiles is not None and len(shares) > 1 and not grid.line:
        low, high = int(np.argmin(shares)), int(np.argmax(shares))
        spread = masked(quantiles[high], ~grid.missing) - masked(quantiles[low], ~grid.missing)
        shown.append((f"spread over planes: {percent(shares[high])} − {percent(shares[low])}", spread))
    return shown


def marks_of(result: SpectrumLike) -> Marks | None:
    """The projected checkpoints, None where there are none."""
    name = values(result, "mark")
    if name is None or name.size == 0:
        return None
    unknown = np.full(name.shape, np.nan)
    fields = ("mark_x", "mark_y", "mark_distance", "mark_loss", "mark_surface_loss")
    found = [values(result, field) for field in fields]
    return Marks(name, *(unknown if field is None else field.astype(float) for field in found))


def axis_labels(result: SpectrumLike, tell: Tell = number) -> list[str]:
    """What each direction is, the share of variance it explains, and the distance that one unit stands for."""
    units = unit_labels(result, tell)
    names = direction_names(result)
    return [SEPARATOR.join(filter(None, pair)) for pair in zip(names, units, strict=True)]


def direction_names(result: SpectrumLike) -> list[str]:
    """What each direction is, with the share of a trajectory's variance that it explains."""
    texts, shares = (values(result, n) for n in ("direction", "variance_explained"))
    if texts is None:
        return ["first direction", "second direction"]
    names = [escaped(str(text)) for text in texts]
    if shares is None:
        return names
    told = zip(names, shares.tolist(), strict=True)
    return [name if "%" in name else f"{name}{SEPARATOR}{percent(share)} of the variance" for name, share in told]


def unit_labels(result: SpectrumLike, tell: Tell = number) -> list[str]:
    """The distance that one unit of each axis stands for; empty where it is unknown."""
    norms = values(result, "direction_norm")
    if norms is None:
        return ["", ""]
    return [f"{UNIT}{tell(float(f'{norm:.3g}'))}" for norm in norms.tolist()]  # rounded: 0.9999999 is 1


def escaped(text: str) -> str:
    """No dollar of a user's text starts mathtext."""
    return text.replace("$", r"\$")


def percent(share: float) -> str:
    """`41.2 %`; as many digits as tell it from 0 and 100."""
    return f"{100 * share:.3g} %"


def is_wide(*fields: np.ndarray) -> bool:
    """Whether these numbers want decades: none negative, and the positive ones more than `WIDE` apart."""
    every = np.concatenate([np.ravel(field) for field in fields])
    every = every[np.isfinite(every)]
    positive = every[every > 0]
    return bool(positive.size and positive.size >= 0.5 * every.size and every.min() >= 0) and bool(
        positive.max() > WIDE * positive.min()
    )


def faults_of(result: SpectrumLike) -> list[str]:
    """What the slice's self-check found wrong; nothing where the file carries no self-check."""
    from landscape.result_slices import Sliced
    from landscape.store import StoredResult, restore

    carried = StoredResult("slice", dict(result.arrays), dict(result.attributes), result.provenance)
    try:
        return restore(carried, Sliced).faults
    except StorageError:  # a surface of another program
        return []


def remarks(result: SpectrumLike, grid: Grid, tell: Tell = number) -> list[str]:
    """What a reader must know beside the picture: holes, several planes, marks off the plane, the barrier."""
    centre = scalar(result, "loss_centre")
    said = [f"loss {tell(centre)} at the checkpoint"] if math.isfinite(centre) else []
    if grid.missing.any():
        said.append(f"{int(grid.missing.sum())} of {grid.loss.size} cells not computed")
    if grid.broken.any():
        said.append(f"the loss is NaN or Inf in {int(grid.broken.sum())} of {grid.loss.size} cells")
    every = values(result, "plane_loss")
    if every is not None:
        said.append(f"median of {len(every)} random {'lines' if grid.line else 'planes'}")
    marks = marks_of(result)
    if marks is not None:
        said.append(_about(marks, _reach(result, marks), grid, tell))
    barrier, place = scalar(result, "barrier"), scalar(result, "barrier_at")
    if math.isfinite(barrier):
        said.append(f"barrier {tell(barrier)} at {place:.3g}, among grid points and so a lower bound")
    elif not math.isnan(barrier):
        said.append(f"no finite barrier: the loss is NaN or Inf at {place:.3g}")
    return said


def _about(marks: Marks, reach: float, grid: Grid, tell: Tell) -> str:
    """One sentence on how far the marks are to be trusted as points of the picture; `reach`: their largest distance
    from the checkpoint within it."""
    many = len(marks.name) > 1
    words = f"the {len(marks.name)} marks lie" if many else "the mark lies"
    where = "line" if grid.line else "plane"
    off = float(np.nanmax(marks.distance)) if np.isfinite(marks.distance).any() else math.nan
    if off <= NEGLIGIBLE * reach:
        words += f" {'on' if grid.line else 'in'} the {where}"
    elif math.isfinite(off):
        words += f"{' up to' if many else ''} {tell(off)} off the {where}"
        words += f" and{' up to' if many else ''} {tell(reach)} away within it" if math.isfinite(reach) else ""
    gap = np.abs(marks.loss - marks.surface_loss)
    if np.isfinite(gap).any() and off > NEGLIGIBLE * reach:
        curve, most = "curve" if grid.line else "surface", float(gap[np.isfinite(gap)].max())
        words += f"; true losses differ from the {curve}'s by up to {tell(most)}"
    outside = int((~inside(marks, grid)).sum())
    return words + (f"; {outside} outside the grid" if outside else "")


def _reach(result: SpectrumLike, marks: Marks) -> float:
    """Largest distance of a projected mark from the checkpoint; NaN where the lengths of the directions are unknown."""
    norms, cosine = values(result, "direction_norm"), scalar(result, "cosine")
    if norms is None:
        return math.nan
    across, up = marks.x * norms[0], marks.y * (norms[1] if len(norms) > 1 else 0.0)
    mixed = 2 * across * up * cosine if math.isfinite(cosine) else 0.0
    return float(np.sqrt(np.max(across**2 + up**2 + mixed)))


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


def one_shape(results: Sequence[SpectrumLike]) -> list[Grid]:
    """The grids of all results; refuses lines among planes, which share no figure."""
    grids = [grid_of(result) for result in results]
    if len({grid.line for grid in grids}) > 1:
        lines = sum(grid.line for grid in grids)
        raise UsageError(
            f"{lines} of {len(grids)} slices are lines, the others planes; they share no figure",
            "plot the lines and the planes apart",
        )
    return grids
