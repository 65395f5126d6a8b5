"""Results of `escape`: directions, ways out, and what they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from landscape.results.fields import CURVATURE, LOSS, SLOPE, Result, Spent, field_of


@dataclass(frozen=True, kw_only=True)
class Escaped(Result):
    """A point, its most negative direction, and where both sides of it lead. Side + first."""

    group: ClassVar[str] = "escape"

    verdict: str
    reason: str
    point_verdict: str
    end_verdict: str
    followed: bool
    exact: bool
    full_data: bool

    parameters: int = field_of("number of trainable parameters")
    samples: int = field_of("number of samples (the loss's total count)")
    loss: float = field_of("loss at the point", units=LOSS)
    loss_after: float = field_of("lowest loss reached; the point's own if nothing was followed", units=LOSS)
    gradient_inf: float = field_of("largest entry of the gradient, absolute", units=SLOPE)
    gradient_rounding: float = field_of("rounding error of the gradient, estimated", units=SLOPE)
    newton_decrement: float = field_of("square root of gradient' |H|^+ gradient; NaN: not dense", units="loss^(1/2)")
    lambda_min: float = field_of("lowest eigenvalue at the point", units=CURVATURE)
    lambda_min_low: float = field_of("lower end of its interval", units=CURVATURE)
    lambda_min_high: float = field_of("upper end of its interval", units=CURVATURE)
    lambda_max: float = field_of("largest |eigenvalue| at the point", units=CURVATURE)
    zero_tau: np.ndarray = field_of("floors at which zeros are counted", "zero_tau")
    zeros: np.ndarray = field_of("eigenvalues within the floor of zero; -1: not dense", "zero_tau")
    parameter_norm: float = field_of("Euclidean norm of the parameters")
    gradient_pull: float | None = field_of(
        "root mean square of the gradients of up to 16 parts of the data", units=SLOPE, optional=True
    )
    kinks: int | None = field_of("activations at a kink, over all samples; 0: none", optional=True)

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
    side_lambda_min: np.ndarray = field_of("lowest eigenvalue there; NaN: not followed", "side", units=CURVATURE)
    side_lambda_min_low: np.ndarray = field_of("lower end of its interval", "side", units=CURVATURE)
    side_lambda_min_high: np.ndarray = field_of("upper end of its interval", "side", units=CURVATURE)
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

    certificate: Mapping[str, Any] = field(default_factory=dict)
    spent: Spent | None = None
