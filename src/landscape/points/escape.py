"""`escape`: what kind of point is this, which direction leads out, and where to."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.trust import certifiable
from landscape.errors import NumericalError
from landscape.points.certificate import Certificate, SecondHalf, from_dict
from landscape.points.certify import certify_dense
from landscape.points.descent import Trajectory, Way, descend_stack
from landscape.points.descent_large import LowestPair, certify_large, descend_large, move
from landscape.points.results import Escaped
from landscape.points.settings import EscapeSettings
from landscape.points.ways_out import DENSE_STEPS, Followed, Sides, best_steps, follow, follow_large, kicks, profile
from landscape.problem.batches import chosen
from landscape.problem.objective import Objective, build_widest
from landscape.problem.problem import Problem, at_point
from landscape.results.fields import Interval, Spent
from landscape.runtime.arithmetic import resolve_device
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.runtime.progress import Progress
from landscape.settings import keyword_settings
from landscape.stack.build import build_stack
from landscape.stack.hessians import dense_hessians
from landscape.stack.stack import Stack

# Dense Hessians up to here.
DENSE = 3000
# Points of the line on each side of the point, and its length in best steps.
HALF, REACH = 40, 1.6
# Without a step that gains: this share of ‖θ‖.
FALLBACK = 0.3
SIDES = ("+", "-")


def escape(
    problem: Problem,
    point: Tensor | Mapping[str, Tensor] | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Escaped:
    """Certify a point, find its most negative direction, step along both sides of it and descend from there.

    Args:
        problem: model, data and loss; nothing of it is changed.
        point: θ as a flat vector, or a state_dict; None: the model as it is.
        progress: called as (stage, done, total).
        settings: see `EscapeSettings`.

    Raises:
        ProblemError, UsageError, NumericalError: as `spectrum`.
    """
    return run_escape(at_point(problem, point), keyword_settings(EscapeSettings, settings, "escape"), progress)


def run_escape(
    problem: Problem, settings: EscapeSettings, progress: Progress | None = None, pieces: Pieces = FORGETFUL
) -> Escaped:
    """`escape` with its settings as one object; see there. A large network's parts are kept in `pieces`."""
    start = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    used, population, _ = chosen(problem, settings.samples, settings.seed)
    full = population is None
    device = resolve_device(settings.device)
    objective, notes = build_widest(problem, settings.precision, batches=used, device=device, memory=settings.memory)
    notes += certifiable(problem, objective, settings.seed)
    stack, theta = build_stack([problem], objective=objective, memory=settings.memory)
    half = SecondHalf()
    if settings.descend:
        tell("to the critical point", 0, 1)
        way = Way("critical", settings.steps, keep_points=False)
        if stack.parameters <= DENSE_STEPS:
            ended, paths = descend_stack(stack, theta, way)
            theta, half = ended.theta, paths[0].second_half
            move(objective, theta[0])
        else:
            reached, path = descend_large(objective, way, "newton-mr", settings.memory, progress, pieces)
            theta, half = reached.theta.unsqueeze(0), path.second_half
    tell("certificate", 0, 1)
    certificate, pair = _point(stack, objective, theta, settings, full, half, pieces)
    sides = best_steps(stack, theta, pair.vector.unsqueeze(0))
    followed, controls = None, None
    if not settings.certify_only and certificate.verdict != "minimum":
        followed, controls = _follow(stack, objective, theta, pair.vector, sides, settings, full, tell, pieces)
    spent = Spent(
        certificate.products,
        time.perf_counter() - start,
        certificate.dtype,
        str(stack.device),
        {"stacked": not stack.alone, "notes": ()},
        notes,
    )
    return _result(settings, stack, theta, certificate, pair, sides, followed, controls, spent)


def _point(
    stack: Stack,
    objective: Objective,
    theta: Tensor,
    settings: EscapeSettings,
    full: bool,
    half: SecondHalf,
    pieces: Pieces,
) -> tuple[Certificate, LowestPair]:
    """The certificate, and the lowest eigenpair."""
    if stack.parameters <= DENSE:
        dense = dense_hessians(stack, theta)
        if not bool(dense.finite[0]):
            raise NumericalError("the Hessian has NaN or Inf entries", "`landscape doctor` looks for the layer")
        certificate = certify_dense(stack, theta, dense, tau=settings.tau, full_data=full)[0].after(half)
        value, vector = dense.values[0, 0], dense.vectors[0, :, 0].contiguous()
        return certificate, LowestPair(float(value), vector, float((dense.matrix[0] @ vector - value * vector).norm()))
    aside = pieces.get("point")
    if aside is not None:
        return from_dict(aside["certificate"]), LowestPair(**aside["pair"] | {"vector": aside["vector"].to(theta)})
    certificate, pair = certify_large(
        objective,
        loss_name=stack.loss_name,
        tau=settings.tau,
        full_data=full,
        half=half,
        seed=settings.seed,
        memory=settings.memory,
        max_products=settings.max_products,
    )
    numbers = {"value": pair.value, "residual": pair.residual}
    pieces.put("point", {"certificate": certificate.as_dict(), "pair": numbers, "vector": pair.vector.cpu()})
    return certificate, pair


