"""Descents of a whole stack to certified points: which method follows which, and the trajectory of every member."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.optim.damped import CONVERGED, REASONS, RUNAWAY, STEPS, Descent, Limits, Local, Method, damped_descent
from landscape.optim.flow import Flow, gradient_flow
from landscape.optim.levenberg_marquardt import levenberg_marquardt
from landscape.optim.newton import escape_direction, gradient_norm_newton, saddle_free_newton
from landscape.points.certificate import SecondHalf
from landscape.points.certify import loss_floor, vanishing
from landscape.points.gradient_scale import part_gradients
from landscape.points.settings import TAU
from landscape.runtime.progress import Progress
from landscape.stack.stack import Stack

# Gauss–Newton steps go on while they gain this share of the loss in this many iterations.
WINDOW, PROGRESS = 20, 0.2
# A flow ends where max |∇L| is this share of what parts of the data pull at its start.
FLOWN = 1e-8
# Newton steps that gain less than this in this many iterations run along a channel or a plateau.
LONG_WINDOW, CREEPING = 200, 0.01
# Times that a saddle is left.
ESCAPES = 10
# ‖θ‖ beyond this many times its start (at least 1) has run away.
RUNAWAY_NORM = 1e4
# A gradient counts beside what parts of the data pull. Where those pull less at the end than at the start (towards
# interpolation), a descent goes on until the gradient is below this share of it, this many times at most.
SETTLED, ROUNDS = 1e-9, 3
# Losses of probabilities vanish at infinity only: a descent does not follow them below this many nats, where second
# derivatives still have digits that tell.
EMPTY = 1e-10
# Points of a trajectory that keep θ, at most.
SNAPSHOTS = 24
# Points of a descent from which on its second half says where it is heading.
LONG = 32

# Called as (stage, members done, members).


@dataclass
class Trajectory:
    """What a member went through: one entry an iteration, and θ at a few of them.

    Attributes:
        loss, gradient_inf, norm: L, max |∇L| and ‖θ‖. kept, points: iterations whose θ is kept, and those θ.
        saved: θ at the iterations that were asked for.
    """

    loss: list[float] = field(default_factory=list)
    gradient_inf: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    saved: dict[int, Tensor] = field(default_factory=dict)

    def add(self, loss: float, gradient_inf: float, norm: float, theta: Tensor | None) -> None:
        """One more iteration; θ is kept at 0, 1, 2, 4, 8 … and every second of them goes when there are too many."""
        number = len(self.loss)
        self.loss.append(loss)
        self.gradient_inf.append(gradient_inf)
        self.norm.append(norm)
        if theta is not None and (number < 2 or number >= 1.25 * self.kept[-1]):
            self.keep(number, theta)
            if len(self.kept) > SNAPSHOTS:
                del self.kept[1:-1:2], self.points[1:-1:2]

    def keep(self, number: int, theta: Tensor) -> None:
        """θ of an iteration, if it is not kept already."""
        if not self.kept or self.kept[-1] != number:
            self.kept.append(number)
            self.points.append(theta.detach().cpu().numpy().copy())

    def follow(self, later: Trajectory) -> None:
        """Append a trajectory that starts where this one ends."""
        offset = len(self.loss) - 1
        self.loss += later.loss[1:]
        self.gradient_inf += later.gradient_inf[1:]
        self.norm += later.norm[1:]
        for number, point in zip(later.kept, later.points, strict=True):
            if number > 0:
                self.kept.append(number + offset)
                self.points.append(point)

    def as_plain(self) -> dict[str, Any]:
        """Plain types and tensors; `from_plain` makes it again."""
        points = [torch.from_numpy(point) for point in self.points]
        lists = {name: list(getattr(self, name)) for name in ("loss", "gradient_inf", "norm", "kept")}
        return {**lists, "points": points}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Trajectory:
        """The trajectory of `as_plain`."""
        loss, gradient_inf, norm, kept = (list(values[name]) for name in ("loss", "gradient_inf", "norm", "kept"))
        return cls(loss, gradient_inf, norm, kept, [point.numpy() for point in values["points"]])

    @property
    def second_half(self) -> SecondHalf:
        """What happened to ‖θ‖ and L over the second half; NaN for fewer than `LONG` points: first steps are large."""
        if len(self.norm) < LONG:
            return SecondHalf()
        middle = len(self.norm) // 2
        norm, loss = self.norm[middle], self.loss[middle]
        growth = self.norm[-1] / norm - 1 if norm > 0 else math.nan
        return SecondHalf(growth, 1 - self.loss[-1] / loss if loss > 0 else math.nan)


@dataclass(frozen=True)
class Way:
    """How to descend.

    Attributes:
        to: "minimum" (saddles are left) or "critical" (whatever index is nearest).
        steps: iterations of each member, at most. gradient: aim for max |∇L|, as a share of what parts of the data
            pull.
        tau: eigenvalues below −τ max |λ| are ways out of a saddle.
        gauss_newton: whether to begin with Gauss–Newton steps, for the losses that have them.
        target: stop at this loss. save: iterations whose θ is kept whatever happens.
        keep_points: whether trajectories keep θ elsewhere as well.
        patience: Newton iterations that may gain less than 1 % before they count as creeping.
    """

    to: str = "minimum"
    steps: int = 1000
    gradient: float = 1e-13
    tau: float = TAU
    gauss_newton: bool = True
    target: float = 0.0
    save: tuple[int, ...] = ()
    keep_points: bool = True
    patience: int = LONG_WINDOW


def descend_stack(
    stack: Stack, theta: Tensor, way: Way, progress: Progress | None = None
) -> tuple[Descent, list[Trajectory]]:
    """From every row of θ [S, P] to a critical point or minimum; trajectories in the order of the members.

    To a minimum: Gauss–Newton steps with Levenberg–Marquardt damping while they gain, for the losses that have
    them, then saddle-free Newton; a saddle is left along its most negative direction, on the side that is lower.
    """
    return _Descending(stack, theta, way, progress).run()


def flow_stack(
    stack: Stack, theta: Tensor, way: Way, progress: Progress | None = None
) -> tuple[Descent, list[Trajectory]]:
    """As `descend_stack`, by gradient flow from every row of θ, then Newton steps for the last digits."""
    arrived = theta.clone()
    scale = part_gradients(stack, theta)
    flows = []
    for i in range(len(theta)):
        row = torch.tensor([i], device=theta.device)

        def gradient(x: np.ndarray, row: Tensor = row) -> np.ndarray:
            return stack.values_and_gradients(_row(x, theta), row)[1][0].cpu().numpy()

        def hessian(x: np.ndarray, row: Tensor = row) -> np.ndarray:
            return stack.hessians(_row(x, theta), row)[0].cpu().numpy()

        flow = gradient_flow(gradient, hessian, theta[i].cpu().numpy(), tolerance=FLOWN * float(scale[i]))
        flows.append(flow)
        arrived[i] = _row(flow.theta[-1], theta)[0]
        if progress is not None:
            progress("gradient flow", i + 1, len(theta))
    ended, paths = descend_stack(stack, arrived, replace(way, gauss_newton=False), progress)
    return ended, [_after(stack, flow, i, path, way) for i, (flow, path) in enumerate(zip(flows, paths, strict=True))]


def _after(stack: Stack, flow: Flow, member: int, later: Trajectory, way: Way) -> Trajectory:
    """The trajectory of a flow and of the Newton steps behind it."""
    whole = Trajectory()
    points = torch.as_tensor(flow.theta).to(device=stack.device, dtype=stack.dtype)
    for point in points:
        value, slope = stack.values_and_gradients(point.unsqueeze(0), torch.tensor([member], device=stack.device))
        kept = point if way.keep_points else None
        whole.add(float(value), float(slope.abs().max()), float(point.norm()), kept)
    whole.follow(later)
    return whole


def _row(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=like.dtype).to(like.device).unsqueeze(0)


class _Descending:
    def __init__(self, stack: Stack, theta: Tensor, way: Way, progress: Progress | None) -> None:
        self.stack, self.way, self.progress = stack, way, progress
        self.theta = theta.clone()
        self.trajectories = [Trajectory() for _ in range(len(theta))]
        self.norms = RUNAWAY_NORM * theta.norm(dim=1).clamp(min=1)
        count = len(theta)
        floor = loss_floor(stack, torch.arange(count, device=theta.device)).clamp(min=way.target)
        if vanishing(stack):
            floor = floor.clamp(min=EMPTY)
        self.floor = torch.where(floor > 0, floor, -math.inf).to(theta.dtype)
        self.limits = Limits(gradient=way.gradient, steps=way.steps)
        self.value, self.gradient_inf = theta.new_full((count,), math.nan), theta.new_full((count,), math.nan)
        self.steps = torch.zeros(count, dtype=torch.long, device=theta.device)
        self.reason = torch.zeros_like(self.steps)

    def run(self) -> tuple[Descent, list[Trajectory]]:
        everyone = torch.arange(len(self.theta), device=self.theta.device)
        if self.way.steps < 1:
            self._look(everyone)
        elif self.way.to == "critical":
            self._phase(everyone, gradient_norm_newton(self._gradients, self.stack.hessians), self.limits)
        else:
            self._to_minima(everyone)
        ended = Descent(self.theta, self.value, self.gradient_inf, self.steps, self.reason)
        for i, trajectory in enumerate(self.trajectories):
            if self.way.keep_points and trajectory.loss:
                trajectory.keep(len(trajectory.loss) - 1, self.theta[i])
        return ended, self.trajectories

    def _look(self, rows: Tensor) -> None:
        """Write down where the members are, without a step."""
        value, gradient = self.stack.values_and_gradients(self.theta, rows)
        self.value, self.gradient_inf = value, gradient.abs().amax(1)
        self.reason[:] = STEPS
        self._observe(0, rows, self.theta, {"value": value, "gradient": gradient})

    def _to_minima(self, rows: Tensor) -> None:
        stack = self.stack
        if stack.least_squares_like and self.way.gauss_newton:
            gaining = replace(self.limits, window=WINDOW, progress=PROGRESS)
            self._phase(rows, levenberg_marquardt(stack.values, stack.gauss_newton), gaining)
            # Also those that converged: a saddle attracts Gauss–Newton steps as a minimum does.
            rows = rows[self._open(rows) | (self.reason[rows] == CONVERGED)]
        creeping = replace(self.limits, start=1e-6, window=self.way.patience, progress=CREEPING)
        newton = saddle_free_newton(stack.values, self._gradients, stack.hessians)
        for escape in range(ESCAPES + 1):
            self._phase(rows, newton, creeping)
            settled = self.reason[rows] != STEPS
            rows = rows[settled & (self.reason[rows] != RUNAWAY) & (self.value[rows] > self.floor[rows])]
            if escape < ESCAPES:
                rows = self._off_saddles(rows, newton.expand(self.theta[rows], rows)) if len(rows) else rows
            if not len(rows):
                return

    def _open(self, rows: Tensor) -> Tensor:
        """Members that another method may take further."""
        names = [REASONS[r] for r in self.reason[rows].tolist()]
        return torch.tensor([n in ("slow", "stalled", "steps") for n in names], device=rows.device)

    def _off_saddles(self, rows: Tensor, local: Local) -> Tensor:
        """Move the members that sit on a saddle down its most negative direction; their numbers."""
        saddle, direction = escape_direction(local, self.way.tau)
        saddle &= self.steps[rows] < self.way.steps
        rows, direction = rows[saddle], direction[saddle]
        if not len(rows):
            return rows
        here, length = self.value[rows], self.theta[rows].norm(dim=1).clamp(min=1)
        best, best_value = self.theta[rows].clone(), here.clone()
        for power in range(-6, 1):
            for sign in (-1.0, 1.0):
                trial = self.theta[rows] + sign * (10.0**power * length).unsqueeze(1) * direction
                value = self.stack.values(trial, rows)
                lower = value < best_value
                best[lower], best_value[lower] = trial[lower], value[lower]
        moved = best_value < here
        self.theta[rows[moved]] = best[moved]
        return rows[moved]

    def _gradients(self, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.stack.values_and_gradients(theta, rows)

    def _phase(self, rows: Tensor, method: Method, limits: Limits) -> None:
        """One method on some members, from where they are, within the iterations they have left."""
        if not len(rows):
            return
        scale = part_gradients(self.stack, self.theta[rows], rows)
        for _ in range(ROUNDS):
            left = self.way.steps - self.steps[rows]
            rows, left, scale = rows[left > 0], left[left > 0], scale[left > 0]
            if not len(rows):
                return
            ended = damped_descent(
                self.theta[rows],
                method,
                replace(limits, steps=left, scale=scale, floor=self.floor[rows], norm=self.norms[rows]),
                self._observe,
                rows,
            )
            self.theta[rows], self.value[rows], self.gradient_inf[rows] = ended.theta, ended.value, ended.gradient_inf
            self.steps[rows] += ended.steps
            self.reason[rows] = ended.reason
            rows, scale = self._unsettled(rows, scale)

    def _unsettled(self, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Members that converged beside the pull of the data at their start, not beside that at their end; and that."""
        open_ = (self.reason[rows] == CONVERGED) & (self.value[rows] > self.floor[rows]) & (self.gradient_inf[rows] > 0)
        rows, scale = rows[open_], scale[open_]
        if not len(rows):
            return rows, scale
        now = part_gradients(self.stack, self.theta[rows], rows)
        again = self.gradient_inf[rows] > SETTLED * now
        return rows[again], now[again]

    def _observe(self, iteration: int, rows: Tensor, theta: Tensor, local: Local) -> None:
        columns = torch.stack([local["value"], theta.norm(dim=1), local["gradient"].abs().amax(1)])
        loss, norm, slope = columns.tolist()
        points = theta.cpu() if self.way.keep_points else theta
        for k, i in enumerate(rows.tolist()):
            if iteration == 0 and self.trajectories[i].loss and self.trajectories[i].loss[-1] == loss[k]:
                continue  # where the phase before this one ended
            self.trajectories[i].add(loss[k], slope[k], norm[k], points[k] if self.way.keep_points else None)
            if self.way.save and (number := len(self.trajectories[i].loss) - 1) in self.way.save:
                self.trajectories[i].saved[number] = theta[k].clone()
        if self.progress is not None:
            self.progress(f"iteration {iteration}", len(self.theta) - len(rows), len(self.theta))
