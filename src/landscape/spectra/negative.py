"""The negative part of a spectrum above a floor τ: count bracket and mass, from pairs, basis and probes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from landscape.linalg.quadrature import count_interval, distribution_bracket, negative_part_bracket
from landscape.spectra.probing import Probing

# The three floors that are always reported beside the user's own (design: never one bare count).
FLOORS = (1e-6, 1e-4, 1e-2)


@dataclass(frozen=True)
class Negative:
    """Per floor τ [f]: see the fields of the same names in `results.Spectrum`; intervals are 95 %."""

    tau: np.ndarray
    tau_absolute: np.ndarray
    negative_count_low: np.ndarray
    negative_count_high: np.ndarray
    negative_count_exact: np.ndarray | None
    negative_mass: np.ndarray
    negative_mass_low: np.ndarray
    negative_mass_high: np.ndarray


@dataclass(frozen=True)
class Known:
    """What is known for certain: deflated eigenvalues with residuals, and Ritz values of an orthonormal basis."""

    value: np.ndarray
    residual: np.ndarray
    ritz_values: np.ndarray
    lower_edge: float
    n: int


def floors(tau: float) -> np.ndarray:
    """The user's floor first, then the standard ones that differ from it."""
    return np.array([tau, *(f for f in FLOORS if not math.isclose(f, tau))])


def negative_exact(values: np.ndarray, bound: float, tau: float) -> Negative:
    """From all eigenvalues (ascending), each right to `bound`: exact counts and masses.

    An eigenvalue within its own error of −τ is on neither side for certain; the bracket then shows it, and the
    count stays the nearest statement.
    """
    scale = float(np.max(np.abs(values))) if len(values) else 0.0
    relative = floors(tau)
    absolute = np.maximum(relative * scale, bound)
    count = np.array([np.sum(values < -x) for x in absolute])
    low = np.array([np.sum(values < -x - bound) for x in absolute])
    high = np.array([np.sum(values < -x + bound) for x in absolute])
    sure = low == high
    total = float(np.sum(np.abs(values)))
    mass = np.array([_ratio(abs(float(values[values < -x].sum())), total) for x in absolute])
    slack = 2 * len(values) * bound / total if total > 0 else 0.0
    return Negative(
        relative,
        absolute,
        np.where(sure, count, low),
        np.where(sure, count, high),
        np.where(sure, count, np.nan),
        mass,
        np.clip(mass - slack, 0.0, 1.0),
        np.clip(mass + slack, 0.0, 1.0),
    )


def negative_bracketed(known: Known, probing: Probing, scale: float, noise: float, tau: float) -> Negative:
    """From eigenpairs, a Krylov basis and probes of the rest.

    Low counts: Ritz values of an orthonormal basis below −τ − noise (Cauchy interlacing). High counts: sharp
    Markov–Stieltjes brackets of each probe's measure, then the confidence interval of the mean over probes.
    """
    relative = floors(tau)
    absolute = np.maximum(relative * scale, 2 * noise)
    low = np.array([np.sum(known.ritz_values < -x - noise) for x in absolute])
    high = np.array([_count_high(known, probing, x, noise) for x in absolute])
    rule, edge = probing.quadrature, known.lower_edge
    any_negative = None if rule is None else negative_part_bracket(rule, 0.0, edge)
    masses = np.array([_mass(known, probing, x, noise, any_negative) for x in absolute]).reshape(len(absolute), 3)
    nothing = high == 0
    masses[nothing] = 0.0
    return Negative(relative, absolute, low, np.maximum(high, low), None, masses[:, 0], masses[:, 1], masses[:, 2])


def _coupling(known: Known, x: float, noise: float) -> tuple[float, np.ndarray]:
    """How far an eigenvalue at −x of the probed operator may lie from one of H, and which pairs are too near to say.

    Deflating by approximate eigenvectors hides their residuals r, which couple them to the rest. One of them moves an
    eigenvalue at distance η from its own by at most 2r²/(η + √(η² + 4r²)) (Li & Li 2005). Those for which that adds up
    to more than x/4 are near instead: coupling k of them moves at most k eigenvalues across −x (Cauchy interlacing).
    """
    residual = np.maximum(known.residual - 2 * noise, 0.0)  # what is due to the products is `noise` anyway
    apart = np.abs(known.value + x)
    moved = 2 * residual**2 / np.maximum(apart + np.sqrt(apart**2 + 4 * residual**2), np.finfo(float).tiny)
    order = np.argsort(moved, kind="stable")
    total = np.cumsum(moved[order])
    far = total <= x / 4
    near = np.ones(len(moved), dtype=bool)
    near[order[far]] = False
    return noise + float(np.max(total[far], initial=0.0)), near


