"""The eigenvalue axis: asinh-scaled, because the bulk sits near zero and outliers are decades away."""

from __future__ import annotations

import math

import numpy as np

LN10 = math.log(10.0)


def to_axis(value: np.ndarray, linear_width: float) -> np.ndarray:
    """asinh(value / linear_width) / ln 10: linear inside, one unit a decade outside."""
    return np.asarray(np.arcsinh(np.asarray(value) / linear_width) / LN10)


def from_axis(position: np.ndarray, linear_width: float) -> np.ndarray:
    """Inverse of `to_axis`."""
    return np.asarray(linear_width * np.sinh(np.asarray(position) * LN10))


def stretch(value: np.ndarray, linear_width: float) -> np.ndarray:
    """d value / d axis: turns a density per unit of `value` into one per decade of the axis."""
    return np.asarray(LN10 * np.hypot(value, linear_width))
