"""Figures show what the results say: data of the artists, legibility, same bytes, odd spectra."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from landscape.errors import UsageError
from landscape.figures.scale import decade_label, decade_ticks
from landscape.figures.series import arrange, caveats, choose_coordinate
from landscape.figures.spectra import draw_spectra
from landscape.figures.spectra_panels import extreme
from landscape.figures.spectrum_detail import draw_spectrum, statements
from landscape.figures.style import is_ours, render
from landscape.figures.transform import from_axis, to_axis
from landscape.figures.values import interval, linear_width, number, per_decade
from landscape.results.store import StoredResult
from samples import sample_spectrum
from spectra import gallery, probed, spectrum_of, stored, sweep, without_density


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Data of the one line with this label."""
    (found,) = (item for item in axes.lines if item.get_label() == label)
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def lines(axes: Axes, label: str) -> list[np.ndarray]:
    return [np.asarray(item.get_xydata()) for item in axes.lines if item.get_label() == label]


def panels(figure: Figure) -> dict[str, Axes]:
    """Axes by the letter that starts their title."""
    return {a.get_title(loc="left")[0]: a for a in figure.axes if a.get_title(loc="left")}


# --- one spectrum ---------------------------------------------------------------------------------------------


def test_density_is_per_decade_of_the_axis() -> None:
    result = stored(probed())
    x, y = line(panels(draw_spectrum(result))["a"], "density")
    width = linear_width(result)
    grid, density = (result.arrays[name].values for name in ("grid", "density"))
    np.testing.assert_array_equal(x, grid)
    # Each cell's area over the axis is the number of its eigenvalues.
    curve = per_decade(result, width)
    assert curve is not None
    np.testing.assert_allclose(y, np.fmax(curve.y, 0.5))
    areas = (curve.y[::2] + curve.y[1::2]) / 2 * np.diff(to_axis(curve.x, width))[::2]
    np.testing.assert_allclose(areas, 48 * density[::2] * np.diff(grid)[::2], atol=1e-12)
    assert np.sum(areas) == pytest.approx(48)


def test_a_density_of_an_older_version_is_drawn_and_said() -> None:
    """Those had a kernel of varying width on a scale of its own, and no brackets."""
    none = dict.fromkeys(("node_low", "node_high", "node_residual", "deflated_value", "deflated_residual"))
    grid = np.linspace(-1, 5, 50)
    fields = {"grid": grid, "kernel_width": 0.1 * np.hypot(grid, 0.1), "density": np.exp(-np.abs(grid))}
    ends = {"density_low": fields["density"] / 2, "density_high": fields["density"] * 2}
    old = stored(probed(**none, **fields, **ends))
    x, _ = line(panels(draw_spectrum(old))["a"], "density")
    np.testing.assert_array_equal(x, grid)
    assert any("older version" in note for note in caveats([old]))
    assert caveats([stored(probed())]) == []


def test_a_density_with_a_width_is_drawn_even_where_all_is_known() -> None:
    x, _ = line(panels(draw_spectrum(stored(sample_spectrum())))["a"], "density")
    np.testing.assert_array_equal(x, sample_spectrum().grid)


def test_all_eigenvalues_are_counted() -> None:
    eigenvalues = np.concatenate([np.full(7, 1e-17), np.full(6, -1e-17), [-0.5, -1e-3, 1e-3, 2.0]])
    result = stored(spectrum_of(eigenvalues))
    width = linear_width(result)
    curve = per_decade(result, width, decades=0.2)
    assert curve is not None
    assert curve.low is None
    position = to_axis(curve.x, width)
    counts = (curve.y[::2] * np.diff(position)[::2]).round(9)
    assert counts.sum() == 17
    holds_zero = (curve.x[::2] < 0) & (curve.x[1::2] > 0)
    assert counts[holds_zero].tolist() == [13]  # round-off of both signs in one bin


def test_axis_transform_inverts() -> None:
    values = np.array([-1e3, -1e-8, 0.0, 1e-5, 7.0])
    np.testing.assert_allclose(from_axis(to_axis(values, 1e-4), 1e-4), values, rtol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "width", "expected"),
    [
        (-2e-2, 3.0, 1e-6, [-1e-2, -1e-4, 0, 1e-4, 1e-2, 1]),
        (-4e-4, 0.2, 1.2e-4, [-2e-4, 0, 1e-3, 1e-2, 1e-1]),
        (0.02, 3.0, 1e-6, [0.1, 1]),
        (-1e-9, 5e3, 1e-3, [0, 1e-2, 1e-1, 1, 10, 100, 1000]),
    ],
)
def test_ticks_of_the_eigenvalue_axis(low: float, high: float, width: float, expected: list[float]) -> None:
    assert decade_ticks(low, high, width, most=8)[0] == pytest.approx(expected)