def _count_high(known: Known, probing: Probing, x: float, noise: float) -> int:
    sure_not = int(np.sum(known.ritz_values >= -x + noise))  # interlacing from the other side
    ceiling = known.n - sure_not
    if probing.tridiagonals is None:
        deflated_all = probing.free == 0
        return int(np.sum(known.value - known.residual < -x)) if deflated_all else ceiling
    shift, near = _coupling(known, x, noise)
    deflated = int(np.sum((known.value - known.residual < -x) | near))
    _, above = distribution_bracket(probing.tridiagonals, -x + shift)
    _, count = count_interval(0.0, float(np.mean(above)), probing.free, len(above))
    return min(ceiling, deflated + count)


def _mass(
    known: Known,
    probing: Probing,
    x: float,
    noise: float,
    any_negative: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> tuple[float, float, float]:
    """Mass with its interval (value, low, high): bracketed quadrature, jackknifed over probes; `any_negative`: the
    bracket of all that is negative.

    What the residuals of the deflated pairs hide changes the sum of the negative eigenvalues by at most Σr, and that
    of all |λ| by twice as much (Lidskii); the error of the products changes every eigenvalue by at most `noise` (Weyl).
    """
    size, hidden = np.abs(known.value), float(known.residual.sum())
    sure, maybe = known.value + known.residual < -x, known.value - known.residual < -x
    negative = [float(size[which].sum()) for which in (sure, known.value < -x, maybe)]
    if probing.free == 0:
        total, value = float(size.sum()), _ratio(negative[1], float(size.sum()))
        low = _ratio(negative[0] - hidden, total + 2 * hidden)
        return value, min(value, max(0.0, low)), max(value, _at_most(negative[2] + hidden, total - 2 * hidden))
    if probing.quadrature is None or any_negative is None:
        return math.nan, 0.0, 1.0
    rule, free = probing.quadrature, probing.free
    shift, near = _coupling(known, x, noise)
    crossing = hidden + x * float(near.sum())
    inner, middle, outer = negative_part_bracket(rule, x, known.lower_edge, shift)
    below = [distribution_bracket(rule.tridiagonals, -x + s)[1] for s in (-shift, shift)]
    numerators = [
        np.maximum(negative[0] - crossing + free * (inner - noise * below[0]), 0.0),
        negative[1] + free * middle,
        negative[2] + crossing + free * (outer + noise * below[1]),
    ]
    first_moment = (rule.nodes * rule.weights).sum(axis=1)
    totals = [float(size.sum()) + free * np.maximum(first_moment + 2 * b, 0.0) for b in any_negative]
    slack = 2 * hidden + free * noise
    value = _ratio(float(numerators[1].mean()), float(totals[1].mean()))
    low, low_error = _jackknife(numerators[0], totals[2] + slack)
    high, high_error = _jackknife(numerators[2], np.maximum(totals[0] - slack, 0.0))
    high = high if totals[0].mean() > slack else _at_most(float(numerators[2].mean()), 0.0)
    return value, min(value, max(0.0, low - low_error)), max(value, min(1.0, high + high_error))


def _jackknife(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """Ratio of means over probes, and the half-width of its 95 % interval (Efron & Stein 1981)."""
    t = len(numerator)
    ratio = _ratio(float(numerator.mean()), float(denominator.mean()))
    if t < 2:
        return ratio, 1.0
    without = np.array(
        [_ratio(float(np.delete(numerator, i).sum()), float(np.delete(denominator, i).sum())) for i in range(t)]
    )
    variance = (t - 1) / t * float(np.sum((without - without.mean()) ** 2))
    return ratio, float(stdtrit(t - 1, 0.975)) * math.sqrt(variance)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _at_most(part: float, whole: float) -> float:
    """The ratio as an upper end: 1 where the whole may be nothing."""
    return min(1.0, part / whole) if whole > 0 else float(part > 0)
