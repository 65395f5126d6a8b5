"""What figures read out of a result: scalars, pairs, intervals, the density per decade; and their text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import UsageError
from landscape.figures.transform import from_axis, stretch, to_axis
from landscape.results.reading import HasArrays, StoredLike, scalar, values

if TYPE_CHECKING:
    pass

OPERATORS = {"hessian": "Hessian", "ggn": "Gauss–Newton", "residual": "residual H − GGN"}


@dataclass(frozen=True)
class Pairs:
    """One end of the spectrum: finite Ritz values with their residuals."""

    value: np.ndarray
    residual: np.ndarray
    converged: np.ndarray
    deflated: np.ndarray


@dataclass(frozen=True)
class Curve:
    """Eigenvalues per decade of the axis; `low`, `high` is the 95 % interval, None where the count is exact."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def pairs(result: HasArrays, end: str) -> Pairs:
    """The finite eigenvalues at one end, "top" or "bottom"."""
    value = values(result, f"{end}_value")
    value = np.zeros(0) if value is None else np.atleast_1d(value).astype(float)
    keep = np.isfinite(value)

    def beside(name: str, default: float) -> np.ndarray:
        found = values(result, name)
        return (np.full(value.shape, default) if found is None else np.atleast_1d(found))[keep]

    return Pairs(
        value=value[keep],
        residual=np.nan_to_num(beside(f"{end}_residual", 0.0).astype(float), nan=0.0, posinf=0.0),
        converged=beside(f"{end}_converged", 0.0).astype(bool),
        deflated=beside("deflated" if end == "top" else "deflated_bottom", 0.0).astype(bool),
    )


def smoothed(result: HasArrays) -> str:
    """How the density was made: "cells", "gaussian" of one width on request, or "asinh" in files of older versions,
    which smoothed on a scale that they did not store."""
    kernel = values(result, "kernel_width")
    if kernel is None:
        return "cells"
    return "gaussian" if kernel.size and np.ptp(kernel) == 0 else "asinh"


def zero_cell(result: HasArrays) -> tuple[float, float] | None:
    """The cell of the density around zero, inside of which nothing is resolved; None where there is none."""
    grid, density = values(result, "grid"), values(result, "density")
    if grid is None or density is None or smoothed(result) != "cells" or values(result, "eigenvalues") is not None:
        return None
    holds = np.flatnonzero((grid[::2] <= 0) & (grid[1::2] >= 0) & np.isfinite(density[::2]))
    return (float(grid[2 * holds[0]]), float(grid[2 * holds[-1] + 1])) if holds.size else None


def _kernel(result: HasArrays) -> np.ndarray | None:
    """Positions and kernel widths [2, grid] of a smoothed density; None where all eigenvalues are known."""
    grid, kernel = values(result, "grid"), values(result, "kernel_width")
    known = values(result, "eigenvalues") is not None and smoothed(result) != "gaussian"
    if grid is None or kernel is None or known:
        return None
    keep = np.isfinite(grid) & np.isfinite(kernel) & (kernel > 0)
    return np.stack([grid[keep], kernel[keep]]) if keep.any() else None


def resolution(result: HasArrays) -> float:
    """|eigenvalue| below which the figure cannot tell a sign: tau, or the density's cell around zero, or twice its
    kernel, if that is wider."""
    tau, kernel, cell = scalar(result, "tau_absolute"), _kernel(result), zero_cell(result)
    widths = [tau] if math.isfinite(tau) else []
    if cell is not None:
        widths.append(max(-cell[0], cell[1]))
    if kernel is not None:
        widths.append(2 * float(kernel[1].min()))
    return max(widths, default=0.0)


def linear_width(result: HasArrays) -> float:
    """Where the axis turns from linear to decades, so that noise around zero is not magnified.

    For a density in cells it is where the one around zero ends; for a smoothed one the point at which the narrowest
    kernel turns from constant to proportional. Where all eigenvalues are known it is tau.
    """
    tau, kernel, cell = scalar(result, "tau_absolute"), _kernel(result), zero_cell(result)
    widths = [tau] if math.isfinite(tau) else []
    if cell is not None:
        widths.append(max(-cell[0], cell[1]))
    if kernel is not None:
        far = int(np.argmax(np.abs(kernel[0])))
        widths.append(float(kernel[1].min() * np.abs(kernel[0, far]) / kernel[1, far]))
    found = max(widths, default=0.0)
    if found > 0:
        return found
    largest = _largest(result)
    return 1e-6 * largest if largest > 0 else 1.0


