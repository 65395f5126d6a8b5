"""Certificates made: dense for stacks of small networks, by Lanczos for one large network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.points.certificate import TAUS, VANISHING, Certificate, Kinks, Pair, SecondHalf
from landscape.points.gradient_scale import gradient_noise, part_gradients
from landscape.points.kinks import Sides, corners, examine, piecewise, unseen
from landscape.points.settings import TAU
from landscape.problem.symmetries import Symmetries, neurons, symmetries_of, zero_modes
from landscape.results.fields import Interval
from landscape.stack.hessians import HESSIAN_BYTES, DenseHessians, dense_hessians, repeated_otherwise
from landscape.stack.stack import Stack

# Neurons nearer than this whose output weights oppose by more than that are a pair that merges.
NEAR, OPPOSED = 0.2, 3.0
# Up to this many parameters one member's zero modes are found here: on a GPU every step of it costs a launch.
ON_HOST = 300


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
            found[i] = repeated_otherwise(stack, theta[i], row, hessians, i) if bool(hessians.finite[i]) else 0.0
    return found


def _kinks(
    stack: Stack,
    theta: Tensor,
    hessians: DenseHessians,
    gradient: Tensor,
    jumps: list[bool],
    rows: Tensor | None,
    numbers: dict[str, list[float]],
) -> list[Kinks | None]:
    """The activations at corners of every member, seen or shown by a jump of ∇L; None where it has two derivatives."""
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
    """The two neurons of every member that merge most while their output weights oppose; None if there are none."""
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
