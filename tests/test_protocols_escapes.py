"""Protocol A in stacks against `widen`, first-order tickets against torch.optim, and `check` in worker processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from commands import run
from conftest import NO_CUDA
from landscape.checkpoints.source import Source
from landscape.claims.escape_dimensions import experiments as escape_dimensions
from landscape.claims.escape_dimensions.decide_splits import SUCCESS
from landscape.claims.escape_dimensions.splits import SHARES, split_minima
from landscape.claims.escape_dimensions.tickets import train_alone
from landscape.claims.read_runs import read_runs
from landscape.claims.runs import Means, SweptRun, populations, usable
from landscape.errors import StorageError, UsageError
from landscape.problem.problem import Problem
from landscape.results.store import list_groups, read_result
from landscape.runtime.files import locked
from landscape.runtime.pieces import FORGETFUL, KeptPieces
from landscape.stack.build import build_stack
from landscape.stack.first_order import FirstOrder, first_order
from landscape.widening.run import widen
from test_certificate import fixture_problem
from test_claim_escapes import SWEEP


@pytest.mark.slow
def test_splits_of_many_minima_are_those_of_each() -> None:
    """Two copies of the published fixture in one stack, the second with its neurons swapped."""
    one, two = fixture_problem(), fixture_problem()
    with torch.no_grad():
        for p in two.model.parameters():
            p.copy_(p.flip(0 if p.shape[1] == 2 and p.shape[0] == 2 else 1))
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None].expand(7, 2)
    torch.testing.assert_close(one.model(x), two.model(x))
    made = split_minima([one, two], "0", 1, 30)
    assert (made.foretold == made.found).all()
    assert made.minimum.tolist() == [0] * 10 + [1] * 10
    alone = widen(fixture_problem(), "0", shares=SHARES)
    np.testing.assert_array_equal(made.found[:10], alone.measured_negative)
    np.testing.assert_array_equal(made.found[10:], np.roll(alone.measured_negative, 5))
    opened = made.found > 0
    assert (np.isfinite(made.reached) == opened).all()
    assert (np.isfinite(made.wide).all(1) == opened).all()
    assert (np.isfinite(made.narrow).all(1) == opened).all()
    loss = 0.743319384157008
    assert (made.reached[opened] < loss).all()
    assert made.reached[:5][opened[:5]].min() == pytest.approx(made.reached[15:][opened[15:]].min(), rel=0.2)


def student(seed: int, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    return x, torch.sin(2 * x[:, :1]) * x[:, 1:]


def test_splits_are_the_same_on_every_device(device: str) -> None:
    """A few steps from points that are no minima: inertia and losses, on this device and on the CPU."""
    problems = [Problem(student(s), data(), "mse") for s in range(2)]
    here, there = (split_minima(problems, "0", 2, 4, device=d) for d in (device, "cpu"))
    np.testing.assert_array_equal(here.found, there.found)
    for name in ("reached", "wide", "narrow"):
        np.testing.assert_allclose(getattr(here, name), getattr(there, name), rtol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        FirstOrder("adam", 0.01, 60),
        FirstOrder("adam", 0.02, 40, weight_decay=0.01, cosine=True),
        FirstOrder("sgd", 0.05, 50, momentum=0.9, weight_decay=0.001),
    ],
)
def test_a_stack_is_trained_as_each_of_its_networks(how: FirstOrder) -> None:
    models = [student(s) for s in range(3)]
    stack, theta = build_stack([Problem(m, data(), "mse") for m in models])
    made = first_order(stack, theta, how)
    for row, model in zip(made, models, strict=True):
        parameters = list(model.parameters())
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            parameters, how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay
        )
        if how.optimiser == "adam":
            optimiser = torch.optim.Adam(parameters, how.learning_rate, weight_decay=how.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
        for _ in range(how.steps):
            optimiser.zero_grad()
            x, y = data()
            (model(x) - y).square().sum(1).mean().backward()
            optimiser.step()
            if how.cosine:
                schedule.step()
        flat = nn.utils.parameters_to_vector(parameters).detach()
        torch.testing.assert_close(row, flat, rtol=1e-9, atol=1e-11)


def test_tickets_are_trained_with_the_optimiser_of_their_network() -> None:
    """One step of a first-order optimiser that stays where it is leaves the descent alone; a far one does not."""
    starts = [Problem(student(s), data(), "mse") for s in range(2)]
    plain = train_alone(starts, "0", 1, 10, 200, np.random.default_rng(0))
    still = train_alone(starts, "0", 1, 10, 200, np.random.default_rng(0), first=FirstOrder("sgd", 1e-300, 1))
    np.testing.assert_allclose(plain.loss, still.loss, rtol=1e-9)
    far = train_alone(starts, "0", 1, 10, 0, np.random.default_rng(0), first=FirstOrder("adam", 0.01, 200))
    near = train_alone(starts, "0", 1, 10, 0, np.random.default_rng(0))
    assert (far.loss < near.loss).all()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    (folder / "sweep.toml").write_text(SWEEP)
    assert run("train", "sweep.toml", "--out", "runs", cwd=folder).returncode == 0
    adam = SWEEP.replace('optimiser = "levenberg_marquardt"', 'optimiser = "adam"\nfinish = "minimum"\nstacked = true')
    (folder / "adam.toml").write_text(adam.replace("steps = 200", "steps = 60\nbatch_size = 60\nlearning_rate = 0.05"))
    assert run("train", "adam.toml", "--out", "adam", cwd=folder).returncode == 0
    return folder


CHECK = ("check", "runs", "adam", "--claim", "escape-dimensions", "--json")


def decided(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return {k: v for k, v in report.items() if k not in ("seconds", "result")}


@pytest.fixture(scope="module")
def alone(swept: Path) -> subprocess.CompletedProcess[str]:
    """What one process finds."""
    return run(*CHECK, "--workers", "1", "-o", "one", cwd=swept)


def test_workers_find_what_one_process_finds(swept: Path, alone: subprocess.CompletedProcess[str]) -> None:
    shared = run(*CHECK, "--workers", "3", "-o", "three", cwd=swept)
    assert decided(alone) == decided(shared)
    names = {p["name"].split(":")[0] for p in json.loads(alone.stdout)["parts"]}  # both optimisers
    assert any("adam" in n for n in names)
    assert any("levenberg" in n for n in names)
    tickets = [p for p in json.loads(alone.stdout)["parts"] if "own tickets" in p["name"]]
    assert len(tickets) == 2
    assert sorted(p.name for p in (swept / "three").iterdir() if "pieces" in p.name) == []
    result = read_result(swept / "three" / "escape-dimensions.check.h5", "check")
    assert result.provenance.settings["budget"]["tickets"] == escape_dimensions.SCALES["small"].tickets


def test_check_decides_prints_and_repeats(swept: Path, alone: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    report = json.loads(alone.stdout)
    assert report["claim"] == "escape-dimensions"
    assert report["verdict"] == "undetermined"  # six seeds decide nothing
    assert report["runs"] == 24
    for name in ("runs", "adam", "one"):
        shutil.copytree(swept / name, tmp_path / name)
    only = (*CHECK[:-1], "-o", "one")
    again = run(*only, "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == report
    assert "done already" in again.stderr
    assert list_groups(tmp_path / report["result"]) == ["check"]
    table = run(*only, cwd=tmp_path).stdout
    assert max(map(len, table.splitlines())) <= 80 or "What is undetermined" in table
    assert run("plot", report["result"], cwd=tmp_path).returncode == 0
    torch.save((torch.zeros(4, 2), torch.zeros(4, 1)), tmp_path / "other.pt")
    other = run(*only, "--data", "other.pt", "--force", cwd=tmp_path)
    assert other.returncode == 2
    assert "names its own data" in other.stderr
    for final in sorted(tmp_path.glob("runs/width=2/*/final.pt")):
        final.unlink()
    refused = run(*only, "--json", cwd=tmp_path)
    assert refused.returncode == 5
    assert "--force" in refused.stderr
    few = next(tmp_path.glob("runs/width=2/*"))  # its start is still there, and has no certificate
    changed = run("check", str(few), *only[3:], "--json", "--force", cwd=tmp_path)
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout)["runs"] == 1
    assert any("no certificate" in e["reason"] for e in json.loads(changed.stdout)["excluded"])


def test_killed_at_any_time_and_repeated_it_says_the_same(swept: Path, alone: subprocess.CompletedProcess[str]) -> None:
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    command = ["-W", "ignore", "-m", "landscape", *CHECK, "--workers", "2", "-o", "killed"]
    for seconds in (2.5, 4.0):
        process = subprocess.Popen(
            [sys.executable, *command], cwd=swept, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(100):  # workers notice within a report that their parent is gone
        try:
            with locked(swept / "killed" / "escape-dimensions.check.h5"):
                break
        except StorageError:
            time.sleep(0.2)
    assert decided(run(*CHECK, "--workers", "2", "-o", "killed", cwd=swept)) == decided(alone)


@pytest.mark.gpu
@NO_CUDA
def test_a_gpu_finds_what_a_cpu_finds(swept: Path, alone: subprocess.CompletedProcess[str]) -> None:
    """The same tests of as many units; ends of descents may differ in their last digits."""
    gpu = json.loads(run(*CHECK, "--device", "cuda", "-o", "gpu", cwd=swept).stdout)
    cpu = json.loads(alone.stdout)
    assert [(p["name"], p["n"]) for p in gpu["parts"]] == [(p["name"], p["n"]) for p in cpu["parts"]]


def test_units_cover_all_that_is_gathered(swept: Path) -> None:
    """After every unit has been worked, gathering computes nothing."""
    groups = populations(read_runs([str(swept / "runs"), str(swept / "adam")], Source())[0])
    scale = escape_dimensions.Scale(2, 1, 9, 3, 2, 2, 1, 0, 100)
    kept: dict[str, object] = {}
    pieces = KeptPieces({}, kept.update)
    for unit in escape_dimensions.units(groups):
        escape_dimensions.work(groups, unit, Means(scale, 0, "cpu", lambda *a: None, pieces))
    again = Means(scale, 0, "cpu", lambda *a: None, KeptPieces(kept, lambda found: pytest.fail("computed again")))
    made = escape_dimensions.gather(groups, again)
    fresh = escape_dimensions.gather(groups, Means(scale, 0, "cpu", lambda *a: None, FORGETFUL))
    assert [p.name for p in made.populations] == [p.name for p in fresh.populations]
    for one, two in zip(made.populations, fresh.populations, strict=True):
        assert [p.winners.tolist() for p in one.pairs] == [p.winners.tolist() for p in two.pairs]


def read(*folders: Path) -> list[SweptRun]:
    return read_runs([str(f) for f in folders], Source())[0]


def test_a_run_counts_once_however_it_is_named(swept: Path, tmp_path: Path) -> None:
    here = read(swept / "runs")
    assert len(here) == 12
    assert len(read(swept / "runs", swept / "runs" / ".." / "runs")) == 12
    shutil.copytree(swept / "runs", tmp_path / "copy")
    twice = read(swept / "runs", tmp_path / "copy")
    assert [r.name for r in twice] == [r.name for r in here]


def test_populations_differ_in_nothing_but_width_and_seed(swept: Path) -> None:
    """The same sweep at another learning rate is another population, as are coordinates of one's own."""
    runs = read(swept / "adam")
    slower = [replace(r, header={**r.header, "training": {**r.header["training"], "learning_rate": 0.2}}) for r in runs]
    assert [len(v) for v in populations([*runs, *slower]).values()] == [12, 12]
    assert len(populations([*runs[:6], *slower[6:]])) == 1  # a rate for every width is one sweep
    assert len(populations([slower[k] if r.seed % 2 else r for k, r in enumerate(runs)])) == 2  # within a width not
    named = [replace(r, coordinates={**r.coordinates, "lr": 0.2}) for r in runs]
    assert [("lr=0.2" in name) for name in populations([*runs, *named])] == [False, True]
    with pytest.raises(UsageError, match="same seed of the same width"):
        populations([*runs, replace(runs[0], name="other.pt")])
    with pytest.raises(UsageError, match="seed 'x' is not a whole number"):
        populations([replace(runs[0], coordinates={"width": 2, "seed": "x"})])


