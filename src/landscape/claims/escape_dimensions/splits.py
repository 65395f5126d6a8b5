"""Protocol A: neurons of many narrow minima split, what opens followed, and random kicks of the same length.

As `landscape widen --follow --controls` does for one network, for all minima of one architecture in one stack, those of
several teachers too: the descents of small networks cost launches, and the last of them runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape.points.descent import Way
from landscape.points.settings import TAU as VERDICT_TAU
from landscape.points.ways_out import kicked, ways_out
from landscape.problem.layers import Hidden
from landscape.problem.objective import Objective, build_objective
from landscape.problem.problem import Problem
from landscape.runtime.progress import Progress
from landscape.stack.build import build_stack
from landscape.stack.hessians import dense_hessians, inertia
from landscape.stack.stack import Stack
from landscape.widening.networks import Split, find_hidden, widened, width_of
from landscape.widening.theory import foretell, inner_hessians

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
        problems: networks of one architecture at minima, on the same inputs. controls: kicks of each split.
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
            TAU * highest[[every[k][0] for k in rows]],
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
    return replace(problem, model=model, data=objective.batches)


@dataclass
class _Followed:
    """The descents of splits with as many copies."""

    stack: Stack
    theta: Tensor
    way: Way
    controls: int
    generator: torch.Generator
    progress: Progress | None
    floor: Tensor

    def run(self, found: Opened, rows: np.ndarray, narrow: Stack, points: Tensor) -> None:
        """Into `found`, at its `rows`. narrow, points: the networks that were split."""
        signs = inertia(self.stack, self.theta, TAU, self.progress, self.floor)
        found.found[rows] = signs.negative.cpu().numpy()
        open_ = torch.nonzero(signs.negative).squeeze(1)
        if not len(open_):
            return
        at, along, places = self.theta[open_], signs.vectors[open_], rows[open_.cpu().numpy()]
        part = self.stack.of(open_)
        ends, length = ways_out(part, at, along, self.way, VERDICT_TAU, self._told("ways out"))
        sides = torch.nan_to_num(ends.value, nan=torch.inf).reshape(-1, 2)
        found.reached[places] = sides.amin(1).cpu().numpy()
        lower = (2 * torch.arange(len(open_), device=sides.device) + sides.argmin(1)).tolist()
        found.channel[places] = [ends.certificates[k].verdict == "channel" for k in lower]
        if not self.controls:
            return
        found.wide[places] = self._kicked(part, at, length, along, "kicks, wide")
        owners = torch.as_tensor(found.minimum[places], device=self.theta.device)
        found.narrow[places] = self._kicked(narrow.of(owners), points[owners], length, None, "kicks, narrow")

    def _kicked(self, stack: Stack, at: Tensor, length: Tensor, away: Tensor | None, words: str) -> np.ndarray:
        made = kicked(stack, at, length, self.controls, self.generator, self.way, away, self._told(words))
        return made.cpu().numpy()

    def _told(self, words: str) -> Progress | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda stage, done, total: progress(f"{words}, {stage}", done, total)
