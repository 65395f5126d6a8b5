"""The runs of a sweep as claims see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landscape.claims.claim import NO_CERTIFICATE, Excluded
from landscape.errors import UsageError
from landscape.points.certificate import Certificate
from landscape.problem.batches import read_batches
from landscape.problem.problem import Problem
from landscape.runtime.pieces import Pieces
from landscape.runtime.progress import Progress
from landscape.stack.build import data_key

# Called as (stage, done, total).
# What may differ between the runs of one population, in a model's settings and in those of its data.
VARIED, REDRAWN = ("width", "widths"), ("teacher_seed",)
# What a header's "training" says beside the settings.
MEASURED = ("parameters", "steps_done", "train_loss", "train_accuracy", "test_accuracy", "torch")


@dataclass(frozen=True)
class SweptRun:
    """A trained network of a sweep.

    Attributes:
        name: its path within the sweep. coordinates, header: of its final checkpoint. loss: the training loss there.
        certificate: of the final weights; None without one.
        problem, start: make the final and the initial network with data and loss; start is None where its checkpoint
            is not there.
        stages: the same by step for every checkpoint in between.
    """

    name: str
    coordinates: Mapping[str, Any]
    header: Mapping[str, Any]
    loss: float
    certificate: Certificate | None
    problem: Callable[[], Problem]
    start: Callable[[], Problem] | None
    stages: Mapping[int, Callable[[], Problem]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The width of the hidden layer."""
        return int(self.coordinates["width"])

    @property
    def seed(self) -> int:
        return int(self.coordinates.get("seed", 0))

    @property
    def teacher(self) -> int:
        """Which of several random teachers made the data."""
        said = dict(self.header.get("data_settings", {})).get("teacher_seed")
        return int(self.coordinates.get("teacher_seed", 0) if said is None else said)


@dataclass(frozen=True)
class Means:
    """With what evidence is gathered.

    Attributes:
        scale: how much is done, of the claim's own class. seed: of every draw. device: of the experiments.
        tell: called as (stage, done, total). pieces: where finished experiments are kept.
    """

    scale: Any
    seed: int
    device: str
    tell: Progress
    pieces: Pieces


def populations(runs: Sequence[SweptRun]) -> dict[str, list[SweptRun]]:
    """Runs that differ in width, seed and random teacher only, by a name in words, in the order of these three.

    Raises:
        UsageError: no run has a width, one of the three is no whole number, or a seed of a width is there twice.
    """
    swept = [r for r in runs if "width" in r.coordinates]
    if not swept:
        raise UsageError(
            "none of these checkpoints has a width among its coordinates",
            "name a sweep: landscape train four-neuron --out runs, or paths such as width=8/seed=0/final.pt",
        )
    for run in swept:
        for name in ("width", "seed", *REDRAWN):
            if type(value := run.coordinates.get(name, 0)) is not int:
                raise UsageError(f"{run.name}: {name} {value!r} is not a whole number", f"rename it: {name}=8")
    found: dict[str, list[SweptRun]] = {}
    for run in sorted(swept, key=lambda r: (r.width, r.seed, r.teacher)):
        found.setdefault(json.dumps([problem_of(run.header), _optimiser(run), _others(run)]), []).append(run)
    named: dict[str, list[SweptRun]] = {}
    for members in (part for whole in found.values() for part in _apart(whole)):
        base = name = _words(members[0], len({r.teacher for r in members}))
        while name in named:
            name = f"{base} ({len(named) + 1})"
        named[name] = members
    return named


