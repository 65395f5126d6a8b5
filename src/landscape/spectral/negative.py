"""The negative part of a spectrum above a floor τ: count bracket and mass, from pairs, basis and probes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from landscape.linalg.quadrature import count_interval, distribution_bracket, negative_part_bracket
from landscape.spectral.probing import Probing

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
    masses = np.array([_mass(known, probing, x) for x in absolute]).reshape(len(absolute), 3)
    nothing = high == 0
    masses[nothing] = 0.0
    return Negative(relative, absolute, low, np.maximum(high, low), None, masses[:, 0], masses[:, 1], masses[:, 2])


def _count_high(known: Known, probing: Probing, x: float, noise: float) -> int:
    sure_not = int(np.sum(known.ritz_values >= -x + noise))  # interlacing from the other side
    ceiling = known.n - sure_not
    if probing.tridiagonals is None:
        deflated_all = probing.free == 0
        return int(np.sum(known.value - known.residual < -x)) if deflated_all else ceiling
    deflated = int(np.sum(known.value - known.residual < -x))
    _, above = distribution_bracket(probing.tridiagonals, -x + noise)
    _, count = count_interval(0.0, float(np.mean(above)), probing.free, len(above))
    return min(ceiling, deflated + count)


def _mass(known: Known, probing: Probing, x: float) -> tuple[float, float, float]:
    """Mass with its interval (value, low, high): bracketed quadrature, jackknifed over probes."""
    deflated_negative = abs(float(known.value[known.value < -x].sum()))
    deflated_all = float(np.abs(known.value).sum())
    if probing.free == 0:
        mass = _ratio(deflated_negative, deflated_all)
        return mass, mass, mass
    if probing.quadrature is None:
        return math.nan, 0.0, 1.0
    rule = probing.quadrature
    below = negative_part_bracket(rule, x, known.lower_edge)
    any_negative = negative_part_bracket(rule, 0.0, known.lower_edge)
    first_moment = (rule.nodes * rule.weights).sum(axis=1)
    numerators = [deflated_negative + probing.free * b for b in below]
    totals = [deflated_all + probing.free * np.maximum(first_moment + 2 * b, 0.0) for b in any_negative]
    low_n, mid_n, high_n = numerators
    low_d, mid_d, high_d = totals
    value = _ratio(float(mid_n.mean()), float(mid_d.mean()))
    low, low_error = _jackknife(low_n, high_d)
    high, high_error = _jackknife(high_n, low_d)
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
    return ratio, float(student.ppf(0.975, t - 1)) * math.sqrt(variance)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
