"""The runs that `landscape check` is about: checkpoints of a sweep, the last one and the initial one of each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import Source
from landscape.cli.targets import expand

# Of a checkpoint that names no step, such as final.pt.
END = 2**62

if TYPE_CHECKING:
    from landscape.certificate import Certificate
    from landscape.checkpoint import Checkpoint
    from landscape.evidence.runs import SweptRun
    from landscape.problem import Problem


def read_runs(patterns: Sequence[str], source: Source) -> tuple[list[SweptRun], list[str]]:
    """All runs below paths, globs and folders, and the sha256 of their files.

    Checkpoints that differ in their step only belong to one run: the last one, or that without a step, is its end; step
    0, or initial.pt, is its start.
    """
    from landscape.checkpoint import read_checkpoint

    found: dict[str, dict[int, Path]] = {}
    kept: dict[Path, Checkpoint] = {}
    for path in expand(patterns):
        checkpoint = read_checkpoint(path, source.allow_globals)
        kept[path] = replace(checkpoint, state={}, module=None)  # read again where they are needed: sweeps are large
        places = {k: v for k, v in checkpoint.coordinates.items() if k != "step"}
        label = f"{path.parent}|{sorted(places.items())}"
        unnamed = 0 if path.stem == "initial" else END
        found.setdefault(label, {})[int(checkpoint.coordinates.get("step", unnamed))] = path
    runs = [_run(steps, kept, source) for steps in found.values()]
    return _joined(runs), sorted(c.sha256 for c in kept.values())


def _joined(runs: list[SweptRun]) -> list[SweptRun]:
    """Ends that `landscape descend` certified in a folder of their own get the starts of the runs they came from."""
    by_place: dict[str, list[SweptRun]] = {}
    for run in runs:
        places = {k: v for k, v in run.coordinates.items() if k != "step"}
        by_place.setdefault(str(sorted(places.items())), []).append(run)
    joined = []
    for group in by_place.values():
        ends = [r for r in group if r.certificate is not None and r.start is None]
        origins = [r for r in group if r.certificate is None]
        if len(group) == 2 and len(ends) == len(origins) == 1:
            joined.append(replace(ends[0], start=origins[0].start))
        else:
            joined += group
    return joined


def _run(steps: Mapping[int, Path], kept: Mapping[Path, Checkpoint], source: Source) -> SweptRun:
    from landscape.evidence.runs import SweptRun

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
        from landscape.checkpoint import read_checkpoint
        from landscape.loading import load_problem

        checkpoint = read_checkpoint(path, source.allow_globals)
        return load_problem(checkpoint, source.problem, source.sets, source.data, source.loss).problem

    return made


def _loss(checkpoint: Checkpoint, problem: Callable[[], Problem]) -> float:
    """As the certificate or the header has it; of a foreign file, evaluated."""
    header = checkpoint.header
    for place in (header.get("certificate"), header.get("training")):
        if isinstance(place, Mapping):
            value = place.get("loss", place.get("train_loss"))
            if isinstance(value, float | int):
                return float(value)
    from landscape.objective import build_objective

    return build_objective(problem()).value()


def _certificate(header: Mapping[str, Any]) -> Certificate | None:
    from landscape.certificate import from_dict

    stored = header.get("certificate")
    return from_dict(stored) if isinstance(stored, Mapping) else None
