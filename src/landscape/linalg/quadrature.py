"""Stochastic Lanczos quadrature: spectral measures of random probes, with brackets instead of bare estimates.

A probe z of unit norm has the spectral measure μ = Σ (zᵀv_i)² δ(λ_i); its mean over uniform z is the density of
eigenvalues. m Lanczos steps give its first 2m + 1 moments as a tridiagonal matrix (Golub & Meurant 2010, ch. 6),
and reorthogonalisation is not needed for this (Ubaru, Chen & Saad 2017; Chen, Trogdon & Ubaru 2021). Everything
those moments imply about a half-line is attained by Gauss–Radau rules (Chebyshev–Markov–Stieltjes; Szegő 1939, §3.41;
Karlin & Studden 1966, ch. IV), which is how the brackets here are computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize_scalar
from scipy.special import betainc, betaincc
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]

EPS = float(np.finfo(float).eps)
# Masses this near to 0 or 1 are rounding: one eigenvalue among 10⁷ has mass 10⁻⁷ and falls below with probability 10⁻³.
NO_MASS = 1e-13
SLAB_ELEMENTS = 2**22


@dataclass(frozen=True)
class Tridiagonals:
    """Lanczos coefficients of b probes.

    Attributes:
        alpha, beta: float64 [b, m]; beta[:, j] couples step j to step j + 1, the last one is known too.
        length: int [b]; steps of each probe before breakdown (m without). Entries beyond are 0, and so is
            beta[length - 1] at a breakdown: the measure is then known exactly.
    """

    alpha: np.ndarray
    beta: np.ndarray
    length: np.ndarray


@dataclass(frozen=True)
class Quadrature:
    """Gauss rules of b probes: float64 [b, m], nodes ascending, weights of a probe sum to 1 (padded with 0), residuals
    of the nodes as Ritz values (an eigenvalue lies within), and the coefficients that they come from."""

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    tridiagonals: Tridiagonals


def tridiagonalise(
    matvec: Matvec,
    starts: Tensor,
    steps: int,
    *,
    deflate: Tensor | None = None,
    first: Tensor | None = None,
    tolerance: float | None = None,
) -> Tridiagonals:
    """Three-term recurrences of all probes as one block, three blocks of vectors in memory.

    Args:
        matvec: symmetric, V [n, b] -> H V [n, b].
        starts: [n, b], not zero; normalised here.
        deflate: [n, k] independent; the recurrence runs in the complement of these vectors.
        first: matvec(starts), if known: saves one block product. With `deflate`, the starts must lie in the
            complement already.
        tolerance: a probe ends when β <= tolerance · (|α| + β) of its largest step; 10 eps of the dtype by default; and
            when β is no normal number of the dtype.

    Raises:
        FloatingPointError: a product has NaN or Inf.
    """
    tiny = float(torch.finfo(starts.dtype).tiny)  # the inverse of less overflows
    tolerance = 10 * float(torch.finfo(starts.dtype).eps) if tolerance is None else tolerance
    dual = None if deflate is None else _dual(deflate)
    v = _complement(starts.clone(), deflate, dual)
    norm = _norms(v)
    if not bool(torch.all(norm > 0)):
        raise ValueError("a probe is zero or lies in the deflated space")
    v.div_(norm.to(v.dtype))
    ready = None if first is None else first / norm.to(v.dtype)
    previous = torch.zeros_like(v)
    b = v.shape[1]
    alpha, beta = np.zeros((b, steps)), np.zeros((b, steps))
    length, scale = np.full(b, steps), np.zeros(b)
    for j in range(steps):
        w = matvec(v) if ready is None else ready
        ready = None
        last = torch.from_numpy(beta[:, j - 1] if j else np.zeros(b)).to(v.device, v.dtype)
        w = torch.addcmul(w, previous, last, value=-1)
        a = _dots(v, w)
        # Projected last: what αv brings back of the deflated space would grow by |α/β| a step.
        w = _complement(w.addcmul_(v, a.to(v.dtype), value=-1), deflate, dual)
        coefficients = torch.stack([a, _norms(w)]).cpu().numpy()
        if not np.all(np.isfinite(coefficients)):
            raise FloatingPointError(f"the product of quadrature step {j + 1} contains NaN or Inf")
        running = length == steps
        alpha[running, j], beta[running, j] = coefficients[0, running], coefficients[1, running]
        scale = np.maximum(scale, np.abs(alpha[:, j]) + beta[:, j])
        ends = running & (beta[:, j] <= np.maximum(tolerance * scale, tiny))
        beta[ends, j], length[ends] = 0.0, j + 1
        if np.all(length <= j + 1):
            break
        # a finished probe becomes the zero vector: later products leave it alone
        inverse = np.where(beta[:, j] > 0, 1 / np.where(beta[:, j] > 0, beta[:, j], 1), 0)
        previous, v = v, w.mul_(torch.from_numpy(inverse).to(w.device, w.dtype))
    return Tridiagonals(alpha, beta, length)


def gauss(tri: Tridiagonals) -> Quadrature:
    """The Gauss rule of each probe, exact for polynomials of degree 2 · length − 1."""
    b, m = tri.alpha.shape
    nodes, weights, residuals = np.zeros((b, m)), np.zeros((b, m)), np.zeros((b, m))
    for i, (alpha, beta, last) in enumerate(_each(tri)):
        node, vector = eigh_tridiagonal(alpha, beta)
        k = len(node)
        nodes[i], weights[i, :k] = np.r_[node, np.full(m - k, node[-1])], _shares(vector)
        residuals[i, :k] = last * np.abs(vector[-1])
    return Quadrature(nodes, weights, residuals, tri)


def distribution_bracket(tri: Tridiagonals, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds low, high [b] on μ((−∞, x)) of each probe: the sharpest that its moments allow.

    They are the Gauss–Radau weights below x, and with the weight at x itself. After a breakdown low = high, unless a
    node is indistinguishable from x. Rounding smears each eigenvalue over the error of the products: where many lie
    at x itself (zero, say), move x by that error to the safe side.
    """
    pairs = []
    for alpha, beta, last in _each(tri):
        if last == 0:
            below, through = _atoms(*_rule(alpha, beta), x)
            pairs.append((float(np.sum(below[1])), float(np.sum(through[1]))))
        else:
            _, weight, index = _radau(alpha, beta, last, x)
            pairs.append((float(np.sum(weight[:index])), float(np.sum(weight[: index + 1]))))
    low, high = np.clip(np.array(pairs), 0.0, 1.0).T
    return low, high


