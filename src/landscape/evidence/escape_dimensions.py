"""Evidence for `escape-dimensions`: Protocols A (splits), B (tickets alone) and C (tickets kept) on a sweep's runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.analyses.widen import run_widen
from landscape.claim import Excluded
from landscape.claims.escape_dimensions import SUCCESS, Evidence, Kept, Pairs, Population, Splits
from landscape.data.teacher import teacher_weights
from landscape.evidence.runs import SweptRun, usable
from landscape.models import build_model
from landscape.pieces import Pieces
from landscape.problem import Problem
from landscape.protocols.tickets import redraw_others, train_alone
from landscape.structure import hidden_layers
from landscape.widen_settings import WidenSettings

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scale:
    """How much is done of each protocol.

    Attributes:
        minima: bad minima whose neurons are split. kicks: controls of each split. starts: of each width whose tickets
            are trained alone; tickets: of each start, at most. kept: winning tickets, each with so many redraws.
        steps: iterations of every training, at most.
    """

    minima: int
    kicks: int
    starts: int
    tickets: int
    kept: int
    redraws: int
    steps: int = 1000


SCALES = {"small": Scale(10, 2, 20, 15, 10, 20), "full": Scale(60, 3, 500, 500, 20, 50)}


def gather(groups: dict[str, list[SweptRun]], scale: Scale, seed: int, tell: Progress, pieces: Pieces) -> Evidence:
    """All protocols on all populations; every finished part is put aside under its own name."""
    found, excluded = [], list[Excluded]()
    for name, runs in groups.items():
        kept, left = usable(runs)
        excluded += left
        if kept:
            found.append(_population(name, kept, scale, seed, tell, pieces))
    return Evidence(found, tuple(excluded))


def _population(name: str, runs: list[SweptRun], scale: Scale, seed: int, tell: Progress, pieces: Pieces) -> Population:
    widths = sorted({r.width for r in runs})
    losses = {w: np.array([r.loss for r in runs if r.width == w]) for w in widths}
    zero = bool(any((v < SUCCESS).any() for v in losses.values()))
    r = widths[0]
    splits = _splits(name, [x for x in runs if x.width == r], scale, tell, pieces)
    pairs: list[Pairs] = []
    kept: list[Kept] = []
    if zero:
        for width in widths[1:]:
            starts = [x for x in runs if x.width == width and x.start is not None][: scale.starts]
            if starts:
                pairs.append(_pairs(f"{name}, pairs, {width}", starts, r, scale, seed, tell, pieces))
        wide = widths[len(widths) // 2] if len(widths) > 2 else widths[-1]
        starts = [x for x in runs if x.width == wide and x.start is not None][: scale.starts]
        if starts and wide > r:
            made = _kept(f"{name}, kept, {wide}", starts, r, scale, seed, tell, pieces)
            kept = [] if made is None else [made]
    return Population(name, r, losses, splits, pairs, kept, zero)


def _splits(name: str, narrow: Sequence[SweptRun], scale: Scale, tell: Progress, pieces: Pieces) -> list[Splits]:
    """Protocol A on certified minima of positive loss."""
    bad = [x for x in narrow if x.certificate and x.certificate.verdict == "minimum" and x.loss > SUCCESS]
    found = []
    for number, run in enumerate(bad[: scale.minima]):
        tell(f"{name}: splits", number, min(len(bad), scale.minima))
        label = f"{name}, splits, {run.name}"
        aside = pieces.get(label)
        if aside is None:
            aside = _split(run, scale)
            pieces.put(label, aside)
        found.append(Splits(run.name, run.loss, **{k: v.numpy() for k, v in aside.items()}))
    return found


def _split(run: SweptRun, scale: Scale) -> dict[str, torch.Tensor]:
    problem = run.problem()
    layer = hidden_layers(problem.model)[0].layer
    settings = WidenSettings(layer, follow=True, controls=scale.kicks, steps=scale.steps)
    made = run_widen(problem, settings)
    assert made.escape_loss is not None
    assert made.control_loss is not None
    assert made.narrow_control_loss is not None
    arrays = {
        "foretold": made.predicted_negative,
        "found": made.measured_negative,
        "reached": made.escape_loss,
        "wide": made.control_loss,
        "narrow": made.narrow_control_loss,
    }
    return {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _pairs(
    label: str, starts: Sequence[SweptRun], r: int, scale: Scale, seed: int, tell: Progress, pieces: Pieces
) -> Pairs:
    """Protocol B, paired: every start's tickets alone."""
    width = starts[0].width
    aside = pieces.get(label)
    if aside is None:
        problems = [_start(x) for x in starts]
        layer = hidden_layers(problems[0].model)[0].layer
        rng = np.random.default_rng([seed, width])
        alone = train_alone(
            problems,
            layer,
            r,
            scale.tickets,
            scale.steps,
            rng,
            lambda stage, d, t: tell(f"{label}: tickets alone", d, t),
        )
        winners = np.bincount(alone.start, alone.loss < SUCCESS, minlength=len(starts)).astype(int)
        tried = len(alone.loss) // len(starts)
        first = [_first_winner(alone.start, alone.neurons, alone.loss, i) for i in range(len(starts))]
        aside = {
            "winners": torch.as_tensor(winners),
            "tried": tried,
            "total": alone.total,
            "first": torch.as_tensor(np.array(first)),
        }
        pieces.put(label, aside)
    wide = np.array([x.loss < SUCCESS for x in starts])
    return Pairs(width, wide, aside["winners"].numpy(), int(aside["tried"]), int(aside["total"]))


def _first_winner(start: np.ndarray, neurons: np.ndarray, loss: np.ndarray, i: int) -> np.ndarray:
    """Neurons of the first ticket of a start that wins alone; −1 without one."""
    won = np.flatnonzero((start == i) & (loss < SUCCESS))
    return neurons[won[0]] if len(won) else np.full(neurons.shape[1], -1)


def _kept(
    label: str, starts: Sequence[SweptRun], r: int, scale: Scale, seed: int, tell: Progress, pieces: Pieces
) -> Kept | None:
    """Protocol C: the first winning ticket of some starts, with the rest drawn anew."""
    first = pieces.get(label.replace(", kept,", ", pairs,"))
    tickets = [] if first is None else first["first"].tolist()
    chosen = [(x, t) for x, t in zip(starts, tickets, strict=False) if t[0] >= 0][: scale.kept]
    if len(chosen) < 2:
        return None
    aside = pieces.get(label)
    if aside is None:
        problems = [_start(x) for x, _ in chosen]
        layer = hidden_layers(problems[0].model)[0].layer
        fresh = [
            [_fresh(x, seed + 10_000 + 1000 * i + k) for k in range(scale.redraws)] for i, (x, _) in enumerate(chosen)
        ]
        made = redraw_others(
            problems,
            fresh,
            layer,
            [t for _, t in chosen],
            scale.steps,
            teacher_of(chosen[0][0]),
            lambda stage, d, t: tell(f"{label}: redraws", d, t),
        )
        aside = {name: torch.as_tensor(getattr(made, name)) for name in ("ticket", "loss", "matched")}
        pieces.put(label, aside)
    ticket, loss, matched = (aside[name].numpy() for name in ("ticket", "loss", "matched"))
    success = np.array([(loss[ticket == i] < SUCCESS).mean() for i in range(len(chosen))])
    solved = np.array([(matched[ticket == i] == r).mean() for i in range(len(chosen))])
    return Kept(
        starts[0].width, success, solved if (matched >= 0).all() else np.full(len(chosen), np.nan), scale.redraws
    )


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
