"""Protocol A: neurons of many narrow minima split, what opens followed, and random kicks of the same length.

As `landscape widen --follow --controls` does for one network, for all minima of one architecture and data set in one
stack: the descents of small networks cost launches, and the last of them runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.certifying import certify_stack, dense_hessians
from landscape.descending import Progress, Trajectory, Way, descend_stack
from landscape.ensemble import Stack
from landscape.escaping import best_steps, kicks
from landscape.objective import Objective, build_objective
from landscape.problem import Problem
from landscape.splitting import foretell, inner_hessians
from landscape.stacking import build_stack
from landscape.structure import Hidden
from landscape.widening import Split, find_hidden, widened, width_of

# Two shares inside [0, 1], where n_neg(B) is added, two outside, where n_pos(B) is, and one three-way split.
SHARES = ((-0.7, 1.7), (0.3, 0.7), (0.5, 0.5), (1.8, -0.8), (-0.5, 0.5, 1.0))
# Floor of the counts, relative to max |eigenvalue|.
TAU = 1e-8
# Newton iterations without 1 % gain that end a descent: losses are compared by decades.
PATIENCE = 50


@dataclass(frozen=True, eq=False)
class Opened:
    """What splits of K neurons, of all minima together, opened.

    Attributes:
        minimum: number of the minimum [K]. foretold, found: negative eigenvalues [K]. reached: lower loss of both sides
            of the way out, NaN where none opened [K]. channel: whether that end runs to infinity [K].
        wide, narrow: losses after random kicks in the wide network, orthogonal to the way out, and in the narrow one
            [K, C], of both sides of a kick the lower one, as of the way out; NaN where no way opened.
    """

    minimum: np.ndarray
    foretold: np.ndarray
    found: np.ndarray
    reached: np.ndarray
    channel: np.ndarray
    wide: np.ndarray
    narrow: np.ndarray


def split_minima(
    problems: Sequence[Problem],
    layer: str,
    controls: int,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Opened:
    """Split every neuron of `layer` of every network, and follow each way out to where it ends.

    Args:
        problems: networks of one architecture at minima, on the same data. controls: kicks of each split.
        steps: iterations of each descent, at most. progress: called as (stage, done, total).
    """
    objectives = [build_objective(p, device=device, dtype=torch.float64) for p in problems]
    hidden = find_hidden(objectives[0].model, layer)
    stack, theta = build_stack(list(problems), device=device)
    values = dense_hessians(stack, theta).values
    highest = values.abs().amax(1)
    negative = (values < -TAU * highest.unsqueeze(1)).sum(1).tolist()
    inner = [inner_hessians(o, hidden) for o in objectives]
    width = width_of(objectives[0].model, layer)
    every = [(i, Split(j, s)) for i in range(len(problems)) for j in range(width) for s in SHARES]
    found = _empty(len(every), controls)
    found.minimum[:] = [i for i, _ in every]
    found.foretold[:] = [
        negative[i] + foretell(inner[i][s.neuron], s.shares, TAU * float(highest[i])).negative for i, s in every
    ]
    generator = torch.Generator().manual_seed(seed)
    for copies in sorted({len(s) for s in SHARES}):
        rows = [k for k, (_, s) in enumerate(every) if len(s.shares) == copies]
        wide = [_wide(problems[every[k][0]], objectives[every[k][0]], hidden, every[k][1]) for k in rows]
        followed = _Followed(
            *build_stack(wide, device=device),
            Way("minimum", steps, keep_points=False, patience=PATIENCE),
            controls,
            generator,
            progress,
        )
        followed.run(found, np.array(rows), stack, theta)
    return found


def _empty(count: int, controls: int) -> Opened:
    def whole() -> np.ndarray:
        return np.zeros(count, dtype=np.int64)

    def kicked() -> np.ndarray:
        return np.full((count, controls), np.nan)

    return Opened(whole(), whole(), whole(), np.full(count, np.nan), np.zeros(count, dtype=bool), kicked(), kicked())


def _wide(problem: Problem, objective: Objective, hidden: Hidden, split: Split) -> Problem:
    model = widened(objective.model, hidden, [split])
    return Problem(model, objective.batches, problem.loss, problem.weight_decay)


@dataclass
class _Followed:
    """The descents of splits with as many copies."""

    stack: Stack
    theta: Tensor
    way: Way
    controls: int
    generator: torch.Generator
    progress: Progress | None

    def run(self, found: Opened, rows: np.ndarray, narrow: Stack, points: Tensor) -> None:
        """Into `found`, at its `rows`. narrow, points: the networks that were split."""
        lowest = self._inertia(found, rows)
        open_ = torch.as_tensor(np.flatnonzero(found.found[rows] > 0), device=self.theta.device)
        if not len(open_):
            return
        at, along, places = self.theta[open_], lowest[open_], rows[open_.cpu().numpy()]
        part = self.stack.of(open_)
        sides = best_steps(part, at, along)
        starts = (at.unsqueeze(1) + sides.step.unsqueeze(2) * along.unsqueeze(1)).flatten(0, 1)
        members = torch.arange(len(open_), device=self.theta.device)
        twice = part.of(members.repeat_interleave(2))
        ends, paths = descend_stack(twice, starts, self.way, self._told("ways out"))
        lower = torch.nan_to_num(ends.value, nan=torch.inf).reshape(-1, 2).argmin(1)
        best = 2 * members + lower
        found.reached[places] = ends.value[best].cpu().numpy()
        found.channel[places] = self._channels(twice.of(best), ends.theta[best], [paths[k] for k in best.tolist()])
        if not self.controls:
            return
        length = sides.step.abs().gather(1, sides.value.argmin(1, keepdim=True)).squeeze(1)
        found.wide[places] = self._kicked(part, at, length, along, "kicks, wide")
        owners = torch.as_tensor(found.minimum[places], device=self.theta.device)
        found.narrow[places] = self._kicked(narrow.of(owners), points[owners], length, None, "kicks, narrow")

    def _inertia(self, found: Opened, rows: np.ndarray) -> Tensor:
        """Negative eigenvalues of every wide Hessian; the lowest eigenvectors [A, P]."""
        lowest = torch.empty_like(self.theta)
        size = max(1, 2**26 // self.stack.parameters**2)
        for begin in range(0, len(rows), size):
            index = torch.arange(begin, min(begin + size, len(rows)), device=self.theta.device)
            values, vectors = torch.linalg.eigh(self.stack.hessians(self.theta[index], index))
            lowest[index] = vectors[:, :, 0]
            below = (values < -TAU * values.abs().amax(1, keepdim=True)).sum(1)
            found.found[rows[begin : begin + size]] = below.cpu().numpy()
            if self.progress is not None:
                self.progress("wide Hessians", begin + len(index), len(rows))
        return lowest

    def _kicked(self, stack: Stack, at: Tensor, length: Tensor, away: Tensor | None, words: str) -> np.ndarray:
        """Losses after kicks of these lengths [A, C]: of both sides of a kick the lower one."""
        moved = kicks(at, length, self.controls, self.generator, away)
        both = torch.stack([moved, 2 * at.unsqueeze(1) - moved], 2).flatten(0, 2)
        members = torch.arange(len(at), device=at.device).repeat_interleave(2 * self.controls)
        ended, _ = descend_stack(stack.of(members), both, self.way, self._told(words))
        lower = torch.nan_to_num(ended.value, nan=torch.inf).reshape(len(at), self.controls, 2).amin(2)
        return lower.cpu().numpy()

    def _channels(self, stack: Stack, theta: Tensor, paths: list[Trajectory]) -> list[bool]:
        made = certify_stack(stack, theta, halves=[p.second_half for p in paths])
        return [c.verdict == "channel" for c in made]

    def _told(self, words: str) -> Progress | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda stage, done, total: progress(f"{words}, {stage}", done, total)
