"""`hessian(problem) @ v` and its kin: closed forms, bounds, SciPy, and mistakes."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from torch import Tensor, nn

import landscape
from landscape import Problem, ggn, hessian, residual
from landscape.curvature import linear
from landscape.errors import ProblemError, UsageError


def regression(dtype: torch.dtype, outputs: int = 3, decay: float = 0.0) -> tuple[Problem, Tensor]:
    """Linear regression with its Hessian, 2 I ⊗ XᵀX / n + decay I, in uneven batches."""
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randn(37, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(37, outputs, generator=generator, dtype=torch.float64).to(dtype)
    batches = list(zip(x.split([10, 20, 7]), y.split([10, 20, 7]), strict=True))
    gram = x.double().T @ x.double() / len(x)
    exact = 2 * torch.kron(torch.eye(outputs, dtype=torch.float64), gram)
    exact += decay * torch.eye(len(exact), dtype=torch.float64)
    model = nn.Linear(4, outputs, bias=False).to(dtype)
    return Problem(model, batches, "mse", weight_decay=decay), exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("strategy", "decay"), [("auto", 0.0), ("auto", 0.3), ("kept", 0.3), ("linearize", 0.3), ("recompute", 0.0)]
)
def test_products_of_a_linear_model_are_its_gram_matrix(dtype: torch.dtype, strategy: str, decay: float) -> None:
    problem, exact = regression(dtype, decay=decay)
    operator = hessian(problem, strategy=strategy, batch_size=5)
    assert operator.shape == exact.shape
    assert operator.dtype == dtype
    assert sum(operator.sizes) == len(exact)
    vectors = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    given = vectors.to(dtype)
    for found in (operator @ given, torch.as_tensor(operator @ given.numpy())):
        assert found.dtype == dtype
        off = (found.double() - exact @ given.double()).norm(dim=0)
        assert float(off.max()) <= operator.error
    assert operator.error <= 1e3 * torch.finfo(dtype).eps * float(exact.norm())
    assert torch.equal(operator @ given[:, 0], (operator @ given[:, :1])[:, 0])
    assert float((operator.dense().double() - exact).norm()) <= len(exact) ** 0.5 * operator.error
    assert torch.equal(operator.dense(), operator.dense().T)


def test_scipy_finds_eigenvalues_and_solves_with_it() -> None:
    problem, exact = regression(torch.float64)
    matvec = hessian(problem).to_scipy()
    assert matvec.dtype == np.float64
    found = eigsh(matvec, k=3, which="LA", return_eigenvectors=False)
    assert np.allclose(np.sort(found), torch.linalg.eigvalsh(exact)[-3:].numpy(), rtol=1e-10)
    right = np.arange(12.0)
    solved, status = cg(matvec, right, rtol=1e-12)
    assert status == 0
    assert np.allclose(exact.numpy() @ solved, right, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_hessian_is_its_gauss_newton_part_and_the_rest(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    problem = Problem(model, (torch.randn(29, 3).double(), torch.randint(2, (29,))), "cross_entropy")
    whole, part, rest = hessian(problem), ggn(problem), residual(problem)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    v /= v.norm()
    assert float((whole @ v - part @ v - rest @ v).norm()) <= whole.error + part.error + rest.error
    assert float(torch.linalg.eigvalsh(part.dense())[0]) >= -part.error
    moved = hessian(problem, torch.zeros(whole.shape[0]))
    assert not torch.allclose(moved @ v, whole @ v)
    assert hessian(problem, params="0.*").shape == (20, 20)
    assert hessian(problem, params="0.*").names == ("0.weight", "0.bias")


@pytest.mark.parametrize(
    ("vectors", "word"),
    [
        (torch.ones(7), ".names"),
        (np.ones((3, 12)), ".names"),
        (torch.ones(12, 1, 1), "columns"),
        ([1.0] * 12, "NumPy"),
        (2.0, "NumPy"),
    ],
)
def test_what_is_no_vector_is_refused(vectors: Any, word: str) -> None:
    operator = hessian(regression(torch.float32)[0])
    with pytest.raises(UsageError) as caught:
        operator @ vectors
    assert word in (caught.value.hint or "")
    assert repr(operator).startswith("<hessian 12 x 12, float32 on ")


def test_settings_and_derivatives_that_are_wrong_are_refused() -> None:
    problem, _ = regression(torch.float64)
    with pytest.raises(UsageError, match="strategy is 'fast'"):
        hessian(problem, strategy="fast")
    with pytest.raises(UsageError, match="no setting 'top'"):
        hessian(problem, top=3)

    class Rounded(nn.Module):
        """A straight-through estimator: its gradient is not that of what it computes."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.4, 1.3]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight + (self.weight.round() - self.weight).detach()).T

    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ProblemError, match="not the derivative"):
        hessian(Problem(Rounded(), (x, x[:, :1]), "mse"))


def test_the_example_in_its_documentation() -> None:
    assert doctest.testmod(linear).failed == 0
    assert doctest.testmod(linear).attempted >= 5
    assert {"hessian", "ggn", "residual"} <= set(landscape.__all__)
