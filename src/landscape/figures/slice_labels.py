"""The words about a slice in its figures: titles of panels, axes and their units, remarks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from landscape.figures.values import number
from landscape.results.reading import StoredLike, scalar, values
from landscape.slices.stored import METRICS, Grid, Marks, inside, marks_of, masked

SEPARATOR = "   ·   "
UNIT = "1 = distance "
Tell = Callable[[float], str]  # how a number is written: mathtext in figures, plain in a page
NEGLIGIBLE = 1e-6  # of the distance within the plane: rounding of a projection


def metrics_of(result: StoredLike, grid: Grid) -> list[tuple[str, np.ndarray]]:
    """(title, cells) of what was computed besides the loss, and how far apart quantiles over several planes are."""
    found = [(words, values(result, name)) for name, words in METRICS.items()]
    shown = [(words, masked(field, ~grid.missing)) for words, field in found if field is not None]
    shares, quantiles = values(result, "quantile"), values(result, "loss_quantile")
    if shares is not None and quantiles is not None and len(shares) > 1 and not grid.line:
        low, high = int(np.argmin(shares)), int(np.argmax(shares))
        spread = masked(quantiles[high], ~grid.missing) - masked(quantiles[low], ~grid.missing)
        shown.append((f"spread over planes: {percent(shares[high])} − {percent(shares[low])}", spread))
    return shown


def axis_labels(result: StoredLike, tell: Tell = number) -> list[str]:
    """What each direction is, the share of variance it explains, and the distance that one unit stands for."""
    units = unit_labels(result, tell)
    names = direction_names(result)
    return [SEPARATOR.join(filter(None, pair)) for pair in zip(names, units, strict=True)]


def direction_names(result: StoredLike) -> list[str]:
    """What each direction is, with the share of a trajectory's variance that it explains."""
    texts, shares = (values(result, n) for n in ("direction", "variance_explained"))
    if texts is None:
        return ["first direction", "second direction"]
    names = [escaped(str(text)) for text in texts]
    if shares is None:
        return names
    told = zip(names, shares.tolist(), strict=True)
    return [name if "%" in name else f"{name}{SEPARATOR}{percent(share)} of the variance" for name, share in told]


def unit_labels(result: StoredLike, tell: Tell = number) -> list[str]:
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


def remarks(result: StoredLike, grid: Grid, tell: Tell = number) -> list[str]:
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


def _reach(result: StoredLike, marks: Marks) -> float:
    """Largest distance of a projected mark from the checkpoint; NaN where the lengths of the directions are unknown."""
    norms, cosine = values(result, "direction_norm"), scalar(result, "cosine")
    if norms is None:
        return math.nan
    across, up = marks.x * norms[0], marks.y * (norms[1] if len(norms) > 1 else 0.0)
    mixed = 2 * across * up * cosine if math.isfinite(cosine) else 0.0
    return float(np.sqrt(np.max(across**2 + up**2 + mixed)))
