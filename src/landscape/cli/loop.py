"""The loop of the analysis commands: every checkpoint loaded, reused or computed, written, shown; failures gathered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer

from landscape.analyses import ANALYSES
from landscape.checkpoints.source import Source
from landscape.cli.jobs import Job, load_job
from landscape.cli.options import Output
from landscape.cli.terminal import bare, flush, print_error, print_json_error, print_note, raise_failures, within_memory
from landscape.errors import BatchError, LandscapeError, NumericalError, RanksError, UsageError

if TYPE_CHECKING:
    from landscape.problem.distributed import Ranks
    from landscape.results.fields import Provenance, Result
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress
    from landscape.runtime.workers import Outcome

    Finished = Callable[[int, "Any"], None]

R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Shown(Generic[R]):
    """A result with what is needed to show it."""

    result: R
    provenance: Provenance
    path: Path


def _nothing(job: Job, result: Any) -> None:
    pass


def _always(job: Job) -> bool:
    return True


@dataclass(frozen=True)
class Command(Generic[R]):
    """What a command does with a checkpoint. All of it can be pickled, so that a worker process can do it, too.

    Attributes:
        name: of the analysis, see `analyses`. told: the settings that the identity of a result depends on.
        compute: (job, progress, pieces) -> result; the pieces of an interrupted run are there again.
        together: (jobs, progress, finished) for commands that take `portion` checkpoints at once; it calls
            finished(position, result or error).
        beside: writes what belongs beside the result (a checkpoint), before it. there: whether that is there already.
        shared: whether the processes of a `torchrun` share the data of each checkpoint.
    """

    name: str
    told: Mapping[str, Any]
    compute: Callable[[Job, Progress, Pieces], R] | None = None
    together: Callable[[list[Job], Progress, Finished], None] | None = None
    portion: int = 1
    beside: Callable[[Job, R], None] = _nothing
    there: Callable[[Job], bool] = _always
    shared: bool = False


def run_command(
    command: Command[R], checkpoints: Sequence[str], source: Source, output: Output, workers: int = 1
) -> None:
    """One checkpoint after the other, or several at a time in processes of their own; interrupted, what is finished is
    whole."""
    from landscape.checkpoints.find import check_out, expand, result_paths
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.memory import keep_heap

    check_out(output.out)
    paths = expand(checkpoints, None if output.quiet else print_note)
    batch = _Batch(command, source, output, paths, result_paths(paths, output.out, command.name))
    keep_heap()
    try:
        with interruptible(), _joined(command) as ranks:
            if workers > 1 and len(paths) > 1:
                _in_workers(batch, workers)
            else:
                _run_here(batch, ranks)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished results are whole, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None


@contextmanager
def _joined(command: Command[R]) -> Iterator[Ranks | None]:
    """The processes of a `torchrun`, if the command's share their data."""
    if not command.shared:
        yield None
        return
    from landscape.problem.distributed import joined

    with joined() as ranks:
        yield ranks


@dataclass
class _Batch(Generic[R]):
    """All checkpoints of a command, and what has become of them."""

    command: Command[R]
    source: Source
    output: Output
    paths: list[Path]
    places: list[Path]
    shown: dict[int, Shown[R]] = field(default_factory=dict)
    failures: list[LandscapeError] = field(default_factory=list)
    ranks: Ranks | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.ranks is None or self.ranks.rank == 0

    @property
    def alone(self) -> bool:
        """Whether no other process shares the data."""
        return self.ranks is None or self.ranks.size == 1

    def failed(self, number: int, error: LandscapeError) -> None:
        self.failures.append(bare(error))
        if not self.first:
            return
        if self.output.as_json:
            print_json_error(str(self.paths[number]), error)
        if len(self.paths) > 1:
            print_error(type(error)(f"{self.paths[number]}: {error.message}", error.hint))

    def show(self, number: int, one: Shown[R]) -> None:
        self.shown[number] = one
        if self.output.as_json:
            ANALYSES[self.command.name].view.print_json(one)

    def conclude(self) -> None:
        """The table, and one error for all that failed."""
        view, found = ANALYSES[self.command.name].view, [self.shown[i] for i in sorted(self.shown)]
        if found and not self.output.as_json:
            view.print_one(found[0]) if len(self.paths) == 1 else view.print_many(found)
        flush()
        if self.first:
            raise_failures(self.failures, len(self.paths))
        elif self.failures:  # the first process says why
            raise typer.Exit(self.failures[0].exit_code if len(self.paths) == 1 else BatchError.exit_code)


def _run_here(batch: _Batch[R], ranks: Ranks | None) -> None:
    batch.ranks = ranks
    batch.output = replace(batch.output, quiet=batch.output.quiet or not batch.first)
    for start in range(0, len(batch.paths), batch.command.portion):
        _portion(batch, range(start, min(start + batch.command.portion, len(batch.paths))))
    batch.conclude()


def _portion(batch: _Batch[R], numbers: range) -> None:
    """Checkpoints that are loaded and locked at the same time: those with a stored result are done, others computed."""
    waiting: list[tuple[int, Job]] = []

    def finished(position: int, result: R | LandscapeError) -> None:
        number, job = waiting[position]
        try:
            shown = _written(batch, job, result)
        except LandscapeError as error:
            batch.failed(number, error)
        else:
            if shown is not None:
                batch.show(number, shown)

    with ExitStack() as held:
        for number in numbers:
            try:
                job = within_memory(_loaded, batch, number) if batch.alone else _loaded(batch, number)
                with ExitStack() as own:  # let go at once where there is nothing to do
                    if (stored := _stored(batch, job, own)) is None:
                        waiting.append((number, job))
                        held.enter_context(own.pop_all())
                    elif batch.first:
                        batch.show(number, stored)
            except RanksError:
                raise
            except LandscapeError as error:
                batch.failed(number, error)
        if waiting:
            _computed(batch, [job for _, job in waiting], finished)