def test_labels_of_the_eigenvalue_axis() -> None:
    found = [decade_label(v) for v in (0, 1, -10, 1e-3, -2e-4, 1e5)]
    assert found == ["0", "$1$", "$-10$", "$10^{-3}$", r"$-2\times 10^{-4}$", "$10^{5}$"]


def test_ends_show_value_residual_and_convergence() -> None:
    result = stored(probed(top_converged=np.array([True, True, True, False, False]), top_residual=np.full(5, 0.01)))
    top = panels(draw_spectrum(result))["b"]
    points = top.collections[-1]
    np.testing.assert_allclose(np.asarray(points.get_offsets())[:, 1], result.arrays["top_value"].values)
    faces = [to_hex(face) == "#ffffff" for face in np.asarray(points.get_facecolor())]
    assert faces == [False, False, False, True, True]
    bars = next(iter(top.containers)).lines[2][0].get_segments()  # type: ignore[union-attr]
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in bars], 0.02)


def test_outliers_are_marked_in_the_density() -> None:
    result = stored(probed())
    marked = np.concatenate([c.lines[0].get_xdata() for c in panels(draw_spectrum(result))["a"].containers])
    both = [result.arrays[f"{end}_value"].values for end in ("top", "bottom")]
    np.testing.assert_allclose(np.sort(marked), np.sort(np.concatenate(both)))


def test_exclusion_bound_is_drawn_and_said() -> None:
    result = stored(probed())
    smallest = panels(draw_spectrum(result))["c"]
    assert any(np.allclose(item.get_ydata(), -0.02) for item in smallest.lines)
    assert "−0.0200" in dict(statements(result))["exclusion"]
    assert "≤ 0.001" in dict(statements(result))["exclusion"]
    assert "dense" in dict(statements(stored(spectrum_of(np.arange(9.0)))))["exclusion"]


