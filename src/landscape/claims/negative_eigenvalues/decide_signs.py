"""Part 2b of the claim on negative eigenvalues: are the signs of Hessian eigenvalues independent coins?

T1: is the number of negative ones as dispersed as coins make it? T2: do neighbouring levels repel? T3: how often is
none negative? T4: does the logarithm of that fall linearly in P (coins), or like its square, as for the Gaussian
orthogonal ensemble (GOE; Dean & Majumdar 2006)?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from landscape.claims.claim import Part
from landscape.claims.statistics import (
    Estimate,
    coin_probability_none,
    dispersion,
    goe_none,
    goe_variance,
    holm,
    linear_or_quadratic,
    simulate_goe,
    spacing_ratio,
)

# Fixed before any data. Level of the tests, after Holm's correction over all ensembles.
LEVEL = 0.01
# F is known to √(2/S), 12 % for 150 seeds: enough to tell 1 from GOE's .05–.15 and from half or twice the coins'.
LEAST_SEEDS = 150
# Neighbouring gaps mean nothing inside a cluster of zeros; T2 is left out if zeros exceed this share of P.
MOST_ZEROS = 0.05
# T3 says something only if coins would make at least this many members without negative eigenvalues.
LEAST_NONE = 3.0
# T4: sizes with such members that a curve needs, and the likelihood ratio that separates the two curves.
LEAST_SIZES, DECISIVE = 3, 20.0
# Gaps between eigenvalues in this quantile window of a spectrum, away from both edges.
WINDOW = (0.1, 0.9)
POISSON, GOE = 2 * math.log(2) - 1, 0.5307
# GOE's spacing ratio is simulated up to this P, and the limit beyond.
SIMULATED = 64


@dataclass(frozen=True, eq=False)
class Signs:
    """2b: spectra of S seeds of one width at one stage of training; sizes P of one family and stage are compared.

    Attributes:
        family: such as "tanh 6-r-1". stage: such as "start". eigenvalues: [S, P]. tau: relative floor of the counts.
    """

    family: str
    stage: str
    eigenvalues: np.ndarray
    tau: float = 1e-6

    @property
    def name(self) -> str:
        return f"{self.family}, P = {self.parameters}, {self.stage}"

    @property
    def parameters(self) -> int:
        return int(self.eigenvalues.shape[1])

    @property
    def scaled(self) -> np.ndarray:
        """Eigenvalues over max |λ| of their member [S, P]."""
        largest = np.abs(self.eigenvalues).max(axis=1, keepdims=True)
        return self.eigenvalues / np.where(largest > 0, largest, 1)

    @property
    def negative(self) -> np.ndarray:
        return np.asarray((self.scaled < -self.tau).sum(axis=1))


@dataclass(frozen=True, eq=False)
class SignTests:
    """T1–T3 of one ensemble: estimates, what GOE expects, and p-values of both null models."""

    F: Estimate
    F_goe: float
    r: Estimate
    r_goe: float
    none: Estimate
    none_coins: float
    p_none: float
    p_coins: tuple[float, float]
    p_goe: tuple[float, float]
    zeros: float


def sign_tests(s: Signs) -> SignTests:
    S, P = s.eigenvalues.shape
    counts, a = s.negative, float(s.negative.mean()) / P
    F = dispersion(counts, P, np.random.default_rng(0))
    F_goe = goe_variance(P) / (P * a * (1 - a)) if 0 < a < 1 else math.nan
    zeros = float((np.abs(s.scaled) <= s.tau).mean())
    r = spacing_ratio(s.scaled, WINDOW, s.tau)
    r_goe = _goe_ratio(P)
    none, none_coins, p_none = coin_probability_none(counts, P)
    # A ratio below Poisson's comes from clusters and uneven densities too: only repulsion speaks against coins.
    repelled = _p_mean(r, POISSON) if r.value > POISSON else 1.0
    usable = zeros <= MOST_ZEROS
    return SignTests(
        F, F_goe, r, r_goe, none, none_coins, p_none,
        (_p_variance(F.value, S), repelled if usable else 1.0),
        (_p_variance(F.value / F_goe, S), _p_mean(r, r_goe) if usable else 1.0),
        zeros,
    )  # fmt: skip


def _p_variance(ratio: float, S: int) -> float:
    """Two-sided p of a sample variance over its expectation: (S − 1) F is χ² with S − 1 degrees (Fisher 1925)."""
    if not math.isfinite(ratio):
        return 1.0
    x = ratio * (S - 1)
    return min(1.0, 2 * float(min(stats.chi2.cdf(x, S - 1), stats.chi2.sf(x, S - 1))))


def _p_mean(estimate: Estimate, value: float) -> float:
    """Two-sided p of a mean whose Student interval is given."""
    half, degrees = (estimate.high - estimate.low) / 2, estimate.n - 1
    if not math.isfinite(estimate.value) or degrees < 1 or half <= 0:
        return 1.0
    t = (estimate.value - value) / (half / stats.t.ppf(0.975, degrees))
    return 2 * float(stats.t.sf(abs(t), degrees))


@lru_cache(maxsize=32)
def _goe_ratio(P: int) -> float:
    """GOE's mean spacing ratio at finite P; by simulation, to about .002."""
    if P > SIMULATED:
        return GOE
    return spacing_ratio(simulate_goe(P, 2000, np.random.default_rng(0)), WINDOW).value if P > 2 else math.nan


