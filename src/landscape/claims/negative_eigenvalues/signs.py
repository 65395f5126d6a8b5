"""Signs of Hessian eigenvalues over an ensemble: S networks of one shape that differ in their seeds only.

The counts are those of exact float64 spectra; "negative" is below −τ max |λ| of the same network, because rounding
makes negative eigenvalues out of zero ones, and the more of them the wider the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import NumericalError, UsageError
from landscape.points.settings import TAU
from landscape.stack.hessians import HESSIAN_BYTES, dense_hessians
from landscape.stack.stack import Stack


@dataclass(frozen=True, eq=False)
class SignEnsemble:
    """Spectra of S networks with P parameters each, at one stage of their training.

    Attributes:
        eigenvalues: of ∇²L, ascending [S, P].
        negative, zero: eigenvalues below −τ max |λ|, and within τ max |λ| of zero [S].
        loss, gradient_norm: L and ‖∇L‖ [S].
        tau: relative to max |λ| of the same member.
    """

    eigenvalues: np.ndarray
    negative: np.ndarray
    zero: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    tau: float


def sign_ensemble(stack: Stack, theta: Tensor, *, tau: float = TAU) -> SignEnsemble:
    """The spectra of all members of the stack at θ [S, P].

    Raises:
        UsageError: the stack is not in float64, in which alone zero can be told from negative.
        NumericalError: a loss or Hessian is NaN or infinite.
    """
    if stack.dtype != torch.float64:
        raise UsageError(f"signs are counted in float64; this stack is in {stack.dtype}", "use --precision float64")
    value, gradient = stack.values_and_gradients(theta)
    size = max(1, HESSIAN_BYTES // (8 * stack.parameters**2))
    rows = torch.arange(len(theta), device=theta.device)
    found = [dense_hessians(stack, theta[part], part) for part in torch.split(rows, size)]
    finite = torch.cat([h.finite for h in found]) & torch.isfinite(value)
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1).tolist()
        raise NumericalError(f"the loss or the Hessian of {len(bad)} networks (number {bad[0]} first) is not finite")
    eigenvalues = torch.cat([h.values for h in found]).cpu().numpy()
    negative, zero = counts(eigenvalues, tau)
    return SignEnsemble(
        eigenvalues, negative, zero, value.cpu().numpy(), gradient.norm(dim=1).cpu().numpy(), float(tau)
    )


def counts(eigenvalues: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """The counts of spectra [S, P]: how many lie below −τ max |λ|, and within τ max |λ| of zero [S]."""
    floor = tau * np.abs(eigenvalues).max(axis=1, keepdims=True)
    return (eigenvalues < -floor).sum(axis=1), (np.abs(eigenvalues) <= floor).sum(axis=1)
