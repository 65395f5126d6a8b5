"""How negative a Hessian can be near interpolation: a bound by the loss, and how many eigenvalues it leaves flat.

With the mean squared error of this project, L = (1/n) Σ_i Σ_c r_ic², r_ic = f_c(x_i) − y_ic (summed over the C outputs,
mean over the n samples, no ½),

    ∇²L = (2/n) Σ_ic ∇f_ic ∇f_icᵀ + (2/n) Σ_ic r_ic ∇²f_ic = G + R.

For unit v, |vᵀRv| ≤ (2/n) Σ_ic |r_ic| ‖∇²f_ic‖, and Cauchy–Schwarz over the nC pairs (i, c) gives

    ‖R‖ ≤ (2/n) (Σ r_ic²)^½ (Σ ‖∇²f_ic‖²)^½ = 2 √L · rms,    rms² = (1/n) Σ_i Σ_c ‖∇²f_ic‖²:

the mean is over samples only, as in L; with a mean over outputs too, a factor √C would be needed. Since G is positive
semidefinite, λ_min(∇²L) ≥ −2 √L · rms, with equality for one sample and one parameter where ∇f = 0 and r ∇²f < 0. Since
rank G ≤ nC, Weyl's inequality leaves at least P − nC eigenvalues of ∇²L within ±2 √L · rms of zero; at L = 0 they are
exact zeros and nothing is negative. Weight decay w shifts all of it by w, and L is then taken without the penalty.
Any norm at least as large as the spectral one gives a bound; the Frobenius norm is cheaper, and looser by up to √P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.points.settings import TAU
from landscape.stack.hessians import HESSIAN_BYTES, DenseHessians, dense_hessians
from landscape.stack.stack import Stack

NORMS = ("spectral", "frobenius")


@dataclass(frozen=True, eq=False)
class Interpolation:
    """S networks of P parameters against the bound.

    Attributes:
        loss: L without weight decay [S]. lambda_min, lambda_max: of ∇²L, lowest, and largest in absolute value [S].
        curvature: rms norm of ∇²f_ic over samples, summed over outputs [S]. norm: which norm.
        bound: weight decay − 2 √L · curvature, which λ_min cannot be below [S]. rounding: of λ_min, estimated [S].
        flat: eigenvalues within ±2 √L · curvature (and rounding) of the weight decay; at least P − nC [S].
        zeros: eigenvalues within τ max |λ| of zero [S]. negative: those below −τ max |λ| [S].
        negative_mass: their share of Σ |λ| [S].
        interpolates: whether L is so small that its bound is within τ max |λ|: `zeros` then counts at least P − nC,
            and `negative` nothing, but for rounding and weight decay [S].
        parameters: P. residuals: n·C. tau: of the counts.
    """

    loss: np.ndarray
    lambda_min: np.ndarray
    lambda_max: np.ndarray
    curvature: np.ndarray
    norm: str
    bound: np.ndarray
    rounding: np.ndarray
    flat: np.ndarray
    zeros: np.ndarray
    negative: np.ndarray
    negative_mass: np.ndarray
    interpolates: np.ndarray
    parameters: int
    residuals: int
    tau: float

    @property
    def holds(self) -> np.ndarray:
        """Whether both bounds hold but for rounding [S]: λ_min above its bound, and at least P − nC flat ones."""
        enough = self.flat >= self.parameters - self.residuals
        return np.asarray((self.lambda_min >= self.bound - self.rounding) & enough)


@dataclass(frozen=True, eq=False)
class Counts:
    """What is counted of S networks of P parameters, any loss: L, eigenvalues within τ max |λ| of zero, those below
    −τ max |λ|, and the share of these in Σ |λ| [S each]."""

    loss: np.ndarray
    zeros: np.ndarray
    negative: np.ndarray
    negative_mass: np.ndarray
    parameters: int


def counts(stack: Stack, theta: Tensor, *, tau: float = TAU) -> Counts:
    """From the dense Hessians of all members at θ [S, P]."""
    values = torch.cat([h.values for h in _dense(stack, theta)])
    found = {"loss": stack.values(theta), **_counted(values, tau)}
    return Counts(**{name: t.cpu().numpy() for name, t in found.items()}, parameters=stack.parameters)


def _dense(stack: Stack, theta: Tensor) -> list[DenseHessians]:
    size = max(1, HESSIAN_BYTES // (8 * stack.parameters**2))
    rows = torch.arange(len(theta), device=theta.device)
    return [dense_hessians(stack, theta[part], part) for part in torch.split(rows, size)]


def _counted(values: Tensor, tau: float) -> dict[str, Tensor]:
    """The counts of eigenvalues [S, P]."""
    floor = tau * values.abs().amax(1, keepdim=True)
    below = values < -floor
    return {
        "zeros": (values.abs() <= floor).sum(1),
        "negative": below.sum(1),
        "negative_mass": (values.abs() * below).sum(1) / values.abs().sum(1).clamp(min=1e-300),
    }


def interpolation(stack: Stack, theta: Tensor, *, tau: float = TAU, norm: str = "spectral") -> Interpolation:
    """Spectra, bound and counts of all members at θ [S, P].

    Args:
        norm: "spectral", exact, or "frobenius", an upper bound on it, of every ∇²f_ic.

    Raises:
        ProblemError: the loss is not the built-in "mse" over pairs of tensors, or `norm` is unknown.
    """
    if stack.loss_name != "mse" or not stack.least_squares_like:
        raise ProblemError("the bound at interpolation is one for the built-in loss 'mse' over (inputs, targets)")
    if norm not in NORMS:
        raise ProblemError(f"there is no norm {norm!r}", f"choose one of {', '.join(NORMS)}")
    decay = stack.weight_decay
    loss = (stack.values(theta) - 0.5 * decay * theta.square().sum(1)).clamp(min=0)
    curvature = output_curvature(stack, theta, norm=norm)
    parts = _dense(stack, theta)
    values = torch.cat([h.values for h in parts])
    largest = values.abs().amax(1)
    # As certificates: the asymmetry that was seen, one rounding a column; and the rounding of the bound itself.
    eps = torch.finfo(theta.dtype).eps
    residual = 2 * loss.sqrt() * curvature
    rounding = torch.cat([h.asymmetry for h in parts]) + stack.parameters * eps * (largest + residual)
    near = (values - decay).abs() <= (residual + rounding).unsqueeze(1)
    found = {
        "loss": loss,
        "lambda_min": values[:, 0],
        "lambda_max": largest,
        "curvature": curvature,
        "bound": decay - residual,
        "rounding": rounding,
        "flat": near.sum(1),
        **_counted(values, tau),
        "interpolates": residual <= tau * largest,
    }
    arrays = {name: t.cpu().numpy() for name, t in found.items()}
    residuals = round(stack.count) * stack.outputs
    return Interpolation(**arrays, norm=norm, parameters=stack.parameters, residuals=residuals, tau=tau)


def output_curvature(stack: Stack, theta: Tensor, *, norm: str = "spectral") -> Tensor:
    """√((1/n) Σ_i Σ_c ‖∇²f_c(x_i)‖²) of every member [S], from the Hessian of every single output [P, P]."""
    total = theta.new_zeros(len(theta))
    samples = max(1, HESSIAN_BYTES // (8 * stack.outputs * stack.parameters**2))
    for i in range(len(theta)):
        others = {name: t[i] for name, t in stack.others.items()}
        for batch in stack.batches:
            for inputs in torch.split(batch[0], samples):
                total[i] += _squares(_output_hessians(stack, theta[i], others, inputs), norm)
    found: Tensor = (total / stack.count).sqrt()
    return found


def _output_hessians(stack: Stack, flat: Tensor, others: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """∇²f_c(x_i) [n · C, P, P], by forward over reverse mode: `jvp(grad)` is right where `jvp(jacrev)` is not."""

    def output(flat: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(stack.model, stack.named(flat, others), (x.unsqueeze(0),))
        return (weight * outputs.reshape(-1)).sum()

    def column(direction: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        slope = torch.func.grad(output)
        pushed: Tensor = torch.func.jvp(lambda t: slope(t, x, weight), (flat,), (direction,))[1]
        return pushed

    columns = torch.func.vmap(column, in_dims=(0, None, None))
    each = torch.func.vmap(torch.func.vmap(columns, in_dims=(None, None, 0)), in_dims=(None, 0, None))
    basis = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    found: Tensor = each(basis, inputs, torch.eye(stack.outputs, dtype=flat.dtype, device=flat.device))
    found = found.detach().flatten(0, 1)
    return (found + found.mT) / 2


def _squares(hessians: Tensor, norm: str) -> Tensor:
    """Σ ‖H‖² over matrices [K, P, P]."""
    if norm == "frobenius":
        return hessians.square().sum()
    largest: Tensor = torch.linalg.eigvalsh(hessians).abs().amax(1)
    return largest.square().sum()
