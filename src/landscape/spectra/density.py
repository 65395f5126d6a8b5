"""Spectral density: eigenvalues counted in cells between the certified ends, each count with its 95 % interval.

A Gauss rule fixes its probe's measure up to where between two neighbours the weight of a node lies (the separation
theorem of Chebyshev, Markov and Stieltjes; Szegő 1939, §3.41), and better where a node has converged. The density
spreads each weight over that bracket; its interval is what the moments of each probe allow, with the exact law of the
probes on top. So nothing lies beyond the ends, and sums over cells are as certain as the cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from landscape.linalg.quadrature import count_interval

# Cells a decade of |λ|, and cells at least: of a spectrum within one decade.
PER_DECADE, FEWEST = 10, 40
# A node has at least (1 − 1/LOCAL)² of its weight within LOCAL · residual/√weight.
LOCAL = 10.0
# Points of a density with a kernel of given width, which reaches this many widths beyond the ends.
POINTS, REACH = 512, 4.0


@dataclass(frozen=True)
class Measure:
    """What is known of n eigenvalues.

    Attributes:
        node, weight: float64 [probe, step], ascending; each probe's weights sum to 1 − len(exact)/n, 0 is padding.
        low, high: the bracket of each node, over which its weight is spread (see `brackets`).
        residual: of each node: an eigenvalue of the probed operator lies within it.
        exact, exact_residual: [k], eigenvalues known by value, and how well.
        ends: no eigenvalue lies beyond them.
        noise: error of the products, by which every eigenvalue may have moved (Weyl).
    """

    node: np.ndarray
    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray
    residual: np.ndarray
    exact: np.ndarray
    exact_residual: np.ndarray
    ends: tuple[float, float]
    n: int
    noise: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Eigenvalues in the cells between `edges` [c + 1]: the estimate and the 95 % interval [c] of each cell."""

    edges: np.ndarray
    count: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Density:
    """Density over λ on `grid` [g] with its 95 % interval; see the fields of `results.Spectrum`."""

    grid: np.ndarray
    density: np.ndarray
    density_low: np.ndarray
    density_high: np.ndarray
    kernel_width: np.ndarray | None = None


