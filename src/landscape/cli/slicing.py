"""How `landscape slice` computes a surface: frame, cells here or in workers, partial results on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from landscape.checkpoints.beside import Inputs, load_beside, sha256_of
from landscape.checkpoints.source import Source
from landscape.cli import worker
from landscape.cli.jobs import Job, load_job
from landscape.errors import BatchError, UsageError

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
    out: Path
    leader: Path | None
    workers: int
    force: bool
    quiet: bool
    as_json: bool
    first: list[Frame] = field(default_factory=list)


def run_slices(request: Request, checkpoints: list[str]) -> None:
    """All checkpoints, one after the other."""
    from landscape.cli.loop import Command, run_command
    from landscape.cli.views.slice import print_json, print_many, print_one, warn
    from landscape.slices.result import Sliced

    def compute(job: Job, report: Progress, pieces: Pieces) -> Sliced:
        return _surface(request, job, report, pieces)

    command = Command("slice", Sliced, compute, print_json, print_one, print_many, warn=warn)
    told = told_settings(request)
    run_command(
        command,
        checkpoints,
        request.source,
        told,
        request.out,
        force=request.force,
        quiet=request.quiet,
        as_json=request.as_json,
    )


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
        _write_partial(job, finish(frame, done, time.perf_counter() - start), status, request.force)

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
    from dataclasses import replace

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
    """The cells that a worker put aside."""
    from landscape.runtime.piece_files import kept_pieces
    from landscape.slices.grid import Cells

    found = kept_pieces(part, identity).get("cells")
    if found is not None:
        cells.take(Cells(**found))


def _in_workers(request: Request, job: Job, frame: Frame, cells: Cells, report: Progress) -> None:
    """The missing cells, shared out among processes; each keeps its own in a file of its own, which is collected."""
    from landscape.runtime.workers import Outcome, Task, print_line, run_batch

    tasks = [
        Task([*_arguments(request, job), "--share", f"{i}/{request.workers}"], f"{job.path.name} {i + 1}")
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


def run_share(request: Request, checkpoint: str, place: Path, share: str) -> None:
    """A worker: its cells of the frame that lies beside the result, into a file of its own."""
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.piece_files import kept_pieces
    from landscape.slices.frame import make_frame
    from landscape.slices.grid import Cells
    from landscape.slices.run import compute

    number, of = (int(part) for part in share.split("/"))
    job = load_job(request.source, "slice", Path(checkpoint), place, _told_of(place), True)
    frame_pieces = kept_pieces(place.with_name(f".{place.name}.pieces"), job.identity)
    if frame_pieces.get("frame") is None:
        raise UsageError("--share is for workers that `landscape slice --workers` starts", "leave it out")
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
            compute(frame, cells, tell, own.due, put, (number, of))
    except Interrupted as interrupted:
        put(cells)
        raise typer.Exit(interrupted.exit_code) from None


def _told_of(place: Path) -> dict[str, Any]:
    """The settings of the partial result that the parent wrote: the same identity."""
    from landscape.results.store import read_result

    return dict(read_result(place, "slice").provenance.settings)


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _arguments(request: Request, job: Job) -> list[str]:
    """The command line of a worker, but for its share."""
    settings = request.settings
    found = ["slice", str(job.path), "--result-path", str(job.place), "--quiet", "--dirs", settings.dirs]
    pairs: list[tuple[str, Any]] = [
        ("--span", None if settings.span is None else "x".join(map(repr, settings.span))),
        ("--points", None if settings.points is None else "x".join(map(str, settings.points))),
        ("--repeat", settings.repeat),
        *(("--metric", m) for m in settings.metrics),
        ("--batchnorm", settings.batchnorm if settings.batchnorm != "fixed" else None),
        *(("--trajectory", p) for p in request.inputs.trajectory),
        *worker.source_options(request.source),
        ("--device", settings.device),
        ("--precision", settings.precision),
        ("--batch-size", settings.batch_size),
        ("--memory", settings.memory),
        ("--samples", settings.samples),
        ("--seed", settings.seed),
    ]
    return [*found, *worker.words(pairs)]
