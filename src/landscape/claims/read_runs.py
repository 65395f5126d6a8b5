"""The runs that `landscape check` is about: checkpoints of a sweep, the last one and the initial one of each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.checkpoints.find import expand
from landscape.checkpoints.source import Source
from landscape.errors import UsageError

# The step of a checkpoint that names none, such as final.pt.
END, FINAL = 2**62, "final"

if TYPE_CHECKING:
    from landscape.checkpoints.checkpoint import Checkpoint
    from landscape.claims.runs import SweptRun
    from landscape.points.certificate import Certificate
    from landscape.problem.problem import Problem


def read_runs(
    patterns: Sequence[str], source: Source, say: Callable[[str], object] | None = None
) -> tuple[list[SweptRun], list[str]]:
    """All runs below paths, globs and folders, and what tells one set of runs from another: files with coordinates.

    Checkpoints that differ in their step only belong to one run: the last one, or that without a step, is its end; step
    0, or initial.pt, is its start. A file that is named twice, or a copy of it, counts once. `say`: as of `expand`.

    Raises:
        UsageError: two files of one folder could be the end of its run.
    """
    from landscape.checkpoints.checkpoint import read_checkpoint

    found: dict[str, dict[int, Path]] = {}
    kept: dict[Path, Checkpoint] = {}
    for path in {p.resolve(): p for p in expand(patterns, say)}.values():
        checkpoint = read_checkpoint(path, source.allow_globals, source.key)
        kept[path] = replace(checkpoint, state={}, module=None)  # read again where they are needed: sweeps are large
        places = {k: v for k, v in checkpoint.coordinates.items() if k != "step"}
        steps = found.setdefault(f"{path.parent}|{sorted(places.items())}", {})
        step = checkpoint.coordinates.get("step")
        step = step if type(step) is int else 0 if path.stem == "initial" else END
        if step in steps and FINAL not in (path.stem, steps[step].stem):
            raise UsageError(f"{steps[step]} and {path} could both be the end of one run", "name one of them only")
        if step not in steps or path.stem == FINAL:
            steps[step] = path
    runs = _joined([_run(steps, kept, source) for steps in found.values()], kept)
    once: dict[str, SweptRun] = {}
    for run in runs:
        once.setdefault(f"{kept[Path(run.name)].sha256} {sorted(run.coordinates.items())}", run)
    marks = sorted(f"{c.sha256} {sorted(c.coordinates.items())}" for c in kept.values())
    return list(once.values()), [*marks, *_own_problem(runs, source)]


def _own_problem(runs: Sequence[SweptRun], source: Source) -> list[str]:
    """What a problem function or the data named on the command line are now: no file of the runs says it.

    Raises:
        UsageError: a checkpoint names its own data, which its loss and its certificate are of.
    """
    from landscape.checkpoints.checkpoint import read_checkpoint
    from landscape.checkpoints.load import load_problem
    from landscape.problem.batches import fingerprint, read_batches

    if not (source.problem or source.data or source.loss):
        return []
    found = []
    for run in runs:
        if run.header.get("data"):
            raise UsageError(
                f"{run.name} names its own data, {run.header['data']!r}; its loss and its certificate are of these",
                "leave out --problem, --data and --loss, or name checkpoints without data of their own",
            )
        checkpoint = read_checkpoint(run.name, source.allow_globals, source.key)
        loaded = load_problem(checkpoint, source.problem, source.sets, source.data, source.loss, source.batchnorm)
        found.append(f"{loaded.problem_identity} {fingerprint(read_batches(loaded.problem))}")
    return sorted(set(found))


def _joined(runs: list[SweptRun], kept: Mapping[Path, Checkpoint]) -> list[SweptRun]:
    """Ends that `landscape descend` wrote in a folder of their own take the place of the ends they came from."""
    origins = {kept[Path(run.name)].sha256: run for run in runs}
    replaced: set[str] = set()
    joined = []
    for run in runs:
        origin = origins.get(str(dict(run.header.get("descent", {})).get("from")))
        if run.start is None and origin is not None and origin is not run:
            replaced.add(origin.name)
            joined.append(replace(run, start=origin.start, stages=origin.stages))
        else:
            joined.append(run)
    return [run for run in joined if run.name not in replaced]


def _run(steps: Mapping[int, Path], kept: Mapping[Path, Checkpoint], source: Source) -> SweptRun:
    from landscape.claims.runs import SweptRun

    last = steps[max(steps)]
    checkpoint = kept[last]
    initial = steps.get(0) if max(steps) > 0 else None
    problem = _maker(last, source)
    return SweptRun(
        str(last),
        checkpoint.coordinates,
        checkpoint.header,
        _loss(checkpoint, problem),
        _certificate(checkpoint.header),
        problem,
        None if initial is None else _maker(initial, source),
        {step: _maker(path, source) for step, path in sorted(steps.items()) if path not in (last, initial)},
    )


def _maker(path: Path, source: Source) -> Callable[[], Problem]:
    def made() -> Problem:
        from landscape.checkpoints.checkpoint import read_checkpoint
        from landscape.checkpoints.load import load_problem

        checkpoint = read_checkpoint(path, source.allow_globals, source.key)
        return load_problem(checkpoint, source.problem, source.sets, source.data, source.loss, source.batchnorm).problem

    return made


def _loss(checkpoint: Checkpoint, problem: Callable[[], Problem]) -> float:
    """As the certificate or the header has it; of a foreign file, evaluated."""
    header = checkpoint.header
    for place in (header.get("certificate"), header.get("training")):
        if isinstance(place, Mapping):
            value = place.get("loss", place.get("train_loss"))
            if isinstance(value, float | int):
                return float(value)
    from landscape.problem.objective import build_objective

    return build_objective(problem()).value()


def _certificate(header: Mapping[str, Any]) -> Certificate | None:
    from landscape.points.certificate import from_dict

    stored = header.get("certificate")
    return from_dict(stored) if isinstance(stored, Mapping) else None
