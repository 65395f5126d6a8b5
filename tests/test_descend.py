"""`landscape descend`, the function and the command: certified points, checkpoints written, mistakes explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import commands
from landscape import descend
from landscape.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from landscape.checkpoints.load import load_problem
from landscape.data import load_data
from landscape.errors import ProblemError, UsageError
from landscape.models import build_model
from landscape.points.certificate import from_dict
from landscape.points.descend import run_descents
from landscape.points.descent import Trajectory
from landscape.points.results import Descended
from landscape.points.settings import DescendSettings
from landscape.problem.problem import Problem
from landscape.results.store import read_result, restore
from surfaces import monkey_saddle, quadratic, surface
from test_certificate import fixture_problem, linear_problem

TEACHER = {"target": "four_neuron", "points": 9, "extent": 3.0}
MODEL = {"inputs": 2, "outputs": 1, "width": 3, "activation": "sigmoid_softplus", "bias": False}


def student(seed: int, width: int = 3) -> Problem:
    model = build_model("mlp", MODEL | {"width": width}, seed).double()
    return Problem(model, load_data("teacher", TEACHER).train, "mse")


def moved(problem: Problem, by: float) -> Problem:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.add_(by * torch.randn_like(p))
    return problem


@pytest.mark.parametrize("method", ["auto", "newton", "flow", "lbfgs", "newton-krylov"])
def test_every_method_returns_to_the_published_minimum(method: str) -> None:
    found = descend(moved(fixture_problem(), 0.003), method=method, gradient=1e-9)
    assert found.verdict == "minimum"
    assert found.loss == pytest.approx(0.743319384157008, abs=1e-9)
    assert found.loss_before > found.loss
    lowest = found.certificate.lambda_min
    assert lowest.value == pytest.approx(0.0115662, abs=1e-7)
    assert lowest.low < lowest.value < lowest.high < lowest.low + 1e-12
    assert found.path_loss[0] == pytest.approx(found.loss_before, rel=1e-12)
    assert len(found.path_loss) == found.steps + 1
    assert found.kept is not None
    assert found.path_point is not None
    assert found.kept[0] == 0
    assert np.array_equal(found.path_point[-1], found.point)


def test_the_callers_model_is_untouched() -> None:
    problem = moved(fixture_problem(), 0.01)
    before = [p.clone() for p in problem.model.parameters()]
    for method in ("auto", "newton-krylov"):
        descend(problem, method=method)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))
    assert problem.model.training


def test_saddles_are_left_on_the_way_to_a_minimum_and_found_on_the_way_to_a_critical_point() -> None:
    problem, _ = linear_problem(3)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(0)
    assert descend(problem, steps=0).verdict == "saddle"
    minimum = descend(problem, gradient=1e-11)
    assert (minimum.verdict, minimum.certificate.negative) == ("minimum", 0)
    saddle = descend(moved(problem, 0.05), to="critical", gradient=1e-11)
    assert saddle.verdict == "saddle"
    assert saddle.certificate.gradient_inf < 1e-9


@pytest.mark.parametrize("to", ["minimum", "critical"])
def test_a_monkey_saddle_is_called_degenerate(to: str) -> None:
    found = descend(surface(monkey_saddle, torch.zeros(2, dtype=torch.float64)), to=to)
    assert (found.verdict, found.steps) == ("degenerate", 0)


@pytest.mark.parametrize("size", [1, 7])
def test_stacks_give_what_each_gives_alone(size: int) -> None:
    problems = [student(seed) for seed in range(size)]
    together = run_descents(problems, DescendSettings(steps=8))
    for problem, found in zip(problems, together, strict=True):
        assert isinstance(found, Descended)
        alone = descend(problem, steps=8)  # the last bit of a matrix product depends on its place in memory
        assert alone.loss == pytest.approx(found.loss, rel=1e-8)
        assert alone.verdict == found.verdict


def test_problems_of_different_shapes_come_back_in_order() -> None:
    broken = Problem(nn.Linear(2, 1).double(), [], "mse")
    problems = [student(0), student(0, 2), broken, student(1), student(1, 2)]
    done: list[int] = []
    found = run_descents(problems, DescendSettings(steps=5), done=lambda i, _: done.append(i))
    shapes = [len(f.point) if isinstance(f, Descended) else type(f) for f in found]
    assert shapes == [9, 6, ProblemError, 9, 6]
    assert sorted(done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_checkpoint_of_nan_fails_alone(order: tuple[int, int]) -> None:
    bad = student(1)
    with torch.no_grad():
        next(bad.model.parameters())[0] = torch.nan
    pair = [student(0), bad]
    found = run_descents([pair[i] for i in order], DescendSettings(steps=3))
    kinds = [isinstance(f, Descended) for f in found]
    assert kinds == [i == 0 for i in order]


def test_plain_attributes_tell_networks_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, alpha: float) -> None:
            super().__init__()
            self.layer, self.alpha = nn.Linear(2, 1).double(), alpha

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.alpha * self.layer(x)
            return z

    torch.manual_seed(0)
    x, y = load_data("teacher", TEACHER).train
    models = [Scaled(1.0), Scaled(10.0)]
    found = run_descents([Problem(m, (x, y), "mse") for m in models], DescendSettings(steps=0))
    for model, one in zip(models, found, strict=True):
        assert isinstance(one, Descended)
        assert one.loss == pytest.approx(float((model(x) - y).square().mean().detach()), rel=1e-12)


def test_every_member_has_its_own_budget_of_iterations() -> None:
    found = run_descents([student(seed) for seed in range(6)], DescendSettings(steps=25))
    assert {f.steps <= 25 for f in found if isinstance(f, Descended)} == {True}


def test_a_member_that_runs_away_is_stopped_by_its_own_norm() -> None:
    """(1 + w²)^(−1/10) has no minimum, and a gradient that stays far from zero for long."""

    def falling(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return (1 + model(batch[0]).square()).pow(-0.1).sum(), len(batch[0])

    problems = []
    for start in (1.0, 100.0):
        line = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(line.weight, start)
        problems.append(Problem(line, (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1)), falling))
    for found, start in zip(run_descents(problems, DescendSettings(steps=300)), (1.0, 100.0), strict=True):
        assert isinstance(found, Descended)
        assert found.stopped == "runaway"
        assert 1e4 * start < found.certificate.parameter_norm < 1e6 * start


@pytest.mark.parametrize("method", ["auto", "lbfgs", "newton-krylov"])
def test_no_steps_certify_the_point_as_it_is(method: str) -> None:
    problem = student(0)
    found = descend(problem, steps=0, method=method)
    assert (found.steps, found.stopped) == (0, "steps")
    assert found.loss == pytest.approx(found.loss_before, rel=1e-12)
    assert found.path_loss.tolist() == pytest.approx([found.loss], rel=1e-12)
    theta = torch.cat([p.detach().flatten() for p in problem.model.parameters()])
    assert np.array_equal(found.point, theta.numpy())


class Branching(nn.Module):
    """A branch on data, which vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        return z if float(z.detach().abs().sum()) >= 0 else -z


