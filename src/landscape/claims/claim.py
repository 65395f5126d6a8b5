"""What a claim is, and what deciding one gives: parts with statistic, interval and sample size, and one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# How the reason begins for leaving out a run whose end is not certified.
NO_CERTIFICATE = "no certificate"
VERDICTS = ("supported", "contradicted", "conditional", "undetermined")


@dataclass(frozen=True)
class Part:
    """One test of a claim.

    Attributes:
        name: such as "success grows with width, four-neuron". verdict: one of `VERDICTS`.
        statistic: what `value` is, in words. value, low, high: with its 95 % interval; NaN where it has none.
        n: independent units that entered (seeds, usually). note: what a reader must know, or why it is undetermined.
        evidence: False for what is a theorem, hence a check of this program and no evidence for the claim.
    """

    name: str
    verdict: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    note: str = ""
    evidence: bool = True


@dataclass(frozen=True)
class Excluded:
    """A run that did not count, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """A claim decided.

    Attributes:
        claim: its name. verdict: one of `VERDICTS`. condition: on what a conditional verdict depends; "" otherwise.
        parts: all tests. seeds: independent units in all. excluded: runs left out.
        settle: commands that would settle what is undetermined.
    """

    claim: str
    verdict: str
    condition: str
    parts: tuple[Part, ...]
    seeds: int
    excluded: tuple[Excluded, ...] = ()
    settle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One series of a panel of the claim's figure: y [n] with 95 % interval (or a range) at x [n]; NaN where there is
    none. joined: whether a line through the points means something."""

    panel: str
    series: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    joined: bool = True


@dataclass(frozen=True)
class Need:
    """What a claim needs of the runs it is decided on.

    Attributes:
        analysis: the command that makes it. settings: with what. axes: coordinates of the sweep over which it is
            repeated. least: fewer of these decide nothing.
    """

    analysis: str
    settings: str
    axes: tuple[str, ...]
    least: str


def _nothing(evidence: Any) -> list[Curve]:
    return []


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Attributes:
        name: on the command line. statement: the claim, in a sentence or two. source: who made it, where.
        says_not: what the verdict does not say. needs: of the runs. how: the tests and their thresholds, in words.
        decide: (evidence of the claim's own class) -> Decision; its thresholds are constants of its file, fixed before
            any data. draw: (evidence) -> what its figure shows.
    """

    name: str
    statement: str
    source: str
    says_not: str
    needs: tuple[Need, ...]
    how: str
    decide: Callable[[Any], Decision]
    draw: Callable[[Any], list[Curve]] = _nothing


def settling(name: str, undecided: bool, excluded: Sequence[Excluded]) -> tuple[str, ...]:
    """Commands that would settle what is undecided, the nearest first."""
    if not undecided:
        return ()
    bare = any(e.reason.startswith(NO_CERTIFICATE) for e in excluded)
    first = ("landscape descend RUNS --out certified", f"landscape check certified RUNS --claim {name}")
    return (*(first if bare else ()), f"landscape check --claim {name} --run --scale full")


def group_of(part: str) -> str:
    """What a part belongs to: the population or the section that its name begins with."""
    return part.partition(": " if ": " in part else " ")[0]


def interval_words(value: float, low: float, high: float) -> str:
    """A value with its interval, "-" for none."""
    if math.isnan(value):
        return "-"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.2g}, {high:.2g}]"


def combined(parts: Sequence[Part]) -> tuple[str, str]:
    """The verdict of all evidence together, and the condition of a conditional one.

    Supported or contradicted if all parts that are decided say so; conditional if they differ; undetermined if none
    is decided, or if more than half are not.
    """
    decided = [p for p in parts if p.evidence and p.verdict != "undetermined"]
    evidence = [p for p in parts if p.evidence]
    if not decided or 2 * len(decided) < len(evidence):
        return "undetermined", ""
    words = {p.verdict for p in decided}
    if len(words) == 1:
        word = words.pop()
        return word, "; ".join(p.note for p in decided if p.note) if word == "conditional" else ""
    names = {word: [p.name for p in decided if p.verdict == word] for word in VERDICTS}
    against = [*names["contradicted"], *names["conditional"]]
    if len(names["supported"]) >= len(against):
        return "conditional", "holds except in: " + "; ".join(against)
    if names["supported"]:
        return "conditional", "holds only in: " + "; ".join(names["supported"])
    return "conditional", "contradicted in: " + "; ".join(names["contradicted"])
