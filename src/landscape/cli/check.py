"""`landscape check`: published claims, decided by tests that were declared before any data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as common
from landscape.cli.terminal import flush, print_note
from landscape.errors import BatchError, StorageError, UsageError

if TYPE_CHECKING:
    from landscape.claim import Claim
    from landscape.cli.jobs import Source
    from landscape.evidence.runs import SweptRun
    from landscape.pieces import Pieces
    from landscape.result_checks import Checked
    from landscape.results import Provenance

CLAIMS = ("escape-dimensions", "negative-eigenvalues")
SCALES = ("small", "full")
# Ready-made sweeps that decide a claim, by its name.
SWEEPS = {
    "escape-dimensions": ("four-neuron", "four-neuron-sigmoid", "random-erf", "random-softplus"),
    "negative-eigenvalues": ("four-neuron", "random-erf"),
}


@dataclass(frozen=True)
class Request:
    """One command line."""

    claim: str
    scale: str
    seed: int
    source: Source
    out: Path
    force: bool
    quiet: bool


def check(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUNS...", help="Folders of sweeps, checkpoints or globs.", show_default=False),
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", help="escape-dimensions or negative-eigenvalues; repeatable. Default: all."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Train the sweeps that decide the claim, into OUT/runs.")] = False,
    scale: Annotated[
        str, typer.Option("--scale", help="small: minutes on two cores; full: every protocol whole.")
    ] = "small",
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    seed: common.Seed = 0,
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
) -> None:
    """Decide published claims on a sweep: every part with its statistic, interval and number of seeds.

    Writes CLAIM.check.h5. Interrupted, the same command goes on after the last experiment that was finished.
    """
    from landscape.cli.check_view import print_json, print_one
    from landscape.cli.jobs import Source
    from landscape.cli.targets import check_out
    from landscape.interrupts import Interrupted, interruptible
    from landscape.memory import keep_heap

    names = _checked(claim or list(CLAIMS), runs or [], run, scale)
    if seed < 0:
        raise UsageError(f"--seed is {seed}; it must be at least 0")
    check_out(out)
    keep_heap()
    source = Source(problem, common.parse_sets(sets), data, loss, tuple(allow_global or ()))
    try:
        with interruptible():
            for name in names:
                request = Request(name, scale, seed, source, out, force, quiet)
                folders = [*(runs or []), *(_trained(request) if run else [])]
                result, provenance, place = _decide(request, folders)
                (print_json if as_json else print_one)(result, provenance, place)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished experiments are kept, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None
    flush()


def _checked(names: list[str], runs: list[str], run: bool, scale: str) -> list[str]:
    from landscape.settings import suggestion

    for name in names:
        if name not in CLAIMS:
            raise UsageError(f"there is no claim {name!r}", suggestion(name, CLAIMS))
    if scale not in SCALES:
        raise UsageError(f"there is no scale {scale!r}", f"choose {' or '.join(SCALES)}")
    if not runs and not run:
        raise UsageError("no runs are named", "name a folder of checkpoints, or let --run train them")
    return list(dict.fromkeys(names))


def _trained(request: Request) -> list[str]:
    """The claim's own sweeps, trained by `landscape train`, which does only what is missing."""
    from landscape.executors import Task, run_batch

    folders = {name: request.out / "runs" / name for name in SWEEPS[request.claim]}
    quiet = ["--quiet"] if request.quiet else []
    tasks = [Task(["train", name, "--out", str(folder), "--json", *quiet], name) for name, folder in folders.items()]
    outcomes = run_batch(tasks, 1, lambda outcome: print_note(f"{outcome.task.label}: trained", request.quiet))
    failed = [o.task.label for o in outcomes if not o.ok and o.exit_code != 6]  # 6: single runs that diverged
    if failed:
        raise BatchError(f"the training of {', '.join(failed)} failed", "see the messages above")
    return [str(folder) for folder in folders.values()]


def _decide(request: Request, folders: list[str]) -> tuple[Checked, Provenance, Path]:
    """The stored decision if it is of the same runs, else a new one."""
    from landscape.atomic import locked
    from landscape.cli.check_runs import read_runs
    from landscape.cli.progress import stage_progress
    from landscape.identity import identity
    from landscape.piece_files import discard, kept_pieces
    from landscape.result_checks import Checked
    from landscape.store import read_result, restore, stored_identity, write_result

    with stage_progress(request.claim, request.quiet) as report:
        report("reading runs", 0, 1)
        runs, hashes = read_runs(folders, request.source)
        settings = {"claim": request.claim, "scale": request.scale, "budget": _budget(request), "seed": request.seed}
        settings["runs"] = folders
        parts = {"files": hashes, "claim": request.claim, "scale": request.scale, "seed": request.seed}
        key = identity({**parts, "problem": request.source.problem, "sets": dict(request.source.sets)})
        place = request.out / f"{request.claim}.check.h5"
        aside = place.with_name(f".{place.name}.pieces")
        with locked(place):
            stored = None if request.force else stored_identity(place, "check")
            if stored == (key, "complete"):
                found = read_result(place, "check")
                print_note(f"{request.claim}: done already, {place} is kept", request.quiet)
                return restore(found, Checked), found.provenance, place
            if stored is not None and stored[0] != key:
                raise StorageError(
                    f"{place} holds the decision on other runs, or at another scale or seed",
                    "name another folder with --out, or overwrite it with --force",
                )
            start = time.perf_counter()
            made = _computed(request, runs, report, kept_pieces(aside, key), start)
            provenance = _provenance(request, key, settings, identity({"files": hashes}), made)
            write_result(place, made, provenance, force=request.force)
            discard(aside)
    return made, provenance, place


def _computed(
    request: Request, runs: list[SweptRun], report: Callable[[str, int, int], None], pieces: Pieces, start: float
) -> Checked:
    from landscape.evidence.runs import populations
    from landscape.result_checks import Read, checked
    from landscape.results import Spent
    from landscape.sweep_text import as_sweep

    claim, gather = _claim(request)
    groups = populations(runs)
    evidence = gather(groups, report, pieces)
    decision = claim.decide(evidence)
    spent = Spent(0, time.perf_counter() - start, "float64", "cpu", {"notes": ()})
    read = [Read(name, len(members), as_sweep(members)) for name, members in groups.items()]
    return checked(claim, decision, claim.draw(evidence), read, spent)


def _claim(request: Request) -> tuple[Claim, Callable[..., Any]]:
    """The claim's file, and what gathers its evidence from populations of runs."""
    module = request.claim.replace("-", "_")
    claim: Claim = import_module(f"landscape.claims.{module}").CLAIM
    evidence = import_module(f"landscape.evidence.{module}")
    scale = evidence.SCALES[request.scale]
    return claim, lambda groups, tell, pieces: evidence.gather(groups, scale, request.seed, tell, pieces)


def _budget(request: Request) -> dict[str, int]:
    """What the scale allows, by its names."""
    module = import_module(f"landscape.evidence.{request.claim.replace('-', '_')}")
    return asdict(module.SCALES[request.scale])


def _provenance(request: Request, key: str, settings: dict[str, Any], files: str, made: Checked) -> Provenance:
    from landscape.identity import versions
    from landscape.results import Provenance

    assert made.spent is not None
    return Provenance(
        command="check",
        identity=key,
        status="complete",
        settings=settings,
        checkpoint=", ".join(settings["runs"]),
        sha256=files,
        header={},
        coordinates={},
        data_fingerprint="",
        versions=versions(),
        device="cpu",
        dtype="float64",
        seed=request.seed,
        products=0,
        seconds=made.spent.seconds,
    )
