"""`widen`: split the neurons of a layer, foretell and measure the inertia, and follow the ways that open."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature.trust import certifiable
from landscape.errors import NumericalError, ProblemError
from landscape.points.certificate import Certificate
from landscape.points.certify import certify_dense
from landscape.points.descent import Way
from landscape.points.settings import TAU as VERDICT_TAU
from landscape.points.ways_out import kicked, profile, ways_out
from landscape.problem.batches import chosen, read_batches, take
from landscape.problem.layers import Hidden
from landscape.problem.objective import Objective, build_objective
from landscape.problem.problem import Problem, at_point
from landscape.results.fields import Spent
from landscape.runtime.arithmetic import resolve_device, strict_arithmetic
from landscape.runtime.progress import Progress
from landscape.settings import keyword_settings
from landscape.stack.build import build_stack
from landscape.stack.hessians import dense_hessians, inertia
from landscape.stack.stack import Stack
from landscape.widening.networks import Split, check_split, find_hidden, require_smooth, smoothed, widened, width_of
from landscape.widening.result import Widened
from landscape.widening.settings import SHARES, WidenSettings
from landscape.widening.theory import foretell, inner_hessians

# Dense wide Hessians up to here.
DENSE = 3000
# Points of a line on each side.
HALF = 50
SIDES = ("+", "-")


def widen(
    problem: Problem,
    layer: str,
    point: Tensor | Mapping[str, Tensor] | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Widened:
    """Split neurons of `layer`, and compare the inertia of the wide Hessian with what second order foretells.

    Args:
        problem: model, data and loss; nothing of it is changed. layer: a linear or convolution layer.
        point: θ as a flat vector, or a state_dict; None: the model as it is.
        progress: called as (stage, done, total).
        settings: see `WidenSettings`.

    Raises:
        UsageError: no such layer, neuron or share. ProblemError: ReLU behind the layer, embeddings, grouped or
            shared layers. NumericalError: NaN or Inf.
    """
    return run_widen(
        at_point(problem, point), keyword_settings(WidenSettings, {"layer": layer, **settings}, "widen"), progress
    )


def run_widen(problem: Problem, settings: WidenSettings, progress: Progress | None = None) -> Widened:
    """`widen` with its settings as one object; see there."""
    start = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    objective, narrow, full = _narrow(problem, settings)
    hidden = find_hidden(objective.model, settings.layer, settings.following)
    require_smooth(objective.model, hidden)
    splits = _splits(objective.model, hidden, settings)
    tell("inner Hessians", 0, len(splits))
    notes = certifiable(narrow, objective, settings.seed)
    inner = inner_hessians(objective, hidden)
    stack, theta = build_stack([narrow], objective=objective, memory=settings.memory)
    dense = dense_hessians(stack, theta)
    certificate = certify_dense(stack, theta, dense, tau=settings.tau, full_data=full)[0]
    if not math.isfinite(certificate.lambda_max):
        raise NumericalError("the Hessian has NaN or Inf entries", "`landscape doctor` looks for the layer")
    still = certificate.stationary or _hidden_by_floor(certificate, settings.tau)
    critical = still and not objective.weight_decay
    values, vectors = dense.values[0], dense.vectors[0]
    floor = settings.tau * certificate.lambda_max
    zeros = int((values.abs() <= floor).sum())
    foretold = [foretell(inner[s.neuron], s.shares, floor) for s in splits]
    offsets = _offsets(theta[0])
    columns = _measured(narrow, objective, hidden, splits, offsets, settings, tell, floor)
    found = _columns(columns, settings)
    return Widened(
        **found,
        parameters=certificate.parameters,
        loss=certificate.loss,
        point_verdict=certificate.verdict,
        certificate=certificate,
        layer=hidden.layer,
        following=hidden.next,
        reason=_reason(certificate, still, objective.weight_decay),
        critical=critical,
        followed=settings.follow,
        samples=round(objective.count),
        split=np.array([_name(s) for s in splits]),
        neuron=np.array([s.neuron for s in splits], dtype=np.int64),
        share=_padded(splits),
        predicted_negative=np.array([certificate.negative + f.negative for f in foretold]) if critical else None,
        predicted_zero=np.array([zeros + f.zero for f in foretold]) if critical else None,
        lambda_bound=np.array([f.lowest if critical else math.nan for f in foretold]),
        inner_eigenvalue=np.stack([inner[s.neuron].eigenvalues.cpu().numpy() for s in splits]),
        narrow_zero=zeros,
        offset_length=offsets.cpu().numpy(),
        old_loss=profile(stack, theta, vectors[:, :1].mT, offsets.unsqueeze(0))[0].cpu().numpy(),
        spent=Spent(0, time.perf_counter() - start, "float64", str(objective.device), {"notes": ()}, notes),
    )


def narrow_problem(problem: Problem, smooth: float | None) -> Problem:
    """The problem that is split: with softplus for ReLU if that was asked for."""
    if smooth is None:
        return problem
    return replace(problem, model=smoothed(problem.model, smooth))


def _narrow(problem: Problem, settings: WidenSettings) -> tuple[Objective, Problem, bool]:
    narrow = narrow_problem(problem, settings.smooth)
    batches, population, _ = chosen(narrow, settings.samples, settings.seed)
    narrow = replace(narrow, data=batches)
    device = resolve_device(settings.device)
    objective = build_objective(narrow, batches=batches, device=device, dtype=torch.float64, memory=settings.memory)
    return objective, narrow, population is None


def _splits(model: nn.Module, hidden: Hidden, settings: WidenSettings) -> list[Split]:
    width = width_of(model, hidden.layer)
    found = [Split(j, s) for j in (settings.neurons or range(width)) for s in settings.shares]
    for split in found:
        check_split(split, width, hidden.layer)
    return found


@dataclass
class _Row:
    """What was measured of one split."""

    preserved: float = math.nan
    negative: int = 0
    zero: int = 0
    lowest: float = math.nan
    error: float = math.nan
    gradient_inf: float = math.nan
    line: np.ndarray | None = None
    sides: list[tuple[float, str]] | None = None
    controls: np.ndarray | None = None
    narrow_controls: np.ndarray | None = None


def _measured(
    narrow: Problem,
    objective: Objective,
    hidden: Hidden,
    splits: list[Split],
    offsets: Tensor,
    settings: WidenSettings,
    tell: Progress,
    floor: float,
) -> list[_Row]:
    """Every split made; those with as many copies go in one stack. Eigenvalues are counted at the floor of the narrow
    network: a split has larger ones, and counts at two floors are of two things."""
    rows = [_Row() for _ in splits]
    for copies in sorted({len(s.shares) for s in splits}):
        members = [i for i, s in enumerate(splits) if len(s.shares) == copies]
        models = [widened(objective.model, hidden, [splits[i]]) for i in members]
        problems = [replace(narrow, model=m, data=objective.batches) for m in models]
        stack, theta = build_stack(problems, device=objective.device, memory=settings.memory)
        if stack.parameters > DENSE:
            raise ProblemError(
                f"a split network has {stack.parameters:,} parameters, and the inertia of dense Hessians is counted "
                f"up to {DENSE:,}",
                "write the widened checkpoint with --write, and use landscape escape and spectrum on it",
            )
        for i, model in zip(members, models, strict=True):
            rows[i].preserved = _change(objective.model, model, objective)
        directions = _spectra(stack, theta, [rows[i] for i in members], offsets, floor, tell)
        if settings.follow:
            _follow(stack, theta, directions, [rows[i] for i in members], narrow, objective, settings, tell)
    return rows


def _change(before: nn.Module, after: nn.Module, objective: Objective) -> float:
    """Largest change of an output on a batch, relative to the largest output.

    Raises:
        ProblemError: the function is not preserved, so something else reads the layer.
    """
    batch = take(objective.batches[0], slice(0, 256)) if objective.cuttable else objective.batches[0]
    with strict_arithmetic():
        old, new = (float(objective.loss(m, batch)[0].detach()) for m in (before, after))
        if isinstance(batch, tuple | list) and len(batch) == 2:
            a, b = before(batch[0]).detach(), after(batch[0]).detach()
            change = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300)
        else:
            change = abs(old - new) / max(abs(old), 1e-300)
    if change > 1e-9:
        raise ProblemError(
            f"splitting changes the outputs (by {change:.0e}): something besides the next layer reads this one",
            "residual connections and normalisations over neurons do not allow splitting a neuron alone",
        )
    return change


def require_preserved(problem: Problem, before: nn.Module, after: nn.Module) -> None:
    """Check on the problem's data that two networks compute the same, in float64. Raises ProblemError."""
    batches = read_batches(problem)
    narrow = replace(problem, model=before, data=batches)
    objective = build_objective(narrow, batches=batches, dtype=torch.float64)
    _change(objective.model, after.to(torch.float64).eval(), objective)