def _largest(result: HasArrays) -> float:
    return max(float(np.abs(pairs(result, end).value).max(initial=0.0)) for end in ("top", "bottom"))


def shared_width(results: Sequence[HasArrays]) -> float:
    """`linear_width` of an axis for several: that of their middle, but none is drawn finer than it is resolved, which
    would turn its cell around zero, a peak, into a dip between two logarithmic sides."""
    unresolved = [resolution(r) for r in results if zero_cell(r) is not None and _largest(r) > 0]
    return max([float(np.median([linear_width(r) for r in results])), *unresolved])


def has_density(result: HasArrays) -> bool:
    """Whether there is something to draw a density from."""
    eigenvalues, grid, density = (values(result, n) for n in ("eigenvalues", "grid", "density"))
    if eigenvalues is not None and np.isfinite(eigenvalues).any():
        return True
    return grid is not None and density is not None and bool((np.isfinite(density) & np.isfinite(grid)).any())


def bin_width(parameters: float) -> float:
    """Decades per histogram bin: finer the more eigenvalues there are."""
    return float(np.clip(3.0 / math.sqrt(max(parameters, 1.0)), 0.1, 0.3))


def per_decade(result: HasArrays, width: float, decades: float | None = None) -> Curve | None:
    """Eigenvalues per decade of an axis that is linear inside `width`: all of them counted, or the stored density.

    Args:
        result: a spectrum.
        width: where the axis turns from linear to logarithmic.
        decades: of a histogram bin, where the eigenvalues are all known; default by their number.
    """
    if not has_density(result):
        return None
    eigenvalues = values(result, "eigenvalues")
    if eigenvalues is not None and np.isfinite(eigenvalues).any() and smoothed(result) != "gaussian":
        return _counted(eigenvalues[np.isfinite(eigenvalues)], width, decades or bin_width(eigenvalues.size))
    grid, density = values(result, "grid"), values(result, "density")
    assert grid is not None
    assert density is not None
    keep = np.isfinite(grid) & np.isfinite(density)
    factor = scalar(result, "parameters") * (
        _cell_stretch(grid, width) if smoothed(result) == "cells" else stretch(grid, width)
    )
    factor = factor[keep]
    ends = [values(result, f"density_{end}") for end in ("low", "high")]
    # A single probe has no interval: its upper end is infinite.
    low, high = (None if e is None or not np.isfinite(e[keep]).all() else factor * e[keep] for e in ends)
    known = low is not None and high is not None
    return Curve(grid[keep], factor * density[keep], low if known else None, high if known else None)


def _cell_stretch(grid: np.ndarray, width: float) -> np.ndarray:
    """Length of each cell in λ over its length on the axis, for both of its ends."""
    return np.repeat(np.diff(grid)[::2] / np.diff(to_axis(grid, width))[::2], 2)


def _counted(eigenvalues: np.ndarray, width: float, decades: float) -> Curve:
    """Histogram as an outline; a bin is centred on zero, so that round-off falls into one bin, not on two sides."""
    place = np.rint(to_axis(eigenvalues, width) / decades).astype(int)
    first = int(place.min()) - 1
    counts = np.bincount(place - first, minlength=int(place.max()) - first + 2)
    edges = from_axis((first - 0.5 + np.arange(counts.size + 1)) * decades, width)
    return Curve(np.repeat(edges, 2)[1:-1], np.repeat(counts / decades, 2), None, None)


def one_operator(results: list[StoredLike]) -> str:
    """The operator that all results share; mixing curvatures in one figure would compare unlike things."""
    names = sorted({str(r.attributes.get("operator", "hessian")) for r in results})
    if len(names) > 1:
        raise UsageError(
            f"The results are of different operators ({', '.join(names)}); their spectra are not comparable.",
            hint="plot the results of one operator at a time",
        )
    return OPERATORS.get(names[0], names[0])


def number(value: float, digits: int = 3) -> str:
    """A number for a figure's text: `0.0123`, `1.23 × 10^-7` in mathtext, thin spaces in large counts."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"  # also for the zero with a minus sign
    if not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return rf"${mantissa}\times 10^{{{int(exponent)}}}$"
    whole = value == round(value)
    decimals = 0 if whole else max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def interval(value: float, low: float, high: float) -> str:
    """`41.2 [40.9, 41.5]`, with as many digits as it takes to tell the ends apart; no brackets when exact."""
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return number(value)
    size = max(abs(low), abs(high))
    digits = int(np.clip(math.ceil(-math.log10((high - low) / size)) + 1, 3, 8)) if high > low else 3
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"