def brackets(
    node: np.ndarray, weight: np.ndarray, residual: np.ndarray, ends: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each node's weight is spread, [probe, step]: up to its neighbours (or the ends of the probed spectrum),
    and no farther than LOCAL · residual/√weight, in shares of the probe."""
    low, high = node.copy(), node.copy()
    for i in range(len(node)):
        real = weight[i] > 0
        t, share = node[i, real], weight[i, real] / float(weight[i].sum())
        reach = LOCAL * residual[i, real] / np.sqrt(np.maximum(share, np.finfo(float).tiny))
        low[i, real] = np.maximum(np.r_[min(ends[0], t[0]), t[:-1]], t - reach)
        high[i, real] = np.minimum(np.r_[t[1:], max(ends[1], t[-1])], t + reach)
    return low, high


def cells_of(measure: Measure, floor: float) -> np.ndarray:
    """Edges between the ends: PER_DECADE a decade of |λ| on both sides of a cell around zero, none narrower than the
    brackets there, since that would draw the nodes, not the spectrum.

    `floor`: |λ| below which nothing is resolved in any case.
    """
    a, b = measure.ends
    wide = max(floor, 2 * measure.noise)
    if a <= 0 <= b:
        wide = max(wide, _bracket_at(measure, np.zeros(1))[0] / 2)
    wide = wide if wide > 0 else 1e-6 * max(abs(a), abs(b))
    if b - a <= wide:
        wide = 0.0 if b > a else wide or 1.0  # nothing but zeros, and no unit to tell how near
        return np.array([a - wide, b + wide])
    first, last = _decades(a, wide), _decades(b, wide)
    step = min(1 / PER_DECADE, (last - first) / FEWEST)
    if a <= 0 <= b:
        above, below = (_side(end, wide, step) for end in (b, -a))
        edges = np.unique(np.r_[a, -below[::-1], above, b])
        middle = max(0, int(np.searchsorted(edges, min(wide * (1 - 1e-9), b))) - 1)
    else:
        edges = _from_decades(np.linspace(first, last, math.ceil((last - first) / step - 1e-9) + 1), wide)
        edges[[0, -1]], middle = (a, b), 0
    at = _bracket_at(measure, edges)
    need = np.maximum(wide, np.maximum(at[:-1], at[1:]))
    need[middle] = 0.0
    right, left = _merged(edges[middle:], need[middle:]), _merged(-edges[: middle + 1][::-1], need[:middle][::-1])
    return np.asarray(np.r_[-left[::-1], right[1:]])


def count(measure: Measure, edges: np.ndarray) -> Counts:
    """Eigenvalues between edges (ascending; a < λ <= b), with 95 % intervals: what the brackets of each probe's
    distribution allow, the exact law of the mean over probes, and what errors of the products and the residuals of
    `exact` may move across an edge."""
    sure, maybe, shift = _exact_below(measure, edges)
    share = 1 - len(measure.exact) / measure.n
    free = measure.n - len(measure.exact)
    below = np.searchsorted(np.sort(measure.exact), edges, side="right")
    below = np.where(edges >= measure.ends[1], len(measure.exact), np.where(edges <= measure.ends[0], 0, below))
    estimate = np.diff(below).astype(float)
    low, high = sure[1:] - maybe[:-1], maybe[1:] - sure[:-1]
    if free and len(measure.node):
        estimate = estimate + measure.n * np.diff(_spread(measure, edges), axis=1).mean(axis=0)
        least, most = (f / share for f in _distributions(measure, edges, shift))
        inside = np.maximum(least[:, 1:] - most[:, :-1], 0.0).mean(axis=0)
        at_most = np.minimum(most[:, 1:] - least[:, :-1], 1.0).mean(axis=0)
        probes = len(measure.node)
        found = [count_interval(*pair, free, probes) for pair in zip(inside, at_most, strict=True)]
        low, high = low + np.array([f[0] for f in found]), high + np.array([f[1] for f in found])
    # What is estimated sums to n, and may therefore be a little outside of what is possible.
    low, high = np.minimum(np.maximum(low, 0), estimate), np.maximum(np.minimum(high, measure.n), estimate)
    return Counts(edges, estimate, low, high)


def density_of(measure: Measure, floor: float, width: float | None = None) -> Density:
    """In cells as fine as is resolved, |λ| <= `floor` being one; or smoothed with a Gaussian of this `width`."""
    return cell_density(measure, floor) if width is None else gaussian_density(measure, width)


def measure_of_all(values: np.ndarray, bound: float) -> Measure:
    """All eigenvalues (ascending), each right to `bound`."""
    nothing = np.zeros((0, 0))
    ends = float(values[0]) - bound, float(values[-1]) + bound
    return Measure(*(nothing,) * 5, values, np.full(len(values), bound), ends, len(values))


def cell_density(measure: Measure, floor: float) -> Density:
    """Density constant within each cell: `grid` has every inner edge twice, so that the trapezoidal rule is exact."""
    found = count(measure, cells_of(measure, floor))
    size = measure.n * np.diff(found.edges)
    each = (np.repeat(values / size, 2) for values in (found.count, found.low, found.high))
    return Density(np.repeat(found.edges, 2)[1:-1], *each)


def gaussian_density(measure: Measure, width: float) -> Density:
    """Density of the spectrum smoothed with a Gaussian of this standard deviation in λ, on an even grid.

    The interval is pointwise: Student's over probes, around the least and the largest value that the brackets of each
    probe's distribution allow.
    """
    a, b = measure.ends
    grid = np.linspace(a - REACH * width, b + REACH * width, POINTS)
    moved = measure.noise
    certain = _kernels(grid, measure.exact, width).sum(axis=1) / measure.n
    around = [_kernels(grid, measure.exact + s * (measure.exact_residual + moved), width) for s in (-1, 0, 1)]
    within = np.abs(grid[:, None] - measure.exact) <= measure.exact_residual + moved
    peak = np.where(within, _kernels(np.zeros(1), np.zeros(1), width), np.max(around, axis=0))
    mean = certain
    low, high = np.min(around, axis=0).sum(axis=1) / measure.n, peak.sum(axis=1) / measure.n
    if len(measure.node):
        per_probe = [_kernels(grid, t, width) @ w for t, w in zip(measure.node, measure.weight, strict=True)]
        mean = certain + np.mean(per_probe, axis=0)
        least, most = _smoothed_bounds(measure, grid, width)
        probes = len(least)
        quantile = float(stdtrit(probes - 1, 0.975)) / math.sqrt(probes) if probes > 1 else math.inf
        spread = [quantile * f.std(axis=0, ddof=1) if probes > 1 else quantile for f in (least, most)]
        low, high = low + least.mean(axis=0) - spread[0], high + most.mean(axis=0) + spread[1]
    low, high = np.minimum(np.maximum(low, 0.0), mean), np.maximum(high, mean)
    return Density(grid, mean, low, high, np.full(POINTS, width))


def _smoothed_bounds(measure: Measure, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest ∫ kernel dμ [probe, g] of each probe, by parts: the kernel rises, then falls, so that the
    bounds of the distribution at the edges of fine cells bound the integral of any step function above or below it."""
    a, b = measure.ends
    steps = min(1500, max(200, math.ceil(4 * (b - a) / width)))
    edges = np.unique(np.r_[np.linspace(a, b, steps), measure.node[measure.weight > 0]])
    least, most = _distributions(measure, edges, np.full(len(edges), measure.noise))
    at = _kernels(grid, edges, width)
    inside = (grid[:, None] >= edges[:-1]) & (grid[:, None] <= edges[1:])
    peak = float(_kernels(np.zeros(1), np.zeros(1), width)[0, 0])
    if len(edges) == 1:  # all of it is at one place
        there = at[:, 0] * measure.weight.sum(axis=1, keepdims=True)
        return there, there
    upper = np.where(inside, peak, np.maximum(at[:, 1:], at[:, :-1]))
    lower = np.minimum(at[:, 1:], at[:, :-1])
    total = most[:, -1:]
    bounds = []
    for heights, (rising, falling) in ((lower, (most, least)), (upper, (least, most))):
        change = np.diff(heights, axis=1)
        inner = np.maximum(change, 0) @ rising[:, 1:-1].T + np.minimum(change, 0) @ falling[:, 1:-1].T
        bounds.append(total * heights[:, -1] - inner.T)
    return np.maximum(bounds[0], 0.0), bounds[1]


def _kernels(grid: np.ndarray, at: np.ndarray, width: float) -> np.ndarray:
    z = (grid[:, None] - at[None, :]) / width
    return np.asarray(np.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * width))


