"""Dense spectra: an operator as a float64 matrix, all its eigenvalues, and how far they can be off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]

TILE = 1024


@dataclass(frozen=True)
class DenseSpectrum:
    """All eigenvalues of a symmetric matrix.

    Attributes:
        values: float64 [n], ascending.
        bound: every eigenvalue is within this of the value of the same rank (Weyl).
        top_vector, bottom_vector: float64 Tensor [n, k], unit columns, largest (smallest) value first; None if not
            asked for.
    """

    values: np.ndarray
    bound: float
    top_vector: Tensor | None = None
    bottom_vector: Tensor | None = None


def materialise(
    matvec: Matvec, n: int, *, dtype: torch.dtype, device: torch.device, block: int
) -> tuple[Tensor, float]:
    """The matrix [n, n] of the operator, made symmetric, and the Frobenius norm of (H − Hᵀ)/2 that this removed.

    Takes n products in blocks of `block` identity columns.

    Raises:
        FloatingPointError: a product has NaN or Inf.
    """
    h = torch.empty(n, n, dtype=dtype, device=device)
    for first in range(0, n, block):
        width = min(block, n - first)
        identity = torch.zeros(n, width, dtype=dtype, device=device)
        identity[first : first + width].fill_diagonal_(1)
        # row by row rather than column by column: the two differ by what is averaged away below
        h[first : first + width] = matvec(identity).T
    if not bool(torch.isfinite(h).all()):
        raise FloatingPointError("a product with an identity column contains NaN or Inf")
    return h, _symmetrise(h)


def dense_spectrum(h: Tensor, asymmetry: float, top: int = 0, bottom: int = 0) -> DenseSpectrum:
    """Eigenvalues in float64, with the outermost eigenvectors on demand.

    The bound is Weyl's, for an error matrix E with three parts. The antisymmetric half of the products' error has
    been measured (`asymmetry`, a Frobenius norm); the symmetric half cannot be, and is taken to be as large. Where
    the structure of the operator hides both, each column still carries one rounding in the dtype of `h`:
    ‖E‖_F <= √n eps ‖H‖. The eigensolver adds a few eps of float64, the same form with a smaller eps.
    """
    n, eps = h.shape[0], float(torch.finfo(h.dtype).eps)
    h = h.double()
    vectors = None
    if top or bottom:
        values, vectors = torch.linalg.eigh(h)
    else:
        values = torch.linalg.eigvalsh(h)
    bound = asymmetry + math.sqrt(n) * eps * float(values.abs().max())
    if vectors is None:
        return DenseSpectrum(values.cpu().numpy(), bound)
    return DenseSpectrum(
        values.cpu().numpy(),
        bound,
        vectors[:, n - min(top, n) :].flip(1) if top else None,
        vectors[:, : min(bottom, n)].clone() if bottom else None,
    )


def inertia(values: np.ndarray, tau: float) -> tuple[int, int, int]:
    """How many values are below −tau, within [−tau, tau], and above tau; tau is absolute."""
    negative, positive = int(np.sum(values < -tau)), int(np.sum(values > tau))
    return negative, len(values) - negative - positive, positive


def _symmetrise(h: Tensor) -> float:
    """h <- (h + hᵀ)/2 in place, tile by tile; the Frobenius norm of the antisymmetric part."""
    total = 0.0
    starts = range(0, h.shape[0], TILE)
    for i in starts:
        for j in starts:
            if j < i:
                continue
            upper, lower = h[i : i + TILE, j : j + TILE], h[j : j + TILE, i : i + TILE].T
            half = (upper - lower) / 2
            total += float(half.double().square().sum()) * (1 if i == j else 2)
            mean = (upper + lower) / 2
            upper.copy_(mean)
            lower.copy_(mean)
    return math.sqrt(total)
