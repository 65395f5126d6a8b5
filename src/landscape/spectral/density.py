"""Smoothed spectral density on a signed-logarithmic grid, with pointwise intervals over probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

POINTS = 512
# Standard deviation of the kernel, in units of asinh(λ/s): fine enough for outliers, smooth in the bulk.
WIDTH = 0.08
# The kernel in units of the local gap between quadrature nodes.
GAPS = 1.0
# Below this part of the spread around zero a few dozen Lanczos steps resolve nothing.
RESOLUTION = 1e-3


@dataclass(frozen=True)
class Density:
    """Density over λ on `grid` [g], integral 1 (up to the ends of the grid), with its 95 % interval."""

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
    noise: float = 0.0,
) -> Density:
    """Density of n eigenvalues: `exact` ones known by value, the rest through nodes and weights [probe, step].

    Smoothing is Gaussian in u = asinh(λ/s), whose scale follows the eigenvalues over orders of magnitude; the
    change of variables keeps the integral over λ at 1.

    Args:
        weights: each probe's sum to (n − len(exact))/n.
        coarse: nodes and weights of the same probes after fewer steps; by how much the density still changes is
            added to the interval, as the error of the quadrature itself.
        noise: error of the products, by which every eigenvalue may have moved (Weyl): the interval covers the density
            anywhere within it.
    """
    everything = np.concatenate([nodes[weights > 0].ravel(), exact])
    scale = RESOLUTION * max(float(np.max(np.abs(everything), initial=0.0)), np.finfo(np.float64).tiny)
    u_min, u_max = (float(np.arcsinh(f(everything) / scale)) for f in (np.min, np.max))
    probes = np.arcsinh(nodes / scale)
    ends = _resolved_width(probes, weights, np.linspace(u_min, u_max, POINTS))[[0, -1]]
    u = np.linspace(u_min - 5 * ends[0], u_max + 5 * ends[1], POINTS)  # room for the outermost kernels
    grid = scale * np.sinh(u)
    stretch = scale * np.cosh(u)  # dλ/du
    width = _resolved_width(probes, weights, u)
    certain = _smoothed(np.arcsinh(exact / scale)[None, :], np.full((1, len(exact)), 1.0 / n), u, width)[0]
    sampled = _smoothed(probes, weights, u, width) if nodes.size else np.zeros((0, POINTS))
    mean = certain + (sampled.mean(axis=0) if len(sampled) else 0.0)
    half = np.zeros(POINTS)
    if len(sampled) > 1:
        half = student.ppf(0.975, len(sampled) - 1) * sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
    elif len(sampled) == 1:
        half = np.full(POINTS, np.inf)
    if coarse is not None and len(sampled):
        before = _smoothed(np.arcsinh(coarse[0] / scale), coarse[1], u, width)
        half = half + np.abs(sampled.mean(axis=0) - before.mean(axis=0))
    low, high = _within(grid, np.maximum(mean - half, 0.0) / stretch, (mean + half) / stretch, noise)
    return Density(grid, mean / stretch, low, high, width * stretch)


def _within(grid: np.ndarray, low: np.ndarray, high: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest `low` and largest `high` within `noise` of each grid point."""
    if noise <= 0:
        return low, high
    ends = (grid - noise, grid + noise)
    first, last = np.searchsorted(grid, ends[0]), np.searchsorted(grid, ends[1], side="right")
    lowest = np.array([low[i:j].min() for i, j in zip(first, last, strict=True)])
    highest = np.array([high[i:j].max() for i, j in zip(first, last, strict=True)])
    for x in ends:
        lowest = np.minimum(lowest, np.interp(x, grid, low))
        highest = np.maximum(highest, np.interp(x, grid, high))
    return lowest, highest


def _smoothed(nodes: np.ndarray, weights: np.ndarray, u: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Density [b, g] of each row of nodes; every node has the width of its own place, so nothing is lost or gained."""
    out = np.zeros((len(nodes), len(u)))
    for row, node, weight in zip(out, nodes, weights, strict=True):
        node, weight = node[weight > 0], weight[weight > 0]
        sigma = np.interp(node, u, width)
        z = (u[:, None] - node[None, :]) / sigma
        row += np.exp(-0.5 * z**2) @ (weight / (np.sqrt(2 * np.pi) * sigma))
    return out


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
