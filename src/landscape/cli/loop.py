"""The loop of the analysis commands: every checkpoint loaded, reused or computed, written, shown; failures gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer

from landscape.checkpoints.source import Source
from landscape.cli.jobs import Job, load_job
from landscape.cli.terminal import bare, flush, print_error, print_json_error, print_note, raise_failures, within_memory
from landscape.errors import LandscapeError, NumericalError

if TYPE_CHECKING:
    from landscape.results.fields import Provenance, Result
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress

R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Shown(Generic[R]):
    """A result with what is needed to show it."""

    result: R
    provenance: Provenance
    path: Path


@dataclass(frozen=True)
class Command(Generic[R]):
    """What a command does with one checkpoint, and how it shows what it found.

    Attributes:
        name: subcommand and group of its results. kind: their class.
        compute: (job, progress, pieces) -> result; the pieces of an interrupted run are there again.
        beside: writes what belongs beside the result (a checkpoint), before it. there: whether that is there already.
        warn: `warning:` lines. json, one, many: how results are shown.
    """

    name: str
    kind: type[R]
    compute: Callable[[Job, Progress, Pieces], R]
    json: Callable[[Shown[R]], None]
    one: Callable[[Shown[R]], None]
    many: Callable[[list[Shown[R]]], None]
    beside: Callable[[Job, R], None] = lambda job, result: None
    there: Callable[[Job], bool] = lambda job: True
    warn: Callable[[Shown[R]], None] = lambda shown: None


def run_command(
    command: Command[R],
    checkpoints: Sequence[str],
    source: Source,
    settings: dict[str, Any],
    out: Path,
    *,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """One checkpoint after the other; interrupted, what is finished is whole."""
    from landscape.checkpoints.find import check_out, expand, result_paths
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.memory import keep_heap

    check_out(out)
    paths = expand(checkpoints, None if quiet else print_note)
    places = result_paths(paths, out, command.name)
    keep_heap()

    def attempt(path: Path, place: Path) -> Shown[R]:
        return _one(command, load_job(source, command.name, path, place, settings, quiet), force, quiet)

    shown: list[Shown[R]] = []
    failures: list[LandscapeError] = []
    try:
        with interruptible():
            for path, place in zip(paths, places, strict=True):
                try:
                    shown.append(within_memory(attempt, path, place))
                except LandscapeError as error:
                    failures.append(bare(error))
                    if as_json:
                        print_json_error(str(path), error)
                    if len(paths) > 1:
                        print_error(type(error)(f"{path}: {error.message}", error.hint))
                    continue
                if as_json:
                    command.json(shown[-1])
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished results are whole, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None
    if shown and not as_json:
        command.one(shown[0]) if len(paths) == 1 else command.many(shown)
    flush()
    raise_failures(failures, len(paths))


def _one(command: Command[R], job: Job, force: bool, quiet: bool) -> Shown[R]:
    from landscape.cli.progress import stage_progress
    from landscape.results.store import read_result, restore, write_result
    from landscape.runtime.files import locked
    from landscape.runtime.piece_files import discard, kept_pieces

    aside = job.place.with_name(f".{job.place.name}.pieces")
    with locked(job.place):
        if not force and job.is_done() and command.there(job):
            stored = read_result(job.place, command.name)
            print_note(f"{job.path}: done already, {job.place} is kept", quiet)
            return Shown(restore(stored, command.kind), stored.provenance, job.place)
        try:
            with stage_progress(job.path.name, quiet) as report:
                result = command.compute(job, report, kept_pieces(aside, job.identity))
        except FloatingPointError as error:
            raise NumericalError(str(error), "`landscape doctor` looks for the layer") from error
        provenance = job.provenance(result.spent)  # type: ignore[attr-defined]
        command.beside(job, result)
        write_result(job.place, result, provenance, force=force)
        discard(aside)
    shown = Shown(result, provenance, job.place)
    command.warn(shown)
    return shown