def _spectra(stack: Stack, theta: Tensor, rows: list[_Row], offsets: Tensor, floor: float, tell: Progress) -> Tensor:
    """Inertia and lowest eigenpair of every wide Hessian; the lowest eigenvectors [A, P]."""
    found = inertia(stack, theta, 0.0, tell, theta.new_full((len(theta),), floor))
    gradients = stack.values_and_gradients(theta)[1].abs().amax(1)
    lines = profile(stack, theta, found.vectors, offsets.expand(len(theta), -1)).cpu().numpy()
    for i, row in enumerate(rows):
        row.negative, row.zero = int(found.negative[i]), int(found.zero[i])
        row.lowest, row.error = float(found.lowest[i]), float(found.error[i])
        row.gradient_inf, row.line = float(gradients[i]), lines[i]
    return found.vectors


def _offsets(theta: Tensor) -> Tensor:
    """Places [T] of the lines that are drawn through a point θ [P]."""
    reach = 0.2 * max(1.0, float(theta.norm()))
    return torch.linspace(-reach, reach, 2 * HALF + 1, dtype=theta.dtype, device=theta.device)


def _follow(
    stack: Stack,
    theta: Tensor,
    directions: Tensor,
    rows: list[_Row],
    narrow: Problem,
    objective: Objective,
    settings: WidenSettings,
    tell: Progress,
) -> None:
    """Descents from both sides of every split that opens a way out, and from random kicks of the same length."""
    for row in rows:
        row.sides = [(math.nan, "")] * 2
        row.controls = row.narrow_controls = np.full(settings.controls, math.nan)
    open_ = torch.tensor([i for i, row in enumerate(rows) if row.negative], dtype=torch.long, device=theta.device)
    if not len(open_):
        return
    part, at, along = stack.of(open_), theta[open_], directions[open_]
    way = Way("minimum", settings.steps, keep_points=False)

    def told(words: str) -> Progress:
        return lambda stage, done, total: tell(f"{words}, {stage}", done, total)

    ended, length = ways_out(part, at, along, way, VERDICT_TAU, told("ways out"))
    for k, i in enumerate(open_.tolist()):
        rows[i].sides = [(ended.certificates[2 * k + s].loss, ended.certificates[2 * k + s].verdict) for s in (0, 1)]
    if not settings.controls:
        return

    def reached(stack: Stack, at: Tensor, away: Tensor | None) -> np.ndarray:
        ends = kicked(stack, at, length, settings.controls, generator, way, away, told("controls"))
        return ends.cpu().numpy()

    generator = torch.Generator().manual_seed(settings.seed)
    wide = reached(part, at, along)
    small, point = build_stack([narrow], objective=objective, memory=settings.memory)
    alone = torch.zeros_like(open_)
    stayed = reached(small.of(alone), point[alone], None)
    for k, i in enumerate(open_.tolist()):
        rows[i].controls, rows[i].narrow_controls = wide[k], stayed[k]


