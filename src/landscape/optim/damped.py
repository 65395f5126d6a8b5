"""The loop that the damped second-order methods share: many members at once, each with a damping of its own.

A member takes a step, keeps it if the merit falls as the local model says, and its damping follows Nielsen (1999).
Members that are done leave the stack; nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# What is known at a point, by name, one row a member: "value" [A], "merit" [A], "gradient" [A, P] and whatever
# the method's steps are made of.
Local = dict[str, Tensor]

# Why a member stopped.
RUNNING, CONVERGED, STALLED, STEPS, RUNAWAY, SLOW, FAILED = range(7)
REASONS = ("running", "converged", "stalled", "steps", "runaway", "slow", "failed")

# Called with (iteration, rows [A], θ [A, P], local) before every step.
Observe = Callable[[int, Tensor, Tensor, Local], None]


@dataclass(frozen=True)
class Method:
    """A damped method.

    Attributes:
        merit: (θ [A, P], rows [A]) -> [A], what must fall; rows are the members' numbers.
        expand: (θ, rows) -> `Local`.
        step: (local, damping [A]) -> step [A, P] and the decrease of the merit that the model predicts [A].
        scale: local -> [A], the size of the matrix that is damped; damping is relative to it at the start.
    """

    merit: Callable[[Tensor, Tensor], Tensor]
    expand: Callable[[Tensor, Tensor], Local]
    step: Callable[[Local, Tensor], tuple[Tensor, Tensor]]
    scale: Callable[[Local], Tensor]


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        gradient: converged at max |∇L| <= gradient · scale.
        scale: size of gradients that counts as one; one number, or one for each member [S].
        floor: converged at L <= floor: no lower value exists (interpolation of a squared error); one number, or one for
            each member [S].
        steps: iterations, at most; rejected steps count; one number, or one for each member [S].
        norm: a member whose ‖θ‖ exceeds this has run away; one number, or one for each member [S].
        window, progress: slow when the merit fell by less than the share `progress` in `window` iterations; 0: never.
        start: damping of the first step, relative to `Method.scale`.
    """

    gradient: float = 1e-12
    scale: float | Tensor = 1.0
    floor: float | Tensor = float("-inf")
    steps: int | Tensor = 200
    norm: float | Tensor = float("inf")
    window: int = 0
    progress: float = 0.1
    start: float = 1e-3


@dataclass(frozen=True)
class Descent:
    """Where each of S members ended.

    Attributes:
        theta: [S, P]. value, gradient_inf: L and max |∇L| there [S].
        steps: iterations taken [S]. reason: indices into `REASONS` [S].
    """

    theta: Tensor
    value: Tensor
    gradient_inf: Tensor
    steps: Tensor
    reason: Tensor


def damped_descent(
    theta: Tensor, method: Method, limits: Limits, observe: Observe | None = None, rows: Tensor | None = None
) -> Descent:
    """Run `method` from every row of θ [S, P] until each member meets one of the limits.

    Args:
        rows: the members' numbers for the method's callables; 0 … S−1 by default.
    """
    run = _Run(theta.clone(), method, limits, torch.arange(len(theta), device=theta.device) if rows is None else rows)
    for iteration in range(int(torch.as_tensor(limits.steps).max()) + 1):
        if observe is not None and len(run.active):
            observe(iteration, run.rows[run.active], run.theta[run.active], run.local)
        run.retire(iteration)
        if not len(run.active):
            break
        run.advance()
    return run.ended