def sign_parts(samples: Sequence[Signs]) -> list[Part]:
    """One verdict an ensemble, from T1–T3, which are reported below it; T4 for every family of sizes.

    Coins are contradicted where T1 or T2 exclude them after Holm's correction over all ensembles; supported where the
    intervals of T1 and T2 contain their values and not GOE's, and T3 (at .05) is with them or has nothing to say.
    """
    tests = [sign_tests(s) for s in samples]
    coins = holm([p for t in tests for p in t.p_coins]).reshape(-1, 2)
    goe = holm([p for t in tests for p in t.p_goe]).reshape(-1, 2)
    parts = []
    for s, t, p, q in zip(samples, tests, coins, goe, strict=True):
        short = few(len(s.eigenvalues), LEAST_SEEDS, "seeds")
        out, other = _excluding(p), _excluding(q)
        verdict = "contradicted" if out else "supported" if _agrees(t) else "undetermined"
        note = f"coins {_by(out)}; GOE {_by(other)}"
        parts.append(
            part(
                f"2b signs are coins, {s.name}", "undetermined" if short else verdict,
                "dispersion of the number of negative eigenvalues (coins: 1)", t.F, short or note,
            )
        )  # fmt: skip
        parts += _reported(s, t, p)
    return [*parts, *_growth(samples)]


def _agrees(t: SignTests) -> bool:
    """Whether T1 and T2 are with coins and not with GOE, and T3 does not object."""
    pairs = ((t.F, 1.0, t.F_goe), (t.r, POISSON, t.r_goe))
    near = all(e.low <= coins <= e.high and not e.low <= goe <= e.high for e, coins, goe in pairs)
    return near and t.zeros <= MOST_ZEROS and (t.p_none >= 0.05 or not _tells(t))


def _tells(t: SignTests) -> bool:
    """Whether T3 can say anything: coins, or what was seen, give some members without negative eigenvalues."""
    return t.none.n * max(t.none_coins, t.none.value) >= LEAST_NONE


def _excluding(p: np.ndarray) -> list[str]:
    return [name for name, value in zip(("T1", "T2"), p, strict=True) if value < LEVEL]


def _by(tests: list[str]) -> str:
    return f"excluded by {' and '.join(tests)}" if tests else "not excluded"


def _reported(s: Signs, t: SignTests, p: np.ndarray) -> list[Part]:
    """T1–T3, which the verdict above is made of."""
    clusters = f"; left out, {100 * t.zeros:.0f} % zeros" if t.zeros > MOST_ZEROS else ""
    silent = "" if _tells(t) else "; too rare under either model to tell"
    T1 = "contradicted" if p[0] < LEVEL else "supported" if t.F.low <= 1 <= t.F.high else "undetermined"
    T2 = "contradicted" if p[1] < LEVEL else "supported" if t.r.low <= POISSON <= t.r.high else "undetermined"
    T3 = "undetermined" if silent else "contradicted" if t.p_none < LEVEL else "supported"
    T3 = "undetermined" if T3 == "supported" and t.p_none < 0.05 else T3
    rows = (
        ("T1 dispersion", T1, "Var n_neg / (P a (1 - a))", t.F, f"coins 1, GOE {t.F_goe:.3f}"),
        ("T2 spacing ratio", "undetermined" if clusters else T2, "mean ratio of neighbouring gaps", t.r,
         f"independent levels {POISSON:.4f}, GOE {t.r_goe:.4f}{clusters}"),
        ("T3 none negative", T3, "share of seeds without negative eigenvalues", t.none,
         f"coins {t.none_coins:.1e}, GOE {goe_none(s.parameters):.1e}, p = {t.p_none:.1e}{silent}"),
    )  # fmt: skip
    enough = len(s.eigenvalues) >= LEAST_SEEDS
    return [
        part(f"2b {name}, {s.name}", verdict if enough else "undetermined", words, e, note, evidence=False)
        for name, verdict, words, e, note in rows
    ]


def _growth(samples: Sequence[Signs]) -> list[Part]:
    """T4: ln P(no negative eigenvalue) against P, for each family and stage that has several sizes."""
    parts = []
    for family, stage in dict.fromkeys((s.family, s.stage) for s in samples):
        group = [s for s in samples if (s.family, s.stage) == (family, stage) and len(s.eigenvalues) >= LEAST_SEEDS]
        if len({s.parameters for s in group}) < LEAST_SIZES:
            continue
        found = [coin_probability_none(s.negative, s.parameters)[0] for s in group]
        usable = [(s.parameters, e.value, e.n) for s, e in zip(group, found, strict=True) if 0 < e.value < 1]
        better, ratio, verdict = "undecided", math.nan, "undetermined"
        if len(usable) >= LEAST_SIZES:
            P, p, n = np.array(usable, dtype=float).T
            better, ratio = linear_or_quadratic(P, np.log(p), n * p / (1 - p))
            if ratio >= DECISIVE:
                verdict = {"linear": "supported", "quadratic": "contradicted"}.get(better, "undetermined")
        e = Estimate(ratio, math.nan, math.nan, sum(len(s.eigenvalues) for s in group))
        note = f"{better}; {len(usable)} of {len(group)} sizes have such seeds, {LEAST_SIZES} are needed"
        words = "likelihood ratio of the better of linear (coins) and quadratic (GOE)"
        parts.append(part(f"2b T4 ln P(none) against P, {family}, {stage}", verdict, words, e, note, evidence=False))
    return parts


def few(n: int, least: int, what: str) -> str:
    return f"only {n} of the {least} {what} that are needed" if n < least else ""


def part(name: str, verdict: str, statistic: str, e: Estimate, note: str, evidence: bool = True) -> Part:
    return Part(name, verdict, statistic, e.value, e.low, e.high, e.n, note, evidence)
