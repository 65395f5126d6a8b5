"""How large a gradient is beside what single parts of the data pull: a measure without units.

At a critical point the gradients of the samples cancel. How well they do is the same number in all units of the loss,
of the data and of the parameters, and whatever constant is added to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from landscape.problem.batches import length_of, take
from landscape.problem.graph import gradients
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import strict_arithmetic
from landscape.stack.stack import Stack

# The data are cut into this many parts, or into single samples where there are fewer.
PARTS = 16
# Gradients of parts that add up to that of the whole, to this share of their sizes, are those of a sum over samples.
ADDITIVE = 1e-6
# Points [m, P] and numbers of their members [m] -> ∇L there [m, P].
Slopes = Callable[[Tensor, Tensor], Tensor]
# Points a unit in the last place away, where the gradient is taken again; for jumps, this many units to both sides.
SHAKEN, ASIDE = 2, 4.0
# Rounding above this share of the pull would decide; where it is that many times what it is beside the point, at this
# distance relative to ‖θ‖ along this many directions, the gradient jumps there.
DECIDES, JUMP, BESIDE, DIRECTIONS = 1e-9, 100.0, 1e-6, 3


def part_gradients(stack: Stack, theta: Tensor, rows: Tensor | None = None) -> Tensor:
    """What parts of the data pull [A]: √(mean_j ‖∇L_j‖² + ‖weight_decay θ‖²), L_j the loss over the j-th of up to 16
    equal parts of the samples, times their number; of single batches where a loss is no sum over samples."""
    index = torch.arange(len(theta), device=theta.device) if rows is None else rows
    lengths = [length_of(b) for b in stack.batches]
    decay = (stack.weight_decay * theta).square().sum(1)
    if min(lengths) > 0:
        try:
            found = _squares(_parts(stack, lengths), theta, index)
        except Exception:  # the user's loss does not take fewer samples than a batch
            found = None
        if found is not None and _adds_up(stack, theta, index, *found):
            return (found[0] + decay).sqrt()
    whole = [replace(stack, batches=[b], count=stack.count, weight_decay=0.0) for b in stack.batches]
    return (_squares(whole, theta, index)[0] + decay).sqrt()


def _squares(parts: Sequence[Stack], theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K Σ_j ‖g_j‖² [A], Σ_j g_j [A, P] and Σ_j ‖g_j‖ [A] of K parts."""
    square, size, total = theta.new_zeros(len(theta)), theta.new_zeros(len(theta)), torch.zeros_like(theta)
    for part in parts:
        slope = part.values_and_gradients(theta, rows)[1]
        total += slope
        size += slope.norm(dim=1)
        square += slope.square().sum(1)
    return len(parts) * square, total, size


def _adds_up(stack: Stack, theta: Tensor, rows: Tensor, square: Tensor, total: Tensor, size: Tensor) -> bool:
    """Whether the parts' gradients are those of a loss that is a sum over samples; built-in losses are."""
    if stack.loss_name is not None:
        return True
    whole = replace(stack, weight_decay=0.0).values_and_gradients(theta, rows)[1]
    return bool(((whole - total).norm(dim=1) <= ADDITIVE * size).all())


def _parts(stack: Stack, lengths: Sequence[int]) -> list[Stack]:
    """Stacks over equal parts of the samples, in their order; their gradients add up to that of the whole."""
    found = []
    for pieces in _pieces(lengths):
        batches: list[Batch] = []
        others = dict(stack.others)
        for k, start, stop in pieces:
            batch = stack.batches[k]
            if stack.own:
                name = batch[1]
                others[name] = stack.others[name][:, start:stop]
                batches.append((batch[0][start:stop], name))
            else:
                batches.append(take(batch, slice(start, stop)))
        found.append(replace(stack, batches=batches, others=others, weight_decay=0.0))
    return found


