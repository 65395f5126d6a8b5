"""The checkpoints in the repository: small, readable, complete, and what their sweep files make."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.checkpoints.load import load_problem
from landscape.training.one import train_run
from landscape.training.run_files import check_out, file_name, finished, run_of
from landscape.training.sweep import Run, plan, read_sweep

HERE = Path(__file__).parent.parent / "checkpoints"
SWEEPS = sorted(path.stem for path in HERE.glob("*.toml"))

# Training amplifies rounding. In float64, with instructions of SSE4.2 or AVX2 or with 2 threads instead of 1, the
# weights of digits at widths 16 to 128 came out at most 3e-7 apart (float32 rounding of initialisation and file) and
# the losses 7e-10. Widths below 8 train for 12000 steps and do not repeat across processors: 1.6 apart.
WEIGHTS_APART, LOSS_APART = 1e-5, 1e-6


def runs(name: str) -> list[Run]:
    return plan(read_sweep(HERE / f"{name}.toml"))


def test_all_is_less_than_2_mb() -> None:
    """In blocks of 4 KiB too, which is what a checkout takes."""
    sizes = [path.stat().st_size for path in HERE.rglob("*") if path.is_file()]
    assert sum(sizes) < 2_000_000
    assert sum(-(-size // 4096) * 4096 for size in sizes) < 2_000_000


@pytest.mark.parametrize("name", SWEEPS)
class TestSweep:
    def test_is_complete(self, name: str) -> None:
        check_out(runs(name), HERE / name)
        for run in runs(name):
            assert finished(run, HERE / name / run.folder) is not None, run.label

    def test_holds_nothing_else(self, name: str) -> None:
        folders = {HERE / name / run.folder for run in runs(name)}
        save = tomllib.loads((HERE / f"{name}.toml").read_text())["training"]["save"]
        allowed = {"final.pt", *map(file_name, save)}
        for path in (HERE / name).rglob("*"):
            assert path.is_dir() or (path.parent in folders and path.name in allowed), path

    def test_every_header_loads_and_states_its_loss(self, name: str) -> None:
        for path in sorted((HERE / name).rglob("*.pt")):
            checkpoint = read_checkpoint(path)
            assert checkpoint.notes == ()
            assert f"width={run_of(checkpoint.header).coordinates['width']}" in str(path)
            loaded = load_problem(checkpoint)
            problem = loaded.problem
            assert sum(p.numel() for p in problem.model.parameters()) == checkpoint.header["training"]["parameters"]
            with torch.no_grad():
                total, count = problem.loss_function(problem.model.eval(), problem.data)
            assert float(total / count) == pytest.approx(checkpoint.header["training"]["train_loss"], rel=1e-4)


def test_digits_range_from_underfitting_to_interpolation() -> None:
    found = {run.coordinates["width"]: finished(run, HERE / "digits" / run.folder) or {} for run in runs("digits")}
    assert len(found) >= 8
    assert found[2]["train_accuracy"] < 0.8
    for width, measured in found.items():
        assert width < 8 or (measured["train_loss"] <= 0.01 and measured["train_accuracy"] > 0.998)
    assert sum(measured["parameters"] < 1500 for measured in found.values()) >= 6
    assert max(measured["parameters"] for measured in found.values()) > 20_000


@pytest.mark.parametrize(("name", "folder"), [("digits", "width=16/seed=0"), ("digits", "width=128/seed=1")])
def test_training_again_gives_the_same_weights(name: str, folder: str, tmp_path: Path) -> None:
    (run,) = [run for run in runs(name) if run.folder == Path(folder)]
    train_run(run, tmp_path)
    shipped = sorted((HERE / name / folder).glob("*.pt"))
    assert len(shipped) == 3
    for path in shipped:
        old, new = read_checkpoint(path), read_checkpoint(tmp_path / folder / path.name)
        assert new.coordinates == old.coordinates
        assert run_of(new.header) == run_of(old.header)
        was, now = old.header["training"]["train_loss"], new.header["training"]["train_loss"]
        assert now == pytest.approx(was, abs=LOSS_APART)
        for key, value in old.state.items():
            torch.testing.assert_close(new.state[key], value, rtol=0, atol=WEIGHTS_APART)
