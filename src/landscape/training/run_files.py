"""The checkpoints of a run on disk: names, headers, whether the run is done, whose files they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.data import DATA
from landscape.errors import CheckpointError, ProblemError, StorageError
from landscape.models import MODELS
from landscape.settings import choose, parse_settings, written
from landscape.training.sweep import Run, Training

FINAL = "final.pt"
# What a header's "training" says beside the settings, of the weights in that file.
MEASURED = ("parameters", "steps_done", "train_loss", "train_accuracy", "test_accuracy")


def file_name(step: int) -> str:
    """Name of an intermediate checkpoint; the initial one has a name of its own."""
    return f"step={step}.pt" if step else "initial.pt"


def header_of(run: Run, measured: Mapping[str, Any], certificate: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The checkpoint's `landscape` header: all settings after defaults, in plain types.

    Args:
        run: what the checkpoint belongs to.
        measured: value of each of `MEASURED`.
        certificate: of the weights, from `Certificate.as_dict`.
    """
    how = written(run.training)
    loss, weight_decay = how.pop("loss"), how.pop("weight_decay")
    header = {
        "format": 1,
        "model": run.model,
        "model_settings": written(run.model_settings),
        "data": run.data,
        "data_settings": written(run.data_settings),
        "loss": loss,
        "coordinates": {**run.coordinates, "step": measured["steps_done"]},
        "training": {**how, **measured, "torch": str(torch.__version__)},
    }
    header |= {"weight_decay": weight_decay} if weight_decay else {}
    return header | ({"certificate": dict(certificate)} if certificate is not None else {})


def run_of(header: Mapping[str, Any]) -> Run:
    """The run that a header came from.

    Raises:
        ProblemError: the header was not written by `header_of`, or by a version with other settings.
    """
    try:
        training = {k: v for k, v in header["training"].items() if k not in (*MEASURED, "torch")}
        training |= {"loss": header["loss"], "weight_decay": header.get("weight_decay", 0.0)}
        model = choose(MODELS, header["model"], "built-in model")
        data = choose(DATA, header["data"], "built-in data set")
        return Run(
            coordinates={k: v for k, v in header["coordinates"].items() if k != "step"},
            model=header["model"],
            model_settings=parse_settings(model.Settings, header["model_settings"], "header"),
            data=header["data"],
            data_settings=parse_settings(data.Settings, header["data_settings"], "header"),
            training=parse_settings(Training, training, "header"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ProblemError("it was not written by this command") from error


def finished(run: Run, folder: Path) -> dict[str, Any] | None:
    """What the run's final checkpoint says was measured, and the verdict of its certificate, None without one; None
    if this checkpoint, or another one asked for, is missing.

    Raises:
        StorageError: the folder holds a checkpoint of different settings, or one that cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    verdict = None
    for path in _files(folder):
        try:
            header = read_checkpoint(path).header
            other = run_of(header)
        except (CheckpointError, ProblemError) as error:
            raise _in_the_way(path, error.message) from error
        if other != run:
            raise _in_the_way(path, _difference(run, other))
        found[path.name] = dict(header["training"])
        if path.name == FINAL and "certificate" in header:
            verdict = header["certificate"].get("verdict")
    if FINAL not in found:
        return None
    measured = {name: found[FINAL][name] for name in MEASURED}
    wanted = {file_name(step) for step in run.training.save if step <= measured["steps_done"]}
    return measured | {"verdict": verdict} if wanted <= set(found) else None


def check_out(runs: Sequence[Run], out: Path) -> None:
    """Refuse a folder that holds checkpoints of other settings than these runs have.

    More widths or seeds of the same settings are welcome: that is how a sweep grows.

    Raises:
        StorageError: with the settings that differ.
    """
    ours = {out / run.folder: run for run in runs}
    for folder in sorted({path.parent for path in out.glob("width=*/**/*.pt")}):
        if folder in ours:
            finished(ours[folder], folder)
            continue
        for path in _files(folder)[:1]:  # one tells: the files in a folder are of one run
            try:
                other = run_of(read_checkpoint(path).header)
            except (CheckpointError, ProblemError):
                continue  # somebody else's file, which training will not touch
            if other.setting() != runs[0].setting():
                raise _in_the_way(path, _difference(runs[0], other, coordinates=False))


def clear(folder: Path) -> None:
    """Remove a run's checkpoints; the final one first, because its presence says that the run is done."""
    for path in sorted(_files(folder), key=lambda p: p.name != FINAL):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """The files in a run's folder that training writes."""
    return sorted(p for pattern in ("initial.pt", "step=*.pt", FINAL) for p in folder.glob(pattern))


def _difference(ours: Run, theirs: Run, coordinates: bool = True) -> str:
    a, b = ours.setting(), theirs.setting()
    if coordinates:
        a, b = a | dict(ours.coordinates), b | dict(theirs.coordinates)
    keys = [key for key in (*a, *(k for k in b if k not in a)) if a.get(key) != b.get(key)]
    return "its " + ", ".join(f"{key} is {b.get(key)!r} instead of {a.get(key)!r}" for key in keys)


def _in_the_way(path: Path, why: str) -> StorageError:
    return StorageError(
        f"{path} is in the way: {why}",
        "choose another folder with --out, or overwrite this sweep's runs with --force",
    )
