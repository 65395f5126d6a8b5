"""Sign ensembles, critical points and the bound at interpolation, against formulas that need no Hessian."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.checkpoints.source import Source
from landscape.claims.negative_eigenvalues import experiments as negative_eigenvalues
from landscape.claims.negative_eigenvalues.critical_points import GRADIENT_SQUARE, Starts, critical_points, starts
from landscape.claims.negative_eigenvalues.interpolation_bounds import NORMS, counts, interpolation, output_curvature
from landscape.claims.negative_eigenvalues.signs import sign_ensemble
from landscape.claims.read_runs import read_runs
from landscape.claims.runs import Means, populations
from landscape.errors import NumericalError, ProblemError, UsageError
from landscape.problem.problem import Problem
from landscape.runtime.pieces import FORGETFUL
from landscape.stack.build import build_stack
from landscape.stack.stack import Stack
from surfaces import linear_network, quadratic, surfaces

N = 17


def networks(members: int = 4, outputs: int = 2, width: int = 3, decay: float = 0.0) -> tuple[Stack, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(N, 3).double(), torch.randn(N, outputs).double()
    made = [nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs)).double() for _ in range(members)]
    return build_stack([Problem(m, (x, y), "mse", decay) for m in made])


def all_from(theta: Tensor) -> Starts:
    return Starts(theta, torch.arange(len(theta)), ("here",) * len(theta))


# ---- sign ensembles --------------------------------------------------------------------------------------------------


def test_counts_are_those_of_dense_spectra() -> None:
    stack, theta = networks()
    found = sign_ensemble(stack, theta)
    value, gradient = stack.values_and_gradients(theta)
    wanted = torch.linalg.eigvalsh(stack.hessians(theta)).numpy()
    assert np.allclose(found.eigenvalues, wanted, rtol=0, atol=1e-12)
    for row, negative, zero in zip(wanted, found.negative, found.zero, strict=True):
        floor = found.tau * max(abs(row))
        assert negative == sum(v < -floor for v in row)
        assert zero == sum(abs(v) <= floor for v in row)
    assert np.array_equal(found.loss, value)
    assert np.allclose(found.gradient_norm, gradient.norm(dim=1), rtol=1e-14)


def test_signs_of_a_planted_spectrum_and_round_off_that_is_none() -> None:
    planted = torch.tensor([-2.0, -1e-3, 0.0, 0.0, -1e-12, 1e-9, 0.3, 5.0], dtype=torch.float64)
    stack, theta = surfaces(quadratic(planted), torch.randn(3, 8, dtype=torch.float64))
    found = sign_ensemble(stack.of(torch.zeros(3, dtype=torch.long)), theta)
    assert found.negative.tolist() == [2, 2, 2]
    assert found.zero.tolist() == [4, 4, 4]
    assert sign_ensemble(stack, theta[:1], tau=1e-3).negative.tolist() == [1]


def test_signs_need_float64_and_finite_numbers() -> None:
    stack, theta = networks()
    theta[2, 0] = torch.nan
    with pytest.raises(NumericalError, match="number 2 first"):
        sign_ensemble(stack, theta)
    data = (torch.zeros(3, 2), torch.zeros(3, 1))
    single = build_stack([Problem(nn.Linear(2, 1), data, "mse")], dtype=torch.float32)
    with pytest.raises(UsageError, match="float64"):
        sign_ensemble(*single)


# ---- critical points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 4])
def test_the_index_at_critical_points_of_linear_networks(width: int) -> None:
    """index = #{i∈S, j∉S: s_j > s_i} + (h − |S|)·#{j∉S: s_j > 0} (Baldi & Hornik 1989), found from beside them."""
    torch.manual_seed(0)
    s = [3.0, 2.0, 1.2, 0.7]
    x = torch.linalg.qr(torch.randn(40, 5).double())[0] * math.sqrt(40)
    u, v = torch.linalg.qr(torch.randn(4, 4).double())[0], torch.linalg.qr(torch.randn(5, 4).double())[0]
    y = x @ (v * torch.tensor(s, dtype=torch.float64)) @ u.T
    stack, _ = build_stack([Problem(linear_network(width, 2, 5, 4), (x, y), "mse")])
    subsets = [(), (0,), (1,), (3,), (0, 1), (1, 3), (0, 1, 2), (2, 3)]
    points = []
    for chosen in subsets:
        first, second = torch.zeros(width, 5).double(), torch.zeros(4, width).double()
        for k, j in enumerate(chosen):
            first[k], second[:, k] = math.sqrt(s[j]) * v[:, j], math.sqrt(s[j]) * u[:, j]
        points.append(torch.cat([first.flatten(), second.flatten()]))
    begin = torch.stack(points) + 0.01 * torch.randn(len(points), stack.parameters).double()
    many = stack.of(torch.zeros(len(points), dtype=torch.long))
    found = critical_points(many, all_from(begin))
    assert found.true.all()
    assert (found.gradient_square < GRADIENT_SQUARE).all()
    for k, chosen in enumerate(subsets):
        rest = [j for j in range(4) if j not in chosen]
        index = sum(s[j] > s[i] for i in chosen for j in rest) + (width - len(chosen)) * len(rest)
        assert found.negative[k] == index
        assert found.index[k] == index / stack.parameters
        assert found.loss[k] == pytest.approx(sum(s[j] ** 2 for j in rest), rel=1e-9, abs=1e-12)
        assert found.verdict[k] == ("saddle" if index else "minimum")


