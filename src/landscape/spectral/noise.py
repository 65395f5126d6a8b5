"""How wrong one product is: measured against float64, and carried into every residual."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.arithmetic import strict_arithmetic
from landscape.batches import length_of, take
from landscape.curvature import builder_of
from landscape.errors import LandscapeError
from landscape.linalg.probes import sphere
from landscape.objective import Objective
from landscape.operators import CurvatureOperator

# Samples on which the error is measured: the error of a mean over more samples is not larger.
SAMPLES = 64
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
    small = objective.with_batches([batch], alone=True)
    generator = torch.Generator().manual_seed(seed)
    n = objective.layout.total
    first = sphere(n, 1, generator=generator, dtype=objective.dtype, device=objective.device)
    product = _product(small, operator)
    try:
        images = [product(first)]
    except (RuntimeError, NotImplementedError):  # there is a graph, but it cannot be differentiated again
        product = CurvatureOperator(small, operator, strategy="recompute")
        images = [product(first)]
    length = float(images[0].norm())
    if length == 0.0:
        return objective.ranks.largest(0.0)
    second = images[0] / length
    images.append(product(second))
    del product
    scale = float(images[1].norm())
    if objective.dtype == torch.float64:
        return objective.ranks.largest(FLOAT64_ULPS * torch.finfo(torch.float64).eps * scale)
    return objective.ranks.largest(SAFETY * _largest_error(small, operator, (first, second), images, scale))


def _largest_error(
    small: Objective, operator: str, vectors: tuple[Tensor, Tensor], images: list[Tensor], scale: float
) -> float:
    """Against float64; where the model does not run in it, against strict arithmetic, or a generous guess."""
    strict = small.strict()
    try:
        wide = _product(strict.in_dtype(torch.float64), operator)
        return max(_distance(wide(v.double()), image) for v, image in zip(vectors, images, strict=True))
    except (RuntimeError, LandscapeError):
        guess = FALLBACK_ULPS * float(torch.finfo(small.dtype).eps) * scale / SAFETY
    if small.arithmetic == "strict":
        return guess
    plain = _product(strict, operator)
    return guess + max(_distance(plain(v).double(), image) for v, image in zip(vectors, images, strict=True))


def _product(objective: Objective, operator: str) -> Callable[[Tensor], Tensor]:
    """Products with [n, 1] over the only batch: double backward without any planning, where the model allows it."""
    if "reverse" in objective.refused:
        return CurvatureOperator(objective, operator, strategy="recompute")
    try:
        with strict_arithmetic(objective.arithmetic == "tf32"):
            block = builder_of(operator, "recompute", "reverse", False)(objective, objective.batches[0])
    except (RuntimeError, NotImplementedError):
        return CurvatureOperator(objective, operator, strategy="recompute")
    layout, shift = objective.layout, objective.weight_decay if operator != "residual" else 0.0

    def product(vector: Tensor) -> Tensor:
        with strict_arithmetic(objective.arithmetic == "tf32"):
            parts = block(layout.unflatten(vector.T.contiguous()))
        total = torch.cat([p.reshape(1, -1) for p in parts], dim=1).T / objective.count
        return total + shift * vector

    return product


def _distance(truth: Tensor, image: Tensor) -> float:
    return float((truth - image.double()).norm())
