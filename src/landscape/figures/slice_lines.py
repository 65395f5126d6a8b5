"""Figures of slices along lines: loss and further metrics against the distance, bands of planes, marks, barrier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter

from landscape.figures.slice_labels import axis_labels, direction_names, metrics_of, percent
from landscape.figures.slice_levels import levels_of
from landscape.figures.slice_words import heading, label_of, ordered, stacked, tail
from landscape.figures.style import (
    INK,
    MUTED,
    NEGATIVE,
    PALE,
    POSITIVE,
    Colour,
    new_figure,
    paper_style,
    sequence_colours,
)
from landscape.figures.values import number
from landscape.results.reading import StoredLike, scalar, values
from landscape.slices.stored import Grid, grid_of, inside, is_wide, marks_of, masked

HEIGHT = 2.7
NAMED = 12  # lines that a legend can name

# Bands of several results can be told apart up to this number.
BANDS = 6


def draw_lines(results: Sequence[StoredLike], by: str | None = None) -> Figure:
    """The loss in one panel, a curve a result; further metrics that all of them have in panels below."""
    series, placed = ordered(results, by)
    grids = [grid_of(result) for result in placed]
    others = [metrics_of(result, grid) for result, grid in zip(placed, grids, strict=True)]
    shared = [words for words, _ in others[0] if all(words in dict(found) for found in others)]
    columns = {1: 1, 2: 2, 4: 2}.get(len(shared), 3)
    rows = math.ceil(len(shared) / columns)
    said = heading(placed, series)
    with paper_style():
        figure = new_figure(HEIGHT + 1.6 * rows + said.height, head=said.height)
        parts = GridSpec(1 + rows, 6, figure, height_ratios=[HEIGHT] + [1.6] * rows)
        main = figure.add_subplot(parts[0, :])
        colours: list[Any] = [INK] if len(placed) == 1 else list(sequence_colours(len(placed)))
        for result, grid, colour in zip(placed, grids, colours, strict=True):
            main.plot(grid.x, grid.loss[0], color=colour, lw=1.2, label=label_of(result, series))
            _end_points(main, grid, grid.loss[0], colour)
            if 1 < len(placed) <= BANDS:
                _draw_band(main, result, grid, colour)
        if len(placed) == 1:
            _draw_planes(main, placed[0], grids[0])
        _finish(main, grids, [grid.loss for grid in grids])
        _name_abscissa(main, placed)
        if len(placed) == 1:
            _draw_marks(main, placed[0], grids[0])
        main.set_title("a   loss along the line", fontweight="bold")
        main.set_ylabel("loss")
        _explain(main, placed, grids)
        for i, words in enumerate(shared):
            place = i % columns * (6 // columns)
            axes = figure.add_subplot(parts[1 + i // columns, place : place + 6 // columns])
            fields = [dict(found)[words] for found in others]
            for field, grid, colour in zip(fields, grids, colours, strict=True):
                axes.plot(grid.x, field[0], color=colour)
                _end_points(axes, grid, field[0], colour)
            _finish(axes, grids, fields)
            axes.set_title(f"{'bcdefg'[i]}   {words}", fontweight="bold")
        said.write(figure)
    return figure


def _end_points(axes: Axes, grid: Grid, field: np.ndarray, colour: Colour | str) -> None:
    """Numbers between two holes, through which no line goes."""
    there = np.isfinite(field)
    padded = np.concatenate([[False], there, [False]])
    alone = there & ~padded[:-2] & ~padded[2:]
    axes.plot(grid.x[alone], field[alone], ".", color=colour, ms=3)


def _finish(axes: Axes, grids: Sequence[Grid], fields: Sequence[np.ndarray]) -> None:
    """Scale, holes, the checkpoint at 0, and what the abscissa is."""
    every = np.concatenate([np.ravel(field) for field in fields])
    if is_wide(every):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_major_formatter(LogFormatterMathtext())
        axes.yaxis.set_minor_formatter(NullFormatter())
        levels = levels_of(every)
        if levels is not None and levels.below:  # one exact zero must not use up the axis
            axes.set_ylim(bottom=levels.values[0])
    elif not np.isfinite(every).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=MUTED)
    low, high = min(grid.x.min() for grid in grids), max(grid.x.max() for grid in grids)
    margin = 0.02 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.axvline(0, color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=0)
    if len(grids) == 1:
        _shade(axes, grids[0])


def _name_abscissa(axes: Axes, results: Sequence[StoredLike]) -> None:
    """The direction, with as much as all lines share of it."""
    labels = {axis_labels(result)[0] for result in results}
    names = {direction_names(result)[0] for result in results}
    label = next((found.pop() for found in (labels, names) if len(found) == 1), "multiple of the direction")
    axes.set_xlabel(stacked(label, 110))


def _shade(axes: Axes, grid: Grid) -> None:
    """Strips around points that have no finite loss, as wide as a step of the grid."""
    edges = np.concatenate([grid.x[:1], (grid.x[1:] + grid.x[:-1]) / 2, grid.x[-1:]])
    for mask, hatch, colour in ((grid.missing, "/////", PALE), (grid.broken, "xxxxx", "#f3d3bd")):
        for i in np.flatnonzero(mask[0]):
            axes.axvspan(edges[i], edges[i + 1], facecolor=colour, edgecolor=MUTED, hatch=hatch, lw=0, zorder=0)


def _draw_planes(axes: Axes, result: StoredLike, grid: Grid) -> None:
    """Every random line thinly, and quantiles as bands from the outside in."""
    every = values(result, "plane_loss")
    if every is not None:
        for one in every[:, 0]:
            axes.plot(grid.x, masked(one, ~grid.missing[0]), color=MUTED, lw=0.35, alpha=0.6, zorder=1)
    shares, quantiles = values(result, "quantile"), values(result, "loss_quantile")
    if shares is None or quantiles is None:
        return
    order = np.argsort(shares)
    for depth, (i, j) in enumerate(zip(order, order[::-1], strict=True)):
        if shares[i] >= shares[j]:
            break
        share = 0.2 * (depth + 1)
        colour = share * np.array(to_rgb(POSITIVE)) + (1 - share)
        low, high = (masked(quantiles[k, 0], ~grid.missing[0]) for k in (i, j))
        words = f"{percent(shares[i])} to {percent(shares[j])} of the lines"
        axes.fill_between(grid.x, low, high, color=tuple(colour), lw=0, zorder=0.5 + 0.1 * depth, label=words)


def _draw_band(axes: Axes, result: StoredLike, grid: Grid, colour: Colour | str) -> None:
    """The outer quantiles of several random lines, one band beside those of other results."""
    shares, quantiles = values(result, "quantile"), values(result, "loss_quantile")
    if shares is None or quantiles is None:
        return
    i, j = int(np.argmin(shares)), int(np.argmax(shares))
    low, high = (masked(quantiles[k, 0], ~grid.missing[0]) for k in (i, j))
    axes.fill_between(grid.x, low, high, color=colour, alpha=0.18, lw=0, zorder=0.5)
    axes.set_title(f"median, and {percent(shares[i])} to {percent(shares[j])} of the lines", loc="right")


def _draw_marks(axes: Axes, result: StoredLike, grid: Grid) -> None:
    """The checkpoint, the other ones at their true losses, and the barrier over the straight line."""
    centre = scalar(result, "loss_centre")
    if math.isfinite(centre):
        axes.plot(0, centre, "o", color=POSITIVE, ms=4, zorder=5, label="checkpoint")
    marks = marks_of(result)
    if marks is not None:
        within = inside(marks, grid)
        words = "other checkpoints" if within.sum() > 1 else tail(str(marks.name[0]), 40)
        axes.plot(marks.x[within], marks.loss[within], "D", color=NEGATIVE, ms=3.5, zorder=5, label=words)
    barrier, place = scalar(result, "barrier"), scalar(result, "barrier_at")
    if marks is not None and math.isfinite(barrier):
        chord = [centre, float(marks.surface_loss[0])]
        along = np.linspace(0, 1, 65)  # a straight line of losses is none on a logarithmic axis
        axes.plot(along, np.interp(along, [0, 1], chord), color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
        foot = float(np.interp(place, [0, 1], chord))
        axes.plot([place, place], [foot, foot + barrier], color=NEGATIVE, lw=1.0, marker="_", ms=5, zorder=4)
        if barrier > 0:
            low, high = axes.transData.transform([(place, foot), (place, foot + barrier)])
            middle = axes.transData.inverted().transform(0.65 * low + 0.35 * high)  # on a log axis, too
            box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8}
            offset: dict[str, Any] = {"textcoords": "offset points", "va": "center", "bbox": box, "zorder": 6}
            axes.annotate(f"barrier {number(barrier)}", tuple(middle), (5, 0), **offset)


def _explain(axes: Axes, results: Sequence[StoredLike], grids: Sequence[Grid]) -> None:
    """Legend: curves where they can be named, bands, marks and holes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(results) == 1:
        handles, labels = handles[1:], labels[1:]
        for mask, hatch, colour, words in (
            (grids[0].missing, "/////", PALE, "not computed"),
            (grids[0].broken, "xxxxx", "#f3d3bd", "NaN or Inf"),
        ):
            if mask.any():
                handles.append(Patch(facecolor=colour, edgecolor=MUTED, hatch=hatch, lw=0))
                labels.append(words)
    if len(results) == 1:
        axes.legend(handles, labels, loc="best")
    else:
        columns = math.ceil(len(handles) / NAMED)
        axes.legend(handles, labels, ncols=columns, loc="center left", bbox_to_anchor=(1.0, 0.5))
