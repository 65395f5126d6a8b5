"""Results of `widen`: splits, the inertia foretold and measured, and where the ways out lead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.points.certificate import Certificate
from landscape.results.fields import CURVATURE, LOSS, SLOPE, Result, Spent, field_of, part_of


@dataclass(frozen=True, kw_only=True)
class Widened(Result):
    """Splits of a layer's neurons: the inertia foretold and measured, and where the ways that they open lead; the
    certificate is that of the narrow network."""

    group: ClassVar[str] = "widen"

    layer: str
    following: str
    point_verdict: str
    reason: str
    critical: bool
    followed: bool

    parameters: int = field_of("number of trainable parameters of the narrow network")
    samples: int = field_of("number of samples (the loss's total count)")
    loss: float = field_of("loss, the same before and after every split", units=LOSS)
    certificate: Certificate = part_of(lambda: Certificate)
    narrow_zero: int = field_of("eigenvalues of the narrow network's Hessian within tau of zero")

    split: np.ndarray = field_of("neuron : shares", "split")
    neuron: np.ndarray = field_of("neuron that is split, from 0", "split")
    share: np.ndarray = field_of("share of each copy in the output weights; NaN: no such copy", "split", "copy")
    preserved: np.ndarray = field_of("largest change of an output, relative to the largest output", "split")
    predicted_negative: np.ndarray | None = field_of(
        "negative eigenvalues foretold; absent: no theory (see reason)", "split", optional=True
    )
    predicted_zero: np.ndarray | None = field_of("zero eigenvalues foretold; absent: no theory", "split", optional=True)
    measured_negative: np.ndarray = field_of("negative eigenvalues of the wide Hessian", "split")
    measured_zero: np.ndarray = field_of("its zero eigenvalues", "split")
    lambda_min: np.ndarray = field_of("lowest eigenvalue of the wide Hessian", "split", units=CURVATURE)
    lambda_error: np.ndarray = field_of("error of the wide Hessian's eigenvalues", "split", units=CURVATURE)
    lambda_bound: np.ndarray = field_of("what theory says it is at most; NaN: no theory", "split", units=CURVATURE)
    wide_gradient_inf: np.ndarray = field_of("largest entry of the wide network's gradient", "split", units=SLOPE)
    inner_eigenvalue: np.ndarray = field_of(
        "eigenvalues of the neuron's inner Hessian", "split", "inner", units=CURVATURE
    )

    escape_verdict: np.ndarray | None = field_of("where the way out ends; empty: there is none", "split", optional=True)
    escape_loss: np.ndarray | None = field_of(
        "lowest loss reached; NaN: no way out", "split", units=LOSS, optional=True
    )
    side: np.ndarray | None = field_of("side of the direction", "side", optional=True)
    side_loss: np.ndarray | None = field_of(
        "loss that each side leads to; NaN: not followed", "split", "side", units=LOSS, optional=True
    )
    side_verdict: np.ndarray | None = field_of("what kind of point that is", "split", "side", optional=True)
    control_loss: np.ndarray | None = field_of(
        "loss reached from random kicks of the same length orthogonal to the way out, the lower of both their sides",
        "split",
        "control",
        units=LOSS,
        optional=True,
    )
    narrow_control_loss: np.ndarray | None = field_of(
        "loss that the narrow network reaches from random kicks of the same length, the lower of both their sides",
        "split",
        "control",
        units=LOSS,
        optional=True,
    )
    offset_length: np.ndarray = field_of("distance from the point along a direction", "offset")
    old_loss: np.ndarray = field_of("loss along the narrow network's lowest eigenvector", "offset", units=LOSS)
    new_loss: np.ndarray = field_of("loss along the wide network's lowest eigenvector", "split", "offset", units=LOSS)

    spent: Spent | None = None