def _pieces(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """The place of every part: (batch, first sample, behind the last one); up to `PARTS` parts, whose sizes differ by
    one."""
    total = sum(lengths)
    count = min(PARTS, total)
    edges = [total * j // count for j in range(count + 1)]
    offsets = [0]
    for n in lengths:
        offsets.append(offsets[-1] + n)
    for low, high in pairwise(edges):
        yield [
            (k, max(low, offsets[k]) - offsets[k], min(high, offsets[k + 1]) - offsets[k])
            for k in range(len(lengths))
            if max(low, offsets[k]) < min(high, offsets[k + 1])
        ]


def part_gradients_of(objective: Objective) -> float:
    """As `part_gradients`, at the point of one network that may be too large for stacks."""
    lengths = [length_of(b) for b in objective.batches]
    decay = objective.weight_decay * float(objective.point().norm())
    with strict_arithmetic():
        if min(lengths) > 0:
            try:
                parts = [
                    [take(objective.batches[k], slice(start, stop)) for k, start, stop in pieces]
                    for pieces in _pieces(lengths)
                ]
                found = _sums(objective, parts)
            except Exception:  # as above
                found = None
            if found is not None and (objective.cuttable or _sums_up(objective, *found)):
                return float((found[0] ** 2 + decay**2) ** 0.5)
        pulled = _sums(objective, [[b] for b in objective.batches])[0]
    return float((pulled**2 + decay**2) ** 0.5)


def _sums(objective: Objective, parts: Sequence[Sequence[Batch]]) -> tuple[float, Tensor, float]:
    """√(K Σ_j ‖g_j‖²), Σ_j g_j [n] and Σ_j ‖g_j‖ of K parts."""
    total = torch.zeros(objective.layout.total, dtype=objective.dtype, device=objective.device)
    square = size = 0.0
    for part in parts:
        slope = torch.zeros_like(total)
        for batch in part:
            slope += objective.layout.flatten(gradients(objective.batch_sum(batch)[0], objective.parameters))
        slope /= objective.count
        total += slope
        length = float(slope.norm())
        square, size = square + length**2, size + length
    return (len(parts) * square) ** 0.5, total, size


def _sums_up(objective: Objective, pulled: float, total: Tensor, size: float) -> bool:
    whole = _sums(objective, [objective.batches])[1]
    return float((whole - total).norm()) <= ADDITIVE * size


def gradient_noise(
    stack: Stack, theta: Tensor, gradient: Tensor, pull: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rounding of max |∇L| [A], measured: how it changes with the last digits of θ; and whether ∇L jumps there [A]."""
    numbers = torch.arange(len(theta), device=theta.device) if rows is None else rows
    return noise_and_jumps(
        lambda points, index: stack.values_and_gradients(points, numbers[index])[1], theta, gradient, pull
    )


def noise_and_jumps(gradients_at: Slopes, theta: Tensor, gradient: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """As `gradient_noise`, from a function of points.

    A jump, at a corner of a piecewise linear function, is no rounding: it is gone beside the corner.
    """
    eps = torch.finfo(theta.dtype).eps
    generator = torch.Generator().manual_seed(0)
    everyone = torch.arange(len(theta), device=theta.device)
    noise, signs = theta.new_zeros(len(theta)), theta.new_zeros(theta.shape[1:])
    for _ in range(SHAKEN):
        signs = 2 * torch.randint(2, theta.shape[1:], generator=generator).to(theta) - 1
        noise = torch.maximum(noise, _change(gradients_at, theta, gradient, everyone, eps * signs))
    aside = noise
    for step in (ASIDE * eps * signs, -ASIDE * eps * signs):
        aside = torch.maximum(aside, _change(gradients_at, theta, gradient, everyone, step))
    jumps = aside > DECIDES * pull
    index = everyone[jumps]
    if not len(index):
        return noise, jumps
    reach = BESIDE * torch.where(theta.any(1), theta.norm(dim=1), 1.0)[index].unsqueeze(1)
    beside = []
    for _ in range(DIRECTIONS):
        drawn = torch.randn(theta.shape[1:], generator=generator, dtype=torch.float64).to(theta)
        away = theta[index] + reach * drawn / drawn.norm()
        there = gradients_at(away, index)
        both = [_change(gradients_at, away, there, index, step * eps * signs) for step in (ASIDE, -ASIDE)]
        beside.append(torch.maximum(*both))
    usual = torch.stack(beside).median(0).values
    jumps[index] = aside[index] > JUMP * usual
    noise[index] = torch.where(jumps[index], torch.minimum(noise[index], usual), noise[index])
    return noise, jumps


def _change(gradients_at: Slopes, theta: Tensor, gradient: Tensor, index: Tensor, step: Tensor) -> Tensor:
    """How far the entries of ∇L move where θ [A, P] of the members `index` [A] moves by shares `step` [P] of itself."""
    moved: Tensor = (gradients_at(theta * (1 + step), index) - gradient).abs().amax(1)
    return moved
