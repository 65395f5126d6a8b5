"""The frame of a slice: its directions, ranges, plan and checks, made once before any cell is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import ProblemError, UsageError
from landscape.problem.batches import chosen
from landscape.problem.objective import Objective, build_objective
from landscape.problem.parameters import layout_of, trainable
from landscape.problem.problem import Batch, Problem
from landscape.runtime.arithmetic import resolve_device, resolve_dtype
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.runtime.progress import Progress
from landscape.slices.cell_plan import cut, plan_cells
from landscape.slices.cells import CellPlan, Surface, cell_values, normalisations, recalibrated
from landscape.slices.derivative_check import Checked, Exact, check_surface, exact_derivatives
from landscape.slices.direction_words import parse_directions
from landscape.slices.directions import make_directions
from landscape.slices.directions.direction import Around, Direction, Eigenvectors
from landscape.slices.grid import Grid, Marks, as_plain, axis_of, default_reach, from_plain, project
from landscape.slices.metrics import check_classes
from landscape.slices.settings import LINE, PLANE, SliceSettings

# The directions of a plane, by its number.
Planes = Callable[[int], list[Direction]]
# Samples a forward pass of the self-check.
CHECKED = 512


@dataclass(frozen=True)
class Beside:
    """What lies beside the point: other checkpoints as problems, by the words that name them in `dirs`, and in the
    order of a trajectory; tensors of direction files; stored eigenvectors."""

    points: Mapping[str, Problem] = field(default_factory=dict)
    trajectory: Sequence[tuple[str, Problem]] = ()
    tensors: Mapping[str, Sequence[Mapping[str, Tensor]]] = field(default_factory=dict)
    eigenvectors: Eigenvectors | None = None


@dataclass(frozen=True)
class Frame:
    """All of a slice but its cells.

    Attributes:
        grid, plan: which cells, and how. directions: of the first plane. surface: through it, cut as the plan says.
        planes: the directions of every plane, by its number. checked: against autograd. marks: other checkpoints.
        loss_centre, loss_reference, centre_tolerance: L(θ) as the cells have it, and as `Objective.value` has it.
        notes: sentences for the user.
    """

    settings: SliceSettings
    grid: Grid
    plan: CellPlan
    directions: list[Direction]
    surface: Surface
    planes: Planes
    checked: Checked
    marks: Marks
    loss_centre: float
    loss_reference: float
    centre_tolerance: float
    notes: tuple[str, ...]

    def surface_of(self, plane: int) -> Surface:
        """The surface of a plane."""
        if plane == 0:
            return self.surface
        return self.surface.along(torch.stack([d.vector for d in self.planes(plane)]))


def make_frame(
    problem: Problem,
    settings: SliceSettings,
    beside: Beside,
    tell: Progress,
    pieces: Pieces = FORGETFUL,
    wisdom: Pieces = FORGETFUL,
    common: Planes | None = None,
) -> Frame:
    """Directions, ranges, checks and plan; those kept in `pieces` are used again.

    Args:
        common: the directions of every plane, made at another point.

    Raises:
        UsageError: directions that cannot be made; other checkpoints of another architecture.
    """
    tell("directions", 0, 1)
    used, *_ = chosen(problem, settings.samples, settings.seed)
    objective = _objective(problem, used, settings)
    aside, notes = pieces.get("frame"), list[str]()
    points, trajectory = _other_points(beside, objective)
    around = Around(
        objective,
        settings.seed,
        points=points,
        trajectory=trajectory,
        tensors=beside.tensors,
        eigenvectors=beside.eigenvectors,
        memory=settings.memory,
        notes=notes,
    )
    planes = common or _maker(around, settings)
    directions = planes(0) if aside is None else from_plain(aside["directions"], objective.point())
    _warn_of_statistics(beside, objective, settings, notes)
    surface = _surface(objective, directions, settings)
    tell("self-check", 0, 1)
    grid, checked = _checked(surface, directions, settings, notes)
    if aside is not None:
        notes = list(aside["notes"])
    tell("timing", 0, 1)
    if aside is None:
        plan = plan_cells(surface, grid.cells, chunk=settings.batch_size, memory=settings.memory, wisdom=wisdom)
        others = [] if common is None else [as_plain(planes(k)) for k in range(1, settings.repeat)]
        pieces.put(
            "frame", {"directions": as_plain(directions), "plan": plan.as_dict(), "notes": notes, "planes": others}
        )
    else:
        plan = CellPlan.from_dict(aside["plan"])
        planes = _stored_planes(aside["planes"], objective.point()) if aside["planes"] else planes
    surface, reference = cut(surface, plan), _reference(objective, surface.recalibrate)
    single, origin = CellPlan("in place", plan.chunk, 1, curvature=plan.curvature), [0.0] * len(directions)
    centre = float(cell_values(surface.only_loss(), single, [origin])[0, 0])
    marks = _marks(beside, points | dict(trajectory), surface, single, used)
    tolerance = _centre_tolerance(objective, centre)
    return Frame(
        settings, grid, plan, directions, surface, planes, checked, marks, centre, reference, tolerance, tuple(notes)
    )


def _objective(problem: Problem, used: list[Batch], settings: SliceSettings) -> Objective:
    own = next(iter(trainable(problem.model).values())).dtype
    device = resolve_device(settings.device)
    objective = build_objective(
        problem,
        batches=used,
        device=device,
        dtype=resolve_dtype(settings.precision, own),
        memory=settings.memory,
    )
    if "accuracy" in settings.measured:
        check_classes(objective)
    return objective


def _maker(around: Around, settings: SliceSettings) -> Planes:
    specs = parse_directions(settings.dirs)

    def planes(plane: int) -> list[Direction]:
        return make_directions(specs, replace(around, plane=plane), settings.axes)

    return planes


def _stored_planes(plain: Sequence[Mapping[str, Any]], like: Tensor) -> Planes:
    """The directions of the planes after the first one, made at another checkpoint."""
    return lambda plane: from_plain(plain[plane - 1], like)


def _other_points(beside: Beside, objective: Objective) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    points = {name: theta_of(p, objective, name) for name, p in beside.points.items()}
    return points, [(name, theta_of(p, objective, name)) for name, p in beside.trajectory]


def _surface(objective: Objective, directions: list[Direction], settings: SliceSettings) -> Surface:
    start = objective.point()
    return Surface(
        objective,
        start,
        torch.stack([d.vector.to(start) for d in directions]),
        settings.measured,
        settings.batchnorm == "recalibrate",
        settings.seed,
        settings.memory,
    )


def _checked(
    surface: Surface, directions: list[Direction], settings: SliceSettings, notes: list[str]
) -> tuple[Grid, Checked]:
    """Ranges, which may depend on slope and curvature, and the check of the surface against these: in float64, but
    in the surface's own arithmetic where the model or loss does not run in it."""
    try:
        return _checked_in(torch.float64, surface, directions, settings)
    except (RuntimeError, TypeError, ProblemError):
        if surface.start.dtype == torch.float64:
            raise
        notes.append("the self-check is in the checkpoint's own arithmetic: the model or loss does not run in float64")
        return _checked_in(surface.start.dtype, surface, directions, settings)


