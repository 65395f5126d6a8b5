"""What can be measured at a point besides the loss: the share of samples classified right, from the same outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from landscape.errors import ProblemError
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import strict_arithmetic


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what the model returned last is the only entry of the list."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        seen[:] = [output] if isinstance(output, Tensor) else []

    handle = model.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def classified(outputs: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """How many of the batch's samples are classified right, and how many count.

    Class indices (−100 does not count) against the largest output, one-hot or 0/1 targets against the largest
    output or its sign.

    Raises:
        ProblemError: the batch is no pair of tensors, or its targets are no classes.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor) and outputs):
        raise ProblemError(
            "accuracy needs batches (inputs, targets) and a model that returns one tensor",
            "leave --metric accuracy out",
        )
    z, targets = outputs[0], batch[1]
    if z.dim() >= 2 and not targets.is_floating_point() and targets.dim() == z.dim() - 1:
        last = z.shape[:-1] == targets.shape and not (z.dim() > 2 and z.shape[2:] == targets.shape[1:])
        counts = targets != -100
        return ((z.argmax(-1 if last else 1) == targets) & counts).sum(), counts.sum()
    if z.dim() == 2 and z.shape[1] > 1 and targets.shape == z.shape:
        one_hot = (targets.sum(1) - 1).abs().max() < 1e-3 if len(targets) else torch.tensor(True)
        if bool(one_hot):
            right = z.argmax(1) == targets.argmax(1)
            return right.sum(), torch.tensor(len(right), device=z.device)
    wanted = targets.reshape(z.shape) if targets.numel() == z.numel() else None
    if wanted is None or not bool(((wanted == 0) | (wanted == 1)).all()):
        raise ProblemError(
            "accuracy needs targets that are classes: indices, one-hot rows, or 0 and 1", "leave --metric accuracy out"
        )
    right = (z > 0) == (wanted > 0.5)
    return right.sum(), torch.tensor(right.numel(), device=z.device)


def check_classes(objective: Objective) -> None:
    """Refuse accuracy where there are no classes, before any cell is computed. Raises ProblemError."""
    with strict_arithmetic(), torch.no_grad(), outputs_of(objective.model) as outputs:
        for batch in objective.batches:
            objective.batch_sum(batch)
            classified(outputs, batch)
