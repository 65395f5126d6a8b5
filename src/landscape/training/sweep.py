"""Sweep files: a TOML file into a validated `Sweep`, and a sweep into its list of runs."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from landscape.data import DATA, load_data
from landscape.errors import ProblemError, UsageError
from landscape.models import MODELS, settings_for
from landscape.problem.problem import LOSSES
from landscape.settings import choose, later, parse_settings, suggestion

TABLES = ("sweep", "model", "data", "training")
FIRST_ORDER = ("sgd", "adam")
# To certified points, full batch, all seeds of a width in one stack.
SECOND_ORDER = ("levenberg_marquardt", "newton", "flow")
OPTIMISERS = (*FIRST_ORDER, *SECOND_ORDER)
FINISHES = ("none", "minimum", "critical")
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "float64")
# Settings of a model that follow from the data, so that a sweep file has no say in them.
DERIVED = ("inputs", "outputs")

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Training:
    """The table [training] of a sweep file.

    Attributes:
        steps: optimiser steps (iterations of the second-order ones), at most.
        loss: name of a built-in loss; its mean over a minibatch is what a step descends.
        optimiser: "sgd" or "adam" on minibatches; "levenberg_marquardt" (while it gains, then saddle-free Newton),
            "newton" (saddle-free) or "flow" (gradient flow) on all data, which end with a certificate in the header.
        learning_rate, momentum: momentum is for sgd only.
        weight_decay: coefficient of ½‖θ‖² in the objective. Both optimisers add weight_decay·θ to the
            gradient, so their stationary points are those of the objective, and the header declares it.
        schedule: of the learning rate over `steps`: "constant", or "cosine" down to zero.
        batch_size: of minibatches, drawn without replacement; the number of samples, or more: full batch.
        stacked: train all seeds of a width as one stack (`torch.func`); other last bits than one by one.
            Second-order optimisers always do.
        finish: "minimum" or "critical": descend to a certified point afterwards, in at most `finish_steps`.
        certify: put the certificate of the final weights into the header; implied by `finish`.
        target_loss: stop as soon as the mean training loss, evaluated after every epoch, is at most this.
        dtype: arithmetic of the training.
        save_dtype: of the tensors in the files.
        save: steps at which to write a checkpoint, 0 being the initial one; the last step always is. Not part
            of a run's identity: what a run computes does not depend on it.
    """

    steps: int
    loss: str = "cross_entropy"
    optimiser: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 64
    target_loss: float | None = None
    stacked: bool = later(False)
    finish: str = later("none")
    finish_steps: int = later(1000)
    certify: bool = later(False)
    dtype: str = "float32"
    save_dtype: str = "float32"
    save: tuple[int, ...] = field(default=(0,), compare=False)

    def __post_init__(self) -> None:
        choose(LOSSES, self.loss, "loss")
        for table, value, what in (
            (OPTIMISERS, self.optimiser, "optimiser"),
            (SCHEDULES, self.schedule, "schedule"),
            (FINISHES, self.finish, "finish"),
            (DTYPES, self.dtype, "dtype"),
            (DTYPES, self.save_dtype, "save_dtype"),
        ):
            choose(dict.fromkeys(table), value, what)
        if self.steps < 1 or self.batch_size < 1 or self.finish_steps < 1:
            raise ProblemError("steps, finish_steps and batch_size must be at least 1")
        if self.certified and "float32" in (self.dtype, self.save_dtype):
            raise ProblemError(
                "certified points need float64: rounding to float32 would move them off",
                'write dtype = "float64" and save_dtype = "float64" in [training]',
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ProblemError("learning_rate must be above 0, weight_decay at least 0, and momentum in [0, 1)")
        if self.momentum and self.optimiser != "sgd":
            raise ProblemError("momentum is a setting of sgd only", "leave it out: adam has its own averages")
        if self.optimiser == "flow" and any(self.save):
            raise ProblemError("save lists steps, but a gradient flow has times", "write save = [0] with flow")
        if self.second_order and self.target_loss is not None and self.weight_decay:
            raise ProblemError(
                "target_loss is of the data, and second-order optimisers descend the penalised loss",
                "leave target_loss or weight_decay out",
            )
        beyond = [step for step in self.save if not 0 <= step <= self.steps]
        if beyond:
            raise ProblemError(f"save lists step {beyond[0]}, but the steps are 0 … {self.steps}")

    @property
    def second_order(self) -> bool:
        """Whether the optimiser works on all data, with Hessians."""
        return self.optimiser in SECOND_ORDER

    @property
    def certified(self) -> bool:
        """Whether the final checkpoint carries a certificate."""
        return self.certify or self.second_order or self.finish != "none"

    @property
    def together(self) -> bool:
        """Whether the seeds of a width are trained as one stack."""
        return self.stacked or self.certified


@dataclass(frozen=True)
class Run:
    """One training run: everything that its checkpoints depend on. Equal runs give equal files.

    Attributes:
        coordinates: its place in the sweep: width first, seed last.
        model, data: keys of the tables `MODELS` and `DATA`.
        model_settings, data_settings: their `Settings`.
        training: how to train.
    """

    coordinates: Mapping[str, Scalar]
    model: str
    model_settings: Any
    data: str
    data_settings: Any
    training: Training

    @property
    def folder(self) -> Path:
        """Where its checkpoints go, relative to the sweep's folder: width=8/seed=0."""
        return Path(*(f"{name}={_shown(value)}" for name, value in self.coordinates.items()))

    @property
    def label(self) -> str:
        """Its coordinates for people: "width=8 seed=0"."""
        return " ".join(self.folder.parts)

    def setting(self) -> dict[str, Any]:
        """All settings that are not coordinates or derived; the same for all runs of a sweep."""
        flat = {"model": self.model, "data": self.data, "coordinates": sorted(self.coordinates)}
        for part in (self.model_settings, self.data_settings, self.training):
            flat |= {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.compare}
        return {k: v for k, v in flat.items() if k not in (*self.coordinates, *DERIVED)}


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked.

    Attributes:
        name: of the file, without .toml.
        coordinates: name -> values, width first and seed last; every combination is a run.
        model, data: keys of the tables `MODELS` and `DATA`.
        model_settings, data_settings, training: as in the file, coordinates left out.
    """

    name: str
    coordinates: Mapping[str, tuple[Scalar, ...]]
    model: str
    model_settings: Mapping[str, Any]
    data: str
    data_settings: Mapping[str, Any]
    training: Mapping[str, Any]


def read_sweep(path: Path, changes: Mapping[str, str] | None = None) -> Sweep:
    """The sweep in a TOML file: tables [sweep] (coordinates), [model], [data] (their `Settings`), [training].

    Args:
        changes: what is to stand in the file instead, such as {"sweep.seed": "0..19", "training.steps": "500"}.

    Raises:
        UsageError: the file cannot be read, a name or value is unknown (with the nearest known one), or a
            value is out of range. All runs are checked, so a mistake shows before the first hour of training.
    """
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the sweep file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}", "strings need quotes, lists brackets") from error
    try:
        sweep = _sweep_of(path.stem, _changed(tables, changes or {}))
        plan(sweep)
    except ProblemError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from error
    return sweep


def _changed(tables: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """The tables with values replaced; a value is written as in TOML, and what is no TOML is a string."""
    changed = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for place, text in changes.items():
        table, dot, key = place.partition(".")
        if not (dot and key and table in TABLES):
            raise ProblemError(
                f"--set {place}={text} names no place in a sweep file",
                f"write TABLE.KEY=VALUE with one of {_listed(TABLES)}: --set sweep.seed=0..19",
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        changed.setdefault(table, {})[key] = value
    return changed


def plan(sweep: Sweep) -> list[Run]:
    """The runs of a sweep: every combination of its coordinates, in the order of the file.

    Raises:
        ProblemError: a setting is out of range, or model, data and loss do not fit together.
    """
    names = list(sweep.coordinates)
    return [
        _run_of(sweep, dict(zip(names, point, strict=True))) for point in itertools.product(*sweep.coordinates.values())
    ]


def _sweep_of(name: str, tables: Mapping[str, Any]) -> Sweep:
    for key, table in tables.items():
        if key not in TABLES:
            raise ProblemError(f"there is no table [{key}] in a sweep file", suggestion(key, TABLES))
        if not isinstance(table, dict):
            raise ProblemError(f"{key} is {table!r}, not a table", f"write [{key}] on a line of its own")
    for key in TABLES:
        if key not in tables:
            raise ProblemError(f"the table [{key}] is missing", f"a sweep file has {_listed(TABLES)}")
    model, model_settings = _named(tables["model"], "model", MODELS)
    data, data_settings = _named(tables["data"], "data", DATA)
    sections = {
        "model": (_names(MODELS[model].Settings, DERIVED), model_settings),
        "data": (_names(DATA[data].Settings), data_settings),
        "training": (_names(Training), tables["training"]),
    }
    for section, (known, given) in sections.items():
        for key in given:
            if key == "width":
                raise ProblemError("width is set in [model], but it is what a sweep varies", "put it in [sweep]")
            if key in DERIVED and section == "model":
                raise ProblemError(f"[model] sets {key!r}, which follows from the data", "leave it out")
            if key not in known:
                raise ProblemError(f"[{section}] has no setting {key!r}", suggestion(key, known))
    coordinates = _coordinates(tables["sweep"], sections)
    return Sweep(name, coordinates, model, model_settings, data, data_settings, tables["training"])


def _named(table: Mapping[str, Any], what: str, known: Mapping[str, ModuleType]) -> tuple[str, dict[str, Any]]:
    if "name" not in table:
        raise ProblemError(f"[{what}] needs a name", f"known are {', '.join(known)}")
    choose(known, table["name"], f"built-in {what}")
    return table["name"], {k: v for k, v in table.items() if k != "name"}


def _coordinates(
    table: Mapping[str, Any], sections: Mapping[str, tuple[list[str], Mapping[str, Any]]]
) -> dict[str, tuple[Scalar, ...]]:
    if "width" not in table:
        raise ProblemError("[sweep] needs widths", "for example width = [4, 8, 16]")
    known = ["seed", *(name for names, _ in sections.values() for name in names if name != "save")]
    for key in table:
        if key not in known:
            raise ProblemError(f"[sweep] has no coordinate {key!r}", suggestion(key, known))
        for section, (_, given) in sections.items():
            if key in given:
                raise ProblemError(f"{key} is set in both [sweep] and [{section}]", "keep one of them")
    values = {"seed": 0} | dict(table)
    order = ["width", *(key for key in values if key not in ("width", "seed")), "seed"]
    found = {key: _values(key, values[key]) for key in order}
    for seed in found["seed"]:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ProblemError(f"[sweep] seed {seed!r} is not an integer in 0 … 2^32 - 1")
    return found


def _values(key: str, value: Any) -> tuple[Scalar, ...]:
    if is_seed(key) and isinstance(value, str):
        value = _seed_range(key, value)
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values or not all(isinstance(v, bool | int | float | str) for v in values):
        raise ProblemError(f"[sweep] {key} is {value!r}", f"list its values: {key} = [...]")
    if len({_shown(v) for v in values}) < len(values):
        raise ProblemError(f"[sweep] {key} lists a value twice: {value!r}")
    return values


def is_seed(key: str) -> bool:
    """Whether a coordinate is the number of a draw, whose values may be written as a range."""
    return key.rpartition("_")[2] == "seed"


def _seed_range(key: str, text: str) -> list[int]:
    """ "0..59" as the sixty seeds."""
    first, dots, last = text.partition("..")
    if not (dots and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise ProblemError(f"[sweep] {key} is {text!r}", f'list the seeds, or write a range: {key} = "0..59"')
    return list(range(int(first), int(last) + 1))


def _run_of(sweep: Sweep, coordinates: dict[str, Scalar]) -> Run:
    data_kind, model_kind = DATA[sweep.data].Settings, MODELS[sweep.model].Settings
    model, data, training = (
        dict(given) | {k: v for k, v in coordinates.items() if k in _names(kind)}
        for kind, given in (
            (model_kind, sweep.model_settings),
            (data_kind, sweep.data_settings),
            (Training, sweep.training),
        )
    )
    data_settings = parse_settings(data_kind, data, "[data]")
    how = parse_settings(Training, training, "[training]")
    dataset = load_data(sweep.data, data)
    if (how.loss == "cross_entropy") != (data_settings.targets == "index"):
        wanted = "index" if how.loss == "cross_entropy" else "onehot"
        raise ProblemError(
            f"loss {how.loss!r} does not go with targets {data_settings.targets!r}",
            f'write targets = "{wanted}" in [data]',
        )
    derived = settings_for(sweep.model, dataset.train[0].shape[1:], dataset.classes)
    settings = parse_settings(model_kind, model | derived, "[model]")
    return Run(coordinates, sweep.model, settings, sweep.data, data_settings, how)


def _names(kind: Any, without: Iterable[str] = ()) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.name not in without]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}]" for name in names)


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
