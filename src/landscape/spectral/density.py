"""Smoothed spectral density on a signed-logarithmic grid, with pointwise intervals over probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from landscape.linalg.quadrature import density as smoothed

POINTS = 512
# Standard deviation of the kernel, in units of asinh(λ/s): fine enough for outliers, smooth in the bulk.
WIDTH = 0.08
# The kernel in units of the local gap between quadrature nodes.
GAPS = 1.0
# Below this part of the spread around zero a few dozen Lanczos steps resolve nothing.
RESOLUTION = 1e-3


@dataclass(frozen=True)
class Density:
    """Density over λ on `grid` [g], integral 1 up to the variation of the kernel width."""

    grid: np.ndarray
    density: np.ndarray
    density_low: np.ndarray
    density_high: np.ndarray
    kernel_width: np.ndarray


def spectral_density(
    nodes: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    n: int,
    coarse: tuple[np.ndarray, np.ndarray] | None = None,
) -> Density:
    """Density of n eigenvalues: `exact` ones known by value, the rest through nodes and weights [probe, step].

    Smoothing is Gaussian in u = asinh(λ/s), whose scale follows the eigenvalues over orders of magnitude; the
    change of variables keeps the integral over λ at 1.

    Args:
        weights: each probe's sum to (n − len(exact))/n.
        coarse: nodes and weights of the same probes after fewer steps; by how much the density still changes is
            added to the interval, as the error of the quadrature itself.
    """
    everything = np.concatenate([nodes[weights > 0].ravel(), exact])
    scale = RESOLUTION * max(float(np.max(np.abs(everything), initial=0.0)), np.finfo(np.float64).tiny)
    u_min, u_max = (float(np.arcsinh(f(everything) / scale)) for f in (np.min, np.max))
    u = np.linspace(u_min - 6 * WIDTH, u_max + 6 * WIDTH, POINTS)
    grid = scale * np.sinh(u)
    stretch = scale * np.cosh(u)  # dλ/du
    probes = np.arcsinh(nodes / scale)
    width = _resolved_width(probes, weights, u)
    certain = smoothed(np.arcsinh(exact / scale)[None, :], np.full((1, len(exact)), 1.0 / n), u, width)[0]
    sampled = smoothed(probes, weights, u, width) if nodes.size else np.zeros((0, POINTS))
    mean = certain + (sampled.mean(axis=0) if len(sampled) else 0.0)
    half = np.zeros(POINTS)
    if len(sampled) > 1:
        half = student.ppf(0.975, len(sampled) - 1) * sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
    elif len(sampled) == 1:
        half = np.full(POINTS, np.inf)
    if coarse is not None and len(sampled):
        half = half + np.abs(
            sampled.mean(axis=0) - smoothed(np.arcsinh(coarse[0] / scale), coarse[1], u, width).mean(axis=0)
        )
    low, high = np.maximum(mean - half, 0.0), mean + half
    return Density(grid, mean / stretch, low / stretch, high / stretch, width * stretch)


def _resolved_width(probes: np.ndarray, weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Kernel width on the grid: never narrower than the quadrature resolves, which is the local gap of its nodes.

    Gauss quadrature is right for functions that are smooth on the scale of the gaps; a narrower kernel would draw
    the nodes themselves, ripples that the true density does not have.
    """
    gaps = [_gaps_at(u, np.unique(node[weight > 0])) for node, weight in zip(probes, weights, strict=True)]
    if not gaps:
        return np.full(len(u), WIDTH)
    local = np.maximum(WIDTH, GAPS * np.mean(gaps, axis=0))
    # smooth in u, so that the width varies slowly against itself and the integral stays near 1
    apart = (u[:, None] - u[None, :]) / (2 * np.maximum(local[None, :], local[:, None]))
    kernel = np.exp(-0.5 * apart**2)
    return np.asarray(kernel @ local / kernel.sum(axis=1))


def _gaps_at(u: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Distance between the nodes next to each position; zero outside them."""
    right = np.searchsorted(nodes, u)
    inside = (right > 0) & (right < len(nodes))
    gaps = np.zeros(len(u))
    gaps[inside] = nodes[right[inside]] - nodes[right[inside] - 1]
    return gaps