def test_statements_carry_their_bounds() -> None:
    said = dict(statements(stored(sample_spectrum(trace=41.2, trace_low=40.9, trace_high=41.5))))
    assert said["trace"] == "41.2 [40.9, 41.5]"
    assert said["negative count"].startswith("20 to 22 of 40 below −τ")
    assert re.fullmatch(r"3\.72 \[3\.35, 4\.09\] % of .*", said["negative mass"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1234567.0, "1\u2009234\u2009567"),
        (-0.01234, "−0.0123"),
        (1.5e-8, r"$1.50\times 10^{-8}$"),
        (2001.3, "2\u2009001"),
        (float("nan"), "NaN"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_in_words(value: float, text: str) -> None:
    assert number(value) == text


def test_interval_tells_its_ends_apart() -> None:
    assert interval(1000.02, 1000.01, 1000.03) == "1\u2009000.02 [1\u2009000.01, 1\u2009000.03]"
    assert interval(3.0, 3.0, 3.0) == "3"
    assert interval(3.0, float("nan"), 4.0) == "3"


# --- several --------------------------------------------------------------------------------------------------


def test_a_point_for_every_seed_and_a_line_of_medians() -> None:
    results = sweep()
    top = panels(draw_spectra(results))["b"]
    values = np.array([r.arrays["top_value"].values[0] for r in results]).reshape(4, 3)
    drawn = np.array(lines(top, "result")).reshape(4, 3, 2)
    np.testing.assert_array_equal(drawn[:, :, 1], values)
    place, middle = line(top, "median")
    np.testing.assert_array_equal(place, [4, 8, 16, 64])
    np.testing.assert_allclose(middle, np.median(values, axis=1))
    # Seeds stand side by side, nearer to their width than to any other.
    assert all(abs(np.log(drawn[i, :, 0] / place[i])).max() < np.log(2) / 4 for i in range(4))


def test_a_ridge_for_every_width_in_ascending_order() -> None:
    ridges = panels(draw_spectra(list(reversed(sweep()))))["a"]
    assert [label.get_text() for label in ridges.get_yticklabels()] == ["4", "8", "16", "64"]
    medians = lines(ridges, "median")
    assert [int(m[:, 1].min()) for m in medians] == [0, 1, 2, 3]
    assert len(lines(ridges, "seed")) == 12


def test_bounds_reach_as_far_as_they_say() -> None:
    count = {"negative_count_low": np.array([3, 2, 1]), "negative_count_high": np.array([30, 20, 10])}
    results = [stored(probed(**count), width=w) for w in (2, 4)]
    shown = panels(draw_spectra(results))
    assert [b[:, 1].tolist() for b in lines(shown["d"], "bounds")] == [[3, 30], [3, 30]]
    assert [b[0, 1] for b in lines(shown["c"], "reach")] == [-0.02, -0.02]
    assert extreme(results[0], "bottom").low < extreme(results[0], "bottom").value


@pytest.mark.parametrize(
    ("coordinates", "by", "expected"),
    [
        ([{"width": 1, "seed": 0}, {"width": 2, "seed": 1}], None, "width"),
        ([{"width": 1, "step": 5}, {"width": 1, "step": 6}], None, "step"),
        ([{"width": 1, "seed": 5}, {"width": 1, "seed": 6}], None, "seed"),
        ([{"width": 1}, {"seed": 6}], None, "checkpoint"),
        ([{}, {}], None, "checkpoint"),
        ([{"width": 1, "lr": 0.1}, {"width": 2, "lr": 0.2}], "lr", "lr"),
        ([{"width": 1}, {"width": 2}], "parameters", "parameters"),
    ],
)
def test_choice_of_coordinate(coordinates: list[dict[str, Any]], by: str | None, expected: str) -> None:
    assert choose_coordinate([stored(sample_spectrum(), **c) for c in coordinates], by) == expected


def test_number_of_parameters_is_the_last_resort() -> None:
    results = [stored(spectrum_of(np.arange(1.0, n))) for n in (20, 30)]
    assert choose_coordinate(results, None) == "parameters"
    assert [row.position for row in arrange(results).rows] == [19, 29]


def test_a_missing_coordinate_is_named() -> None:
    results = [stored(sample_spectrum(), width=1), stored(sample_spectrum(), checkpoint="other.pt", seed=1)]
    with pytest.raises(UsageError, match=r"1 of 2 results have no coordinate 'width', such as that of other\.pt") as e:
        draw_spectra(results, by="width")
    assert "parameters" in str(e.value.hint)


def test_operators_do_not_mix() -> None:
    results = [stored(sample_spectrum(operator=name), width=i) for i, name in enumerate(("hessian", "ggn"))]
    with pytest.raises(UsageError, match="different operators"):
        draw_spectra(results)
    with pytest.raises(UsageError, match="different operators"):
        caveats(results)


def test_caveats_name_what_differs() -> None:
    results = [
        stored(sample_spectrum(samples=10), width=1, lr=0.1),
        stored(without_density(samples=20), width=1, lr=0.2, status="interrupted"),
    ]
    said = " / ".join(caveats(results, by="width"))
    for words in ("samples", "differ in lr", "1 of 2 results are of unfinished", "1 of 2 results hold no density"):
        assert words in said
    assert caveats(sweep()) == []


# --- odd spectra, legibility, bytes ---------------------------------------------------------------------------


def draw(results: list[StoredResult]) -> Figure:
    return draw_spectrum(results[0]) if len(results) == 1 else draw_spectra(results)


def overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    shown = [t for t in texts if t.get_visible() and t.get_text()]
    # Rotated labels have bounding boxes that overlap where the letters do not.
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if t.get_rotation() in (0, 90)]
    return [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


@pytest.mark.parametrize("name", list(gallery()))
def test_figures_of_odd_spectra_are_legible(name: str) -> None:
    figure = draw(gallery()[name])
    figure.draw_without_rendering()
    for axes in figure.axes:
        x_low, x_high = sorted(axes.get_xlim())
        y_low, y_high = sorted(axes.get_ylim())
        ticks = [
            label for t, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if x_low <= t <= x_high
        ]
        ticks += [
            label for t, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True) if y_low <= t <= y_high
        ]
        legend = axes.get_legend()
        words = [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
        assert overlapping([*ticks, *words, *(legend.get_texts() if legend else [])]) == []
    for text in figure.findobj(Text):
        if (
            text.get_visible()
            and text.get_text()
            and text in [*figure.texts, *(t for a in figure.axes for t in a.texts)]
        ):
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
    assert overlapping(list(figure.texts)) == []


@pytest.mark.parametrize(("suffix", "name"), [("png", "probed"), ("svg", "sweep"), ("pdf", "dense")])
def test_same_results_same_bytes(suffix: str, name: str) -> None:
    results = gallery()[name]
    data = render(draw(results), f".{suffix}")
    assert render(draw(results), f".{suffix.upper()}") == data
    assert is_ours(data, f".{suffix}")
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate", data)


def test_a_foreign_image_is_not_ours() -> None:
    assert not is_ours(b"\x89PNG\r\n\x1a\n", ".png")
    assert not is_ours(b"", ".svg")


def test_png_is_sharp_enough_for_print() -> None:
    data = render(draw_spectrum(stored(probed())), ".png")
    assert int.from_bytes(data[16:20]) == 2100  # 7 inches at 300 dpi


def test_formats_that_are_not_ours_are_refused() -> None:
    for suffix in (".jpg", "", ".h5"):
        with pytest.raises(UsageError) as error:
            render(Figure(), suffix)
        assert ".png, .svg, .pdf" in str(error.value.hint)


def test_no_global_state() -> None:
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        figure = draw_spectrum(stored(probed()))
        render(figure, ".svg")
        assert dict(matplotlib.rcParams) == before
        assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


def test_no_pyplot() -> None:
    code = "import sys, landscape.figures.spectra; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
