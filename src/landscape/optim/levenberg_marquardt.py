"""Levenberg–Marquardt (Marquardt 1963): Gauss–Newton steps, damped, for a stack of least-squares problems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.optim.damped import Local, Method

# (θ [A, P], rows [A]) -> L [A].
Values = Callable[[Tensor, Tensor], Tensor]
# (θ, rows) -> L [A], ∇L [A, P] and a positive semidefinite matrix [A, P, P].
Linearised = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def levenberg_marquardt(values: Values, gauss_newton: Linearised) -> Method:
    """Steps −(G + δ I)⁻¹ ∇L, with G the Gauss–Newton matrix of a sum of squares (or any convex loss of outputs)."""

    def expand(theta: Tensor, rows: Tensor) -> Local:
        value, gradient, matrix = gauss_newton(theta, rows)
        return {"value": value, "merit": value, "gradient": gradient, "matrix": matrix}

    def step(local: Local, damping: Tensor) -> tuple[Tensor, Tensor]:
        matrix, gradient = local["matrix"], local["gradient"]
        # The factorisation fails where rounding makes G slightly indefinite: those members are damped more.
        shifted = matrix.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(damping.unsqueeze(1))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        s = -torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
        s = torch.where((failed != 0).unsqueeze(1), torch.nan, s)
        curved = (matrix @ s.unsqueeze(2)).squeeze(2)
        return s, -(gradient * s).sum(1) - 0.5 * (s * curved).sum(1)

    return Method(
        values, expand, step, lambda local: local["matrix"].diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-300)
    )
