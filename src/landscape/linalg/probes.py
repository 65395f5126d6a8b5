"""Random probe vectors, drawn on the CPU in float64, one column at a time.

So the k-th probe depends neither on how many are drawn nor on dtype or device, and drawing holds no more than one
extra column. Each returned tensor has contiguous columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gaussian(n: int, count: int, *, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal probes, Tensor [n, count]."""
    return _fill(lambda: _normal(n, generator), n, count, dtype, device)


def sphere(n: int, count: int, *, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Probes uniform on the unit sphere of R^n, Tensor [n, count]: the directions of `gaussian`."""

    def draw() -> Tensor:
        column = _normal(n, generator)
        return column.div_(torch.linalg.vector_norm(column))

    return _fill(draw, n, count, dtype, device)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _fill(draw: Callable[[], Tensor], n: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = torch.empty(count, n, dtype=dtype, device=device)
    for row in rows:
        row.copy_(draw())
    return rows.T
