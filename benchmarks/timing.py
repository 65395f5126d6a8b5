"""Fair timing: every tool at its cheapest setting that is accurate enough, then all in turn, medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Setting = dict[str, Any]
Answer = Any


@dataclass(frozen=True)
class Method:
    """One tool's way to an answer.

    Attributes:
        who: the tool. run: (seed, **setting) -> answer; construction of the operator included.
        settings: what may be tried, cheapest first. what: the call, in words.
        refused: why the tool cannot do this at all.
    """

    who: str
    run: Callable[..., Answer] | None
    settings: Sequence[Setting] = ({},)
    what: str = ""
    refused: str = ""


@dataclass
class Timed:
    """A tool's row: seconds of each repetition, the worst true error, the setting, why not if it failed."""

    who: str
    setting: Setting = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    error: float = float("nan")
    correct: bool = False
    reason: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


@dataclass(frozen=True)
class Effort:
    """Repetitions of timed rows, and seconds that the tuning of one tool may take."""

    repetitions: int
    patience: float


def clocked(function: Callable[[], Answer]) -> tuple[float, Answer]:
    gc.collect()
    start = time.perf_counter()
    answer = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, answer


def race(
    methods: Sequence[Method],
    error_of: Callable[[Answer], float],
    limit: float,
    repetitions: int,
    patience: float,
) -> list[Timed]:
    """Tune every method on all seeds, then run them in turn; `limit` is the largest true error that counts."""
    seeds = range(repetitions)
    rows = [_tuned(m, error_of, limit, seeds, patience) for m in methods]
    for seed in seeds:
        for method, row in zip(methods, rows, strict=True):
            if method.run is None or not row.correct:
                continue
            run = method.run
            seconds, answer = clocked(lambda run=run, row=row, seed=seed: run(seed, **row.setting))
            row.seconds.append(seconds)
            row.error = max(row.error, error_of(answer))
    return rows


def _tuned(
    method: Method, error_of: Callable[[Answer], float], limit: float, seeds: Sequence[int], patience: float
) -> Timed:
    """The cheapest setting whose true error is within the limit for every seed; stops where settings get dear."""
    row = Timed(method.who, reason=method.refused)
    if method.run is None:
        return row
    closest, best = float("inf"), float("inf")
    begin = time.perf_counter()
    for setting in method.settings:
        worst, spent = 0.0, 0.0
        try:
            for seed in seeds:
                seconds, answer = clocked(lambda s=setting, k=seed: method.run(k, **s))  # type: ignore[misc]
                worst, spent = max(worst, error_of(answer)), spent + seconds
                if not worst <= limit:
                    break
        except Exception as error:  # a peer's own failure is a result
            row.reason = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:110]}"
            continue
        if worst <= limit and spent < best:
            best, row.setting, row.error, row.correct, row.reason = spent, setting, worst, True, ""
        if not row.correct and worst < closest:
            closest, row.setting, row.error = worst, setting, worst
            row.seconds = [seconds]
            row.reason = f"error {worst:.1e} at its best setting"
        much_dearer = worst <= limit and spent > 2 * best
        if much_dearer or time.perf_counter() - begin > patience:
            break
    if row.correct:
        row.seconds = []
    return row


def ratio(ours: Timed, rows: Sequence[Timed]) -> tuple[float, str]:
    """Seconds of the best correct peer over ours, and that peer."""
    correct = [r for r in rows if r is not ours and r.correct and r.who != ours.who and not r.who.startswith("ours")]
    if not correct or not ours.correct:
        return float("nan"), ""
    best = min(correct, key=lambda r: r.median)
    return best.median / ours.median, best.who