def _spread(measure: Measure, edges: np.ndarray) -> np.ndarray:
    """Distribution of each probe at the edges [probe, e]: half of a node's weight to either side, falling linearly."""
    t, w = measure.node[:, None, :], measure.weight[:, None, :]
    low, high, x = measure.low[:, None, :], measure.high[:, None, :], edges[None, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.where(t > low, np.clip((x - low) / (t - low), 0, 1) ** 2, x >= t)
        right = np.where(high > t, 1 - np.clip((high - x) / (high - t), 0, 1) ** 2, x >= t)
    inside = np.where(edges <= measure.ends[0], 0.0, (w / 2 * (left + right)).sum(axis=2))
    return np.asarray(np.where(edges >= measure.ends[1], w.sum(axis=2), inside))


def _distributions(measure: Measure, edges: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [probe, e] of each probe's distribution: at the edges less and more `shift`.

    Between two nodes it lies within the mass ρ that any measure with the same moments may have at one point (the
    Christoffel function) of the weights below: the two bounds are ρ apart, and at either node one is that sum. It also
    lies between the sums up to the nodes next to these two.
    """
    least, most = np.zeros((len(measure.node), len(edges))), np.zeros((len(measure.node), len(edges)))
    for i, (node, weight, residual) in enumerate(zip(measure.node, measure.weight, measure.residual, strict=True)):
        real = weight > 0
        total, t = float(weight.sum()), node[real]
        w = weight[real] / total
        # first and last entries of the eigenvectors of a tridiagonal matrix differ in sign for every other one
        ends = residual[real] * np.where(np.flatnonzero(real) % 2, -1.0, 1.0)
        before = np.r_[0.0, np.cumsum(w)]
        for out, x, sign in ((least, edges - shift, -1), (most, edges + shift, 1)):
            place = np.searchsorted(t, x, side="right" if sign > 0 else "left")
            separated = before[np.clip(place + sign, 0, len(t))]
            local = before[place] + sign * _christoffel(x, t, w, ends)
            out[i] = total * (np.maximum(separated, local) if sign < 0 else np.minimum(separated, local)).clip(0, 1)
        least[i, edges >= measure.ends[1]] = total
        most[i, edges <= measure.ends[0]] = 0.0
    return least, most


def _christoffel(x: np.ndarray, node: np.ndarray, weight: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Weight of the Gauss–Radau rule with a node at x: of the eigenvector for x of the tridiagonal matrix that has one
    row more, written in the eigenvectors of the matrix without it. At a node, or where nothing is known: 1."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        entries = ends / (x[:, None] - node)
        found = (entries @ np.sqrt(weight)) ** 2 / (1 + np.sum(entries**2, axis=1))
    return np.where(np.isfinite(found), found, 1.0)


def _exact_below(measure: Measure, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many of `exact` lie surely and perhaps below each edge, and how far the others may move what is probed.

    Taking out approximate eigenvectors hides their residuals r, which couple them to the rest. A pair at distance η
    of an edge moves an eigenvalue there by at most 2r²/(η + √(η² + 4r²)) (Li & Li 2005); one within 3r is counted on
    either side instead, which covers any coupling (Cauchy interlacing).
    """
    residual = measure.exact_residual
    hidden = np.maximum(residual - 2 * measure.noise, 0.0) if len(measure.node) else np.zeros(len(residual))
    apart = edges[:, None] - measure.exact[None, :]
    reach = np.maximum(residual, 3 * hidden)
    sure, maybe = (apart > reach).sum(axis=1), (apart >= -reach).sum(axis=1)
    size = np.abs(apart)
    moved = 2 * hidden**2 / np.maximum(size + np.sqrt(size**2 + 4 * hidden**2), 1e-300)
    shift = measure.noise + np.where(size > reach, moved, 0.0).sum(axis=1)
    outside = edges >= measure.ends[1]
    sure = np.where(outside, len(measure.exact), sure)
    maybe = np.where(edges <= measure.ends[0], 0, maybe)
    return sure, maybe, shift


def _bracket_at(measure: Measure, x: np.ndarray) -> np.ndarray:
    """Width of the widest bracket over each position, mean over probes; 0 where there is none."""
    if not len(measure.node):
        return np.zeros(len(x))
    width = np.where(measure.weight > 0, measure.high - measure.low, 0.0)[:, None, :]
    over = (measure.low[:, None, :] <= x[None, :, None]) & (x[None, :, None] <= measure.high[:, None, :])
    return np.asarray(np.where(over, width, 0.0).max(axis=2).mean(axis=0))


def _decades(value: float, wide: float) -> float:
    return math.asinh(value / wide) / math.log(10)


def _side(end: float, wide: float, step: float) -> np.ndarray:
    """Edges from `wide` outward, a `step` of decades apart, up to the end."""
    if end <= wide:
        return np.zeros(0)
    first, last = _decades(wide, wide), _decades(end, wide)
    places = first + step * np.arange(math.floor((last - first) / step + 1e-9) + 1)
    edges = _from_decades(places, wide)
    return np.asarray(edges[edges < end])


def _from_decades(places: np.ndarray, wide: float) -> np.ndarray:
    return np.asarray(wide * np.sinh(places * math.log(10)))


def _merged(edges: np.ndarray, need: np.ndarray) -> np.ndarray:
    """Edges (ascending) of which some are left out, so that every cell but the last is as wide as any part needs."""
    kept, needed = [float(edges[0])], 0.0
    for edge, wanted in zip(edges[1:], need, strict=True):
        needed = max(needed, float(wanted))
        if edge - kept[-1] >= needed:
            kept.append(float(edge))
            needed = 0.0
    if kept[-1] != edges[-1]:  # what is left is too narrow: part of the one before
        kept[len(kept) - 1 if len(kept) > 1 else 1 :] = [float(edges[-1])]
    return np.array(kept)
