"""Certificates made: dense for stacks of small networks, by Lanczos for one large network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.points.certificate import TAUS, VANISHING, Certificate, Interval, Kinks, Pair, SecondHalf
from landscape.points.gradient_scale import gradient_noise, part_gradients
from landscape.points.kinks import Sides, corners, examine, piecewise, unseen
from landscape.points.settings import TAU
from landscape.problem.last_places import LastPlaces
from landscape.problem.symmetries import Symmetries, neurons, symmetries_of, zero_modes
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.stack.stack import Stack

# Neurons nearer than this whose output weights oppose by more than that are a pair that merges.
NEAR, OPPOSED = 0.2, 3.0
# A Hessian may be antisymmetric by this share (a network that casts to float32 inside), and by so many roundings.
LOPSIDED, ROUNDING = 1e-5, 1e3
# What repeated products differ by is the size of rounding, not its most (as in `spectral.noise`).
SAFETY = 4.0
# Bytes of Hessians at a time.
HESSIAN_BYTES = 2**28
# Up to so many parameters one member's zero modes are found here: on a GPU every step of it costs a launch.
ON_HOST = 300


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
        explained = 10 * math.sqrt(stack.parameters) * _repeated_otherwise(stack, theta[i], int(numbers[i]), found, i)
        if float(found.asymmetry[i]) > float(allowed[i]) + explained:
            share = float(found.asymmetry[i] / size[i])
            raise ProblemError(
                f"the Hessian is not symmetric: its antisymmetric part is {share:.0e} of it, more than rounding makes",
                "`landscape doctor` looks for the layer whose second derivative is wrong",
            )


@dataclass(frozen=True)
class Inertia:
    """Of Hessians of a stack, without keeping them.

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


