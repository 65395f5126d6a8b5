"""Means and tests over the independent units of a claim: seeds, minima and tickets, or the teachers that own them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from landscape.claims.statistics import Estimate, paired_bootstrap, wilson
from landscape.linalg.student import mean_interval

# Fixed before any data. Level of every test; fewer units than this decide nothing: eight signs have p >= 2/256.
LEVEL, LEAST_UNITS = 0.01, 8
# Signs that are flipped in a test, at most.
FLIPS = 9999


def by_teacher(values: Sequence[float] | np.ndarray, teachers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Values [n] less what is NaN; with the teachers of each, where there are several, the mean of each teacher: what
    one of them made is alike."""
    found: np.ndarray = np.asarray(values, dtype=float)
    there = ~np.isnan(found)
    if not len(teachers):
        kept: np.ndarray = found[there]
        return kept
    found, owner = found[there], np.asarray(teachers)[there]
    return np.array([float(found[owner == t].mean()) for t in np.unique(owner)])


def mean_share(shares: np.ndarray, teachers: Sequence[int] | np.ndarray = ()) -> Estimate:
    """Mean of shares [n] with the wider of the spread's and Wilson's 95 % interval: units that all did the same show no
    spread. With the teachers of each, where there are several, the mean of their means."""
    n, units = len(shares), by_teacher(shares, teachers)
    spread = mean_of(units) if len(teachers) and len(units) > 1 else _bootstrapped(units)
    if len(teachers) and len(units) == 2:  # two means say nothing of how teachers differ
        spread = Estimate(spread.value, 0.0, 1.0, 2)
    low, high = (wilson(k, n) for k in (math.floor(spread.value * n), math.ceil(spread.value * n)))
    ends = max(0.0, float(np.fmin(spread.low, low.low))), min(1.0, float(np.fmax(spread.high, high.high)))
    return Estimate(spread.value, *ends, n)


def mean_of(values: np.ndarray) -> Estimate:
    """Mean of values [n >= 1] with the wider of the bootstrap's and Student's 95 % interval: few units have too little
    spread for the one, skewed ones too much for the other. NaN for the ends of fewer than three, or where all are
    equal."""
    if len(values) < 3 or np.ptp(values) == 0:
        return Estimate(float(values.mean()), math.nan, math.nan, len(values))
    e, (low, high) = _bootstrapped(values), mean_interval(values)
    return Estimate(e.value, min(e.low, low), max(e.high, high), len(values))


def _bootstrapped(values: np.ndarray) -> Estimate:
    return paired_bootstrap(np.zeros(len(values)), values, np.random.default_rng(0))


def sign_flips(values: np.ndarray) -> float:
    """Two-sided p of the mean of values [n] if every sign were a coin's: of all 2^n signs where these are not more than
    `FLIPS`, else of as many draws with the values themselves among them, which keeps the level (Phipson & Smyth 2010).
    """
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=FLIPS, rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def decided(value: float, p_value: float, n: int) -> str:
    """Which way a difference from 0 goes, if its test says that there is one."""
    if n < LEAST_UNITS or p_value >= LEVEL:
        return "undetermined"
    return "supported" if value > 0 else "contradicted"


def about(values: np.ndarray, p_value: float) -> str:
    """What a reader must know of the test of flipped signs of values [n]."""
    drawn = f" in {FLIPS:,} draws" if 2 ** len(values) > FLIPS else ""
    alike = "; all agree: nothing to estimate an interval from" if np.ptp(values) == 0 else ""
    return f"signs flipped: p = {p_value:.1e}{drawn}{few(len(values), LEAST_UNITS, '; ')}{alike}"


def few(n: int, least: int, joint: str = "") -> str:
    """That there are not enough, "" if there are."""
    return f"{joint}only {n} of the {least} that are needed" if n < least else ""
