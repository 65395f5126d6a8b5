"""Newton's method for stacks of small problems, in the eigenbasis of every member's Hessian.

Saddle-free Newton (Dauphin et al. 2014, §5) takes |H| for H, so that saddles repel; the gradient-norm method takes
H² and descends ½‖∇L‖², so that critical points of every index attract, and points where H∇L = 0 as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.optim.damped import Local, Method
from landscape.optim.levenberg_marquardt import Values

# (θ [A, P], rows [A]) -> L [A] and ∇L [A, P].
Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# (θ, rows) -> ∇²L [A, P, P].
Hessians = Callable[[Tensor, Tensor], Tensor]


def saddle_free_newton(values: Values, gradients: Gradients, hessians: Hessians) -> Method:
    """Steps −(|H| + δ I)⁻¹ ∇L; with δ → 0 near a minimum this is Newton's method."""

    def step(local: Local, damping: Tensor) -> tuple[Tensor, Tensor]:
        eigenvalues, slope = local["eigenvalues"], local["slope"]
        s = -slope / (eigenvalues.abs() + damping.unsqueeze(1))
        predicted = -(slope * s).sum(1) - 0.5 * (eigenvalues * s.square()).sum(1)
        return _rotated(local, s), predicted

    return Method(values, _expander(gradients, hessians, lambda value, gradient: value), step, _largest)


def gradient_norm_newton(gradients: Gradients, hessians: Hessians) -> Method:
    """Steps −(H² + δ I)⁻¹ H ∇L on the merit ½‖∇L‖²: to critical points of any index."""

    def merit(theta: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * gradients(theta, rows)[1].square().sum(1)

    def step(local: Local, damping: Tensor) -> tuple[Tensor, Tensor]:
        eigenvalues, slope = local["eigenvalues"], local["slope"]
        s = -eigenvalues * slope / (eigenvalues.square() + damping.unsqueeze(1))
        after = slope + eigenvalues * s
        return _rotated(local, s), 0.5 * (slope.square() - after.square()).sum(1)

    half_square = _expander(gradients, hessians, lambda value, gradient: 0.5 * gradient.square().sum(1))
    return Method(merit, half_square, step, lambda local: _largest(local).square())


def escape_direction(local: Local, tau: float) -> tuple[Tensor, Tensor]:
    """Members with an eigenvalue below −τ max |λ| [A], and the unit eigenvectors of the lowest ones [A, P]."""
    eigenvalues = local["eigenvalues"]
    return eigenvalues[:, 0] < -tau * _largest(local), local["eigenvectors"][:, :, 0]


def _expander(
    gradients: Gradients, hessians: Hessians, merit: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Local]:
    def expand(theta: Tensor, rows: Tensor) -> Local:
        value, gradient = gradients(theta, rows)
        matrix = hessians(theta, rows)
        finite = torch.isfinite(matrix).flatten(1).all(1)
        matrix = torch.where(finite[:, None, None], matrix, torch.zeros_like(matrix))
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        slope = (eigenvectors.mT @ gradient.unsqueeze(2)).squeeze(2)
        gradient = torch.where(finite[:, None], gradient, torch.nan)
        return {
            "value": value,
            "merit": merit(value, gradient),
            "gradient": gradient,
            "eigenvalues": eigenvalues,
            "eigenvectors": eigenvectors,
            "slope": slope,
        }

    return expand


def _rotated(local: Local, s: Tensor) -> Tensor:
    return (local["eigenvectors"] @ s.unsqueeze(2)).squeeze(2)


def _largest(local: Local) -> Tensor:
    return local["eigenvalues"].abs().amax(1).clamp(min=1e-300)
