"""Figure of many spectra: the density against width (or step, seed …), both ends, negative part and trace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FixedFormatter, FixedLocator

from landscape.figures.scale import set_asinh
from landscape.figures.series import Row, Series, arrange
from landscape.figures.spectra_panels import KEY, draw_summaries
from landscape.figures.spectrum_detail import FLOOR, spectrum_limits, tint_negative
from landscape.figures.style import INK, MUTED, NEGATIVE, Colour, new_figure, paper_style, sequence_colours
from landscape.figures.transform import from_axis, to_axis
from landscape.figures.values import Curve, bin_width, one_operator, pairs, per_decade, resolution, shared_width
from landscape.results.reading import StoredLike, scalar

HEIGHT = 5.6
OVERLAP = 1.15  # height of the highest ridge, in distances between rows
LABELS = 26  # more rows than this cannot all be named


def draw_spectra(results: Sequence[StoredLike], by: str | None = None) -> Figure:
    """Ridgeline of the densities over the coordinate `by`, and five summaries against it, one point a result."""
    series = arrange(results, by)
    operator = one_operator(list(results))
    colours = sequence_colours(len(series.rows))
    with paper_style():
        figure = new_figure(HEIGHT, head=0.25)
        grid = GridSpec(5, 2, figure, width_ratios=[1.5, 1])
        _draw_ridges(figure.add_subplot(grid[:, 0]), series, colours)
        draw_summaries([figure.add_subplot(grid[i, 1]) for i in range(5)], series, colours)
        first, last = series.rows[0].label, series.rows[-1].label
        words = [operator, f"{len(results)} spectra", f"{series.name} {first} to {last}" if series.numeric else ""]
        figure.text(0.99, 0.985, KEY, fontsize=6.0, color=MUTED, va="top", ha="right")
        figure.text(
            0.012, 0.985, "   ·   ".join(filter(None, words)), fontsize=6.6, color=MUTED, va="top", parse_math=False
        )
    return figure


def _draw_ridges(axes: Axes, series: Series, colours: list[Colour]) -> None:
    """Panel a: one row a value of the coordinate, every replicate a line, the median filled."""
    members = [r for row in series.rows for r in row.results]
    width = shared_width(members)
    decades = max(bin_width(scalar(r, "parameters")) for r in members)
    curves = [[per_decade(r, width, decades) for r in row.results] for row in series.rows]
    flat = [c for row in curves for c in row]
    ends = np.array([spectrum_limits(r, c, width) for r, c in zip(members, flat, strict=True)])
    limits = float(ends[:, 0].min()), float(ends[:, 1].max())
    highest = max((float(np.nanmax(c.y)) for c in flat if c is not None), default=10.0)
    scale = OVERLAP / max(math.log10(highest / FLOOR), 1.0)
    tint_negative(axes, limits, float(np.median([resolution(r) for r in members])))
    for i, (row, drawn) in enumerate(zip(series.rows, curves, strict=True)):
        depth = 3 + 3 * (len(series.rows) - i)  # lower rows stand in front
        _draw_row(axes, i, [c for c in drawn if c is not None], colours[i], scale, (width, limits), depth)
        _mark_ends(axes, i, row, colours[i], depth)
    set_asinh(axes, "x", limits, width, most=8)
    _scale_bar(axes, scale, len(series.rows) - 1 + OVERLAP)
    _name_rows(axes, series)
    axes.set_xlabel("eigenvalue λ   (linear around 0, then logarithmic)")
    axes.set_title(f"a   spectral density against {series.name}", fontweight="bold")


def _draw_row(
    axes: Axes,
    base: int,
    curves: list[Curve],
    colour: Colour,
    scale: float,
    place: tuple[float, tuple[float, float]],
    depth: int,
) -> None:
    """One ridge: log of the density above its baseline."""

    def lifted(y: np.ndarray) -> np.ndarray:
        return np.asarray(base + scale * np.log10(np.fmax(y, FLOOR) / FLOOR))

    axes.axhline(base, color=colour, lw=0.6, zorder=depth)
    if not curves:
        return
    middle = curves[0] if len(curves) == 1 else median_curve(curves, *place)
    axes.fill_between(middle.x, base, lifted(middle.y), color="white", alpha=0.6, lw=0, zorder=depth)
    axes.fill_between(middle.x, base, lifted(middle.y), color=colour, alpha=0.55, lw=0, zorder=depth)
    if middle.low is not None and middle.high is not None:
        low, high = lifted(middle.low), lifted(middle.high)
        axes.fill_between(middle.x, low, high, color=INK, alpha=0.22, lw=0, zorder=depth + 1)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.x, lifted(curve.y), color=colour, lw=0.35, alpha=0.7, zorder=depth + 1, label="seed")
    axes.plot(middle.x, lifted(middle.y), color=colour, lw=0.9, zorder=depth + 2, label="median")


def median_curve(curves: list[Curve], width: float, limits: tuple[float, float]) -> Curve:
    """Pointwise median of curves on different grids, on one fine grid of the axis."""
    ends = to_axis(np.array(limits), width)
    place = np.linspace(ends[0], ends[1], 900)
    each = [np.interp(place, to_axis(c.x, width), c.y, left=0.0, right=0.0) for c in curves]
    return Curve(from_axis(place, width), np.median(each, axis=0), None, None)


def _mark_ends(axes: Axes, base: int, row: Row, colour: Colour, depth: int) -> None:
    """The computed eigenvalues of all replicates as ticks below the baseline."""
    found = np.concatenate([pairs(r, end).value for r in row.results for end in ("top", "bottom")])
    for side, ink in ((found[found < 0], NEGATIVE), (found[found >= 0], colour)):
        if side.size:
            axes.vlines(side, base - 0.16, base - 0.03, color=ink, lw=0.6, zorder=depth + 2)


def _scale_bar(axes: Axes, scale: float, summit: float) -> None:
    """How high a factor is, since the rows have no axis of their own; above the highest ridge, `summit`."""
    inch = (summit + 0.35) / 4.2
    lengths = [(scale * math.log10(factor), factor) for factor in (2, 10, 100, 1000, 10**4, 10**6)]
    fitting = [pair for pair in lengths if pair[0] <= 0.4 * inch]
    length, factor = fitting[-1] if fitting else lengths[0]
    top = summit + 0.36 * inch
    axes.set_ylim(-0.35, top)
    across = axes.get_yaxis_transform()
    axes.plot([0.985] * 2, [top - length, top], color=INK, lw=1.2, transform=across, clip_on=False, label="scale")
    shown = str(factor) if factor <= 100 else f"$10^{round(math.log10(factor))}$"
    words = f"factor {shown} in eigenvalues\nper decade of |λ|"
    axes.text(0.97, top - 0.01 * inch, words, transform=across, ha="right", va="top", fontsize=6.3)


def _name_rows(axes: Axes, series: Series) -> None:
    """Label the baselines."""
    every = math.ceil(len(series.rows) / LABELS)
    axes.yaxis.set_major_locator(FixedLocator(list(range(0, len(series.rows), every))))
    axes.yaxis.set_major_formatter(FixedFormatter([row.label for row in series.rows[::every]]))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylabel(series.name, labelpad=5)