def negative_part_bracket(
    quad: Quadrature, x: float, lower_edge: float, slack: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """low <= point <= high [b] for the integral of |λ| over λ < −x with each probe's measure, x >= slack >= 0.

    With `slack` the low end is that for λ < −x − slack and the high one that for λ < −x + slack.

    The smallest value that the moments allow is that of the Gauss–Radau rule with a node at −x. The largest is
    attained by a Radau rule too, with a node somewhere between the Gauss nodes next to −x: a polynomial that
    majorises the integrand touches it in at most as many points as a Radau rule has nodes (Rolle's theorem), so the
    extremal measure is one, and one parameter is left to search. It is cut off by the separation theorem (mass w_j
    lies right of node j − 1) with `lower_edge`, a lower bound of the spectrum. `point` is the Gauss rule's value.
    """
    rows = []
    for i, (alpha, beta, last) in enumerate(_each(quad.tridiagonals)):
        node, weight = quad.nodes[i, : len(alpha)], quad.weights[i, : len(alpha)]
        point = _negative_part(node, weight, -x)
        if last == 0:
            below, through = _atoms(node, weight, -x - slack)[0], _atoms(node, weight, -x + slack)[1]
            rows.append((_negative_part(*below, math.inf), point, _negative_part(*through, math.inf)))
            continue
        radau, mass, index = _radau(alpha, beta, last, -x - slack)
        low = _negative_part(radau[:index], mass[:index], math.inf)
        shifted = np.r_[min(lower_edge, node[0]), node[:-1]]
        high = _negative_part(shifted, weight, -x + slack)
        high = min(high, _largest_negative_part(alpha, beta, last, -x + slack, node))
        rows.append((min(low, point), point, max(high, point)))
    low, value, high = np.maximum(np.array(rows), 0.0).T
    return low, value, high


def count_interval(
    low_fraction: float, high_fraction: float, n: int, probes: int, confidence: float = 0.95
) -> tuple[int, int]:
    """Interval for the number k of eigenvalues in a set, from the mean mass of the set over random unit probes.

    A probe uniform on the sphere of R^n puts Beta(k/2, (n − k)/2) on k eigenvalues; the mean of t probes is taken as
    Beta(tk/2, t(n − k)/2), which has the same mean, a slightly larger variance, and the right tail at small k (a
    Gamma variable in both cases). The ends are the largest and smallest k that the tails do not reject at
    (1 − confidence)/2 each, where the mean is only known to lie within [low_fraction, high_fraction].
    """
    tail, t = (1 - confidence) / 2, probes / 2
    low, high = (min(1.0, max(0.0, fraction)) for fraction in (low_fraction, high_fraction))

    def may_be_as_small(k: int) -> bool:  # P(mean <= high) is not too small for k eigenvalues
        return k == 0 or high >= 1 - NO_MASS or (k < n and float(betainc(t * k, t * (n - k), high)) >= tail)

    def may_be_as_large(k: int) -> bool:
        return k == n or low <= NO_MASS or (k > 0 and float(betaincc(t * k, t * (n - k), low)) >= tail)

    return _first(may_be_as_large, n), n - _first(lambda j: may_be_as_small(n - j), n)


def density(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Density of each probe on the grid, float64 [b, len(grid)], smoothed with a Gaussian of standard deviation
    `width` (one, or one per grid point; with one, the integral is the sum of the weights)."""
    spread = np.broadcast_to(np.asarray(width, dtype=np.float64), grid.shape)
    out = np.zeros((len(nodes), len(grid)))
    for i, (node, weight) in enumerate(zip(nodes, weights, strict=True)):
        z = (grid[:, None] - node[None, :]) / spread[:, None]
        out[i] = np.exp(-0.5 * z**2) @ weight / (math.sqrt(2 * math.pi) * spread)
    return out


def _first(accepted: Callable[[int], bool], n: int) -> int:
    """Smallest k in 0 … n that is accepted; once accepted, all larger ones are, and n is."""
    below, at = -1, n
    while at - below > 1:
        middle = (below + at) // 2
        below, at = (below, middle) if accepted(middle) else (middle, at)
    return at


def _each(tri: Tridiagonals) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """α [k], β [k − 1] and the β after the last step, for each probe."""
    lengths = [int(k) for k in tri.length]
    return [(tri.alpha[i, :k], tri.beta[i, : k - 1], float(tri.beta[i, k - 1])) for i, k in enumerate(lengths)]


def _rule(alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    node, vector = eigh_tridiagonal(alpha, beta)
    return node, _shares(vector)


def _shares(vector: np.ndarray) -> np.ndarray:
    weight = vector[0] ** 2
    return np.asarray(weight / np.sum(weight))


def _radau(alpha: np.ndarray, beta: np.ndarray, last: float, x: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Nodes and weights of the Gauss–Radau rule with a node at x, and that node's index.

    The prescribed node makes the last pivot of T − x I vanish (Golub & Meurant 2010, §6.2). Where x is so close to a
    Gauss node that the extra diagonal entry x + β²/d would run off to infinity, the last entry α − d of the rule with
    one node less serves instead: also a Radau rule, and then hardly any wider. The index is the number of negative
    pivots (Sturm), so it needs no comparison of floating-point nodes.
    """
    pivot, negative = _pivots(alpha, beta, x)
    if abs(pivot) >= 1e-3 * last:
        diagonal, off = np.r_[alpha, x + last * (last / pivot)], np.r_[beta, last]
        negative += pivot < 0
    else:
        diagonal, off = np.r_[alpha[:-1], alpha[-1] - pivot], beta
    return (*_rule(diagonal, off), int(negative))


def _pivots(alpha: np.ndarray, beta: np.ndarray, x: float) -> tuple[float, int]:
    """Last pivot of the LDLᵀ factorisation of T − x I, and the number of negative ones before it."""
    tiny = EPS**2 * max(float(np.max(np.abs(alpha))), float(np.max(beta, initial=0.0)), abs(x), 1e-290)
    pivot, negative = float(alpha[0]) - x, 0
    for a, b in zip(alpha[1:], beta, strict=True):
        if abs(pivot) < tiny:
            pivot = -tiny
        negative += pivot < 0
        pivot = float(a) - x - float(b) * (float(b) / pivot)
    return pivot, negative


def _atoms(
    node: np.ndarray, weight: np.ndarray, x: float
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Nodes and weights surely below x, and those not surely above or at it."""
    slack = 10 * EPS * max(float(np.max(np.abs(node))), abs(x))
    below, through = node < x - slack, node <= x + slack
    return (node[below], weight[below]), (node[through], weight[through])


def _negative_part(node: np.ndarray, weight: np.ndarray, x: float) -> float:
    chosen = node < x
    return float(np.sum(weight[chosen] * np.maximum(-node[chosen], 0.0)))


def _largest_negative_part(alpha: np.ndarray, beta: np.ndarray, last: float, x: float, node: np.ndarray) -> float:
    """Largest Σ w |t| over the nodes t <= x of a Radau rule, over all its free nodes ξ in the gap around x."""
    gap = int(np.searchsorted(node, x))
    left, right = (float(t) for t in np.r_[-math.inf, node, math.inf][gap : gap + 2])
    scale = float(node[-1] - node[0]) + last + abs(x - float(node[min(gap, len(node) - 1)]))

    def value(xi: float) -> float:
        t, w, index = _radau(alpha, beta, last, xi)
        count = index + 1 if xi <= x else index
        return _negative_part(t[:count], w[:count], math.inf)

    best = value(x)
    for ends in ((left, min(x, right)), (max(x, left), right)):
        if ends[1] - ends[0] > 10 * EPS * scale:
            best = max(best, _maximum(functools.partial(_at, value, *ends, scale)))
    return best


def _at(value: Callable[[float], float], a: float, b: float, scale: float, u: float) -> float:
    """value at a point of (a, b), which may be infinite on one side, given by u in (0, 1)."""
    if math.isinf(a):
        return value(b - scale * (1 - u) / u)
    return value(a + scale * u / (1 - u) if math.isinf(b) else a + (b - a) * u)


def _maximum(value: Callable[[float], float]) -> float:
    """Maximum over (0, 1): the best of a few points, refined between its neighbours."""
    grid = np.linspace(0, 1, 9)
    seen = np.array([value(float(u)) for u in grid[1:-1]])
    k = int(np.argmax(seen))
    bounds = (float(grid[k]), float(grid[k + 2]))
    found = minimize_scalar(
        lambda u: -value(float(u)), bounds=bounds, method="bounded", options={"xatol": 1e-4, "maxiter": 20}
    )
    return max(float(seen[k]), -float(found.fun))


def _complement(w: Tensor, deflate: Tensor | None, dual: Tensor | None) -> Tensor:
    return w if deflate is None or dual is None else w.addmm_(deflate, dual @ (deflate.T @ w), alpha=-1)


def _dual(deflate: Tensor) -> Tensor:
    """Inverse Gram matrix [k, k]: the projection is then as exact as the arithmetic, not as the vectors' orthogonality,
    a defect of which would be multiplied by their eigenvalues over β at every step."""
    gram = torch.zeros(deflate.shape[1], deflate.shape[1], dtype=torch.float64, device=deflate.device)
    for rows in torch.split(deflate, max(1024, SLAB_ELEMENTS // max(1, deflate.shape[1]))):
        gram += rows.double().T @ rows.double()
    inverse: Tensor = torch.linalg.inv(gram).to(deflate.dtype)
    return inverse


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """Column by column xᵀy in float64, [b], without float64 copies of the blocks."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    width = max(1024, SLAB_ELEMENTS // x.shape[1])
    for i in range(0, x.shape[0], width):
        total += (x[i : i + width].double() * y[i : i + width].double()).sum(0)
    return total


def _norms(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64)
    return norm
