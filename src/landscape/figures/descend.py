"""Figure of descents: loss, gradient and norm along the way of each, and the verdicts against width."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from landscape.figures.series import Series, arrange
from landscape.figures.style import INK, MUTED, new_figure, paper_style
from landscape.points.certificate import STATIONARY, VERDICTS
from landscape.results.reading import StoredLike, scalar

HEIGHT = 4.2
# Okabe-Ito, so that verdicts are told apart by colour-blind readers.
COLOURS = dict(
    zip(VERDICTS, ("#0072b2", "#d55e00", "#56b4e9", "#cc79a7", "#e69f00", "#999999", "#f0e442", "#000000"), strict=True)
)
# What is exactly zero is drawn here on a logarithmic axis.
ZERO = 1e-34


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure, and what its readers must know."""
    return draw_descents(found, by), []


def draw_descents(results: Sequence[StoredLike], by: str | None = None) -> Figure:
    """Four panels; every descent is a line in the colour of its verdict."""
    series = arrange(results, by)
    with paper_style():
        figure = new_figure(HEIGHT, head=0.25)
        panels = figure.subplots(2, 2)
        _draw_paths(panels[0, 0], results, "path_loss", "a   loss", "loss")
        _draw_paths(panels[0, 1], results, "path_gradient_inf", "b   largest entry of the gradient", "max |gradient|")
        _draw_aim(panels[0, 1], results)
        _draw_paths(panels[1, 0], results, "path_norm", "c   norm of the parameters", "norm")
        if len(results) == 1:
            _draw_certificate(panels[1, 1], results[0])
        else:
            _draw_verdicts(panels[1, 1], series)
        found = Counter(verdict(r) for r in results)
        words = f"{len(results)} descents" if len(results) > 1 else results[0].provenance.checkpoint
        figure.text(0.012, 0.985, words, fontsize=6.6, color=MUTED, va="top", parse_math=False)
        keys = [Line2D([], [], color=COLOURS[v], lw=1.6, label=f"{n} {v}") for v, n in found.most_common()]
        figure.legend(handles=keys, loc="upper right", ncols=len(keys), borderaxespad=0.4)
    return figure


def verdict(result: StoredLike) -> str:
    """The verdict that the result's file holds."""
    said = str(result.attributes["verdict"])
    return said if said in COLOURS else "unresolved"


def _draw_paths(axes: Axes, results: Sequence[StoredLike], name: str, title: str, label: str) -> None:
    ink = float(np.clip(8 / len(results), 0.15, 0.9))
    for result in results:
        values = np.maximum(result.arrays[name].values, ZERO)
        colour = COLOURS[verdict(result)]
        axes.plot(np.arange(len(values)) + 1, values, color=colour, alpha=ink, lw=0.7)
        axes.plot(len(values), values[-1], ".", color=colour, ms=3)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xlabel("iteration + 1")
    axes.set_ylabel(label)
    axes.set_title(title, fontweight="bold")


def _draw_verdicts(axes: Axes, series: Series) -> None:
    """Shares of the verdicts at each value of the coordinate, as stacked bars."""
    places = np.arange(len(series.rows))
    base = np.zeros(len(series.rows))
    for name in VERDICTS:
        share = np.array([np.mean([verdict(r) == name for r in row.results]) for row in series.rows])
        if share.any():
            axes.bar(places, share, 0.8, bottom=base, color=COLOURS[name], lw=0)
        base += share
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    labels = [f"{row.label}\n({len(row.results)})" for row in series.rows]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.set_xlabel(f"{series.name} (runs)")
    axes.set_ylabel("share of runs")
    axes.set_ylim(0, 1)
    axes.set_title(f"d   verdicts against {series.name}", fontweight="bold")


def _draw_aim(axes: Axes, results: Sequence[StoredLike]) -> None:
    """What a gradient must be below at least to be nothing beside the pull of the data, for a single descent."""
    pull = scalar(results[0], "certificate.gradient_pull") if len(results) == 1 else math.nan
    if math.isfinite(pull):
        aim = max(STATIONARY * pull, ZERO)
        axes.axhline(aim, color=MUTED, lw=0.6, ls=(0, (4, 3)))
        axes.text(0.01, aim, "stationary below", transform=axes.get_yaxis_transform(), fontsize=6, va="bottom")


def _draw_certificate(axes: Axes, result: StoredLike) -> None:
    """The certificate's numbers, for a single descent."""
    low, value, high = (scalar(result, f"certificate.lambda_min.{end}") for end in ("low", "value", "high"))
    zeros, named = (json.loads(result.attributes[f"certificate.{name}"]) for name in ("zeros", "symmetries"))
    lines = [
        f"{verdict(result)}",
        f"loss {scalar(result, 'loss_before'):.6g} → {scalar(result, 'loss'):.6g}",
        f"max |gradient| {scalar(result, 'certificate.gradient_inf'):.1e}",
        f"lowest eigenvalue {value:.5g}",
        f"   in [{low:.5g}, {high:.5g}]",
        f"largest |eigenvalue| {scalar(result, 'certificate.lambda_max'):.5g}",
        f"{int(scalar(result, 'certificate.negative'))} negative",
        "zero: " + (", ".join(f"{k} at {tau}" for tau, k in zeros.items()) or "not counted"),
        "by symmetry: " + (", ".join(f"{k} {s}" for s, k in named.items()) or "none"),
    ]
    axes.set_axis_off()
    axes.set_title("d   certificate", fontweight="bold")
    axes.text(0.02, 0.98, "\n".join(lines), va="top", fontsize=7, color=INK, parse_math=False, linespacing=1.5)
