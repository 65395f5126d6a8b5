"""Evidence for `escape-dimensions`: Protocols A (splits), B (tickets alone) and C (tickets kept) on a sweep's runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from landscape.claim import Excluded
from landscape.claims.escape_dimensions import Evidence, Kept, Pairs, Population
from landscape.data.teacher import teacher_weights
from landscape.escape_splits import SUCCESS, Splits
from landscape.evidence.runs import Means, SweptRun, together, usable
from landscape.models import MODELS, build_model
from landscape.problem import Problem
from landscape.protocols.first_order import FirstOrder
from landscape.protocols.splits import Opened, split_minima
from landscape.protocols.tickets import Redrawn, redraw_others, train_alone
from landscape.structure import hidden_layers

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
        minima: bad minima whose neurons are split. kicks: controls of each split. starts: of each width whose tickets
            are trained alone; tickets: of each start, at most: widths with more of them are left out, since one that
            was not tried may have won. kept: winning tickets, each with so many redraws.
        first_order: widths whose tickets are trained alone where that takes a first-order optimiser.
        large: minima that are split where networks have more than `LARGE` parameters.
        steps: iterations of every training, at most.
    """

    minima: int
    kicks: int
    starts: int
    tickets: int
    kept: int
    redraws: int
    first_order: int
    large: int
    steps: int = 1000


SCALES = {
    "small": Scale(8, 1, 30, 15, 8, 20, 1, 0),
    "medium": Scale(20, 1, 40, 70, 12, 50, 2, 8),
    "full": Scale(60, 3, 500, 500, 20, 50, 9, 30),
}
UNITS = ("splits", "tickets")


def units(groups: Mapping[str, Sequence[SweptRun]]) -> list[tuple[str, str]]:
    """What can be done apart: (population, experiment), the longest ones first."""
    return [(name, what) for what in UNITS for name in groups]


def work(groups: Mapping[str, Sequence[SweptRun]], unit: tuple[str, str], means: Means) -> None:
    """One of the `units`; what it finds is put aside."""
    name, what = unit
    runs, _ = usable(groups.get(name, ()), SUCCESS)
    if runs and _widths(runs)[0] == _widths(groups[name])[0]:
        (_splits if what == "splits" else _tickets)(name, runs, means)


def gather(groups: Mapping[str, Sequence[SweptRun]], means: Means) -> Evidence:
    """All protocols on all populations; every finished part is put aside under its own name."""
    found, excluded = [], list[Excluded]()
    for name, runs in groups.items():
        kept, left = usable(runs, SUCCESS)
        excluded += left
        narrowest = _widths(runs)[0]
        if any(r.width == narrowest for r in kept):
            left_out = [1 - sum(r.width == w for r in kept) / sum(r.width == w for r in runs) for w in _widths(runs)]
            found.append(_population(name, kept, max(left_out), means))
        else:
            excluded.append(Excluded(name, f"none of its narrowest networks, width {narrowest}, has a known end"))
    return Evidence(found, tuple(excluded))


def _population(name: str, runs: list[SweptRun], unfinished: float, means: Means) -> Population:
    widths = _widths(runs)
    losses = {w: np.array([r.loss for r in runs if r.width == w]) for w in widths}
    pairs, kept, untried = _tickets(name, runs, means)
    narrow = sum(r.width == widths[0] for r in runs)
    bad = _bad_minima(runs)
    different = _distinct(bad)
    ends = (len(bad), narrow, len(different), len({r.teacher for r in different}))
    teachers = {w: np.array([r.teacher for r in runs if r.width == w]) for w in widths}
    if len({r.teacher for r in runs}) == 1:
        teachers = {}
    splits, zero = _splits(name, runs, means), _reaches_zero(runs)
    return Population(name, widths[0], losses, splits, pairs, kept, zero, ends, untried, unfinished, teachers)


def _widths(runs: Sequence[SweptRun]) -> list[int]:
    return sorted({r.width for r in runs})


