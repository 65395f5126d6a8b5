"""What of a spectrum lies between its ends: stored measures, counts, masses and traces on random planted quadratics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape
from landscape import Problem
from landscape.linalg.quadrature import count_interval
from landscape.results import Spectrum


class Quadratic(nn.Module):
    """L = ½ θᵀHθ, H = QΛQᵀ with a few reflections Q: its eigenvalues are the given ones up to rounding."""

    def __init__(self, eigenvalues: np.ndarray, dtype: torch.dtype, mirrors: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(eigenvalues), dtype=dtype))
        self.register_buffer("values", torch.from_numpy(eigenvalues).to(dtype))
        self.register_buffer("mirrors", (mirrors / mirrors.norm(dim=1, keepdim=True)).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = self.theta
        for v in self.mirrors:
            y = y - 2 * v * (v @ y)
        return 0.5 * (self.values * y.square()).sum() * x.sum()


def quadratic_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return model(batch[0]), len(batch[0])


def quadratic(eigenvalues: np.ndarray, seed: int, dtype: torch.dtype = torch.float32, mirrors: int = 2) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(mirrors, len(eigenvalues), generator=generator, dtype=torch.float64)
    x = torch.ones(4, 1, dtype=dtype)
    return Problem(Quadratic(eigenvalues, dtype, v), [(x, x)], quadratic_loss)


def eigenvalues_of(problem: Problem) -> np.ndarray:
    """Of the rounded problem, in float64."""
    h = problem.model.double()
    mirrors, values = h.mirrors, h.values
    q = torch.eye(len(values), dtype=torch.float64)
    for v in mirrors:
        q = q - 2 * torch.outer(v, v @ q)
    return np.asarray(torch.linalg.eigvalsh(q.T @ (values[:, None] * q)).numpy())


def drawn(rng: np.random.Generator) -> np.ndarray:
    """A random spectrum: bulk, outliers, atoms, clusters, many scales, one or both signs."""
    n = int(rng.integers(30, 220))
    bulk = rng.normal(size=n) * 10 ** rng.uniform(-2, 1)
    if rng.random() < 0.4:
        bulk = np.abs(bulk)
    if rng.random() < 0.4:
        bulk *= np.exp(rng.normal(0, 2, n))
    if rng.random() < 0.5:
        bulk[: n // int(rng.integers(2, 6))] = 0.0
    if rng.random() < 0.5:
        k = int(rng.integers(1, 8))
        bulk[-k:] = np.abs(bulk).max() * rng.uniform(2, 30, k)
    if rng.random() < 0.3:
        bulk[-3:] = bulk[-1]
    return bulk * 10 ** rng.uniform(-3, 3)


def solved(problem: Problem, **settings: Any) -> Spectrum:
    return landscape.spectrum(problem, exact=False, **settings)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_stored_is_the_whole_measure(seed: int) -> None:
    """Weights sum to the share that was not deflated, whatever the lists show; so that traces of functions are right:
    f = 1 and f = λ against closed forms."""
    rng = np.random.default_rng(seed)
    problem = quadratic(drawn(rng), seed, (torch.float32, torch.float64)[seed % 2])
    top, bottom = (int(rng.choice([0, 0, 1, 3, 10])) for _ in range(2))
    r = solved(problem, top=top, bottom=bottom, probes=4, steps=20, seed=seed)
    told = f"seed {seed}, top {top}, bottom {bottom}, n {r.parameters}"
    assert len(r.top_value) == min(top, r.parameters), told
    assert r.deflated_value is not None
    taken = len(r.deflated_value)
    marked = int(r.deflated.sum() + r.deflated_bottom.sum())
    assert marked <= taken, told
    if 0 in (top, bottom):  # an end that was not asked for leaves nothing out of the file
        assert np.isin(r.deflated_value, np.r_[r.top_value, r.bottom_value]).all(), told
    free = 0.0 if r.weight is None else r.weight.sum(axis=1)
    np.testing.assert_allclose(free, 1 - taken / r.parameters, atol=1e-12, err_msg=told)
    truth = eigenvalues_of(problem)
    near = np.abs(truth[None, :] - r.deflated_value[:, None]).min(axis=1, initial=np.inf)
    assert np.all(near <= r.deflated_residual), told


@pytest.mark.parametrize("signs", [(1.0,), (1.0, -2.0)], ids=["one", "two"])
@pytest.mark.parametrize("scale", [1.0, 1 / 3, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_traces_without_sampling_error_carry_rounding(
    dtype: torch.dtype, scale: float, signs: tuple[float, ...]
) -> None:
    """A multiple of the identity, whose samples are all the same, and diag(c, −2c), which the basis exhausts."""
    for n in (2, 50, 333)[: 1 if len(signs) > 1 else None]:
        problem = quadratic(scale * np.resize(signs, n), 0, dtype, mirrors=0)
        truth = float(problem.model.values.double().sum())
        for seed in range(3):
            r = solved(problem, top=2, bottom=2, probes=3, steps=5, seed=seed)
            assert r.trace_low <= truth <= r.trace_high, (seed, truth, r.trace_low, r.trace_high)
            assert r.trace_high - r.trace_low < 1e3 * float(torch.finfo(dtype).eps) * n * abs(scale)


@pytest.mark.parametrize("n", [2, 200, 10**7])
@pytest.mark.parametrize("probes", [3, 8])
def test_masses_of_nothing_and_all_are_told_through_rounding(n: int, probes: int) -> None:
    rng = np.random.default_rng(n)
    for rounding in (0.0, *10 ** rng.uniform(-17, -14, 20)):
        assert count_interval(0.0, 1 - rounding, n, probes) == (0, n)
        assert count_interval(rounding, 1.0, n, probes) == (0, n)
        assert count_interval(1 - rounding, 1 - rounding, n, probes)[1] == n
        assert count_interval(rounding, rounding, n, probes)[0] == 0


@pytest.mark.parametrize("seed", range(8))
def test_masses_contain_what_rounding_and_residuals_may_hide(seed: int) -> None:
    """Spectra that probes see exactly, of two values only: no sampling error is left to cover anything."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 120))
    negative = int(rng.integers(0, n + 1))
    values = np.where(np.arange(n) < negative, -1.0, rng.choice([0.0, 1.0, 3.0])) * 10 ** rng.uniform(-6, 6)
    problem = quadratic(values, seed, (torch.float32, torch.float64)[seed % 2])
    r = solved(problem, top=int(rng.integers(0, 4)), bottom=int(rng.integers(0, 4)), probes=3, steps=10, seed=seed)
    truth = eigenvalues_of(problem)
    for i, tau in enumerate(r.tau_absolute):
        mass = np.abs(truth[truth < -tau]).sum() / max(np.abs(truth).sum(), 1e-300)
        low, high = r.negative_mass_low[i], r.negative_mass_high[i]
        told = f"seed {seed}, {negative} of {n}, tau {tau}, {mass} in [{low}, {high}]"
        assert low <= mass <= high, told
        assert r.negative_count_low[i] <= np.sum(truth < -tau) <= r.negative_count_high[i], told
