"""Sweeps: files checked key by key, runs planned, trained reproducibly, resumed, never overwritten by mistake."""

from __future__ import annotations

import copy
import itertools
import math
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.checkpoints.load import load_problem
from landscape.data import digits
from landscape.errors import NumericalError, ProblemError, StorageError, UsageError
from landscape.models import build_model, mlp
from landscape.training.one import learning_rate_at, minibatches, parameters_of, train_run
from landscape.training.run_files import check_out, header_of, run_of
from landscape.training.sweep import Run, Training, plan, read_sweep

TABLES: dict[str, dict[str, Any]] = {
    "sweep": {"width": [2, 3], "seed": [0, 1]},
    "model": {"name": "mlp", "depth": 1, "activation": "tanh"},
    "data": {"name": "digits", "train_samples": 90},
    "training": {"steps": 7, "batch_size": 32, "learning_rate": 0.05, "save": [0, 4]},
}


KEYS = [f.name for kind in (Training, mlp.Settings, digits.Settings) for f in fields(kind)] + ["width", "seed", "name"]


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def write(folder: Path, changes: dict[str, dict[str, Any]] | None = None) -> Path:
    """A sweep file with `changes` made to `TABLES`; None removes a key."""
    tables = copy.deepcopy(TABLES)
    for table, values in (changes or {}).items():
        tables.setdefault(table, {}).update(values)
    text = "".join(
        f"[{table}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in values.items() if v is not None)
        for table, values in tables.items()
    )
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def runs_of(folder: Path, **changes: dict[str, Any]) -> list[Run]:
    return plan(read_sweep(write(folder, changes)))


class TestReadSweep:
    def test_plans_every_combination_width_first_and_seed_last(self, tmp_path: Path) -> None:
        runs = runs_of(
            tmp_path,
            sweep={"seed": [0, 1], "label_noise": [0.0, 0.5], "width": [2, 3], "activation": ["tanh", "relu"]},
            model={"activation": None},
        )
        assert len(runs) == len({run.folder for run in runs}) == 16
        assert list(runs[0].coordinates) == ["width", "label_noise", "activation", "seed"]
        assert str(runs[-1].folder) == "width=3/label_noise=0.5/activation=relu/seed=1"
        assert runs[-1].data_settings.label_noise == 0.5
        assert runs[-1].model_settings.width == 3
        assert runs[-1].model_settings.inputs == 64

    def test_one_value_needs_no_list_and_the_seed_defaults_to_0(self, tmp_path: Path) -> None:
        (run,) = runs_of(tmp_path, sweep={"width": 4, "seed": None})
        assert run.coordinates == {"width": 4, "seed": 0}

    @pytest.mark.parametrize(
        ("changes", "message", "hint"),
        [
            ({"trainin": {"steps": 3}}, r"no table \[trainin\]", "did you mean 'training'"),
            ({"training": {"learning_rte": 0.1}}, "no setting 'learning_rte'", "did you mean 'learning_rate'"),
            ({"sweep": {"widht": [1]}}, "no coordinate 'widht'", "did you mean 'width'"),
            ({"sweep": {"width": None}}, "needs widths", "width = "),
            ({"sweep": {"width": []}}, "width is", "list its values"),
            ({"sweep": {"width": [2, 2]}}, "twice", None),
            ({"sweep": {"width": [2, 0]}}, "width is 0", None),
            ({"sweep": {"width": [True]}}, "not an integer", None),
            ({"sweep": {"seed": [-1]}}, "seed -1", None),
            ({"sweep": {"depth": [1, 2]}}, "both", "keep one"),
            ({"sweep": {"save": [1, 2]}}, "no coordinate 'save'", None),
            ({"model": {"name": None}}, "needs a name", "mlp, cnn"),
            ({"model": {"name": "mpl"}}, "no built-in model 'mpl'", "did you mean 'mlp'"),
            ({"model": {"width": 3}}, "what a sweep varies", "[sweep]"),
            ({"model": {"inputs": 3}}, "follows from the data", "leave it out"),
            ({"model": {"activation": "tan"}}, "no activation 'tan'", "did you mean 'tanh'"),
            ({"data": {"name": "mnist"}}, "no built-in data 'mnist'", "did you mean 'mnist1d'"),
            ({"data": {"train_samples": 5000}}, "train_samples is 5000", "lower"),
            ({"data": {"image": True}}, "flat inputs", "cnn"),
            ({"training": {"steps": None}}, "needs the setting 'steps'", None),
            ({"training": {"loss": "mse"}}, "does not go with targets 'index'", "onehot"),
            ({"training": {"loss": "entropy"}}, "no loss 'entropy'", "cross_entropy"),
            ({"training": {"optimiser": "sdg"}}, "no optimiser 'sdg'", "did you mean 'sgd'"),
            ({"training": {"optimiser": "adam", "momentum": 0.9}}, "sgd only", "leave it out"),
            ({"training": {"schedule": "linear"}}, "no schedule", "cosine"),
            ({"training": {"dtype": "float16"}}, "no dtype", "float32"),
            ({"training": {"save": [8]}}, "step 8", None),
            ({"training": {"save": 3}}, "list of integers", None),
            ({"training": {"learning_rate": 0}}, "above 0", None),
            ({"training": {"batch_size": 0}}, "at least 1", None),
        ],
    )
    def test_explains_a_mistake(self, tmp_path: Path, changes: dict[str, Any], message: str, hint: str | None) -> None:
        with pytest.raises(UsageError, match=message) as raised:
            read_sweep(write(tmp_path, changes))
        assert "sweep.toml" in raised.value.message
        if hint is not None:
            assert hint in (raised.value.hint or "")

    @pytest.mark.parametrize("text", [b"[sweep", b"\xff\xfe", b"width = 3", b""])
    def test_explains_a_file_that_is_no_sweep(self, tmp_path: Path, text: bytes) -> None:
        path = tmp_path / "sweep.toml"
        path.write_bytes(text)
        with pytest.raises(UsageError):
            read_sweep(path)

    def test_explains_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file"):
            read_sweep(tmp_path / "none.toml")
        with pytest.raises(UsageError, match="directory"):
            read_sweep(tmp_path)

    @given(
        table=st.sampled_from(["sweep", "model", "data", "training"]),
        key=st.sampled_from(KEYS) | st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
        value=st.one_of(st.integers(), st.booleans(), st.floats(), st.text("ab", max_size=3), st.lists(st.integers())),
    )
    def test_any_key_with_any_value_is_taken_or_explained(
        self, tmp_path_factory: pytest.TempPathFactory, table: str, key: str, value: Any
    ) -> None:
        path = write(tmp_path_factory.mktemp("sweep"), {table: {key: value}})
        with suppress(UsageError):
            assert plan(read_sweep(path))


