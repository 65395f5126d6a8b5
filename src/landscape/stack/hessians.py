"""Dense Hessians of a stack with their eigenpairs, held to be symmetric; and their signs, some at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.problem.last_places import LastPlaces
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.stack.stack import Stack

# A Hessian may be antisymmetric by this share (a network that casts to float32 inside), and by this many roundings.
LOPSIDED, ROUNDING = 1e-5, 1e3
# What repeated products differ by is the size of rounding, not its most (as in `curvature.product_error`).
SAFETY = 4.0
# Bytes of Hessians at a time.
HESSIAN_BYTES = 2**28


@dataclass(frozen=True)
class DenseHessians:
    """Hessians of a stack with their eigenpairs.

    Attributes:
        matrix: [A, P, P], zeros where not finite. finite: [A]. asymmetry: Frobenius norms of what making them
            symmetric removed [A]. values, vectors: ascending [A, P], and columns [A, P, P].
    """

    matrix: Tensor
    finite: Tensor
    asymmetry: Tensor
    values: Tensor
    vectors: Tensor


def dense_hessians(stack: Stack, theta: Tensor, rows: Tensor | None = None) -> DenseHessians:
    """Hessians of θ [A, P] of the members `rows` [A], decomposed.

    Raises:
        ProblemError: one is not symmetric beyond rounding: autograd's Hessian is not that of the loss.
    """
    matrix, asymmetry = stack.hessians_measured(theta, rows)
    finite = torch.isfinite(matrix).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], matrix, torch.zeros_like(matrix))
    found = DenseHessians(safe, finite, asymmetry, *torch.linalg.eigh(safe))
    _require_symmetric(stack, theta, found, rows)
    return found


def _require_symmetric(stack: Stack, theta: Tensor, found: DenseHessians, rows: Tensor | None) -> None:
    size, eps = found.values.norm(dim=1), torch.finfo(theta.dtype).eps
    allowed = (LOPSIDED + ROUNDING * eps) * size
    if not bool((found.finite & (found.asymmetry > allowed)).any()):
        return
    allowed = allowed + ROUNDING * eps * stack.saturation(theta, rows)
    numbers = torch.arange(len(theta), device=theta.device) if rows is None else rows
    for i in torch.nonzero(found.finite & (found.asymmetry > allowed)).flatten().tolist():
        explained = 10 * math.sqrt(stack.parameters) * repeated_otherwise(stack, theta[i], int(numbers[i]), found, i)
        if float(found.asymmetry[i]) > float(allowed[i]) + explained:
            share = float(found.asymmetry[i] / size[i])
            raise ProblemError(
                f"the Hessian is not symmetric: its antisymmetric part is {share:.0e} of it, more than rounding makes",
                "`landscape doctor` looks for the layer whose second derivative is wrong",
            )


@dataclass(frozen=True)
class Inertia:
    """Signs and lowest eigenpairs of the Hessians of a stack, without keeping them.

    Attributes:
        negative, zero: eigenvalues below −floor, and within [A]. lowest: with the error of its matrix [A]; NaN, and
            no negative eigenvalue, where a Hessian is not finite. vectors: lowest eigenvectors [A, P].
    """

    negative: Tensor
    zero: Tensor
    lowest: Tensor
    error: Tensor
    vectors: Tensor


def inertia(
    stack: Stack,
    theta: Tensor,
    tau: float,
    progress: Callable[[str, int, int], None] | None = None,
    floor: Tensor | None = None,
) -> Inertia:
    """Signs and lowest eigenpairs of the Hessians at θ [A, P], some at a time.

    Args:
        tau: eigenvalues within this share of max |λ| are zero; or those within `floor` [A], if that is given, absolute.
    """
    size = max(1, HESSIAN_BYTES // (8 * stack.parameters**2))
    negative, zero = (torch.zeros(len(theta), dtype=torch.long, device=theta.device) for _ in range(2))
    lowest, error, vectors = theta.new_empty(len(theta)), theta.new_empty(len(theta)), torch.empty_like(theta)
    for begin in range(0, len(theta), size):
        index = torch.arange(begin, min(begin + size, len(theta)), device=theta.device)
        found = dense_hessians(stack, theta[index], index)
        highest = found.values.abs().amax(1, keepdim=True)
        near = tau * highest if floor is None else floor[index].unsqueeze(1)
        negative[index] = (found.values < -near).sum(1)
        zero[index] = (found.values.abs() <= near).sum(1)
        eps = torch.finfo(theta.dtype).eps
        rounding = math.sqrt(stack.parameters) * eps * highest.squeeze(1) + eps * stack.saturation(theta[index], index)
        lowest[index] = torch.where(found.finite, found.values[:, 0], torch.nan)
        error[index] = torch.where(found.finite, found.asymmetry + rounding, torch.inf)
        vectors[index] = found.vectors[:, :, 0]
        if progress is not None:
            progress("wide Hessians", begin + len(index), len(theta))
    return Inertia(negative, zero, lowest, error, vectors)


def repeated_otherwise(stack: Stack, theta: Tensor, row: int, hessians: DenseHessians, i: int) -> float:
    """How far rounding moves products of unit vectors with ∇²L of one member: the i-th of the Hessians."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, stack.parameters, generator=generator, dtype=torch.float64).to(theta)
    vectors, found = torch.cat([hessians.vectors[i][:, [0, -1]].T, drawn / drawn.norm()]), 0.0
    try:
        for _ in range(2):  # the second time where the first has sent the vectors
            off = _repeated(stack, theta, row, vectors) - _repeated(stack, theta, row, vectors, LastPlaces(0))
            found = max(found, SAFETY * float(off.norm(dim=1).max()))
            vectors = torch.nn.functional.normalize(off, dim=1)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # `torch.func` in a loss bears no other mode
        if is_out_of_memory(error):
            raise
    return found


def _repeated(stack: Stack, theta: Tensor, row: int, vectors: Tensor, inside: LastPlaces | None = None) -> Tensor:
    """Products of ∇²L, without its penalty, of one member with vectors [k, P]."""
    total = torch.zeros_like(vectors)
    with strict_arithmetic(), inside or nullcontext():
        for batch in stack.batches:
            leaf = theta.detach().clone().requires_grad_()
            slope = torch.autograd.grad(
                stack.member_sum(leaf, row, batch), leaf, create_graph=True, materialize_grads=True
            )[0]
            if slope.requires_grad:
                for k, vector in enumerate(vectors):
                    total[k] += torch.autograd.grad(slope, leaf, vector, retain_graph=True, materialize_grads=True)[0]
    return total / stack.count
