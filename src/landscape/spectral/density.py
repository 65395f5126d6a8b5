"""Smoothed spectral density on a signed-logarithmic grid, with pointwise intervals over probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from landscape.linalg.quadrature import density as smoothed

POINTS = 512
# Standard deviation of the kernel, in units of asinh(λ/s): fine enough for outliers, smooth in the bulk.
WIDTH = 0.08
# Below this part of the spread around zero a few dozen Lanczos steps resolve nothing.
RESOLUTION = 1e-3


@dataclass(frozen=True)
class Density:
    """Density over λ on `grid` [g], integral 1, with a pointwise 95 % interval and the local kernel width."""

    grid: np.ndarray
    density: np.ndarray
    density_low: np.ndarray
    density_high: np.ndarray
    kernel_width: np.ndarray


def spectral_density(nodes: np.ndarray, weights: np.ndarray, exact: np.ndarray, n: int) -> Density:
    """Density of n eigenvalues: `exact` ones known by value, the rest through nodes and weights [probe, step].

    Smoothing is Gaussian in u = asinh(λ/s), whose scale follows the eigenvalues over orders of magnitude; the
    change of variables keeps the integral over λ at 1.

    Args:
        weights: each probe's sum to (n − len(exact))/n.
    """
    everything = np.concatenate([nodes[weights > 0].ravel(), exact])
    scale = RESOLUTION * max(float(np.max(np.abs(everything), initial=0.0)), np.finfo(np.float64).tiny)
    u_min, u_max = (float(np.arcsinh(f(everything) / scale)) for f in (np.min, np.max))
    u = np.linspace(u_min - 6 * WIDTH, u_max + 6 * WIDTH, POINTS)
    grid = scale * np.sinh(u)
    stretch = scale * np.cosh(u)  # dλ/du
    certain = smoothed(np.arcsinh(exact / scale)[None, :], np.full((1, len(exact)), 1.0 / n), u, WIDTH)[0]
    probes = np.arcsinh(nodes / scale)
    sampled = smoothed(probes, weights, u, WIDTH) if nodes.size else np.zeros((0, POINTS))
    mean = certain + (sampled.mean(axis=0) if len(sampled) else 0.0)
    half = np.zeros(POINTS)
    if len(sampled) > 1:
        half = student.ppf(0.975, len(sampled) - 1) * sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
    elif len(sampled) == 1:
        half = np.full(POINTS, np.inf)
    low, high = np.maximum(mean - half, 0.0), mean + half
    return Density(grid, mean / stretch, low / stretch, high / stretch, WIDTH * stretch)
