"""The figure of widening: the signature of a split, eigenvalues foretold and found, losses reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.figures.style import INK, MUTED, NEGATIVE, POSITIVE, new_figure, paper_style
from landscape.results.reading import StoredLike, scalar

HEIGHT = 2.9


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure of the only result, and what its readers must know."""
    return draw_widen(found[0]), []


def draw_widen(result: StoredLike) -> Figure:
    """Loss along the old dimensions and along the new ones; inertia foretold against found; losses reached."""
    arrays = result.arrays
    lowest = arrays["lambda_min"].values
    best = int(np.argmin(lowest))
    if "escape_loss" in arrays and np.isfinite(arrays["escape_loss"].values).any():
        best = int(np.nanargmin(arrays["escape_loss"].values))
    with paper_style():
        figure = new_figure(HEIGHT + 0.3, head=0.35)
        lines, inertia, reached = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
        _draw_signature(lines, result, best)
        _draw_inertia(inertia, result)
        _draw_reached(reached, result)
        words = f"{result.provenance.checkpoint}   ·   layer {result.attributes['layer']}, {len(lowest)} splits"
        figure.text(0.012, 0.98, words, fontsize=6.6, color=MUTED, va="top", parse_math=False)
    return figure


def _draw_signature(axes: Axes, result: StoredLike, best: int) -> None:
    arrays = result.arrays
    offsets, old, new = (arrays[n].values for n in ("offset_length", "old_loss", "new_loss"))
    base = scalar(result, "loss")
    axes.plot(offsets, old, color=POSITIVE, lw=1.4, label="narrow network, lowest eigenvector")
    for i, line in enumerate(new):
        if i != best:
            axes.plot(offsets, line, color=MUTED, lw=0.4, alpha=0.5)
    axes.plot(offsets, new[best], color=NEGATIVE, lw=1.4, label=f"after splitting {arrays['split'].values[best]}")
    axes.plot(0, base, "o", color=INK, ms=4)
    deepest = float(np.nanmin(new[best]))
    drop = max(base - deepest, 1e-3 * max(abs(base), 1e-12))
    axes.set_ylim(deepest - 0.15 * drop, base + 2.5 * drop)
    axes.set_title("a   the old dimensions and the new", fontweight="bold")
    axes.set_xlabel("distance along the direction")
    axes.set_ylabel("loss")
    axes.legend(loc="upper center", frameon=True, framealpha=0.85, edgecolor="none")


def _draw_inertia(axes: Axes, result: StoredLike) -> None:
    """Every split a point: found against foretold, jittered by nothing, so that the diagonal is exact."""
    arrays = result.arrays
    axes.set_title("b   eigenvalues", fontweight="bold")
    if "predicted_negative" not in arrays:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no critical point:\nnothing is foretold", ha="center", va="center", color=MUTED)
        return
    for name, colour in (("negative", NEGATIVE), ("zero", POSITIVE)):
        foretold, found = arrays[f"predicted_{name}"].values, arrays[f"measured_{name}"].values
        pairs, counts = np.unique(np.stack([foretold, found], 1), axis=0, return_counts=True)
        shift = -0.08 if name == "zero" else 0.08
        axes.scatter(pairs[:, 0] + shift, pairs[:, 1], s=12 + 8 * np.sqrt(counts), color=colour, label=name, lw=0)
    most = max(1.0, *(float(arrays[f"measured_{n}"].values.max()) for n in ("negative", "zero")))
    axes.plot([0, most], [0, most], color=MUTED, lw=0.6, zorder=0)
    axes.set_xlabel("foretold")
    axes.set_ylabel("found")
    axes.locator_params(integer=True)
    axes.legend()


def _draw_reached(axes: Axes, result: StoredLike) -> None:
    arrays = result.arrays
    axes.set_title("c   losses reached", fontweight="bold")
    if "escape_loss" not in arrays:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not followed (--follow)", ha="center", va="center", color=MUTED)
        return
    columns = [("ways out", arrays["escape_loss"].values, NEGATIVE)]
    if "control_loss" in arrays:
        columns.append(("kicks,\nwide", arrays["control_loss"].values.ravel(), MUTED))
        columns.append(("kicks,\nnarrow", arrays["narrow_control_loss"].values.ravel(), MUTED))
    for place, (_, values, colour) in enumerate(columns):
        values = np.maximum(values[np.isfinite(values)], 1e-34)
        spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(place + spread, np.sort(values), ".", color=colour, ms=3.5)
    axes.axhline(scalar(result, "loss"), color=INK, lw=0.6, ls=(0, (4, 3)))
    axes.set_xticks(range(len(columns)), [name for name, _, _ in columns])
    lowest = min((float(np.nanmin(v)) for _, v, _ in columns if np.isfinite(v).any()), default=1.0)
    if lowest < 0.02 * scalar(result, "loss"):
        axes.set_yscale("log")
    axes.set_ylabel("loss (dashed: before)")
