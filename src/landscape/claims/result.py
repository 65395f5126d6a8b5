"""Result of `check`: a claim decided, with its parts, what was left out, and the points of its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.claims.claim import Claim, Curve, Decision, Need
from landscape.results.fields import Result, Spent, field_of


@dataclass(frozen=True, kw_only=True)
class Checked(Result):
    """A claim decided on the runs of a sweep. Verdicts are supported, contradicted, conditional or undetermined."""

    group: ClassVar[str] = "check"

    claim: str
    verdict: str
    condition: str
    statement: str
    source: str
    says_not: str

    how: str
    need: np.ndarray = field_of("what the claim needs of the runs it is decided on", "need")
    population: np.ndarray = field_of("problem that it was decided on", "population")
    population_runs: np.ndarray = field_of("its runs", "population")
    population_sweep: np.ndarray = field_of("sweep file that trains such runs; empty: not ours", "population")

    runs: int = field_of("runs that were read")
    seeds: int = field_of("independent units: seeds of each population, added up")
    part: np.ndarray = field_of("name of the test", "part")
    part_verdict: np.ndarray = field_of("its verdict", "part")
    part_statistic: np.ndarray = field_of("what its value is", "part")
    part_value: np.ndarray = field_of("value of the statistic", "part")
    part_low: np.ndarray = field_of("lower end of its 95 % interval; NaN: it has none", "part")
    part_high: np.ndarray = field_of("upper end of its 95 % interval; NaN: it has none", "part")
    part_n: np.ndarray = field_of("independent units that entered", "part")
    part_note: np.ndarray = field_of("what a reader must know", "part")
    part_evidence: np.ndarray = field_of("False: a theorem or a report, which does not enter the verdict", "part")
    excluded: np.ndarray = field_of("run that was left out", "excluded")
    excluded_reason: np.ndarray = field_of("why", "excluded")
    settle: np.ndarray = field_of("command that would settle what is undetermined", "settle")

    curve_panel: np.ndarray = field_of("panel of the claim's figure", "point")
    curve_series: np.ndarray = field_of("series within the panel", "point")
    curve_x_label: np.ndarray = field_of("what the abscissa is", "point")
    curve_y_label: np.ndarray = field_of("what the ordinate is", "point")
    curve_x: np.ndarray = field_of("abscissa", "point")
    curve_y: np.ndarray = field_of("ordinate", "point")
    curve_low: np.ndarray = field_of("lower end of its 95 % interval, or of a range; NaN: none", "point")
    curve_high: np.ndarray = field_of("upper end of it", "point")
    curve_joined: np.ndarray = field_of("whether a line through the points of the series means something", "point")

    spent: Spent | None = None


@dataclass(frozen=True)
class Read:
    """A population that was read: its name, how many runs, and a sweep file that trains them again."""

    name: str
    runs: int
    sweep: str


def checked(claim: Claim, decision: Decision, curves: Sequence[Curve], read: Sequence[Read], spent: Spent) -> Checked:
    """The result of a decision."""
    parts = decision.parts
    points = [
        (c.panel, c.series, c.x_label, c.y_label, x, y, low, high)
        for c in curves
        for x, y, low, high in zip(c.x, c.y, c.low, c.high, strict=True)
    ]
    words = [np.array([p[i] for p in points], dtype=str) for i in range(4)]
    numbers = [np.array([p[i] for p in points], dtype=float) for i in range(4, 8)]
    return Checked(
        claim=claim.name,
        verdict=decision.verdict,
        condition=decision.condition,
        statement=claim.statement,
        source=claim.source,
        says_not=claim.says_not,
        how=claim.how,
        need=_texts([_need(n) for n in claim.needs]),
        population=_texts([p.name for p in read]),
        population_runs=np.array([p.runs for p in read], dtype=np.int64),
        population_sweep=_texts([p.sweep for p in read]),
        runs=sum(p.runs for p in read),
        seeds=decision.seeds,
        part=_texts([p.name for p in parts]),
        part_verdict=_texts([p.verdict for p in parts]),
        part_statistic=_texts([p.statistic for p in parts]),
        part_value=np.array([p.value for p in parts], dtype=float),
        part_low=np.array([p.low for p in parts], dtype=float),
        part_high=np.array([p.high for p in parts], dtype=float),
        part_n=np.array([p.n for p in parts], dtype=np.int64),
        part_note=_texts([p.note for p in parts]),
        part_evidence=np.array([p.evidence for p in parts], dtype=bool),
        excluded=_texts([e.run for e in decision.excluded]),
        excluded_reason=_texts([e.reason for e in decision.excluded]),
        settle=_texts(list(decision.settle)),
        curve_panel=words[0],
        curve_series=words[1],
        curve_x_label=words[2],
        curve_y_label=words[3],
        curve_x=numbers[0],
        curve_y=numbers[1],
        curve_low=numbers[2],
        curve_high=numbers[3],
        curve_joined=np.array([c.joined for c in curves for _ in c.x], dtype=bool),
        spent=spent,
    )


def _need(need: Need) -> str:
    return f"{need.analysis}: {need.settings}; over {' and '.join(need.axes)}; at least {need.least}"


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=str)
