"""Cheaper arithmetic for products: it stays inside them, its error is measured, and every bound includes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import Problem, spectrum
from landscape.curvature.operator import STRATEGIES, CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.errors import UsageError
from landscape.problem.objective import build_objective
from landscape.spectra.density import cells_of, count, gaussian_density, measure_of_all


def problem(seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    return Problem(model, (torch.randn(90, 6), torch.randint(0, 3, (90,))), "cross_entropy")


def dense(op: CurvatureOperator) -> Tensor:
    return op(torch.eye(op.n, dtype=op.dtype)).double()


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return dense(CurvatureOperator(build_objective(problem(), dtype=torch.float64)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_bfloat16_products_are_off_by_less_than_what_is_measured(strategy: str, operator: str) -> None:
    objective = build_objective(problem())
    exact = dense(CurvatureOperator(objective.in_dtype(torch.float64), operator))
    lowered = objective.lowered("bf16")
    off = dense(CurvatureOperator(lowered, operator, strategy=strategy)) - exact
    vectors = F.normalize(torch.randn(len(off), 20, generator=torch.Generator().manual_seed(5)).double(), dim=0)
    errors = (off @ vectors).norm(dim=0)
    strict = product_error(objective, operator, 0)
    measured = product_error(lowered, operator, 0)
    assert errors.max() <= measured
    assert 1e-4 * exact.norm() < measured < 0.2 * exact.norm()
    assert strict < 1e-3 * measured
    again = dense(CurvatureOperator(lowered.strict(), operator, strategy=strategy)) - exact
    assert (again @ vectors).norm(dim=0).max() <= strict


def test_bounds_of_a_lowered_spectrum_hold(truth: Tensor) -> None:
    found = spectrum(problem(), precision="bf16", exact=False, top=4, bottom=3, probes=4, steps=20, tau=1e-3)
    values = torch.linalg.eigvalsh(truth).numpy()
    for value, residual in zip(
        np.r_[found.top_value, found.bottom_value], np.r_[found.top_residual, found.bottom_residual], strict=True
    ):
        assert np.abs(values - value).min() <= residual
    assert found.trace_low <= float(truth.trace()) <= found.trace_high
    count = np.array([(values < -floor).sum() for floor in found.tau_absolute])
    assert np.all(found.negative_count_low <= count)
    assert np.all(count <= found.negative_count_high)
    assert any("products in bf16 are off by up to" in note for note in found.spent.notes)
    plain = spectrum(problem(), exact=False, top=4, bottom=3, probes=4, steps=20, tau=1e-3)
    assert found.product_error > 1e3 * plain.product_error
    assert plain.loss == found.loss  # the loss itself is never lowered


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_allowed_on_request_only_and_settings_come_back(precision: str) -> None:
    seen: list[tuple[bool, bool]] = []

    def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    x, y = problem().data
    objective = build_objective(Problem(problem().model, [(x, y)], watched))
    if precision == "tf32":
        objective = objective.lowered("tf32")
    seen.clear()
    operator = CurvatureOperator(objective)
    operator(torch.ones(operator.n))
    assert set(seen) == {(precision == "tf32",) * 2}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision is 'fp8'"):
        spectrum(problem(), precision="fp8")


def test_the_density_covers_what_product_errors_may_have_moved() -> None:
    """Eigenvalues that all moved by as much as they may are still within the intervals of the cells."""
    values = np.sort(np.random.default_rng(0).normal(size=300))
    plain = measure_of_all(values, 0.0)
    ends = values[0] - 0.05, values[-1] + 0.05
    noisy = dataclasses.replace(plain, ends=ends, exact_residual=np.full(300, 0.05))
    for shift in (-0.05, -0.02, 0.0, 0.03, 0.05):
        for edges in (cells_of(noisy, 0.1), cells_of(noisy, 1e-3)):
            found = count(noisy, edges)
            truth = np.diff(np.r_[0, np.searchsorted(values + shift, edges[1:-1]), 300])
            assert np.all((found.low <= truth) & (truth <= found.high))
        smooth, moved = gaussian_density(noisy, 0.1), dataclasses.replace(plain, exact=values + shift, ends=ends)
        there = gaussian_density(moved, 0.1).density
        assert np.all((smooth.density_low <= there + 1e-12) & (there <= smooth.density_high + 1e-12))


@pytest.mark.parametrize("exact", [True, False])
def test_a_float64_network_in_float32_is_the_rounded_network(exact: bool) -> None:
    """Its bounds hold for that one, a note says so, and there is none where nothing was rounded."""
    own = problem(3)
    with torch.no_grad():
        model = own.model.double()
        for p in model.parameters():
            p.mul_(1 + 1e-9 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x, y = own.data[0].double(), own.data[1]
    found = spectrum(
        Problem(model, (x, y), "cross_entropy"), top=3, bottom=2, precision="float32", exact=exact, probes=3
    )
    assert any("rounded network" in note for note in found.spent.notes)
    rounded = Problem(model.float(), (x.float(), y), "cross_entropy")
    values = torch.linalg.eigvalsh(dense(CurvatureOperator(build_objective(rounded, dtype=torch.float64)))).numpy()
    for value, residual in ((found.top_value, found.top_residual), (found.bottom_value, found.bottom_residual)):
        assert np.all(np.abs(value[:, None] - values).min(axis=1) <= residual)
    assert not any(
        "rounded" in n for n in spectrum(rounded, precision="float32", exact=exact, density=False).spent.notes
    )
