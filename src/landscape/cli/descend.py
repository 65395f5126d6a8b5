"""`landscape descend`: from checkpoints to certified critical points of their own basins."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.cli.jobs import Job, load_job
from landscape.cli.terminal import flush, print_error, print_json_error, print_note, raise_failures
from landscape.errors import LandscapeError

if TYPE_CHECKING:
    from landscape.cli.views.descend import Shown
    from landscape.points.descend import DescendSettings
    from landscape.results.fields import Descended


# Checkpoints that are loaded and locked at a time.
PORTION = 256


@dataclass(frozen=True)
class _Request:
    settings: DescendSettings
    source: Source
    out: Path
    force: bool
    quiet: bool
    as_json: bool


def descend(
    checkpoints: common.Checkpoints,
    to: Annotated[
        str, typer.Option("--to", help="minimum (saddles are left) or critical (whatever index is nearest).")
    ] = "minimum",
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    method: Annotated[
        str, typer.Option("--method", help="auto, newton, flow, lbfgs, newton-krylov or newton-mr.")
    ] = "auto",
    steps: Annotated[int, typer.Option("--steps", help="Iterations, at most; 0 certifies the checkpoint as it is.")] = (
        1000
    ),
    gradient: Annotated[
        float, typer.Option("--gradient", help="Aim: max |gradient|, as a share of what parts of the data pull.")
    ] = 1e-13,
    tau: Annotated[
        float, typer.Option("--tau", help="Floor, relative to max |eigenvalue|, below which a value counts as zero.")
    ] = 1e-6,
    max_products: Annotated[
        int, typer.Option("--max-products", help="Curvature products for the certificate of a large network.")
    ] = 500,
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
    batchnorm: common.BatchNorm = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    memory: common.Memory = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
) -> None:
    """Descend to a critical point or minimum of each checkpoint's own basin, and certify it.

    Writes, per checkpoint, the trajectory (NAME.descend.h5) and the point reached as a checkpoint in float64 with
    its certificate in the header (NAME.descend.pt). Checkpoints of equal architecture descend together.
    """
    from landscape.checkpoints.find import check_out, expand, result_paths
    from landscape.points.descend import DescendSettings
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.memory import keep_heap, parse_bytes

    settings = DescendSettings(
        to=to,
        method=method,
        steps=steps,
        gradient=gradient,
        tau=tau,
        samples=samples,
        seed=seed,
        device=device,
        precision=precision,
        memory=None if memory is None else parse_bytes(memory),
        max_products=max_products,
    )
    check_out(out)
    paths = expand(checkpoints, None if quiet else print_note)
    places = result_paths(paths, out, "descend")
    source = Source(problem, common.parse_sets(sets), data, loss, tuple(allow_global or ()), key, batchnorm)
    request = _Request(settings, source, out, force, quiet, as_json)
    keep_heap()
    try:
        with interruptible():
            _descend_all(request, paths, places)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished results are whole, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None


def _descend_all(request: _Request, paths: list[Path], places: list[Path]) -> None:
    """Portion by portion, each loaded whole, so that equal shapes go together; what is done is shown as it is."""
    from landscape.cli.views.descend import print_many, print_one

    batch = _Batch(request, paths, places, {}, [])
    for start in range(0, len(paths), PORTION):
        _descend_portion(batch, range(start, min(start + PORTION, len(paths))))
    ordered = [batch.shown[i] for i in sorted(batch.shown)]
    if ordered and not request.as_json:
        print_one(ordered[0]) if len(paths) == 1 else print_many(ordered)
    flush()
    raise_failures(batch.failures, len(paths))


@dataclass(frozen=True)
class _Batch:
    """All checkpoints of a command, and what has become of them."""

    request: _Request
    paths: list[Path]
    places: list[Path]
    shown: dict[int, Shown]
    failures: list[LandscapeError]

    def failed(self, number: int, error: LandscapeError) -> None:
        self.failures.append(error)
        if self.request.as_json:
            print_json_error(str(self.paths[number]), error)
        if len(self.paths) > 1:
            print_error(type(error)(f"{self.paths[number]}: {error.message}", error.hint))

    def show(self, number: int, one: Shown) -> None:
        from landscape.cli.views.descend import print_json

        self.shown[number] = one
        if self.request.as_json:
            print_json(one)


def _descend_portion(batch: _Batch, numbers: range) -> None:
    from landscape.cli.progress import stage_progress
    from landscape.points.descend import run_descents
    from landscape.runtime.files import locked

    request = batch.request
    with ExitStack() as held:
        waiting: list[tuple[int, Job]] = []
        for number in numbers:
            path, place = batch.paths[number], batch.places[number]
            try:
                job = load_job(request.source, "descend", path, place, request.settings.as_dict(), request.quiet)
                with ExitStack() as own:  # let go at once where there is nothing to do
                    own.enter_context(locked(place))
                    if not request.force and job.is_done() and _checkpoint_of(place).exists():
                        print_note(f"{path}: done already, {place} is kept", request.quiet)
                        batch.show(number, _stored(job))
                    else:
                        waiting.append((number, job))
                        held.enter_context(own.pop_all())
            except LandscapeError as error:
                batch.failed(number, error)

        def finished(position: int, result: Descended | LandscapeError) -> None:
            number, job = waiting[position]
            try:
                if isinstance(result, LandscapeError):
                    raise result
                batch.show(number, _written(request, job, result))
            except LandscapeError as error:
                batch.failed(number, error)

        if waiting:
            label = waiting[0][1].path.name if len(waiting) == 1 else f"{len(waiting)} checkpoints"
            with stage_progress(label, request.quiet) as report:
                run_descents([job.problem for _, job in waiting], request.settings, report, finished)


def _checkpoint_of(place: Path) -> Path:
    """Where the point reached goes: beside the result, width=8/final.descend.pt."""
    return place.with_suffix(".pt")


def _written(request: _Request, job: Job, result: Descended) -> Shown:
    """Both files on disk, the checkpoint first: where there is a result, its checkpoint is there as well."""
    from landscape.cli.points import write_point
    from landscape.cli.views.descend import Shown, warn
    from landscape.results.store import write_result

    assert result.spent is not None
    provenance = job.provenance(result.spent)
    target = _checkpoint_of(job.place)
    how = {"to": result.to, "method": result.method, "steps": result.steps}
    write_point(job, target, result.point, result.spent, result.certificate, how)
    write_result(job.place, result, provenance, force=request.force)
    shown = Shown(result, provenance, job.place, target)
    warn(shown)
    return shown


def _stored(job: Job) -> Shown:
    from landscape.cli.views.descend import Shown
    from landscape.results.fields import Descended
    from landscape.results.store import read_result, restore

    stored = read_result(job.place, "descend")
    return Shown(restore(stored, Descended), stored.provenance, job.place, _checkpoint_of(job.place))