def test_a_network_that_cannot_be_stacked_descends_by_itself() -> None:
    torch.manual_seed(0)
    problem = Problem(Branching().double(), load_data("teacher", TEACHER).train, "mse")
    found = descend(problem)
    assert descend(problem, method="newton-krylov").loss == pytest.approx(found.loss, rel=1e-9)
    assert found.verdict == "minimum"
    assert descend(problem, method="lbfgs").loss == pytest.approx(found.loss, rel=1e-9)


@pytest.mark.parametrize("method", ["lbfgs", "newton-krylov"])
def test_trial_steps_out_of_the_domain_are_taken_back(method: str) -> None:
    """A logarithmic barrier: NaN outside the unit ball, the minimum close to its boundary."""

    def barrier(theta: Tensor) -> Tensor:
        return 5 * theta.sum() - torch.log(1 - theta.square().sum())

    found = descend(surface(barrier, torch.zeros(4, dtype=torch.float64)), method=method, steps=200)
    inside = 1 - float(np.square(found.point).sum())
    assert inside > 0
    assert (5 + 2 * found.point / inside) == pytest.approx([0.0] * 4, abs=1e-5)


def test_sequences_descend_without_gauss_newton() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, 3).double(), torch.randint(2, (6, 4))
    found = descend(Problem(nn.Linear(3, 2).double(), (x, y), "cross_entropy"), steps=40)
    assert found.loss < found.loss_before
    labels = torch.randint(2, (6,), dtype=torch.int32)
    again = descend(Problem(nn.Linear(3, 2).double(), (x[:, 0], labels), "cross_entropy"), steps=40)
    assert again.loss < again.loss_before