def test_certified_ends_get_the_starts_they_came_from(swept: Path, tmp_path: Path) -> None:
    """By the file that `descend` began with: another sweep of the same widths and seeds lends none."""
    patterns = ("descend", str(swept / "adam" / "width=2" / "**" / "final.pt"))
    assert run(*patterns, "-o", "certified", cwd=tmp_path).returncode == 0
    made = read(tmp_path / "certified", swept / "adam" / "width=2")
    assert len(made) == 6
    assert all(r.start is not None and "certified" in r.name for r in made)
    alone = read(tmp_path / "certified", swept / "runs" / "width=2")
    assert [r.start is None for r in alone] == ["certified" in r.name for r in alone]


def test_zero_loss_is_an_outcome_without_a_certificate(swept: Path) -> None:
    runs = read(swept / "runs")
    bare = [replace(r, certificate=None, loss=0.01 if i < 3 else r.loss) for i, r in enumerate(runs)]
    kept, left = usable(bare, SUCCESS)
    assert {r.name for r in kept} == {r.name for r in bare if r.loss < SUCCESS}
    assert len(kept) + len(left) == 12
    assert kept
    assert left


def test_two_files_that_could_be_the_end_are_refused(swept: Path, tmp_path: Path) -> None:
    place = tmp_path / "width=2" / "seed=0"
    place.mkdir(parents=True)
    for name in ("a.pt", "b.pt"):
        torch.save(student(len(name)).state_dict(), place / name)
    with pytest.raises(UsageError, match="could both be the end"):
        read(tmp_path)


