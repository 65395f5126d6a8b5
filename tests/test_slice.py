"""Slices: closed forms, the self-check that catches a wrong surface, holes, statistics, resumption bit by bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.errors import ProblemError, UsageError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.runtime.pieces import KeptPieces
from landscape.slices import cells as cells_module
from landscape.slices.cell_plan import cut, plan_cells
from landscape.slices.cells import CellPlan, Surface, cell_values, recalibrated
from landscape.slices.frame import Beside, make_frame
from landscape.slices.grid import Cells, Grid, axis_of, barrier, fill, tiles
from landscape.slices.run import finish, run_slice
from landscape.slices.settings import SliceSettings, numbers


class Point(nn.Module):
    """θ alone."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)


def quadratic(n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Problem, Tensor, Tensor]:
    """½ θᵀHθ averaged over samples that scale it, H, and θ."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, n, dtype=torch.float64, generator=generator)
    given = (h + h.T).to(dtype)
    theta = torch.randn(n, dtype=torch.float64, generator=generator).to(dtype)
    weights = torch.linspace(0.5, 1.5, 11, dtype=dtype).reshape(-1, 1)  # mean 1

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        h = given.to(model.theta.dtype)  # type: ignore[operator,arg-type]
        return 0.5 * (model.theta @ (h @ model.theta)) * batch.sum(), len(batch)  # type: ignore[operator,union-attr]

    return Problem(Point(theta.clone()), [weights[:4], weights[4:8], weights[8:]], loss), given, theta


def network(activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64, n: int = 53) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).to(dtype)
    return Problem(model, (torch.randn(n, 4, dtype=dtype), torch.randint(3, (n,))), "cross_entropy")


def direct(problem: Problem, theta: Tensor) -> float:
    """L(θ) by the most naive way."""
    model = copy.deepcopy(problem.model)
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    x, y = problem.data  # type: ignore[misc]
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [(7,), (5, 4), (4, 7)])
def test_the_slice_of_a_quadratic_is_a_quadratic(points: tuple[int, ...], dtype: torch.dtype) -> None:
    problem, h, theta = quadratic(dtype=dtype)
    found = landscape.slice(problem, dirs="random:norm=none,ignore=none", points=points, span=(1.3,), precision="auto")
    assert found.direction_vector is not None
    d = torch.as_tensor(found.direction_vector).double()
    y, x = np.meshgrid(found.y, found.x, indexing="ij")
    where = np.stack([x, y][: len(points)], -1)
    at = theta.double() + torch.as_tensor(where) @ d
    exact = 0.5 * ((at @ h.double()) * at).sum(-1).numpy()
    scale = float(np.abs(exact).max())
    np.testing.assert_allclose(found.loss, exact, rtol=0, atol=200 * torch.finfo(dtype).eps * scale)
    assert found.done.all()
    assert found.loss.shape == (1 if len(points) == 1 else points[1], points[0])
    np.testing.assert_allclose(found.slope, (d @ (h.double() @ theta.double())).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.curvature, ((d @ h.double()) * d).sum(1).numpy(), rtol=1e-5, atol=1e-5)
    assert found.faults == []
    assert math.isnan(found.cosine) == (len(points) == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 7, 16, 53, 100, None])
def test_the_centre_is_the_loss_and_chunks_change_rounding_only(chunk: int | None, dtype: torch.dtype) -> None:
    problem = network(dtype=dtype)
    found = landscape.slice(problem, points=(5, 5), batch_size=chunk)
    eps = torch.finfo(dtype).eps
    assert found.loss[2, 2] == found.loss_centre
    assert found.loss_centre == pytest.approx(build_objective(problem).value(), rel=50 * eps)
    whole = landscape.slice(problem, points=(5, 5), batch_size=53)
    np.testing.assert_allclose(found.loss, whole.loss, rtol=100 * eps)
    assert found.faults == []


def test_an_even_grid_has_its_centre_beside_the_cells() -> None:
    problem = network()
    found = landscape.slice(problem, points=(4, 6))
    assert 0.0 not in found.x
    assert found.loss_centre == pytest.approx(build_objective(problem).value(), rel=1e-13)


def test_cells_are_where_the_axes_say() -> None:
    """No transposition, no shift: every cell against a loss evaluated from scratch."""
    problem = network()
    found = landscape.slice(problem, points=(5, 3), span=(0.7, 0.2))
    assert found.direction_vector is not None
    d = torch.as_tensor(found.direction_vector)
    theta = build_objective(problem).point()
    assert found.x[[0, -1]].tolist() == [-0.7, 0.7]
    assert found.y[[0, -1]].tolist() == [-0.2, 0.2]
    for i, y in enumerate(found.y):
        for j, x in enumerate(found.x):
            assert found.loss[i, j] == pytest.approx(direct(problem, theta + x * d[0] + y * d[1]), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_stacked_and_in_place_agree(dtype: torch.dtype, weight_decay: float) -> None:
    base = network(dtype=dtype)
    problem = Problem(base.model, base.data, base.loss, weight_decay)
    objective = build_objective(problem)
    theta = objective.point()
    directions = torch.randn(2, len(theta), dtype=dtype, generator=torch.Generator().manual_seed(1))
    surface = Surface(objective, theta, directions, ("loss", "accuracy"))
    where = [[0.1 * i, -0.05 * i] for i in range(13)]
    one = cell_values(cut(surface, CellPlan("in place", 20, 1)), CellPlan("in place", 20, 1), where)
    many = cell_values(cut(surface, CellPlan("stacked", 17, 13)), CellPlan("stacked", 17, 13), where)
    torch.testing.assert_close(one, many, rtol=100 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(objective.point(), theta)
    assert float(one[0, 0]) == pytest.approx(objective.value(), rel=100 * torch.finfo(dtype).eps)


def test_channels_last_are_the_same_cells() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 2),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    problem = Problem(model, (torch.randn(17, 3, 6, 6).double(), torch.randint(3, (17,))), "cross_entropy", 0.1)
    objective = build_objective(problem)
    theta = objective.point()
    directions = torch.randn(2, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    surface = Surface(objective, theta, directions, ("loss", "gradient_norm", "lambda_max"))
    where = [[0.0, 0.0], [0.1, -0.05], [-0.2, 0.3]]
    plans = [CellPlan("in place", 7, 1, channels_last=last, curvature=("kept", 7)) for last in (False, True)]
    one, other = (cell_values(cut(surface, plan), plan, where) for plan in plans)
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=1e-12, atol=0)
    torch.testing.assert_close(one[:, 2], other[:, 2], rtol=1e-4, atol=0)
    assert torch.equal(objective.point(), theta)
    found = landscape.slice(problem, points=(15, 15))
    assert found.faults == []


def test_a_network_that_wants_its_layout_is_left_with_it() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.last = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.last(self.convolution(x).view(len(x), -1))
            return z

    torch.manual_seed(0)
    problem = Problem(Viewing(), (torch.randn(40, 2, 4, 4), torch.randint(2, (40,))), "cross_entropy")
    found = landscape.slice(problem, points=(15, 15))
    assert found.spent is not None
    assert not found.spent.plan["channels_last"]
    assert found.faults == []


def test_metrics_are_those_of_the_moved_network() -> None:
    problem = network()
    found = landscape.slice(
        problem, points=(3, 3), metrics=("accuracy", "gradient_norm", "lambda_max", "lambda_min"), span=(0.4,)
    )
    assert found.direction_vector is not None
    d, theta = torch.as_tensor(found.direction_vector), build_objective(problem).point()
    x, y = problem.data  # type: ignore[misc]
    for i in range(3):
        for j in range(3):
            at = theta + found.x[j] * d[0] + found.y[i] * d[1]
            moved = copy.deepcopy(problem.model)
            torch.nn.utils.vector_to_parameters(at, moved.parameters())
            objective = build_objective(Problem(moved, problem.data, "cross_entropy"))
            assert found.accuracy is not None
            assert found.accuracy[i, j] == float((moved(x).argmax(1) == y).double().mean())
            assert found.gradient_norm is not None
            assert found.gradient_norm[i, j] == pytest.approx(
                float(objective.value_and_gradient()[1].norm()), rel=1e-10
            )
            exact = landscape.spectrum(Problem(moved, problem.data, "cross_entropy"), top=1, bottom=1, density=False)
            for name, value in (("lambda_max", exact.top_value[0]), ("lambda_min", exact.bottom_value[0])):
                measured, residual = getattr(found, name)[i, j], getattr(found, f"{name}_residual")[i, j]
                assert abs(measured - value) <= residual + 1e-9
                assert residual <= 1.1e-2 * abs(value) + 1e-5 * exact.top_value[0]


def labelled(loss: str, targets: Tensor, outputs: int) -> Problem:
    torch.manual_seed(0)
    return Problem(nn.Linear(4, outputs).double(), (torch.randn(len(targets), 4).double(), targets), loss)


@pytest.mark.parametrize(
    "problem",
    [
        labelled("mse", F.one_hot(torch.arange(12) % 3, 3).double(), 3),
        labelled("cross_entropy", F.one_hot(torch.arange(12) % 3, 3).double(), 3),
        labelled("cross_entropy", torch.tensor([0, 1, 2, -100] * 3), 3),
        labelled("bce", (torch.arange(12) % 2).double().reshape(-1, 1), 1),
        labelled("bce", (torch.arange(24).reshape(12, 2) % 3 == 0).double(), 2),
    ],
    ids=["one-hot mse", "one-hot", "ignored", "binary", "labels"],
)
def test_accuracy_of_every_kind_of_target(problem: Problem) -> None:
    found = landscape.slice(problem, points=(3,), metrics=("accuracy",))
    x, y = problem.data  # type: ignore[misc]
    z = problem.model(x)
    if problem.loss == "bce":
        wanted = ((z > 0) == (y > 0.5)).double().mean()
    else:
        classes = y.argmax(1) if y.is_floating_point() else y
        kept = classes != -100
        wanted = (z.argmax(1) == classes)[kept].double().mean()
    assert found.accuracy is not None
    assert found.accuracy[0, 1] == pytest.approx(float(wanted))


def test_accuracy_of_a_regression_is_refused() -> None:
    with pytest.raises(ProblemError, match="classes"):
        landscape.slice(labelled("mse", torch.randn(12, 1).double(), 1), points=(3,), metrics=("accuracy",))


def normalised(n: int = 40) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(n, 4).double() * 2 + 1
    for _ in range(5):
        model(x)
    return Problem(model.eval(), (x, torch.randint(3, (n,))), "cross_entropy")


def test_statistics_are_never_perturbed_and_re_estimated_on_request() -> None:
    problem = normalised()
    fixed = landscape.slice(problem, points=(5,))
    moving = landscape.slice(problem, points=(5,), batchnorm="recalibrate")
    assert fixed.direction_vector is not None
    d, theta = torch.as_tensor(fixed.direction_vector)[0], build_objective(problem).point()
    x, y = problem.data  # type: ignore[misc]
    for j, t in enumerate(fixed.x):
        model = copy.deepcopy(problem.model)
        torch.nn.utils.vector_to_parameters(theta + t * d, model.parameters())
        with torch.no_grad():
            assert fixed.loss[0, j] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-12)
            torch.optim.swa_utils.update_bn([x], model)  # all 40 samples are one step
            model.eval()
            assert moving.loss[0, j] == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-12)
    assert fixed.faults == moving.faults == []
    assert abs(moving.loss_centre - moving.loss_reference) <= moving.centre_tolerance
    assert not np.allclose(fixed.loss, moving.loss)
    assert "normal" not in str(fixed.tensor)


def test_recalibration_leaves_the_model_as_it_was() -> None:
    objective = build_objective(normalised())
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    momenta = [m.momentum for m in objective.model.modules() if isinstance(m, nn.BatchNorm1d)]
    with recalibrated(objective):
        assert not torch.equal(objective.model.state_dict()["1.running_var"], before["1.running_var"])
    assert all(torch.equal(v, before[k]) for k, v in objective.model.state_dict().items())
    assert [m.momentum for m in objective.model.modules() if isinstance(m, nn.BatchNorm1d)] == momenta
    assert not any(m.training for m in objective.model.modules())


def test_the_callers_model_is_left_alone() -> None:
    problem = normalised()
    problem.model.train()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    landscape.slice(problem, points=(3, 3), metrics=("gradient_norm",))
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert problem.model.training
    assert not any(p.grad is not None for p in problem.model.parameters())


def test_nan_and_inf_are_values() -> None:
    x = torch.linspace(1, 2, 9).double().reshape(-1, 1)

    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return torch.log(model(batch)).sum(), len(batch)

    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    found = landscape.slice(Problem(model, [x], loss), dirs="random:norm=none", points=(9,), span=(4.0,))
    assert np.isnan(found.loss).any()
    assert found.done.all()
    assert np.isfinite(found.loss[0, 4])
    assert found.faults == []


def test_quantiles_of_planes() -> None:
    problem = network()
    found = landscape.slice(problem, points=(5, 3), repeat=4)
    singles = [landscape.slice(problem, points=(5, 3), repeat=k + 1) for k in range(1, 4)]
    assert found.plane_loss is not None
    assert found.quantile is not None
    assert found.loss_quantile is not None
    assert found.plane_loss.shape == (4, 3, 5)
    assert found.loss_quantile.shape == (len(found.quantile), 3, 5)
    for single in singles:
        assert single.plane_loss is not None
        np.testing.assert_array_equal(single.plane_loss, found.plane_loss[: len(single.plane_loss)])
    np.testing.assert_array_equal(found.loss, np.sort(found.plane_loss, 0)[1])
    assert (np.diff(found.loss_quantile, axis=0) >= 0).all()
    assert len({tuple(p.ravel()) for p in found.plane_loss}) == 4
    assert (found.plane_loss[:, 1, 2] == found.loss_centre).all()


@pytest.mark.parametrize("fault", ["scale", "offset", "swapped"])
def test_the_self_check_catches_a_wrong_surface(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cells_module.Moves.to

    def wrong(moves: cells_module.Moves, point: Any) -> None:
        if fault == "scale":
            point = tuple(1.001 * t for t in point)
        if fault == "swapped":
            point = tuple(reversed(point))
        right(moves, point)
        if fault == "offset":
            moves._flat.add_(1e-4)

    monkeypatch.setattr(cells_module.Moves, "to", wrong)
    found = landscape.slice(network(), points=(3, 3), batch_size=64)
    assert found.faults
    text = {"scale": "slope", "offset": "centre", "swapped": "slope"}[fault]
    assert any(text in f for f in found.faults)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6), st.sampled_from(["filter", "layer", "global", "none"]), st.sampled_from([1e-3, 1.0, 30.0])
)
def test_the_self_check_raises_no_false_alarm(seed: int, norm: str, scale: float) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    problem = Problem(model, (torch.randn(19, 3).double(), torch.randint(2, (19,))), "cross_entropy")
    found = landscape.slice(problem, dirs=f"random:norm={norm}", points=(3, 3), seed=seed)
    assert found.faults == []


def test_a_kinked_network_is_checked_by_its_slope() -> None:
    found = landscape.slice(network(nn.ReLU), points=(3, 3))
    assert np.isinf(found.curvature_tolerance).all()
    assert np.isfinite(found.slope_tolerance).all()
    assert (found.slope_tolerance < 1e-2 * np.abs(found.slope).max()).all()
    assert found.faults == []
    assert np.isfinite(landscape.slice(network(nn.GELU), points=(3, 3)).curvature_tolerance).all()


@pytest.mark.parametrize("seed", range(6))
def test_kinks_raise_no_false_alarm(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 5)
    )
    problem = Problem(model, (torch.randn(300, 1, 8, 8), torch.randint(5, (300,))), "cross_entropy")
    assert landscape.slice(problem, points=(3, 3), seed=seed).faults == []


def test_one_number_or_word_is_enough() -> None:
    found = landscape.slice(network(), points=5, span=0.5, metrics="accuracy")
    assert found.loss.shape == (1, 5)
    assert found.accuracy is not None


def test_a_plan_that_a_loss_cannot_follow_is_searched_for_anew() -> None:
    plain = network(dtype=torch.float32, n=200)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        z = model(batch[0])
        return F.cross_entropy(z, batch[1], reduction="sum") * (1 if float(z.mean()) < 1e9 else 2), len(z)

    objective = build_objective(Problem(plain.model, [plain.data], loss))
    surface = Surface(objective, objective.point(), torch.randn(2, objective.layout.total))
    kept: dict[str, Any] = {}
    plan_cells(surface, 1000, wisdom=KeptPieces({}, kept.update))
    for wrong in (CellPlan("stacked", 200, 16).as_dict(), {"strategy": "in place"}, 7):
        found = plan_cells(surface, 1000, wisdom=KeptPieces(dict.fromkeys(kept, wrong), kept.update))
        assert found.strategy == "in place"


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    with pytest.raises(ProblemError, match="without running statistics"):
        landscape.slice(Problem(model, (torch.randn(9, 4), torch.randint(2, (9,))), "cross_entropy"), points=3)


@pytest.mark.parametrize("only", [False, True])
def test_a_loss_in_its_own_arithmetic(only: bool) -> None:
    """Constants in float32 come along; a kernel that is for float32 alone does not."""
    weights = torch.tensor([1.0, 2.0, 3.0])

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        z = model(batch[0])
        if only and z.dtype != torch.float32:
            raise RuntimeError("kernel: float32 only")
        return F.cross_entropy(z, batch[1], weight=weights, reduction="sum"), len(batch[1])

    plain = network(dtype=torch.float32)
    found = landscape.slice(Problem(plain.model, [plain.data], loss), points=(3, 3))
    assert found.faults == []
    assert found.spent is not None
    assert any("own arithmetic" in note for note in found.spent.notes) == only
    assert (found.slope_tolerance < 0.1 * np.abs(found.slope).max()).all()


def test_other_checkpoints_are_projected_and_their_true_losses_told() -> None:
    problem = network()
    objective = build_objective(problem)
    theta = objective.point()
    generator = torch.Generator().manual_seed(5)
    others = {}
    for name in ("a", "b", "c"):
        moved = copy.deepcopy(problem.model)
        at = theta + 0.3 * torch.randn(len(theta), dtype=torch.float64, generator=generator)
        torch.nn.utils.vector_to_parameters(at, moved.parameters())
        others[name] = (Problem(moved, problem.data, "cross_entropy"), at)
    beside = Beside(trajectory=[(name, p) for name, (p, _) in others.items()])
    found = landscape.slice(problem, dirs="pca", points=(3, 3), beside=beside)
    assert found.direction_vector is not None
    assert found.mark is not None
    d = torch.as_tensor(found.direction_vector)
    for i, (_, at) in enumerate(others.values()):
        assert found.mark_x is not None
        assert found.mark_y is not None
        assert found.mark_distance is not None
        assert found.mark_loss is not None
        assert found.mark_surface_loss is not None
        there = theta + found.mark_x[i] * d[0] + found.mark_y[i] * d[1]
        assert found.mark_distance[i] == pytest.approx(float((at - there).norm()), rel=1e-9)
        assert float(((at - there) @ d.T).abs().max()) < 1e-9
        assert found.mark_loss[i] == pytest.approx(direct(problem, at), rel=1e-12)
        assert found.mark_surface_loss[i] == pytest.approx(direct(problem, there), rel=1e-12)
    assert found.variance_explained is not None
    assert 0 < found.variance_explained.sum() < 1


def test_a_line_between_checkpoints_and_its_barrier() -> None:
    problem = network()
    other = copy.deepcopy(problem.model)
    with torch.no_grad():
        for p in other.parameters():
            p.neg_()
    beside = Beside(points={"other": Problem(other, problem.data, "cross_entropy")})
    found = landscape.slice(problem, dirs="between:to=other", points=(21,), beside=beside, span=(1.0,))
    ends = found.loss_centre, direct(problem, -build_objective(problem).point())
    inside = found.x >= 0
    above = found.loss[0][inside] - ((1 - found.x[inside]) * ends[0] + found.x[inside] * ends[1])
    assert found.barrier == pytest.approx(max(0.0, above.max()), abs=1e-12)
    assert found.mark_loss is not None
    assert found.mark_loss[0] == pytest.approx(ends[1], rel=1e-12)
    assert found.loss[0, -1] == pytest.approx(ends[1], rel=1e-12)


def test_the_barrier_of_a_known_line() -> None:
    grid = Grid(axis_of(-0.5, 1.5, 41), np.zeros(1), True)
    height, place = barrier(grid, np.where(np.isclose(grid.x, 0.5), 3.0, grid.x), (0.0, 1.0))
    assert (height, place) == (2.5, 0.5)
    assert barrier(grid, grid.x - grid.x * (1 - grid.x), (0.0, 1.0))[0] == 0.0


# ---- cells in any order ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))
def test_every_cell_belongs_to_one_launch_of_one_share(nx: int, ny: int, planes: int, points: int, shares: int) -> None:
    grid = Grid(np.arange(nx), np.arange(ny), ny == 1, planes)
    plan = CellPlan("stacked", 1, points)
    found = [c for i in range(shares) for tile in tiles(grid, plan, (i, shares)) for c in tile]
    assert sorted(found) == list(range(grid.cells))
    whole = {tuple(t) for t in tiles(grid, plan)}
    assert whole == {tuple(t) for i in range(shares) for t in tiles(grid, plan, (i, shares))}


@pytest.mark.parametrize("plan", [CellPlan("in place", 20, 1), CellPlan("stacked", 53, 4)], ids=lambda p: p.strategy)
def test_an_interrupted_slice_goes_on_to_the_same_bits(plan: CellPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.slices.frame.plan_cells", lambda *a, **k: plan)
    monkeypatch.setattr(KeptPieces, "due", lambda self: True)
    problem, wanted = network(dtype=torch.float32), SliceSettings(points=(5, 4), repeat=2, metrics=("accuracy",))
    whole = run_slice(problem, wanted, Beside())
    kept: dict[str, Any] = {}
    puts = 0

    class StoppedError(Exception):
        pass

    def save(pieces: dict[str, Any]) -> None:
        nonlocal puts
        puts += 1
        kept.clear()
        kept.update(copy.deepcopy(pieces))
        if puts % 5 == 0:
            raise StoppedError

    stops = 0
    while True:
        try:
            found = run_slice(problem, wanted, Beside(), pieces=KeptPieces(copy.deepcopy(kept), save))
            break
        except StoppedError:
            stops += 1
            kept["cells"]["values"][~kept["cells"]["done"]] = -1.0  # what is not done is not used
            monkeypatch.setattr("landscape.slices.frame.plan_cells", lambda *a, **k: pytest.fail("planned again"))
    assert stops >= 2
    assert found.plane_loss is not None
    assert whole.plane_loss is not None
    assert found.plane_loss.tobytes() == whole.plane_loss.tobytes()
    assert found.accuracy is not None
    assert whole.accuracy is not None
    assert found.accuracy.tobytes() == whole.accuracy.tobytes()


def test_shares_add_up_to_the_same_bits() -> None:
    problem, wanted = network(dtype=torch.float32), SliceSettings(points=(6, 5), batch_size=20)
    frame = make_frame(problem, wanted, Beside(), lambda *a: None)
    whole = Cells.empty(frame.grid, frame.surface.metrics)
    fill(whole, frame.grid, frame.plan, frame.surface_of, lambda done: None)
    together = Cells.empty(frame.grid, frame.surface.metrics)
    for i in range(3):
        part = Cells.empty(frame.grid, frame.surface.metrics)
        fill(part, frame.grid, frame.plan, frame.surface_of, lambda done: None, (i, 3))
        assert not part.done.all()
        together.take(part)
    assert torch.equal(together.values, whole.values)
    half = Cells.empty(frame.grid, frame.surface.metrics)
    half.values[:7], half.done[:7] = whole.values[:7], True
    partial = finish(frame, half, 1.0)
    assert partial.done.sum() == 7
    assert np.isnan(partial.loss[~partial.done]).all()


def test_what_timing_chose_is_remembered() -> None:
    objective = build_objective(network(dtype=torch.float32, n=200))
    surface = Surface(objective, objective.point(), torch.randn(2, objective.layout.total))
    kept: dict[str, Any] = {}
    chosen = plan_cells(surface, 1000, wisdom=KeptPieces({}, kept.update))
    assert math.isfinite(chosen.seconds)
    assert plan_cells(surface, 1000, wisdom=KeptPieces(kept, kept.update)) == chosen
    assert math.isnan(plan_cells(surface, 10).seconds)  # too few cells to be worth a search
    assert plan_cells(surface, 1000, chunk=7).chunk == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"span": (0.0,)}, "--span 0"),
        ({"span": (-1.0,)}, "--span -1"),
        ({"span": (math.nan,)}, "--span nan"),
        ({"points": (1,)}, "no grid"),
        ({"points": (5, 1)}, "no grid"),
        ({"points": (5, 5, 5)}, "no grid"),
        ({"points": (5,), "span": (1.0, 2.0)}, "two axes"),
        ({"repeat": 3, "dirs": "gradient"}, "always the same"),
        ({"repeat": 0}, "--repeat is 0"),
        ({"metrics": ("sharpness",)}, "no metric 'sharpness'"),
        ({"batchnorm": "train"}, "batchnorm is 'train'"),
        ({"precision": "bf16"}, "precision is 'bf16'"),
        ({"dirs": "up"}, "no kind of direction"),
        ({"colour": "red"}, "no setting 'colour'"),
        ({"seed": -1}, "--seed is -1"),
        ({"points": (10**6, 10**6)}, "more than"),
        ({"span": 1e300}, "--span 1e"),
        ({"dirs": "gradient", "span": (1.0, 2.0)}, "is a line"),
    ],
)
def test_settings_that_make_no_slice(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        landscape.slice(network(), **options)


def test_grids_as_they_are_typed() -> None:
    assert numbers("41x21", "--points", int) == (41, 21)
    assert numbers("0.5", "--span", float) == (0.5,)
    assert numbers(None, "--span", float) is None
    for text in ("4x", "a", "1.5"):
        with pytest.raises(UsageError, match="--points"):
            numbers(text, "--points", int)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_same_surface_on_a_gpu() -> None:
    problem = network(dtype=torch.float64)
    here = landscape.slice(problem, points=(21, 21), device="cpu")
    there = landscape.slice(problem, points=(21, 21), device="cuda")
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-10)
    assert there.faults == []
