"""The figure of a claim: the panels and series that its file says are to be drawn, from the stored points alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.figures.style import MUTED, new_figure, paper_style, sequence_colours
from landscape.results.reading import StoredLike

HEIGHT, COLUMNS = 2.6, 3
# Between the series of a panel that have intervals, so that these do not hide each other; of the range of x.
SHIFT = 0.014


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure of the only result, and what its readers must know."""
    return draw_check(found[0]), []


def draw_check(result: StoredLike) -> Figure:
    """One panel a comparison, series with their 95 % intervals; heading: claim and verdict."""
    arrays = {name: array.values for name, array in result.arrays.items()}
    panels = list(dict.fromkeys(str(p) for p in arrays["curve_panel"]))
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    with paper_style():
        figure = new_figure(HEIGHT * rows + 0.4, head=0.4)
        axes = np.atleast_1d(figure.subplots(rows, min(COLUMNS, max(1, len(panels))))).ravel()
        explained: set[tuple[str, ...]] = set()
        for number, (place, panel) in enumerate(zip(axes, panels, strict=False)):
            names = _draw_panel(place, arrays, panel, "abcdefghijklmnopqrstuvwxyz"[number % 26])
            if names not in explained:  # panels of one kind share the legend of the first
                explained.add(names)
                place.legend(fontsize=5.6, frameon=True, framealpha=0.85, edgecolor="none")
        for place in axes[len(panels) :]:
            place.set_axis_off()
        words = f"{result.attributes['claim']}: {result.attributes['verdict']}"
        top = 1 - 0.06 / figure.get_figheight()
        figure.text(0.012, top, words, fontsize=7.5, fontweight="bold", va="top", parse_math=False)
        figure.text(
            0.012,
            top - 0.15 / figure.get_figheight(),
            _cut(str(result.provenance.checkpoint), 150),
            fontsize=5.8,
            color=MUTED,
            va="top",
            parse_math=False,
        )
    return figure


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} …"


def _draw_panel(axes: Axes, arrays: dict[str, Any], panel: str, letter: str) -> tuple[str, ...]:
    """Draw a panel; the names of its series."""
    inside = arrays["curve_panel"] == panel
    names = list(dict.fromkeys(str(s) for s in arrays["curve_series"][inside]))
    values = []
    barred = np.isfinite(arrays["curve_low"]) & inside
    several = len(set(arrays["curve_series"][barred])) > 1
    shift = SHIFT * float(np.ptp(arrays["curve_x"][inside])) if several else 0.0
    for number, (name, colour) in enumerate(zip(names, sequence_colours(len(names)), strict=True)):
        chosen = inside & (arrays["curve_series"] == name)
        x, y, low, high = (arrays[f"curve_{k}"][chosen] for k in ("x", "y", "low", "high"))
        order = np.argsort(x, kind="stable")
        x, y, low, high = x[order], y[order], low[order], high[order]
        bars = np.isfinite(low) & np.isfinite(high)
        if bars.any():
            x = x + shift * (number - (len(names) - 1) / 2)
        joined = bool(arrays["curve_joined"][chosen].all())
        dashes: Any = "none" if not joined else "-" if bars.any() else (0, (4, 2))
        marker = "o" if bars.any() or not joined else None
        axes.plot(x, y, ls=dashes, marker=marker, color=colour, label=name, lw=1.0, ms=2.8)
        axes.vlines(x[bars], low[bars], high[bars], color=colour, lw=0.8)
        values += [y, low, high]
    every = np.concatenate(values)
    positive = every[np.isfinite(every) & (every > 0)]
    share = str(arrays["curve_y_label"][inside][0]).startswith("share")
    if len(positive) and positive.max() > 100 * positive.min() and not share:
        axes.set_yscale("log")
    axes.set_xlabel(str(arrays["curve_x_label"][inside][0]))
    axes.set_ylabel(str(arrays["curve_y_label"][inside][0]))
    axes.set_title(textwrap.fill(f"{letter}   {panel}", 36), fontweight="bold", fontsize=6.4, parse_math=False)
    if np.all(arrays["curve_x"][inside] % 1 == 0):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return tuple(names)
