"""On every device what float64 on a CPU says: every operator, way, width and precision, and each analysis once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape
import models_zoo
from conftest import DEVICES
from landscape.curvature.operator import OPERATORS, CurvatureOperator
from landscape.linalg.lanczos import lanczos_extremes
from landscape.points.certify import certify_stack
from landscape.points.descent import Way, descend_stack
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack
from planted import planted_matvec

# Of a float32 product: eps32 an operation, amplified by two normalised layers at most a hundredfold (test_operators).
ROUNDINGS = 300
# Strategy, precision, vectors a launch. To trace `linearize` takes a second a chunk: each precision once.
CASES = [
    *((strategy, dtype, (1, 3, 8)) for strategy in ("kept", "recompute") for dtype in (torch.float32, torch.float64)),
    ("linearize", torch.float32, (8,)),
    ("linearize", torch.float64, (1,)),
]
# A CPU has the other networks and operators in test_operators.py; here it shows that the tests themselves are right.
PRODUCTS = [
    pytest.param(name, operator, device.values[0], marks=device.marks)
    for device in DEVICES
    for name in models_zoo.ZOO
    for operator in OPERATORS
    if device.values[0] != "cpu" or (name, operator) == ("layernorm", "hessian")
]


def directions(n: int, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(42), dtype=torch.float64) / n**0.5


def truth_of(name: str, operator: str) -> Tensor:
    """Products with `directions` in float64 on the CPU, by double backward."""
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    op = CurvatureOperator(objective, operator, strategy="kept")
    return op(directions(op.n))


@pytest.mark.parametrize(("name", "operator", "device"), PRODUCTS)
def test_products(name: str, operator: str, device: str) -> None:
    """Every strategy, width and precision; chunks of 4 do not divide the 7 samples."""
    expected = truth_of(name, operator)
    scale = truth_of(name, "hessian").norm()  # the residual part is a difference of larger ones
    for strategy, dtype, widths in CASES:
        objective = build_objective(models_zoo.build(name), dtype=dtype, device=device)
        op = CurvatureOperator(objective, operator, strategy=strategy, batch_size=4)
        for width in widths:
            if op.plan.mode == "reverse" and width > 1 and name == "groupnorm":
                continue  # torch cannot batch its double backward
            op.plan = replace(op.plan, block=width)
            op.release()
            found = op(directions(op.n).to(op.device, dtype))
            assert (found.device.type, found.dtype) == (device, dtype)
            error = float((found.cpu().double() - expected).norm() / scale)
            assert error <= ROUNDINGS * torch.finfo(dtype).eps, f"{op.plan.strategy}, {width}, {dtype}: {error:.1e}"


def network(hidden: int = 6, samples: int = 53) -> Problem:
    """A tanh network in float32; 53 is prime."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(samples, 4, generator=generator)
    return Problem(model, (x, torch.randint(3, (samples,), generator=generator)), "cross_entropy")


def eigenvalues(problem: Problem) -> np.ndarray:
    op = CurvatureOperator(build_objective(problem, dtype=torch.float64), strategy="kept")
    return torch.linalg.eigvalsh(op(torch.eye(op.n, dtype=torch.float64))).numpy()


@pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bf16"])
@pytest.mark.parametrize("exact", [False, True])
def test_spectrum(precision: str, exact: bool, device: str) -> None:
    """Residuals, trace and counts hold the dense float64 truth, whatever the precision of the products."""
    if exact and precision in ("tf32", "bf16"):
        pytest.skip("dense spectra are float64")
    problem = network()
    truth = eigenvalues(problem)
    found = landscape.spectrum(
        problem, top=4, bottom=3, exact=exact, precision=precision, device=device, steps=20, probes=4
    )
    for value, residual in ((found.top_value, found.top_residual), (found.bottom_value, found.bottom_residual)):
        assert np.all(np.abs(value[:, None] - truth).min(axis=1) <= residual + 1e-12 * np.abs(truth).max())
    assert found.spent.device.startswith(device)
    if precision in ("float32", "float64"):
        np.testing.assert_allclose(found.top_value, truth[::-1][:4], atol=2e-3 * truth[-1])
    for low, high, tau in zip(found.negative_count_low, found.negative_count_high, found.tau_absolute, strict=True):
        assert low <= np.sum(truth < -tau) <= high


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_basis_rows_in_host_memory(dtype: torch.dtype, width: int, device: str) -> None:
    """Most rows of the Krylov basis live in (pinned) host memory; with restarts, blocks and deflation."""
    truth = np.sort(np.r_[np.linspace(-1, 1, 190), 3.0, 5.0, -4.0, 7.0])
    inner = planted_matvec(truth, torch.float64, seed=3)
    begin = torch.randn(194, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    found = lanczos_extremes(
        lambda v: inner(v.cpu().double()).to(device, dtype), begin[:, 0] if width == 1 else begin, top=3, bottom=2,
        rtol=1e-5, tau=1e-6, noise=0.0, max_products=400, max_basis=40, generator=torch.Generator().manual_seed(2),
        on_device=10,
    )  # fmt: skip
    assert found.restarts
    assert found.top_vector.device.type == device
    assert np.all(np.abs(found.top_value - truth[::-1][:3]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - truth[:2]) <= found.bottom_residual)


def students(count: int = 5) -> list[Problem]:
    x = torch.randn(37, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tanh(x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64)) + 0.3 * x[:, :1] ** 2
    made = []
    for seed in range(count):
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        made.append(Problem(model, (x, target), "mse"))
    return made


def test_certificates_of_a_stack(device: str) -> None:
    """Descents of a stack end certified, and the Hessians at their ends are those that a CPU finds there."""
    stack, theta = build_stack(students(), device=device)
    descent, _ = descend_stack(stack, theta, Way(steps=60))
    certificates = certify_stack(stack, descent.theta)
    here, _ = build_stack(students())
    again = certify_stack(here, descent.theta.cpu())
    for there, mine in zip(certificates, again, strict=True):
        assert there.lambda_min.low <= mine.lambda_min.high
        assert mine.lambda_min.low <= there.lambda_min.high
    assert descent.theta.device.type == device


@pytest.mark.parametrize("name", ["descend", "escape", "widen", "slice"])
def test_each_analysis(name: str, device: str) -> None:
    """Runs to its end on the device, and what it stores lies on the CPU."""
    problem = students(1)[0]
    settings = {
        "descend": {"steps": 50},
        "escape": {"steps": 20},
        "widen": {"layer": "0", "steps": 20},
        "slice": {"points": (5, 5)},
    }
    found = getattr(landscape, name)(problem, device=device, **settings[name])
    for field, value in vars(found).items():
        assert not (isinstance(value, Tensor) and value.device.type != "cpu"), field
    assert found.spent.device.startswith(device)