def _checked_in(
    dtype: torch.dtype, surface: Surface, directions: list[Direction], settings: SliceSettings
) -> tuple[Grid, Checked]:
    objective = surface.objective.in_dtype(dtype)
    if objective.cuttable:
        at_once = surface.objective.at_once  # in its own arithmetic; in float64 products take several times as much
        objective = objective.with_chunks(CHECKED if at_once is None else max(1, min(CHECKED, at_once // 4)))
    plane = surface.directions.to(dtype)
    exact = exact_derivatives(objective, plane, settings.memory)
    grid = _grid(directions, settings, exact, float(surface.start.norm()))
    reach = np.array([(axis[-1] - axis[0]) / 2 for axis in (grid.x, grid.y)[: len(directions)]])
    there = replace(surface, objective=objective, start=surface.start.to(dtype), directions=plane, recalibrate=False)
    return grid, check_surface(there.only_loss(), CHECKED, exact, reach)


def _reference(objective: Objective, recalibrate: bool) -> float:
    """L(θ) as every other command has it; with re-estimated statistics, if cells have them."""
    if not recalibrate:
        return objective.value()
    with recalibrated(objective):
        return objective.value()


def _centre_tolerance(objective: Objective, value: float) -> float:
    """Sums over the same samples in chunks of another size: one rounding a term of a dot product and of the sum."""
    eps = torch.finfo(objective.dtype).eps
    return 100 * eps * max(abs(value), 1e-3)


def theta_of(problem: Problem, objective: Objective, name: str) -> Tensor:
    """θ [P] of another checkpoint of the objective's architecture.

    Raises:
        UsageError: it is of another.
    """
    parameters = trainable(problem.model)
    layout = layout_of(parameters)
    if (layout.names, layout.shapes) != (objective.layout.names, objective.layout.shapes):
        raise UsageError(
            f"{name} is of another architecture: {layout.total:,} parameters in {len(layout.names)} tensors, not "
            f"{objective.layout.total:,} in {len(objective.layout.names)} of the same names and shapes",
            "a slice goes through checkpoints of one shape; `landscape plot` compares slices of different ones",
        )
    return layout.flatten([p.detach() for p in parameters.values()]).to(objective.device, objective.dtype)


def _warn_of_statistics(beside: Beside, objective: Objective, settings: SliceSettings, notes: list[str]) -> None:
    if settings.batchnorm == "recalibrate":
        if not normalisations(objective.model):
            notes.append("--batchnorm recalibrate changes nothing: the network has no running statistics")
    elif normalisations(objective.model) and (beside.points or beside.trajectory):
        notes.append(
            "BatchNorm's statistics are those of the sliced checkpoint everywhere; other checkpoints have their own "
            "(--batchnorm recalibrate estimates them anew at every cell)"
        )


def _grid(directions: list[Direction], settings: SliceSettings, exact: Exact, norm: float) -> Grid:
    if settings.span is not None and len(settings.span) > len(directions):
        raise UsageError("--span has two axes, and the slice is a line", "give one number, such as --span 1")
    counts = settings.points or (LINE if len(directions) == 1 else PLANE)
    axes = []
    for i, d in enumerate(directions):
        if settings.span is not None:
            high = settings.span[min(i, len(settings.span) - 1)]
            low = -high
        elif d.low is not None and d.high is not None:
            low, high = d.low, d.high
        else:
            size = float(d.vector.norm())
            slope, curvature = float(exact.slope[i]) / size, float(exact.curvature[i]) / size**2
            high = default_reach(exact.value, slope, curvature, norm) / size
            low = -high
        axes.append(axis_of(low, high, counts[i]))
    line = len(directions) == 1
    return Grid(axes[0], np.zeros(1) if line else axes[1], line, settings.repeat)


def _marks(beside: Beside, named: Mapping[str, Tensor], surface: Surface, plan: CellPlan, used: list[Batch]) -> Marks:
    """Other checkpoints, projected; each one's true loss is that of its own network, statistics included."""
    if not named:
        return Marks()
    problems = dict(beside.points) | dict(beside.trajectory)
    coordinates, distance = project(surface.start, surface.directions, named)
    losses = []
    for name in named:
        other = build_objective(problems[name], batches=used, device=surface.start.device, dtype=surface.start.dtype)
        losses.append(_reference(other, surface.recalibrate))
    there = cell_values(surface.only_loss(), plan, coordinates.tolist())[:, 0].numpy()
    return Marks(list(named), coordinates, distance, np.array(losses), there)
