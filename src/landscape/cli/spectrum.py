"""`landscape spectrum`: parse, compute or reuse each checkpoint's result, show it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.cli import worker
from landscape.cli.jobs import load_job
from landscape.cli.terminal import (
    bare,
    flush,
    print_error,
    print_json_error,
    print_note,
    print_warning,
    raise_failures,
    within_memory,
)
from landscape.errors import BatchError, LandscapeError, NumericalError, RanksError, UsageError

if TYPE_CHECKING:
    from landscape.cli.views.spectrum import Shown
    from landscape.problem.distributed import Ranks
    from landscape.results.fields import Provenance, Spectrum
    from landscape.spectra.settings import SpectrumSettings


@dataclass(frozen=True)
class _Request:
    """What to do with each checkpoint."""

    settings: SpectrumSettings
    source: Source
    force: bool
    quiet: bool
    ranks: Ranks | None = None


def spectrum(
    checkpoints: common.Checkpoints,
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    operator: Annotated[
        str, typer.Option("--operator", help="hessian, ggn (Gauss-Newton) or residual (their difference).")
    ] = "hessian",
    top: Annotated[int, typer.Option("--top", help="Largest eigenpairs.")] = 10,
    bottom: Annotated[int, typer.Option("--bottom", help="Smallest (most negative) eigenpairs.")] = 10,
    rtol: Annotated[float, typer.Option("--rtol", help="Converged: residual <= max(rtol |value|, tau).")] = 1e-3,
    tau: Annotated[
        float, typer.Option("--tau", help="Floor, relative to max |eigenvalue|, below which a value counts as zero.")
    ] = 1e-6,
    density: Annotated[bool, typer.Option("--density/--no-density", help="Spectral density and negative mass.")] = True,
    density_width: Annotated[
        float | None,
        typer.Option(
            "--density-width",
            help="Smooth the density with a Gaussian of this standard deviation; else cells as fine as is resolved.",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[int, typer.Option("--probes", help="Random probes of the density (at least 3).")] = 8,
    steps: Annotated[int, typer.Option("--steps", help="Lanczos steps of each probe.")] = 80,
    max_products: Annotated[
        int | None, typer.Option("--max-products", help="Limit on curvature products.", show_default=False)
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact", help="Force or forbid the dense float64 solution; else by its measured cost."
        ),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--params", metavar="GLOB", help="Only these parameters, such as 'encoder.*'; repeatable."),
    ] = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Extremes and trace of every layer's block.")] = False,
    vectors: Annotated[bool, typer.Option("--vectors", help="Keep the eigenvectors in the result file.")] = False,
    strategy: Annotated[str, typer.Option("--strategy", help="auto, kept, linearize or recompute.")] = "auto",
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
    batchnorm: common.BatchNorm = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = None,
    block: common.Block = None,
    memory: common.Memory = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    workers: common.Workers = 1,
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
    result_path: common.ResultPath = None,
) -> None:
    """Both ends of the Hessian spectrum, its density, trace and negative part, every number with its bound.

    Values are printed with their uncertainty: 3.3617(2) means 3.3617 +- 0.0002. Results go to one HDF5 file per
    checkpoint below --out; the same command again does only what is missing.
    """
    from landscape.checkpoints.find import check_out, expand, result_paths
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.memory import parse_bytes
    from landscape.spectra.settings import SpectrumSettings, names_of

    settings = SpectrumSettings(
        operator=operator,
        top=top,
        bottom=bottom,
        rtol=rtol,
        tau=tau,
        density=density,
        density_width=density_width,
        probes=probes,
        steps=steps,
        max_products=max_products,
        exact=exact,
        params=names_of(params or []),
        by_layer=by_layer,
        vectors=vectors,
        samples=samples,
        seed=seed,
        device=device,
        precision=precision,
        batch_size=batch_size,
        block=block,
        strategy=strategy,
        memory=None if memory is None else parse_bytes(memory),
    )
    if workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    check_out(out)
    paths = expand(checkpoints, None if quiet else print_note)
    places = [result_path] if result_path is not None else result_paths(paths, out, "spectrum")
    source = Source(problem, common.parse_sets(sets), data, loss, tuple(allow_global or ()), key, batchnorm)
    request = _Request(settings, source, force, quiet)
    try:
        with interruptible():
            if workers > 1 and len(paths) > 1:
                _run_workers(request, paths, places, workers, as_json)
            else:
                _run_here(request, paths, places, as_json)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished results are whole, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None


def _run_workers(request: _Request, paths: list[Path], places: list[Path], workers: int, as_json: bool) -> None:
    from landscape.cli.views.spectrum import print_json

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--workers and torchrun do not go together", "leave --workers out: torchrun shares the data")
    shown, failures = _in_workers(request, paths, places, workers, as_json)
    for one in shown if as_json else ():
        print_json(one)
    _conclude(shown, failures, len(paths), as_json)


def _run_here(request: _Request, paths: list[Path], places: list[Path], as_json: bool) -> None:
    """One checkpoint after the other, in this process or, with its share of the data, in each of a `torchrun`."""
    from landscape.cli.views.spectrum import Shown, print_json
    from landscape.problem.distributed import joined
    from landscape.runtime.memory import keep_heap

    keep_heap()
    shown: list[Shown] = []
    failures: list[LandscapeError] = []
    with joined() as ranks:
        first = ranks.rank == 0
        request = replace(request, ranks=ranks, quiet=request.quiet or not first)
        for path, place in zip(paths, places, strict=True):
            try:
                if ranks.size > 1:  # the others learn of it by this process's end
                    result, provenance = compute_or_reuse(request, path, place)
                else:
                    result, provenance = within_memory(compute_or_reuse, request, path, place)
            except RanksError:
                raise
            except LandscapeError as error:
                failures.append(bare(error))
                if as_json and first:
                    print_json_error(str(path), error)
                if len(paths) > 1 and first:
                    error.message = f"{path}: {error.message}"
                    print_error(error)
                continue
            if first:
                shown.append(Shown(result, provenance, place))
                if as_json:
                    print_json(shown[-1])
        if first:
            _conclude(shown, failures, len(paths), as_json)
        elif failures:  # the first process says why
            raise typer.Exit(failures[0].exit_code if len(paths) == 1 else BatchError.exit_code)


def _conclude(shown: list[Shown], failures: list[LandscapeError], number: int, as_json: bool) -> None:
    """The table, and one error for all that failed."""
    from landscape.cli.views.spectrum import print_many, print_one

    if not as_json and shown:
        print_one(shown[0]) if number == 1 else print_many(shown)
    flush()
    raise_failures(failures, number)


def compute_or_reuse(request: _Request, path: Path, place: Path) -> tuple[Spectrum, Provenance]:
    """The result of one checkpoint: the stored one if it is complete and of the same identity, else a new one."""
    from landscape.cli.progress import stage_progress
    from landscape.results.fields import Spectrum
    from landscape.results.store import read_result, restore, write_result
    from landscape.runtime.files import locked
    from landscape.spectra.run import run_spectrum

    job = load_job(request.source, "spectrum", path, place, request.settings.as_dict(), request.quiet)
    ranks = request.ranks
    assert ranks is not None
    with ExitStack() as held:

        def is_done() -> bool | LandscapeError:
            """Asked by the first process only; an error is for all of them."""
            try:
                held.enter_context(locked(place))
                return not request.force and job.is_done()
            except LandscapeError as error:
                return error

        answer = ranks.first(is_done() if ranks.rank == 0 else False)
        if isinstance(answer, LandscapeError):
            raise answer
        if answer:
            stored = read_result(place, "spectrum")
            print_note(f"{path}: done already, {place} is kept", request.quiet)
            return restore(stored, Spectrum), stored.provenance

        def provenance(result: Spectrum, status: str) -> Provenance:
            assert result.spent is not None
            return job.provenance(result.spent, status)

        try:
            with stage_progress(path.name, request.quiet) as report:
                result = run_spectrum(job.problem, request.settings, report, ranks)
        except NumericalError as error:
            if error.partial is not None and ranks.rank == 0:
                write_result(place, error.partial, provenance(error.partial, "failed"), force=request.force)
                error.message += f" (what is known was written to {place})"
            raise
        made = provenance(result, "complete")
        if ranks.rank == 0:
            write_result(place, result, made, force=request.force)
            warn(result, str(path), request.settings)
    return result, made


def warn(result: Spectrum, label: str, settings: SpectrumSettings) -> None:
    """A `warning:` line for everything that the user should not overlook."""
    ends = (("largest", result.top_converged, settings.top), ("smallest", result.bottom_converged, settings.bottom))
    for end, converged, asked in ends:
        missing = int((~converged.astype(bool)).sum())
        if len(converged) < min(asked, result.parameters):
            print_warning(
                f"{label}: {len(converged)} of the {asked} {end} eigenvalues were seen before the products were spent; "
                "raise --max-products"
            )
        if missing:
            print_warning(
                f"{label}: {missing} of the {len(converged)} {end} eigenvalues have not converged; "
                "raise --max-products or --rtol, or use --precision float64"
            )
    for note in result.spent.notes if result.spent else ():
        print_warning(f"{label}: {note}")


def _in_workers(
    request: _Request, paths: list[Path], places: list[Path], workers: int, as_json: bool
) -> tuple[list[Any], list[LandscapeError]]:
    """Each checkpoint in a process of its own; what they wrote is read back from the files."""
    from landscape.cli.views.spectrum import Shown
    from landscape.results.fields import Spectrum
    from landscape.results.store import read_result, restore
    from landscape.runtime.workers import Outcome, Task, run_batch

    tasks = [Task(_arguments(request, path, place), str(path)) for path, place in zip(paths, places, strict=True)]

    def on_done(outcome: Outcome) -> None:
        if outcome.ok:
            print_note(f"{outcome.task.label}: done in {outcome.seconds:.1f} s", request.quiet)

    shown: list[Any] = []
    failures: list[LandscapeError] = []
    for outcome, place in zip(run_batch(tasks, workers, on_done, device=request.settings.device), places, strict=True):
        if outcome.ok:
            stored = read_result(place, "spectrum")
            shown.append(Shown(restore(stored, Spectrum), stored.provenance, place))
        else:
            how = f"killed by signal {-outcome.exit_code}" if outcome.killed else f"exit code {outcome.exit_code}"
            failures.append(LandscapeError(f"{outcome.task.label} failed ({how})"))
            print_error(failures[-1])
            if as_json and not outcome.stdout:  # it was killed
                print_json_error(outcome.task.label, failures[-1])
            elif as_json:
                sys.stdout.write(outcome.stdout)
    return shown, failures


def _arguments(request: _Request, path: Path, place: Path) -> list[str]:
    """The command line of one worker: the options that differ from their defaults."""
    from landscape.spectra.settings import SpectrumSettings

    arguments = ["spectrum", str(path), "--result-path", str(place), "--json", "--quiet"]
    default = SpectrumSettings().as_dict()
    for name, value in request.settings.as_dict().items():
        if value == default.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag[2:])
        else:
            for one in value if isinstance(value, list) else [value]:
                arguments += [flag, str(one)]
    arguments += worker.words(worker.source_options(request.source))
    return [*arguments, "--force"] if request.force else arguments
