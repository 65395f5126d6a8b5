"""Sweeps trained as stacks: the runs one by one, bytes that repeat, certificates in headers, resume."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import DEVICES
from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.checkpoints.load import load_problem
from landscape.data import load_data
from landscape.errors import NumericalError, ProblemError, UsageError
from landscape.points.certificate import from_dict
from landscape.problem.objective import build_objective
from landscape.training import sweeps
from landscape.training.one import Trained, train_run
from landscape.training.run_files import run_of
from landscape.training.stacks import groups, train_stack
from landscape.training.sweep import Run, plan, read_sweep
from test_training import toml

TABLES: dict[str, dict[str, Any]] = {
    "sweep": {"width": [3], "seed": [0, 1, 2]},
    "model": {"name": "mlp", "activation": "tanh"},
    "data": {"name": "digits", "train_samples": 90},
    "training": {"steps": 9, "batch_size": 32, "learning_rate": 0.05, "save": [0, 4], "stacked": True},
}
DOUBLE = {"dtype": "float64", "save_dtype": "float64"}
TEACHER = {
    "model": {"name": "mlp", "activation": "sigmoid_softplus", "bias": False},
    "data": {"name": "teacher", "target": "four_neuron", "points": 11},
    "training": {"loss": "mse", "optimiser": "levenberg_marquardt", "steps": 300, "save": [0, 3], **DOUBLE},
}


def runs_of(folder: Path, changes: dict[str, dict[str, Any]] | None = None) -> list[Run]:
    tables = copy.deepcopy(TABLES)
    for table, values in (changes or {}).items():
        tables[table] = values if "name" in values or "loss" in values else tables[table] | values
    text = "\n".join(
        f"[{name}]\n" + "\n".join(f"{k} = {toml(v)}" for k, v in table.items()) for name, table in tables.items()
    )
    (folder / "sweep.toml").write_text(text)
    return plan(read_sweep(folder / "sweep.toml"))


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.pt"))}


@pytest.mark.parametrize("optimiser", [{"optimiser": "adam"}, {"momentum": 0.9}, {"batch_size": 1000}])
def test_stacked_training_is_training_one_by_one_up_to_rounding(optimiser: dict[str, Any], tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"training": {**DOUBLE, "weight_decay": 1e-3, **optimiser}})
    train_stack(runs, tmp_path / "stack")
    for run in runs:
        train_run(replace(run, training=replace(run.training, stacked=False)), tmp_path / "alone")
        for name in ("initial", "step=4", "final"):
            a, b = (read_checkpoint(tmp_path / kind / run.folder / f"{name}.pt") for kind in ("stack", "alone"))
            for key, value in a.state.items():
                assert torch.allclose(value, b.state[key], rtol=1e-9, atol=1e-12), (name, key)
            for key in ("train_loss", "test_accuracy", "steps_done"):
                assert a.header["training"][key] == pytest.approx(b.header["training"][key], rel=1e-9)


@pytest.mark.parametrize("kind", ["first order", "certified"])
def test_the_same_bytes_again_and_after_losing_some(kind: str, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {} if kind == "first order" else TEACHER)
    for out in ("a", "b"):
        train_stack(runs, tmp_path / out)
    wanted = files(tmp_path / "a")
    assert files(tmp_path / "b") == wanted
    assert len(wanted) == 9
    lost = tmp_path / "b" / runs[1].folder / "final.pt"
    lost.unlink()
    kept = (tmp_path / "b" / runs[0].folder / "final.pt").stat().st_mtime_ns
    found = train_stack(runs, tmp_path / "b")
    assert files(tmp_path / "b") == wanted
    assert [isinstance(f, Trained) and f.skipped for f in found] == [True, False, True]
    assert (tmp_path / "b" / runs[0].folder / "final.pt").stat().st_mtime_ns == kept
    assert all(isinstance(f, Trained) and f.skipped for f in train_stack(runs, tmp_path / "b"))


def test_headers_lead_back_to_the_run_and_hold_its_certificate(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, TEACHER)
    for run, trained in zip(runs, train_stack(runs, tmp_path), strict=True):
        assert isinstance(trained, Trained)
        found = read_checkpoint(trained.path)
        assert run_of(found.header) == run
        certificate = from_dict(found.header["certificate"])
        assert certificate.verdict == trained.verdict != "not stationary"
        assert certificate.gradient_inf < 1e-8
        objective = build_objective(load_problem(found).problem)
        assert objective.value() == pytest.approx(certificate.loss, rel=1e-10, abs=1e-25)


@pytest.mark.parametrize("optimiser", ["newton", "flow"])
def test_other_second_order_optimisers_end_at_certified_points_too(optimiser: str, tmp_path: Path) -> None:
    training = TEACHER["training"] | {"optimiser": optimiser, "steps": 400, "save": [0]}
    runs = runs_of(tmp_path, {**TEACHER, "training": training})
    for trained in train_stack(runs, tmp_path):
        assert isinstance(trained, Trained)
        assert trained.verdict in ("minimum", "degenerate", "channel")


def test_a_descent_after_adam_finishes_what_it_began(tmp_path: Path) -> None:
    training = {"loss": "mse", "optimiser": "adam", "steps": 200, "learning_rate": 0.02, "batch_size": 10**6, **DOUBLE}
    runs = runs_of(tmp_path, {**TEACHER, "training": training})
    before = train_stack(runs_of(tmp_path, {**TEACHER, "training": training | {"certify": True}}), tmp_path / "a")
    after = train_stack(runs_of(tmp_path, {**TEACHER, "training": training | {"finish": "minimum"}}), tmp_path / "b")
    assert len(runs) == 3
    for a, b in zip(before, after, strict=True):
        assert isinstance(a, Trained)
        assert isinstance(b, Trained)
        assert a.verdict == "not stationary"
        assert b.verdict != "not stationary"
        assert b.train_loss < a.train_loss
        assert b.steps_done > a.steps_done == 200


def test_a_target_loss_stops_each_member_by_itself(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"training": {"steps": 400, "target_loss": 1.5, "learning_rate": 0.5}})
    found = [t for t in train_stack(runs, tmp_path) if isinstance(t, Trained)]
    assert len({t.steps_done for t in found}) > 1
    for t in found:
        assert t.train_loss <= 1.5
        assert t.steps_done % 3 == 0  # an epoch of 90 samples in batches of 32
    lm = runs_of(tmp_path, {**TEACHER, "training": TEACHER["training"] | {"target_loss": 0.05}})
    for t in train_stack(lm, tmp_path / "lm"):
        assert isinstance(t, Trained)
        assert 0.001 < t.train_loss <= 0.05


def test_a_member_that_diverges_takes_nobody_along(tmp_path: Path) -> None:
    training = {"loss": "mse", "steps": 500, "learning_rate": 1e4, "batch_size": 10**6, **DOUBLE}
    runs = runs_of(tmp_path, {**TEACHER, "training": training})
    assert all(isinstance(f, NumericalError) for f in train_stack(runs, tmp_path / "all"))
    assert not list((tmp_path / "all").rglob("final.pt"))


def test_groups_are_the_seeds_of_a_width(tmp_path: Path) -> None:
    both = {
        "sweep": {"width": [2, 3], "seed": [0, 1, 2], "learning_rate": [0.1, 0.2]},
        "training": {"steps": 1, "stacked": True},
    }
    tables = copy.deepcopy(TABLES) | both
    text = "\n".join(f"[{n}]\n" + "\n".join(f"{k} = {toml(v)}" for k, v in t.items()) for n, t in tables.items())
    (tmp_path / "s.toml").write_text(text)
    assert [len(g) for g in groups(plan(read_sweep(tmp_path / "s.toml")))] == [3, 3, 3, 3]
    (tmp_path / "s.toml").write_text(text.replace("stacked = true", "stacked = false"))
    assert [len(g) for g in groups(plan(read_sweep(tmp_path / "s.toml")))] == [1] * 12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", [{"optimiser": "adam"}, {"batch_size": 1000}, {"optimiser": "levenberg_marquardt"}])
def test_students_of_several_teachers_are_trained_together(how: dict[str, Any], device: str, tmp_path: Path) -> None:
    """Each on the targets of its own teacher: as a stack of that teacher's students only, on the CPU."""
    changes = {
        "sweep": {"width": [2, 3], "teacher_seed": [4, 5, 6], "seed": [0, 1]},
        "model": TEACHER["model"],
        "data": {"name": "teacher", "target": "random", "inputs": "gaussian", "samples": 50, "neurons": 2},
        "training": {"loss": "mse", "steps": 7, "batch_size": 16, "stacked": True, **DOUBLE, **how},
    }
    runs = runs_of(tmp_path, changes)
    work = list(groups(runs, device))
    assert [len(group) for group in work] == [6, 6]
    for group in work:
        train_stack(group, tmp_path / "together", device=device)
        for teacher in (4, 5, 6):
            train_stack([r for r in group if r.coordinates["teacher_seed"] == teacher], tmp_path / "apart")
    for run in runs:
        a, b = (read_checkpoint(tmp_path / kind / run.folder / "final.pt") for kind in ("together", "apart"))
        assert a.header["data_settings"] == b.header["data_settings"]
        assert a.header["data_settings"]["teacher_seed"] == run.coordinates["teacher_seed"]
        for key, value in a.state.items():
            assert torch.allclose(value, b.state[key], rtol=1e-6, atol=1e-9), key
        loss = build_objective(load_problem(a).problem).value()
        assert a.header["training"]["train_loss"] == pytest.approx(loss, rel=1e-9)
        assert b.header["training"]["train_loss"] == pytest.approx(loss, rel=1e-6)