def _columns(rows: list[_Row], settings: WidenSettings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "preserved": np.array([r.preserved for r in rows]),
        "measured_negative": np.array([r.negative for r in rows], dtype=np.int64),
        "measured_zero": np.array([r.zero for r in rows], dtype=np.int64),
        "lambda_min": np.array([r.lowest for r in rows]),
        "lambda_error": np.array([r.error for r in rows]),
        "wide_gradient_inf": np.array([r.gradient_inf for r in rows]),
        "new_loss": np.stack([r.line for r in rows if r.line is not None]),
    }
    if settings.follow:
        losses = np.array([[s[0] for s in r.sides or ()] for r in rows])
        words = np.array([[s[1] for s in r.sides or ()] for r in rows])
        best = np.where(np.isnan(losses), np.inf, losses).argmin(1)
        found |= {
            "side": np.array(SIDES),
            "side_loss": losses,
            "side_verdict": words,
            "escape_loss": losses[np.arange(len(rows)), best],
            "escape_verdict": words[np.arange(len(rows)), best],
        }
        if settings.controls:
            found["control_loss"] = np.stack([r.controls for r in rows if r.controls is not None])
            found["narrow_control_loss"] = np.stack([r.narrow_controls for r in rows if r.narrow_controls is not None])
    return found


def _hidden_by_floor(c: Certificate, tau: float) -> bool:
    """Whether the gradient is less than what an eigenvalue at the floor has over ‖θ‖, as near interpolation."""
    return c.gradient_norm <= tau * c.lambda_max * c.parameter_norm


def _reason(c: Certificate, still: bool, weight_decay: float) -> str:
    if weight_decay:
        return "with weight decay a split point is not critical: no index is foretold, see wide_gradient_inf"
    return "" if still else f"the point is {c.verdict} ({c.reason}): no index is foretold"


def _padded(splits: list[Split]) -> np.ndarray:
    """Shares [split, copy], NaN where a split has fewer copies."""
    most = max(len(s.shares) for s in splits)
    return np.array([[*s.shares, *[math.nan] * (most - len(s.shares))] for s in splits])


def _name(split: Split) -> str:
    return f"{split.neuron}: {', '.join(f'{s:.4g}' for s in split.shares)}"


__all__ = ["SHARES", "WidenSettings", "narrow_problem", "require_preserved", "run_widen", "widen"]