OWN = """
import torch
from torch import nn
from landscape import Problem

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden = nn.Linear(2, width, bias=False)
        self.readout = nn.Linear(width, 1, bias=False)

    def forward(self, x):
        return self.readout(torch.tanh(self.hidden(x)))

def problem(width=2):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=g)
    y = torch.tanh(x @ torch.tensor([[1.5, -0.7], [-0.4, 1.8]]).T).sum(1, keepdim=True)
    return Problem(Net(int(width)), (x, y), "mse")
"""


def test_networks_of_ones_own_are_certified_and_then_checked(tmp_path: Path) -> None:
    """Plain state dicts, without any header: first what is missing is said, then their starts are found again."""
    (tmp_path / "problem.py").write_text(OWN)
    spaces: dict[str, object] = {}
    exec(OWN, spaces)
    for width in (2, 3):
        for seed in range(3):
            torch.manual_seed(seed)
            place = tmp_path / "runs" / f"width={width}" / f"seed={seed}"
            place.mkdir(parents=True)
            model: nn.Module = spaces["problem"](width).model  # type: ignore[operator]
            torch.save(model.state_dict(), place / "initial.pt")
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.1)
            torch.save(model.state_dict(), place / "final.pt")
    own = ("--claim", "escape-dimensions", "--problem", "problem.py:problem", "--workers", "1", "--json")
    bare = json.loads(run("check", "runs", *own, "-o", "a", cwd=tmp_path).stdout)
    assert bare["verdict"] == "undetermined"
    assert len(bare["excluded"]) == 7
    assert "none of its narrowest networks" in bare["excluded"][-1]["reason"]
    assert bare["settle"][0].startswith("landscape descend RUNS")
    done = run("descend", "runs/**/final.pt", "--problem", "problem.py:problem", "-o", "certified", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(run("check", "certified", "runs", *own, "-o", "b", cwd=tmp_path).stdout)
    assert made["runs"] == 6
    (untried,) = [p for p in made["parts"] if "own tickets" in p["name"]]
    assert "no header says" in untried["note"]
    assert not any("kept" in p["name"] for p in made["parts"])
    assert run("report", "b", cwd=tmp_path).returncode == 0
    assert "landscape check certified runs" in (tmp_path / "b" / "report.html").read_text()
