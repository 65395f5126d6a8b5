"""Ways out: the loss along a direction, the best step on either side, and where descents from there end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.points.certificate import Certificate, from_dict
from landscape.points.certify import certify_stack
from landscape.points.descent import Trajectory, Way, descend_stack
from landscape.points.descent_large import certify_large, descend_large, move
from landscape.problem.objective import Objective
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.runtime.progress import Progress
from landscape.stack.stack import Stack

# Dense Newton steps up to this many parameters.
DENSE_STEPS = 1000
# Lengths that a step is sought among, relative to max(1, ‖θ‖); then refined around the best.
SHORTEST, LONGEST, LENGTHS, REFINED = 1e-6, 3.0, 40, 30
# Parameters of all points of a line at a time.
MOST_NUMBERS = 2**24
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Sides:
    """The best step on either side of a point along a direction; side 0 is +, side 1 is −.

    Attributes:
        step: [A, 2], signed lengths. value: L there [A, 2].
    """

    step: Tensor
    value: Tensor


@dataclass(frozen=True)
class Followed:
    """Descents from starts, one a row: certificates and trajectories in order; θ [A, P] and L [A] reached."""

    theta: Tensor
    value: Tensor
    certificates: list[Certificate]
    trajectories: list[Trajectory]


def profile(stack: Stack, theta: Tensor, direction: Tensor, offsets: Tensor) -> Tensor:
    """L(θ + t d) [A, T] for rows θ [A, P], unit directions d [A, P] and offsets t [A, T]."""
    members = len(offsets)
    size = max(1, MOST_NUMBERS // max(1, members * theta.shape[1]))
    found = []
    for part in torch.split(offsets, size, dim=1):
        points = theta.unsqueeze(1) + part.unsqueeze(2) * direction.unsqueeze(1)
        rows = torch.arange(members, device=theta.device).repeat_interleave(part.shape[1])
        found.append(stack.values(points.flatten(0, 1), rows).reshape(members, -1))
    return torch.cat(found, dim=1)


def best_steps(stack: Stack, theta: Tensor, direction: Tensor) -> Sides:
    """The lowest point along ±d [A, P] among geometric lengths, refined by golden section."""
    size = theta.norm(dim=1).clamp(min=1)
    lengths = torch.logspace(0, 1, LENGTHS, dtype=theta.dtype, device=theta.device)
    exponents = (lengths - 1) / 9  # 0 … 1
    grid = SHORTEST * (LONGEST / SHORTEST) ** exponents
    steps, values = [], []
    for sign in (1.0, -1.0):
        offsets = sign * size.unsqueeze(1) * grid
        found = profile(stack, theta, direction, offsets)
        found = torch.where(torch.isfinite(found), found, torch.inf)
        best = found.argmin(1)
        low, high = (best - 1).clamp(min=0), (best + 1).clamp(max=LENGTHS - 1)
        bracket = (offsets.gather(1, low.unsqueeze(1)), offsets.gather(1, high.unsqueeze(1)))
        step, value = _golden(stack, theta, direction, *bracket)
        coarse = found.gather(1, best.unsqueeze(1)).squeeze(1)
        better = value < coarse
        steps.append(torch.where(better, step, offsets.gather(1, best.unsqueeze(1)).squeeze(1)))
        values.append(torch.where(better, value, coarse))
    return Sides(torch.stack(steps, 1), torch.stack(values, 1))


def _golden(stack: Stack, theta: Tensor, direction: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Golden-section search (Kiefer 1953) between a and b [A, 1]: the step [A] and L there."""
    for _ in range(REFINED):
        inner = torch.cat([b - GOLDEN * (b - a), a + GOLDEN * (b - a)], dim=1)
        values = profile(stack, theta, direction, inner)
        left = (values[:, 0] < values[:, 1]).unsqueeze(1)
        a, b = torch.where(left, a, inner[:, :1]), torch.where(left, inner[:, 1:], b)
    middle = (a + b) / 2
    return middle.squeeze(1), profile(stack, theta, direction, middle).squeeze(1)