def test_the_saddle_of_a_quadratic_is_one_point_from_everywhere() -> None:
    planted = torch.tensor([-3.0, -1.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    centre = torch.arange(5).double()
    stack, theta = surfaces(quadratic(planted, centre=centre), torch.randn(6, 5, dtype=torch.float64))
    found = critical_points(stack.of(torch.zeros(6, dtype=torch.long)), all_from(theta))
    assert found.true.all()
    assert np.allclose(found.theta, centre.numpy(), atol=1e-8)
    assert found.index.tolist() == [0.4] * 6
    assert found.distinct.sum() == 1
    assert found.shares == {"true": 1.0, "degenerate": 0.0, "distinct": pytest.approx(1 / 6)}


def test_points_where_newton_ends_are_no_critical_points_if_they_are_gradient_flat() -> None:
    """L = x³/3 + x + y²/2 has no critical point; ‖∇L‖² is least at the origin, where H∇L = 0 (Frye et al. 2021)."""
    stack, theta = surfaces(lambda t: t[0] ** 3 / 3 + t[0] + t[1] ** 2 / 2, torch.tensor([[0.3, 0.2]]).double())
    found = critical_points(stack, all_from(theta))
    assert found.verdict == found.reason == ("gradient-flat",)
    assert found.gradient_square[0] == pytest.approx(1, abs=1e-6)
    assert found.flatness[0] < 1e-3
    assert not found.true.any()
    assert not found.distinct.any()
    assert found.shares["gradient-flat"] == 1


def test_a_search_cut_short_says_so() -> None:
    stack, theta = networks(2, outputs=1)
    found = critical_points(stack, all_from(theta), steps=1)
    assert found.reason == ("not stationary: steps",) * 2


def test_starts_cover_scales_and_descents() -> None:
    stack, theta = networks(3, outputs=1)
    begin = starts(stack, theta, scales=(0.5, 2.0), heights=2, steps=20)
    assert torch.equal(begin.theta[:6], torch.cat([0.5 * theta, 2 * theta]))
    assert begin.rows.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]
    assert begin.kind == ("initial weights × 0.5",) * 3 + ("initial weights × 2",) * 3 + ("along a descent",) * 6
    loss = stack.of(begin.rows).values(begin.theta)
    down = loss[6:].reshape(3, 2)
    assert bool((down[:, 0] > down[:, 1]).all())
    assert bool((down[:, 0] < stack.values(theta)).all())


# ---- interpolation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_bound_holds_at_random_networks(outputs: int, decay: float, norm: str) -> None:
    stack, theta = networks(6, outputs, decay=decay)
    for scale in (0.3, 1.0, 4.0):
        found = interpolation(stack, scale * theta, norm=norm)
        assert found.holds.all()
        assert (found.lambda_min < 0).any()
        assert found.residuals == N * outputs


@pytest.mark.parametrize("outputs", [1, 3])
def test_output_curvature_is_that_of_every_output_alone(outputs: int) -> None:
    stack, theta = networks(2, outputs)
    squares = {name: torch.zeros(2).double() for name in NORMS}
    for s in range(2):
        for x in stack.batches[0][0]:
            for c in range(outputs):

                def output(flat: Tensor, x: Tensor = x, c: int = c) -> Tensor:
                    named = dict(zip(stack.layout.names, stack.layout.unflatten(flat), strict=True))
                    return torch.func.functional_call(stack.model, named, (x[None],))[0, c]  # type: ignore[no-any-return]

                h = torch.autograd.functional.hessian(output, theta[s])
                squares["spectral"][s] += torch.linalg.matrix_norm(h, 2) ** 2
                squares["frobenius"][s] += h.square().sum()
    for name, square in squares.items():
        assert torch.allclose(output_curvature(stack, theta, norm=name), (square / N).sqrt(), rtol=1e-10)
    assert bool((squares["frobenius"] > squares["spectral"]).all())


class Parabola(nn.Module):
    """Every output is ½ c θ²."""

    def __init__(self, outputs: int, c: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.outputs, self.c = outputs, c

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.c * self.theta**2).expand(len(x), self.outputs)


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_bound_is_tight_where_all_residuals_and_curvatures_agree(outputs: int, samples: int) -> None:
    """At θ = 0: H = 2 Σ_c (−y) c and 2 √(C y²) √(C c²) = 2 C |y c|; a mean over outputs would be off by √C."""
    data = (torch.zeros(samples, 1).double(), torch.full((samples, outputs), 0.7, dtype=torch.float64))
    found = interpolation(*build_stack([Problem(Parabola(outputs, 3.0), data, "mse")]))
    assert found.lambda_min[0] == pytest.approx(-2 * outputs * 0.7 * 3, rel=1e-14)
    assert found.bound[0] == pytest.approx(found.lambda_min[0], rel=1e-14)
    assert found.negative_mass.tolist() == [1.0]
    assert found.holds.all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_interpolation_leaves_zeros_and_nothing_negative(outputs: int) -> None:
    """An output layer that fits 6 samples exactly through 12 tanh neurons: L = 0, rank H ≤ 6 C."""
    torch.manual_seed(1)
    x, y = torch.randn(6, 3).double(), torch.randn(6, outputs).double()
    made = []
    for _ in range(3):
        net = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, outputs, bias=False)).double()
        with torch.no_grad():
            net[2].weight.copy_(torch.linalg.lstsq(net[:2](x), y).solution.T)  # type: ignore[operator]
        made.append(Problem(net, (x, y), "mse"))
    found = interpolation(*build_stack(made))
    assert found.interpolates.all()
    assert found.holds.all()
    assert (found.zeros >= found.parameters - found.residuals).all()
    assert found.negative.tolist() == [0, 0, 0]
    assert (found.negative_mass == 0).all()


