"""Evidence for `negative-eigenvalues`: critical points and ensembles of small tanh networks of our own, and the bounds
at interpolation on the runs of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from landscape.claims.claim import Excluded
from landscape.claims.negative_eigenvalues.critical_points import critical_points, starts
from landscape.claims.negative_eigenvalues.decide import AtWidth, Course, Evidence, Heights, Stage, Sweep
from landscape.claims.negative_eigenvalues.decide_signs import Signs
from landscape.claims.negative_eigenvalues.interpolation_bounds import Interpolation, counts, interpolation
from landscape.claims.negative_eigenvalues.signs import sign_ensemble
from landscape.claims.runs import Means, SweptRun, together
from landscape.data import load_data
from landscape.errors import NumericalError, ProblemError
from landscape.models import build_model
from landscape.problem.parameters import trainable
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack
from landscape.stack.stack import Stack

# Hidden neurons of the networks of 2a (two inputs) and 2b (six inputs), both with one output.
HIDDEN = (1, 2, 3, 4)
# Of dense Hessians over training: parameters, and entries of all networks of a width, of which there are at least so
# many.
MOST_PARAMETERS, MOST_ENTRIES, FEWEST = 3500, 2**24, 5
# Numbers of all Hessians of single outputs of one network; more take too long to be had here.
MOST_NUMBERS = 2**27


@dataclass(frozen=True)
class Scale:
    """How much is done: members whose searches for critical points begin at all heights (2a), seeds of an ensemble
    (2b), networks of each width of a sweep (2c)."""

    searches: int
    seeds: int
    networks: int


SCALES = {"small": Scale(30, 150, 10), "medium": Scale(60, 500, 60), "full": Scale(120, 2000, 500)}


def units(groups: Mapping[str, Sequence[SweptRun]]) -> list[tuple[str, str]]:
    """What can be done apart: (population or number of hidden neurons, experiment), the longest ones first."""
    searched = [(str(r), what) for what in ("2a", "2b") for r in reversed(HIDDEN)]
    return [*searched, *((name, what) for what in ("2c", "2c, training") for name in groups)]


def work(groups: Mapping[str, Sequence[SweptRun]], unit: tuple[str, str], means: Means) -> None:
    """One of the `units`; what it finds is kept."""
    name, what = unit
    if what in ("2a", "2b"):
        (_heights if what == "2a" else _signs)(int(name), means)
    elif groups.get(name):
        (_sweep if what == "2c" else _course)(name, groups[name], means)


def gather(groups: Mapping[str, Sequence[SweptRun]], means: Means) -> Evidence:
    """All parts; every finished one is kept under its own name."""
    heights = [_heights(r, means) for r in HIDDEN]
    signs = [_signs(r, means) for r in HIDDEN]
    sweeps, courses, excluded = [], [], list[Excluded]()
    for name, runs in groups.items():
        made = _sweep(name, runs, means)
        if isinstance(made, Sweep):
            sweeps.append(made)
        else:
            excluded.append(Excluded(name, f"the bounds: {made}"))
        course = _course(name, runs, means)
        if isinstance(course, str):
            excluded.append(Excluded(name, f"over training: {course}"))
        else:
            courses.append(Course(name, course, isinstance(made, Sweep)))
    return Evidence(heights, signs, sweeps, courses, tuple(excluded))


def tanh_stack(inputs: int, hidden: int, members: int, seed: int, device: str = "cpu") -> tuple[Stack, torch.Tensor]:
    """Networks inputs–hidden–1 with other initial weights each, on the data of a random tanh teacher of their size."""
    settings = {"target": "random", "activation": "tanh", "neurons": hidden, "features": inputs, "scale": 2.0}
    data = load_data("teacher", {**settings, "inputs": "gaussian", "samples": 200}).train
    model = {"inputs": inputs, "outputs": 1, "width": hidden, "activation": "tanh"}
    problems = [Problem(build_model("mlp", model, seed + k).double(), data, "mse") for k in range(members)]
    return build_stack(problems, device=device)


def _heights(hidden: int, means: Means) -> Heights:
    """2a: searches from every scale of initial weights and along descents."""
    name = f"tanh 2-{hidden}-1"
    means.tell(f"2a, {name}", hidden - 1, len(HIDDEN))
    label = f"2a, {name}, {means.scale.searches}"
    aside: dict[str, Any] | None = means.pieces.get(label)
    if aside is None:
        stack, theta = tanh_stack(2, hidden, means.scale.searches, means.seed, means.device)
        found = critical_points(stack, starts(stack, theta))
        arrays = {k: torch.as_tensor(getattr(found, k)) for k in ("loss", "index", "true", "distinct")}
        aside = {**arrays, "verdict": list(found.verdict), "reason": list(found.reason)}
        means.pieces.put(label, aside)
    loss, index, true, distinct = (aside[k].numpy() for k in ("loss", "index", "true", "distinct"))
    return Heights(name, loss, index, true, distinct, aside["verdict"], aside["reason"])


def _signs(hidden: int, means: Means) -> Signs:
    """2b: spectra at the start, one size of the family."""
    means.tell(f"2b, tanh 6-{hidden}-1", hidden - 1, len(HIDDEN))
    label = f"2b, {hidden}, {means.scale.seeds}"
    aside = means.pieces.get(label)
    if aside is None:
        made = sign_ensemble(*tanh_stack(6, hidden, means.scale.seeds, means.seed, means.device))
        aside = {"eigenvalues": torch.as_tensor(made.eigenvalues), "tau": made.tau}
        means.pieces.put(label, aside)
    return Signs("tanh 6-r-1", "start", aside["eigenvalues"].numpy(), float(aside["tau"]))


def _sweep(name: str, runs: Sequence[SweptRun], means: Means) -> Sweep | str:
    """2c: the bounds at the ends of one population, certified or not; or why it is left out."""
    widths = sorted({r.width for r in runs}, reverse=True)  # what is too large is found out first
    made = list[AtWidth]()
    for number, width in enumerate(widths):
        means.tell(f"2c, {name}", number, len(widths))
        label = f"2c, {name}, {width}"
        aside = means.pieces.get(label)
        if aside is None:
            problems = [r.problem() for r in runs if r.width == width][: means.scale.networks]
            if problems[0].loss != "mse":
                return "they are of the squared error"
            found = _bounds(problems, width, means)
            if isinstance(found, str):
                return found
            aside = found
            means.pieces.put(label, aside)
        values: dict[str, Any] = {n: v.numpy() if v.dim() else v.item() for n, v in aside.items()}
        made.insert(0, AtWidth(width=width, **values))
    return Sweep(name, made)


def _bounds(problems: Sequence[Problem], width: int, means: Means) -> dict[str, torch.Tensor] | str:
    """What `AtWidth` keeps of `Interpolation`, of all networks of a width; or why it cannot be had."""
    every: list[Interpolation] = []
    for numbers in together(problems):
        stack, theta = build_stack([problems[i] for i in numbers], device=means.device)
        size = stack.count * stack.outputs * stack.parameters**2
        if size > MOST_NUMBERS:
            return f"they need the Hessians of all single outputs, {size:.0e} numbers at width {width}"
        try:
            every.append(interpolation(stack, theta))
        except ProblemError as error:
            return error.message
    found = {}
    for name in (f.name for f in fields(AtWidth) if f.name != "width"):
        values = [np.asarray(getattr(one, name)) for one in every]
        found[name] = torch.as_tensor(np.concatenate(values) if values[0].ndim else max(values))  # n·C: the weakest
    return found


def _course(name: str, runs: Sequence[SweptRun], means: Means) -> list[Stage] | str:
    """2c: loss, zeros and negative mass at every stage of training that all runs have; or why they are not counted."""
    common = set.intersection(*(set(r.stages) for r in runs))
    made = list[Stage]()
    stages: list[int | str] = ["start", *sorted(common), "end"]
    for stage in stages:
        for width in sorted({r.width for r in runs}):
            found = [m for r in runs if r.width == width and (m := _at(r, stage)) is not None]
            if not found:
                continue
            means.tell(f"2c, {name}, {stage}, width {width}", 0, 1)
            words = f"step {stage}" if isinstance(stage, int) else stage
            label = f"2c, training, {name}, {words}, {width}"
            aside = means.pieces.get(label)
            if aside is None:
                aside = _stage(found, means)
                if isinstance(aside, str):
                    return f"{aside} at width {width}"
                means.pieces.put(label, aside)
            made.append(Stage(width, words, *(aside[k].numpy() for k in ("loss", "zeros", "negative_mass"))))
    return made


def _at(run: SweptRun, stage: int | str) -> Callable[[], Problem] | None:
    """What makes the run's network at its start, after a step, or at its end."""
    if isinstance(stage, int):
        return run.stages[stage]
    return run.start if stage == "start" else run.problem


def _stage(makers: Sequence[Callable[[], Problem]], means: Means) -> dict[str, torch.Tensor] | str:
    """The counts of some networks; or why there are none."""
    parameters = sum(p.numel() for p in trainable(makers[0]().model).values())
    if parameters > MOST_PARAMETERS:
        return f"{parameters:,} parameters: dense Hessians are counted up to {MOST_PARAMETERS:,}"
    most = max(FEWEST, min(means.scale.networks, MOST_ENTRIES // parameters**2))
    problems = [make() for make in makers[:most]]
    try:
        found = [
            counts(*build_stack([problems[i] for i in numbers], device=means.device)) for numbers in together(problems)
        ]
    except (ProblemError, NumericalError) as error:
        return error.message
    return {
        "loss": torch.as_tensor(np.concatenate([c.loss for c in found])),
        "zeros": torch.as_tensor(np.concatenate([c.zeros / c.parameters for c in found])),
        "negative_mass": torch.as_tensor(np.concatenate([c.negative_mass for c in found])),
    }
