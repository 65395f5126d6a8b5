"""Estimates, tests and null models of the claims.

Intervals are 95 %. Seeds are the units. What resamples sorts its units first: relabelling them changes no digit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from landscape.linalg.student import FEW, hull_interval

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
# Numbers held at once by a bootstrap; operations of an exact trend test.
BATCH, EXACT = 4_000_000, 100_000_000
# Up to here the Pfaffian of `goe_none` keeps six digits in double precision.
PFAFFIAN = 10
RARE = 30

Null = Literal["disjoint", "all"]
Growth = Literal["linear", "quadratic", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, from n independent units; NaN where there is nothing to estimate."""

    value: float
    low: float
    high: float
    n: int


# ---- proportions and pairs -------------------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927); without trials NaN in [0, 1]."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    found = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    value = successes / n
    return Estimate(value, min(float(found.low), value), max(float(found.high), value), int(n))


def newcombe(first: int, first_n: int, second: int, second_n: int) -> Estimate:
    """Difference second − first of two independent proportions (Newcombe 1998, method 10); n counts both samples."""
    one, two = wilson(first, first_n), wilson(second, second_n)
    if not (first_n and second_n):
        return Estimate(math.nan, -1.0, 1.0, first_n + second_n)
    value = two.value - one.value
    low = value - math.hypot(two.value - two.low, one.high - one.value)
    high = value + math.hypot(two.high - two.value, one.value - one.low)
    return Estimate(value, low, high, first_n + second_n)


def mcnemar(only_first: int, only_second: int) -> tuple[float, Estimate]:
    """Paired yes/no outcomes, from the pairs in which only one says yes (McNemar 1947, exact binomial form):
    two-sided p-value of "either is as likely", and the share of these pairs won by the second, n their number."""
    n = int(only_first) + int(only_second)
    p = float(stats.binomtest(int(only_second), n).pvalue) if n else 1.0
    return p, wilson(only_second, n)


def mcnemar_pairs(first: ArrayLike, second: ArrayLike) -> tuple[float, Estimate]:
    """`mcnemar` of outcomes first [n] and second [n] of the same units."""
    a, b = _paired(first, second, bool)
    return mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """mean(b − a) of a [n] and b [n], pairs resampled, BCa interval (Efron 1987); below n = 10 Student's. Unbounded for
    n < 3; a point if all differences are equal, since resampling cannot see what did not occur."""
    d = np.sort(np.subtract(*_paired(b, a, float)))
    value = float(d.mean()) if len(d) else math.nan
    if len(d) < 3 or np.isnan(value):
        return Estimate(value, -math.inf, math.inf, len(d))
    if len(d) < FEW or d[0] == d[-1]:
        return Estimate(value, *hull_interval(d), len(d))
    return _bootstrap((d,), lambda s, axis=-1: s.mean(axis), rng, resamples)