def _reaches_zero(runs: Sequence[SweptRun]) -> bool:
    return any(r.loss < SUCCESS for r in runs)


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
    width = _widths(runs)[0]
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
    for numbers in together(problems):
        made = split_minima(
            [problems[i] for i in numbers],
            layer,
            means.scale.kicks,
            means.scale.steps,
            means.seed,
            lambda stage, d, t: means.tell(f"{name}: {stage}", d, t),
            means.device,
        )
        every.append(replace(made, minimum=np.array(numbers)[made.minimum]))
    return {k: torch.as_tensor(np.concatenate([getattr(m, k) for m in every])) for k in Opened.__dataclass_fields__}


# ---- B and C ---------------------------------------------------------------------------------------------------------


def _tickets(name: str, runs: Sequence[SweptRun], means: Means) -> tuple[list[Pairs], list[Kept], str]:
    """Protocol B, paired, of every width; Protocol C of one in the middle; or why there is none of them."""
    if not _reaches_zero(runs):
        return [], [], "no network reaches zero loss"
    widths = _widths(runs)
    first = first_order_of(runs[0])
    if isinstance(first, str):
        return [], [], first
    wider = [w for w in widths[1:] if any(x.width == w and x.start is not None for x in runs)]
    if not wider:
        return [], [], "there are no initial checkpoints of a wider network (save = [0] in the sweep)"
    if first is not None:
        wider = wider[: means.scale.first_order]
    wider = [w for w in wider if math.comb(w, widths[0]) <= means.scale.tickets]
    pairs, kept = list[Pairs](), list[Kept]()
    middle = widths[len(widths) // 2] if len(widths) > 2 else widths[-1]
    for width in wider:
        starts = [x for x in runs if x.width == width and x.start is not None][: means.scale.starts]
        pairs.append(_pairs(f"{name}, pairs, {width}", starts, widths[0], means))
        # other initial values can be drawn for built-in networks only
        if width == min(middle, wider[-1]) and runs[0].header.get("model") in MODELS:
            made = _kept(f"{name}, kept, {width}", starts, widths[0], means)
            kept = kept if made is None else [made]
    why = "" if pairs else f"every wider start has more than the {means.scale.tickets} tickets of this scale"
    return pairs, kept, why


def first_order_of(run: SweptRun) -> FirstOrder | str | None:
    """How the run was trained if that was of first order, None if of second; in words, why its tickets cannot be."""
    how: Any = run.header.get("training", {})
    if how.get("optimiser") is None:
        return "tickets alone need to know how their networks were trained, which no header says"
    if how["optimiser"] not in ("adam", "sgd"):
        return None
    samples = len(run.problem().data[1])  # type: ignore[index]
    if int(how["batch_size"]) < samples:
        return "tickets alone need full batches: a start's minibatches are its own"
    return FirstOrder(
        how["optimiser"],
        float(how["learning_rate"]),
        int(how["steps"]),
        float(how.get("momentum", 0.0)),
        float(run.header.get("weight_decay", 0.0)),
        how.get("schedule") == "cosine",
    )


def _trained_like(run: SweptRun) -> FirstOrder | None:
    found = first_order_of(run)
    return found if isinstance(found, FirstOrder) else None


def _steps_of(run: SweptRun, otherwise: int) -> int:
    """Iterations of second order that the run itself had, at most."""
    how: Any = run.header.get("training", {})
    if first_order_of(run) is None:
        return int(how.get("steps", otherwise))
    if "descent" in run.header:  # `landscape descend` went on from where training had stopped
        return otherwise
    return int(how.get("finish_steps", otherwise)) if how.get("finish") else 0


def _pairs(label: str, starts: Sequence[SweptRun], r: int, means: Means) -> Pairs:
    """Protocol B, paired: every start's tickets alone."""
    aside = means.pieces.get(label)
    if aside is None:
        aside = _alone(label, starts, r, means)
        means.pieces.put(label, aside)
    wide = np.array([x.loss < SUCCESS for x in starts])
    return Pairs(starts[0].width, wide, aside["winners"].numpy(), int(aside["tried"]), int(aside["total"]))


def _alone(label: str, starts: Sequence[SweptRun], r: int, means: Means) -> dict[str, Any]:
    """Of every start how many tickets win alone and which is the first, and how many were tried of how many."""
    problems = [_start(x) for x in starts]
    layer = hidden_layers(problems[0].model)[0].layer
    rng = np.random.default_rng([means.seed, starts[0].width])
    winners, first = np.zeros(len(starts), dtype=int), np.full((len(starts), r), -1)
    tried = total = 0
    for numbers in together(problems):
        alone = train_alone(
            [problems[i] for i in numbers],
            layer,
            r,
            means.scale.tickets,
            _steps_of(starts[0], means.scale.steps),
            rng,
            lambda stage, d, t: means.tell(f"{label}: tickets alone", d, t),
            first=_trained_like(starts[0]),
            device=means.device,
        )
        won = alone.loss < SUCCESS
        winners[numbers] = np.bincount(alone.start, won, minlength=len(numbers))
        for k in reversed(np.flatnonzero(won)):
            first[numbers[alone.start[k]]] = alone.neurons[k]
        tried, total = len(alone.loss) // len(numbers), alone.total
    return {"winners": torch.as_tensor(winners), "tried": tried, "total": total, "first": torch.as_tensor(first)}


def _kept(label: str, starts: Sequence[SweptRun], r: int, means: Means) -> Kept | None:
    """Protocol C: the first winning ticket of some starts, with the rest drawn anew."""
    scale = means.scale
    first = means.pieces.get(label.replace(", kept,", ", pairs,"))
    tickets = [] if first is None else first["first"].tolist()
    chosen = [(x, t) for x, t in zip(starts, tickets, strict=False) if t[0] >= 0][: scale.kept]
    if len(chosen) < 2:
        return None
    aside, size = means.pieces.get(label), None if (t := teacher_of(chosen[0][0])) is None else len(t)
    if aside is None:
        aside = _redrawn(label, [x for x, _ in chosen], [t for _, t in chosen], means)
        means.pieces.put(label, aside)
    ticket, loss, matched = (aside[name].numpy() for name in ("ticket", "loss", "matched"))
    success = np.array([(loss[ticket == i] < SUCCESS).mean() for i in range(len(chosen))])
    solved = np.full(len(chosen), np.nan)
    if size == r:  # with more neurons than the teacher's not even alone
        for i in range(len(chosen)):
            won = (ticket == i) & (loss < SUCCESS)
            if won.any():
                solved[i] = (matched[won] == r).mean()
    return Kept(starts[0].width, success, solved, scale.redraws)


def _redrawn(
    label: str, starts: Sequence[SweptRun], tickets: Sequence[Sequence[int]], means: Means
) -> dict[str, torch.Tensor]:
    """All of `Redrawn`, the tickets numbered as given."""
    problems = [_start(x) for x in starts]
    layer = hidden_layers(problems[0].model)[0].layer
    every = []
    for numbers in together(problems):
        fresh = [
            [_fresh(starts[i], means.seed + 10_000 + 1000 * i + k) for k in range(means.scale.redraws)] for i in numbers
        ]
        made = redraw_others(
            [problems[i] for i in numbers],
            fresh,
            layer,
            [tickets[i] for i in numbers],
            _steps_of(starts[0], means.scale.steps),
            teacher_of(starts[numbers[0]]),
            lambda stage, d, t: means.tell(f"{label}: redraws", d, t),
            first=_trained_like(starts[0]),
            device=means.device,
        )
        every.append(replace(made, ticket=np.array(numbers)[made.ticket]))
    return {f: torch.as_tensor(np.concatenate([getattr(m, f) for m in every])) for f in Redrawn.__dataclass_fields__}


def _start(run: SweptRun) -> Problem:
    assert run.start is not None
    return run.start()


def _fresh(run: SweptRun, seed: int) -> Problem:
    """The run's network with other initial values, in the arithmetic of its start."""
    start = _start(run)
    dtype = next(start.model.parameters()).dtype
    model = build_model(str(run.header["model"]), dict(run.header["model_settings"]), seed).to(dtype)
    return Problem(model, start.data, start.loss, start.weight_decay)


def teacher_of(run: SweptRun) -> np.ndarray | None:
    """Input weights [neurons, features] of the teacher whose data the run learnt; None for other data."""
    if run.header.get("data") != "teacher":
        return None
    found: Any = teacher_weights(dict(run.header["data_settings"]))
    return None if found is None else np.asarray(found)