def kicks(theta: Tensor, length: Tensor, count: int, generator: torch.Generator, away: Tensor | None = None) -> Tensor:
    """Random points [A, count, P] at distances `length` [A] from θ [A, P], orthogonal to unit vectors `away` [A, P]."""
    drawn = torch.randn(len(theta), count, theta.shape[1], generator=generator, dtype=torch.float64).to(theta)
    if away is not None:
        along = (drawn * away.unsqueeze(1)).sum(2, keepdim=True)
        drawn = drawn - along * away.unsqueeze(1)
    drawn = drawn / drawn.norm(dim=2, keepdim=True)
    moved: Tensor = theta.unsqueeze(1) + length.abs()[:, None, None] * drawn
    return moved


def follow(
    stack: Stack,
    starts: Tensor,
    rows: Tensor,
    way: Way,
    tau: float,
    progress: Progress | None = None,
    full_data: bool = True,
) -> Followed:
    """Descend from every start [A, P] of the members `rows` [A], and certify where that ends."""
    part = stack.of(rows)
    ended, paths = descend_stack(part, starts, way, progress)
    certificates = certify_stack(part, ended.theta, tau=tau, full_data=full_data, halves=[p.second_half for p in paths])
    return Followed(ended.theta, ended.value, certificates, paths)


def ways_out(
    stack: Stack, theta: Tensor, direction: Tensor, way: Way, tau: float, progress: Progress | None = None
) -> tuple[Followed, Tensor]:
    """Descents from the best step on either side of θ [A, P] along ±d [A, P]: rows 2a and 2a + 1 of what is followed,
    and the length [A] of the better step."""
    sides = best_steps(stack, theta, direction)
    starts = (theta.unsqueeze(1) + sides.step.unsqueeze(2) * direction.unsqueeze(1)).flatten(0, 1)
    rows = torch.arange(len(theta), device=theta.device).repeat_interleave(2)
    ended = follow(stack, starts, rows, way, tau, progress)
    return ended, sides.step.abs().gather(1, sides.value.argmin(1, keepdim=True)).squeeze(1)


def kicked(
    stack: Stack,
    theta: Tensor,
    length: Tensor,
    count: int,
    generator: torch.Generator,
    way: Way,
    away: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Losses [A, count] reached from random kicks of θ [A, P], see `kicks`; infinite where descents diverge.

    A kick is tried to both its sides and the lower end counts, since a way out has two sides as well.
    """
    moved = kicks(theta, length, count, generator, away)
    both = torch.stack([moved, 2 * theta.unsqueeze(1) - moved], 2).flatten(0, 2)
    rows = torch.arange(len(theta), device=theta.device).repeat_interleave(2 * count)
    ended, _ = descend_stack(stack.of(rows), both, way, progress)
    return torch.nan_to_num(ended.value, nan=torch.inf).reshape(len(theta), count, 2).amin(2)


def follow_large(
    stack: Stack,
    objective: Objective,
    starts: Tensor,
    way: Way,
    tau: float,
    progress: Progress | None = None,
    pieces: Pieces = FORGETFUL,
    name: str = "descents",
    **limits: Any,
) -> Followed:
    """As `follow` for one network without dense Hessians: one start after the other, by L-BFGS and Newton–Krylov.

    Args:
        objective: of the network; its model is moved. pieces: where descents are kept, under `name`.
        limits: seed, memory, max_products and full_data of `certify_large`.
    """
    certificates, paths, ends = [], [], []
    for number, start in enumerate(starts):
        label, memory = f"{name} {number}", limits["memory"]
        move(objective, start)
        path = descend_large(objective, way, "lbfgs", memory, progress, pieces, f"{label} lbfgs")[1]
        path.follow(descend_large(objective, way, "newton-krylov", memory, progress, pieces, f"{label} newton")[1])
        aside = pieces.get(f"{label} certificate")
        if aside is None:
            certificate, _ = certify_large(
                objective, loss_name=stack.loss_name, tau=tau, half=path.second_half, progress=progress, **limits
            )
            pieces.put(f"{label} certificate", certificate.as_dict())
        else:
            certificate = from_dict(aside)
        certificates.append(certificate)
        paths.append(path)
        ends.append(objective.point())
    values = torch.tensor([c.loss for c in certificates], dtype=starts.dtype, device=starts.device)
    return Followed(torch.stack(ends), values, certificates, paths)