def _apart(runs: list[SweptRun]) -> list[list[SweptRun]]:
    """The runs, or where those of one width were trained in several ways the runs of every training.

    Widths may differ in their training: learning rates often go with the width.
    """
    found: dict[str, list[SweptRun]] = {}
    ways: dict[int, set[str]] = {}
    for run in runs:
        how = {k: v for k, v in run.header.get("training", {}).items() if k not in MEASURED}
        key = json.dumps(how, sort_keys=True, default=str)
        found.setdefault(key, []).append(run)
        ways.setdefault(run.width, set()).add(key)
    if all(len(keys) == 1 for keys in ways.values()):
        found = {"": runs}
    for members in found.values():
        if pair := _twice(members):
            raise UsageError(
                f"{pair[0].name} and {pair[1].name} are the same seed of the same width",
                "name each run once, or give what they differ in as a coordinate: lr=0.1/width=8/seed=0/final.pt",
            )
    return list(found.values())


def _twice(runs: Sequence[SweptRun]) -> tuple[SweptRun, SweptRun] | None:
    """Two runs that say they are the same seed of the same width."""
    seen: dict[tuple[int, int, int], SweptRun] = {}
    for run in runs:
        place = (run.width, run.seed, run.teacher)
        if "seed" in run.coordinates and (other := seen.setdefault(place, run)) is not run:
            return other, run
    return None


def usable(runs: Sequence[SweptRun], zero: float) -> tuple[list[SweptRun], list[Excluded]]:
    """Runs whose outcome is known: a loss below `zero`, or a certified end; and the others with the reason."""
    kept, left = [], []
    for run in runs:
        verdict = None if run.certificate is None else run.certificate.verdict
        if run.loss < zero:
            kept.append(run)
        elif verdict is None:
            left.append(Excluded(run.name, f"{NO_CERTIFICATE}; `landscape descend` makes one"))
        elif verdict in ("not stationary", "unresolved", "failed"):
            left.append(Excluded(run.name, f"{verdict}: whether it would have gone on down is not known"))
        else:
            kept.append(run)
    return kept, left


def widths_of(runs: Sequence[SweptRun]) -> list[int]:
    """All of them, in order."""
    return sorted({r.width for r in runs})


def reaches_zero(runs: Sequence[SweptRun], zero: float) -> bool:
    """Whether any loss is below `zero`."""
    return any(r.loss < zero for r in runs)


def problem_of(header: Mapping[str, Any]) -> str:
    """Model, data and loss that a header names, but for the width and for which random teacher it was."""
    settings = {k: v for k, v in dict(header.get("model_settings", {})).items() if k not in VARIED}
    data = {k: v for k, v in dict(header.get("data_settings", {})).items() if k not in REDRAWN}
    parts = [header.get("model"), settings, header.get("data"), data, header.get("loss")]
    return json.dumps([*parts, header.get("weight_decay", 0.0)], sort_keys=True, default=str)


def _optimiser(run: SweptRun) -> str:
    return str(dict(run.header.get("training", {})).get("optimiser"))


def _others(run: SweptRun) -> dict[str, str]:
    """Coordinates that are neither a width nor a seed nor a step."""
    replicates = ("width", "seed", "step", *REDRAWN)
    return {k: str(v) for k, v in sorted(run.coordinates.items()) if k not in replicates}


def together(problems: Sequence[Problem]) -> list[list[int]]:
    """Numbers of problems whose data can go into one stack."""
    found: dict[str, list[int]] = {}
    for i, problem in enumerate(problems):
        found.setdefault(data_key(problem, read_batches(problem)), []).append(i)
    return list(found.values())


def _words(run: SweptRun, teachers: int) -> str:
    header = run.header
    what, settings = str(header.get("data", "data")), dict(header.get("data_settings", {}))
    if what == "teacher" and "target" in settings:
        target = settings["target"].replace("_", "-")
        what = f"{target} teacher" if teachers == 1 else f"{teachers} {target} teachers"
    activation = dict(header.get("model_settings", {})).get("activation")
    optimiser = dict(header.get("training", {})).get("optimiser")
    named = [str(w).replace("_", "-") for w in (what, activation, optimiser) if w]
    return ", ".join([*named, *(f"{k}={v}" for k, v in _others(run).items())])
