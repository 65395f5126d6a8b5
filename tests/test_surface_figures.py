"""Figures of slices show what the results say: places, levels, holes, marks, common scales, warnings."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.contour import ContourSet, QuadContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text

from landscape.errors import StorageError, UsageError
from landscape.figures.slice_labels import axis_labels, remarks
from landscape.figures.slice_levels import Levels, levels_of
from landscape.figures.slice_planes import MOST, draw_slices
from landscape.figures.slice_words import wrapped
from landscape.figures.style import is_ours, render
from landscape.results.store import StoredResult
from landscape.slices.stored import grid_of, is_wide, triangles
from slices_made import Surface, bowl, line, metrics, plane, planes, stored, trajectory, valley, with_holes


def hump(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two minima at 0 and 1, of losses 0.2 and 0.3."""
    return np.asarray(0.2 + 0.1 * x + np.sin(np.pi * x) ** 2 + 0 * y)


def between(**overrides: Any) -> StoredResult:
    mark = {"mark": np.array(["other.pt"]), "mark_x": np.ones(1), "mark_y": np.zeros(1), "mark_distance": np.zeros(1)}
    losses = {"mark_loss": np.array([0.3]), "mark_surface_loss": np.array([0.3])}
    fields = {"directions": "between:to=other.pt", "barrier": 1.0, "barrier_at": 0.5, **mark, **losses}
    return stored(line(51, 1.25, hump, **(fields | overrides)))


def panels(figure: Figure) -> dict[str, Axes]:
    """Axes by the letter that starts their title."""
    return {a.get_title(loc="left")[0]: a for a in figure.axes if a.get_title(loc="left")}


def contours(axes: Axes, filled: bool) -> QuadContourSet:
    found = [c for c in axes.collections if isinstance(c, ContourSet) and c.filled is filled]
    (only,) = found
    assert isinstance(only, QuadContourSet)
    return only


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def loss_levels(result: StoredResult) -> Levels:
    found = levels_of(grid_of(result).loss)
    assert found is not None
    return found


# --- where things are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nx", "ny", "spans", "surface"),
    [(61, 61, (1.0, 1.0), bowl), (81, 37, (2.0, 0.3), bowl), (41, 91, (0.5, 3.0), valley)],
)
def test_contours_lie_where_the_loss_has_their_level(
    nx: int, ny: int, spans: tuple[float, float], surface: Surface
) -> None:
    result = stored(plane(nx, ny, spans, surface))
    axes = panels(draw_slices([result]))["a"]
    assert axes.get_xlim() == (-spans[0], spans[0])
    assert axes.get_ylim() == (-spans[1], spans[1])
    lines, levels = contours(axes, filled=False), loss_levels(result)
    seen = 0
    for place, path in zip(lines.levels, lines.get_paths(), strict=True):
        if len(path.vertices):
            x, y = np.asarray(path.vertices).T
            step = 0.05 * (levels.places[-1] - levels.places[0])
            np.testing.assert_allclose(levels.forward(surface(x, y)), place, atol=step)
            seen += 1
    assert seen >= 4


def test_levels_go_by_decades_where_the_loss_does() -> None:
    narrow, wide = (loss_levels(stored(plane(surface=s))) for s in (bowl, valley))
    assert (narrow.kind, wide.kind) == ("linear", "log")
    np.testing.assert_allclose(np.diff(narrow.values), narrow.values[1] - narrow.values[0])
    assert wide.values[0] <= 1e-3
    assert wide.values[-1] >= 8
    assert [text for _, text in wide.labelled()] == ["0.001", "0.01", "0.1", "1", "10"]


def test_an_exact_zero_and_an_overflow_do_not_use_up_the_colours() -> None:
    loss = plane(surface=valley).loss
    loss[10, 10], loss[0, 0] = 0.0, 1e30
    found = levels_of(loss)
    assert found is not None
    assert found.kind == "log"
    assert found.values[0] > 1e-5
    assert found.values[-1] < 1e5
    assert found.below
    assert found.above
    assert found.labelled()[0][1].startswith("≤")
    assert np.isfinite(found.forward(loss)).all()


def test_levels_of_both_signs_have_a_zero_and_two_colours() -> None:
    for field in (np.linspace(-2, 3, 50), np.concatenate([-np.geomspace(1e-4, 5, 30), np.geomspace(1e-4, 900, 30)])):
        found = levels_of(field)
        assert found is not None
        assert 0.0 in found.values
        below, above = found.colours(np.array([field.min(), field.max()]))
        assert below[0] > below[2]  # orange
        assert above[2] > above[0]  # blue


def test_levels_of_one_value_and_of_none() -> None:
    one = levels_of(np.full((3, 3), 2.0))
    assert one is not None
    assert one.values[0] < 2 < one.values[-1]
    assert levels_of(np.full(4, np.nan)) is None


