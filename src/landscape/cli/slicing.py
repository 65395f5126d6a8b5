"""How `landscape slice` computes a surface: frame, cells here or in workers, partial results on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from landscape.checkpoints.beside import Inputs, load_beside, sha256_of
from landscape.checkpoints.source import Source
from landscape.cli import worker
from landscape.cli.jobs import Job, load_job
from landscape.cli.options import Output
from landscape.errors import BatchError

if TYPE_CHECKING:
    from landscape.runtime.pieces import KeptPieces, Pieces
    from landscape.runtime.progress import Progress
    from landscape.runtime.workers import Task
    from landscape.slices.frame import Frame, Planes
    from landscape.slices.grid import Cells
    from landscape.slices.result import Sliced
    from landscape.slices.settings import SliceSettings

# A worker says how many cells it has not more often than that.
TELL_SECONDS = 0.3


@dataclass(frozen=True)
class Request:
    """One command line.

    Attributes:
        settings, source, inputs: what to compute, of which problem, beside which files.
        leader: the checkpoint whose directions and ranges are for all, with --common. workers: processes a surface.
        first: that checkpoint's frame, once it is made.
    """

    settings: SliceSettings
    source: Source
    inputs: Inputs
    output: Output
    leader: Path | None
    workers: int
    first: list[Frame] = field(default_factory=list)


def run_slices(request: Request, checkpoints: list[str]) -> None:
    """All checkpoints, one after the other."""
    from landscape.cli.loop import Command, run_command

    command = Command("slice", told_settings(request), partial(_surface, request))
    run_command(command, checkpoints, request.source, request.output)


def told_settings(request: Request) -> dict[str, Any]:
    """What the identity of the results depends on."""
    leader = None if request.leader is None else sha256_of(request.leader)
    return {**request.settings.as_dict(), "beside": request.inputs.hashes(), "common": leader}


def _surface(request: Request, job: Job, report: Progress, pieces: Pieces) -> Sliced:
    """One surface, from where an earlier run stopped."""
    from landscape.runtime.interrupts import Interrupted
    from landscape.runtime.piece_files import discard
    from landscape.runtime.timings import kept_wisdom
    from landscape.slices.frame import make_frame
    from landscape.slices.run import compute, finish, stored_cells

    start = time.perf_counter()
    beside = load_beside(request.inputs, job, request.source)
    common = _common(request, job, report)
    frame = make_frame(job.problem, request.settings, beside, report, pieces, kept_wisdom(), common)
    if job.path == request.leader and not request.first:
        request.first.append(frame)
    cells = stored_cells(frame, pieces)
    for part in worker.parts(job.place):
        _take(cells, part, job.identity)

    def put(done: Cells, status: str = "running") -> None:
        pieces.put("cells", done.as_plain())
        _write_partial(job, finish(frame, done, time.perf_counter() - start), status, request.output.force)

    left = frame.grid.cells - int(cells.done.sum())
    try:
        if request.workers > 1 and left > request.workers:
            put(cells)
            _in_workers(request, job, frame, cells, report)
        compute(frame, cells, report, pieces.due, put)
    except Interrupted:
        put(cells, "interrupted")
        raise
    for part in worker.parts(job.place, left_behind=True):
        discard(part)
    return finish(frame, cells, time.perf_counter() - start)


def _common(request: Request, job: Job, report: Progress) -> Planes | None:
    """The first checkpoint's directions and ranges, for the others; made anew if its own result was there already.

    Raises:
        UsageError: this checkpoint is of another architecture.
    """
    from landscape.slices.frame import make_frame, theta_of

    if request.leader is None or job.path == request.leader:
        return None
    if not request.first:
        leader = load_job(request.source, "slice", request.leader, job.place, job.settings, True)
        beside = load_beside(request.inputs, leader, request.source)
        request.first.append(make_frame(leader.problem, request.settings, beside, report))
    frame = request.first[0]
    theta_of(job.problem, frame.surface.objective, str(job.path))
    return _fixed(frame)


def _fixed(frame: Frame) -> Planes:
    """The directions of a frame with the ranges that it draws."""
    ranges = [(float(axis[0]), float(axis[-1])) for axis in (frame.grid.x, frame.grid.y)]

    def planes(plane: int) -> Any:
        found = frame.directions if plane == 0 else frame.planes(plane)
        return [replace(d, low=low, high=high, explained=None) for d, (low, high) in zip(found, ranges, strict=False)]

    return planes


def _write_partial(job: Job, result: Sliced, status: str, force: bool) -> None:
    """What is there, for `landscape info` and `plot`; the rest is False in `done`."""
    from landscape.results.store import write_result

    assert result.spent is not None
    write_result(job.place, result, job.provenance(result.spent, status), force=force)


# ---- workers ---------------------------------------------------------------------------------------------------------


def _take(cells: Cells, part: Path, identity: str) -> None:
    """Take over the cells that a worker has kept."""
    from landscape.runtime.piece_files import kept_pieces
    from landscape.slices.grid import Cells

    found = kept_pieces(part, identity).get("cells")
    if found is not None:
        cells.take(Cells(**found))


def _in_workers(request: Request, job: Job, frame: Frame, cells: Cells, report: Progress) -> None:
    """The missing cells, shared out among processes; each keeps its own in a file of its own, which is collected."""
    from landscape.runtime.workers import Outcome, print_line, run_batch

    asked = replace(request, first=[])
    tasks = [
        worker.task_of(f"{job.path.name} {i + 1}", run_share, asked, job.path, job.place, job.settings, i)
        for i in range(request.workers)
    ]
    done = dict.fromkeys((t.label for t in tasks), 0)
    before = int(cells.done.sum())

    def on_line(task: Task, line: str) -> None:
        if line.startswith(worker.SAYS):
            done[task.label] = int(line.removeprefix(worker.SAYS))
            report("cells", before + sum(done.values()), frame.grid.cells)
        else:
            print_line(task, line)

    outcomes: list[Outcome] = []
    try:
        outcomes = run_batch(tasks, request.workers, outcomes.append, device=request.settings.device, on_line=on_line)
    finally:
        for part in worker.parts(job.place):
            _take(cells, part, job.identity)
    failed = [o for o in outcomes if not o.ok]
    if failed:
        raise BatchError(
            f"{len(failed)} of {len(outcomes)} workers failed; what they had computed is kept",
            "see their messages above, then repeat the command: it does only what is missing",
        )


def run_share(request: Request, checkpoint: Path, place: Path, told: Mapping[str, Any], number: int) -> None:
    """A worker: its cells of the frame that lies beside the result, into a file of its own."""
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.piece_files import kept_pieces
    from landscape.slices.frame import make_frame
    from landscape.slices.grid import Cells
    from landscape.slices.run import compute

    job = load_job(request.source, "slice", checkpoint, place, told, True)
    frame_pieces = kept_pieces(place.with_name(f".{place.name}.pieces"), job.identity)
    beside = load_beside(request.inputs, job, request.source)
    frame = make_frame(job.problem, request.settings, beside, _silent, frame_pieces)
    cells = Cells(**frame_pieces.get("cells") or Cells.empty(frame.grid, frame.surface.metrics).as_plain())
    before = int(cells.done.sum())
    own: KeptPieces = kept_pieces(worker.part(place, number), job.identity)
    if own.get("cells") is not None:
        cells.take(Cells(**own.get("cells") or {}))

    def put(done: Cells) -> None:
        own.put("cells", done.as_plain())

    tell = worker.teller(lambda stage, done, total: str(done - before), TELL_SECONDS)
    try:
        with interruptible():
            compute(frame, cells, tell, own.due, put, (number, request.workers))
    except Interrupted as interrupted:
        put(cells)
        raise typer.Exit(interrupted.exit_code) from None


def _silent(stage: str, done: int, total: int) -> None:
    pass