class _Run:
    """The state of a descent: results of all members, and the local models of those that are still active."""

    def __init__(self, theta: Tensor, method: Method, limits: Limits, rows: Tensor) -> None:
        self.theta, self.method, self.limits, self.rows = theta, method, limits, rows
        count = len(theta)
        self.active = torch.arange(count, device=theta.device)
        self.local = method.expand(theta, rows) if count else {}
        long = torch.zeros(count, dtype=torch.long, device=theta.device)
        self.value, self.gradient_inf = theta.new_full((count,), torch.nan), theta.new_full((count,), torch.nan)
        self.steps, self.reason = long.clone(), long.clone()
        self.scale = method.scale(self.local) if count else theta.new_zeros(0)
        self.damping = limits.start * self.scale
        self.growth = torch.full_like(self.damping, 2.0)
        self.stuck = torch.zeros_like(self.active, dtype=torch.bool)
        self.past: list[Tensor] = []
        self.budget = torch.as_tensor(limits.steps, device=theta.device).expand(count)
        self.aim = limits.gradient * torch.as_tensor(limits.scale, dtype=theta.dtype, device=theta.device).expand(count)
        self.floor = torch.as_tensor(limits.floor, dtype=theta.dtype, device=theta.device).expand(count)
        self.largest = torch.as_tensor(limits.norm, dtype=theta.dtype, device=theta.device).expand(count)

    @property
    def ended(self) -> Descent:
        return Descent(self.theta, self.value, self.gradient_inf, self.steps, self.reason)

    def retire(self, iteration: int) -> None:
        """Write down the members that are done, and keep the others."""
        local = self.local
        value, slope = local["value"], local["gradient"].abs().amax(1)
        norm = self.theta[self.active].norm(dim=1)
        reason = torch.zeros_like(self.active)
        for code, condition in (
            (STEPS, iteration >= self.budget[self.active]),
            (SLOW, self._slow()),
            (RUNAWAY, norm > self.largest[self.active]),
            (STALLED, self.stuck),
            (CONVERGED, (slope <= self.aim[self.active]) | (value <= self.floor[self.active])),
            (FAILED, ~(torch.isfinite(value) & torch.isfinite(slope))),
        ):
            reason = torch.where(condition, code, reason)
        done = reason > RUNNING
        if not bool(done.any()):
            return
        # Numbers of rows rather than masks: a GPU has to be waited for wherever a mask picks.
        over, keep = done.nonzero().squeeze(1), (~done).nonzero().squeeze(1)
        gone = self.active[over]
        self.value[gone], self.gradient_inf[gone] = value[over], slope[over]
        self.steps[gone], self.reason[gone] = iteration, reason[over]
        self.active, self.local = self.active[keep], {k: v[keep] for k, v in local.items()}
        self.damping, self.growth, self.stuck = self.damping[keep], self.growth[keep], self.stuck[keep]
        self.scale = self.scale[keep]
        self.past = [p[keep] for p in self.past]

    def _slow(self) -> Tensor:
        window = self.limits.window
        if not window:
            return torch.zeros_like(self.stuck)
        self.past.append(self.local["merit"])
        if len(self.past) <= window:
            return torch.zeros_like(self.stuck)
        before = self.past.pop(0)
        return before - self.local["merit"] < self.limits.progress * before.abs()

    def advance(self) -> None:
        """One step of every active member."""
        local, here = self.local, self.theta[self.active]
        step, predicted = self.method.step(local, self.damping)
        trial = here + step
        merit = self.method.merit(trial, self.rows[self.active])
        eps = torch.finfo(here.dtype).eps
        rounding = 32 * eps * local["merit"].abs()
        ratio = (local["merit"] - merit) / predicted.clamp(min=torch.finfo(here.dtype).tiny)
        # Where the predicted decrease drowns in rounding, the gradient decides below.
        blind = (predicted <= rounding) & (merit <= local["merit"] + rounding)
        good = torch.isfinite(merit) & ((ratio > 1e-3) & (predicted > 0) | blind)
        if bool(good.any()):
            good = self._accept(trial, good, blind)
        self._adapt(good, ratio, blind)
        tiny = step.norm(dim=1) <= 4 * eps * here.norm(dim=1).clamp(min=eps)
        self.stuck = ~good & (tiny | (self.damping > self.scale / eps) | ~torch.isfinite(self.damping))

    def _accept(self, trial: Tensor, good: Tensor, blind: Tensor) -> Tensor:
        """Move to the good trial points; of the blind ones, to those whose gradient is smaller."""
        index = good.nonzero().squeeze(1)
        fresh = self.method.expand(trial[index], self.rows[self.active[index]])
        slope = fresh["gradient"].abs().amax(1)
        better = ~blind[index] | (slope < 0.9 * self.local["gradient"][index].abs().amax(1))
        better &= torch.isfinite(slope)
        chosen = better.nonzero().squeeze(1)
        index = index[chosen]
        for name, values in fresh.items():
            self.local[name] = self.local[name].index_copy(0, index, values[chosen])
        self.theta[self.active[index]] = trial[index]
        accepted = torch.zeros_like(good)
        accepted[index] = True
        return accepted

    def _adapt(self, good: Tensor, ratio: Tensor, blind: Tensor) -> None:
        """Nielsen's rule: the better the prediction, the less damping; rejected steps raise it ever faster."""
        shrink = (1 - (2 * ratio.clamp(-1, 1) - 1) ** 3).clamp(0.1, 2.0)
        shrink = torch.where(blind, 0.1, shrink)
        self.damping = torch.where(good, self.damping * shrink, self.damping * self.growth)
        floor = torch.finfo(self.damping.dtype).eps * self.scale * 1e-4
        self.damping = torch.maximum(self.damping, floor)
        self.growth = torch.where(good, 2.0, self.growth * 2)