def test_in_single_precision_no_loss_is_called_zero() -> None:
    assert descend(student(1), precision="float32", steps=40).certificate.loss_floor == 0


def test_a_short_descent_says_that_it_is_not_there() -> None:
    found = descend(student(0), steps=2)
    assert (found.verdict, found.stopped, found.steps) == ("not stationary", "steps", 2)


@pytest.mark.parametrize(("seed", "steps"), [(0, 4), (1, 5), (2, 8), (3, 20)])
def test_a_descent_cut_short_is_no_channel(seed: int, steps: int) -> None:
    """First steps are large: growth of the norm says nothing yet."""
    found = descend(student(seed), steps=steps, gradient=1e-30)
    assert found.stopped != "steps" or found.verdict != "channel"


def test_cross_entropy_on_separable_data_has_no_minimum() -> None:
    x = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]).double()
    y = torch.tensor([1, 1, 0, 0])
    found = descend(Problem(nn.Linear(1, 2).double(), (x, y), "cross_entropy"), steps=60, gradient=1e-30)
    assert found.certificate.parameter_norm > 10
    assert found.verdict in ("channel", "degenerate")
    assert found.loss < 1e-6


def test_part_of_the_data_is_not_all_of_it() -> None:
    found = descend(student(0), samples=20, steps=3)
    assert (found.certificate.full_data, found.samples) == (False, 20)


