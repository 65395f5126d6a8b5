"""Symmetric operators with a prescribed spectrum and O(n) products: H = Q Λ Qᵀ, Q a product of reflections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def planted_matvec(
    eigenvalues: Tensor | np.ndarray,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    reflections: int = 3,
    device: str = "cpu",
) -> Callable[[Tensor], Tensor]:
    """V [n, b] -> H V for H = Q Λ Qᵀ; the same seed gives the same H in every dtype, up to rounding."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    normals = [u.to(device, dtype) for u in _normals(len(values), seed, reflections)]
    values = values.to(device, dtype).unsqueeze(1)

    def matvec(v: Tensor) -> Tensor:
        for u in reversed(normals):
            v = _reflect(u, v)
        v = values * v
        for u in normals:
            v = _reflect(u, v)
        return v

    return matvec


def planted_vectors(n: int, columns: Tensor, seed: int = 0, reflections: int = 3) -> Tensor:
    """Q times `columns` [n, k], float64: Q e_i is the eigenvector of the i-th prescribed eigenvalue."""
    out = columns.double()
    for u in _normals(n, seed, reflections):
        out = _reflect(u, out)
    return out


def planted_dense(eigenvalues: Tensor | np.ndarray, seed: int = 0) -> Tensor:
    """The same H as a float64 matrix [n, n]."""
    matvec = planted_matvec(eigenvalues, torch.float64, seed)
    h = matvec(torch.eye(len(eigenvalues), dtype=torch.float64))
    return (h + h.T) / 2


def _normals(n: int, seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [u / u.norm() for u in draws]


def _reflect(u: Tensor, v: Tensor) -> Tensor:
    return v - 2 * torch.outer(u, u @ v)