def _loaded(batch: _Batch[R], number: int) -> Job:
    command, output = batch.command, batch.output
    path, place = batch.paths[number], batch.places[number]
    return replace(load_job(batch.source, command.name, path, place, command.told, output.quiet), ranks=batch.ranks)


def _stored(batch: _Batch[R], job: Job, held: ExitStack) -> Shown[R] | None:
    """The stored result if it is complete and of the same identity. Its place stays locked while `held` is open."""
    from landscape.results.store import read_result, restore
    from landscape.runtime.files import locked

    def is_done() -> bool | LandscapeError:
        """Asked by the first process only; an error is for all of them."""
        try:
            held.enter_context(locked(job.place))
            return not batch.output.force and job.is_done() and batch.command.there(job)
        except LandscapeError as error:
            return error

    answer = is_done() if batch.first else False
    answer = answer if batch.ranks is None else batch.ranks.first(answer)
    if isinstance(answer, LandscapeError):
        raise answer
    if not answer:
        return None
    stored = read_result(job.place, job.command)
    print_note(f"{job.path}: done already, {job.place} is kept", batch.output.quiet)
    return Shown(restore(stored, ANALYSES[job.command].result_class), stored.provenance, job.place)


def _computed(batch: _Batch[R], jobs: list[Job], finished: Finished) -> None:
    from landscape.cli.progress import stage_progress
    from landscape.runtime.piece_files import kept_pieces

    command = batch.command
    label = jobs[0].path.name if len(jobs) == 1 else f"{len(jobs)} checkpoints"
    with stage_progress(label, batch.output.quiet) as report:
        if command.together is not None:
            command.together(jobs, report, finished)
            return
        assert command.compute is not None
        for position, job in enumerate(jobs):
            pieces = kept_pieces(_aside(job.place), job.identity)
            try:
                if batch.alone:
                    result = within_memory(command.compute, job, report, pieces)
                else:  # the others learn of it by this process's end
                    result = command.compute(job, report, pieces)
            except FloatingPointError as error:
                finished(position, NumericalError(str(error), "`landscape doctor` looks for the layer"))
            except RanksError:
                raise
            except LandscapeError as error:
                finished(position, error)
            else:
                finished(position, result)


def _aside(place: Path) -> Path:
    """Where the pieces of an unfinished result lie."""
    return place.with_name(f".{place.name}.pieces")


def _written(batch: _Batch[R], job: Job, result: R | LandscapeError) -> Shown[R] | None:
    """The result on disk, after what belongs beside it. Raises what a checkpoint ended with."""
    from landscape.results.store import write_result
    from landscape.runtime.piece_files import discard

    if isinstance(result, LandscapeError):
        partial = result.partial if isinstance(result, NumericalError) else None
        if partial is not None and batch.first:
            write_result(job.place, partial, job.provenance(partial.spent, "failed"), force=batch.output.force)
            result.message += f" (what is known was written to {job.place})"
        raise result
    if not batch.first:
        return None
    provenance = job.provenance(result.spent)  # type: ignore[attr-defined]
    batch.command.beside(job, result)
    write_result(job.place, result, provenance, force=batch.output.force)
    discard(_aside(job.place))
    shown = Shown(result, provenance, job.place)
    ANALYSES[job.command].view.warn(shown)
    return shown


# ---- workers ---------------------------------------------------------------------------------------------------------


def work(command: Command[R], source: Source, output: Output, path: Path, place: Path) -> None:
    """One checkpoint, in a worker process: its result into the file, its error as a line of JSON."""
    from landscape.runtime.memory import keep_heap

    keep_heap()
    _run_here(_Batch(command, source, output, [path], [place]), None)


def _in_workers(batch: _Batch[R], workers: int) -> None:
    """Each checkpoint in a process of its own; what they wrote is read back from the files."""
    from landscape.cli.worker import task_of
    from landscape.results.store import read_result, restore
    from landscape.runtime.workers import run_batch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--workers and torchrun do not go together", "leave --workers out: torchrun shares the data")
    output = replace(batch.output, as_json=True, quiet=True)
    command = replace(batch.command, shared=False)
    tasks = [
        task_of(str(path), work, command, batch.source, output, path, place)
        for path, place in zip(batch.paths, batch.places, strict=True)
    ]

    def on_done(outcome: Outcome) -> None:
        if outcome.ok:
            print_note(f"{outcome.task.label}: done in {outcome.seconds:.1f} s", batch.output.quiet)

    device = str(batch.command.told.get("device", "cpu"))
    for number, outcome in enumerate(run_batch(tasks, workers, on_done, device=device)):
        if outcome.ok:
            stored = read_result(batch.places[number], command.name)
            found = restore(stored, ANALYSES[command.name].result_class)
            batch.show(number, Shown(found, stored.provenance, batch.places[number]))
            continue
        how = f"killed by signal {-outcome.exit_code}" if outcome.killed else f"exit code {outcome.exit_code}"
        failure = LandscapeError(f"{outcome.task.label} failed ({how})")
        batch.failures.append(failure)
        print_error(failure)
        if batch.output.as_json and not outcome.stdout:  # it was killed
            print_json_error(outcome.task.label, failure)
        elif batch.output.as_json:
            sys.stdout.write(outcome.stdout)
    batch.conclude()
