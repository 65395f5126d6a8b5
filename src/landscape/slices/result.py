"""Result of `slice`: the loss and other quantities on a line or in a plane through a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.fields import CURVATURE, LOSS, SLOPE, Result, Spent, field_of

RESIDUAL = "distance within which a true eigenvalue lies, "


@dataclass(frozen=True, kw_only=True)
class Sliced(Result):
    """L(θ + x d₀ + y d₁) on a grid. A line has one row, y = 0.

    Coordinates are multiples of the directions as they are stored, whose lengths `direction_norm` gives. NaN and Inf
    are values (the loss is not finite there); what has not been computed yet is False in `done`.
    """

    group: ClassVar[str] = "slice"

    directions: str
    batchnorm: str
    strategy: str
    line: bool

    parameters: int = field_of("number of trainable parameters")
    samples: int = field_of("number of samples (the loss's total count)")
    x: np.ndarray = field_of("multiple of the first direction", "x")
    y: np.ndarray = field_of("multiple of the second direction; 0 for a line", "y")
    loss: np.ndarray = field_of("loss; the median over the planes where there are several", "y", "x", units=LOSS)
    done: np.ndarray = field_of("whether this cell has been computed", "y", "x")

    accuracy: np.ndarray | None = field_of("share of the samples that are classified right", "y", "x", optional=True)
    gradient_norm: np.ndarray | None = field_of("Euclidean norm of the gradient", "y", "x", units=SLOPE, optional=True)
    lambda_max: np.ndarray | None = field_of(
        "largest eigenvalue of the Hessian", "y", "x", units=CURVATURE, optional=True
    )
    lambda_max_residual: np.ndarray | None = field_of(
        RESIDUAL + "of lambda_max", "y", "x", units=CURVATURE, optional=True
    )
    lambda_min: np.ndarray | None = field_of(
        "smallest eigenvalue of the Hessian", "y", "x", units=CURVATURE, optional=True
    )
    lambda_min_residual: np.ndarray | None = field_of(
        RESIDUAL + "of lambda_min", "y", "x", units=CURVATURE, optional=True
    )

    plane_loss: np.ndarray | None = field_of(
        "loss in each of several random planes", "plane", "y", "x", units=LOSS, optional=True
    )
    quantile: np.ndarray | None = field_of("share of the planes below", "quantile", optional=True)
    loss_quantile: np.ndarray | None = field_of(
        "quantiles of the loss over the planes", "quantile", "y", "x", units=LOSS, optional=True
    )

    loss_centre: float = field_of("loss at the checkpoint, evaluated as the cells are", units=LOSS)
    loss_reference: float = field_of("loss at the checkpoint, evaluated as every other command does", units=LOSS)
    centre_tolerance: float = field_of("rounding that may part these two", units=LOSS)

    direction: np.ndarray = field_of("what the direction is", "direction")
    direction_norm: np.ndarray = field_of("Euclidean length of the direction", "direction")
    cosine: float = field_of("cosine of the angle between the two directions; NaN for a line")
    slope: np.ndarray = field_of("gradient . direction at the checkpoint", "direction", units=LOSS)
    slope_measured: np.ndarray = field_of("the same by differences of the surface", "direction", units=LOSS)
    slope_tolerance: np.ndarray = field_of("error of that difference, estimated", "direction", units=LOSS)
    curvature: np.ndarray = field_of("direction' H direction at the checkpoint", "direction", units=LOSS)
    curvature_measured: np.ndarray = field_of("the same by differences of the surface", "direction", units=LOSS)
    curvature_tolerance: np.ndarray = field_of("error of that difference, estimated", "direction", units=LOSS)
    variance_explained: np.ndarray | None = field_of(
        "share of the trajectory's squared distances from the checkpoint along it", "direction", optional=True
    )

    mark: np.ndarray | None = field_of("name of another checkpoint", "mark", optional=True)
    mark_x: np.ndarray | None = field_of("its projection on the first direction", "mark", optional=True)
    mark_y: np.ndarray | None = field_of("its projection on the second direction", "mark", optional=True)
    mark_distance: np.ndarray | None = field_of("its distance from the plane (or line)", "mark", optional=True)
    mark_loss: np.ndarray | None = field_of("its true loss", "mark", units=LOSS, optional=True)
    mark_surface_loss: np.ndarray | None = field_of(
        "loss of the surface where it is projected to", "mark", units=LOSS, optional=True
    )
    barrier: float | None = field_of(
        "highest loss on the line above the straight line between its ends; at grid points, so a lower bound",
        units=LOSS,
        optional=True,
    )
    barrier_at: float | None = field_of("where on the line that is", optional=True)

    direction_vector: np.ndarray | None = field_of(
        "the directions themselves (the first plane's)", "direction", "parameter", optional=True
    )
    tensor: np.ndarray = field_of("name of the parameter tensor", "tensor")
    tensor_size: np.ndarray = field_of("its number of entries in the flat vector", "tensor")

    spent: Spent | None = None

    @property
    def slope_error(self) -> float:
        """Largest |slope_measured − slope|."""
        return float(np.abs(self.slope_measured - self.slope).max())

    @property
    def curvature_error(self) -> float:
        """Largest |curvature_measured − curvature|."""
        return float(np.abs(self.curvature_measured - self.curvature).max())

    @property
    def faults(self) -> list[str]:
        """What the self-check found wrong, a sentence each."""
        found = []
        if not abs(self.loss_centre - self.loss_reference) <= self.centre_tolerance:
            found.append(f"the centre is {self.loss_centre:.9g}, but the loss there is {self.loss_reference:.9g}")
        for name in ("slope", "curvature"):
            exact, measured, tolerance = (getattr(self, name + end) for end in ("", "_measured", "_tolerance"))
            for label, a, b, bound in zip(self.direction, exact, measured, tolerance, strict=True):
                if not abs(a - b) <= bound:
                    found.append(
                        f"along {label} the {name} of the surface is {b:.4g} ± {bound:.1g}, by autograd {a:.4g}"
                    )
        return found
