"""Figure of one spectrum: the density with its error band, both ends with their bounds, the numbers in words."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from landscape.figures.scale import decade_label, pad, set_adaptive, set_asinh
from landscape.figures.style import INK, MUTED, NEGATIVE, POSITIVE, new_figure, paper_style
from landscape.figures.transform import to_axis
from landscape.figures.values import (
    Curve,
    Pairs,
    interval,
    linear_width,
    number,
    one_operator,
    pairs,
    per_decade,
    resolution,
    smoothed,
)
from landscape.results.reading import StoredLike, scalar, values

HEIGHT = 3.9
FLOOR = 0.5  # eigenvalues per decade; below half of one there is nothing but the tails of the kernel


def draw_spectrum(result: StoredLike) -> Figure:
    """Density on an asinh axis, extreme eigenvalues with residuals, and trace, negative part and exclusion."""
    with paper_style():
        figure = new_figure(HEIGHT, head=0.41)
        grid = GridSpec(3, 2, figure, width_ratios=[2.15, 1], height_ratios=[1, 1, 0.3])
        density = figure.add_subplot(grid[:2, 0])
        _draw_density(density, result)
        _draw_end(figure.add_subplot(grid[0, 1]), result, "top")
        _draw_end(figure.add_subplot(grid[1, 1]), result, "bottom")
        _write_numbers(figure.add_subplot(grid[2, :]), result)
        _write_title(figure, result)
    return figure


def spectrum_limits(result: StoredLike, curve: Curve | None, width: float) -> tuple[float, float]:
    """Eigenvalue range to show: both ends with residuals, and the density where it is above `FLOOR`."""
    seen = [np.array([-width, width]) if curve is None else curve.x[curve.y >= FLOOR]]
    for end in ("top", "bottom"):
        found = pairs(result, end)
        seen += [found.value - found.residual, found.value + found.residual]
    every = np.concatenate(seen)
    return pad(float(every.min()), float(every.max()), width) if every.size else (-width, width)


def tint_negative(axes: Axes, limits: tuple[float, float], unresolved: float) -> bool:
    """Shade the negative side, and in grey what is too close to zero to have a sign; returns whether there is grey."""
    if limits[0] < -unresolved:
        axes.axvspan(limits[0], -unresolved, color=NEGATIVE, alpha=0.06, lw=0, zorder=0)
    if unresolved > 0 and limits[0] < unresolved and limits[1] > -unresolved:
        left, right = max(-unresolved, limits[0]), min(unresolved, limits[1])
        axes.axvspan(left, right, color=INK, alpha=0.07, lw=0, zorder=0)
        return True
    return False


def _draw_density(axes: Axes, result: StoredLike) -> None:
    """Panel a."""
    width = linear_width(result)
    unresolved = resolution(result)
    curve = per_decade(result, width)
    limits = spectrum_limits(result, curve, width)
    tinted = tint_negative(axes, limits, unresolved)
    if curve is None:
        axes.text(0.5, 0.5, "no density was computed", transform=axes.transAxes, ha="center", color=MUTED)
    else:
        _draw_curve(axes, curve)
    axes.set_yscale("log")
    axes.axhline(FLOOR, color=INK, lw=0.5, zorder=1)
    bottom, top = _density_limits(curve, limits, width)
    axes.set_ylim(bottom, top)
    _count_ticks(axes, top)
    mark = math.sqrt(bottom * FLOOR)
    marked = [_mark_outliers(axes, pairs(result, end), mark) for end in ("top", "bottom")]
    set_asinh(axes, "x", limits, width, most=9)
    axes.set_xlabel("eigenvalue λ   (linear around 0, then logarithmic)")
    axes.set_ylabel("eigenvalues per decade of |λ|")
    axes.set_title("a   spectral density", fontweight="bold")
    _explain(axes, result, curve, any(marked), tinted)


def _density_limits(curve: Curve | None, limits: tuple[float, float], width: float) -> tuple[float, float]:
    """Room below `FLOOR` for the marks of the outliers, and at the upper right for the legend."""
    if curve is None:
        return FLOOR * 0.6, 10.0
    upper = curve.y if curve.high is None else np.fmax(curve.y, curve.high)
    highest = max(float(np.nanmax(upper)), 10.0)
    bottom = FLOOR * (FLOOR / highest) ** 0.14
    ends = to_axis(np.array(limits), width)
    right = upper[to_axis(curve.x, width) > 0.45 * ends[0] + 0.55 * ends[1]]
    beside = max(float(np.nanmax(right, initial=0.0)), FLOOR)
    return bottom, max(highest**1.08, bottom * (beside / bottom) ** (1 / 0.74))


def _count_ticks(axes: Axes, top: float) -> None:
    """Ticks on the log axis from `FLOOR` up: the strip below belongs to the marks of the outliers."""
    decades = math.ceil(math.log10(top))
    every = max(1, math.ceil(decades / 6))
    axes.yaxis.set_major_locator(FixedLocator([10.0**k for k in range(0, decades + 1, every)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: decade_label(v)))
    minor = [m * 10.0**k for k in range(-1, decades + 1) for m in (range(2, 10) if every == 1 else (1,))]
    axes.yaxis.set_minor_locator(FixedLocator([v for v in minor if FLOOR <= v <= top]))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """The density, its band and a fill that tells the signs apart."""
    if curve.low is not None and curve.high is not None:
        low, high = np.fmax(curve.low, FLOOR), np.fmax(curve.high, FLOOR)
        axes.fill_between(curve.x, low, high, color=MUTED, alpha=0.45, lw=0, zorder=2, label="interval")
    line = np.fmax(curve.y, FLOOR)
    left, right = curve.x[:-1], curve.x[1:]
    around = (left < 0) & (right > 0)  # the interval or bin that holds zero has no sign
    for piece, colour in ((right <= 0, NEGATIVE), (around, MUTED), (left >= 0, POSITIVE)):
        where = np.append(piece, False) | np.append(False, piece)
        axes.fill_between(curve.x, FLOOR, line, where=where.tolist(), color=colour, alpha=0.28, lw=0)
    axes.plot(curve.x, line, color=INK, lw=0.9, zorder=3, label="density")


def _mark_outliers(axes: Axes, found: Pairs, height: float) -> bool:
    """Every computed eigenvalue as a tick with its residual; returns whether there was one."""
    for sign, colour in ((found.value < 0, NEGATIVE), (found.value >= 0, POSITIVE)):
        for exact in (True, False):
            which = sign & (found.deflated == exact)
            if which.any():
                axes.errorbar(
                    found.value[which],
                    np.full(int(which.sum()), height),
                    xerr=found.residual[which],
                    fmt="|",
                    ms=6.5 if exact else 4.0,
                    mew=0.9,
                    color=colour,
                    elinewidth=0.7,
                    alpha=1.0 if exact else 0.6,
                    zorder=4,
                )
    return found.value.size > 0


def _explain(axes: Axes, result: StoredLike, curve: Curve | None, marks: bool, tinted: bool) -> None:
    """Legend of panel a."""
    handles: list[Line2D | Patch] = []
    if curve is not None:
        exact, cells = values(result, "eigenvalues") is not None, smoothed(result) == "cells"
        name = "all eigenvalues, in bins" if exact and cells else "eigenvalues in cells" if cells else "density"
        handles.append(Line2D([], [], color=INK, lw=0.9, label=name))
        if curve.low is not None:
            name = "95 %, for any cells together" if cells else "95 % at each point"
            handles.append(Patch(color=MUTED, alpha=0.45, lw=0, label=name))
    if marks:
        handles.append(Line2D([], [], color=POSITIVE, marker="|", ls="", ms=6, mew=0.9, label="computed, ± residual"))
    if tinted:
        handles.append(Patch(color=INK, alpha=0.10, lw=0, label="sign not resolved"))
    axes.legend(handles=handles, loc="upper right")


def _draw_end(axes: Axes, result: StoredLike, end: str) -> None:
    """Panels b and c: eigenvalues by rank with their residuals, hollow where not converged."""
    found = pairs(result, end)
    letter, words = ("b", "largest eigenvalues") if end == "top" else ("c", "smallest eigenvalues")
    axes.set_title(f"{letter}   {words}", fontweight="bold")
    axes.set_xlabel("rank")
    if found.value.size == 0:
        axes.text(0.5, 0.5, "none computed", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set(xticks=[], yticks=[])
        return
    tau = scalar(result, "tau_absolute")
    tau = tau if tau > 0 else 0.0
    spread = [found.value - found.residual, found.value + found.residual]
    if end == "bottom":
        axes.axhspan(-tau, tau, color=INK, alpha=0.10, lw=0, zorder=0)
        axes.axhline(0, color=MUTED, lw=0.5, zorder=1)
        below = scalar(result, "excluded_below")
        # A bound far below the values would flatten them; the text gives it in any case.
        if scalar(result, "excluded_probability") > 0 and -4 * np.abs(found.value).max() < below < 0:
            axes.axhline(below, color=MUTED, lw=0.8, ls=(0, (4, 2)))
            axes.annotate(
                "excluded below",
                (0.99, below),
                (0, 1.5),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=6.3,
            )
            spread.append(np.array([below]))
    rank = np.arange(1, found.value.size + 1)
    colours = [NEGATIVE if v < 0 else POSITIVE for v in found.value]
    axes.errorbar(rank, found.value, yerr=found.residual, fmt="none", ecolor=INK, elinewidth=0.7, capsize=1.5)
    faces = [c if ok else "white" for c, ok in zip(colours, found.converged, strict=True)]
    axes.scatter(rank, found.value, s=11, c=faces, edgecolors=colours, linewidths=0.8, zorder=3)
    named = end == "bottom" and not pairs(result, "top").converged.all()  # one legend serves both panels
    if not found.converged.all() and not named:
        hollow = Line2D([], [], ls="", marker="o", mfc="white", mec=INK, mew=0.8, label="not converged")
        axes.legend(handles=[hollow], loc="upper right" if end == "top" else "center right")
    set_adaptive(axes, np.concatenate(spread), tau)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlim(0.4, found.value.size + 0.6)
    axes.set_ylabel("λ")


def _write_numbers(axes: Axes, result: StoredLike) -> None:
    """The four statements below the panels."""
    axes.axis("off")
    places = [(0.0, 0.55, 0.115), (0.0, 0.0, 0.115), (0.66, 0.55, 0.115), (0.66, 0.0, 0.115)]
    for (x, y, indent), (head, text) in zip(places, statements(result), strict=True):
        axes.text(x, y, head, transform=axes.transAxes, fontsize=6.6, color=MUTED, va="bottom")
        axes.text(x + indent, y, text, transform=axes.transAxes, fontsize=6.6, va="bottom")


def statements(result: StoredLike) -> list[tuple[str, str]]:
    """Negative count, exclusion, trace and negative mass in words, each with its interval."""
    count = [scalar(result, f"negative_count_{end}") for end in ("low", "high")]
    tau = scalar(result, "tau_absolute")
    bracket = number(count[0]) if count[0] == count[1] else f"{number(count[0])} to {number(count[1])}"
    mass = [100 * scalar(result, name) for name in ("negative_mass", "negative_mass_low", "negative_mass_high")]
    below, chance = scalar(result, "excluded_below"), scalar(result, "excluded_probability")
    if result.attributes.get("exact") or chance == 0:
        excluded = "all eigenvalues are known (dense)"
    elif math.isfinite(below):
        excluded = f"nothing below {number(below)}  (probability of error ≤ {chance:g})"
    else:
        excluded = "no bound on what may lie below the smallest found"
    return [
        ("negative count", f"{bracket} of {number(scalar(result, 'parameters'))} below −τ,  τ = {number(tau)}"),
        ("exclusion", excluded),
        ("trace", interval(*(scalar(result, n) for n in ("trace", "trace_low", "trace_high")))),
        ("negative mass", f"{interval(*mass)} % of Σ|λ|"),
    ]


def _write_title(figure: Figure, result: StoredLike) -> None:
    """Two lines above: which checkpoint; which operator, how many parameters, at what loss."""
    name = result.provenance.checkpoint or "spectrum"
    shown = name if len(name) <= 80 else "…" + name[-79:]
    about = [
        one_operator([result]),
        f"{number(scalar(result, 'parameters'))} parameters",
        f"{number(scalar(result, 'samples'))} samples",
        f"loss {number(scalar(result, 'loss'))}",
        f"gradient norm {number(scalar(result, 'gradient_norm'))}",
    ]
    if result.provenance.status != "complete":
        about.append(f"run {result.provenance.status}")
    # The name comes from outside: a dollar sign in it must not start mathtext.
    figure.text(0.012, 0.975, shown, fontsize=8.2, fontweight="bold", va="top", parse_math=False)
    figure.text(0.012, 0.925, "   ·   ".join(about), fontsize=6.6, color=MUTED, va="top")
