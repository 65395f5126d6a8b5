"""Lottery tickets: r of the m neurons of a start, trained alone; and kept while the others are drawn anew.

A ticket is a subset of the neurons of a wide network's initial values (Frankle & Carbin 2019, for neurons). Whether
"the wide network won because it held a winning ticket" is a question about the same start: comparisons are paired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from landscape.optim.damped import REASONS
from landscape.points.descent import Way, descend_stack, flow_stack
from landscape.problem.layers import Hidden
from landscape.problem.problem import Problem
from landscape.runtime.progress import Progress
from landscape.stack.build import build_stack, most_members
from landscape.stack.first_order import FirstOrder, first_order
from landscape.widening.networks import find_hidden, narrowed, width_of, with_neurons

# Networks that are trained together, at most. On a GPU thousands take as long as one.
MOST = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True)
class Alone:
    """Tickets of several starts, trained alone.

    Attributes:
        start: number of the start that each ticket belongs to [T]. neurons: of each ticket [T, r]. loss: reached [T].
        finished: False where iterations ran out or the loss diverged: what it would have reached is not known [T].
        total: C(m, r), of which some were drawn if there are too many.
    """

    start: np.ndarray
    neurons: np.ndarray
    loss: np.ndarray
    finished: np.ndarray
    total: int


@dataclass(frozen=True)
class Redrawn:
    """Tickets kept while the other neurons are drawn anew, trained together.

    Attributes:
        ticket: number of the ticket [R]. loss, finished: as of `Alone` [R]. matched: how many of the teacher's neurons
            are parallel to one of the ticket's, |cos| > 0.999 [R]; −1 where there is no teacher.
    """

    ticket: np.ndarray
    loss: np.ndarray
    finished: np.ndarray
    matched: np.ndarray


def tickets_of(width: int, size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """All subsets of `size` neurons [T, size], or `most` different ones drawn without preference."""
    total = math.comb(width, size)
    if total <= most:
        return np.array(list(itertools.combinations(range(width), size)))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < most:
        drawn.add(tuple(sorted(rng.choice(width, size, replace=False).tolist())))
    return np.array(sorted(drawn))


def train_alone(
    starts: Sequence[Problem],
    layer: str,
    size: int,
    most: int,
    steps: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
    *,
    first: FirstOrder | None = None,
    optimiser: str = "levenberg_marquardt",
    device: torch.device | str = "cpu",
) -> Alone:
    """Train up to `most` tickets of every start alone, down to certified points' accuracy.

    Args:
        starts: networks at their initial values. layer: whose neurons are meant. size: r. steps: iterations, at most.
        first: first-order training that comes before, as the wide networks had it. optimiser: of second order.
    """
    hidden = find_hidden(starts[0].model, layer)
    width = width_of(starts[0].model, layer)
    owners, chosen = [], []
    for i in range(len(starts)):
        for neurons in tickets_of(width, size, most, rng):
            owners.append(i)
            chosen.append(neurons)
    problems = (
        Problem(narrowed(starts[i].model, hidden, n.tolist()), starts[i].data, starts[i].loss, starts[i].weight_decay)
        for i, n in zip(owners, chosen, strict=True)
    )
    losses, finished, _ = _trained(list(problems), Trainer(steps, first, optimiser, device), progress)
    return Alone(np.array(owners), np.array(chosen), losses, finished, math.comb(width, size))


def redraw_others(
    starts: Sequence[Problem],
    fresh: Sequence[Sequence[Problem]],
    layer: str,
    tickets: Sequence[Sequence[int]],
    steps: int,
    teachers: Sequence[np.ndarray] | None = None,
    progress: Progress | None = None,
    *,
    first: FirstOrder | None = None,
    optimiser: str = "levenberg_marquardt",
    device: torch.device | str = "cpu",
) -> Redrawn:
    """Train each start with its ticket kept and all other neurons taken from each of its `fresh` networks.

    Args:
        teachers: input weights [neurons, features] of every start's teacher, to say whether its ticket found them.
        first: first-order training that comes before, as the wide networks had it. optimiser: of second order.
    """
    hidden = find_hidden(starts[0].model, layer)
    owners = [i for i, others in enumerate(fresh) for _ in others]
    problems = [
        Problem(with_neurons(f.model, hidden, s.model, list(t)), s.data, s.loss, s.weight_decay)
        for s, others, t in zip(starts, fresh, tickets, strict=True)
        for f in others
    ]
    losses, finished, networks = _trained(problems, Trainer(steps, first, optimiser, device), progress)
    matched = np.full(len(losses), -1)
    if teachers is not None:
        matched = np.array([
            matches(rows, hidden, list(tickets[i]), teachers[i]) for i, rows in zip(owners, networks, strict=True)
        ])  # fmt: skip
    return Redrawn(np.array(owners), losses, finished, matched)


def matches(rows: torch.Tensor, hidden: Hidden, neurons: Sequence[int], teacher: np.ndarray) -> int:
    """How many of the teacher's neurons have input weights parallel to those of one of `neurons`, |cos| > 0.999."""
    own = rows[list(neurons)].double().numpy()
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-300)
    other = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    return int((np.abs(own @ other.T).max(0) > 0.999).sum())


@dataclass(frozen=True)
class Trainer:
    """How networks are trained: `first`, if at all, then at most `steps` iterations down to a certified point."""

    steps: int
    first: FirstOrder | None
    optimiser: str
    device: torch.device | str


def _trained(
    problems: list[Problem], how: Trainer, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor]]:
    """Losses reached and whether that is where training ends [T], and the first weight tensor of each network there
    (input weights of its first layer)."""
    losses, finished, rows = [], [], []
    way = Way("minimum", how.steps, gauss_newton=how.optimiser != "newton", keep_points=False)
    descend = flow_stack if how.optimiser == "flow" else descend_stack
    parameters = sum(p.numel() for p in problems[0].model.parameters()) if problems else 1
    most = most_members(MOST, how.device, parameters)
    for begin in range(0, len(problems), most):
        stack, theta = build_stack(problems[begin : begin + most], device=how.device)

        def tell(stage: str, members: int, total: int, done: int = begin) -> None:
            if progress is not None:
                progress(stage, done + members, len(problems))

        if how.first is not None:
            theta = first_order(stack, theta, how.first, lambda stage, d, t: tell(f"{stage} {d} of {t}", 0, t))
        ended, _ = descend(stack, theta, way, tell)
        losses.append(ended.value.cpu().numpy())
        finished.append((ended.value.isfinite() & (ended.reason != REASONS.index("steps"))).cpu().numpy())
        rows += list(stack.layout.unflatten(ended.theta)[0].cpu())
    return np.concatenate(losses), np.concatenate(finished), rows
