"""Small panels of a sweep: one number of each spectrum with its bounds against a coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from landscape.figures.scale import set_adaptive
from landscape.figures.series import Series
from landscape.figures.style import MUTED, Colour
from landscape.figures.values import pairs
from landscape.results.reading import StoredLike, scalar


@dataclass(frozen=True)
class Bounded:
    """A number with the interval it lies in; `solid` is False where the computation did not converge."""

    value: float
    low: float
    high: float
    solid: bool = True
    reach: float = math.nan  # nothing is excluded between `low` and here
    pinned: bool = True  # False: only the bracket is known, so no line leads through the value


def extreme(result: StoredLike, end: str) -> Bounded:
    """The outermost eigenvalue at one end with its residual, and at the bottom the exclusion bound."""
    found = pairs(result, end)
    if found.value.size == 0:
        return Bounded(math.nan, math.nan, math.nan)
    value, residual = float(found.value[0]), float(found.residual[0])
    possible = scalar(result, "excluded_probability") > 0 and end == "bottom"
    reach = scalar(result, "excluded_below") if possible else math.nan
    return Bounded(value, value - residual, value + residual, bool(found.converged[0]), reach)


def negative_count(result: StoredLike) -> Bounded:
    """The certified count, up to the upper bound."""
    low, high = scalar(result, "negative_count_low"), scalar(result, "negative_count_high")
    return Bounded(low, low, high, pinned=low == high)


def negative_mass(result: StoredLike) -> Bounded:
    """In per cent of the sum of |eigenvalues|."""
    value, low, high = (100 * scalar(result, f"negative_mass{s}") for s in ("", "_low", "_high"))
    return Bounded(value, low, high)


def mean_eigenvalue(result: StoredLike) -> Bounded:
    """Trace over the number of parameters."""
    size = scalar(result, "parameters")
    value, low, high = (scalar(result, f"trace{s}") / size for s in ("", "_low", "_high"))
    return Bounded(value, low, high)


SUMMARIES: list[tuple[str, Callable[[StoredLike], Bounded]]] = [
    ("b   largest eigenvalue", lambda r: extreme(r, "top")),
    ("c   smallest eigenvalue", lambda r: extreme(r, "bottom")),
    ("d   eigenvalues below −τ", negative_count),
    ("e   negative mass, %", negative_mass),
    ("f   trace / parameters", mean_eigenvalue),
]
KEY = "bars: residual (b, c), certified to upper bound (d), 95 % (e, f);  thin (c): not excluded;  line: median"


def draw_summaries(panels: list[Axes], series: Series, colours: list[Colour]) -> None:
    """One panel a summary, all over the same coordinate."""
    tau = _median([scalar(r, "tau_absolute") for row in series.rows for r in row.results])
    floors = (0.0, tau, 1.0, 0.0, 0.0)
    for axes, (title, read), floor in zip(panels, SUMMARIES, floors, strict=True):
        each = [[read(r) for r in row.results] for row in series.rows]
        _draw_points(axes, series, each, colours)
        axes.set_title(title, fontweight="bold")
        flat = [b for row in each for b in row]
        shown = [x for b in flat for x in (b.value, b.low, b.high, b.reach)]
        set_adaptive(axes, np.array(shown), floor if math.isfinite(floor) else 0.0)
        locator = axes.yaxis.get_major_locator()
        if read is negative_count and isinstance(locator, MaxNLocator):
            locator.set_params(integer=True, min_n_ticks=1)
        if not any(math.isfinite(b.value) for b in flat):
            axes.text(0.5, 0.5, "not computed", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
        _set_coordinate(axes, series, labelled=axes is panels[-1])


def _draw_points(axes: Axes, series: Series, each: list[list[Bounded]], colours: list[Colour]) -> None:
    """A marker a result, side by side where they share a coordinate, and a line through the medians."""
    place = np.array([row.position for row in series.rows])
    middle = [_median([b.value for b in row if b.pinned]) for row in each]
    axes.plot(place, middle, color=MUTED, lw=0.7, zorder=1, label="median")
    for row, bounded, colour in zip(series.rows, each, colours, strict=True):
        crowd = 1.0 if len(bounded) <= 8 else 0.5
        for x, b in zip(_side_by_side(series, row.position, len(bounded)), bounded, strict=True):
            if not math.isfinite(b.value):
                continue
            if math.isfinite(b.reach):
                axes.plot([x, x], [b.reach, b.low], color=colour, lw=0.5 * crowd, alpha=0.7, zorder=2, label="reach")
            if math.isfinite(b.low) and math.isfinite(b.high):
                axes.plot([x, x], [b.low, b.high], color=colour, lw=crowd, zorder=3, label="bounds")
            face = colour if b.solid else "white"
            axes.plot(
                [x], [b.value], "o", ms=1.5 + 1.5 * crowd, mfc=face, mec=colour, mew=0.8, zorder=4, label="result"
            )


def _median(found: list[float]) -> float:
    finite = [v for v in found if math.isfinite(v)]
    return float(np.median(finite)) if finite else math.nan


def logarithmic(series: Series) -> bool:
    """Widths that double, steps over decades: equal ratios at equal distances."""
    place = [row.position for row in series.rows]
    return series.numeric and place[0] > 0 and place[-1] >= 8 * place[0]


def _side_by_side(series: Series, position: float, count: int) -> list[float]:
    """Positions of replicates around their coordinate, close enough not to be taken for other values of it."""
    place = np.array([row.position for row in series.rows])
    scaled = np.log(place) if logarithmic(series) else place
    span = float(scaled[-1] - scaled[0]) or 1.0
    gap = float(np.diff(scaled).min()) if scaled.size > 1 else span
    step = min(0.02 * span, 0.1 * span / max(count, 1), 0.4 * gap / max(count, 1))
    shifts = step * (np.arange(count) - (count - 1) / 2)
    if logarithmic(series):
        return [float(position * math.exp(s)) for s in shifts]
    return [float(position + s) for s in shifts]


def _set_coordinate(axes: Axes, series: Series, labelled: bool) -> None:
    """The coordinate's axis: ticks at values that occur, as many as have room."""
    place = np.array([row.position for row in series.rows])
    log = logarithmic(series)
    if log:
        axes.set_xscale("log")
    scaled = np.log(place) if log else place
    span = float(scaled[-1] - scaled[0]) or 1.0
    low, high = scaled[0] - 0.06 * span, scaled[-1] + 0.06 * span
    axes.set_xlim(*(np.exp([low, high]) if log else (low, high)))
    longest = max(len(row.label) for row in series.rows)
    gap = span * (0.12 if not series.numeric else max(0.12, 0.03 * longest))
    kept: list[int] = []
    for i, position in enumerate(scaled):
        if not kept or position - scaled[kept[-1]] >= gap:
            kept.append(i)
    axes.xaxis.set_major_locator(FixedLocator([float(place[i]) for i in kept]))
    names = FixedFormatter([series.rows[i].label for i in kept])
    axes.xaxis.set_major_formatter(names if labelled else NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    if labelled:
        axes.set_xlabel(series.name)
        if not series.numeric and longest > 6:
            for label in axes.get_xticklabels():
                label.set(rotation=25, ha="right", rotation_mode="anchor")