def _follow(
    stack: Stack,
    objective: Objective,
    theta: Tensor,
    direction: Tensor,
    sides: Sides,
    settings: EscapeSettings,
    full: bool,
    tell: Progress,
    pieces: Pieces,
) -> tuple[Followed, Followed | None]:
    """Descents from both sides, and from the controls."""

    def descents(starts: Tensor, label: str, keep: bool) -> Followed:
        way = Way("minimum", settings.steps, tau=settings.tau, keep_points=keep)

        def report(stage: str, done: int, total: int) -> None:
            tell(f"{label}, {stage}", done, total)

        if stack.parameters > DENSE_STEPS:
            limits: dict[str, Any] = {
                "pieces": pieces,
                "name": label,
                "seed": settings.seed,
                "memory": settings.memory,
                "full_data": full,
            }
            limits["max_products"] = settings.max_products
            return follow_large(stack, objective, starts, way, settings.tau, report, **limits)
        return follow(stack, starts, theta.new_zeros(len(starts), dtype=torch.long), way, settings.tau, report, full)

    found = descents(theta + sides.step[0].unsqueeze(1) * direction, "descents", keep=True)
    if not settings.controls:
        return found, None
    generator = torch.Generator().manual_seed(settings.seed)
    length = sides.step[0, int(sides.value[0].argmin())].reshape(1)
    return found, descents(kicks(theta, length, settings.controls, generator)[0], "controls", keep=False)


def _result(
    settings: EscapeSettings,
    stack: Stack,
    theta: Tensor,
    c: Certificate,
    pair: LowestPair,
    sides: Sides,
    followed: Followed | None,
    controls: Followed | None,
    spent: Spent,
) -> Escaped:
    direction = pair.vector
    best = int(sides.value[0].argmin()) if followed is None else int(followed.value.argmin())
    gained = c.loss - float(sides.value.min()) > 1e4 * torch.finfo(theta.dtype).eps * max(abs(c.loss), 1e-300)
    reach = REACH * float(sides.step[0].abs().max()) if gained else FALLBACK * max(1.0, c.parameter_norm)
    offsets = torch.linspace(-reach, reach, 2 * HALF + 1, dtype=theta.dtype, device=theta.device)
    line = profile(stack, theta, direction.unsqueeze(0), offsets.unsqueeze(0))[0].cpu().numpy()
    loss_after = c.loss if followed is None else float(followed.value[best])
    verdict, reason = _verdict(c, followed, best, loss_after)
    path = followed.trajectories[best] if followed is not None else Trajectory()
    ends = followed.certificates if followed is not None else [None, None]
    return Escaped(
        verdict=verdict,
        reason=reason,
        point_verdict=c.verdict,
        end_verdict="" if followed is None else followed.certificates[best].verdict,
        followed=followed is not None,
        parameters=c.parameters,
        samples=round(stack.count),
        loss=c.loss,
        loss_after=loss_after,
        certificate=c,
        end=None if followed is None else followed.certificates[best],
        direction_value=pair.value,
        direction_residual=pair.residual,
        **_gradient_step(stack, theta, direction, float(sides.step[0].abs()[best]), c),
        offset_length=offsets.cpu().numpy(),
        line_loss=line,
        line_even=(line + line[::-1]) / 2 - line[HALF],
        line_odd=(line - line[::-1]) / 2,
        side=np.array(SIDES),
        side_step=sides.step[0].cpu().numpy(),
        side_gain=c.loss - sides.value[0].cpu().numpy(),
        side_loss=np.array([math.nan if e is None else e.loss for e in ends]),
        side_verdict=np.array(["" if e is None else e.verdict for e in ends]),
        side_lambda_min=Interval(
            *(
                np.array([math.nan if e is None else getattr(e.lambda_min, end) for e in ends])
                for end in ("value", "low", "high")
            )
        ),
        side_gradient_inf=np.array([math.nan if e is None else e.gradient_inf for e in ends]),
        side_norm=np.array([math.nan if e is None else e.parameter_norm for e in ends]),
        path_loss=np.array(path.loss) if path.loss else None,
        path_norm=np.array(path.norm) if path.loss else None,
        kept=np.array(path.kept, dtype=np.int64) if path.points else None,
        path_point=np.stack(path.points) if path.points else None,
        control_loss=None if controls is None else controls.value.cpu().numpy(),
        control_verdict=None if controls is None else np.array([k.verdict for k in controls.certificates]),
        start=theta[0].cpu().numpy(),
        direction=direction.cpu().numpy(),
        point=(theta[0] if followed is None else followed.theta[best]).cpu().numpy(),
        tensor=np.array(stack.layout.names),
        tensor_size=np.array(stack.layout.sizes, dtype=np.int64),
        spent=spent,
    )


def _gradient_step(stack: Stack, theta: Tensor, direction: Tensor, length: float, c: Certificate) -> dict[str, Any]:
    """The gradient's share along the direction, and what a gradient step of the same length gains."""
    gradient = stack.values_and_gradients(theta)[1][0]
    norm = float(gradient.norm())
    if c.gradient_inf <= 10 * c.gradient_rounding or norm == 0:
        return {"gradient_overlap": math.nan, "gradient_gain": math.nan}
    after = float(stack.values((theta[0] - length * gradient / norm).unsqueeze(0)))
    return {"gradient_overlap": float((gradient @ direction).abs()) / norm, "gradient_gain": c.loss - after}


def _verdict(c: Certificate, followed: Followed | None, best: int, after: float) -> tuple[str, str]:
    """The word of the whole: that of the point, unless a saddle was left for a lower loss."""
    if c.verdict != "saddle" or followed is None:
        return c.verdict, c.reason
    end = followed.certificates[best]
    if not after < c.loss:
        return "saddle", f"{c.reason}, but descents from both sides ended no lower"
    return "escaped", f"{c.reason}; the way out ends at loss {after:.4g}: {end.verdict} ({end.reason})"
