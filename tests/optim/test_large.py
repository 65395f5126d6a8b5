"""Matrix-free descents and gradient flow against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from landscape.optim.flow import gradient_flow
from landscape.optim.matrix_free import Ended, lbfgs, newton_krylov, newton_mr
from planted import planted_dense

N = 60
# A line search on values sees nothing below √eps of the gradient; Newton steps look at the gradient itself.
ROUNDING = {"lbfgs": 1e-7}


def nothing(theta: Tensor, value: float, slope: Tensor) -> None:
    pass


def quadratic(eigenvalues: Tensor) -> tuple[Callable[[Tensor], tuple[float, Tensor]], Tensor, Tensor]:
    h, centre = planted_dense(eigenvalues), torch.linspace(-1, 1, len(eigenvalues), dtype=torch.float64)

    def gradient(theta: Tensor) -> tuple[float, Tensor]:
        d = theta - centre
        return float(0.5 * d @ (h @ d)) + 1, h @ d

    return gradient, h, centre


def solve(
    name: str, gradient: Callable[[Tensor], tuple[float, Tensor]], h: Callable[[Tensor], Tensor], at: float = 0.0
) -> Ended:
    start = torch.full((N,), at, dtype=torch.float64)

    def products(theta: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: h(theta) @ v

    if name == "lbfgs":
        return lbfgs(gradient, start, tolerance=ROUNDING["lbfgs"], steps=500, observe=nothing)
    solver = newton_krylov if name == "newton-krylov" else newton_mr
    return solver(gradient, products, start, tolerance=1e-10, steps=200, observe=nothing)


@pytest.mark.parametrize("name", ["lbfgs", "newton-krylov", "newton-mr"])
def test_a_convex_quadratic_is_solved(name: str) -> None:
    gradient, h, centre = quadratic(torch.logspace(-2, 1, N, dtype=torch.float64))
    ended = solve(name, gradient, lambda _: h)
    assert ended.reason == "converged"
    reached = ROUNDING.get(name, 1e-10)
    assert torch.allclose(ended.theta, centre, atol=1e3 * reached)
    assert ended.gradient_inf <= 1.01 * reached


def double_well(eigenvalues: Tensor) -> tuple[Callable[[Tensor], tuple[float, Tensor]], Callable[[Tensor], Tensor]]:
    """½ θᵀHθ + ¼ Σ θ⁴ about 0.3: a saddle where H is indefinite, minima around it."""
    h = planted_dense(eigenvalues)

    def gradient(theta: Tensor) -> tuple[float, Tensor]:
        d = theta - 0.3
        return float(0.5 * d @ (h @ d) + 0.25 * d.pow(4).sum()), h @ d + d**3

    return gradient, lambda theta: h + torch.diag(3 * (theta - 0.3) ** 2)


def test_newton_krylov_leaves_a_saddle_and_newton_mr_ends_there() -> None:
    eigenvalues = torch.linspace(0.5, 3, N, dtype=torch.float64)
    eigenvalues[:3] = torch.tensor([-1.0, -0.5, -0.2])
    gradient, hessian = double_well(eigenvalues)
    minimum = solve("newton-krylov", gradient, hessian)
    assert minimum.reason == "converged"
    assert minimum.value < 0
    assert float(torch.linalg.eigvalsh(hessian(minimum.theta))[0]) > 0
    saddle = solve("newton-mr", gradient, hessian, at=0.31)
    assert saddle.gradient_inf <= 1e-10
    assert torch.allclose(saddle.theta, torch.full((N,), 0.3).double(), atol=1e-8)


@pytest.mark.parametrize("name", ["lbfgs", "newton-krylov", "newton-mr"])
def test_accepted_points_are_observed_in_order(name: str) -> None:
    gradient, h, _ = quadratic(torch.linspace(0.1, 1, N, dtype=torch.float64))
    seen: list[float] = []
    start = torch.zeros(N, dtype=torch.float64)

    def observe(theta: Tensor, value: float, slope: Tensor) -> None:
        seen.append(value)
        assert gradient(theta)[0] == pytest.approx(value, rel=1e-12)

    if name == "lbfgs":
        lbfgs(gradient, start, tolerance=1e-10, steps=50, observe=observe)
    else:
        solver = newton_krylov if name == "newton-krylov" else newton_mr
        solver(gradient, lambda _: lambda v: h @ v, start, tolerance=1e-10, steps=50, observe=observe)
    assert len(seen) > 1
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("implicit", [True, False])
def test_gradient_flow_of_a_quadratic_is_the_exponential(implicit: bool) -> None:
    eigenvalues = torch.tensor([1e-2, 0.5, 40.0], dtype=torch.float64)
    h = planted_dense(eigenvalues).numpy()
    start = np.array([1.0, -2.0, 0.5])
    flow = gradient_flow(lambda t: h @ t, (lambda t: h) if implicit else None, start, tolerance=1e-6)
    assert flow.reached
    values, vectors = np.linalg.eigh(h)
    for time, theta in zip(flow.time, flow.theta, strict=True):
        exact = vectors @ (np.exp(-values * time) * (vectors.T @ start))
        assert np.abs(theta - exact).max() < 1e-4
    assert len(flow.time) < 400
