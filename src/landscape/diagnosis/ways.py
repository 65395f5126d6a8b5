"""Every way to take a product over uncut batches, and the points and directions to take it at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.products import Builder, ggn_linearized, hessian_forward, hessian_linearized, hessian_reverse
from landscape.errors import ProblemError
from landscape.problem.batches import length_of
from landscape.problem.graph import fixed_rows
from landscape.problem.objective import Objective
from landscape.runtime.arithmetic import strict_arithmetic

FELL_BACK = "fell back: "  # how the notes of a plan begin when its strategy is not the one asked for


def _by_strategy(kind: str, strategy: str, objective: Objective, vectors: Tensor) -> Tensor:
    operator = uncut_operator(objective, kind, strategy)
    for note in operator.plan.notes:
        if note.startswith(FELL_BACK):  # what it would measure is another way
            raise ProblemError(note.split(": ", 2)[-1])
    return operator(vectors)


def uncut_operator(objective: Objective, kind: str = "hessian", strategy: str = "auto") -> CurvatureOperator:
    """Over uncut batches: what cutting them does is a check of its own."""
    longest = max(1, *(length_of(b) for b in objective.batches))
    return CurvatureOperator(objective, kind, strategy=strategy, batch_size=longest, expected_products=1)


def _by_builder(builder: Builder, singly: bool, objective: Objective, vectors: Tensor) -> Tensor:
    if singly:
        return torch.cat([_by_builder(builder, False, objective, v.unsqueeze(1)) for v in vectors.T], dim=1)
    total = torch.zeros_like(vectors.T)
    with strict_arithmetic():
        for batch in objective.batches:
            parts = builder(objective, batch)(objective.layout.unflatten(vectors.T.contiguous()))
            total += torch.cat([p.reshape(len(total), -1) for p in parts], dim=1)
    return (total / objective.count).T


# What `spectrum` calls them: (strategy, mode, in blocks).
NAMES: dict[str, tuple[str, str, bool]] = {
    "kept": ("kept", "reverse", False),
    "recompute": ("recompute", "reverse", False),
    "linearize": ("linearize", "forward", False),
    "forward": ("recompute", "forward", False),
    "block": ("kept", "reverse", True),
    "forward block": ("linearize", "forward", True),
}
# (objective, V[n, b]) -> its products [n, b]
Way = Callable[[Objective, Tensor], Tensor]
WAYS: dict[str, dict[str, Way]] = {
    "hessian": {
        "kept": partial(_by_strategy, "hessian", "kept"),
        "recompute": partial(_by_strategy, "hessian", "recompute"),
        "linearize": partial(_by_strategy, "hessian", "linearize"),
        "forward": partial(_by_builder, hessian_forward, True),
        "block": partial(_by_builder, partial(hessian_reverse, batched=True), False),
        "forward block": partial(_by_builder, hessian_linearized, False),
    },
    "ggn": {
        "kept": partial(_by_strategy, "ggn", "kept"),
        "recompute": partial(_by_strategy, "ggn", "recompute"),
        "linearize": partial(_by_strategy, "ggn", "linearize"),
        "forward block": partial(_by_builder, ggn_linearized, False),
    },
}


def random_direction(objective: Objective, generator: torch.Generator) -> Tensor:
    """A unit vector, the same on every device; zero in padding rows of embeddings, which training holds fixed."""
    drawn = torch.randn(objective.layout.total, generator=generator, dtype=torch.float64)
    drawn = drawn.to(objective.device, objective.dtype)
    parts = objective.layout.unflatten(drawn)
    with strict_arithmetic():
        for batch in objective.batches[:1]:
            for index, row in fixed_rows(objective.batch_sum(batch)[0], objective.parameters):
                parts[index][row] = 0
    return torch.nn.functional.normalize(drawn, dim=0)


def set_point(objective: Objective, point: Tensor) -> None:
    """Move the parameters of an objective, in place, to a flat vector."""
    with torch.no_grad():
        for parameter, values in zip(objective.parameters, objective.layout.unflatten(point), strict=True):
            parameter.copy_(values)
