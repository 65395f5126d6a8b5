"""Protocol A of the claim on escape dimensions: does splitting the neurons of bad minima open ways out, and do these
lead lower than random kicks of the same length?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from landscape.claims.claim import Part
from landscape.claims.statistics import wilson
from landscape.claims.units import LEAST_UNITS, about, by_teacher, decided, few, mean_of, mean_share, sign_flips

# Fixed before any data. A squared error below this is zero loss (claims §1, Protocol B).
SUCCESS = 1e-10
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


def split_parts(name: str, splits: Sequence[Splits], zero_loss: bool, several: bool = False) -> list[Part]:
    """Protocol A on the minima of one problem. The unit is the bad minimum, not the split; where there are several
    teachers, the teacher, with the mean of its minima.

    Args:
        zero_loss: whether zero loss can be reached at all. several: whether several teachers made the data.
    """
    if not splits:
        return []
    teachers = [s.teacher for s in splits] if several else []
    over = "minima and teachers" if several else "minima"
    lower = "teachers where it does so from most bad minima" if several else "bad minima where a split leads lower"
    equal = sum(int((s.foretold == s.found).sum()) for s in splits)
    total = sum(len(s.found) for s in splits)
    index = wilson(equal, total)
    lowered = by_teacher([float((s.reached < (1 - DROP) * s.loss).any()) for s in splits], teachers)
    n, won = len(lowered), int((lowered > 0.5).sum())
    down, p_down = wilson(won, n), float(stats.binomtest(won, n).pvalue)
    zero = mean_share(by_teacher([float((s.reached < SUCCESS).any()) for s in splits], teachers))
    parts = [
        Part(
            f"{name}: index as foretold", _equal(equal, total), "share of splits", index.value, index.low, index.high,
            total, "a theorem: a check of this program, no evidence", evidence=False,
        ),
        Part(
            f"{name}: splitting opens a way down", decided(down.value - 0.5, p_down, n),
            f"share of {lower}", down.value, down.low, down.high, n,
            f"against a half: p = {p_down:.1e}{few(n, LEAST_UNITS, '; ')}",
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
    parts += _ways(name, splits, teachers, over)
    for kind in ("wide", "narrow"):
        gains = by_teacher(_against_kicks(splits, kind), teachers)
        if len(gains) > 1:
            gain, p_value = mean_of(gains), sign_flips(gains)
            parts.append(
                Part(
                    f"{name}: ways out against kicks, {kind}", decided(gain.value, p_value, len(gains)),
                    f"log10 loss of kicks less that of ways out, median, mean over {over}", gain.value, gain.low,
                    gain.high, len(gains), about(gains, p_value),
                )
            )  # fmt: skip
    return parts


def _ways(name: str, splits: Sequence[Splits], teachers: Sequence[int], over: str) -> list[Part]:
    """How far the ways out lead down, and how many run to infinity: means over units, reported."""
    opened = [np.isfinite(s.reached) for s in splits]
    both = list(zip(splits, opened, strict=True))
    drops = [float(np.median(1 - s.reached[o] / s.loss)) if o.any() else math.nan for s, o in both]
    channels = [float(s.channel[o].mean()) if o.any() else math.nan for s, o in both]
    rows = (("drop of the loss along ways out", f"share of the loss, median, mean over {over}", drops),
            ("ways out that run to infinity", f"share of ways out, mean over {over}", channels))  # fmt: skip
    parts = []
    for words, statistic, values in rows:
        units = by_teacher(values, teachers)
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


def _decades(loss: np.ndarray) -> np.ndarray:
    """log10, with everything that counts as zero at `SUCCESS`."""
    decades: np.ndarray = np.log10(np.maximum(loss, SUCCESS))
    return decades


def _equal(equal: int, total: int) -> str:
    return "supported" if equal == total else "contradicted"