def test_the_bound_is_for_squared_errors() -> None:
    data = (torch.randn(5, 2).double(), torch.rand(5, 1).double())
    with pytest.raises(ProblemError, match="mse"):
        interpolation(*build_stack([Problem(nn.Linear(2, 1).double(), data, "bce")]))
    with pytest.raises(ProblemError, match="nuclear"):
        interpolation(*networks(1), norm="nuclear")


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_counts_over_training_are_those_of_dense_spectra(loss: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(N, 3).double()
    y = torch.randn(N, 2).double() if loss == "mse" else torch.randint(2, (N,))
    made = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(3)]
    stack, theta = build_stack([Problem(m, (x, y), loss) for m in made])
    found = counts(stack, theta)
    wanted = torch.linalg.eigvalsh(stack.hessians(theta)).numpy()
    assert found.parameters == wanted.shape[1]
    for i, row in enumerate(wanted):
        floor = 1e-6 * abs(row).max()
        assert found.negative[i] == (row < -floor).sum()
        assert found.zeros[i] == (abs(row) <= floor).sum()
        assert found.negative_mass[i] == pytest.approx(abs(row[row < -floor]).sum() / abs(row).sum(), abs=1e-12)
    np.testing.assert_allclose(found.loss, stack.values(theta).numpy())
    if loss == "mse":
        bounds = interpolation(stack, theta)
        np.testing.assert_array_equal(bounds.zeros, found.zeros)
        np.testing.assert_allclose(bounds.negative_mass, found.negative_mass)


def test_the_course_of_shipped_checkpoints() -> None:
    """The narrowest digits CNN: BatchNorm, cross-entropy, three stages, no certificates."""
    folder = Path(__file__).resolve().parent.parent / "checkpoints" / "digits-cnn"
    runs, _ = read_runs([str(folder / "width=2")], Source())
    ((name, members),) = populations(runs).items()
    scale = negative_eigenvalues.Scale(2, 12, 3)
    made = negative_eigenvalues._course(name, members, Means(scale, 0, "cpu", lambda *a: None, FORGETFUL))
    assert not isinstance(made, str)
    assert [(s.stage, s.width) for s in made] == [(s, 2) for s in ("start", "step 500", "end")]
    assert all(np.isfinite(s.loss).all() and (s.zeros >= 0).all() and (s.negative_mass < 1).all() for s in made)
    losses = [float(s.loss[0]) for s in made]
    assert losses[0] > losses[1] > losses[2]
    bounds = negative_eigenvalues._sweep(name, members, Means(scale, 0, "cpu", lambda *a: None, FORGETFUL))
    assert bounds == "they are of the squared error"
