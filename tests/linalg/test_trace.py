"""Trace estimates against exact traces: bias, coverage, and exactness where it is promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.linalg.lanczos import Extremes, lanczos_extremes
from landscape.linalg.trace import complement_quadratic_forms, samples_for, student_interval, xtrace
from planted import planted_matvec

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
HESSIAN = np.r_[np.logspace(0, 2, 10), np.random.default_rng(0).normal(size=190) * 0.05]


def basis(dtype: torch.dtype, max_products: int = 25, top: int = 5) -> Extremes:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(200, generator=generator, dtype=torch.float64).to(dtype)
    return lanczos_extremes(
        planted_matvec(HESSIAN, dtype), start, top=top, bottom=2, rtol=0.0, tau=0.0, noise=0.0,
        max_products=max_products, max_basis=300, generator=generator,
    )  # fmt: skip


def samples(known: Extremes, count: int, dtype: torch.dtype, seed: int = 0, sphere: bool = False) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(200, count, generator=generator, dtype=torch.float64)
    z = (z / z.norm(dim=0) if sphere else z).to(dtype)
    return complement_quadratic_forms(z, planted_matvec(HESSIAN, dtype)(z), known.project, known.projected)


@DTYPES
@pytest.mark.parametrize("sphere", [False, True])
def test_complement_samples_are_unbiased(dtype: torch.dtype, sphere: bool) -> None:
    known = basis(dtype)
    found = samples(known, 4000, dtype, sphere=sphere)
    truth = HESSIAN.sum() - np.trace(known.projected)
    assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(4000) + 1e-4 * (dtype == torch.float32)
    # without the basis the largest eigenvalue alone would contribute this much
    assert found.std() < 0.1 * math.sqrt(2) * 100


@DTYPES
def test_complement_samples_are_the_forms_of_the_projected_vectors(dtype: torch.dtype) -> None:
    known = basis(dtype)
    q = known.project(torch.eye(200, dtype=dtype))
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = z - q.T @ (q @ z)
    exact = (y * planted_matvec(HESSIAN)(y)).sum(0) / (y**2).sum(0) * (200 - len(q))
    assert np.allclose(samples(known, 3, dtype), exact.numpy(), atol=0.02 if dtype == torch.float32 else 1e-10)


def test_nothing_is_left_of_an_exhausted_space() -> None:
    known = basis(torch.float64, max_products=200, top=198)
    assert known.exhausted
    assert np.array_equal(samples(known, 3, torch.float64), np.zeros(3))
    assert np.trace(known.projected) == pytest.approx(HESSIAN.sum())


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 10])
def test_student_interval_covers(count: int) -> None:
    known = basis(torch.float64)
    pool = samples(known, 1000 * count, torch.float64, seed=7).reshape(1000, count)
    offset = float(np.trace(known.projected))
    covered = 0
    for row in pool:
        value, low, high = student_interval(row, offset)
        assert low < value < high
        covered += low <= HESSIAN.sum() <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_student_interval_closed_form() -> None:
    value, low, high = student_interval(np.array([1.0, 2.0, 3.0]), 10.0)
    assert value == 12
    assert high - value == value - low == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert student_interval(np.array([1.0]), 0.0) == (1.0, -math.inf, math.inf)


@pytest.mark.slow
def test_two_stages_keep_width_and_coverage() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        first = rng.normal(3, 2, 5)
        total = samples_for(first, 0.8)
        both = np.r_[first, rng.normal(3, 2, total - 5)]
        _, low, high = student_interval(both, 0.0, first_stage=5)
        assert high - low <= 1.6 + 1e-12
        covered += low <= 3 <= high
    assert covered >= 0.95 * 1000 - 3 * math.sqrt(0.05 * 0.95 * 1000)


def test_samples_for_refuses_the_impossible() -> None:
    with pytest.raises(ValueError, match="two samples"):
        samples_for(np.array([1.0]), 0.1)
    with pytest.raises(ValueError, match="half-width"):
        samples_for(np.array([1.0, 2.0]), 0.0)
    assert samples_for(np.array([1.0, 1.0, 1.0]), 0.1) == 3


@DTYPES
@pytest.mark.parametrize("products", [20, 41, 100])
def test_xtrace_is_near_the_trace(dtype: torch.dtype, products: int) -> None:
    generator = torch.Generator().manual_seed(0)
    taken = 0
    inner = planted_matvec(HESSIAN, dtype)

    def counted(v: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += v.shape[1]
        return inner(v)

    value, error = xtrace(counted, 200, products, generator, dtype, CPU)
    assert taken <= products
    assert abs(value - HESSIAN.sum()) < 6 * error + 1e-3 * (dtype == torch.float32)
    assert error < 3


def test_xtrace_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = np.linspace(-1, 2, 60)
    found = np.array([xtrace(planted_matvec(truth), 60, 16, generator, torch.float64, CPU) for _ in range(600)])
    spread = found[:, 0].std()
    assert abs(found[:, 0].mean() - truth.sum()) < 4 * spread / math.sqrt(600)
    assert 0.7 < found[:, 1].mean() / spread < 1.4  # the reported standard error is the actual one


def test_xtrace_equals_the_plain_leave_one_out_definition() -> None:
    n, count = 40, 6
    matvec = planted_matvec(np.linspace(-1, 3, n))
    value, error = xtrace(matvec, n, 2 * count, torch.Generator().manual_seed(3), torch.float64, CPU)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(count)]
    omega = torch.stack([math.sqrt(n) * z / z.norm() for z in draws], dim=1)
    plain = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        q = torch.linalg.qr(matvec(omega[:, others]))[0]
        mu = omega[:, i : i + 1] - q @ (q.T @ omega[:, i : i + 1])
        rest = (mu * matvec(mu)).sum() * (n - count + 1) / (mu**2).sum()
        plain.append(float(torch.trace(q.T @ matvec(q)) + rest))
    assert value == pytest.approx(np.mean(plain), rel=1e-10)
    assert error == pytest.approx(np.std(plain, ddof=1) / math.sqrt(count), rel=1e-8)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_xtrace_is_exact_for_low_rank(rank: int) -> None:
    truth = np.r_[np.arange(1.0, rank + 1), np.zeros(80 - rank)]
    value, error = xtrace(planted_matvec(truth), 80, 16, torch.Generator().manual_seed(0), torch.float64, CPU)
    assert value == pytest.approx(truth.sum(), abs=1e-9)
    assert error < 1e-9


def test_xtrace_with_products_for_everything() -> None:
    truth = np.linspace(-1, 2, 12)
    value, error = xtrace(planted_matvec(truth), 12, 60, torch.Generator().manual_seed(0), torch.float64, CPU)
    assert value == pytest.approx(truth.sum(), abs=1e-9)
    assert error == 0


def test_xtrace_errors() -> None:
    with pytest.raises(ValueError, match="four"):
        xtrace(lambda v: v, 10, 3, torch.Generator(), torch.float64, CPU)
    with pytest.raises(FloatingPointError):
        xtrace(lambda v: v * math.nan, 10, 6, torch.Generator(), torch.float64, CPU)
