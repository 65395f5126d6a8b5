"""Figures of slices through planes: contours, the surface in 3-D, further metrics; many on one common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from landscape.errors import UsageError
from landscape.figures.slice_labels import SEPARATOR, UNIT, axis_labels, direction_names, metrics_of, unit_labels
from landscape.figures.slice_levels import Levels, level_text, levels_of
from landscape.figures.slice_lines import draw_lines
from landscape.figures.slice_words import heading, label_of, ordered, stacked, tail, wrapped
from landscape.figures.style import INK, MUTED, NEGATIVE, PALE, new_figure, paper_style
from landscape.results.reading import StoredLike, values
from landscape.slices.stored import Grid, Marks, inside, marks_of, one_shape, triangles

MOST = 24  # panels of one figure
PANEL = 2.75  # inches high
LETTER = 0.055  # inches of one letter of a label
FACES = 101  # rows and columns of the 3-D surface, at most: more cannot be told apart in print
HATCH = {"missing": ("/////", PALE, "not computed"), "broken": ("xxxxx", "#f3d3bd", "NaN or Inf")}


def draw_slices(results: Sequence[StoredLike], by: str | None = None) -> Figure:
    """One plane in detail, several side by side on one scale of loss, or lines in one panel."""
    if not results:
        raise UsageError("There is no result to plot.", hint="name result files, globs or folders")
    if len(results) > MOST:
        raise UsageError(
            f"{len(results)} slices are too many for one figure, which holds up to {MOST}",
            "name fewer files, such as those of one seed",
        )
    grids = one_shape(results)
    if grids[0].line:
        return draw_lines(results, by)
    return _draw_one(results[0], grids[0]) if len(results) == 1 else _draw_many(results, by)


def _draw_one(result: StoredLike, grid: Grid) -> Figure:
    """Contours and 3-D surface of the loss; below, contours of whatever else was computed."""
    others = metrics_of(result, grid)
    columns = 2 if len(others) in (2, 4) else 3
    rows = math.ceil(len(others) / columns)
    said = heading([result])
    with paper_style():
        figure = new_figure(PANEL + rows * 2.1 + said.height, head=said.height)
        parts = GridSpec(1 + rows, 6, figure, height_ratios=[PANEL] + [2.1] * rows)
        levels = levels_of(grid.loss)
        flat = figure.add_subplot(parts[0, :3])
        _contours(flat, grid, grid.loss, levels)
        _label(flat, result)
        _draw_marks(flat, result, grid, levels, name=True)
        _bar(figure, flat, levels, inset=True, label="loss")
        flat.set_title("a   contours of the loss", fontweight="bold")
        solid: Any = figure.add_subplot(parts[0, 3:], projection="3d")
        _surface(solid, result, grid, levels)
        decades = ", by decades" if levels is not None and levels.kind == "log" else ""
        solid.set_title(f"b   the loss as a surface{decades}", fontweight="bold")
        for i, (words, field) in enumerate(others):
            place = i % columns * (6 // columns)
            axes = figure.add_subplot(parts[1 + i // columns, place : place + 6 // columns])
            own = levels_of(field)
            _contours(axes, grid, field, own)
            _draw_marks(axes, result, grid, None)
            axes.set_box_aspect(_shape(result, grid))
            _bar(figure, axes, own, inset=True)
            axes.set_title(wrapped(f"{'cdefgh'[i]}   {words}", 42), fontweight="bold")
        flat.set_box_aspect(_shape(result, grid))
        said.write(figure, _hole_keys([grid]))
    return figure


def _draw_many(results: Sequence[StoredLike], by: str | None) -> Figure:
    """Contours of every plane, in the order of the coordinate, with one set of levels and one colour bar."""
    series, placed = ordered(results, by)
    grids = one_shape(placed)
    columns = _columns(len(placed))
    rows = math.ceil(len(placed) / columns)
    levels = levels_of(*(grid.loss for grid in grids))
    said = heading(placed, series)
    with paper_style():
        tall = max(_shape(result, grid) for result, grid in zip(placed, grids, strict=True))
        figure = new_figure(rows * (5.0 / columns * tall + 0.42) + 0.25 + said.height, head=said.height)
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.ravel()[len(placed) :]:
            axes.set_axis_off()
        shown = list(panels.ravel()[: len(placed)])
        for axes, result, grid in zip(shown, placed, grids, strict=True):
            _contours(axes, grid, grid.loss, levels)
            _draw_marks(axes, result, grid, levels)
            axes.set_box_aspect(_shape(result, grid))
            axes.set_title(wrapped(label_of(result, series), 110 // columns), fontsize=7.0 if columns < 5 else 6.0)
            axes.tick_params(labelsize=6.0 if columns < 5 else 5.0)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5 - columns // 2, steps=[1, 2, 5, 10]))
        _name_axes(figure, shown, placed, said.height)
        _bar(figure, shown, levels, label="loss, one scale for all panels")
        said.write(figure, _hole_keys(grids))
    return figure


def _name_axes(figure: Figure, panels: Sequence[Axes], results: Sequence[StoredLike], head: float) -> None:
    """What all panels share of their directions once for the figure, the rest at each panel."""
    free = figure.get_figheight() - head
    pitch = figure.get_figwidth() / _columns(len(panels))
    for own, length in ((0, figure.get_figwidth()), (1, free)):
        names, named = _parted([direction_names(result)[own] for result in results])
        units, measured = _parted([unit_labels(result)[own] for result in results])
        shared = stacked(SEPARATOR.join(filter(None, (names, units))), int(length / LETTER))
        if own == 0:
            figure.supxlabel(shared, fontsize=7.0)
        else:
            figure.supylabel(shared, y=free / 2 / figure.get_figheight(), fontsize=7.0)
        for axes, name, unit in zip(panels, named, measured, strict=True):
            label = stacked(SEPARATOR.join(filter(None, (name, unit))), int(0.7 * pitch / LETTER))
            if own == 0:
                axes.set_xlabel(label, fontsize=6.0)
            elif label != axes.get_xlabel():  # one length for both directions is said once
                axes.set_ylabel(label, fontsize=6.0)


def _parted(texts: list[str]) -> tuple[str, list[str]]:
    """What all texts begin with, in whole words but for lengths, and what is left of each."""
    if len(set(texts)) == 1:
        return texts[0], [""] * len(texts)
    if texts[0].startswith(UNIT):
        return "", texts
    every = [text.split(" ") for text in texts]
    alike = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*every, strict=False)))
    return " ".join(every[0][:alike]), [" ".join(words[alike:]) for words in every]


def _columns(panels: int) -> int:
    """Few empty places at the end, and panels as large as the page allows."""
    if panels <= 9:
        return {1: 1, 2: 2, 4: 2, 7: 4, 8: 4}.get(panels, 3)
    return 4 if panels <= 12 or panels == 16 else 5 if panels <= 20 else 6


def _contours(axes: Axes, grid: Grid, field: np.ndarray, levels: Levels | None) -> None:
    """Bands and lines of `field`; what has no finite number is hatched, and nothing is drawn across it."""
    axes.set_xlim(grid.x.min(), grid.x.max())
    axes.set_ylim(grid.y.min(), grid.y.max())
    gone = ~np.isfinite(field)
    for kind, mask in (("broken", gone & ~grid.missing), ("missing", grid.missing)):
        _hatch(axes, grid, mask, kind)
    if levels is None:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
        axes.text(0.5, 0.7, "no finite value", transform=axes.transAxes, ha="center", va="center", bbox=box)
        return
    height = np.ma.masked_invalid(levels.forward(field))
    places = levels.places
    if np.any(triangles(~gone)):
        # Bands are closed above only: the clipped lowest numbers belong to the first one.
        edges = places.copy()
        edges[0] -= 1e-9 * (places[-1] - places[0])
        axes.contourf(grid.x, grid.y, height, levels=edges, colors=list(levels.bands()), corner_mask=True)
        lines = axes.contour(grid.x, grid.y, height, levels=places[1:-1], colors=INK, corner_mask=True)
        lines.set(linewidth=0.35, alpha=0.55, linestyle="-")
    alone = ~gone.ravel()
    alone[triangles(~gone).ravel()] = False
    if alone.any():
        x, y = np.meshgrid(grid.x, grid.y)
        axes.scatter(x.ravel()[alone], y.ravel()[alone], s=7, c=levels.colours(field.ravel()[alone]), lw=0)


def _hatch(axes: Axes, grid: Grid, mask: np.ndarray, kind: str) -> None:
    """Every square of the grid with a corner in `mask`."""
    touched = mask[:-1, :-1] | mask[1:, :-1] | mask[:-1, 1:] | mask[1:, 1:]
    if not touched.any():
        return
    rows, columns = np.nonzero(touched)
    left, right, low, high = grid.x[columns], grid.x[columns + 1], grid.y[rows], grid.y[rows + 1]
    squares = np.stack([np.stack(p, -1) for p in ((left, low), (right, low), (right, high), (left, high))], axis=1)
    hatch, colour, _ = HATCH[kind]
    axes.add_collection(
        PolyCollection(list(squares), facecolor=colour, edgecolor=MUTED, hatch=hatch, lw=0, zorder=0.5), autolim=False
    )


def _hole_keys(grids: Sequence[Grid]) -> list[Patch]:
    """Legend of the holes that are there."""
    there = {kind: any(getattr(grid, kind).any() for grid in grids) for kind in HATCH}
    return [
        Patch(facecolor=colour, edgecolor=MUTED, hatch=hatch, lw=0, label=words)
        for kind, (hatch, colour, words) in HATCH.items()
        if there[kind]
    ]


def _label(axes: Axes, result: StoredLike, letters: int = 46) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    across, up = axis_labels(result)[:2]
    axes.set_xlabel(stacked(across, letters))
    axes.set_ylabel(stacked(up, letters))


def _shape(result: StoredLike, grid: Grid) -> float:
    """Height over width of a panel: to scale in distance where that is not too long, otherwise square."""
    norms = values(result, "direction_norm")
    unit = 1.0 if norms is None or len(norms) < 2 or not (norms > 0).all() else float(norms[1] / norms[0])
    ratio = unit * float(np.ptp(grid.y) / np.ptp(grid.x))
    return ratio if 0.5 <= ratio <= 1.6 else 1.0


def _bar(figure: Figure, axes: Any, levels: Levels | None, label: str = "", inset: bool = False) -> None:
    """The colour bar with the same bands as the contours."""
    if levels is None:
        return
    colours = ListedColormap(list(map(tuple, levels.bands())))
    bands = ScalarMappable(BoundaryNorm(levels.places, colours.N), colours)
    where = {"cax": axes.inset_axes((1.03, 0, 0.035, 1))} if inset else {"ax": axes, "pad": 0.02, "aspect": 28}
    bar = figure.colorbar(bands, spacing="proportional", **where)
    places, texts = zip(*levels.labelled(), strict=True)
    bar.set_ticks(list(places), labels=list(texts))
    bar.minorticks_off()
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=1.5, labelsize=6.3)
    bar.set_label(label)


def _draw_marks(axes: Axes, result: StoredLike, grid: Grid, levels: Levels | None, name: bool = False) -> None:
    """The checkpoint as a cross; other checkpoints in order, each in the colour of its true loss."""
    marks = marks_of(result)
    if marks is not None:
        within = inside(marks, grid)
        # On the rim a mark shows whole; the line between marks ends where the picture does.
        if not str(result.attributes.get("directions")).startswith("between"):  # there, marks are no trajectory
            axes.plot(marks.x, marks.y, color="white", lw=1.6, zorder=4)
            axes.plot(marks.x, marks.y, color=INK, lw=0.8, zorder=4.1)
        faces: Any = "white"
        if levels is not None:
            known = np.isfinite(marks.loss)
            faces = np.where(known[:, None], levels.colours(np.where(known, marks.loss, levels.values[0])), 1.0)[within]
        axes.scatter(
            *(marks.x[within], marks.y[within]), s=14, c=faces, edgecolors=NEGATIVE, lw=0.9, zorder=5, clip_on=False
        )
        if name:
            _name_marks(axes, marks, within, grid)
    for width, colour in ((2.6, "white"), (1.2, INK)):
        axes.plot(0, 0, "x", color=colour, ms=5.5 + (width > 2) * 0.8, mew=width, zorder=6)


def _name_marks(axes: Axes, marks: Marks, within: np.ndarray, grid: Grid) -> None:
    """The first and the last mark by name, if they are apart from each other and from the cross."""
    span = np.array([np.ptp(grid.x), np.ptp(grid.y)])
    taken = [np.zeros(2)]
    for i in dict.fromkeys((0, len(marks.name) - 1)):
        place = np.array([marks.x[i], marks.y[i]])
        if not within[i] or any(np.abs((place - other) / span).max() < 0.08 for other in taken):
            continue
        taken.append(place)
        left, low = place[0] > grid.x.mean(), place[1] > 0.9 * grid.y.max() + 0.1 * grid.y.min()
        axes.annotate(
            tail(str(marks.name[i]), 24),
            (float(place[0]), float(place[1])),
            (-4 if left else 4, -8 if low else 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=6.0,
            zorder=7,
            path_effects=[withStroke(linewidth=1.6, foreground="white")],
        )


def _surface(axes: Any, result: StoredLike, grid: Grid, levels: Levels | None) -> None:
    """The loss over the plane, shaded; marks do not hide behind it because there are none here."""
    axes.set(xlabel=_first_words(result, 0), ylabel=_first_words(result, 1))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_linewidth(0.5)
        axis._axinfo["grid"].update(linewidth=0.3, color=PALE)
    axes.tick_params(labelsize=6.0, pad=-2)
    axes.xaxis.labelpad = axes.yaxis.labelpad = axes.zaxis.labelpad = -6
    if levels is None:
        axes.set_axis_off()
        return
    down = slice(None, None, math.ceil(len(grid.y) / FACES))
    over = slice(None, None, math.ceil(len(grid.x) / FACES))
    x, y = np.meshgrid(grid.x[over], grid.y[down])
    loss = grid.loss[down, over]
    height = levels.forward(loss)
    faces = triangles(np.isfinite(loss))
    if faces.size:
        corners = np.stack([a.ravel()[faces] for a in (x, y, height)], axis=-1)
        flat = levels.colours(levels.backward(height.ravel()[faces].mean(axis=1)))
        # Directions of light are those of the box on the page, not of the data's units.
        size = [np.ptp(grid.x), np.ptp(grid.y), np.nanmax(height) - np.nanmin(height) or 1.0]
        axes.add_collection3d(
            Poly3DCollection(
                corners, facecolors=_shaded(corners / size, flat), edgecolors="none", antialiased=False, rasterized=True
            )
        )
    axes.set(xlim=(grid.x.min(), grid.x.max()), ylim=(grid.y.min(), grid.y.max()))
    low, high = float(np.nanmin(height)), float(np.nanmax(height))
    axes.set_zlim(low, high if high > low else low + 1)
    axes.set_box_aspect((1, 1, 0.72), zoom=1.0)
    axes.view_init(elev=34, azim=-58)
    _height_axis(axes, levels, (low, high))


def _height_axis(axes: Any, levels: Levels, limits: tuple[float, float]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))  # where two axes meet, labels would too
    axes.yaxis.set_major_locator(MaxNLocator(5, prune="both"))
    if levels.kind == "linear":
        axes.zaxis.set_major_locator(MaxNLocator(4))
        return
    found = [(place, text) for place, text in levels.labelled() if limits[0] <= place <= limits[1]]
    axes.zaxis.set_major_locator(FixedLocator([place for place, _ in found]))
    names = dict(found)
    axes.zaxis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, level_text(place))))


def _shaded(corners: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours of triangles [n, 3, 3] under one lamp, upper left: the same wherever they are drawn."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    lamp = np.array([-0.45, -0.35, 0.82])
    light = 0.74 + 0.26 * np.abs(normal @ lamp)
    return np.concatenate([np.clip(colours[:, :3] * light[:, None], 0, 1), colours[:, 3:]], axis=1)


def _first_words(result: StoredLike, which: int, most: int = 26) -> str:
    """A short name of a direction, for the axes in perspective."""
    name = direction_names(result)[which].split(SEPARATOR)[0].split(",")[0]
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"