def test_batch_statistics_cannot_be_stacked(tmp_path: Path) -> None:
    changes = {
        "model": {"name": "cnn", "batch_norm": True},
        "data": {"name": "digits", "image": True, "train_samples": 60},
    }
    with pytest.raises(ProblemError, match="batch statistics"):
        train_stack(runs_of(tmp_path, changes), tmp_path)


@pytest.mark.parametrize("key", [{"optimiser": "newton"}, {"certify": True}, {"finish": "minimum"}])
def test_certificates_in_single_precision_are_refused(key: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="float64"):
        runs_of(tmp_path, {"training": key})


@pytest.mark.parametrize(("text", "count"), [("0..4", 5), ("7..7", 1)])
@pytest.mark.parametrize("key", ["seed", "noise_seed"])
def test_seeds_may_be_a_range(key: str, text: str, count: int, tmp_path: Path) -> None:
    assert len(runs_of(tmp_path, {"sweep": {"seed": 0, key: text}})) == count


@pytest.mark.parametrize("text", ["4..0", "a..b", "5", "1.."])
def test_seed_ranges_that_make_no_sense(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed"):
        runs_of(tmp_path, {"sweep": {"seed": text}})


@pytest.mark.parametrize("name", sweeps.names())
def test_ready_made_sweeps_can_be_planned(name: str) -> None:
    assert plan(read_sweep(sweeps.sweep_file(Path(name))))


def test_ready_made_sweeps_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        sweeps.sweep_file(Path("four-neurons"))
    assert "four-neuron" in (caught.value.hint or "")
    Path("four-neuron").write_text("mine")
    assert sweeps.sweep_file(Path("four-neuron")) == Path("four-neuron")


@pytest.mark.slow
def test_success_of_the_four_neuron_teacher_is_as_published(tmp_path: Path) -> None:
    """48 of 60 at the teacher's own width (claims of Simsek et al. 2021, recomputed): the 95 % Wilson interval."""
    runs = [r for r in plan(read_sweep(sweeps.sweep_file(Path("four-neuron")))) if r.coordinates["width"] == 4]
    found = [t for t in train_stack(runs, tmp_path) if isinstance(t, Trained)]
    assert 41 <= sum(t.train_loss < 1e-10 for t in found) <= 53
    assert Counter(t.verdict for t in found)["minimum"] >= 57


@pytest.mark.parametrize("target", ["four_neuron", "random", "rosenbrock"])
@pytest.mark.parametrize("inputs", ["grid", "gaussian"])
def test_teachers_are_the_same_every_time_and_of_the_shape_asked_for(target: str, inputs: str) -> None:
    settings = {"target": target, "inputs": inputs, "points": 7, "samples": 31, "test_samples": 5}
    a, b = load_data("teacher", settings), load_data("teacher", settings)
    assert torch.equal(a.train[0], b.train[0])
    assert torch.equal(a.train[1], b.train[1])
    assert a.train[0].shape == ((49, 2) if inputs == "grid" else (31, 2))
    assert a.train[1].shape == (len(a.train[0]), 1)
    assert len(a.test[0]) == (0 if inputs == "grid" else 5)
    assert a.train[1].std() > 0


def test_the_four_neuron_teacher_is_the_published_sum() -> None:
    x, y = load_data("teacher", {}).train
    rows = [[0.6, 0.5], [-0.5, 0.5], [-0.2, -0.6], [0.1, -0.6]]
    z = x @ torch.tensor(rows, dtype=torch.float64).T
    assert torch.allclose(y[:, 0], (torch.sigmoid(4 * z) + torch.log1p(z.exp())).sum(1), atol=1e-13)
    assert x.shape == (1681, 2)
    assert float(x.min()) == -5
