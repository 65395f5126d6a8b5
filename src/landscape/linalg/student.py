"""Student's interval of a mean, and what skewed values add to it."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

# Fewer values than this are not resampled: what did not occur among them weighs too much.
FEW = 10


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Ends of Student's interval of the mean of values [n >= 2], and of the same when shifted for their skewness
    (Johnson 1978): the hull of both, since a few values show too little of a long tail for either."""
    n, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    t = float(stdtrit(n - 1, (1 + level) / 2))
    half, shift = t * spread / math.sqrt(n), skewness(values) * spread * (1 + 2 * t**2) / (6 * n)
    return mean - half + min(0.0, shift), mean + half + max(0.0, shift)


def hull_interval(values: np.ndarray) -> tuple[float, float]:
    """`mean_interval`, and no less than the range of the values: what is right for fewer than ten of them."""
    low, high = mean_interval(values)
    return min(low, float(values.min())), max(high, float(values.max()))


def skewness(values: np.ndarray) -> float:
    """Third central moment of values [n] over the cube of their spread; 0 if all are equal."""
    spread = float(values.std())
    return float(((values - values.mean()) ** 3).mean()) / spread**3 if spread > 0 else 0.0
