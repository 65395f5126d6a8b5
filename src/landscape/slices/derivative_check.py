"""The self-check of a slice: slope and curvature of the surface at its centre against ∇L·d and dᵀHd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.problem.objective import Objective
from landscape.problem.operations import watch
from landscape.slices.cells import CellPlan, Surface, cell_values

# Steps of the differences, relative to the range that is drawn; and those that are tried where the first ones leave
# the curvature uncertain by more than this share.
STEPS, MORE_STEPS, UNCERTAIN = 10.0 ** -np.arange(2.0, 3.5, 0.5), 10.0 ** -np.arange(0.5, 6.0, 0.5), 1e-3
# Steps for a network with kinks: one for its curvature, the others so small that hardly a kink lies between.
KINKED_STEPS = 10.0 ** -np.array([2.0, 4.5, 5.25, 6.0])
# Rounding of a loss, in units of eps max(L, …); what an error estimate may be wrong by.
ROUNDING, SAFETY = 30.0, 10.0
# Samples whose forward pass is looked at.
LOOKED_AT = 8
# Functions whose first derivative jumps: differences see that, second derivatives by autograd do not.
KINKED = ("relu", "leaky_relu", "relu6", "prelu", "rrelu", "hardtanh", "hardswish", "hardsigmoid", "threshold", "abs")
KINKED_STARTS = ("max_pool", "adaptive_max_pool", "clamp", "maximum", "minimum", "softshrink", "hardshrink")


@dataclass(frozen=True)
class Checked:
    """Slopes and curvatures along the directions [A]: by autograd, by differences, and what may part the two.

    A tolerance of infinity says that they need not agree: a kinked network has curvature in its kinks.
    """

    slope: np.ndarray
    curvature: np.ndarray
    slope_measured: np.ndarray
    curvature_measured: np.ndarray
    slope_tolerance: np.ndarray
    curvature_tolerance: np.ndarray


@dataclass(frozen=True)
class Exact:
    """By autograd, in float64: L, ∇L·d [A] and dᵀHd [A]."""

    value: float
    slope: np.ndarray
    curvature: np.ndarray


def exact_derivatives(objective: Objective, directions: Tensor, memory: int | None = None) -> Exact:
    """Differences of a float64 objective along directions [A, P]."""
    value, gradient = objective.value_and_gradient()
    operator = CurvatureOperator(objective, memory=memory, expected_products=2)
    image = operator(directions.T.contiguous())
    curvature = (directions.T * image).sum(0)
    return Exact(value, (directions @ gradient).cpu().numpy(), curvature.cpu().numpy())


def check_surface(surface: Surface, chunk: int, exact: Exact, reach: np.ndarray) -> Checked:
    """Differences of the surface, evaluated as its cells are but in float64, against autograd.

    Args:
        surface: of a float64 objective, where the model runs in it.
        reach: half of the range that is drawn, of each direction [A].
    """
    plan = CellPlan("in place", chunk, 1)
    axes, (kinked, coarsest) = len(surface.directions), looked_at(surface.objective)
    eps = float(torch.finfo(surface.start.dtype).eps)
    measured = []
    for axis in range(axes):

        def loss(steps: np.ndarray, axis: int = axis) -> np.ndarray:
            points = [[float(t) if i == axis else 0.0 for i in range(axes)] for t in steps]
            return cell_values(surface, plan, points)[:, 0].numpy()

        steps = float(reach[axis]) * (KINKED_STEPS if kinked else STEPS)
        found = (_kinked if kinked else _differences)(loss, exact.value, steps, eps)
        if not kinked and not found[3] <= UNCERTAIN * abs(exact.curvature[axis]):
            found = _differences(loss, exact.value, float(reach[axis]) * MORE_STEPS, eps)
        measured.append(found)
    slope, slope_error, curvature, curvature_error = (np.array(column) for column in zip(*measured, strict=True))
    size = np.abs(exact.slope) + np.abs(exact.curvature) * reach
    return Checked(
        exact.slope,
        exact.curvature,
        slope,
        curvature,
        SAFETY * slope_error + 1e3 * coarsest * size,
        np.full(axes, np.inf) if kinked else SAFETY * curvature_error + 1e3 * coarsest * np.abs(exact.curvature),
    )


def _differences(
    loss: Callable[[np.ndarray], np.ndarray], centre: float, h: np.ndarray, eps: float
) -> tuple[float, float, float, float]:
    """Slope and curvature at 0, each with its estimated error, from central differences at many steps.

    Two steps of ratio √10 give one Richardson value each; its error is estimated by how much it moves to the next,
    and by rounding. The value of the least error is taken.
    """
    both = loss(np.concatenate([h, -h]))
    up, down = both[: len(h)], both[len(h) :]
    rounding = ROUNDING * eps * np.maximum(np.abs(both).reshape(2, -1).max(0), abs(centre))
    first = _richardson((up - down) / (2 * h), rounding / h)
    second = _richardson((up - 2 * centre + down) / h**2, 4 * rounding / h**2)
    return (*first, *second)


def _kinked(
    loss: Callable[[np.ndarray], np.ndarray], centre: float, h: np.ndarray, eps: float
) -> tuple[float, float, float, float]:
    """As `_differences` where the slope jumps at kinks: the slope between its closest neighbours, uncertain by how much
    it still changes from step to step; the curvature of the largest step, kinks and all."""
    both = loss(np.concatenate([h, -h]))
    up, down = both[: len(h)], both[len(h) :]
    rounding = ROUNDING * eps * max(float(np.abs(both).max()), abs(centre)) / h
    slopes = (up - down) / (2 * h)
    last = float(np.median(slopes[1:]))
    curvature = float((up[0] - 2 * centre + down[0]) / h[0] ** 2)
    return last, float(np.abs(slopes[1:] - last).max() + rounding[1:].max()), curvature, float("inf")


def _richardson(values: np.ndarray, rounding: np.ndarray) -> tuple[float, float]:
    """The best of extrapolated differences whose error falls with h²; steps fall by √10 each."""
    ratio = 10.0  # (√10)²
    better = (ratio * values[1:] - values[:-1]) / (ratio - 1)
    noise = (ratio * rounding[1:] + rounding[:-1]) / (ratio - 1)
    moved = np.abs(np.diff(better))
    error = moved + noise[:-1] + noise[1:]
    error = np.where(np.isfinite(error), error, np.inf)
    best = int(np.argmin(error))
    return float(better[best]), float(error[best])


def looked_at(objective: Objective) -> tuple[bool, float]:
    """Whether the loss calls a function whose first derivative jumps, and the eps of the coarsest arithmetic in which
    something on its way from θ is computed (a cast inside a network, a constant in float32)."""
    seen: set[str] = set()
    coarsest = [float(torch.finfo(objective.dtype).eps)]

    def look(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, place: str) -> None:
        seen.add(getattr(func, "__name__", "").rstrip("_"))
        if isinstance(result, Tensor) and result.is_floating_point() and result.requires_grad:
            coarsest.append(float(torch.finfo(result.dtype).eps))

    watch(objective, look, LOOKED_AT)
    return any(name in KINKED or name.startswith(KINKED_STARTS) for name in seen), max(coarsest)
