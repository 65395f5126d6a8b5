"""How `landscape check` decides a claim: experiments here or in workers, what they found kept, one result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.checkpoints.source import Source
from landscape.cli import worker
from landscape.cli.terminal import print_note
from landscape.errors import StorageError

if TYPE_CHECKING:
    from landscape.claims.claim import Claim
    from landscape.claims.result import Checked
    from landscape.claims.runs import SweptRun
    from landscape.results.fields import Provenance
    from landscape.runtime.pieces import KeptPieces
    from landscape.runtime.progress import Progress
    from landscape.runtime.workers import Task

    Groups = Mapping[str, Sequence[SweptRun]]

# A worker says how far its experiment is not more often than that.
TELL_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """One command line; workers: processes that share the experiments, 0: as many as there are cores or GPUs."""

    claim: str
    scale: str
    seed: int
    source: Source
    out: Path
    device: str
    workers: int
    force: bool
    quiet: bool

    @property
    def place(self) -> Path:
        """The result file."""
        return self.out / f"{self.claim}.check.h5"

    @property
    def evidence(self) -> Any:
        """The module that gathers the claim's evidence."""
        return import_module(f"landscape.claims.{self.claim.replace('-', '_')}.experiments")

    @property
    def decided(self) -> Claim:
        """The claim itself."""
        claim: Claim = import_module(f"landscape.claims.{self.claim.replace('-', '_')}.decide").CLAIM
        return claim


def decide(request: Request, folders: list[str]) -> tuple[Checked, Provenance, Path]:
    """The stored decision if it is of the same runs, else a new one."""
    from landscape import __version__
    from landscape.claims.read_runs import read_runs
    from landscape.claims.result import Checked
    from landscape.cli.progress import stage_progress
    from landscape.results.identity import identity
    from landscape.results.store import read_result, restore, stored_identity, write_result
    from landscape.runtime.files import locked
    from landscape.runtime.piece_files import discard, kept_pieces

    place = request.place
    with stage_progress(request.claim, request.quiet) as report:
        report("reading runs", 0, 1)
        runs, hashes = read_runs(folders, request.source, None if request.quiet else print_note)
        budget = asdict(request.evidence.SCALES[request.scale])
        parts = {"files": hashes, "claim": request.claim, "budget": budget, "seed": request.seed}
        key = identity({**parts, "landscape": __version__})
        with locked(place):
            stored = None if request.force else stored_identity(place, "check")
            if stored == (key, "complete"):
                found = read_result(place, "check")
                print_note(f"{request.claim}: done already, {place} is kept", request.quiet)
                return restore(found, Checked), found.provenance, place
            if stored is not None and stored[0] != key:
                raise StorageError(
                    f"{place} holds the decision on other runs, at another scale or seed, or of another version",
                    "name another folder with --out, or overwrite it with --force",
                )
            pieces = kept_pieces(_aside(place), key)
            made = _computed(request, folders, runs, report, pieces, key)
            settings = {"claim": request.claim, "scale": request.scale, "seed": request.seed, "runs": folders}
            settings |= {"budget": budget, "problem": _words_of(request.source)}
            provenance = _provenance(key, settings, identity({"files": hashes}), made)
            write_result(place, made, provenance, force=request.force)
            for path in [_aside(place), *worker.parts(place, left_behind=True)]:
                discard(path)
    return made, provenance, place


def _computed(
    request: Request, folders: list[str], runs: list[SweptRun], report: Progress, pieces: KeptPieces, key: str
) -> Checked:
    import torch

    from landscape.claims.result import Read, checked
    from landscape.claims.runs import Means, populations
    from landscape.claims.sweep_text import as_sweep
    from landscape.results.fields import Spent
    from landscape.runtime.arithmetic import resolve_device
    from landscape.runtime.workers import visible_gpus

    start = time.perf_counter()
    device = str(resolve_device(request.device))
    groups = populations(runs)
    units = request.evidence.units(groups)
    most = torch.get_num_threads() if device == "cpu" else max(1, len(visible_gpus(request.device)))
    workers = min(len(units), request.workers or most)
    if workers > 1:
        _in_workers(request, _folders_of(folders, groups), units, workers, pieces, key, report)
    means = Means(request.evidence.SCALES[request.scale], request.seed, device, report, pieces)
    evidence = request.evidence.gather(groups, means)
    claim = request.decided
    decision = claim.decide(evidence)
    spent = Spent(0, time.perf_counter() - start, "float64", device, {"notes": ()})
    read = [Read(name, len(members), as_sweep(members)) for name, members in groups.items()]
    return checked(claim, decision, claim.draw(evidence), read, spent)


