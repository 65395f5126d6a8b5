"""Scales and ticks of matplotlib axes that show eigenvalues over many decades and both signs."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogFormatterMathtext,
    LogLocator,
    NullFormatter,
)

from landscape.figures.transform import from_axis, to_axis


def decade_label(value: float) -> str:
    """`-10^-3` or `2 × 10^-4` in mathtext for one leading digit; 0, 1 and 10 as they are."""
    if value == 0:
        return "0"
    mantissa, exponent = (int(float(part)) for part in f"{abs(value):.0e}".split("e"))
    sign = "-" if value < 0 else ""
    if exponent in (0, 1):
        return f"${sign}{mantissa * 10**exponent}$"
    factor = "" if mantissa == 1 else rf"{mantissa}\times "
    return f"${sign}{factor}10^{{{exponent}}}$"


def decade_ticks(low: float, high: float, linear_width: float, most: int) -> tuple[list[float], list[float]]:
    """Labelled ticks (0 and powers of ten, at most about `most`) and unlabelled decades between them."""

    def place(value: float) -> float:
        return float(to_axis(np.array(value), linear_width))

    gap = max((place(high) - place(low)) / most, 0.45)
    top = math.floor(math.log10(max(abs(low), abs(high), 1e-300)) + 1e-9)
    bottom = math.ceil(math.log10(linear_width))
    every = max(1, math.ceil(gap))
    powers = [10.0**k for k in range(top, bottom - 1, -1)]
    zero = low <= 0 <= high
    labelled = ([p for p in powers if place(p) >= gap] if zero else powers)[::every]
    inside = [v for p in labelled for v in (p, -p) if low <= v <= high]
    if zero:
        inside.append(0.0)
        for end in (low, high):
            # A short side may hold no labelled power of ten, and would be left without any number.
            if not any(v * end > 0 for v in inside) and place(abs(end)) >= gap:
                digits = (float(f"{m}e{k}") for k in range(bottom + 1, bottom - 3, -1) for m in (5, 2, 1))
                inside += [math.copysign(d, end) for d in digits if gap <= place(d) <= place(abs(end))][:1]
    minor = [v for p in powers for v in (p, -p) if low <= v <= high and v not in inside]
    return sorted(inside), sorted(minor)


def set_asinh(
    axes: Axes, which: Literal["x", "y"], limits: tuple[float, float], linear_width: float, most: int
) -> None:
    """Give one axis of `axes` the asinh scale with ticks that a reader can name."""

    def forward(value: np.ndarray) -> np.ndarray:
        return to_axis(value, linear_width)

    def inverse(position: np.ndarray) -> np.ndarray:
        return from_axis(position, linear_width)

    axis = axes.xaxis if which == "x" else axes.yaxis
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    set_scale("function", functions=(forward, inverse))
    major, minor = decade_ticks(*limits, linear_width, most)
    # Otherwise everything is within one decade, or in the linear part, and plain ticks say more.
    if len(major) >= 2 and max(abs(limits[0]), abs(limits[1])) > 10 * linear_width:
        axis.set_major_locator(FixedLocator(major))
        axis.set_major_formatter(FixedFormatter([decade_label(v) for v in major]))
        axis.set_minor_locator(FixedLocator(minor))
        axis.set_minor_formatter(NullFormatter())
    set_limits(*limits)


def pad(low: float, high: float, linear_width: float, share: float = 0.04) -> tuple[float, float]:
    """Limits widened by a share of their length on the axis; never empty."""
    ends = to_axis(np.array([low, high]), linear_width)
    margin = max(share * float(ends[1] - ends[0]), 0.12)
    out = from_axis(ends + np.array([-margin, margin]), linear_width)
    return float(out[0]), float(out[1])


def set_adaptive(axes: Axes, values: np.ndarray, floor: float = 0.0) -> None:
    """Choose the y scale that shows all `values`: linear, log when positive over decades, asinh when mixed.

    Args:
        axes: whose y axis is set.
        values: all that must be visible; NaN and Inf are left out.
        floor: sizes below this are all alike (noise), and do not call for more decades.
    """
    shown = values[np.isfinite(values)]
    if shown.size == 0:
        return
    size = np.fmax(np.abs(shown), floor)
    size = size[size > 0]
    ratio = float(size.max() / size.min()) if size.size else 1.0
    low, high = float(shown.min()), float(shown.max())
    if low == high == 0:
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
    elif low > 0 and ratio > 20:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.5)
        few = ratio < 300  # less than three decades: powers of ten alone would leave one or two labels
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,), numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}") if few else LogFormatterMathtext())
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif ratio > 20:
        width = max(float(size.min()), 1e-5 * float(size.max()))
        set_asinh(axes, "y", pad(low, high, width, 0.08), width, most=4)
    else:
        if floor > 0 and max(abs(low), abs(high)) < 2 * floor:
            low, high = min(low, -floor), max(high, floor)
        # At least 2 % to each side: equal numbers look equal, and need no offset on the axis.
        margin = max(0.1 * (high - low), 0.02 * max(abs(low), abs(high)) - (high - low) / 2)
        axes.set_ylim(low - margin, high + margin)
        axes.locator_params(axis="y", nbins=4)
        axes.ticklabel_format(axis="y", useOffset=False)
