"""The runs of a sweep as claims see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landscape.certificate import Certificate
from landscape.claim import NO_CERTIFICATE, Excluded
from landscape.errors import UsageError
from landscape.pieces import Pieces
from landscape.problem import Problem

# Called as (stage, done, total).
Progress = Callable[[str, int, int], None]
# What may differ between the runs of one population, in a model's settings.
VARIED = ("width", "widths")


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
        """Of the hidden layer."""
        return int(self.coordinates["width"])

    @property
    def seed(self) -> int:
        return int(self.coordinates.get("seed", 0))


@dataclass(frozen=True)
class Means:
    """With what evidence is gathered.

    Attributes:
        scale: how much is done, of the claim's own class. seed: of every draw. device: of the experiments.
        tell: called as (stage, done, total). pieces: where finished experiments are put aside.
    """

    scale: Any
    seed: int
    device: str
    tell: Progress
    pieces: Pieces


def populations(runs: Sequence[SweptRun]) -> dict[str, list[SweptRun]]:
    """Runs that differ in width and seed only, by a name in words, in the order of width and seed.

    Raises:
        UsageError: no run has a width.
    """
    found: dict[str, list[SweptRun]] = {}
    for run in sorted((r for r in runs if "width" in r.coordinates), key=lambda r: (r.width, r.seed)):
        found.setdefault(_key(run), []).append(run)
    if not found:
        raise UsageError(
            "none of these checkpoints has a width among its coordinates",
            "name a sweep: landscape train four-neuron --out runs, or paths such as width=8/seed=0/final.pt",
        )
    named: dict[str, list[SweptRun]] = {}
    for members in found.values():
        base = name = _words(members[0])
        while name in named:
            name = f"{base} ({len(named) + 1})"
        named[name] = members
    return named


def usable(runs: Sequence[SweptRun]) -> tuple[list[SweptRun], list[Excluded]]:
    """Runs whose outcome is known: zero loss, or a certified end; and the others with the reason."""
    kept, left = [], []
    for run in runs:
        verdict = None if run.certificate is None else run.certificate.verdict
        if verdict is None:
            left.append(Excluded(run.name, f"{NO_CERTIFICATE}; `landscape descend` makes one"))
        elif verdict in ("not stationary", "unresolved", "failed"):
            left.append(Excluded(run.name, f"{verdict}: whether it would have gone on down is not known"))
        else:
            kept.append(run)
    return kept, left


def _key(run: SweptRun) -> str:
    header = run.header
    settings = {k: v for k, v in dict(header.get("model_settings", {})).items() if k not in VARIED}
    training = header.get("training", {})
    parts = [header.get("model"), settings, header.get("data"), header.get("data_settings"), header.get("loss")]
    return json.dumps([*parts, training.get("optimiser"), header.get("weight_decay", 0.0)], sort_keys=True, default=str)


def _words(run: SweptRun) -> str:
    header = run.header
    data, settings = str(header.get("data", "data")), dict(header.get("data_settings", {}))
    what = f"{settings['target'].replace('_', '-')} teacher" if data == "teacher" and "target" in settings else data
    activation = dict(header.get("model_settings", {})).get("activation")
    optimiser = dict(header.get("training", {})).get("optimiser")
    return ", ".join(str(w).replace("_", "-") for w in (what, activation, optimiser) if w)
