"""First-order training of a stack on all its data, as `landscape train` does it with full batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.runtime.progress import Progress
from landscape.stack.stack import Stack

# Steps between two reports.
TOLD = 100


@dataclass(frozen=True)
class FirstOrder:
    """An optimiser on full batches: "adam" or "sgd"; weight decay is part of its gradient; cosine: its schedule."""

    optimiser: str
    learning_rate: float
    steps: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    cosine: bool = False


def first_order(stack: Stack, theta: Tensor, how: FirstOrder, progress: Progress | None = None) -> Tensor:
    """θ [S, P] after `how.steps` steps of every member from θ [S, P]; a member that diverges has NaN there."""
    leaf = theta.detach().clone().requires_grad_()
    optimiser: torch.optim.Optimizer
    if how.optimiser == "adam":
        optimiser = torch.optim.Adam([leaf], how.learning_rate, weight_decay=how.weight_decay)
    else:
        optimiser = torch.optim.SGD([leaf], how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay)
    for step in range(1, how.steps + 1):
        if how.cosine:
            for group in optimiser.param_groups:
                group["lr"] = how.learning_rate * (1 + math.cos(math.pi * (step - 1) / how.steps)) / 2
        optimiser.zero_grad()
        for batch in stack.batches:
            total = stack.sums(leaf, stack.others, batch).sum() / stack.count
            total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if progress is not None and step % TOLD == 0:
            progress(f"{how.optimiser}, step", step, how.steps)
    return leaf.detach()
