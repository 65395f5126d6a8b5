"""Protocol A of the claim on escape dimensions: does splitting the neurons of bad minima open ways out, and do these
lead lower than random kicks of the same length?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from landscape.claim import Part
from landscape.statistics import Estimate, paired_bootstrap, wilson

# Fixed before any data. A squared error below this is zero loss (claims §1, Protocol B).
SUCCESS = 1e-10
# Level of every test. Fewer minima than this decide nothing: the smallest p of eight signs is 2/256.
LEVEL, LEAST_MINIMA = 0.01, 8
# Signs that are flipped in a test, at most.
FLIPS = 9999
# A drop of the loss smaller than this share is none.
DROP = 1e-3


@dataclass(frozen=True)
class Splits:
    """Protocol A at one certified bad minimum.

    Attributes:
        run: its name. loss: there. foretold, found: negative eigenvalues of every split [K]. reached: loss where the
            way out of each split ended [K], NaN where none opened. wide, narrow: losses from random kicks of the same
            length in the wide network [K, C] and in the narrow one. channel: whether that way ran to infinity [K].
        teacher: which of several made the data.
    """

    run: str
    loss: float
    foretold: np.ndarray
    found: np.ndarray
    reached: np.ndarray
    wide: np.ndarray
    narrow: np.ndarray
    channel: np.ndarray
    teacher: int = 0


def split_parts(name: str, splits: Sequence[Splits], zero_loss: bool) -> list[Part]:
    """Protocol A on the minima of one problem. The unit is the bad minimum, not the split; where there are several
    teachers, the teacher, with the mean of its minima.

    Args:
        zero_loss: whether zero loss can be reached at all.
    """
    if not splits:
        return []
    teachers = [s.teacher for s in splits]
    what, over = ("bad minima", "minima") if len(set(teachers)) == 1 else ("teachers", "minima and teachers")
    equal = sum(int((s.foretold == s.found).sum()) for s in splits)
    total = sum(len(s.found) for s in splits)
    index = wilson(equal, total)
    lowered = _by_unit([float((s.reached < (1 - DROP) * s.loss).any()) for s in splits], teachers)
    n, won = len(lowered), int((lowered > 0.5).sum())
    down, p_down = wilson(won, n), float(stats.binomtest(won, n).pvalue)
    zero = mean_share(_by_unit([float((s.reached < SUCCESS).any()) for s in splits], teachers))
    parts = [
        Part(
            f"{name}: index as foretold", _equal(equal, total), "share of splits", index.value, index.low, index.high,
            total, "a theorem: a check of this program, no evidence", evidence=False,
        ),
        Part(
            f"{name}: splitting opens a way down", _decided(down.value - 0.5, p_down, n),
            f"share of {what} where a split leads lower", down.value, down.low, down.high, n,
            f"against a half: p = {p_down:.1e}{few(n, LEAST_MINIMA, '; ')}",
        ),
    ]  # fmt: skip
    if zero_loss:
        parts.append(
            Part(
                f"{name}: splitting leads to zero loss", "undetermined", f"share of bad minima, mean over {over}",
                zero.value, zero.low, zero.high, n, "reported: escaping is not reaching a global minimum",
                evidence=False,
            )
        )  # fmt: skip
    parts += _ways(name, splits, over)
    for kind in ("wide", "narrow"):
        gains = _by_unit(_against_kicks(splits, kind), teachers)
        if len(gains) > 1:
            gain, p_value = mean_over_minima(gains), sign_flips(gains)
            parts.append(
                Part(
                    f"{name}: ways out against kicks, {kind}", _decided(gain.value, p_value, len(gains)),
                    f"log10 loss of kicks less that of ways out, median, mean over {over}", gain.value, gain.low,
                    gain.high, len(gains), f"signs flipped: p = {p_value:.1e}{_about(gains)}",
                )
            )  # fmt: skip
    return parts


def _by_unit(values: Sequence[float], teachers: Sequence[int]) -> np.ndarray:
    """Values of minima, less what is NaN; of several teachers the mean of each: their minima are alike."""
    there = ~np.isnan(values)
    found, owner = np.asarray(values)[there], np.asarray(teachers)[there]
    if len(set(teachers)) == 1:
        return found
    return np.array([found[owner == t].mean() for t in np.unique(owner)])


def _ways(name: str, splits: Sequence[Splits], over: str) -> list[Part]:
    """How far the ways out lead down, and how many run to infinity: means over units, reported."""
    opened, teachers = [np.isfinite(s.reached) for s in splits], [s.teacher for s in splits]
    both = list(zip(splits, opened, strict=True))
    drops = [float(np.median(1 - s.reached[o] / s.loss)) if o.any() else math.nan for s, o in both]
    channels = [float(s.channel[o].mean()) if o.any() else math.nan for s, o in both]
    rows = (("drop of the loss along ways out", f"share of the loss, median, mean over {over}", drops),
            ("ways out that run to infinity", f"share of ways out, mean over {over}", channels))  # fmt: skip
    parts = []
    for words, statistic, values in rows:
        units = _by_unit(values, teachers)
        if len(units) > 1:
            e = mean_share(np.clip(units, 0.0, 1.0))
            parts.append(
                Part(
                    f"{name}: {words}", "undetermined", statistic, e.value, e.low, e.high, len(units),
                    "reported, not tested", evidence=False,
                )
            )  # fmt: skip
    return parts


def _against_kicks(splits: Sequence[Splits], kind: str) -> list[float]:
    """How many decades lower the ways out end than random kicks of the same length, of every bad minimum; NaN without
    both. A descent that diverged has not left the minimum's loss.
    """
    gains = []
    for s in splits:
        there = ~np.isnan(s.reached)
        other = np.asarray(getattr(s, kind))
        other = other[there] if kind == "wide" and other.ndim == 2 else other
        other = other[~np.isnan(other)]
        gain = math.nan
        if there.any() and len(other):
            ways, kicks = (np.where(np.isfinite(x), x, s.loss) for x in (s.reached[there], other))
            gain = float(np.median(_decades(kicks)) - np.median(_decades(ways)))
        gains.append(gain)
    return gains


def mean_share(shares: np.ndarray) -> Estimate:
    """Mean of shares [n] of as many independent units, with the wider of the bootstrap's and Wilson's 95 % interval:
    resampling units that all did the same sees no spread."""
    n = len(shares)
    resampled = paired_bootstrap(np.zeros(n), shares, np.random.default_rng(0))
    low, high = (wilson(k, n) for k in (math.floor(shares.sum()), math.ceil(shares.sum())))
    return Estimate(resampled.value, min(resampled.low, low.low), max(resampled.high, high.high), n)


def mean_over_minima(values: np.ndarray) -> Estimate:
    """Mean of values [n >= 2] of minima or teachers with the wider of the bootstrap's and Student's 95 % interval: few
    have too little spread for the one, skewed ones too much for the other. NaN for the ends where all are equal."""
    if np.ptp(values) == 0:
        return Estimate(float(values[0]), math.nan, math.nan, len(values))
    e = paired_bootstrap(np.zeros(len(values)), values, np.random.default_rng(0))
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(e.value, min(e.low, e.value - half), max(e.high, e.value + half), len(values))


def sign_flips(values: np.ndarray) -> float:
    """Two-sided p of the mean of values [n] if every sign were a coin's: of all 2^n signs where these are not more than
    `FLIPS`, else of as many draws with the values themselves among them, which keeps the level (Phipson & Smyth 2010).
    """
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=FLIPS, rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def _decades(loss: np.ndarray) -> np.ndarray:
    """log10, with everything that counts as zero at `SUCCESS`."""
    decades: np.ndarray = np.log10(np.maximum(loss, SUCCESS))
    return decades


def _equal(equal: int, total: int) -> str:
    return "supported" if equal == total else "contradicted"


def _decided(value: float, p_value: float, n: int) -> str:
    """Which way a difference from 0 goes, if its test says that there is one."""
    if n < LEAST_MINIMA or p_value >= LEVEL:
        return "undetermined"
    return "supported" if value > 0 else "contradicted"


def _about(values: np.ndarray) -> str:
    """What a reader must know of a test of values [n]."""
    drawn = f" in {FLIPS:,} draws" if 2 ** len(values) > FLIPS else ""
    alike = "; all minima agree: nothing to estimate an interval from" if np.ptp(values) == 0 else ""
    return drawn + few(len(values), LEAST_MINIMA, "; ") + alike


def few(n: int, least: int, joint: str = "") -> str:
    return f"{joint}only {n} of the {least} that are needed" if n < least else ""
