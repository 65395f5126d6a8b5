"""`descend`: from checkpoints to certified critical points of their own basins, stacked where shapes agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature.trust import certifiable
from landscape.errors import LandscapeError, ProblemError
from landscape.optim.damped import REASONS
from landscape.points.certificate import Certificate
from landscape.points.certify import certify_stack
from landscape.points.descent import Trajectory, Way, descend_stack, flow_stack
from landscape.points.descent_large import certify_large, descend_large
from landscape.points.results import Descended
from landscape.points.settings import DescendSettings
from landscape.problem.batches import chosen, fingerprint, read_batches
from landscape.problem.objective import Objective, build_widest
from landscape.problem.parameters import Layout
from landscape.problem.problem import Problem, at_point
from landscape.results.fields import Spent
from landscape.runtime.arithmetic import resolve_device
from landscape.runtime.progress import Progress
from landscape.settings import keyword_settings
from landscape.stack.build import build_stack, stack_key

STACKED = ("auto", "newton", "flow")
# Dense steps up to here; dense certificates of matrix-free descents up to there.
DENSE_STEPS, DENSE_CERTIFICATE = 1000, 3000


def descend(
    problem: Problem,
    point: Tensor | Mapping[str, Tensor] | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Descended:
    """From a point of a problem to a certified critical point or minimum of its own basin.

    Args:
        problem: model, data and loss; nothing of it is changed.
        point: θ as a flat vector, or a state_dict; None: the model as it is.
        progress: called as (stage, done, total).
        settings: see `DescendSettings`.

    Returns:
        A frozen `Descended`; its `point` is where the descent ended, in the order of `tensor`.

    Raises:
        ProblemError, UsageError, NumericalError: as `spectrum`.
    """
    found = run_descents([at_point(problem, point)], keyword_settings(DescendSettings, settings, "descend"), progress)[
        0
    ]
    if isinstance(found, LandscapeError):
        raise found
    return found


def _way(settings: DescendSettings) -> Way:
    """The settings as the descents of stacks take them."""
    return Way(settings.to, settings.steps, settings.gradient, settings.tau, gauss_newton=settings.method == "auto")


def run_descents(
    problems: Sequence[Problem],
    settings: DescendSettings,
    progress: Progress | None = None,
    done: Callable[[int, Descended | LandscapeError], None] | None = None,
) -> list[Descended | LandscapeError]:
    """`descend` for many problems: those of equal architecture, data and loss go in one stack.

    A problem that cannot be analysed gives its error in place of a result. `done` is called with the number of
    each as it is finished.
    """
    results: list[Descended | LandscapeError | None] = [None] * len(problems)
    groups: dict[Any, list[int]] = {}
    for i, problem in enumerate(problems):
        try:
            key = (stack_key(problem), fingerprint(read_batches(problem)))
        except LandscapeError as error:
            results[i] = error
            if done is not None:
                done(i, error)
        else:
            groups.setdefault(key, []).append(i)
    for members in groups.values():

        def finished(k: int, one: Descended | LandscapeError, members: list[int] = members) -> None:
            results[members[k]] = one
            if done is not None:
                done(members[k], one)

        _group([problems[i] for i in members], settings, progress, finished)
    return [r for r in results if r is not None]


def _group(
    problems: list[Problem],
    settings: DescendSettings,
    progress: Progress | None,
    finished: Callable[[int, Descended | LandscapeError], None],
) -> None:
    """Problems of one architecture and data; what cannot be descended from is an error of its own."""
    used, population, _ = chosen(problems[0], settings.samples, settings.seed)
    full = population is None
    device = resolve_device(settings.device)
    told: dict[int, tuple[str, ...]] = {}

    def objective_of(k: int) -> Objective | None:
        try:
            made, notes = build_widest(
                problems[k], settings.precision, batches=used, device=device, memory=settings.memory
            )
            told[k] = notes
            return made
        except LandscapeError as error:
            finished(k, error)
            return None

    numbers = [k for k in range(len(problems)) if _is_finite(problems[k].model) or objective_of(k) is not None]
    first = None
    while numbers and first is None:
        first = objective_of(numbers[0])
        numbers = numbers if first is not None else numbers[1:]
    if first is None:
        return
    try:
        told[numbers[0]] += certifiable(problems[numbers[0]], first, settings.seed)
    except LandscapeError as error:
        for k in numbers:
            finished(k, error)
        return
    small = first.layout.total <= DENSE_STEPS or settings.method != "auto"
    if settings.method in STACKED and small:
        try:
            found: Sequence[Descended | LandscapeError]
            found = _stacked([problems[k] for k in numbers], first, settings, full, progress, told[numbers[0]])
        except LandscapeError as error:
            found = [error] * len(numbers)
        for k, one in zip(numbers, found, strict=True):
            finished(k, one)
        return
    for k in numbers:
        objective = first if k == numbers[0] else objective_of(k)
        if objective is None:
            continue
        try:
            finished(k, _one_large(problems[k], objective, settings, full, progress, told[k]))
        except LandscapeError as error:
            finished(k, error)


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if isinstance(t, Tensor))


def _stacked(
    problems: list[Problem],
    first: Objective,
    settings: DescendSettings,
    full: bool,
    progress: Progress | None,
    notes: tuple[str, ...],
) -> list[Descended]:
    start = time.perf_counter()
    stack, theta = build_stack(problems, objective=first, memory=settings.memory)
    before = stack.values(theta)
    follow = flow_stack if settings.method == "flow" else descend_stack
    ended, paths = follow(stack, theta, _way(settings), progress)
    halves = [p.second_half for p in paths]
    gauss_newton = settings.method == "auto" and settings.to == "minimum" and stack.least_squares_like
    method = "levenberg-marquardt, newton" if gauss_newton else settings.method.replace("auto", "newton")
    certificates = certify_stack(stack, ended.theta, tau=settings.tau, full_data=full, halves=halves)
    seconds = (time.perf_counter() - start) / len(problems)
    plan = {"stacked": 1 if stack.alone else len(problems), "notes": ()}
    return [
        _result(
            settings,
            method,
            certificates[i],
            paths[i],
            ended.theta[i],
            REASONS[int(ended.reason[i])],
            float(before[i]),
            len(paths[i].loss) - 1,
            stack.layout,
            stack.count,
            Spent(0, seconds, certificates[i].dtype, str(stack.device), plan, notes),
        )
        for i in range(len(problems))
    ]


def _one_large(
    problem: Problem,
    objective: Objective,
    settings: DescendSettings,
    full: bool,
    progress: Progress | None,
    notes: tuple[str, ...],
) -> Descended:
    start = time.perf_counter()
    before, way, products = objective.value(), _way(settings), 0
    methods = [settings.method]
    if settings.method == "auto":
        methods = ["newton-mr"] if settings.to == "critical" else ["lbfgs", "newton-krylov"]
    paths = []
    for method in methods:
        ended, path = descend_large(objective, way, method, settings.memory, progress)
        products += ended.products
        paths.append(path)
    path = paths[0]
    for later in paths[1:]:
        path.follow(later)
    name = problem.loss if isinstance(problem.loss, str) else None
    certificate = None
    if objective.layout.total <= DENSE_CERTIFICATE:
        certificate = _dense_certificate(problem, objective, settings, full, path)
    if certificate is None:
        certificate, _ = certify_large(
            objective,
            loss_name=name,
            tau=settings.tau,
            full_data=full,
            half=path.second_half,
            seed=settings.seed,
            memory=settings.memory,
            max_products=settings.max_products,
            progress=progress,
        )
    spent = Spent(
        products + certificate.products,
        time.perf_counter() - start,
        certificate.dtype,
        str(objective.device),
        {"stacked": 1, "notes": ()},
        notes,
    )
    steps = len(path.loss) - 1
    return _result(
        settings,
        ", ".join(methods),
        certificate,
        path,
        ended.theta,
        ended.reason,
        before,
        steps,
        objective.layout,
        objective.count,
        spent,
    )


def _dense_certificate(
    problem: Problem, objective: Objective, settings: DescendSettings, full: bool, path: Trajectory
) -> Certificate | None:
    """The certificate of the objective's θ from its exact Hessian; None for a network that cannot be stacked."""
    stack, _ = build_stack([problem], objective=objective, memory=settings.memory)
    theta = objective.point().unsqueeze(0)
    try:
        return certify_stack(stack, theta, tau=settings.tau, full_data=full, halves=[path.second_half])[0]
    except ProblemError:
        return None


def _result(
    settings: DescendSettings,
    method: str,
    c: Certificate,
    path: Trajectory,
    theta: Tensor,
    stopped: str,
    before: float,
    steps: int,
    layout: Layout,
    count: float,
    spent: Spent,
) -> Descended:
    return Descended(
        to=settings.to,
        method=method,
        verdict=c.verdict,
        reason=c.reason,
        stopped=stopped,
        parameters=c.parameters,
        samples=round(count),
        steps=steps,
        loss_before=before,
        loss=c.loss,
        certificate=c,
        path_loss=np.array(path.loss),
        path_gradient_inf=np.array(path.gradient_inf),
        path_norm=np.array(path.norm),
        kept=np.array(path.kept, dtype=np.int64) if path.points else None,
        path_point=np.stack(path.points) if path.points else None,
        point=theta.detach().cpu().numpy(),
        tensor=np.array(layout.names),
        tensor_size=np.array(layout.sizes, dtype=np.int64),
        spent=spent,
    )