def _words_of(source: Source) -> list[str]:
    """The options that name the problem, as they are typed."""
    named = [("--problem", source.problem), *(("--set", f"{k}={v}") for k, v in source.sets.items())]
    named += [("--data", source.data), ("--loss", source.loss)]
    named += [*(("--allow-global", name) for name in source.allow_globals), ("--key", source.key)]
    return [word for option, value in named if value is not None for word in (option, value)]


def _provenance(key: str, settings: dict[str, Any], files: str, made: Checked) -> Provenance:
    from landscape.results.fields import Provenance
    from landscape.results.identity import versions

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
        device=made.spent.device,
        dtype="float64",
        seed=settings["seed"],
        products=0,
        seconds=made.spent.seconds,
    )


# ---- workers ---------------------------------------------------------------------------------------------------------


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.pieces")


def _folders_of(folders: list[str], groups: Groups) -> dict[str, list[str]]:
    """Those of the named paths under which each population lies: a worker need not read the others.

    All of them where a run's start lies elsewhere than its end, or where a name depends on the other populations.
    """
    from landscape.checkpoints.find import expand

    if any("descent" in run.header for runs in groups.values() for run in runs) or any(n.endswith(")") for n in groups):
        return dict.fromkeys(groups, folders)
    below = {folder: {str(p) for p in expand([folder])} for folder in folders}
    return {
        name: [f for f, files in below.items() if any(run.name in files for run in runs)] or folders
        for name, runs in groups.items()
    }


def _in_workers(
    request: Request,
    folders: Mapping[str, list[str]],
    units: Sequence[tuple[str, str]],
    workers: int,
    pieces: KeptPieces,
    key: str,
    report: Progress,
) -> None:
    """Every experiment in a process of its own, some at a time; what they keep is collected.

    One that fails is done again by the caller, which then says why; its own words would be the same once more.
    """
    from landscape.runtime.piece_files import kept_pieces
    from landscape.runtime.workers import Outcome, print_line, run_batch

    place, finished = request.place, [0]
    said: dict[str, list[str]] = {}

    def take() -> None:
        for part in worker.parts(place):
            pieces.take(kept_pieces(part, key).everything)

    def on_done(outcome: Outcome) -> None:
        finished[0] += 1
        if outcome.ok:
            for line in said.get(outcome.task.label, []):
                print_line(outcome.task, line)
        else:
            print_note(f"{outcome.task.label}: its worker failed; what it left is done here", request.quiet)
        take()

    def on_line(task: Task, line: str) -> None:
        if line.startswith(worker.SAYS):
            report(line.removeprefix(worker.SAYS), finished[0], len(units))
        else:
            said.setdefault(task.label, []).append(line)

    take()
    tasks = [
        worker.task_of(f"{name}, {what}", run_unit, request, folders.get(name, []), (name, what), number, key)
        for number, (name, what) in enumerate(units)
    ]
    try:
        run_batch(tasks, workers, on_done, device=request.device, on_line=on_line)
    finally:
        take()


def run_unit(request: Request, folders: list[str], chosen: tuple[str, str], number: int, key: str) -> None:
    """A worker: one experiment, into a file of its own; what is there already is not done again."""
    from landscape.claims.read_runs import read_runs
    from landscape.claims.runs import Means, populations
    from landscape.runtime.arithmetic import resolve_device
    from landscape.runtime.piece_files import kept_pieces

    groups = populations(read_runs(folders, request.source)[0]) if folders else {}
    own = kept_pieces(worker.part(request.place, number), key)
    own.take(kept_pieces(_aside(request.place), key).everything)
    device = str(resolve_device(request.device))
    tell = worker.teller(lambda stage, done, total: f"{stage} ({done} of {total})", TELL_SECONDS)
    means = Means(request.evidence.SCALES[request.scale], request.seed, device, tell, own)
    request.evidence.work(groups, chosen, means)
