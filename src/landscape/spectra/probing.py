"""Random probes of the complement of known eigenvectors: quadrature for the density, samples for the trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.errors import NumericalError
from landscape.linalg.lanczos import ROUNDING, Extremes
from landscape.linalg.probes import gaussian
from landscape.linalg.quadrature import Quadrature, Tridiagonals, gauss, tridiagonalise
from landscape.linalg.trace import complement_quadratic_forms, samples_for, student_interval

# The trace's interval is narrowed to this part of the trace, if the products for it are few.
TRACE_RTOL = 0.01
MOST_TRACE_PROBES = 64
# Probes that are projected on the Krylov basis at once: each projection reads all of it.
TOGETHER = 8
# With fewer samples Student's quantiles explode.
FEWEST_PROBES = 3


@dataclass(frozen=True)
class Probing:
    """What the probes saw.

    Attributes:
        tridiagonals, quadrature: of the deflated operator, one row a probe; None without a density.
        samples: float64 [t], unbiased samples of the trace on the complement of the Krylov basis.
        free: dimension of the complement of the deflated eigenvectors.
        seen: extreme Ritz values (min, max) of the deflated operator.
    """

    tridiagonals: Tridiagonals | None
    quadrature: Quadrature | None
    samples: np.ndarray
    free: int
    seen: tuple[float, float]


def probe(
    operator: CurvatureOperator,
    deflate: Tensor | None,
    known: Extremes,
    *,
    probes: int,
    steps: int,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> Probing:
    """Send random unit vectors of the deflated complement through `steps` Lanczos steps (0: one product each).

    The first product of each probe serves the trace as well: split as tr QHQᵀ + tr (I − QᵀQ)H(I − QᵀQ) with the
    Krylov basis Q as the sketch of Hutch++ (Meyer et al. 2021), it costs nothing extra.
    """
    free = operator.n - (0 if deflate is None else deflate.shape[1])
    if free < 1:
        return Probing(None, None, np.zeros(0), 0, (math.inf, -math.inf))
    found: list[Tridiagonals] = []
    samples: list[np.ndarray] = []
    width = operator.width
    for start in range(0, probes, width):
        count = min(width, probes - start)
        vectors = _complement(
            gaussian(operator.n, count, generator=generator, dtype=operator.dtype, device=operator.device), deflate
        )
        products = operator(vectors)
        if not bool(torch.isfinite(products).all()):
            raise NumericalError("a curvature product is not finite", "try --precision float64")
        if known.basis_size < operator.n:
            samples.append(complement_quadratic_forms(vectors, products, known.project, known.projected))
        if steps:
            found.append(tridiagonalise(operator, vectors, min(steps, free), deflate=deflate, first=products))
        if progress is not None:
            progress((start + count) * max(steps, 1), probes * max(steps, 1))
    trace_samples = np.concatenate(samples) if samples else np.zeros(0)
    if not found:
        return Probing(None, None, trace_samples, free, (math.inf, -math.inf))
    together = _stacked(found)
    rule = gauss(together)
    carried = rule.nodes[rule.weights > 0]
    return Probing(together, rule, trace_samples, free, (float(carried.min()), float(carried.max())))


def trace_interval(
    operator: CurvatureOperator,
    known: Extremes,
    samples: np.ndarray,
    *,
    noise: float,
    budget: int,
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """Trace with its 95 % interval; takes up to `budget` further products if the interval is wider than 1 %.

    Besides Student's interval it carries rounding: of the products, whose errors `noise` are as good as independent,
    and, for a basis and unit probes that are right to eps, an eps of all that is added up: Σ|θ| on the basis, and on
    its complement the trace there, by how much longer a probe is than its part there.
    """
    n, m = operator.n, known.basis_size
    offset = float(np.trace(known.projected))
    unit = ROUNDING * float(torch.finfo(operator.dtype).eps)
    rounding = math.sqrt(n) * noise + unit * float(np.sum(np.abs(known.ritz_values)))
    if m >= n or len(samples) == 0:
        width = rounding if m >= n else math.inf
        return offset, offset - width, offset + width
    value, low, high = student_interval(samples, offset)
    target = TRACE_RTOL * abs(value)
    extra = 0
    if (high - low) / 2 > target > 0:
        extra = min(samples_for(samples, target) - len(samples), MOST_TRACE_PROBES, budget)
    if extra > 0:
        more = [samples]
        for start in range(0, extra, TOGETHER):
            count = min(TOGETHER, extra - start)
            z = gaussian(operator.n, count, generator=generator, dtype=operator.dtype, device=operator.device)
            more.append(complement_quadratic_forms(z, operator(z), known.project, known.projected))
        value, low, high = student_interval(np.concatenate(more), offset, first_stage=len(samples))
    rounding += unit * abs(value - offset) * n / (n - m)
    return value, low - rounding, high + rounding


def _complement(vectors: Tensor, deflate: Tensor | None) -> Tensor:
    """Unit columns orthogonal to `deflate`: Gaussian vectors projected stay isotropic in the complement."""
    if deflate is not None:
        for _ in range(2):
            vectors = vectors - deflate @ (deflate.T @ vectors)
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=0, keepdim=True)
    return vectors / norms


def _stacked(parts: list[Tridiagonals]) -> Tridiagonals:
    """Probes of several blocks as one; shorter recurrences are padded."""
    steps = max(p.alpha.shape[1] for p in parts)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, steps - values.shape[1])))

    return Tridiagonals(
        np.concatenate([padded(p.alpha) for p in parts]),
        np.concatenate([padded(p.beta) for p in parts]),
        np.concatenate([p.length for p in parts]),
    )
