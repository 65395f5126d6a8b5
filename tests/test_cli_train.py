"""`landscape train` as users meet it: tables and JSON, exit codes, signals, kill -9 and repeat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import commands
from landscape.cli.options import Output
from landscape.cli.train import train_all
from landscape.errors import BatchError, NumericalError, StorageError
from landscape.training.one import train_run
from landscape.training.sweep import plan, read_sweep

SWEEP = """
[sweep]
width = [2, 4]
seed = [0, 1]
[model]
name = "mlp"
[data]
name = "digits"
train_samples = 128
[training]
steps = {steps}
learning_rate = {rate}
save = [0, 2]
"""
FILES = {
    f"width={width}/seed={seed}/{name}.pt"
    for width in (2, 4)
    for seed in (0, 1)
    for name in ("initial", "step=2", "final")
}


def write(folder: Path, steps: int = 5, rate: float = 0.1) -> Path:
    path = folder / "sweep.toml"
    path.write_text(SWEEP.format(steps=steps, rate=rate))
    return path


def command(sweep: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "landscape", "train", str(sweep), "--out", str(out), *options]


def run(sweep: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return commands.run("train", sweep, "--out", out, *options, cwd=sweep.parent)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_trains_prints_a_table_and_repeats_nothing(tmp_path: Path) -> None:
    sweep, out = write(tmp_path), tmp_path / "out"
    first = run(sweep, out)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert lines[0].split()[:4] == ["width", "seed", "parameters", "steps"]
    assert len(lines) == 5
    assert str(out / "width=2" / "seed=0" / "final.pt") in lines[1]
    assert set(files(out)) == FILES
    before = files(out)
    second = run(sweep, out)
    assert second.returncode == 0
    assert second.stdout.count("was there") == 4
    assert files(out) == before


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may set the threads of its own process, but not of the tests'."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


@pytest.mark.usefixtures("in_process")
def test_json_is_one_object_per_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_all(write(tmp_path), {}, "cpu", Output(tmp_path / "out", as_json=True, force=False, quiet=True))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["coordinates"] for row in rows] == [
        {"width": width, "seed": seed} for width in (2, 4) for seed in (0, 1)
    ]
    assert all(Path(row["checkpoint"]).is_file() and row["steps"] == 5 and not row["skipped"] for row in rows)


def test_other_settings_are_refused_before_anything_is_trained_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for planned in plan(read_sweep(write(tmp_path))):
        train_run(planned, out)
    before = files(out)
    refused = run(write(tmp_path, rate=0.2), out)
    assert refused.returncode == 5
    assert "learning_rate is 0.1 instead of 0.2" in refused.stderr
    assert "hint: choose another folder with --out" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert files(out) == before
    forced = run(write(tmp_path, rate=0.2), out, "--force")
    assert forced.returncode == 0
    assert set(files(out)) == FILES
    assert all(files(out)[name] != before[name] for name in FILES)


def test_values_of_the_file_can_be_replaced(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    changed = read_sweep(sweep, {"sweep.seed": "3..4", "sweep.width": "[2]", "training.optimiser": "adam"})
    assert [r.label for r in plan(changed)] == ["width=2 seed=3", "width=2 seed=4"]
    assert {r.training.optimiser for r in plan(changed)} == {"adam"}
    out = tmp_path / "out"
    assert run(sweep, out, "--set", "sweep.seed=1", "--set", "sweep.width=2").returncode == 0
    one = files(out)
    assert set(one) == {f for f in FILES if f.startswith("width=2/seed=1")}
    assert run(sweep, out).returncode == 0  # the rest of the same sweep
    assert set(files(out)) == FILES
    assert one.items() <= files(out).items()


@pytest.mark.parametrize(
    ("change", "words"),
    [("seed=3", "no place"), ("sweap.seed=3", "no place"), ("sweep.sead=3", "sead"), ("training.steps=many", "steps")],
)
def test_a_mistaken_replacement_is_one_error(change: str, words: str, tmp_path: Path) -> None:
    done = run(write(tmp_path), tmp_path / "out", "--set", change)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "words"), [("tpu", "choose auto, cpu or cuda"), ("cuda", "sees no CUDA"), ("cuda:1", "sees no CUDA")]
)
def test_a_device_that_is_not_there_is_one_error(device: str, words: str, tmp_path: Path) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = run(write(tmp_path), tmp_path / "out", "--device", device)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_mistakes_end_in_one_error_and_exit_code_2(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    sweep.write_text(sweep.read_text().replace("learning_rate", "learning_rte"))
    done = run(sweep, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sweep}: [training] has no setting 'learning_rte'\nhint: did you mean")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("rates", "error", "rows"), [("[1e9]", NumericalError, 0), ("[1e-3, 1e9]", BatchError, 1)], ids=["all", "some"]
)
def test_divergence_is_told_run_by_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: str, error: type[Exception], rows: int
) -> None:
    text = SWEEP.format(steps=300, rate=0.1).replace("learning_rate = 0.1\n", 'loss = "mse"\n')
    text = text.replace("train_samples", 'targets = "onehot"\ntrain_samples')
    text = text.replace('"mlp"', '"mlp"\nactivation = "relu"').replace("[2, 4]", "[4]")
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(text.replace("seed = [0, 1]", f"learning_rate = {rates}"))
    with pytest.raises(error, match=f"1 of {rows + 1} runs diverged"):
        train_all(sweep, {}, "cpu", Output(tmp_path / "out", as_json=True, force=False, quiet=False))
    printed = capsys.readouterr()
    assert "error: width=4 learning_rate=1000000000.0 seed=0: training diverged" in printed.err
    assert len(printed.out.splitlines()) == rows


@pytest.mark.usefixtures("in_process")
def test_an_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="cannot write"):
        train_all(write(tmp_path), {}, "cpu", Output(tmp_path / "out", as_json=False, force=False, quiet=False))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    for planned in plan(read_sweep(write(folder, steps=1500))):
        train_run(planned, folder / "out")
    return files(folder / "out")


def _start_and_wait_for(process_command: list[str], path: Path) -> subprocess.Popen[str]:
    """The command, running, as soon as `path` exists."""
    process = subprocess.Popen(process_command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_repeated_it_ends_in_the_same_files(
    tmp_path: Path, whole: dict[str, bytes], signum: int, code: int
) -> None:
    """Stopped in the middle of the second run: the first is kept, no file is torn, the rest is repeated."""
    sweep, out = write(tmp_path, steps=1500), tmp_path / "out"
    process = _start_and_wait_for(command(sweep, out), out / "width=2" / "seed=1" / "step=2.pt")
    os.kill(process.pid, signum)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert stdout == ""
    assert "repeat the command to go on" in stderr or signum == signal.SIGKILL
    stopped = files(out)
    torn = {name for name in stopped if name.endswith(".pt") and stopped[name] != whole[name]}
    assert not torn
    assert "width=2/seed=0/final.pt" in stopped
    assert "width=4/seed=1/final.pt" not in stopped
    again = run(sweep, out, "--json", "--quiet")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[0])["skipped"]
    assert files(out) == whole


STACK = """
[sweep]
width = [3, 4]
seed = "0..5"
[model]
name = "mlp"
activation = "sigmoid_softplus"
bias = false
[data]
name = "teacher"
[training]
loss = "mse"
optimiser = "levenberg_marquardt"
steps = 200
dtype = "float64"
save_dtype = "float64"
"""


def test_stacks_killed_and_repeated_end_in_the_same_files(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(STACK)
    whole = run(sweep, tmp_path / "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    reports = [json.loads(line) for line in whole.stdout.splitlines()]
    assert [r["coordinates"]["seed"] for r in reports] == [*range(6)] * 2
    assert all(r["verdict"] in ("minimum", "saddle", "degenerate", "channel", "not stationary") for r in reports)
    process = subprocess.Popen(command(sweep, tmp_path / "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").rglob("final.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert run(sweep, tmp_path / "cut").returncode == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    table = run(sweep, tmp_path / "cut").stdout
    assert "verdict" in table
    assert table.count("(was there)") == 12


def test_a_ready_made_sweep_is_named_or_suggested(tmp_path: Path) -> None:
    done = run(Path("four-neurons"), tmp_path / "out")
    assert done.returncode == 2
    assert "did you mean 'four-neuron'" in done.stderr
