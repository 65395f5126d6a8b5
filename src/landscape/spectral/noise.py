"""How wrong one product is: measured against float64, and carried into every residual."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.batches import length_of, take
from landscape.errors import LandscapeError
from landscape.linalg.probes import sphere
from landscape.objective import Objective
from landscape.operators import CurvatureOperator

# Samples on which the error is measured: the error of a mean over more samples is not larger.
SAMPLES = 512
# Vectors differ among themselves; twice the largest error seen covers them (tests/test_coverage.py).
SAFETY = 2.0
# In units of eps · ‖Hv‖, where there is no wider arithmetic to compare with.
FLOAT64_ULPS = 64.0
FALLBACK_ULPS = 256.0


def product_error(objective: Objective, operator: str, seed: int) -> float:
    """Error norm of the product of a unit vector, absolute: 2 × the largest seen on two vectors.

    The vectors are a random one and, since rounding grows with curvature, one turned towards the largest
    eigenvectors by a product. Float64 products get a bound from their precision instead. If the model does not run
    in float64, so do float32 ones, generously.
    """
    batch = objective.batches[0]
    if objective.cuttable and length_of(batch) > SAMPLES:
        batch = take(batch, slice(0, SAMPLES))
    small = objective.with_batches([batch])
    operator_small = CurvatureOperator(small, operator, strategy="recompute", batch_size=length_of(batch) or None)
    generator = torch.Generator().manual_seed(seed)
    first = sphere(operator_small.n, 1, generator=generator, dtype=objective.dtype, device=objective.device)
    images = [operator_small(first)]
    length = float(images[0].norm())
    if length == 0.0:
        return 0.0
    second = images[0] / length
    images.append(operator_small(second))
    scale = float(images[1].norm())
    if objective.dtype == torch.float64:
        return FLOAT64_ULPS * torch.finfo(torch.float64).eps * scale
    try:
        wide = CurvatureOperator(small.in_dtype(torch.float64), operator, strategy="recompute")
        errors = [_distance(wide(v.double()), image) for v, image in zip((first, second), images, strict=True)]
    except (RuntimeError, LandscapeError):
        return FALLBACK_ULPS * float(torch.finfo(objective.dtype).eps) * scale
    return SAFETY * max(errors)


def _distance(truth: Tensor, image: Tensor) -> float:
    return float((truth - image.double()).norm())