class TestTraining:
    def test_writes_initial_intermediate_and_final_with_the_header(self, tmp_path: Path) -> None:
        run = runs_of(tmp_path)[0]
        trained = train_run(run, tmp_path)
        folder = tmp_path / "width=2" / "seed=0"
        assert sorted(p.name for p in folder.iterdir()) == ["final.pt", "initial.pt", "step=4.pt"]
        header = read_checkpoint(trained.path).header
        assert header["coordinates"] == {"width": 2, "seed": 0, "step": 7}
        assert header["model_settings"] == {
            "inputs": 64, "outputs": 10, "width": 2, "depth": 1, "activation": "tanh", "bias": True,
        }  # fmt: skip
        assert header["data_settings"]["train_samples"] == 90
        assert header["training"]["steps_done"] == 7
        assert header["training"]["train_loss"] == trained.train_loss
        assert "weight_decay" not in header
        assert read_checkpoint(folder / "initial.pt").header["coordinates"]["step"] == 0
        initial = build_model("mlp", header["model_settings"], seed=0).state_dict()
        stored = read_checkpoint(folder / "initial.pt").state
        assert all(torch.equal(initial[key], stored[key]) for key in initial)

    def test_the_header_is_the_problem_that_was_trained(self, tmp_path: Path) -> None:
        """What the analyses build from the header has the loss that the header states."""
        for changes in (
            {},
            {"model": {"name": "cnn", "batch_norm": True}, "data": {"image": True}},
            {"data": {"targets": "onehot", "label_noise": 0.3}, "training": {"loss": "mse", "weight_decay": 0.01}},
        ):
            trained = train_run(runs_of(tmp_path, **changes)[0], tmp_path, force=True)
            problem = load_problem(trained.path).problem
            with torch.no_grad():
                total, count = problem.loss_function(copy.deepcopy(problem.model).eval(), problem.data)
            assert float(total / count) == pytest.approx(trained.train_loss, rel=1e-5)
            assert problem.weight_decay == changes.get("training", {}).get("weight_decay", 0.0)

    def test_gives_the_same_bytes_again_wherever_the_global_generator_is(self, tmp_path: Path) -> None:
        run = runs_of(tmp_path)[1]
        first = train_run(run, tmp_path / "a").path
        torch.rand(5)
        second = train_run(run, tmp_path / "b").path
        assert first.read_bytes() == second.read_bytes()
        for name in ("initial.pt", "step=4.pt"):
            assert first.with_name(name).read_bytes() == second.with_name(name).read_bytes()

    def test_what_is_saved_on_the_way_changes_nothing(self, tmp_path: Path) -> None:
        """BatchNorm in eval mode for the measurement must not leak into training."""
        cnn = {"model": {"name": "cnn", "batch_norm": True}, "data": {"image": True}}
        often = runs_of(tmp_path, **cnn, training={"save": list(range(8))})[0]
        never = runs_of(tmp_path, **cnn, training={"save": []})[0]
        a, b = train_run(often, tmp_path / "a").path, train_run(never, tmp_path / "b").path
        assert a.read_bytes() == b.read_bytes()
        assert [p.name for p in b.parent.iterdir()] == ["final.pt"]

    def test_full_batch_sgd_is_gradient_descent_on_the_declared_objective(self, tmp_path: Path) -> None:
        """Against a hand-written loop in float64: θ ← θ − lr (∇L + λ θ), lr on the cosine."""
        run = runs_of(
            tmp_path,
            training={
                "batch_size": 1000, "weight_decay": 0.1, "schedule": "cosine", "dtype": "float64",
                "save_dtype": "float64",
            },
        )[0]  # fmt: skip
        trained = train_run(run, tmp_path)
        problem = load_problem(trained.path).problem
        model = build_model("mlp", read_checkpoint(trained.path).header["model_settings"], seed=0).double()
        inputs, targets = problem.data
        for step in range(7):
            loss = nn.functional.cross_entropy(model(inputs.double()), targets)
            loss = loss + 0.1 / 2 * sum(p.square().sum() for p in model.parameters())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            rate = 0.05 * (1 + math.cos(math.pi * step / 7)) / 2
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= rate * g
        state = read_checkpoint(trained.path).state
        assert {t.dtype for t in state.values()} == {torch.float64}
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-12)

    def test_stops_at_the_target(self, tmp_path: Path) -> None:
        changes = {"training": {"steps": 500, "target_loss": 2.0, "learning_rate": 0.5, "save": [0, 400]}}
        trained = train_run(runs_of(tmp_path, **changes)[0], tmp_path)
        assert trained.train_loss <= 2.0
        assert trained.steps_done < 400
        assert trained.steps_done % 3 == 0  # at the end of an epoch of three minibatches
        assert not (trained.path.parent / "step=400.pt").exists()
        assert train_run(runs_of(tmp_path, **changes)[0], tmp_path).skipped

    @pytest.mark.parametrize("changes", [{"optimiser": "adam"}, {"momentum": 0.9}, {"save_dtype": "float64"}])
    def test_other_optimisers_descend_too(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        run = runs_of(tmp_path, training={"steps": 60, **changes})[0]
        losses = []
        train_run(run, tmp_path, progress=lambda step, loss: losses.append((step, loss)))
        assert [step for step, _ in losses] == list(range(1, 61))
        assert losses[-1][1] < losses[0][1]

    def test_divergence_leaves_no_final_checkpoint(self, tmp_path: Path) -> None:
        run = runs_of(
            tmp_path,
            model={"activation": "relu"},
            data={"targets": "onehot"},
            training={"loss": "mse", "learning_rate": 1e6, "steps": 200},
        )[0]
        with pytest.raises(NumericalError, match="diverged") as raised:
            train_run(run, tmp_path)
        assert "learning_rate" in (raised.value.hint or "")
        assert not (tmp_path / run.folder / "final.pt").exists()

    def test_without_test_data_there_is_no_test_accuracy(self, tmp_path: Path) -> None:
        trained = train_run(runs_of(tmp_path, data={"test_fraction": 0})[0], tmp_path)
        assert trained.test_accuracy is None
        assert load_problem(trained.path).problem is not None

    def test_counts_parameters_without_training(self, tmp_path: Path) -> None:
        run = runs_of(tmp_path)[0]
        assert parameters_of(run) == train_run(run, tmp_path).parameters == 64 * 2 + 2 + 2 * 10 + 10


@given(samples=st.integers(1, 50), size=st.integers(1, 60))
def test_every_epoch_sees_every_sample_once(samples: int, size: int) -> None:
    batches = minibatches(samples, size, torch.Generator().manual_seed(0))
    for _ in range(2):
        seen: list[int] = []
        for rows, ends in batches:
            seen += torch.arange(samples)[rows].tolist()
            if ends:
                break
        assert sorted(seen) == list(range(samples))


def test_the_cosine_starts_at_the_rate_and_ends_near_zero() -> None:
    how = Training(steps=100, learning_rate=0.3, schedule="cosine")
    rates = [learning_rate_at(how, step) for step in range(1, 101)]
    assert rates[0] == 0.3
    assert all(a > b > 0 for a, b in itertools.pairwise(rates))
    assert rates[-1] < 1e-3 * 0.3


class TestResume:
    def test_a_finished_run_is_skipped_untouched(self, tmp_path: Path) -> None:
        run = runs_of(tmp_path)[0]
        first = train_run(run, tmp_path)
        stamp = first.path.stat().st_mtime_ns
        again = train_run(run, tmp_path)
        assert again.skipped
        assert not first.skipped
        assert again.path.stat().st_mtime_ns == stamp
        assert replace(again, skipped=False, seconds=first.seconds) == first

    def test_a_run_without_its_final_checkpoint_is_repeated_to_the_same_bytes(self, tmp_path: Path) -> None:
        run = runs_of(tmp_path)[0]
        path = train_run(run, tmp_path).path
        before = path.read_bytes()
        path.unlink()
        assert not train_run(run, tmp_path).skipped
        assert path.read_bytes() == before

    def test_more_intermediate_checkpoints_can_be_asked_for_later(self, tmp_path: Path) -> None:
        train_run(runs_of(tmp_path)[0], tmp_path)
        before = (tmp_path / "width=2/seed=0/final.pt").read_bytes()
        assert not train_run(runs_of(tmp_path, training={"save": [0, 4, 6]})[0], tmp_path).skipped
        assert (tmp_path / "width=2/seed=0/step=6.pt").exists()
        assert (tmp_path / "width=2/seed=0/final.pt").read_bytes() == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"training": {"learning_rate": 0.06}},
            {"training": {"weight_decay": 0.01}},
            {"model": {"activation": "relu"}},
            {"data": {"label_noise": 0.1}},
        ],
    )
    def test_checkpoints_of_different_settings_are_never_overwritten(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        path = train_run(runs_of(tmp_path)[0], tmp_path).path
        before = path.read_bytes()
        other = runs_of(tmp_path, **changes)
        ((key, value),) = next(iter(changes.values())).items()
        for refused in (lambda: train_run(other[0], tmp_path), lambda: check_out(other[2:], tmp_path)):
            with pytest.raises(StorageError, match=f"{key} is .* instead of {value!r}") as raised:
                refused()
            assert "--force" in (raised.value.hint or "")
        assert path.read_bytes() == before
        assert not train_run(other[0], tmp_path, force=True).skipped
        assert path.read_bytes() != before

    def test_a_sweep_may_grow(self, tmp_path: Path) -> None:
        train_run(runs_of(tmp_path)[0], tmp_path)
        check_out(runs_of(tmp_path, sweep={"width": [5], "seed": [7]}), tmp_path)
        with pytest.raises(StorageError, match="coordinates"):
            check_out(runs_of(tmp_path, sweep={"width": [5], "label_noise": [0.1]}), tmp_path)

    @pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
    def test_a_damaged_or_foreign_file_in_the_way_is_named(self, tmp_path: Path, damage: str) -> None:
        run = runs_of(tmp_path)[0]
        path = train_run(run, tmp_path).path
        raw = bytearray(path.read_bytes())
        if damage == "truncate":
            path.write_bytes(raw[: len(raw) // 2])
        elif damage == "flip":
            weights = read_checkpoint(path).state["0.weight"].numpy().tobytes()
            raw[raw.find(weights)] ^= 1
            path.write_bytes(raw)
        else:
            torch.save({"0.weight": torch.zeros(2)}, path)
        with pytest.raises(StorageError, match="in the way") as raised:
            train_run(run, tmp_path)
        assert "--force" in (raised.value.hint or "")
        train_run(run, tmp_path, force=True)
        assert train_run(run, tmp_path).skipped

    def test_other_peoples_files_beside_ours_are_left_alone(self, tmp_path: Path) -> None:
        foreign = tmp_path / "width=9" / "seed=0" / "final.pt"
        foreign.parent.mkdir(parents=True)
        torch.save({"weight": torch.zeros(2)}, foreign)
        runs = runs_of(tmp_path)
        check_out(runs, tmp_path)
        train_run(runs[0], tmp_path)
        assert "weight" in read_checkpoint(foreign).state

    def test_headers_and_runs_translate_into_each_other(self, tmp_path: Path) -> None:
        for run in runs_of(tmp_path, model={"name": "cnn"}, data={"image": True}, training={"weight_decay": 0.1}):
            measured = {"parameters": 1, "steps_done": 7, "train_loss": 0.1, "train_accuracy": 1, "test_accuracy": None}
            assert run_of(header_of(run, measured)) == run

    @pytest.mark.parametrize("header", [{}, {"training": 3}, {"training": {}, "loss": "mse", "model": "vit"}])
    def test_a_header_of_another_tool_is_refused(self, header: dict[str, Any]) -> None:
        with pytest.raises(ProblemError):
            run_of(header)


@pytest.mark.parametrize("width", [10**8, 10**18, 10**30])
def test_a_network_beyond_memory_is_refused_before_it_is_built(tmp_path: Path, width: int) -> None:
    (run,) = runs_of(tmp_path, sweep={"width": width, "seed": 0}, model={"depth": 2})
    with pytest.raises(ProblemError, match="width=") as raised:
        parameters_of(run)
    assert raised.value.hint == "lower the width"