def test_wide_means_positive_and_far_apart() -> None:
    assert is_wide(np.array([0.1, 3.1]))
    assert is_wide(np.array([0.0, 0.1, 3.1, np.nan]))
    assert not is_wide(np.array([0.2, 3.1]))
    assert not is_wide(np.array([-1e-9, 0.1, 3.1]))
    assert not is_wide(np.array([np.nan]))


# --- holes ----------------------------------------------------------------------------------------------------


def test_triangles_cover_all_but_the_holes() -> None:
    there = np.ones((4, 6), dtype=bool)
    assert len(triangles(there)) == 2 * 3 * 5
    there[1, 2] = False
    found = triangles(there)
    assert len(found) == 2 * 3 * 5 - 4  # four squares keep one half each
    assert not (found == 1 * 6 + 2).any()
    x, y = np.meshgrid(np.arange(6.0), np.arange(4.0))
    a, b, c = (np.stack([x.ravel()[found[:, i]], y.ravel()[found[:, i]]], 1) for i in range(3))
    u, v = b - a, c - a
    assert np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum() / 2 == 3 * 5 - 2
    assert triangles(np.zeros((3, 3), dtype=bool)).shape == (0, 3)


def test_random_holes_are_never_reached_across() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        there = rng.uniform(size=(6, 7)) < 0.6
        found = triangles(there)
        assert there.ravel()[found].all()
        rows, columns = found // 7, found % 7
        assert (np.ptp(rows, axis=1) <= 1).all()
        assert (np.ptp(columns, axis=1) <= 1).all()
        assert len(np.unique(np.sort(found, axis=1), axis=0)) == len(found)


