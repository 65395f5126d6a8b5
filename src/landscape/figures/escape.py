"""The figure of a way out: the line through a saddle with its even and odd parts, and the descent from there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.figures.descend import COLOURS
from landscape.figures.style import INK, MUTED, NEGATIVE, POSITIVE, new_figure, paper_style
from landscape.results.reading import StoredLike, scalar

HEIGHT = 2.9


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure of the only result, and what its readers must know."""
    return draw_escape(found[0]), []


def draw_escape(result: StoredLike) -> Figure:
    """Loss along the direction, its even and odd parts, and the descent from the better side."""
    arrays = result.arrays
    offsets = arrays["offset_length"].values
    with paper_style():
        figure = new_figure(HEIGHT, head=0.35)
        line, parts, path = figure.subplots(1, 3)
        line.plot(offsets, arrays["line_loss"].values, color=INK)
        line.plot(0, scalar(result, "loss"), "o", color=POSITIVE, ms=4)
        for step, gain in zip(arrays["side_step"].values, arrays["side_gain"].values, strict=True):
            line.plot(step, scalar(result, "loss") - gain, "v", color=NEGATIVE, ms=4)
        line.set_title("a   loss along the direction", fontweight="bold")
        line.set_xlabel("distance")
        line.set_ylabel("loss")
        parts.plot(offsets, arrays["line_even"].values, color=POSITIVE, label="even")
        parts.plot(offsets, arrays["line_odd"].values, color=NEGATIVE, label="odd")
        curvature = 0.5 * scalar(result, "direction_value") * offsets**2
        inside = np.abs(curvature) <= 1.2 * np.nanmax(np.abs(arrays["line_even"].values))
        parts.plot(offsets[inside], curvature[inside], color=MUTED, ls=(0, (4, 3)), lw=0.7, label="½ λ t²")
        parts.legend()
        parts.set_title("b   even and odd parts", fontweight="bold")
        parts.set_xlabel("distance")
        _draw_path(path, result)
        words = f"{result.provenance.checkpoint}   ·   {result.attributes['verdict']}"
        figure.text(0.012, 0.98, words, fontsize=6.6, color=MUTED, va="top", parse_math=False)
    return figure


def _draw_path(axes: Axes, result: StoredLike) -> None:
    axes.set_title("c   descent from there", fontweight="bold")
    if "path_loss" not in result.arrays:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was followed", ha="center", va="center", color=MUTED)
        return
    values = np.concatenate([[scalar(result, "loss")], np.maximum(result.arrays["path_loss"].values, 1e-34)])
    end = str(result.attributes["end_verdict"])
    axes.plot(np.arange(len(values)) + 1, values, color=COLOURS.get(end, INK), label=f"ends: {end}")
    if "control_loss" in result.arrays:
        controls = np.maximum(result.arrays["control_loss"].values, 1e-34)
        axes.plot(np.full(len(controls), len(values) + 1), controls, "x", color=MUTED, ms=3, label="random kicks end")
    axes.set_xscale("log")
    if values.min() < 0.05 * values[0]:
        axes.set_yscale("log")
    axes.set_xlabel("iteration + 1")
    axes.legend()
