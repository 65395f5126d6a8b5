"""Surfaces in the HDF5 layout of Li et al. 2018 (github.com/tomgoldstein/loss-landscape): read as slices, written.

Their files hold `xcoordinates`, `ycoordinates` (absent for a line), `train_loss` and `train_acc` in per cent; −1 is
a cell that has not been computed. Their program makes arrays of shape [len(x), len(y)] but fills them in the order
of y, then x: entry [i, j] is x[j], y[i] where both have the same length, and only there do their plots agree.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from landscape.checkpoints.coordinates import coordinates_of
from landscape.errors import LandscapeError, StorageError, UsageError
from landscape.results.fields import LOSS, NONE, Array, Provenance
from landscape.results.store import StoredResult, is_result_file, plain_arrays_bytes, plain_names, read_plain_arrays

MISSING = -1.0
# How the names of surfaces end that `landscape export` makes for their program.
EXPORTED = ".li.h5"
ACROSS, UP = "xcoordinates", "ycoordinates"
# Pairs of losses and accuracies, the first of which that is there is read.
KINDS = (("train_loss", "train_acc"), ("test_loss", "test_acc"))


def is_surface(arrays: Collection[str]) -> bool:
    """Whether the datasets of a file are those of a surface of theirs."""
    return ACROSS in arrays and any(loss in arrays for loss, _ in KINDS)


def surfaces_below(folder: Path) -> list[Path]:
    """Surfaces of theirs in a folder and below it; those that `landscape export` wrote, which lie beside the slice that
    they were made of, are none."""
    found = []
    for path in sorted(folder.rglob("*.h5")):
        if path.name.startswith(".") or path.name.endswith(EXPORTED) or not path.is_file():
            continue
        with suppress(LandscapeError):
            if not is_result_file(path) and is_surface(plain_names(path)):
                found.append(path)
    return found


def read_surface(path: str | PathLike[str]) -> StoredResult:
    """A surface file as a slice without self-check: x, y, loss, done and, where it is there, accuracy as a share.

    Raises StorageError if the file is not such a surface, or its arrays do not fit together.
    """
    arrays = read_plain_arrays(path)
    if not is_surface(arrays):
        raise StorageError(
            f"{fspath(path)} is neither a landscape result nor a surface of Li et al. ({ACROSS}, train_loss)",
            "name a file that a landscape command wrote",
        )
    loss_name, accuracy_name = next(pair for pair in KINDS if pair[0] in arrays)
    x = arrays[ACROSS].astype(np.float64)
    line = UP not in arrays
    y = np.zeros(1) if line else arrays[UP].astype(np.float64)
    loss = _cells(arrays[loss_name], x, y, path)
    done = loss != MISSING
    text = {"x": "multiple of the first direction", "y": "multiple of the second direction"}
    found = {
        "x": Array(x, ("x",), NONE, text["x"]),
        "y": Array(y, ("y",), NONE, text["y"]),
        "loss": Array(np.where(done, loss, np.nan), ("y", "x"), LOSS, loss_name),
        "done": Array(done, ("y", "x"), NONE, "whether this cell has been computed"),
    }
    if accuracy_name in arrays:
        accuracy = _cells(arrays[accuracy_name], x, y, path)
        if (accuracy != MISSING).any():
            share = np.where(accuracy == MISSING, np.nan, accuracy / 100)
            found["accuracy"] = Array(share, ("y", "x"), NONE, f"{accuracy_name}, as a share")
    return StoredResult("slice", found, {"directions": "", "line": line}, _provenance(path))


def _cells(values: np.ndarray, x: np.ndarray, y: np.ndarray, path: str | PathLike[str]) -> np.ndarray:
    """[y, x] in float64, undoing their order of axes."""
    if x.ndim != 1 or y.ndim != 1 or values.size != len(x) * len(y):
        shapes = f"{values.shape} for {x.shape} and {y.shape} coordinates"
        raise StorageError(f"the arrays of {fspath(path)} do not fit together: {shapes}", "make the file anew")
    return values.astype(np.float64).reshape(len(y), len(x))


def _provenance(path: str | PathLike[str]) -> Provenance:
    """What can be said of a file of another program: its name, and coordinates that its path holds."""
    name = fspath(path)
    return Provenance(
        command="slice",
        identity="",
        status="complete",
        settings={},
        checkpoint=name,
        sha256="",
        header={},
        coordinates=coordinates_of(name, {}),
        data_fingerprint="",
        versions={},
        device="",
        dtype="",
        seed=0,
        products=0,
        seconds=0.0,
    )


def surface_bytes(stored: StoredResult) -> bytes:
    """A slice as a file that their plots read. They ask for `train_acc`: without accuracies it says "not computed".

    Raises UsageError for grids that their layout cannot hold: not square, or with a loss of exactly −1.
    """
    x, y, loss, done = (stored.arrays[name].values for name in ("x", "y", "loss", "done"))
    line = bool(stored.attributes.get("line", len(y) == 1))
    if not line and len(x) != len(y):
        raise UsageError(
            f"the grid has {len(x)} x {len(y)} points, and the layout of Li et al. is sound for square grids only",
            "export csv, npz or vtp, or repeat landscape slice with as many points each way",
        )
    if (done & (loss == MISSING)).any():
        raise UsageError("a loss is exactly -1, which stands for 'missing' in files of Li et al.", "export csv or npz")
    cells = np.where(done, loss, MISSING).astype(np.float64)
    accuracy = np.full(cells.shape, MISSING)
    if "accuracy" in stored.arrays:
        accuracy = np.where(done, 100 * stored.arrays["accuracy"].values.astype(np.float64), MISSING)
    if line:
        return plain_arrays_bytes({ACROSS: x, "train_loss": cells[0], "train_acc": accuracy[0]})
    return plain_arrays_bytes({ACROSS: x, UP: y, "train_loss": cells, "train_acc": accuracy})
