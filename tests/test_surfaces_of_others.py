"""Surfaces in the files of Li et al. (2018), as their program and its forks leave them, in every command for slices."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from commands import run

X = np.linspace(-1, 1, 7)


def write(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lines and planes of two networks, with what lies beside them: directions, and files of other programs."""
    bowl = X[:, None] ** 2 + 2 * X[None, :] ** 2 + 0.1
    for width in (8, 128):
        write(tmp_path / f"lines/width={width}/line.h5", xcoordinates=X, train_loss=X**2 + width, train_acc=90 - X)
        write(tmp_path / f"planes/width={width}/surface.h5", xcoordinates=X, ycoordinates=X, train_loss=bowl * width)
    write(tmp_path / "planes/direction.h5", **{"xdirection/0": np.zeros(3)})
    write(tmp_path / "planes/other.h5", loss_0_0=np.ones(1))
    (tmp_path / "planes/broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n no more")
    return tmp_path


@pytest.mark.parametrize("kind", ["lines", "planes"])
def test_folders_of_them_are_drawn_and_reported(folder: Path, kind: str) -> None:
    drawn = run("plot", kind, "-o", "figure.png", cwd=folder)
    assert drawn.returncode == 0, drawn.stderr
    assert (folder / "figure.png").stat().st_size > 5_000
    one = run("plot", str(next((folder / kind).rglob("*e.h5"))), "-o", "one.png", cwd=folder)
    assert one.returncode == 0, one.stderr
    made = run("report", kind, cwd=folder)
    assert made.returncode == 0, made.stderr
    assert "2 slice" in made.stderr


def test_they_are_described(folder: Path) -> None:
    done = run("info", "planes/width=8/surface.h5", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    arrays = json.loads(done.stdout)["groups"]["slice"]["arrays"]
    assert (arrays["loss"]["min"], arrays["loss"]["max"]) == (pytest.approx(0.8), pytest.approx(24.8))
    listed = run("info", "lines", cwd=folder)
    assert listed.stdout.count("line.h5") == 2


def test_lines_and_planes_share_no_figure(folder: Path) -> None:
    refused = run("plot", "lines", "planes", cwd=folder)
    assert refused.returncode == 2
    assert "apart" in refused.stderr
