"""Results of `descend` and `escape`: where a descent ended; directions, ways out, and what they lead to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.points.certificate import Certificate
from landscape.results.fields import CURVATURE, LOSS, SLOPE, Interval, Result, Spent, field_of, interval_of, part_of


@dataclass(frozen=True, kw_only=True)
class Descended(Result):
    """A descent from a checkpoint to a critical point, its trajectory, and the certificate of where it ended."""

    group: ClassVar[str] = "descend"

    to: str
    method: str
    verdict: str
    reason: str
    stopped: str

    parameters: int = field_of("number of trainable parameters")
    samples: int = field_of("number of samples (the loss's total count)")
    steps: int = field_of("iterations taken")
    loss_before: float = field_of("loss at the checkpoint", units=LOSS)
    loss: float = field_of("loss where the descent ended", units=LOSS)
    certificate: Certificate = part_of(lambda: Certificate)

    path_loss: np.ndarray = field_of("loss along the descent", "iteration", units=LOSS)
    path_gradient_inf: np.ndarray = field_of(
        "largest entry of the gradient along the descent", "iteration", units=SLOPE
    )
    path_norm: np.ndarray = field_of("norm of the parameters along the descent", "iteration")
    kept: np.ndarray | None = field_of("iterations whose parameters are kept", "kept", optional=True)
    path_point: np.ndarray | None = field_of("parameters at these iterations", "kept", "parameter", optional=True)
    point: np.ndarray = field_of("parameters where the descent ended", "parameter")
    tensor: np.ndarray = field_of("name of the parameter tensor", "tensor")
    tensor_size: np.ndarray = field_of("its number of entries in the flat vector", "tensor")

    spent: Spent | None = None


@dataclass(frozen=True, kw_only=True)
class Escaped(Result):
    """A point with its certificate, its most negative direction, and where both sides of it lead. Side + first; `end`
    is the certificate of the lowest point reached."""

    group: ClassVar[str] = "escape"

    verdict: str
    reason: str
    point_verdict: str
    end_verdict: str
    followed: bool

    parameters: int = field_of("number of trainable parameters")
    samples: int = field_of("number of samples (the loss's total count)")
    loss: float = field_of("loss at the point", units=LOSS)
    loss_after: float = field_of("lowest loss reached; the point's own if nothing was followed", units=LOSS)
    certificate: Certificate = part_of(lambda: Certificate)
    end: Certificate | None = part_of(lambda: Certificate, optional=True)

    direction_value: float = field_of("curvature along the direction", units=CURVATURE)
    direction_residual: float = field_of("|Hv - value v| of the unit direction v", units=CURVATURE)
    gradient_overlap: float = field_of("|gradient . v| / |gradient|; NaN: the gradient is rounding")
    gradient_gain: float = field_of("loss lost by a gradient step as long as the best step", units=LOSS)

    offset_length: np.ndarray = field_of("distance from the point along the direction", "offset")
    line_loss: np.ndarray = field_of("loss along the direction", "offset", units=LOSS)
    line_even: np.ndarray = field_of("its even part, less the loss at the point", "offset", units=LOSS)
    line_odd: np.ndarray = field_of("its odd part", "offset", units=LOSS)

    side: np.ndarray = field_of("side of the direction", "side")
    side_step: np.ndarray = field_of("best step along the direction, signed", "side")
    side_gain: np.ndarray = field_of("loss lost by that step", "side", units=LOSS)
    side_loss: np.ndarray = field_of("loss where the descent from there ended; NaN: not followed", "side", units=LOSS)
    side_verdict: np.ndarray = field_of("what kind of point that is", "side")
    side_lambda_min: Interval = interval_of("lowest eigenvalue there; NaN: not followed", "side", units=CURVATURE)
    side_gradient_inf: np.ndarray = field_of("largest entry of the gradient there", "side", units=SLOPE)
    side_norm: np.ndarray = field_of("norm of the parameters there", "side")

    path_loss: np.ndarray | None = field_of(
        "loss along the descent of the better side", "iteration", units=LOSS, optional=True
    )
    path_norm: np.ndarray | None = field_of("norm of the parameters along it", "iteration", optional=True)
    kept: np.ndarray | None = field_of("iterations whose parameters are kept", "kept", optional=True)
    path_point: np.ndarray | None = field_of("parameters at these iterations", "kept", "parameter", optional=True)
    control_loss: np.ndarray | None = field_of(
        "loss reached from a random kick of the same length", "control", units=LOSS, optional=True
    )
    control_verdict: np.ndarray | None = field_of("what kind of point that is", "control", optional=True)

    start: np.ndarray = field_of("parameters of the point", "parameter")
    direction: np.ndarray = field_of("unit direction", "parameter")
    point: np.ndarray = field_of("parameters of the lowest point reached", "parameter")
    tensor: np.ndarray = field_of("name of the parameter tensor", "tensor")
    tensor_size: np.ndarray = field_of("its number of entries in the flat vector", "tensor")

    spent: Spent | None = None
