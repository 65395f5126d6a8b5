"""Evidence for `escape-dimensions` on a sweep's runs: what is done of all protocols, and Protocol A (splits)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from landscape.claims.claim import Excluded
from landscape.claims.escape_dimensions.decide import NO_MINIMA, Evidence, Population
from landscape.claims.escape_dimensions.decide_splits import SUCCESS, Splits
from landscape.claims.escape_dimensions.splits import Opened, split_minima
from landscape.claims.escape_dimensions.ticket_experiments import tickets
from landscape.claims.runs import Means, SweptRun, reaches_zero, together, usable, widths_of
from landscape.problem.layers import hidden_layers

# Minima whose splits go through one stack: what is lost when the command is killed.
TOGETHER = 10
# Parameters of a narrow network from which on fewer minima are split: the time of a descent grows with their square.
LARGE = 60


# Losses of certified minima closer than this, relatively, are of one minimum and its mirror images.
SAME = 1e-6


@dataclass(frozen=True)
class Scale:
    """How much is done of each protocol.

    Attributes:
        minima: bad minima whose neurons are split. kicks: controls of each split. alone: networks of each width,
            tickets of as many starts as they allow. tickets: of each start, at most: widths with more of them are left
            out, since one that was not tried may have won. kept: winning tickets, each with this many redraws.
        first_order: widths whose tickets are trained alone where that takes a first-order optimiser.
        large: minima that are split where networks have more than `LARGE` parameters.
        steps: iterations of every training, at most.
    """

    minima: int
    kicks: int
    alone: int
    tickets: int
    kept: int
    redraws: int
    first_order: int
    large: int
    steps: int = 1000


SCALES = {
    "small": Scale(8, 1, 450, 15, 8, 20, 1, 0),
    "medium": Scale(20, 1, 2_800, 70, 12, 50, 2, 8),
    "full": Scale(60, 3, 250_000, 500, 20, 50, 9, 30),
}
UNITS = ("splits", "tickets")


def units(groups: Mapping[str, Sequence[SweptRun]]) -> list[tuple[str, str]]:
    """What can be done apart: (population, experiment), the longest ones first."""
    return [(name, what) for what in UNITS for name in groups]


def work(groups: Mapping[str, Sequence[SweptRun]], unit: tuple[str, str], means: Means) -> None:
    """One of the `units`; what it finds is kept."""
    name, what = unit
    runs, _ = usable(groups.get(name, ()), SUCCESS)
    if runs and widths_of(runs)[0] == widths_of(groups[name])[0]:
        (_splits if what == "splits" else tickets)(name, runs, means)


def gather(groups: Mapping[str, Sequence[SweptRun]], means: Means) -> Evidence:
    """All protocols on all populations; every finished part is kept under its own name."""
    found, excluded = [], list[Excluded]()
    for name, runs in groups.items():
        kept, left = usable(runs, SUCCESS)
        excluded += left
        narrowest = widths_of(runs)[0]
        if any(r.width == narrowest for r in kept):
            left_out = [1 - sum(r.width == w for r in kept) / sum(r.width == w for r in runs) for w in widths_of(runs)]
            found.append(_population(name, kept, max(left_out), means))
        else:
            excluded.append(Excluded(name, f"none of its narrowest networks, width {narrowest}, has a known end"))
    return Evidence(found, tuple(excluded))


def _population(name: str, runs: list[SweptRun], unfinished: float, means: Means) -> Population:
    widths = widths_of(runs)
    losses = {w: np.array([r.loss for r in runs if r.width == w]) for w in widths}
    pairs, kept, untried = tickets(name, runs, means)
    narrow = sum(r.width == widths[0] for r in runs)
    bad = _bad_minima(runs)
    different = _distinct(bad)
    ends = (len(bad), narrow, len(different), len({r.teacher for r in different}))
    teachers = {w: np.array([r.teacher for r in runs if r.width == w]) for w in widths}
    if len({r.teacher for r in runs}) == 1:
        teachers = {}
    splits, zero = _splits(name, runs, means), reaches_zero(runs, SUCCESS)
    unsplit = f"this scale splits no minima of more than {LARGE} parameters" if different else NO_MINIMA
    return Population(
        name,
        widths[0],
        losses,
        splits,
        pairs,
        kept,
        zero,
        ends,
        unsplit,
        untried,
        unfinished,
        teachers,
    )


# ---- A ---------------------------------------------------------------------------------------------------------------


def _splits(name: str, runs: Sequence[SweptRun], means: Means) -> list[Splits]:
    """Protocol A on certified minima of positive loss of the narrowest networks, each minimum once."""
    bad = _of_all_teachers(_distinct(_bad_minima(runs)))
    large = any(x.certificate is not None and x.certificate.parameters > LARGE for x in bad[:1])
    bad = bad[: means.scale.large if large else means.scale.minima]
    found = []
    for begin in range(0, len(bad), TOGETHER):
        some = bad[begin : begin + TOGETHER]
        label = f"{name}, splits, {begin} to {begin + len(some)}"
        aside = means.pieces.get(label)
        if aside is None:
            aside = _split(name, some, means)
            means.pieces.put(label, aside)
        arrays = {k: v.numpy() for k, v in aside.items()}
        for number, run in enumerate(some):
            mine = arrays["minimum"] == number
            of_it = {k: v[mine] for k, v in arrays.items() if k != "minimum"}
            found.append(Splits(run.name, run.loss, **of_it, teacher=run.teacher))
    return found


def _bad_minima(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """Certified minima of positive loss at the smallest width."""
    width = widths_of(runs)[0]
    minima = [x for x in runs if x.width == width and x.certificate and x.certificate.verdict == "minimum"]
    return [x for x in minima if x.loss > SUCCESS]


def _distinct(minima: Sequence[SweptRun]) -> list[SweptRun]:
    """The first run at each minimum of a teacher, told apart by their losses: runs at one are one observation of it."""
    kept: list[SweptRun] = []
    for run in minima:
        if all(abs(run.loss - x.loss) > SAME * x.loss for x in kept if x.teacher == run.teacher):
            kept.append(run)
    return kept


def _of_all_teachers(minima: Sequence[SweptRun]) -> list[SweptRun]:
    """One of every teacher first, then a second of every teacher, and so on: some of them are left out."""
    seen: dict[int, int] = {}
    rank = []
    for run in minima:
        rank.append(seen.get(run.teacher, 0))
        seen[run.teacher] = rank[-1] + 1
    return [minima[i] for i in np.argsort(rank, kind="stable")]


def _split(name: str, some: Sequence[SweptRun], means: Means) -> dict[str, torch.Tensor]:
    """All of `Opened`, the minima numbered as in `some`."""
    problems = [x.problem() for x in some]
    layer = hidden_layers(problems[0].model)[0].layer
    every = []
    for group, numbers in enumerate(together(problems)):
        made = split_minima(
            [problems[i] for i in numbers],
            layer,
            means.scale.kicks,
            means.scale.steps,
            means.seed + group,  # not the same kicks for every teacher
            lambda stage, d, t: means.tell(f"{name}: {stage}", d, t),
            means.device,
        )
        every.append(replace(made, minimum=np.array(numbers)[made.minimum]))
    return {k: torch.as_tensor(np.concatenate([getattr(m, k) for m in every])) for k in Opened.__dataclass_fields__}