def permutation_correlation(
    x: ArrayLike, y: ArrayLike, rng: np.random.Generator, resamples: int = 2000, ranks: bool = False
) -> tuple[Estimate, float]:
    """Correlation of x [n] and y [n], Pearson's or (ranks) Spearman's; p-value two-sided, (k + 1)/(m + 1).

    The interval is BCa over pairs, not Fisher's, whose coverage falls to 80 % if the data are not normal; the
    p-value is exact for exchangeable pairs of any distribution. NaN and p = 1 if x or y is constant or n < 3.
    """
    a, b = _paired(x, y, float)
    a, b = np.stack([a, b])[:, np.lexsort((b, a))]
    n = len(a)
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(math.nan, -1.0, 1.0, n), 1.0

    def correlation(u: np.ndarray, v: np.ndarray, axis: int = -1) -> np.ndarray:
        return _pearson(stats.rankdata(u, axis=axis), stats.rankdata(v, axis=axis)) if ranks else _pearson(u, v)

    found = _bootstrap((a, b), correlation, rng, resamples)
    p, q = (stats.rankdata(a), stats.rankdata(b)) if ranks else (a, b)
    extreme = 0
    for start in range(0, resamples, each := max(1, BATCH // n)):
        shuffled = rng.permuted(np.tile(q, (min(each, resamples - start), 1)), axis=1)
        # Round-off must not make a permutation with the same sums less extreme than the data.
        extreme += int((np.abs(_pearson(p, shuffled)) >= abs(found.value) - 1e-12).sum())
    return found, (extreme + 1) / (resamples + 1)


def _paired(first: ArrayLike, second: ArrayLike, kind: type) -> tuple[np.ndarray, np.ndarray]:
    a: np.ndarray = np.asarray(first, dtype=kind).ravel()
    b: np.ndarray = np.asarray(second, dtype=kind).ravel()
    if len(a) != len(b):
        raise ValueError(f"pairs need equally many on both sides, not {len(a)} and {len(b)}")
    return a, b


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where a resample is constant."""
    u, v = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    up, down = np.asarray((u * v).sum(-1)), np.sqrt((u * u).sum(-1) * (v * v).sum(-1))
    return _over(up, down, 0.0).clip(-1, 1)


def _over(up: np.ndarray, down: np.ndarray, otherwise: float) -> np.ndarray:
    return np.asarray(np.divide(up, down, out=np.full_like(up, otherwise), where=down > 0))


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], rng: np.random.Generator, resamples: int
) -> Estimate:
    """BCa interval, percentiles where BCa is degenerate; widened to the value where it leaves it out."""
    n, value = len(samples[0]), float(statistic(*samples))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        # `random_state`, not `rng`: our oldest scipy is 1.13.
        found = stats.bootstrap(
            samples, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=max(1, BATCH // n),
            confidence_level=LEVEL, method="BCa", random_state=rng,
        )  # fmt: skip
    low, high = (float(end) for end in found.confidence_interval)
    if not low < high:
        low, high = (float(end) for end in np.quantile(found.bootstrap_distribution, TAILS))
    return Estimate(value, min(low, value), max(high, value), n)


# ---- success against a dose ------------------------------------------------------------------------------------------


def trend(successes: ArrayLike, totals: ArrayLike, doses: ArrayLike) -> tuple[float, Estimate]:
    """Does success grow with dose? Groups [k] in any order.

    One-sided Cochran–Armitage test (Armitage 1955) on Σ dose · successes given all margins. Exact, by convolution
    over groups, for whole steps of dose and moderate samples; otherwise normal with the conditional variance.
    Returns p, 1 if nothing varies, and success at the largest dose minus at the smallest, as in `newcombe`.
    """
    order = np.argsort(doses, kind="stable")
    s, n = np.asarray(successes, dtype=int)[order], np.asarray(totals, dtype=int)[order]
    d = np.asarray(doses, dtype=float)[order]
    difference = newcombe(int(s[0]), int(n[0]), int(s[-1]), int(n[-1]))
    steps, N, S = d - d[0], int(n.sum()), int(s.sum())
    centred = steps - float(n @ steps) / max(N, 1)
    score, spread = float(s @ centred), float(n @ centred**2)
    if S in (0, N) or spread == 0:
        return 1.0, difference
    lattice = np.rint(steps).astype(int)
    if np.array_equal(lattice, steps):
        lattice //= int(np.gcd.reduce(lattice))
        if 2 * S > N:  # count failures, the other way round: the same tail, less work
            s, lattice, S = n - s, lattice[-1] - lattice, N - S
        most = np.minimum(n, S)
        if (S + 1) * (int(most @ lattice) + 1) * int((most + 1).sum()) <= EXACT:
            return _exact_trend(s, n, lattice), difference
    return float(stats.norm.sf(score / math.sqrt(S * (N - S) * spread / (N * (N - 1))))), difference


def _exact_trend(s: np.ndarray, n: np.ndarray, dose: np.ndarray) -> float:
    """P(Σ dose · successes >= seen | Σ successes); binomial weights at the pooled rate cancel and never overflow."""
    S, top = int(s.sum()), int(np.minimum(n, s.sum()) @ dose)
    ways = np.zeros((S + 1, top + 1))
    ways[0, 0] = 1.0
    for size, step in zip(n.tolist(), dose.tolist(), strict=True):
        weights = stats.binom.pmf(np.arange(size + 1), size, S / n.sum())
        new = np.zeros_like(ways)
        for x in range(min(size, S) + 1):
            new[x:, x * step :] += weights[x] * ways[: S + 1 - x, : top + 1 - x * step]
        ways = new
    return min(1.0, float(ways[S, int(s @ dose) :].sum() / ways[S].sum()))


def disjoint_tickets(p: ArrayLike, m: int, r: int) -> np.ndarray:
    """Success at width m if ⌊m/r⌋ disjoint tickets of r neurons each win independently, with probability p [any]."""
    return np.asarray(1 - (1 - np.asarray(p, dtype=float)) ** (m // r))


def all_tickets(p: ArrayLike, m: int, r: int) -> np.ndarray:
    """Success at width m if all C(m, r) tickets won independently, which those sharing neurons cannot; p [any]."""
    return np.asarray(1 - (1 - np.asarray(p, dtype=float)) ** float(math.comb(m, r)))


NULLS: dict[Null, Callable[[ArrayLike, int, int], np.ndarray]] = {"disjoint": disjoint_tickets, "all": all_tickets}


def null_interval(successes_r: int, n_r: int, n_m: int, m: int, r: int, kind: Null) -> Estimate:
    """Share of n_m starts that succeed at width m, as the null predicts it from successes_r of n_r at width r.

    The interval covers both binomial errors: of p, as in `null_p_value`, and of the outcome itself.
    """
    if n_m == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    small, large = _measured(successes_r, n_r)
    counts, shares = np.arange(n_m + 1)[:, None], np.diff(_LEVELS)
    below = (special.bdtr(counts, n_m, NULLS[kind](p, m, r)) @ shares for p in (small[:-1], large[1:]))
    low, high = (int(np.searchsorted(found, tail)) / n_m for found, tail in zip(below, TAILS, strict=True))
    value = float(NULLS[kind](successes_r / n_r, m, r)) if n_r else math.nan
    return Estimate(value, float(np.fmin(low, value)), float(np.fmax(high, value)), n_m)


def null_p_value(successes_m: int, n_m: int, successes_r: int, n_r: int, m: int, r: int, kind: Null) -> Estimate:
    """Two-sided p-value of successes_m of n_m at width m under a null whose p was measured at width r.

    Each tail is averaged over Clopper & Pearson's (1934) beta distribution of its side, p ~ Beta(s, n − s + 1) for few
    successes, Beta(s + 1, n − s) for many: where the null says "as at width r", this is Fisher's exact test doubled.
    Tails are monotone in p: sums over the ends of strata enclose it, low to high; the upper end is the value.
    """
    small, large, shares = *_measured(successes_r, n_r), np.diff(_LEVELS)
    fewer = special.bdtr(successes_m, n_m, NULLS[kind](small, m, r))
    more = special.bdtrc(successes_m - 1, n_m, NULLS[kind](large, m, r))
    low = min(1.0, 2 * float(min(shares @ fewer[1:], shares @ more[:-1])))
    high = min(1.0, 2 * float(min(shares @ fewer[:-1], shares @ more[1:])))
    return Estimate(high, low, high, n_m)


_TAIL = np.geomspace(1e-13, 1e-2, 1000)  # strata are fine towards both ends: small p-values come from there
_LEVELS = np.concatenate([[0.0], _TAIL, np.linspace(0.01, 0.99, 4000)[1:-1], 1 - _TAIL[::-1], [1.0]])


def _measured(s: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A probability at the ends of the strata, leaning low and leaning high."""
    small = special.betaincinv(s, n - s + 1, _LEVELS) if s > 0 else np.zeros_like(_LEVELS)
    return small, special.betaincinv(s + 1, n - s, _LEVELS) if s < n else np.ones_like(_LEVELS)


# ---- counting subspaces (Simsek et al. 2021, 2105.12221): affine subspaces, not volume -------------------------------


def G(r: int, m: int) -> int:
    """Ways of m neurons onto r different ones, none left out: Σ_i (−1)^{r−i} C(r, i) i^m."""
    return sum((-1) ** (r - i) * math.comb(r, i) * i**m for i in range(r + 1))


def bell(n: int) -> int:
    """Partitions of n things, by the Bell triangle."""
    row = [1]
    for _ in range(n):
        row = list(accumulate(row, initial=row[-1]))
    return row[0]


def T(r: int, m: int) -> int:
    """Subspaces of global minima at width m of a teacher with r neurons: Σ_u C(m, u) Bell(u) G(r, m − u)."""
    return sum(math.comb(m, u) * bell(u) * G(r, m - u) for u in range(m - r + 1))


def counting_ratio(r_star: int, m: int) -> float:
    """Subspaces of critical points of width r* − 1 over those of global minima, at width m >= r*."""
    return G(r_star - 1, m) / T(r_star, m)


# ---- signs of Hessian eigenvalues ------------------------------------------------------------------------------------


def dispersion(counts: ArrayLike, total: int, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """F = Var(n_neg)/(P a(1 − a)) of counts [S] among P = total, a = mean/P, unbiased variance; independent coins: 1.

    BCa interval over members; unbounded below `RARE` heads or tails in all, where resampling misses the rare doubles
    (of 7 heads in 150 members it would call 68 % of fair ensembles underdispersed). If all counts are equal, the upper
    end lets as many members differ by one as Wilson's bound for none in S allows. NaN for S < 2 or a in {0, 1}.
    """
    c = np.sort(np.asarray(counts, dtype=float).ravel())
    n, a = len(c), float(c.mean()) / total if len(c) else 0.0
    if n < 2 or not 0 < a < 1:
        return Estimate(math.nan, 0.0, math.inf, n)

    def statistic(x: np.ndarray, axis: int = -1) -> np.ndarray:
        share = x.mean(axis) / total
        unbiased = x.shape[axis] / max(x.shape[axis] - 1, 1)  # the jackknife leaves one of two
        return _over(np.asarray(x.var(axis) * unbiased), total * share * (1 - share), 1.0)

    if min(c.sum(), n * total - c.sum()) < RARE:
        return Estimate(float(statistic(c)), 0.0, math.inf, n)
    if c[0] == c[-1]:
        other = min(wilson(0, n).high, 0.5)
        return Estimate(0.0, 0.0, other * (1 - other) / (total * a * (1 - a)), n)
    return _bootstrap((c,), statistic, rng, resamples)


def spacing_ratio(eigenvalues: ArrayLike, window: tuple[float, float] = (0.1, 0.9), tie: float = 0.0) -> Estimate:
    """⟨min/max of neighbouring gaps⟩ of spectra [S, P] (Atas et al. 2013): Poisson 2 ln 2 − 1 = .3863, GOE .5307.

    Gaps between eigenvalues in a quantile window of each spectrum; those up to `tie` (say τ) count as zero.
    Two zero gaps have no ratio. Student's t interval over the means of the members, which are the units.
    """
    spectra = np.sort(np.atleast_2d(np.asarray(eigenvalues, dtype=float)), axis=1)
    P = spectra.shape[1]
    gaps = np.diff(spectra[:, math.floor(window[0] * P) : math.ceil(window[1] * P)], axis=1)
    gaps = np.where(gaps <= tie, 0.0, gaps)
    small, large = np.minimum(gaps[:, 1:], gaps[:, :-1]), np.maximum(gaps[:, 1:], gaps[:, :-1])
    kept = (large > 0).sum(1)
    means = np.sort(_over(small, large, 0.0).sum(1)[kept > 0] / kept[kept > 0])
    n = len(means)
    if n < 2:
        return Estimate(float(means[0]) if n else math.nan, 0.0, 1.0, n)
    value = float(means.mean())
    half = float(stats.t.ppf(TAILS[1], n - 1) * means.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), n)


def coin_probability_none(counts: ArrayLike, total: int) -> tuple[Estimate, float, float]:
    """P(n_neg = 0) from counts [S] among P = total; (1 − a)^P, a = mean/P, as coins have it; two-sided exact binomial
    p-value, which takes a as known (for coins its relative error is 1/√(S P a))."""
    c = np.asarray(counts).ravel()
    none = int((c == 0).sum())
    if not len(c):
        return wilson(0, 0), math.nan, 1.0
    expected = float((1 - c.mean() / total) ** total)
    return wilson(none, len(c)), expected, float(stats.binomtest(none, len(c), expected).pvalue)


def goe_none(N: int) -> float:
    """Probability that an N×N GOE matrix has no negative eigenvalue.

    Exact for N <= `PFAFFIAN`, by de Bruijn (1955): Pf(A)/Z with A_ij = ∫∫ sgn(y − x) x^i y^j e^{−(x² + y²)/2} over
    x, y > 0, in polar coordinates, bordered by ∫ x^i e^{−x²/2} for odd N; Z is Mehta's integral. Beyond, the leading
    large deviation exp(−(ln 3/4) N²) (Dean & Majumdar 2006), which is too large: by e^{4.3} at N = 11.
    """
    if N > PFAFFIAN:
        return math.exp(-math.log(3) / 4 * N**2)
    u, w = np.polynomial.legendre.leggauss(40)
    angle, k = math.pi / 8 * (u + 1), np.arange(N)
    below = (np.cos(angle) ** k[:, None] * w * math.pi / 8) @ (np.sin(angle) ** k[:, None]).T  # θ < π/4, y < x
    half = (k[:, None] + k) / 2
    A = np.zeros((N + N % 2, N + N % 2))
    A[:N, :N] = (below.T - below) * 2**half * special.gamma(half + 1)
    if N % 2:
        A[:N, N] = 2 ** ((k - 1) / 2) * special.gamma((k + 1) / 2)
        A[N] = -A[:, N]
    j = np.arange(1, N + 1)
    mehta = N / 2 * math.log(2 * math.pi) + float((special.gammaln(1 + j / 2) - special.gammaln(1.5)).sum())
    return math.exp(float(np.linalg.slogdet(A)[1]) / 2 - mehta + math.lgamma(N + 1))


def simulate_goe(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending eigenvalues [count, n] of GOE matrices (X + Xᵀ)/2, X with standard normal entries."""
    x = rng.standard_normal((count, n, n))
    return np.asarray(np.linalg.eigvalsh((x + x.transpose(0, 2, 1)) / 2))


def goe_variance(n: int) -> float:
    """Variance of the number of positive eigenvalues of an n×n GOE matrix, ln n/π² + .24 (Majumdar et al. 2009)."""
    return math.log(n) / math.pi**2 + 0.24


def linear_or_quadratic(P: ArrayLike, ln_p: ArrayLike, weights: ArrayLike) -> tuple[Growth, float]:
    """Which fits better, ln P(none) = −cP (coins) or −cP² (GOE), by least squares through the origin, and its
    likelihood over the other's, normal errors.

    Sizes P [k], logarithms ln_p [k], weights 1/variance [k]; undecided if there are fewer than two sizes. What is not
    finite is left out, which favours slow decay: choose sizes at which some are seen.
    """
    x, y, w = np.array([P, ln_p, weights], dtype=float)
    x, y, w = np.array([x, y, w])[:, np.isfinite(y) & np.isfinite(w) & (w > 0)]
    if len(np.unique(x)) < 2:
        return "undecided", 1.0
    line, square = (float(w @ (y - f * ((w * f) @ y) / ((w * f) @ f)) ** 2) for f in (x, x**2))
    better: Growth = "undecided" if line == square else "linear" if line < square else "quadratic"
    return better, math.exp(min(abs(line - square) / 2, 700.0))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values [k] (Holm 1979): reject those below α, and any true null is rejected with probability <= α."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted
