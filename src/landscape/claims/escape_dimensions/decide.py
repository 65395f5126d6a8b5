"""Escape dimensions, not lottery tickets: widening opens ways out of bad minima (Martinelli, Brea et al. 2026).

Protocol A splits neurons of certified bad minima and follows what opens, against random kicks of the same length.
Protocol B compares success against width with two lottery nulls, and each wide start with its own tickets alone.
Protocol C keeps a winning ticket and draws the rest anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from landscape.claims.claim import Claim, Curve, Decision, Excluded, Need, Part, combined, settling
from landscape.claims.escape_dimensions.decide_splits import DROP, SUCCESS, Splits, split_parts
from landscape.claims.statistics import Null, counting_ratio, mcnemar_pairs, null_interval, null_p_value, trend, wilson
from landscape.claims.units import LEAST_UNITS, LEVEL, about, by_teacher, decided, few, mean_of, mean_share, sign_flips

NAME = "escape-dimensions"
# Fixed before any data, as those of `escape_splits` and `units`. Fewer independent units than this decide nothing.
LEAST_SEEDS, LEAST_TICKETS = 20, 8
# With a larger share of a width's runs left out, success against width and against tickets decides nothing.
UNFINISHED = 0.1
NO_MINIMA = "no narrow network ends at a certified minimum of positive loss"
# The lottery reading predicts that a kept winning ticket wins always; less than this share is not always.
ALWAYS = 0.95
# So many tickets that always win would show that they do; fewer can only show that they do not.
SHOWING = next(n for n in itertools.count(1) if wilson(n, n).low > ALWAYS)


@dataclass(frozen=True)
class Pairs:
    """One width of the paired test of Protocol B: of every start, whether the wide network won, and how many of the
    tickets that were tried won alone [S]; teachers: which of several made its data [S]. unknown: starts that are not
    here, since none of their tickets won and some stopped at the limit of iterations."""

    width: int
    wide: np.ndarray
    winners: np.ndarray
    tried: int
    total: int
    teachers: Sequence[int] | np.ndarray = ()
    unknown: int = 0


@dataclass(frozen=True)
class Kept:
    """Protocol C: of every kept winning ticket, the share of redraws that succeeded, and the share in which all its
    neurons ended at the teacher's (NaN without a teacher) [T]; redraws of each. teachers: as in `Pairs`. unknown: share
    of redraws that stopped at the limit of iterations, which are not counted."""

    width: int
    success: np.ndarray
    matched: np.ndarray
    redraws: int
    teachers: Sequence[int] | np.ndarray = ()
    unknown: float = 0.0


# Width -> successes, and seeds.
Won = Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Population:
    """One problem: a teacher or data set, or several random teachers of one kind, with one optimiser.

    Attributes:
        name: in words. r: width of the tickets, the smallest one. losses: width -> loss of every seed.
        splits, pairs, kept: what was done of the protocols.
        zero: whether zero loss can be reached at all, so that success means something.
        ends: of the narrowest networks, how many ended at certified minima of positive loss, how many there are, and
            how many different minima that is, of how many teachers.
        unsplit, untried: why no minima were split, and no tickets trained. unfinished: largest share over widths of
            runs that are left out.
        teachers: width -> which teacher made the data of each of its seeds; none: one made them all.
    """

    name: str
    r: int
    losses: Mapping[int, np.ndarray]
    splits: Sequence[Splits] = ()
    pairs: Sequence[Pairs] = ()
    kept: Sequence[Kept] = ()
    zero: bool = True
    ends: tuple[int, int, int, int] | None = None
    unsplit: str = NO_MINIMA
    untried: str = ""
    unfinished: float = 0.0
    teachers: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def by_teacher(self) -> list[Won]:
        """Successes and seeds at every width, of each teacher that has both the smallest width and a wider one."""
        every = {w: self.teachers.get(w, np.zeros(len(x), dtype=int)) for w, x in self.losses.items()}
        found = list[Won]()
        for teacher in np.unique(every[self.r]):
            mine = {w: self.losses[w][every[w] == teacher] for w in sorted(self.losses)}
            won = {w: (int((x < SUCCESS).sum()), len(x)) for w, x in mine.items() if len(x)}
            if len(won) > 1:
                found.append(won)
        return found


@dataclass(frozen=True)
class Evidence:
    """All problems of a check, and the runs that were left out."""

    populations: Sequence[Population]
    excluded: Sequence[Excluded] = field(default_factory=tuple)


def decide(evidence: Evidence) -> Decision:
    """All parts, and the verdict of the evidence among them.

    "Supported" or "contradicted" takes decided parts of Protocol A and of the tickets (B paired, or C): neither does
    splitting say anything about tickets, nor does success against width decide alone.
    """
    parts, splits, tickets = list[Part](), list[Part](), list[Part]()
    for p in evidence.populations:
        split = split_parts(p.name, p.splits, p.zero, bool(p.teachers))
        split = split or _missing(p, "splitting opens a way down", p.unsplit)
        ticket = _pairs(p) + _kept(p)
        parts += [*_ends(p), *split, *_width(p), *ticket]
        splits += split
        tickets += ticket
    verdict, condition = combined(parts)
    if not all(any(x.evidence and x.verdict != "undetermined" for x in kind) for kind in (splits, tickets)):
        verdict, condition = "undetermined", ""
    seeds = sum(max((len(v) for v in p.losses.values()), default=0) for p in evidence.populations)
    undecided = not parts or any(p.evidence and p.verdict == "undetermined" for p in parts)
    settle = settling(NAME, undecided, evidence.excluded)
    return Decision(NAME, verdict, condition, tuple(parts), seeds, tuple(evidence.excluded), settle)


def _missing(p: Population, words: str, why: str) -> list[Part]:
    """What could not be tested, and why."""
    return [Part(f"{p.name}: {words}", "undetermined", "-", math.nan, math.nan, math.nan, 0, why)]


def _ends(p: Population) -> list[Part]:
    """Without minima there is nothing to split: narrow networks may as well run to infinity."""
    if p.ends is None:
        return []
    share = wilson(p.ends[0], p.ends[1])
    of = f" of {p.ends[3]} teachers" if p.teachers else ""
    note = f"{p.ends[2]} different ones{of}, of which {len(p.splits)} are split"
    return [
        Part(
            f"{p.name}: bad minima, width {p.r}", "undetermined", "share of runs that end at one, certified",
            share.value, share.low, share.high, p.ends[1], note, evidence=False,
        )
    ]  # fmt: skip


def _width(p: Population) -> list[Part]:
    """Protocol B without pairs: success against width, and both lottery nulls."""
    if not p.zero or len(p.losses) < 2:
        return []
    widths = sorted(p.losses)
    won = {w: int((p.losses[w] < SUCCESS).sum()) for w in widths}
    seeds = {w: len(p.losses[w]) for w in widths}
    parts = [_gain(p, widths, won, seeds)]
    nulls: tuple[tuple[Null, str], ...] = (("disjoint", "disjoint tickets"), ("all", "independent sub-tickets"))
    over = "widths and teachers" if p.teachers else "widths"
    for kind, words in nulls:
        found = [null_p_value(*t[w], *t[p.r], w, p.r, kind) for t in p.by_teacher for w in t if w > p.r]
        if not found:
            continue
        low, value = (min(1.0, len(found) * min(ends)) for ends in ([e.low for e in found], [e.high for e in found]))
        word = "rejected" if value < LEVEL else "not rejected"
        parts.append(
            Part(
                f"{p.name}: null of {words}", "undetermined", f"p, Bonferroni over {over}; its enclosure", value, low,
                value, sum(seeds.values()), f"{word}: necessary for the claim, never sufficient", evidence=False,
            )
        )  # fmt: skip
    return parts


def _gain(p: Population, widths: Sequence[int], won: Mapping[int, int], seeds: Mapping[int, int]) -> Part:
    """Does success grow with width? Of several teachers each is a unit: not all may have the same widths."""
    fewest = min(seeds.values())
    what = f"share won at {widths[-1]} less at {widths[0]}"
    if p.teachers:
        ends = [(t[widths[0]], t[widths[-1]]) for t in p.by_teacher if widths[-1] in t]
        gains = np.array([wide[0] / wide[1] - narrow[0] / narrow[1] for narrow, wide in ends])
        if len(gains) < 2:
            return _missing(p, "success grows with width", "fewer than two teachers have both widths")[0]
        gain, p_value, n = mean_of(gains), sign_flips(gains), len(gains)
        what, note = f"{what}, mean over teachers", about(gains, p_value)
        verdict = decided(gain.value, p_value, n)
    else:
        p_value, gain = trend([won[w] for w in widths], [seeds[w] for w in widths], widths)
        p_down, _ = trend([seeds[w] - won[w] for w in widths], [seeds[w] for w in widths], widths)
        verdict = "supported" if p_value < LEVEL else "contradicted" if p_down < LEVEL else "undetermined"
        n, note = sum(seeds.values()), f"p = {p_value:.1e}"
    if fewest < LEAST_SEEDS or p.unfinished > UNFINISHED:
        verdict = "undetermined"
    note += few(fewest, LEAST_SEEDS, "; seeds of a width: ") + _unfinished(p)
    return Part(f"{p.name}: success grows with width", verdict, what, gain.value, gain.low, gain.high, n, note)


def _unfinished(p: Population) -> str:
    return f"; {p.unfinished:.0%} of a width's runs left out" if p.unfinished > UNFINISHED else ""


def _pairs(p: Population) -> list[Part]:
    """Protocol B, paired: does the wide network win where none of its tickets does, or the other way round?

    A ticket that was not tried may have won: only with all of them tried can the claim be supported.
    """
    if p.zero and not p.pairs:
        return _missing(p, "the wide network against its own tickets", p.untried)
    return [_pair(p, pair) for pair in p.pairs]


def _pair(p: Population, pair: Pairs) -> Part:
    ticket, n = pair.winners > 0, len(pair.winners)
    only_wide, only_ticket = int((pair.wide & ~ticket).sum()), int((ticket & ~pair.wide).sum())
    note = f"{only_wide} only the wide network, {only_ticket} only a ticket"
    if p.teachers:
        gains = by_teacher(pair.wide.astype(float) - ticket, pair.teachers)
        if len(gains) < 2:
            return _missing(p, f"width {pair.width} against its own tickets", "fewer than two teachers")[0]
        share, p_value = mean_of(gains), sign_flips(gains)
        what = "share of starts won by the wide network less that won by a ticket, mean over teachers"
        verdict, note = decided(share.value, p_value, len(gains)), f"{note} of {n} starts; {about(gains, p_value)}"
    else:
        p_value, share = mcnemar_pairs(ticket, pair.wide)
        what = "share of the wide network among starts where one alone wins"
        verdict = "undetermined" if p_value >= LEVEL else "supported" if share.value > 0.5 else "contradicted"
        note += f", p = {p_value:.1e}"
    all_tried, open_ = pair.tried >= pair.total, pair.unknown > UNFINISHED * (n + pair.unknown)
    if n < LEAST_SEEDS or p.unfinished > UNFINISHED or open_ or (verdict == "supported" and not all_tried):
        verdict = "undetermined"
    note += "" if all_tried else f"; {pair.tried} of {pair.total} tickets tried: the others may have won"
    note += f"; {pair.unknown} starts left out, whose tickets did not finish" if pair.unknown else ""
    note += few(n, LEAST_SEEDS, "; starts: ") + _unfinished(p)
    units = len(np.unique(pair.teachers)) if p.teachers else n
    name = f"{p.name}: width {pair.width} against its own tickets"
    return Part(name, verdict, what, share.value, share.low, share.high, units, note)


def _kept(p: Population) -> list[Part]:
    """Protocol C: the lottery reading predicts that a kept winning ticket wins whatever the rest is."""
    parts = []
    for kept in p.kept:
        rows = (("wins", "redraws of the rest", kept.success), ("is the solution", "redraws that win", kept.matched))
        for words, of, shares in rows:
            there = np.isfinite(shares)
            n = int(there.sum())
            if n < 2:
                continue
            mean = mean_share(shares[there], np.asarray(kept.teachers)[there] if p.teachers else ())
            verdict, note = "undetermined", f"the lottery reading predicts 1{few(n, LEAST_TICKETS, '; ')}"
            if n >= LEAST_TICKETS and kept.unknown <= UNFINISHED:
                verdict = "supported" if mean.high < ALWAYS else "contradicted" if mean.low > ALWAYS else "undetermined"
            if verdict == "undetermined" and LEAST_TICKETS <= n < SHOWING:
                note += f"; {n} tickets can show that they do not always, {SHOWING} that they do"
            note += f"; {kept.unknown:.0%} of the redraws did not finish" if kept.unknown > UNFINISHED else ""
            parts.append(
                Part(
                    f"{p.name}: kept ticket {words}, width {kept.width}", verdict,
                    f"share of {kept.redraws} {of}, mean over tickets", mean.value, mean.low, mean.high, n, note,
                )
            )  # fmt: skip
    return parts


def draw(evidence: Evidence) -> list[Curve]:
    """Success against width beside both nulls; wide network against tickets; losses that ways out and kicks reach."""
    curves: list[Curve] = []
    for p in evidence.populations:
        if p.zero and len(p.losses) > 1:
            curves += _success_curves(p)
        if p.splits:
            runs = sorted(p.splits, key=lambda s: s.loss)
            rows = (
                ("the minimum", [np.array([s.loss]) for s in runs]),
                ("ways out", [s.reached for s in runs]),
                ("kicks, wide", [np.ravel(s.wide) for s in runs]),
                ("kicks, narrow", [np.ravel(s.narrow) for s in runs]),
            )
            for words, losses in rows:
                middle, low, high = zip(*[_spread(x) for x in losses], strict=True)
                x = list(range(1, len(runs) + 1))
                axes = ("bad minimum, by its loss", "loss reached: median and range")
                curves.append(Curve(f"splits, {p.name}", words, *axes, x, middle, low, high, joined=False))
    for kind, words in (("G(r-1, m) / T(r, m)", "bad over good subspaces"),):
        m = list(range(4, 13))
        none = [math.nan] * len(m)
        ratios = [counting_ratio(4, k) for k in m]
        curves.append(Curve("counting, no training", words, "width m", kind, m, ratios, none, none))
    return curves


def _success_curves(p: Population) -> list[Curve]:
    widths = sorted(p.losses)
    won = {w: int((p.losses[w] < SUCCESS).sum()) for w in widths}
    seeds = {w: len(p.losses[w]) for w in widths}
    found = [wilson(won[w], seeds[w]) for w in widths]
    panel, axes = f"success, {p.name}", ("width", "share of seeds at zero loss")
    value, low, high = ([getattr(e, k) for e in found] for k in ("value", "low", "high"))
    curves = [Curve(panel, "trained", *axes, widths, value, low, high)]
    nulls: tuple[tuple[Null, str], ...] = (("disjoint", "null: disjoint tickets"), ("all", "null: all sub-tickets"))
    for kind, words in nulls:
        foretold = [_foretold(p, w, kind) for w in widths]
        value, low, high = (list(ends) for ends in zip(*foretold, strict=True))
        curves.append(Curve(panel, words, *axes, widths, value, low, high))
    for pair in p.pairs:
        ticket = wilson(int((pair.winners > 0).sum()), len(pair.winners))
        row = ([pair.width], [ticket.value], [ticket.low], [ticket.high])
        curves.append(Curve(panel, "some ticket wins alone", *axes, *row, joined=False))
    return curves


def _foretold(p: Population, width: int, kind: Null) -> tuple[float, float, float]:
    """What a null predicts at a width, with its band: means over teachers, which makes the band wider than need be."""
    found = [null_interval(*t[p.r], t[width][1], width, p.r, kind) for t in p.by_teacher if width in t]
    if not found:
        return math.nan, math.nan, math.nan
    value, low, high = (float(np.mean([getattr(e, k) for e in found])) for k in ("value", "low", "high"))
    return value, low, high


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Median and range of what is finite; NaN where nothing is."""
    finite = np.maximum(values[np.isfinite(values)], SUCCESS / 10)  # below, it is zero
    if not len(finite):
        return math.nan, math.nan, math.nan
    return float(np.median(finite)), float(finite.min()), float(finite.max())


