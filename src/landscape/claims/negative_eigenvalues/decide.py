"""Negative eigenvalues and the coin-flip argument: does width help because each direction may slope downward?

2a: at critical points the index grows with the loss (Dauphin et al. 2014). 2b: signs of eigenvalues are independent
coins, so that a point without a negative one is exponentially rare in P. 2c: at interpolation width adds flat
directions, not negative ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.claims.claim import Claim, Curve, Decision, Excluded, Need, Part, combined, settling
from landscape.claims.negative_eigenvalues.decide_signs import (
    LEAST_NONE,
    LEAST_SEEDS,
    POISSON,
    Signs,
    few,
    part,
    sign_parts,
    sign_tests,
)
from landscape.claims.statistics import Estimate, holm, permutation_correlation, wilson

NAME = "negative-eigenvalues"
# Fixed before any data. Level of all tests, after Holm's correction over the tests of one kind; intervals are 95 %.
LEVEL = 0.01
# 2a: with 30 points a rank correlation of .5 is found at this level half of the time; fewer decide nothing.
LEAST_POINTS = 30
# 2a: Dauphin et al. show a strong relation; an interval below this excludes one worth the name.
WEAK = 0.3
# 2a: if this share of the searches was not finished, the points that were are a selection.
UNFINISHED = 0.5
# 2c: networks a width, and widths, that a trend needs.
LEAST_NETWORKS, LEAST_WIDTHS = 5, 3
REPORTED = "reported, not tested"


@dataclass(frozen=True, eq=False)
class Heights:
    """2a: what K searches for critical points of one architecture and data set reached.

    Attributes:
        name: in words. loss, index: L and the share of eigenvalues below −τ max |λ| [K].
        true: whether the search reached a critical point [K]. distinct: the first of those with its loss and index [K].
        verdict: of the certificate, "" where there is none; reason: why it is no critical point, "" if it is; K each.
    """

    name: str
    loss: np.ndarray
    index: np.ndarray
    true: np.ndarray
    distinct: np.ndarray
    verdict: Sequence[str]
    reason: Sequence[str]


@dataclass(frozen=True, eq=False)
class AtWidth:
    """2c: S networks of one width with squared error, as `interpolation_bounds` measures them.

    Attributes:
        width, parameters, residuals: of the hidden layers, P, and n·C.
        loss, lambda_min, bound, rounding: L, λ_min, its lower bound, and the error of both [S].
        flat, zeros: eigenvalues within the bound of zero, and within τ max |λ| [S]. negative_mass: of Σ |λ| [S].
        interpolates: whether L is so small that the bound is within τ max |λ| [S].
    """

    width: int
    parameters: int
    residuals: int
    loss: np.ndarray
    lambda_min: np.ndarray
    bound: np.ndarray
    rounding: np.ndarray
    flat: np.ndarray
    zeros: np.ndarray
    negative_mass: np.ndarray
    interpolates: np.ndarray


@dataclass(frozen=True, eq=False)
class Sweep:
    """2c: one problem at several widths."""

    name: str
    widths: Sequence[AtWidth]


@dataclass(frozen=True, eq=False)
class Stage:
    """2c, any loss: S networks of one width at one stage of training ("start", "step 100", "end"): L, share of zero
    eigenvalues, negative mass [S each]."""

    width: int
    stage: str
    loss: np.ndarray
    zeros: np.ndarray
    negative_mass: np.ndarray


@dataclass(frozen=True, eq=False)
class Course:
    """2c: one problem over training. bounded: whether a `Sweep` tests its trends at the end."""

    name: str
    stages: Sequence[Stage]
    bounded: bool


@dataclass(frozen=True, eq=False)
class Evidence:
    """What there is of each part, and the runs that were left out."""

    heights: Sequence[Heights] = ()
    signs: Sequence[Signs] = ()
    sweeps: Sequence[Sweep] = ()
    courses: Sequence[Course] = ()
    excluded: Sequence[Excluded] = field(default_factory=tuple)


def decide(evidence: Evidence) -> Decision:
    """All parts, and the verdict of the evidence among them."""
    parts = [*_heights(evidence.heights), *sign_parts(evidence.signs)]
    for sweep in evidence.sweeps:
        parts += [*_theorems(sweep), *_trends(sweep)]
    for course in evidence.courses:
        parts += _ends(course)
    verdict, condition = combined(parts)
    seeds = sum(int(h.distinct.sum()) for h in evidence.heights)
    seeds += sum({(s.family, s.parameters): len(s.eigenvalues) for s in evidence.signs}.values())
    seeds += sum(len(w.loss) for sweep in evidence.sweeps for w in sweep.widths)
    seeds += sum(len(s.loss) for c in evidence.courses if not c.bounded for s in c.stages if s.stage == "end")
    open_ = not parts or any(p.evidence and p.verdict == "undetermined" for p in parts)
    return Decision(
        NAME,
        verdict,
        condition,
        tuple(parts),
        seeds,
        tuple(evidence.excluded),
        settling(NAME, open_, evidence.excluded),
    )


# ---- 2a --------------------------------------------------------------------------------------------------------------


def _heights(samples: Sequence[Heights]) -> list[Part]:
    """Spearman's correlation of index and loss over distinct points, and the shares of what is no critical point.

    Distinct, since a hundred searches that end in one saddle are one point. Supported: positive and significant;
    contradicted: an interval below `WEAK` without significance; both, "conditional": there is a weak relation.
    """
    found = [
        permutation_correlation(h.loss[h.distinct], h.index[h.distinct], np.random.default_rng(0), 5000, ranks=True)
        for h in samples
    ]
    adjusted = holm([p for _, p in found])
    parts = []
    for h, (r, _), p in zip(samples, found, adjusted, strict=True):
        obstacle = _obstacle(h)
        verdict, note = _grows(r, p), f"p = {p:.1e} (Holm); critical points of one data set are not independent draws"
        if verdict == "conditional":
            note = f"index and loss rise together, but the correlation is below {WEAK:g}: {note}"
        parts.append(
            part(
                f"2a index grows with loss, {h.name}", "undetermined" if obstacle else verdict,
                "Spearman correlation over distinct critical points", r, obstacle or note,
            )
        )  # fmt: skip
        n, verdicts = len(h.true), np.array(h.verdict, dtype=object)
        shares = {"true critical points": h.true, "gradient-flat": verdicts == "gradient-flat"}
        shares |= {"channels": verdicts == "channel", "unfinished": _unfinished(h)}
        shares["degenerate critical points"] = (verdicts == "degenerate") & h.true
        shares["critical points short of a certificate"] = (verdicts == "not stationary") & h.true
        for words, which in shares.items():
            share = wilson(int(which.sum()), n)
            parts.append(
                part(f"2a {words}, {h.name}", "undetermined", "share of searches", share, REPORTED, evidence=False)
            )
    return parts


def _grows(r: Estimate, p: float) -> str:
    significant, weak = r.value > 0 and p < LEVEL, r.high < WEAK
    if significant:
        return "conditional" if weak else "supported"
    return "contradicted" if weak else "undetermined"


def _unfinished(h: Heights) -> np.ndarray:
    return np.array([r.startswith(("not stationary", "failed")) for r in h.reason], dtype=bool)


def _obstacle(h: Heights) -> str:
    """Why nothing can be decided; "" if something can."""
    points, missing = int(h.distinct.sum()), sum(v == "" for v in h.verdict)
    if missing:
        return f"{missing} of {len(h.verdict)} points have no certificate"
    if len(h.true) and _unfinished(h).mean() > UNFINISHED:
        return f"{int(_unfinished(h).sum())} of {len(h.true)} searches did not converge"
    return few(points, LEAST_POINTS, "distinct critical points")


# ---- 2c --------------------------------------------------------------------------------------------------------------


def _theorems(sweep: Sweep) -> list[Part]:
    """Both bounds at every network: what fails is this program, not the theorem."""
    low = np.concatenate([w.lambda_min >= w.bound - w.rounding for w in sweep.widths])
    flat = np.concatenate([w.flat >= w.parameters - w.residuals for w in sweep.widths])
    rows = (("lowest eigenvalue above -2 sqrt(L) rms", low), ("at least P - nC flat eigenvalues", flat))
    return [
        part(
            f"2c {words}, {sweep.name}", "supported" if held.all() else "contradicted", "share of networks",
            wilson(int(held.sum()), len(held)), "a theorem: a check of this program, no evidence", evidence=False,
        )
        for words, held in rows
    ]  # fmt: skip


def _trends(sweep: Sweep) -> list[Part]:
    """Does the share of zero eigenvalues at interpolation grow with width, and negative mass everywhere fall?"""
    everywhere = [(w.width, m) for w in sweep.widths for m in w.negative_mass]
    ready = [w for w in sweep.widths if w.interpolates.sum() >= LEAST_NETWORKS]
    zeros = [(w.width, z / w.parameters) for w in ready for z in w.zeros[w.interpolates]]
    full = [w for w in sweep.widths if len(w.loss) >= LEAST_NETWORKS]
    forced = max((1 - w.residuals / w.parameters for w in ready), default=0.0)
    rows = (
        ("flat directions at interpolation grow with width", zeros, ready, 1,
         f"at most {max(0.0, forced):.2f} is forced by P > nC" if ready else ""),
        ("negative mass falls with width", everywhere, full, -1, "all networks, interpolating or not"),
    )  # fmt: skip
    return _correlated(rows, sweep.name)


def _ends(course: Course) -> list[Part]:
    """Where there is no bound (other losses, or too many outputs): the same trends at the end of training."""
    if course.bounded:
        return []
    end = [s for s in course.stages if s.stage == "end"]
    full = [s for s in end if len(s.loss) >= LEAST_NETWORKS]
    zeros = [(s.width, z) for s in end for z in s.zeros]
    mass = [(s.width, m) for s in end for m in s.negative_mass]
    rows = (
        ("share of flat directions grows with width", zeros, full, 1, "at the end of training"),
        ("negative mass falls with width", mass, full, -1, "at the end of training"),
    )
    return _correlated(rows, course.name)


def _correlated(rows: Sequence[tuple[str, list[tuple[int, float]], Sequence[Any], int, str]], name: str) -> list[Part]:
    """Trends with width: (words, pairs of width and value, widths with enough networks, sign foretold, note)."""
    found = []
    for _, pairs, _, _, _ in rows:
        x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
        found.append(permutation_correlation(x, y, np.random.default_rng(0), 5000, ranks=True))
    parts = []
    for (words, _, widths, sign, note), (r, _), p in zip(rows, found, holm([p for _, p in found]), strict=True):
        verdict = "undetermined"
        if p < LEVEL:
            verdict = "supported" if sign * r.value > 0 else "contradicted"
        short = few(len(widths), LEAST_WIDTHS, f"widths with {LEAST_NETWORKS} networks")
        if not short and math.isnan(r.value):
            short = "the same in all networks: nothing to compare"
        parts.append(
            part(
                f"2c {words}, {name}", "undetermined" if short else verdict, "Spearman correlation with width", r,
                short or f"p = {p:.1e}; {note}",
            )
        )  # fmt: skip
    return parts


def draw(evidence: Evidence) -> list[Curve]:
    """Index against height; dispersion and spacing ratio beside both nulls; flat and negative directions, by width."""
    curves = []
    for h in evidence.heights:
        order = np.flatnonzero(h.distinct)[np.argsort(h.loss[h.distinct], kind="stable")]
        y, none = h.index[order].tolist(), [math.nan] * len(order)
        axes = ("loss", "share of negative eigenvalues")
        curves.append(Curve("critical points", h.name, *axes, h.loss[order].tolist(), y, none, none, joined=False))
    for family, stage in dict.fromkeys((s.family, s.stage) for s in evidence.signs):
        group = sorted(
            (s for s in evidence.signs if (s.family, s.stage) == (family, stage)), key=lambda s: s.parameters
        )
        tests, P = [sign_tests(s) for s in group], [s.parameters for s in group]
        none = [math.nan] * len(group)
        for panel, label, found, coins, goe in (
            ("dispersion", "Var n_neg / (P a (1 - a))", [t.F for t in tests], 1.0, [t.F_goe for t in tests]),
            ("spacings", "mean ratio of neighbouring gaps", [t.r for t in tests], POISSON, [t.r_goe for t in tests]),
        ):
            at = (f"{panel}, {family}, {stage}", "parameters P", label)
            value, low, high = zip(*[(e.value, e.low, e.high) for e in found], strict=True)
            curves.append(Curve(at[0], "networks", *at[1:], P, value, low, high))
            curves.append(Curve(at[0], "coins", *at[1:], P, [coins] * len(P), none, none))
            curves.append(Curve(at[0], "GOE", *at[1:], P, goe, none, none))
    for course in evidence.courses:
        curves += _course_curves(course)
    return curves


def _course_curves(course: Course) -> list[Curve]:
    """Loss, zeros and negative mass against width, a series a stage of training: median and 95 % of networks."""
    curves = []
    for label in ("loss", "share of zero eigenvalues", "negative mass"):
        field_ = {"share of zero eigenvalues": "zeros", "negative mass": "negative_mass"}.get(label, label)
        for stage in dict.fromkeys(s.stage for s in course.stages):
            points = sorted((s for s in course.stages if s.stage == stage), key=lambda s: s.width)
            spread = np.array([np.quantile(getattr(s, field_), (0.5, 0.025, 0.975)) for s in points])
            value, low, high = spread.T.tolist()
            x = [float(s.width) for s in points]
            curves.append(Curve(f"{label}, {course.name}", stage, "width", label, x, value, low, high))
    return curves


CLAIM = Claim(
    NAME,
    "A network is stranded only where its Hessian has no negative eigenvalue. If each sign is a coin flip, the "
    "chance falls exponentially with the number of parameters: the more dimensions, the likelier one slopes downward.",
    "public discussion of over-parameterised networks, citing Dauphin et al. 2014 (arXiv 1406.2572)",
    "Counts hold at their τ only: without it rounding makes negatives, the more of them the wider the network. Most "
    "critical points of small networks are copies of those of narrower ones, and searches that end as gradient-flat "
    "points (Frye et al. 2021) say nothing. GOE and coins are the two simplest models; that both fail names no third. "
    "The bounds at interpolation are theorems for squared error. An ensemble at its start says nothing about its end.",
    (
        Need(
            "descend",
            "critical points of small tanh networks, certified, from many heights (made by the check itself)",
            ("hidden neurons",),
            f"{LEAST_POINTS} distinct critical points each",
        ),
        Need(
            "spectrum",
            "whole spectra of ensembles of tanh networks at their start (made by the check itself)",
            ("hidden neurons", "seed"),
            f"{LEAST_SEEDS} seeds each",
        ),
        Need(
            "train",
            "runs of any loss, certified or not; squared error for the bounds",
            ("width", "seed"),
            f"{LEAST_NETWORKS} networks of each of {LEAST_WIDTHS} widths",
        ),
    ),
    "2a: Spearman's correlation of loss and index over distinct critical points, with a permutation p-value; searches "
    "that ended gradient-flat, degenerate or unfinished are counted beside. 2b: of the numbers of negative eigenvalues "
    "of an ensemble the dispersion (T1), neighbouring gaps (T2), how often there is none (T3, where coins would make "
    f"at least {LEAST_NONE:g} such members) and how that falls with P (T4), each against coins and against the "
    "Gaussian orthogonal ensemble. 2c: both bounds at interpolation at every network, flat directions and negative "
    "mass against width. "
    f"Fixed before the data: tests at {LEVEL:g} after Holm's correction over those of one kind, intervals 95 %; a "
    f"correlation below {WEAK:g} is weak; if more than {UNFINISHED:.0%} of the searches are unfinished, the others are "
    "a selection. The claim is supported or contradicted if all decided parts say so, conditional if they differ, and "
    "undetermined if more than half of them are.",
    decide,
    draw,
)
