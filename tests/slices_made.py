"""Slices whose numbers are known: quadratic surfaces on any grid, with holes, marks, planes or further metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from landscape.results.store import StoredResult
from landscape.slices.result import Sliced
from samples import sample_provenance

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]


def bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Neither symmetric nor equal in x and y, so that a transposed or mirrored picture is another one."""
    return np.asarray(0.4 + 1.5 * (x - 0.2) ** 2 + 0.5 * (y + 0.3) ** 2 + 0.4 * x * y)


def valley(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Over four decades."""
    return np.asarray(1e-3 + 8 * (x - 0.1 * y**2) ** 2 + 0.02 * y**2)


def plane(
    nx: int = 21, ny: int = 21, spans: tuple[float, float] = (1.0, 1.0), surface: Surface = bowl, **overrides: Any
) -> Sliced:
    """A plane of [−span, span] each way through a checkpoint of 8 parameters; fields by keyword."""
    x, y = np.linspace(-spans[0], spans[0], nx), np.linspace(-spans[1], spans[1], ny)
    loss = surface(x[None, :], y[:, None])
    return _sliced(x, y, loss, float(surface(np.zeros(1), np.zeros(1))[0]), False, overrides)


def line(nx: int = 41, span: float = 1.0, surface: Surface = bowl, **overrides: Any) -> Sliced:
    """A line of [−span, span] through the same checkpoint."""
    x = np.linspace(-span, span, nx)
    loss = surface(x[None, :], np.zeros((1, 1)))
    return _sliced(x, np.zeros(1), loss, float(surface(np.zeros(1), np.zeros(1))[0]), True, overrides)


def _sliced(
    x: np.ndarray, y: np.ndarray, loss: np.ndarray, centre: float, line: bool, overrides: dict[str, Any]
) -> Sliced:
    k = 1 if line else 2
    fields: dict[str, Any] = {
        "directions": "random",
        "batchnorm": "recompute",
        "strategy": "cells",
        "line": line,
        "parameters": 8,
        "samples": 100,
        "x": x,
        "y": y,
        "loss": loss,
        "done": np.ones(loss.shape, dtype=bool),
        "loss_centre": centre,
        "loss_reference": centre,
        "centre_tolerance": 1e-9,
        "direction": np.array(["random 1, filter-normalised", "random 2, filter-normalised"][:k]),
        "direction_norm": np.array([3.25, 3.25][:k]),
        "cosine": np.nan if line else 0.01,
        **{name: np.array([0.1, -0.2][:k]) for name in ("slope", "slope_measured")},
        **{name: np.array([3.0, 1.0][:k]) for name in ("curvature", "curvature_measured")},
        "slope_tolerance": np.full(k, 1e-6),
        "curvature_tolerance": np.full(k, 1e-4),
        "tensor": np.array(["weight", "bias"]),
        "tensor_size": np.array([6, 2], dtype=np.int64),
    }
    return Sliced(**(fields | overrides))


def metrics(made: Sliced) -> dict[str, np.ndarray]:
    """Further metrics of the same shape: positive over decades, of both signs, a share."""
    loss = made.loss
    return {
        "accuracy": np.clip(1 - loss / 4, 0, 1),
        "gradient_norm": 10 ** (2 * loss / loss.max()),
        "lambda_max": 1 + loss,
        "lambda_max_residual": 1e-6 * loss,
        "lambda_min": 0.6 - loss,
        "lambda_min_residual": 1e-6 * loss,
    }


def trajectory(steps: int = 7, end: tuple[float, float] = (0.0, 0.0)) -> dict[str, np.ndarray]:
    """Marks on the way to `end`, ever nearer to the plane."""
    t = np.linspace(0, 1, steps)
    x, y = -0.85 + t * (end[0] + 0.85), 0.7 * np.cos(2.2 * t) * (1 - t) + t * end[1]
    on_surface = bowl(x, y)
    return {
        "mark": np.array([f"step={100 * i}" for i in range(steps)]),
        "mark_x": x,
        "mark_y": y,
        "mark_distance": 2.0 * (1 - t),
        "mark_surface_loss": on_surface,
        "mark_loss": on_surface - 0.6 * (1 - t) * (on_surface - 0.3),
    }


def planes(made: Sliced, n: int = 9, seed: int = 0) -> dict[str, np.ndarray]:
    """The loss of several planes around that of `made`, its quantiles, and their median as the loss."""
    factors = 1 + 0.4 * np.random.default_rng(seed).uniform(-1, 1, n)
    every = made.loss_centre + factors[:, None, None] * (made.loss - made.loss_centre)
    shares = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "plane_loss": every,
        "quantile": shares,
        "loss_quantile": np.quantile(every, shares, axis=0),
        "loss": np.median(every, axis=0),
    }


def stored(made: Sliced, checkpoint: str = "run/final.pt", status: str = "complete", **at: Any) -> StoredResult:
    """As `read_result` gives it; coordinates by keyword."""
    provenance = sample_provenance(command="slice", coordinates=at, checkpoint=checkpoint, status=status)
    return StoredResult("slice", made.arrays(), made.attributes(), provenance)


def with_holes(nx: int = 21, ny: int = 17, **overrides: Any) -> Sliced:
    """Two rows not computed, one cell alone, and a corner where the loss overflowed."""
    made = plane(nx, ny)
    done, loss = made.done.copy(), made.loss.copy()
    done[-2:, 5:] = False
    done[ny // 3, nx // 4] = False
    loss[:3, -4:] = np.inf
    loss[0, -1] = np.nan
    loss[~done] = np.nan
    return plane(nx, ny, loss=loss, done=done, **overrides)
