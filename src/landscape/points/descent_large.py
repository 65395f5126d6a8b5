"""The descent of one network too large for dense Hessians, and its certificate by Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from landscape.curvature.eigenpairs import MIXED_IN, basis_room, find_extremes
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.errors import NumericalError
from landscape.linalg.exclusion import exclusion_bound
from landscape.linalg.lanczos import Extremes
from landscape.optim.matrix_free import Ended, lbfgs, newton_krylov, newton_mr
from landscape.points.certificate import VANISHING, Certificate, Kinks, SecondHalf
from landscape.points.descent import Trajectory, Way
from landscape.points.gradient_scale import noise_and_jumps, part_gradients_of
from landscape.points.kinks import Sides, corners, examine, unseen
from landscape.problem.batches import rechunk
from landscape.problem.graph import gradients
from landscape.problem.objective import Objective
from landscape.problem.symmetries import symmetries_of, zero_modes
from landscape.problem.user_loss import outputs_of
from landscape.results.fields import Interval
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.runtime.progress import Progress

# The probability with which an exclusion may fail.
MISS_PROBABILITY = 1e-3
# Searches for what is excluded, each as long as the Ritz values of the one before ask for.
AGAIN = 3
# θ is kept along the way only below this many parameters.
SNAPSHOT_PARAMETERS = 20_000
# Tangents of symmetries are verified by a product each.
MOST_TANGENTS = 100
# How high, relative to the loss, a trial point is put where the loss overflows.
WALL = 1e3


def descend_large(
    objective: Objective,
    way: Way,
    method: str,
    memory: int | None = None,
    progress: Progress | None = None,
    pieces: Pieces = FORGETFUL,
    name: str = "descent",
) -> tuple[Ended, Trajectory]:
    """From the objective's θ; its model is moved along.

    Args:
        method: "lbfgs", "newton-krylov" or "newton-mr".
        pieces: θ and the trajectory are kept under `name` now and then; a descent goes on from there, without
            what its method had learnt of the curvature.
    """
    aside = pieces.get(name)
    trajectory, start = Trajectory(), objective.point()
    if aside is not None:
        trajectory, start = Trajectory.from_plain(aside["trajectory"]), aside["theta"].to(start)
        if "ended" in aside:
            move(objective, start)
            return Ended(start, **aside["ended"]), trajectory
    again = aside is not None
    keep = way.keep_points and len(start) <= SNAPSHOT_PARAMETERS

    def put(theta: Tensor, **more: Any) -> None:
        pieces.put(name, {"theta": theta.cpu(), "trajectory": trajectory.as_plain(), "tolerance": tolerance, **more})

    def observe(theta: Tensor, value: float, slope: Tensor) -> None:
        nonlocal again
        size = float(slope.abs().max())
        if not again:  # the first point of a descent that goes on is the last one of the earlier part
            trajectory.add(value, size, float(theta.norm()), theta if keep else None)
        again = False
        if progress is not None:
            progress(f"loss {value:.6g}, max |gradient| {size:.1e}", len(trajectory.loss), way.steps)
        if pieces.due():
            put(theta)

    gradient = _walled(objective, start, trajectory)
    plan: dict[str, object] = {"memory": memory, "expected_products": 50}

    def products(theta: Tensor) -> Callable[[Tensor], Tensor]:
        move(objective, theta)
        operator = CurvatureOperator(objective, **plan)  # type: ignore[arg-type]
        plan.update(strategy=operator.plan.strategy, batch_size=operator.plan.chunk)  # timed once
        return operator

    left = way.steps - max(0, len(trajectory.loss) - 1)
    move(objective, start)
    tolerance = way.gradient * part_gradients_of(objective) if aside is None else aside["tolerance"]
    limits = {"tolerance": tolerance, "steps": left, "observe": observe}
    if method == "lbfgs":
        ended = lbfgs(gradient, start, **limits)  # type: ignore[arg-type]
    else:
        solver = newton_krylov if method == "newton-krylov" else newton_mr
        ended = solver(gradient, products, start, **limits)  # type: ignore[arg-type]
    move(objective, ended.theta)
    if keep:
        trajectory.keep(len(trajectory.loss) - 1, ended.theta)
    put(ended.theta, ended={f.name: getattr(ended, f.name) for f in fields(Ended) if f.name != "theta"})
    return ended, trajectory


def _walled(objective: Objective, start: Tensor, trajectory: Trajectory) -> Callable[[Tensor], tuple[float, Tensor]]:
    """L and ∇L; where the loss overflows on the way, a slope back to the last point where it did not."""
    inside = (start, 0.0)

    def gradient(theta: Tensor) -> tuple[float, Tensor]:
        move(objective, theta)
        nonlocal inside
        try:
            value, slope = objective.value_and_gradient()
        except NumericalError:
            if not trajectory.loss:
                raise
            # A trial step too long. Uphill from the last point that was none, so that the methods take it back.
            away, rise = theta - inside[0], WALL * max(1.0, abs(inside[1]))
            return inside[1] + rise, rise * away / away.square().sum().clamp(min=1e-300)
        inside = (theta.clone(), value)
        return value, slope

    return gradient


def move(objective: Objective, theta: Tensor) -> None:
    """Put θ into the objective's model; kept graphs of older operators are dead after this."""
    with torch.no_grad():
        for parameter, value in zip(objective.parameters, objective.layout.unflatten(theta), strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class LowestPair:
    """The lowest eigenpair that was found: value, unit vector [P], explicit residual ‖Hv − value v‖."""

    value: float
    vector: Tensor
    residual: float


def certify_large(
    objective: Objective,
    *,
    loss_name: str | None,
    tau: float,
    full_data: bool = True,
    half: SecondHalf | None = None,
    seed: int = 0,
    memory: int | None = None,
    max_products: int = 500,
    progress: Progress | None = None,
) -> tuple[Certificate, LowestPair]:
    """The certificate of the objective's θ: the lowest eigenvalue as a Rayleigh quotient (an upper bound) and an
    exclusion bound, which holds with probability 1 − 1e-3 over the random start; and the pair of that eigenvalue.
    Products that are not symmetric beyond their error, which every bound includes, are a ProblemError."""
    value, gradient = objective.value_and_gradient()
    n = objective.layout.total
    operator = CurvatureOperator(objective, memory=memory, expected_products=max_products)

    def tell(done: int, *_: int) -> None:
        if progress is not None:
            progress("lowest eigenvalue", done, max_products)

    room = basis_room(operator, memory, 2)
    first, found, explained = _lowest(
        objective,
        operator,
        loss_name,
        tau,
        max_products,
        progress=tell,
        noise=0.0,
        room=room,
        generator=torch.Generator().manual_seed(seed),
        top=1,
        bottom=1,
        towards=gradient,
    )
    largest = max(abs(float(found.ritz_values[0])), abs(float(found.ritz_values[-1])))
    noise = _noise(objective, loss_name, largest, seed, operator.plan.chunk)
    before, interval = float(first.ritz_values[0]), _excluding(found, n, noise)
    image = operator(gradient)
    pair = _pair(operator, first.bottom_vector[:, 0].contiguous())
    pull = part_gradients_of(objective)
    rounding, jumps = _gradient_noise(objective, gradient, pull, largest)
    certificate = Certificate(
        dtype=str(objective.dtype).removeprefix("torch."),
        full_data=full_data,
        parameters=n,
        loss=value,
        loss_floor=_floor(objective, loss_name),
        gradient_inf=float(gradient.abs().max()),
        gradient_norm=float(gradient.norm()),
        gradient_rounding=rounding,
        gradient_pull=pull,
        vanishing=loss_name in VANISHING and not objective.weight_decay,
        newton_decrement=math.nan,
        lambda_min=Interval(before, min(interval.low, before - noise), before + noise) if explained else interval,
        lambda_min_beyond=interval,
        lambda_max=largest,
        negative=int((found.ritz_values < -tau * largest - noise).sum()),
        symmetries=explained,
        kinks=_kinks(objective, operator.plan.chunk, jumps, value, gradient, rounding, largest, pair.vector),
        tau=tau,
        parameter_norm=float(objective.point().norm()),
        flatness=float(image.norm()) / max(largest * float(gradient.norm()), 1e-300),
        exact=bool(found.exhausted),
        products=operator.products,
        products_needed=_promised(n, found, tau, noise, max_products, room.max_basis),
    )
    return certificate.after(half or SecondHalf()), pair


def _excluding(found: Extremes, n: int, noise: float) -> Interval:
    """The lowest Ritz value of a run, and below which number no eigenvalue of the n lies."""
    seen = found.unrestarted_steps, n, found.unrestarted_min, found.unrestarted_max
    low, lowest = exclusion_bound(*seen, MISS_PROBABILITY, MIXED_IN), float(found.ritz_values[0])
    return Interval(lowest, -math.inf if math.isnan(low) else low - noise, lowest + noise)


def _noise(objective: Objective, loss_name: str | None, largest: float, seed: int, chunk: int) -> float:
    """How far rounding moves eigenvalues: as in dense certificates, and as products differ from better ones."""
    eps = torch.finfo(objective.dtype).eps
    foreseen = math.sqrt(objective.layout.total) * eps * largest + eps * _saturation(objective, loss_name)
    return max(foreseen, product_error(objective, "hessian", seed, chunk))


def _pair(operator: CurvatureOperator, vector: Tensor) -> LowestPair:
    image = operator(vector)
    value = float(vector @ image)
    return LowestPair(value, vector, float((image - value * vector).norm()))


def _lowest(
    objective: Objective,
    operator: CurvatureOperator,
    loss_name: str | None,
    tau: float,
    max_products: int,
    **shared: Any,
) -> tuple[Extremes, Extremes, dict[str, int]]:
    """A Lanczos run to the lowest eigenvalue; a second one, without stopping and beyond the named zero modes, for
    the exclusion, if nothing negative was seen; and the zero modes by name."""
    first = find_extremes(operator, rtol=1e-3, tau=tau, max_products=max_products, **shared)
    if _settled(first, tau):
        return first, first, {}
    known = symmetries_of(objective.model, objective.layout, loss_name)
    scale = float(abs(first.ritz_values).max())
    modes, explained = zero_modes(known, objective.point(), operator, scale, MOST_TANGENTS)
    deflate = modes if modes.shape[1] else None
    second, most = first, 0
    for _ in range(AGAIN):
        needed = min(max_products, products_to_settle(operator.n, second, tau))
        if needed <= most or (most and _settled(second, tau)):
            break
        most = needed
        least = min(most, shared["room"].max_basis)  # behind a restart nothing more is excluded
        second = find_extremes(operator, rtol=0.0, tau=0.0, max_products=most, least=least, deflate=deflate, **shared)
    return first, second, explained


def _settled(found: Extremes, tau: float) -> bool:
    """Whether a run leaves nothing to exclude: it spans the space, or has seen a negative eigenvalue."""
    return found.exhausted or bool(found.ritz_values[0] <= -tau * abs(found.ritz_values).max())


def products_to_settle(n: int, found: Extremes, tau: float, noise: float = 0.0) -> int:
    """Steps of a Lanczos run from a random start after which no eigenvalue within the verdict's reach is left open:
    above τ max |λ| if the lowest Ritz value is, above −τ max |λ| otherwise; n if not even those would do."""
    low, high = float(found.ritz_values[0]) - noise, float(found.ritz_values[-1])
    floor = tau * max(abs(low), abs(high))
    wanted = floor if low > 2 * floor else -floor
    steps = 4
    while steps < n and not exclusion_bound(steps, n, low, high, MISS_PROBABILITY, MIXED_IN) > wanted:
        steps += 1 + steps // 20
    return min(steps, n)


def _promised(n: int, found: Extremes, tau: float, noise: float, spent: int, room: int) -> int | None:
    """What `max_products` would settle the case; None where more products than were allowed would not."""
    needed = products_to_settle(n, found, tau, noise)
    possible = float(found.ritz_values[0]) - noise > -tau * float(abs(found.ritz_values).max())
    return needed if possible and spent < needed <= room else None


def _saturation(objective: Objective, loss_name: str | None) -> float:
    """As `Stack.saturation`."""
    if loss_name not in ("cross_entropy", "bce") or not all(isinstance(b, tuple | list) for b in objective.batches):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(objective.layout.total, dtype=objective.dtype, device=objective.device)
    for batch in objective.batches:
        outputs = outputs_of(objective.loss, objective.model, lambda model: model(batch[0]))  # noqa: B023
        signs = (2 * torch.randint(2, outputs.shape, generator=generator) - 1).to(outputs)
        total += objective.layout.flatten(gradients((signs * outputs).sum(), objective.parameters))
    return float(total.square().sum()) / objective.count


def _kinks(
    objective: Objective,
    chunk: int,
    jumps: bool,
    value: float,
    gradient: Tensor,
    rounding: float,
    largest: float,
    lowest: Tensor,
) -> Kinks | None:
    """Activations at corners, looked for in chunks of `chunk` samples; operators are spent afterwards, since the model
    moves."""
    batches = rechunk(objective.batches, max(1, chunk)) if objective.cuttable else objective.batches
    met = corners(objective.model, lambda: [objective.batch_sum(b) for b in batches]) or unseen(jumps)
    if not met:
        return None
    theta, operator = objective.point(), CurvatureOperator(objective, batch_size=chunk or None)
    sides = Sides(theta, gradient, rounding, operator, largest, value, lambda p: _at(objective, p), lowest=lowest)
    return examine(met, sides)


def _at(objective: Objective, points: Tensor) -> tuple[Tensor, Tensor]:
    """L [m] and ∇L [m, P] at points, from where θ goes back to where it was."""
    theta, values, slopes = objective.point(), [], []
    try:
        for point in points:
            move(objective, point)
            value, slope = objective.value_and_gradient()
            values.append(value)
            slopes.append(slope)
    finally:
        move(objective, theta)
    return torch.tensor(values, dtype=theta.dtype, device=theta.device), torch.stack(slopes)


def _gradient_noise(objective: Objective, gradient: Tensor, pull: float, largest: float) -> tuple[float, bool]:
    """As `gradient_scale.gradient_noise`, and at least what the largest eigenvalue makes of the rounding of θ."""
    theta, pulls = objective.point().unsqueeze(0), torch.tensor([pull], dtype=gradient.dtype, device=gradient.device)
    noise, jumps = noise_and_jumps(lambda p, index: _at(objective, p)[1], theta, gradient.unsqueeze(0), pulls)
    least = torch.finfo(theta.dtype).eps * largest * float(theta.norm())
    return max(least, float(noise)), bool(jumps)


def _floor(objective: Objective, loss_name: str | None) -> float:
    if loss_name != "mse" or objective.weight_decay or objective.dtype != torch.float64:
        return 0.0
    square = sum(float(b[1].double().square().sum()) for b in objective.batches) / objective.count
    return float(torch.finfo(objective.dtype).eps ** 2 * square)
