"""Evidence for Protocols B (tickets alone) and C (tickets kept) of `escape-dimensions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from landscape.claims.escape_dimensions.decide import Kept, Pairs
from landscape.claims.escape_dimensions.decide_splits import SUCCESS
from landscape.claims.escape_dimensions.tickets import Redrawn, redraw_others, train_alone
from landscape.claims.runs import Means, SweptRun, reaches_zero, together, widths_of
from landscape.data.teacher import teacher_weights
from landscape.models import MODELS, build_model
from landscape.problem.layers import hidden_layers
from landscape.problem.problem import Problem
from landscape.stack.first_order import FirstOrder


def tickets(name: str, runs: Sequence[SweptRun], means: Means) -> tuple[list[Pairs], list[Kept], str]:
    """Protocol B, paired, of every width; Protocol C of one in the middle; or why there is none of them."""
    if not reaches_zero(runs, SUCCESS):
        return [], [], "no network reaches zero loss"
    widths = widths_of(runs)
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
        most = max(1, means.scale.alone // math.comb(width, widths[0]))
        starts = [x for x in runs if x.width == width and x.start is not None][:most]
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


def _second_order(run: SweptRun) -> str:
    """What the run was trained, or finished, with."""
    optimiser = str(dict(run.header.get("training", {})).get("optimiser"))
    return optimiser if optimiser in ("newton", "flow") else "levenberg_marquardt"


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
    wide, known = np.array([x.loss < SUCCESS for x in starts]), aside["known"].numpy()
    return Pairs(
        starts[0].width,
        wide[known],
        aside["winners"].numpy()[known],
        int(aside["tried"]),
        int(aside["total"]),
        np.array([x.teacher for x in starts])[known],
        int((~known).sum()),
    )


def _alone(label: str, starts: Sequence[SweptRun], r: int, means: Means) -> dict[str, Any]:
    """How many tickets of every start win alone, which is the first, and whether that is known: one wins or all have
    finished; and how many were tried of how many."""
    problems = [_start(x) for x in starts]
    layer = hidden_layers(problems[0].model)[0].layer
    rng = np.random.default_rng([means.seed, starts[0].width])
    winners, first = np.zeros(len(starts), dtype=int), np.full((len(starts), r), -1)
    open_ = np.zeros(len(starts), dtype=int)
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
            optimiser=_second_order(starts[0]),
            device=means.device,
        )
        won = alone.loss < SUCCESS
        winners[numbers] = np.bincount(alone.start, won, minlength=len(numbers))
        open_[numbers] = np.bincount(alone.start, ~won & ~alone.finished, minlength=len(numbers))
        for k in reversed(np.flatnonzero(won)):
            first[numbers[alone.start[k]]] = alone.neurons[k]
        tried, total = len(alone.loss) // len(numbers), alone.total
    known = (winners > 0) | (open_ == 0)
    arrays = {"winners": winners, "first": first, "known": known}
    return {**{k: torch.as_tensor(v) for k, v in arrays.items()}, "tried": tried, "total": total}


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
    ticket, loss, matched, finished = (aside[name].numpy() for name in ("ticket", "loss", "matched", "finished"))
    won = loss < SUCCESS
    known = won | finished
    success, solved = np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
    for i in range(len(chosen)):
        mine = ticket == i
        if (mine & known).any():
            success[i] = won[mine & known].mean()
        if size == r and (mine & won).any():  # with more neurons than the teacher's not even alone
            solved[i] = (matched[mine & won] == r).mean()
    teachers = np.array([x.teacher for x, _ in chosen])
    return Kept(starts[0].width, success, solved, scale.redraws, teachers, float(1 - known.mean()))


def _redrawn(
    label: str, starts: Sequence[SweptRun], tickets: Sequence[Sequence[int]], means: Means
) -> dict[str, torch.Tensor]:
    """All of `Redrawn`, the tickets numbered as given."""
    problems = [_start(x) for x in starts]
    layer = hidden_layers(problems[0].model)[0].layer
    every = []
    for numbers in together(problems):
        teachers = [t for t in (teacher_of(starts[i]) for i in numbers) if t is not None]
        fresh = [
            [_fresh(starts[i], means.seed + 10_000 + 1000 * i + k) for k in range(means.scale.redraws)] for i in numbers
        ]
        made = redraw_others(
            [problems[i] for i in numbers],
            fresh,
            layer,
            [tickets[i] for i in numbers],
            _steps_of(starts[0], means.scale.steps),
            teachers if len(teachers) == len(numbers) else None,
            lambda stage, d, t: means.tell(f"{label}: redraws", d, t),
            first=_trained_like(starts[0]),
            optimiser=_second_order(starts[0]),
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