def test_holes_are_hatched_and_said_and_nothing_is_drawn_in_them() -> None:
    result = stored(with_holes(21, 17))
    grid = grid_of(result)
    assert (int(grid.missing.sum()), int(grid.broken.sum())) == (33, 12)
    figure = draw_slices([result])
    axes = panels(figure)["a"]
    gone = np.argwhere(grid.missing | grid.broken)
    for path in contours(axes, filled=True).get_paths():
        assert not path.contains_points(np.stack([grid.x[gone[:, 1]], grid.y[gone[:, 0]]], 1), radius=-1e-9).any()
    hatched = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_hatch()]
    assert len(hatched) == 2
    boxes = [path.get_extents() for c in hatched for path in c.get_paths()]
    for row, column in gone:
        assert any(box.contains(grid.x[column], grid.y[row]) for box in boxes)
    assert "33 of 357 cells not computed" in said(figure)
    assert "NaN or Inf in 12 of 357 cells" in said(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["not computed", "NaN or Inf"]


def test_values_of_cells_that_are_not_done_count_for_nothing() -> None:
    made = plane()
    done = made.done.copy()
    done[0] = False
    loss = made.loss.copy()
    loss[0] = 1e9
    assert loss_levels(stored(plane(loss=loss, done=done))).values[-1] < 10


def test_cells_that_are_alone_are_points() -> None:
    done = np.zeros((21, 21), dtype=bool)
    done[10, ::2] = True
    figure = draw_slices([stored(plane(done=done, loss=np.where(done, plane().loss, np.nan)))])
    points = [c for c in panels(figure)["a"].collections if isinstance(c, PathCollection)]
    assert len(points[0].get_offsets()) == 11


def test_holes_of_a_line_are_strips_and_gaps() -> None:
    made = line(31)
    loss, done = made.loss.copy(), made.done.copy()
    done[0, 25:] = False
    loss[0, 3:5] = np.inf
    axes = panels(draw_slices([stored(line(31, loss=loss, done=done))]))["a"]
    assert sum(bool(patch.get_hatch()) for patch in axes.patches) == 2 + 6
    drawn = np.asarray(axes.lines[0].get_ydata())
    assert np.isnan(drawn[[3, 4, *range(25, 31)]]).all()


def test_nothing_finite_is_a_figure_too() -> None:
    for made in (plane(loss=np.full((21, 21), np.nan)), line(loss=np.full((1, 41), np.inf))):
        assert render(draw_slices([stored(made)]), ".png").startswith(b"\x89PNG")


# --- marks, words, warnings -----------------------------------------------------------------------------------


def test_marks_are_joined_in_order_and_coloured_by_their_true_loss() -> None:
    way = trajectory()
    result = stored(plane(directions="pca", **way))
    axes = panels(draw_slices([result]))["a"]
    joined = [item for item in axes.lines if len(np.atleast_1d(item.get_xdata())) == 7]
    assert len(joined) == 2  # ink on white
    np.testing.assert_array_equal(np.asarray(joined[0].get_xydata()), np.stack([way["mark_x"], way["mark_y"]], 1))
    (points,) = (c for c in axes.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(points.get_facecolor(), loss_levels(result).colours(way["mark_loss"]))
    crosses = [item for item in axes.lines if item.get_marker() == "x"]
    np.testing.assert_array_equal([c.get_xydata() for c in crosses], np.zeros((2, 1, 2)))


def test_how_far_marks_are_off_is_said() -> None:
    way = trajectory()
    text = " ".join(remarks(stored(plane(**way)), grid_of(stored(plane()))))
    gap = np.abs(way["mark_loss"] - way["mark_surface_loss"]).max()
    assert "the 7 marks lie up to 2 off the plane" in text
    assert f"by up to {gap:.3g}" in text
    way["mark_x"] = way["mark_x"] * 3
    assert "outside the grid" in " ".join(remarks(stored(plane(**way)), grid_of(stored(plane()))))


def test_marks_between_checkpoints_are_no_trajectory() -> None:
    result = stored(plane(directions="between:to=a.pt,third=b.pt", **trajectory(2)))
    axes = panels(draw_slices([result]))["a"]
    assert all(len(np.atleast_1d(item.get_xdata())) == 1 for item in axes.lines)


def test_a_failed_self_check_is_in_the_figure() -> None:
    figure = draw_slices([stored(plane(loss_reference=0.7, slope_measured=np.array([0.5, -0.2])))])
    assert said(figure).count("SELF-CHECK FAILED") == 2
    several = [stored(plane(loss_reference=0.7 if w == 4 else plane().loss_centre), width=w) for w in (2, 4)]
    assert "SELF-CHECK FAILED: width 4" in said(draw_slices(several))
    assert "SELF-CHECK" not in said(draw_slices([stored(plane())]))


def test_axes_say_what_the_directions_are() -> None:
    result = stored(
        plane(direction=np.array(["one $", "component 2, 11 % of it"]), variance_explained=np.array([0.812, 0.11]))
    )
    first, second = axis_labels(result)
    assert first == r"one \$   ·   81.2 % of the variance   ·   1 = distance 3.25"
    assert second == "component 2, 11 % of it   ·   1 = distance 3.25"
    axes = panels(draw_slices([result]))["a"]
    assert "81.2 %" in axes.get_xlabel()
    assert "component 2" in axes.get_ylabel()


def test_formulas_survive_wrapping() -> None:
    text = wrapped(r"up to $1.50\times 10^{-8}$ off the plane", 12)
    assert all(row.count("$") % 2 == 0 for row in text.splitlines())


def test_further_metrics_have_panels_of_their_own() -> None:
    for made, first in ((plane(), "c"), (line(), "b")):
        extra = metrics(made)
        figure = draw_slices([stored((plane if first == "c" else line)(**extra))])
        titles = [a.get_title(loc="left") for a in figure.axes if a.get_title(loc="left")]
        words = [title.split("   ")[1] for title in titles if title[0] >= first]
        assert words == ["accuracy", "norm of the gradient", "largest eigenvalue", "smallest eigenvalue"]


# --- lines ----------------------------------------------------------------------------------------------------


def test_bands_are_the_quantiles() -> None:
    extra = planes(line())
    axes = panels(draw_slices([stored(line(**extra))]))["a"]
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2
    for band, (low, high) in zip(bands, ((0, 4), (1, 3)), strict=True):
        corners = band.get_paths()[0].vertices
        assert np.asarray(corners)[:, 1].min() == extra["loss_quantile"][low].min()
        assert np.asarray(corners)[:, 1].max() == extra["loss_quantile"][high].max()
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), extra["loss"][0])


def test_the_barrier_stands_on_the_straight_line() -> None:
    figure = draw_slices([between()])
    axes = panels(figure)["a"]
    (bar,) = (item for item in axes.lines if item.get_marker() == "_")
    np.testing.assert_allclose(np.asarray(bar.get_xydata()), [[0.5, 0.25], [0.5, 1.25]])
    (chord,) = (item for item in axes.lines if len(item.get_xdata()) == 65)
    ends = np.asarray(chord.get_xydata())  # straight in the loss, whatever the axis is
    np.testing.assert_allclose(ends[:, 1], np.interp(ends[:, 0], [0, 1], ends[[0, -1], 1]))
    np.testing.assert_allclose(np.interp(0.5, *ends.T), 0.25)
    assert any("barrier 1" in text.get_text() for text in axes.texts)
    assert "a lower bound" in said(figure)
    (mark,) = (item for item in axes.lines if item.get_marker() == "D")
    np.testing.assert_allclose(np.asarray(mark.get_xydata()), [[1, 0.3]])


def test_an_infinite_barrier_is_said_and_not_drawn() -> None:
    figure = draw_slices([between(barrier=np.inf)])
    assert "no finite barrier" in said(figure)
    assert not [item for item in panels(figure)["a"].lines if item.get_marker() == "_"]