def certify_stack(
    stack: Stack,
    theta: Tensor,
    rows: Tensor | None = None,
    *,
    tau: float = TAU,
    full_data: bool = True,
    halves: Sequence[SecondHalf] | None = None,
    symmetries: Symmetries | None = None,
) -> list[Certificate]:
    """Certificates of θ [A, P] from exact Hessians, in the stack's dtype.

    Args:
        rows: numbers of the members. tau: relative floor of the verdicts. full_data: whether no sample is left out.
        halves: what each descent did in its second half; none was made by default.
        symmetries: of the architecture; looked up by default.
    """
    known = symmetries_of(stack.model, stack.layout, stack.loss_name) if symmetries is None else symmetries
    index = torch.arange(len(theta), device=theta.device) if rows is None else rows
    size = max(1, HESSIAN_BYTES // (8 * stack.parameters**2))
    found: list[Certificate] = []
    for part, numbers in zip(torch.split(theta, size), torch.split(index, size), strict=True):
        found += certify_dense(stack, part, dense_hessians(stack, part, numbers), numbers, tau, full_data, known)
    if halves is not None:
        found = [c.after(h) for c, h in zip(found, halves, strict=True)]
    return found


def certify_dense(
    stack: Stack,
    theta: Tensor,
    hessians: DenseHessians,
    rows: Tensor | None = None,
    tau: float = TAU,
    full_data: bool = True,
    symmetries: Symmetries | None = None,
) -> list[Certificate]:
    """As `certify_stack`, from Hessians that the caller has taken at θ."""
    if symmetries is None:
        symmetries = symmetries_of(stack.model, stack.layout, stack.loss_name)
    eigenvalues = hessians.values
    largest = eigenvalues.abs().amax(1)
    columns, gradient, jumps, bound = _measured(stack, theta, hessians, rows, tau)
    numbers = {name: column.tolist() for name, column in columns.items()}
    zeros = {t: (eigenvalues.abs() <= t * largest.unsqueeze(1)).sum(1).tolist() for t in TAUS}
    negative = (eigenvalues < -tau * largest.unsqueeze(1)).sum(1).tolist()
    lowest, bounds = eigenvalues[:, 0].tolist(), bound.tolist()
    pairs = _merging_pairs(stack, symmetries, theta)
    floors = loss_floor(stack, torch.arange(len(theta), device=theta.device) if rows is None else rows).tolist()
    kinks = _kinks(stack, theta, hessians, gradient, jumps.tolist(), rows, numbers)
    certificates = []
    place = torch.device("cpu") if stack.parameters <= ON_HOST else theta.device
    for i in range(len(theta)):
        row = {name: column[i] for name, column in numbers.items()}
        if row["gradient_inf"] <= 10 * row["gradient_rounding"]:
            row["flatness"] = math.nan
        least: float = lowest[i]
        explained: dict[str, int] = {}
        if symmetries.any and math.isfinite(row["lambda_max"]) and lowest[i] <= tau * row["lambda_max"]:
            left_out = ("dead units",) if kinks[i] is not None else ()
            point, matrix = theta[i].to(place), hessians.matrix[i].to(place)
            least, explained = _least_beyond(symmetries, point, matrix, row["lambda_max"], lowest[i], left_out)
        certificates.append(
            Certificate(
                dtype=str(theta.dtype).removeprefix("torch."),
                full_data=full_data,
                parameters=stack.parameters,
                loss_floor=floors[i],
                lambda_min=_around(lowest[i], bounds[i]),
                lambda_min_beyond=_around(least, bounds[i]),
                vanishing=vanishing(stack),
                negative=negative[i],
                zeros={f"{t:g}": column[i] for t, column in zeros.items()},
                symmetries=explained,
                tau=tau,
                pair=pairs[i],
                kinks=kinks[i],
                **row,
            )
        )
    return certificates


def _measured(
    stack: Stack, theta: Tensor, hessians: DenseHessians, rows: Tensor | None, tau: float
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Numbers of certificates by name [A], gradients [A, P], whether they jump [A], and how far eigenvalues may be
    off [A]."""
    eps = torch.finfo(theta.dtype).eps
    value, gradient = stack.values_and_gradients(theta, rows)
    finite = hessians.finite & torch.isfinite(value)
    eigenvalues, eigenvectors = hessians.values, hessians.vectors
    largest = eigenvalues.abs().amax(1)
    # As `linalg.dense.dense_spectrum`: what symmetry shows of the products' error, and one rounding a column.
    rounding = math.sqrt(stack.parameters) * eps * largest + eps * stack.saturation(theta, rows)
    bound = hessians.asymmetry + rounding + _cancelled(stack, theta, hessians, rows)
    slope = (eigenvectors.mT @ gradient.unsqueeze(2)).squeeze(2)
    beyond = eigenvalues.abs() > torch.maximum(tau * largest, bound).unsqueeze(1)
    decrement = (slope.square() / eigenvalues.abs().clamp(min=1e-300) * beyond).sum(1).sqrt()
    norm = gradient.norm(dim=1)
    flat = (eigenvalues * slope).norm(dim=1) / (largest * norm).clamp(min=1e-300)
    pull = part_gradients(stack, theta, rows)
    noise, jumps = gradient_noise(stack, theta, gradient, pull, rows)
    columns = {
        "loss": value,
        "gradient_inf": gradient.abs().amax(1),
        "gradient_norm": norm,
        "gradient_rounding": torch.maximum(eps * largest * theta.norm(dim=1), noise),
        "gradient_pull": pull,
        "newton_decrement": decrement,
        "lambda_max": torch.where(finite, largest, torch.nan),
        "parameter_norm": theta.norm(dim=1),
        "flatness": flat,
    }
    return columns, gradient, jumps, bound


def _cancelled(stack: Stack, theta: Tensor, hessians: DenseHessians, rows: Tensor | None) -> Tensor:
    """How far rounding moves products of ∇²L with unit vectors [A], for losses of the user's own, where nothing is
    known of the terms that cancel in them: products repeated with other last places. 0 for other losses."""
    found = theta.new_zeros(len(theta))
    if stack.loss_name is None:
        numbers = range(len(theta)) if rows is None else rows.tolist()
        for i, row in enumerate(numbers):
            found[i] = _repeated_otherwise(stack, theta[i], row, hessians, i) if bool(hessians.finite[i]) else 0.0
    return found


def _repeated_otherwise(stack: Stack, theta: Tensor, row: int, hessians: DenseHessians, i: int) -> float:
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


def _kinks(
    stack: Stack,
    theta: Tensor,
    hessians: DenseHessians,
    gradient: Tensor,
    jumps: list[bool],
    rows: Tensor | None,
    numbers: dict[str, list[float]],
) -> list[Kinks | None]:
    """Of every member, its activations at corners, seen or shown by a jump of ∇L; None where it has two derivatives."""
    index = list(range(len(theta))) if rows is None else rows.tolist()
    found: list[Kinks | None] = [None] * len(theta)
    leaves = [t.detach().requires_grad_() for t in theta]
    if not (any(jumps) or piecewise(lambda: stack.member_sum(leaves[0], index[0], stack.batches[0]))):
        return found
    for i, leaf in enumerate(leaves):
        if not (math.isfinite(numbers["loss"][i]) and math.isfinite(numbers["lambda_max"][i])):
            continue
        met = corners(stack.model, lambda: [stack.member_sum(leaf, index[i], b) for b in stack.batches])  # noqa: B023
        met = met or unseen(jumps[i])
        found[i] = examine(met, _sides(stack, theta[i], index[i], hessians, i, gradient[i], numbers)) if met else None
    return found


def _sides(
    stack: Stack,
    theta: Tensor,
    row: int,
    hessians: DenseHessians,
    i: int,
    gradient: Tensor,
    numbers: dict[str, list[float]],
) -> Sides:
    def members(points: Tensor) -> Tensor:
        return torch.full((len(points),), row, dtype=torch.long, device=points.device)

    return Sides(
        theta,
        gradient,
        numbers["gradient_rounding"][i],
        lambda v: hessians.matrix[i] @ v,
        numbers["lambda_max"][i],
        numbers["loss"][i],
        lambda points: stack.values_and_gradients(points, members(points)),
        lambda points: stack.hessians(points, members(points)),
        hessians.vectors[i, :, 0],
    )


def _around(value: float, bound: float) -> Interval:
    return Interval(value, value - bound, value + bound)


def _least_beyond(
    symmetries: Symmetries, theta: Tensor, matrix: Tensor, scale: float, lowest: float, left_out: tuple[str, ...]
) -> tuple[float, dict[str, int]]:
    """The lowest eigenvalue of H on the complement of the verified tangents, and what each symmetry explains."""
    basis, counts = zero_modes(symmetries, theta, lambda v: matrix @ v, scale, left_out=left_out)
    if not counts:
        return lowest, {}
    if basis.shape[1] == len(theta):
        return 0.0, counts
    complement = torch.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
    return float(torch.linalg.eigvalsh(complement.mT @ matrix @ complement)[0]), counts


def vanishing(stack: Stack) -> bool:
    """Whether the loss is one of probabilities alone, whose infimum 0 is met at infinity only."""
    return stack.loss_name in VANISHING and not stack.weight_decay


def loss_floor(stack: Stack, rows: Tensor) -> Tensor:
    """Squared errors that rounding of the targets makes in float64, of the members `rows` [A]; 0 in float32, for other
    losses and with weight decay."""
    square = torch.zeros(len(rows), dtype=torch.float64, device=stack.device)
    if stack.loss_name != "mse" or stack.weight_decay or stack.dtype != torch.float64:
        return square
    for _, targets in stack.batches:
        square += (
            stack.others[targets][rows].square().flatten(1).sum(1) if stack.own else targets.double().square().sum()
        )
    return torch.finfo(stack.dtype).eps ** 2 * square / stack.count


def _merging_pairs(stack: Stack, symmetries: Symmetries, theta: Tensor) -> list[Pair | None]:
    """Of every member, the two neurons that merge most while their output weights oppose; None if there are none."""
    best: list[Pair | None] = [None] * len(theta)
    tensors = dict(zip(stack.layout.names, stack.layout.unflatten(theta), strict=True))
    for hidden in symmetries.hidden:
        width = len(stack.model.get_submodule(hidden.layer).weight)  # type: ignore[arg-type]
        if width < 2 or width > 256:
            continue
        both = torch.func.vmap(lambda named, hidden=hidden: neurons(hidden, named) or (theta[0, :0], theta[0, :0]))(
            tensors
        )
        incoming, outgoing = both
        if not incoming.numel():
            continue
        size, weight = incoming.norm(dim=2), outgoing.norm(dim=2)
        distance = torch.cdist(incoming, incoming) / (size.unsqueeze(1) + size.unsqueeze(2)).clamp(min=1e-300)
        together = (outgoing.unsqueeze(1) + outgoing.unsqueeze(2)).norm(dim=3)
        opposition = (weight.unsqueeze(1) + weight.unsqueeze(2)) / together.clamp(min=1e-300)
        candidate = (distance < NEAR) & (opposition > OPPOSED)
        candidate &= torch.ones(width, width, dtype=torch.bool, device=theta.device).triu(1)
        score = torch.where(candidate, opposition / distance.clamp(min=1e-12), 0.0).flatten(1)
        top, place = score.max(1)
        for i in (top > 0).nonzero().squeeze(1).tolist():
            a, b = divmod(int(place[i]), width)
            best[i] = best[i] or Pair(hidden.layer, a, b, float(distance[i, a, b]), float(opposition[i, a, b]))
    return best
