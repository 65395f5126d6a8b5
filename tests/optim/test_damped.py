"""The damped methods on problems whose answers are known, many starts at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landscape.optim.damped import REASONS, Limits, damped_descent
from landscape.optim.levenberg_marquardt import levenberg_marquardt
from landscape.optim.newton import escape_direction, gradient_norm_newton, saddle_free_newton

STARTS = torch.tensor([[-1.2, 1.0], [0.5, -0.7], [1.0, 1.0], [3.0, 3.0], [-2.0, -1.5]], dtype=torch.float64)


def residuals(theta: Tensor) -> Tensor:
    """Rosenbrock's: r = (10 (y − x²), 1 − x), [A, 2]."""
    x, y = theta[:, 0], theta[:, 1]
    return torch.stack([10 * (y - x**2), 1 - x], dim=1)


def values(theta: Tensor, rows: Tensor) -> Tensor:
    return residuals(theta).square().sum(1)


def gauss_newton(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r = residuals(theta)
    j = torch.zeros(len(theta), 2, 2, dtype=theta.dtype)
    j[:, 0, 0], j[:, 0, 1], j[:, 1, 0] = -20 * theta[:, 0], 10, -1
    return r.square().sum(1), 2 * (j.mT @ r.unsqueeze(2)).squeeze(2), 2 * j.mT @ j


def gradients(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient, _ = gauss_newton(theta, rows)
    return value, gradient


def hessians(theta: Tensor, rows: Tensor) -> Tensor:
    h = gauss_newton(theta, rows)[2]
    h[:, 0, 0] += -40 * residuals(theta)[:, 0]
    return h


METHODS = {
    "levenberg-marquardt": levenberg_marquardt(values, gauss_newton),
    "saddle-free": saddle_free_newton(values, gradients, hessians),
    "gradient norm": gradient_norm_newton(gradients, hessians),
}


@pytest.mark.parametrize("name", ["levenberg-marquardt", "saddle-free"])
def test_rosenbrock_from_everywhere(name: str) -> None:
    ended = damped_descent(STARTS, METHODS[name], Limits())
    assert [REASONS[int(r)] for r in ended.reason] == ["converged"] * 5
    assert torch.allclose(ended.theta, torch.ones(5, 2, dtype=torch.float64), atol=1e-9)
    assert int(ended.steps[2]) == 0
    assert int(ended.steps.max()) < 60


def test_the_gradient_norm_is_caught_where_the_hessian_kills_the_gradient() -> None:
    """Two of the starts creep along valleys of ‖∇L‖ (gradient-flat, Frye et al. 2021), the others reach the minimum."""
    ended = damped_descent(STARTS, METHODS["gradient norm"], Limits(steps=400))
    arrived = ended.gradient_inf < 1e-12
    assert arrived.tolist() == [False, True, True, True, False]
    assert torch.allclose(ended.theta[arrived], torch.ones(3, 2, dtype=torch.float64), atol=1e-9)
    rows = torch.arange(5)
    slope, h = gradients(ended.theta, rows)[1], hessians(ended.theta, rows)
    image = (h @ slope.unsqueeze(2)).squeeze(2).norm(dim=1)
    score = image / (torch.linalg.eigvalsh(h).abs().amax(1) * slope.norm(dim=1))
    assert (score[~arrived] < 0.05).all()


@pytest.mark.parametrize("name", METHODS)
def test_members_do_not_wait_for_each_other_nor_depend_on_each_other(name: str) -> None:
    together = damped_descent(STARTS, METHODS[name], Limits())
    for i in range(len(STARTS)):
        alone = damped_descent(STARTS[i : i + 1], METHODS[name], Limits())
        assert torch.equal(alone.theta[0], together.theta[i])
        assert int(alone.steps[0]) == int(together.steps[i])
    assert len(set(together.steps.tolist())) > 1


def test_what_is_observed_is_every_iteration_of_the_active_members() -> None:
    seen: list[tuple[int, int]] = []
    ended = damped_descent(STARTS, METHODS["saddle-free"], Limits(), lambda i, rows, *_: seen.append((i, len(rows))))
    assert [i for i, _ in seen] == list(range(int(ended.steps.max()) + 1))
    assert [n for _, n in seen] == [int((ended.steps >= i).sum()) for i, _ in seen]


def quartic_gradients(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """x⁴/4 − x²/2 + y²/2: minima at (±1, 0), a saddle between them."""
    x, y = theta[:, 0], theta[:, 1]
    return x**4 / 4 - x**2 / 2 + y**2 / 2, torch.stack([x**3 - x, y], dim=1)


def quartic_hessians(theta: Tensor, rows: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([3 * theta[:, 0] ** 2 - 1, torch.ones(len(theta)).double()], dim=1))


NEAR_SADDLE = torch.tensor([[0.05, 0.4], [-0.1, -0.3]], dtype=torch.float64)


def test_saddles_repel_saddle_free_newton_and_attract_the_gradient_norm() -> None:
    def quartic(theta: Tensor, rows: Tensor) -> Tensor:
        return quartic_gradients(theta, rows)[0]

    free = damped_descent(NEAR_SADDLE, saddle_free_newton(quartic, quartic_gradients, quartic_hessians), Limits())
    assert torch.allclose(free.theta, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), atol=1e-12)
    norm = damped_descent(NEAR_SADDLE, gradient_norm_newton(quartic_gradients, quartic_hessians), Limits())
    assert torch.allclose(norm.theta, torch.zeros(2, 2).double(), atol=1e-12)
    method = saddle_free_newton(quartic, quartic_gradients, quartic_hessians)
    saddle, direction = escape_direction(method.expand(norm.theta, torch.arange(2)), 1e-6)
    assert saddle.all()
    assert torch.allclose(direction.abs(), torch.tensor([[1.0, 0.0]] * 2).double())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(steps=3), "steps"),
        (Limits(norm=4.0), "runaway"),
        (Limits(window=5, progress=0.99, steps=100), "slow"),
    ],
)
def test_why_a_member_stops(limits: Limits, reason: str) -> None:
    """exp(−x) + y² has no minimum: x grows for ever."""

    def gradient(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        e = torch.exp(-theta[:, 0])
        return e + theta[:, 1] ** 2 + 1, torch.stack([-e, 2 * theta[:, 1]], dim=1)

    def hessian(theta: Tensor, rows: Tensor) -> Tensor:
        return torch.diag_embed(torch.stack([torch.exp(-theta[:, 0]), torch.full((len(theta),), 2.0).double()], dim=1))

    method = saddle_free_newton(lambda t, r: gradient(t, r)[0], gradient, hessian)
    ended = damped_descent(torch.zeros(1, 2, dtype=torch.float64), method, limits)
    assert REASONS[int(ended.reason[0])] == reason


def test_nan_ends_a_member_and_no_other() -> None:
    starts = STARTS.clone()
    starts[1] = torch.nan
    ended = damped_descent(starts, METHODS["levenberg-marquardt"], Limits())
    assert [REASONS[int(r)] for r in ended.reason] == ["converged", "failed", *["converged"] * 3]


def test_a_floor_is_met_by_the_value() -> None:
    ended = damped_descent(STARTS, METHODS["levenberg-marquardt"], Limits(floor=1e-3))
    assert (ended.value <= 1e-3).all()
    assert (ended.steps < damped_descent(STARTS, METHODS["levenberg-marquardt"], Limits()).steps).any()
