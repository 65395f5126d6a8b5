"""`slice`: the loss on a line or in a plane through a point, with a check of itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from landscape.problem.batchnorm import batchnorm_statistics
from landscape.problem.problem import Problem, at_point
from landscape.results.fields import Spent
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.runtime.progress import Progress
from landscape.settings import keyword_settings
from landscape.slices.frame import Beside, Frame, make_frame
from landscape.slices.grid import Cells, barrier, cell_fields, fill
from landscape.slices.result import Sliced
from landscape.slices.settings import SliceSettings

# Directions that are kept in the result; larger ones are made again from their seeds and files.
KEPT_NUMBERS = 2**24
# Two directions nearer to a right angle than this are called orthogonal.
ORTHOGONAL = 1e-6


def slice(
    problem: Problem,
    point: Tensor | Mapping[str, Tensor] | None = None,
    *,
    beside: Beside | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Sliced:
    """L(θ + x d₀ + y d₁) on a grid, with other metrics on request, checked against autograd at the centre.

    Args:
        problem: model, data and loss; nothing of it is changed.
        point: θ as a flat vector, or a state_dict; None: the model as it is.
        beside: other checkpoints and tensors that `dirs` names.
        progress: called as (stage, done, total).
        settings: see `SliceSettings`.

    Raises:
        ProblemError, UsageError, NumericalError: as `spectrum`; UsageError also for directions that cannot be made.
    """
    made = keyword_settings(SliceSettings, settings, "slice")
    return run_slice(at_point(problem, point), made, beside or Beside(), progress)


def run_slice(
    problem: Problem,
    settings: SliceSettings,
    beside: Beside,
    progress: Progress | None = None,
    pieces: Pieces = FORGETFUL,
    wisdom: Pieces = FORGETFUL,
) -> Sliced:
    """`slice` with its settings as one object; frame and cells are kept in `pieces`."""
    start = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    frame = make_frame(problem, settings, beside, tell, pieces, wisdom)
    cells = stored_cells(frame, pieces)
    compute(frame, cells, tell, pieces.due, lambda done: pieces.put("cells", done.as_plain()))
    return finish(frame, cells, time.perf_counter() - start)


def compute(
    frame: Frame,
    cells: Cells,
    tell: Progress,
    due: Callable[[], bool],
    put: Callable[[Cells], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """The missing cells of a share.

    Args:
        due, put: whether it is time to store what is there, and what stores it; also done at the end.
    """

    def each(done: int) -> None:
        tell("cells", done, len(cells.done))
        if due():
            put(cells)

    fill(cells, frame.grid, frame.plan, frame.surface_of, each, share)
    put(cells)


def stored_cells(frame: Frame, pieces: Pieces) -> Cells:
    """The cells that an interrupted run has kept; none otherwise."""
    aside = pieces.get("cells")
    return Cells.empty(frame.grid, frame.surface.metrics) if aside is None else Cells(**aside)


def _ends_at_one(frame: Frame) -> bool:
    """Whether this is the line to another checkpoint, which lies at 1 (with --common it may lie elsewhere)."""
    marks, line = frame.marks, frame.grid.line and frame.settings.dirs.startswith("between")
    if not (line and marks.names):
        return False
    length = float(frame.surface.directions.double().norm())
    return bool(abs(marks.coordinates[0, 0] - 1) < 1e-4 and marks.distance[0] < 1e-4 * length)


def finish(frame: Frame, cells: Cells, seconds: float) -> Sliced:
    """The result of a frame and its cells, whether all of them are there or not."""
    settings, grid, directions = frame.settings, frame.grid, frame.directions
    plane, layout = frame.surface.directions.double(), frame.surface.objective.layout
    norms = plane.norm(dim=1)
    found: dict[str, Any] = cell_fields(cells, grid, frame.surface.metrics)
    if _ends_at_one(frame) and bool(cells.done.all()):
        ends = (frame.loss_centre, float(frame.marks.surface_loss[0]))
        found["barrier"], found["barrier_at"] = barrier(grid, found["loss"][0], ends)
    cosine, notes = math.nan, list(frame.notes)
    if not grid.line:
        cosine = float((plane[0] @ plane[1]) / (norms[0] * norms[1]))
        if abs(cosine) > ORTHOGONAL:
            angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
            notes.append(f"the two directions stand at {angle:.4g} degrees")
    explained = [d.explained for d in directions]
    plan = {**frame.plan.as_dict(), "notes": ()}
    keep = plane.numel() <= KEPT_NUMBERS
    return Sliced(
        directions=settings.dirs,
        batchnorm="batch" if batchnorm_statistics(frame.surface.objective.model) == "batch" else settings.batchnorm,
        strategy=frame.plan.strategy,
        line=grid.line,
        parameters=layout.total,
        samples=round(frame.surface.objective.count),
        x=grid.x,
        y=grid.y,
        loss_centre=frame.loss_centre,
        loss_reference=frame.loss_reference,
        centre_tolerance=frame.centre_tolerance,
        direction=np.array([d.label for d in directions]),
        direction_norm=norms.cpu().numpy(),
        cosine=cosine,
        slope=frame.checked.slope,
        slope_measured=frame.checked.slope_measured,
        slope_tolerance=frame.checked.slope_tolerance,
        curvature=frame.checked.curvature,
        curvature_measured=frame.checked.curvature_measured,
        curvature_tolerance=frame.checked.curvature_tolerance,
        variance_explained=None if None in explained else np.array(explained, dtype=float),
        direction_vector=frame.surface.directions.cpu().numpy() if keep else None,
        tensor=np.array(layout.names),
        tensor_size=np.array(layout.sizes, dtype=np.int64),
        spent=Spent(
            0,
            seconds,
            str(frame.surface.start.dtype).removeprefix("torch."),
            str(frame.surface.start.device),
            plan,
            tuple(notes),
        ),
        **found,
        **frame.marks.fields(),
    )
