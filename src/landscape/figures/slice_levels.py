"""The scale of a surface: which levels its contours have, even, by decades or around zero, and their colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from landscape.figures.scale import decade_label
from landscape.figures.style import NEGATIVE, POSITIVE
from landscape.figures.transform import from_axis, to_axis
from landscape.figures.values import number
from landscape.slices.stored import is_wide

BANDS = 14
LABELS = 7
SIGNED = LinearSegmentedColormap.from_list("signed", [NEGATIVE, "#f7f7f7", POSITIVE])


@dataclass(frozen=True)
class Levels:
    """Ascending `values` between which the bands of colour lie.

    `forward` takes numbers to the axis on which bands and colours are even. Numbers beyond the outermost levels take
    their colours (`below`, `above`: there are some).
    """

    kind: Literal["linear", "log", "asinh"]
    values: np.ndarray
    width: float
    below: bool
    above: bool

    def forward(self, numbers: Any) -> np.ndarray:
        """Positions on the axis, clipped to the levels; NaN stays."""
        found = np.asarray(numbers, dtype=np.float64)
        return np.asarray(self._axis(np.clip(found, self.values[0], self.values[-1])))

    def _axis(self, numbers: np.ndarray) -> np.ndarray:
        if self.kind == "log":
            return np.asarray(np.log10(numbers))
        return to_axis(numbers, self.width) if self.kind == "asinh" else numbers

    @property
    def places(self) -> np.ndarray:
        """The levels on the axis."""
        return self._axis(self.values)

    def colours(self, numbers: Any) -> np.ndarray:
        """RGBA [..., 4]: dark to light without the illegible yellow end or, around zero, orange, white and blue."""
        places = self.places
        at = self.forward(numbers)
        if self.values[0] < 0 < self.values[-1]:
            size = max(-places[0], places[-1])
            # A short side still shows its sign, but less than it would if it were long.
            below, above = (max(side, 0.3 * size) for side in (-places[0], places[-1]))
            return np.asarray(SIGNED(np.where(at < 0, 0.5 + 0.5 * at / below, 0.5 + 0.5 * at / above)))
        share = (at - places[0]) / (places[-1] - places[0])
        return np.asarray(matplotlib.colormaps["viridis"](0.05 + 0.9 * share))

    def bands(self) -> np.ndarray:
        """The colour [band, 4] of every band: that of its middle."""
        middle = (self.places[1:] + self.places[:-1]) / 2
        return self.colours(self.backward(middle))

    def backward(self, places: np.ndarray) -> np.ndarray:
        """Inverse of `forward`."""
        if self.kind == "log":
            return np.asarray(10.0**places)
        return from_axis(places, self.width) if self.kind == "asinh" else places

    def labelled(self) -> list[tuple[float, str]]:
        """(place, text) of the levels that a colour bar names, at most about `LABELS`."""
        chosen = self.values
        if self.kind == "log":
            for digits in (("1.0",), ("1.0", "3.0"), ("1.0", "2.0", "5.0")):
                picked = np.array([v for v in self.values if f"{v:.1e}"[:3] in digits])
                if len(picked) >= 3:
                    chosen = picked
                    break
        chosen = chosen[:: math.ceil(len(chosen) / LABELS)]
        texts = [level_text(float(v)) for v in chosen]
        if self.below and chosen[0] == self.values[0]:
            texts[0] = f"≤ {texts[0]}"
        if self.above and chosen[-1] == self.values[-1]:
            texts[-1] = f"≥ {texts[-1]}"
        return list(zip(self._axis(chosen).tolist(), texts, strict=True))


def level_text(value: float) -> str:
    """A level in few letters: `0.25`, or a power of ten where zeros would pile up."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}".replace("-", "−")
    return decade_label(value) if value == float(f"{value:.0e}") else number(value, 2)


def levels_of(*fields: np.ndarray) -> Levels | None:
    """Levels for all these numbers together, holes left out; None if there is not one finite number."""
    every = np.concatenate([np.ravel(field) for field in fields]) if fields else np.zeros(0)
    every = every[np.isfinite(every)]
    if every.size == 0:
        return None
    if is_wide(every):
        return _by_decades(every)
    low, high = float(every.min()), float(every.max())
    size = np.abs(every[every != 0])
    if low < 0 < high and size.max() > 30 * np.median(size):
        return _around_zero(every)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one value: a band around it
        margin = 0.05 * abs(low) or 1.0
        low, high = low - margin, high + margin
    values = MaxNLocator(BANDS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return Levels("linear", np.asarray(values, dtype=np.float64), 1.0, False, False)


def _by_decades(every: np.ndarray) -> Levels:
    """Few extreme cells (an exact zero of the loss, one near overflow) must not use up the colours."""
    positive = every[every > 0]
    low = max(float(positive.min()), float(np.quantile(positive, 0.02)) / 10)
    high = min(float(positive.max()), float(np.quantile(positive, 0.98)) * 1e3)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    span = math.log10(high / low)
    digits = (1, 1.5, 2, 3, 5, 7) if span < 2 else (1, 2, 5) if span < 4.5 else (1, 3) if span < 7 else (1,)
    step = max(1, math.ceil(span / BANDS))
    candidates = np.array([float(f"{d}e{k}") for k in range(first, last + 1, step) for d in digits])
    start = max(int(np.searchsorted(candidates, low, side="right")) - 1, 0)
    stop = min(int(np.searchsorted(candidates, high, side="left")) + 1, len(candidates))
    values = candidates[start:stop]
    if len(values) < 2:
        values = np.array([low, high])
    return Levels("log", values, 1.0, bool(every.min() < values[0]), bool(every.max() > values[-1]))


def _around_zero(every: np.ndarray) -> Levels:
    """Linear around zero, by decades beyond: numbers of both signs and of very different sizes."""
    size = np.abs(every[every != 0])
    width = float(np.quantile(size, 0.2))
    places = to_axis(np.array([every.min(), every.max()]), width)
    even = np.linspace(places[0], places[1], BANDS + 1)
    rounded = {float(f"{v:.0e}") for v in from_axis(even, width)} | {0.0}
    values = np.array(sorted(rounded))
    return Levels("asinh", values, width, bool(every.min() < values[0]), bool(every.max() > values[-1]))
