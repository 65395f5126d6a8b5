"""Protocol A of the claim on escape dimensions: does splitting the neurons of bad minima open ways out, and do these
lead lower than random kicks of the same length?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.claim import Part
from landscape.statistics import Estimate, paired_bootstrap, wilson

# Fixed before any data. A squared error below this is zero loss (claims §1, Protocol B).
SUCCESS = 1e-10
# Fewer minima than this decide nothing.
LEAST_MINIMA = 8
# A drop of the loss smaller than this share is none.
DROP = 1e-3


@dataclass(frozen=True)
class Splits:
    """Protocol A at one certified bad minimum.

    Attributes:
        run: its name. loss: there. foretold, found: negative eigenvalues of every split [K]. reached: loss where the
            way out of each split ended [K], NaN where none opened. wide, narrow: losses from random kicks of the same
            length in the wide network [K, C] and in the narrow one. channel: whether that way ran to infinity [K].
    """

    run: str
    loss: float
    foretold: np.ndarray
    found: np.ndarray
    reached: np.ndarray
    wide: np.ndarray
    narrow: np.ndarray
    channel: np.ndarray


def split_parts(name: str, splits: Sequence[Splits], zero_loss: bool) -> list[Part]:
    """Protocol A on the minima of one problem. The unit is the bad minimum, not the split.

    Args:
        zero_loss: whether zero loss can be reached at all.
    """
    if not splits:
        return []
    n = len(splits)
    equal = sum(int((s.foretold == s.found).sum()) for s in splits)
    total = sum(len(s.found) for s in splits)
    index = wilson(equal, total)
    lowered = [bool((s.reached < (1 - DROP) * s.loss).any()) for s in splits]
    down = wilson(sum(lowered), n)
    zero = wilson(sum(bool((s.reached < SUCCESS).any()) for s in splits), n)
    parts = [
        Part(
            f"{name}: index as foretold", _equal(equal, total), "share of splits", index.value, index.low, index.high,
            total, "a theorem: a check of this program, no evidence", evidence=False,
        ),
        Part(
            f"{name}: splitting opens a way down", _above(down, 0.5, n >= LEAST_MINIMA),
            "share of bad minima where a split leads lower", down.value, down.low, down.high, n, few(n, LEAST_MINIMA),
        ),
    ]  # fmt: skip
    if zero_loss:
        parts.append(
            Part(
                f"{name}: splitting leads to zero loss", "undetermined", "share of bad minima", zero.value, zero.low,
                zero.high, n, "reported: escaping is not reaching a global minimum", evidence=False,
            )
        )  # fmt: skip
    parts += _ways(name, splits)
    for kind in ("wide", "narrow"):
        gain = _against_kicks(splits, kind)
        if gain is not None:
            verdict = _above(gain, 0.0, n >= LEAST_MINIMA)
            parts.append(
                Part(
                    f"{name}: ways out against kicks, {kind}", verdict,
                    "log10 loss of kicks less that of ways out, median, mean over minima", gain.value, gain.low,
                    gain.high, n, few(n, LEAST_MINIMA),
                )
            )  # fmt: skip
    return parts


def _ways(name: str, splits: Sequence[Splits]) -> list[Part]:
    """How far the ways out lead down, and how many run to infinity: means over minima, reported."""
    opened = [np.isfinite(s.reached) for s in splits]
    drops = [float(np.median(1 - s.reached[o] / s.loss)) for s, o in zip(splits, opened, strict=True) if o.any()]
    channels = [float(s.channel[o].mean()) for s, o in zip(splits, opened, strict=True) if o.any()]
    rows = (("drop of the loss along ways out", "share of the loss, median, mean over minima", drops),
            ("ways out that run to infinity", "share of ways out, mean over minima", channels))  # fmt: skip
    parts = []
    for words, statistic, values in rows:
        if len(values) > 1:
            e = paired_bootstrap(np.zeros(len(values)), np.array(values), np.random.default_rng(0))
            parts.append(
                Part(f"{name}: {words}", "undetermined", statistic, e.value, e.low, e.high, len(values),
                     "reported, not tested", evidence=False)
            )  # fmt: skip
    return parts


def _against_kicks(splits: Sequence[Splits], kind: str) -> Estimate | None:
    """How many decades lower the ways out end than random kicks of the same length, bad minimum by bad minimum."""
    ways, kicks = [], []
    for s in splits:
        there = np.isfinite(s.reached)
        other = np.asarray(getattr(s, kind))
        other = other[there] if kind == "wide" and other.ndim == 2 else other
        if there.any() and np.isfinite(other).any():
            ways.append(float(np.median(_decades(s.reached[there]))))
            kicks.append(float(np.median(_decades(other[np.isfinite(other)]))))
    if len(ways) < 2:
        return None
    return paired_bootstrap(np.array(ways), np.array(kicks), np.random.default_rng(0))


def _decades(loss: np.ndarray) -> np.ndarray:
    """log10, with everything that counts as zero at `SUCCESS`."""
    decades: np.ndarray = np.log10(np.maximum(loss, SUCCESS))
    return decades


def _equal(equal: int, total: int) -> str:
    return "supported" if equal == total else "contradicted"


def _above(estimate: Estimate, bar: float, enough: bool) -> str:
    """Whether an interval lies above or below a bar that was set before."""
    if not enough:
        return "undetermined"
    return "supported" if estimate.low > bar else "contradicted" if estimate.high < bar else "undetermined"


def few(n: int, least: int, joint: str = "") -> str:
    return f"{joint}only {n} of the {least} that are needed" if n < least else ""
