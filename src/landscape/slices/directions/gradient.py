"""The direction of steepest descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.errors import UsageError
from landscape.slices.directions.direction import Around, Direction


@dataclass(frozen=True)
class Options:
    """There are none."""


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """−∇L / ‖∇L‖, one direction."""
    objective = around.objective
    slope = objective.value_and_gradient()[1]
    size = float(slope.norm())
    if not size > torch.finfo(slope.dtype).tiny:
        raise UsageError("the gradient is zero here, so it gives no direction", "choose --dirs hessian or random")
    return [Direction("steepest descent", -slope / size)]