@pytest.mark.slow
def test_a_large_network_descends_without_dense_hessians(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 10, dtype=torch.float64)
    y = torch.sin(x.sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(10, 110), nn.Tanh(), nn.Linear(110, 1)).double()
    problem = Problem(model, (x, y), "mse", weight_decay=1e-1)
    dense = descend(problem, steps=400, gradient=1e-9)
    assert dense.stopped == "converged"
    assert dense.verdict in ("minimum", "saddle", "degenerate")
    monkeypatch.setattr("landscape.points.descend.DENSE_CERTIFICATE", 10)
    lanczos = descend(problem, steps=400, gradient=1e-9, max_products=300)
    assert not lanczos.certificate.exact
    within, lowest = lanczos.certificate.lambda_min, dense.certificate.lambda_min.value
    assert within.low <= lowest <= within.high + 1e-9
    assert lanczos.verdict in (dense.verdict, "unresolved")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"to": "saddle"}, "minimum"),
        ({"method": "adam"}, "auto"),
        ({"precision": "bf16"}, "auto"),
        ({"steps": -1}, ""),
        ({"tau": 2.0}, ""),
        ({"method": "newton-mr"}, "--to critical"),
        ({"method": "flow", "to": "critical"}, "newton-mr"),
        ({"methods": "flow"}, "settings are"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        descend(surface(quadratic(torch.ones(2).double()), torch.ones(2).double()), **settings)
    assert word in (caught.value.hint or "")


def test_trajectories_keep_the_ends_and_not_too_much() -> None:
    path = Trajectory()
    for i in range(3000):
        path.add(1.0 / (i + 1), 0.1, 2.0 + i / 3000, torch.tensor([float(i)]))
    path.keep(2999, torch.tensor([2999.0]))
    assert path.kept[0] == 0
    assert path.kept[-1] == 2999
    assert len(path.kept) < 40
    assert path.kept == sorted(set(path.kept))
    assert [float(p[0]) for p in path.points] == path.kept
    assert path.second_half.norm_growth == pytest.approx((2 + 2999 / 3000) / 2.5 - 1, rel=1e-3)
    assert path.second_half.loss_drop == pytest.approx(0.5, rel=1e-3)
    short = Trajectory(path.loss[:20], path.gradient_inf[:20], path.norm[:20])
    assert np.isnan([short.second_half.norm_growth, short.second_half.loss_drop]).all()


# ---- the command --------------------------------------------------------------------------------------------------


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("descend", *arguments, cwd=cwd)


def save(path: Path, seed: int, dtype: torch.dtype = torch.float64) -> Path:
    header = {
        "model": "mlp",
        "model_settings": MODEL,
        "data": "teacher",
        "data_settings": TEACHER,
        "loss": "mse",
        "coordinates": {"width": 3, "seed": seed, "step": 0},
    }
    write_checkpoint(path, build_model("mlp", MODEL, seed).to(dtype), header)
    return path


def test_the_command_writes_checkpoints_that_are_certified(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / f"runs/seed={seed}/final.pt", seed)
    done = run("runs/*/final.pt", "--json", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["coordinates"]["seed"] for r in reports] == [0, 1, 2]
    for report in reports:
        written = read_checkpoint(tmp_path / report["written"])
        assert {t.dtype for t in written.state.values()} == {torch.float64}
        certificate = from_dict(written.header["certificate"])
        assert certificate.verdict == report["verdict"]
        assert written.header["descent"]["from"] == report["sha256"]
        again = descend(load_problem(written).problem, steps=0)
        assert again.certificate.gradient_inf == pytest.approx(
            report["certificate"]["gradient_inf"], rel=1e-9, abs=1e-15
        )
        assert again.loss == pytest.approx(report["loss"]["after"], rel=1e-12)
        stored = read_result(tmp_path / report["result"], "descend")
        assert restore(stored, Descended).verdict == report["verdict"]
    repeated = run("runs/*/final.pt", "--json", "-o", "out", cwd=tmp_path)
    assert repeated.returncode == 0
    assert [json.loads(x) for x in repeated.stdout.splitlines()] == reports
    assert repeated.stderr.count("done already") == 3
    table = run("runs/*/final.pt", "-o", "out", cwd=tmp_path).stdout
    assert "verdicts: " in table
    assert max(map(len, table.splitlines())) <= 80
    other = run("runs/*/final.pt", "-o", "out", "--tau", "1e-4", cwd=tmp_path)
    assert other.returncode == 6
    assert "--force" in other.stderr


def test_what_was_reached_is_analysed_by_the_other_commands(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", 0)
    assert run("a.pt", cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "landscape", "spectrum", "landscape-results/a.descend.pt", "--json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(shown.stdout)
    result = read_result(tmp_path / "landscape-results/a.descend.h5", "descend")
    assert report["exact"]
    assert report["bottom"][0]["value"] == pytest.approx(
        result.arrays["certificate.lambda_min.value"].values.item(), rel=1e-6
    )


def test_a_foreign_checkpoint_keeps_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.ckpt")
    (tmp_path / "problem.py").write_text(
        "import torch\nfrom torch import nn\nfrom landscape import Problem\n"
        "def problem():\n"
        "    x = torch.linspace(-1, 1, 22).reshape(11, 2)\n"
        "    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))\n"
        "    return Problem(model, (x, x.prod(1, keepdim=True)), 'mse')\n"
    )
    done = run("net.ckpt", "--problem", "problem.py:problem", "--steps", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = read_checkpoint(tmp_path / "landscape-results/net.descend.pt")
    assert set(written.state) == set(model.state_dict())
    assert "certificate" in written.header
    refused = run("landscape-results/net.descend.pt", cwd=tmp_path)
    assert refused.returncode == 3
    assert "--problem" in refused.stderr


TIED = """
import torch
from torch import nn

from landscape import Problem


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    x = torch.randn(20, 2)
    return Problem(model, (x, x.flip(1)), "mse")
"""


def test_tied_weights_are_written_under_all_their_names(tmp_path: Path) -> None:
    (tmp_path / "problem.py").write_text(TIED)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    options = ("--problem", "problem.py:problem", "--json")
    done = run("tied.pt", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    again = run(report["written"], *options, "--steps", "0", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["loss"]["before"] == pytest.approx(report["loss"]["after"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a.pt", "--to", "saddle"), 2, "'minimum', 'critical'"),
        (("missing.pt",), 2, "does not exist"),
        (("a.pt", "--steps", "-1"), 2, "at least"),
        (("a.pt", "--problem", "no.py:f"), 2, "no.py"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    save(tmp_path / "a.pt", 0)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "landscape-results").exists()


def test_json_has_a_line_for_every_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", 0)
    (tmp_path / "b.pt").write_bytes(b"no checkpoint")
    done = run("a.pt", "b.pt", "--json", "--steps", "0", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    found = {one["checkpoint"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found["b.pt"]["exit_code"] == 3
    assert found["a.pt"]["verdict"]


def test_a_point_can_be_given(tmp_path: Path) -> None:
    problem = fixture_problem()
    theta: Tensor = torch.cat([p.detach().flatten() for p in problem.model.parameters()])
    found = descend(problem, theta + 0.001)
    assert found.loss == pytest.approx(0.743319384157008, abs=1e-12)