CLAIM = Claim(
    NAME,
    "Increasing width expands the set of dimensions available for optimisation and so makes it easier to escape bad "
    "local minima; it does not merely raise the odds that some sub-network starts as a winning ticket.",
    "Martinelli, Brea, Gerstner et al. 2026; Simsek et al. 2021 (arXiv 2105.12221); Fukumizu & Amari 2000",
    "Escaping is not reaching a global minimum, and a strict saddle is not a fast escape: the time goes like the "
    "logarithm of the distance over |λ_min|. Wide networks can have bad minima of their own. Cross-entropy on "
    "separable data has no finite minimiser. Levenberg–Marquardt is not gradient flow. The lottery nulls count "
    "subsets of neurons, not volumes.",
    (
        Need(
            "train",
            'initial weights (save = [0]) and certified ends (a second-order optimiser, or finish = "minimum")',
            ("width", "seed"),
            f"{LEAST_SEEDS} seeds of each of two widths",
        ),
        Need(
            "widen",
            "every neuron, four 2-way splits and one 3-way split, ways out followed, random kicks beside them",
            ("seed",),
            f"certified minima of positive loss at the smallest width: {LEAST_UNITS} different ones of one data set, "
            f"or some of each of {LEAST_UNITS} teachers",
        ),
        Need(
            "descend",
            "tickets alone, and kept while the rest is drawn anew",
            ("width", "seed"),
            f"{LEAST_SEEDS} starts a width; {LEAST_TICKETS} winning tickets",
        ),
    ),
    "A: every neuron of certified minima of positive loss is split at the smallest width (shares mu and 1 - mu with mu "
    "inside and outside [0, 1], and three ways); the direction of negative curvature that opens is followed, and the "
    "loss it leads to compared with those after random kicks of the same length, in the wide network (orthogonal to "
    "the way out) and in the narrow one, of both sides of a way out or a kick the lower: medians per minimum; "
    "different minima, told apart by their losses, are the units, or teachers with the means of theirs. B: the share "
    "of seeds at zero loss against width (one-sided Cochran-Armitage test), two lottery nulls, and each wide start "
    "against its own tickets trained alone (McNemar's test). C: a winning ticket is kept, the other neurons are drawn "
    "anew and all are trained together; tickets are the units. Where there are several teachers, tests of A and B are "
    "of their means, with signs flipped. Starts whose tickets stop at the limit of iterations are left out. "
    f"Fixed before the data: a loss below {SUCCESS:.0e} is zero; tests at {LEVEL:g} (of A: binomial, and signs of the "
    f"minima's differences flipped), intervals 95 %; a drop of the loss by less than {DROP:.0e} of it is none; a kept "
    f"ticket whose interval lies below {ALWAYS:.0%} of the redraws does not always win; with more than "
    f"{UNFINISHED:.0%} of a width's runs left out B decides nothing, and with tickets untried it cannot support the "
    "claim. The claim is supported or contradicted if all decided parts say so and parts of A and of the tickets are "
    "among them, conditional if they differ, and undetermined if more than half of them are.",
    decide,
    draw,
)