# --- several --------------------------------------------------------------------------------------------------


def test_several_planes_share_one_scale_in_the_order_of_the_coordinate() -> None:
    results = [
        stored(plane(surface=lambda x, y, w=w: w * bowl(x, y)), width=w, seed=s)  # type: ignore[misc]
        for w, s in ((8, 1), (2, 0), (8, 0), (4, 0))
    ]
    figure = draw_slices(results)
    shown = [a for a in figure.axes if a.get_title(loc="left")]
    assert [a.get_title(loc="left") for a in shown] == ["width 2", "width 4", "width 8, seed 0", "width 8, seed 1"]
    edges = [contours(a, filled=True).levels for a in shown]
    assert all(np.array_equal(e, edges[0]) for e in edges)
    assert len(figure.axes) == 4 + 1  # one colour bar
    by_seed = draw_slices(results, by="seed")
    first = next(a for a in by_seed.axes if a.get_title(loc="left"))
    assert first.get_title(loc="left").startswith("seed 0")


def test_several_lines_share_one_panel() -> None:
    results = [stored(line(surface=lambda x, y, w=w: w * bowl(x, y)), width=w) for w in (4, 2)]  # type: ignore[misc]
    (axes,) = draw_slices(results).axes
    curves = [item for item in axes.lines if len(np.atleast_1d(item.get_xdata())) == 41]
    assert [item.get_label() for item in curves] == ["width 2", "width 4"]
    np.testing.assert_allclose(curves[1].get_ydata(), 2 * np.asarray(curves[0].get_ydata()))


def test_too_many_and_unlike_slices_are_refused() -> None:
    with pytest.raises(UsageError, match="25 slices are too many") as error:
        draw_slices([stored(plane(3, 3), width=w) for w in range(MOST + 1)])
    assert "24" in str(error.value)
    with pytest.raises(UsageError, match="1 of 2 slices are lines"):
        draw_slices([stored(plane()), stored(line())])
    with pytest.raises(UsageError, match="at least 2"):
        draw_slices([stored(plane(5, 1))])
    with pytest.raises(UsageError, match="no result"):
        draw_slices([])
    broken = stored(plane())
    del broken.arrays["done"]
    with pytest.raises(StorageError, match="lacks its axes"):
        draw_slices([broken])


# --- legibility and bytes -------------------------------------------------------------------------------------


def gallery() -> dict[str, list[StoredResult]]:
    long_name = "/data/$a$/" + "deep/" * 30 + "final.pt"
    far = plane(21, 9, (3.0, 0.01), **trajectory(2), loss_reference=9.0)
    return {
        "plane": [stored(plane(**metrics(plane())), checkpoint=long_name)],
        "valley": [stored(plane(31, 31, surface=valley))],
        "holes": [stored(with_holes(), status="interrupted")],
        "far": [stored(far)],
        "planes": [stored(plane(**planes(plane())))],
        "line": [stored(line(**metrics(line())))],
        "bands": [stored(line(**planes(line())))],
        "between": [between()],
        "two": [stored(plane(), width=w) for w in (1, 2)],
        "twelve": [stored(plane(11, 11), width=2**w, seed=s) for w in range(4) for s in range(3)],
        "twenty-four": [stored(plane(5, 5), width=2**w, seed=s) for w in range(8) for s in range(3)],
        "lines": [stored(line(), width=2**w, seed=s) for w in range(6) for s in range(4)],
        "names": [stored(plane(5, 5), checkpoint=f"{i}{long_name}") for i in range(3)],
    }


def overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    shown = [t for t in texts if t.get_visible() and t.get_text()]
    # Rotated labels have bounding boxes that overlap where the letters do not.
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if t.get_rotation() in (0, 90)]
    return [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


@pytest.mark.parametrize("name", list(gallery()))
def test_figures_are_legible(name: str) -> None:
    figure = draw_slices(gallery()[name])
    figure.draw_without_rendering()
    every: list[Text] = list(figure.texts)
    for axes in (a for a in figure.axes if a.name != "3d"):
        every += [axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]  # type: ignore[attr-defined]
        for axis, limits in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            every += [label for place, label in places if limits[0] <= place <= limits[1]]
    assert overlapping(every) == []
    for text in every:
        if text.get_visible() and text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y0 >= 0
            assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("suffix", "name"), [(".png", "holes"), (".svg", "far"), (".pdf", "twelve"), (".svg", "between")]
)
def test_same_results_same_bytes(suffix: str, name: str) -> None:
    data = render(draw_slices(gallery()[name]), suffix)
    assert render(draw_slices(gallery()[name]), suffix) == data
    assert is_ours(data, suffix)
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate", data)


def test_large_grids_stay_small_on_paper() -> None:
    data = render(draw_slices([stored(plane(301, 301))]), ".pdf")
    assert len(data) < 2_000_000
