"""The error of a product covers the products it is claimed for: data of every kind, and float64 that cancels."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape import Problem, spectrum
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.problem.last_places import LastPlaces
from landscape.problem.objective import Objective, build_objective
from random_losses import pairwise

KINDS = ("plain", "heavy", "trend", "sorted", "zeros", "ignored", "decay", "pairs")


def drawn(kind: str, seed: int) -> Problem:
    """A small network on data whose first samples do not tell what the others do."""
    rng = random.Random(f"{kind} {seed}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        n, inputs, width, classes = rng.randint(200, 700), rng.randint(2, 5), rng.randint(3, 6), rng.randint(2, 4)
        x, y = torch.randn(n, inputs), torch.randint(classes, (n,))
        scale = {
            "heavy": torch.exp(rng.uniform(1, 2) * torch.randn(n)),
            "trend": 30 * torch.linspace(0, 1, n) ** rng.randint(1, 4),
            "sorted": torch.exp(torch.randn(n)).sort().values,
        }.get(kind, torch.ones(n))
        x *= scale[:, None]
        x[: 64 if kind == "zeros" else 0] = 0
        y[: 64 if kind == "ignored" else 0] = -100
        if kind == "decay":  # beside which the loss is nothing
            x, y = 1e-4 * x[:50], 1e-4 * torch.randn(50, 1)
            return Problem(nn.Linear(inputs, 1), (x, y), "mse", weight_decay=rng.uniform(0.1, 1))
        if kind == "pairs":  # eigenvalues ±λ, whose errors cancel in a mixture of both; differences of outputs
            body = nn.Sequential(
                nn.Linear(inputs, width), rng.choice([nn.LeakyReLU, nn.Identity])(), nn.Linear(width, 1)
            )
            return Problem(body, (0.01 * x[:12], torch.randn(12, 1)), pairwise)
        activation = rng.choice([nn.Tanh, nn.Softplus, nn.GELU])
        model = nn.Sequential(nn.Linear(inputs, width), activation(), nn.Linear(width, classes))
        if kind != "ignored" and rng.random() < 0.5:
            return Problem(model, (x, x[:, :1].expand(-1, classes) + torch.randn(n, classes)), "mse")
    return Problem(model, (x, y), "cross_entropy")


def off(objective: Objective, truth: Tensor) -> float:
    """The largest error of a product with an eigenvector, as the job takes it."""
    operator = CurvatureOperator(objective)
    vectors = torch.linalg.eigh(truth)[1].to(objective.dtype)
    return float((operator(vectors).double() - truth @ vectors.double()).norm(dim=0).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 2, 3))])
def test_the_error_of_float32_products_is_covered(kind: str, block: int) -> None:
    """Twenty problems of every kind, every eigenvector of each; the truth is the dense float64 matrix."""
    for seed in range(5 * block, 5 * block + 5):
        objective = build_objective(drawn(kind, seed))
        wide = CurvatureOperator(objective.in_dtype(torch.float64))
        truth = wide(torch.eye(wide.n, dtype=torch.float64))
        claimed = product_error(objective, "hessian", seed, CurvatureOperator(objective).plan.chunk)
        assert off(objective, (truth + truth.T) / 2) <= claimed, f"{kind}, seed {seed}"
        assert claimed <= (1e-2 if kind == "pairs" else 1e-4) * float(truth.norm()), f"{kind}, seed {seed}"


class Raised(nn.Module):
    """A network whose output has an offset of its own."""

    def __init__(self, body: nn.Module, offset: float) -> None:
        super().__init__()
        self.body, self.offset = body, nn.Parameter(torch.tensor(offset, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.offset


class Cast(nn.Module):
    """tanh, in less precision if asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).tanh().to(x.dtype)


def cancelling(kind: str, seed: int) -> tuple[Problem, Tensor]:
    """A float64 problem that loses digits, and its Hessian from a form that does not."""
    rng = random.Random(f"{kind} {seed}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        n, inputs, width = rng.randint(60, 300), rng.randint(2, 4), rng.randint(3, 5)
        x = torch.randn(n, inputs, dtype=torch.float64)
        if kind in ("saturated", "separated"):
            model = nn.Linear(inputs, 3, bias=False).double()
            model.weight.data.mul_(rng.uniform(10, 200))
            z = x @ model.weight.detach().T
            if kind == "separated":  # every sample on its side, none near the border: the loss is 1e-3 to 1e-13
                best = z.topk(2).values
                x = x[best[:, 0] - best[:, 1] > 0.2 * float((best[:, 0] - best[:, 1]).max())]
                z = x @ model.weight.detach().T
                margin = z.topk(2).values.diff(dim=1).abs().min()
                factor = rng.uniform(8, 30) / float(margin)
                model.weight.data.mul_(factor)
                z = x @ model.weight.detach().T
            y = z.argmax(1)
            return Problem(model, (x, y), "cross_entropy"), softmax_hessian(x, z)
        body = nn.Sequential(nn.Linear(inputs, width), Cast(torch.float64), nn.Linear(width, 1)).double()
        if kind == "raised":
            offset = 1.7e9 * rng.uniform(0.5, 2)
            offset = float(torch.tensor(offset, dtype=torch.float32))
            targets = offset + torch.randn(n, 1, dtype=torch.float64)
            plain = Problem(Raised(body, 0.0), (x, targets - offset), "mse")  # the subtraction is exact
            return Problem(Raised(body, offset), (x, targets), "mse"), dense(plain)
        narrow = nn.Sequential(body[0], Cast(torch.float32), body[2])
        y = torch.randn(n, 1, dtype=torch.float64)
        return Problem(narrow, (x, y), "mse"), dense(Problem(body, (x, y), "mse"))


def dense(problem: Problem) -> Tensor:
    operator = CurvatureOperator(build_objective(problem, dtype=torch.float64), strategy="kept")
    found = operator(torch.eye(operator.n, dtype=torch.float64))
    return (found + found.T) / 2


def softmax_hessian(x: Tensor, z: Tensor) -> Tensor:
    """(1/n) Σ S ⊗ xxᵀ with S = Σ_{i<j} p_i p_j (e_i − e_j)(e_i − e_j)ᵀ: sums of positive terms only."""
    p, c = z.softmax(1), z.shape[1]
    total = torch.zeros(c, x.shape[1], c, x.shape[1], dtype=torch.float64)
    for i in range(c):
        for j in range(i):
            e = torch.zeros(c, dtype=torch.float64)
            e[i], e[j] = 1, -1
            total += torch.einsum("n,a,c,nb,nd->abcd", p[:, i] * p[:, j], e, e, x, x)
    return total.reshape(c * x.shape[1], -1) / len(x)


@pytest.mark.parametrize("kind", ["raised", "saturated", "separated", "cast"])
@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 2, 3))])
def test_the_error_of_float64_products_is_covered(kind: str, block: int) -> None:
    """And so are the eigenvalues of the dense solution and the count of negative ones; the bound is not for show."""
    for seed in range(5 * block, 5 * block + 5):
        problem, truth = cancelling(kind, seed)
        objective = build_objective(problem, dtype=torch.float64)
        claimed = product_error(objective, "hessian", seed, CurvatureOperator(objective).plan.chunk)
        error = off(objective, truth)
        assert error <= claimed, f"{kind}, seed {seed}"
        if seed % 5:
            continue
        values = torch.linalg.eigvalsh(truth).numpy()
        found = spectrum(problem, exact=True, precision="float64", density=False)
        assert found.eigenvalues is not None
        assert np.abs(found.eigenvalues - values).max() <= found.product_error, f"{kind}, seed {seed}"
        counts = np.array([(values < -floor).sum() for floor in found.tau_absolute])
        assert np.all(found.negative_count_low <= counts), f"{kind}, seed {seed}"
        assert np.all(counts <= found.negative_count_high), f"{kind}, seed {seed}"


@pytest.mark.parametrize("seed", range(12))
def test_what_float64_loses_as_float32_does_is_covered(seed: int) -> None:
    """Probabilities closer to 1 than both can tell: of two samples with p and 1 − p, either drops the second."""
    rng = np.random.default_rng(seed)
    n, inputs = int(rng.integers(20, 90)), int(rng.integers(1, 6))
    x = torch.from_numpy(rng.normal(size=(n, inputs)) * np.exp(rng.normal(size=(n, 1)))).float()
    model = nn.Linear(inputs, 1, bias=False)
    z = x @ model.weight.detach().T
    model.weight.data.mul_(rng.uniform(45, 60) / float(z.abs().min()))
    z = x.double() @ model.weight.detach().double().T
    small = torch.exp(-z.abs()) / (1 + torch.exp(-z.abs())) ** 2
    truth = (x.double() * small).T @ x.double() / n
    objective = build_objective(Problem(model, (x, (z > 0).float()), "bce"))
    claimed = product_error(objective, "hessian", seed)
    assert off(objective, truth) <= claimed, f"seed {seed}"
    assert claimed <= 1e-12 * float(x.double().square().sum()), f"seed {seed}"


class Filtered(nn.Module):
    """A filter between two layers, in Fourier space: complex constants, in less precision perhaps."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.head, self.width = nn.Linear(3, width), nn.Linear(width, 2), width
        self.register_buffer("response", torch.randn(width // 2 + 1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.rfft(torch.tanh(self.first(x))) * self.response
        return self.head(torch.fft.irfft(h, n=self.width))


@pytest.mark.parametrize("strategy", ["kept", "linearize", "recompute"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("seed", range(3))
def test_the_way_that_is_used_is_measured(strategy: str, dtype: torch.dtype, seed: int) -> None:
    """torch 2.13's `linearize` has single precision somewhere in complex numbers; double backward has not."""
    torch.manual_seed(seed)
    model = Filtered(3 + seed, dtype).double()
    x = torch.randn(40 + seed, 3, dtype=torch.float64)
    objective = build_objective(Problem(model, (x, torch.randn(len(x), 2, dtype=torch.float64)), "mse"))
    truth = CurvatureOperator(objective, strategy="recompute", block=1)(torch.eye(objective.layout.total).double())
    operator = CurvatureOperator(objective, strategy=strategy)
    claimed = product_error(objective, "hessian", seed, operator.plan.chunk, operator)
    vectors = torch.linalg.eigh((truth + truth.T) / 2)[1]
    assert float((operator(vectors) - truth @ vectors).norm(dim=0).max()) <= claimed
    assert claimed <= (1e-5 if strategy == "linearize" else 1e-10) * float(truth.norm())


@pytest.mark.parametrize("products", [20, 30, 57, 100])
@pytest.mark.parametrize("strategy", ["auto", "linearize"])
def test_what_is_measured_is_none_of_the_products_that_may_be_spent(products: int, strategy: str) -> None:
    problem = drawn("plain", 3)
    found = spectrum(problem, exact=False, max_products=products, strategy=strategy, top=3, bottom=3)
    assert found.spent is not None
    assert found.spent.products <= products


def test_well_conditioned_float64_products_are_still_claimed_to_be_good() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    problem = Problem(model, (torch.randn(90, 4), torch.randint(3, (90,))), "cross_entropy")
    objective = build_objective(problem)
    assert product_error(objective, "hessian", 0) <= 1e-13 * float(dense(problem).norm())


@pytest.mark.parametrize("strategy", ["own batches", "one batch"])
def test_whole_batches_are_measured_too(strategy: str) -> None:
    """A custom loss, whose batches must not be cut: the largest one comes last, and is a hundred times as far out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(300, 3), torch.randn(300, 1)
    x[200:], y[200:] = 100 * x[200:], 1e4 * y[200:]

    def loss(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return (m(batch[0]) - batch[1]).square().sum(), len(batch[0])

    data = [(x, y)] if strategy == "one batch" else list(zip(x.split(40), y.split(40), strict=True))
    objective = build_objective(Problem(model, data, loss))
    wide = CurvatureOperator(objective.in_dtype(torch.float64))
    truth = wide(torch.eye(wide.n, dtype=torch.float64))
    assert off(objective, (truth + truth.T) / 2) <= product_error(objective, "hessian", 0)


def test_products_that_round_to_zero_are_no_certain_zero() -> None:
    """A saturated softmax in float32, whose Hessian is 0 there and is not."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3, bias=False)
    model.weight.data.mul_(100)
    x = torch.randn(50, 3)
    z = x.double() @ model.weight.detach().double().T
    problem = Problem(model, (x, z.argmax(1)), "cross_entropy")
    truth = softmax_hessian(x.double(), z)
    objective = build_objective(problem)
    assert off(objective, truth) <= product_error(objective, "hessian", 0)


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_minus_infinity_are_constants(seed: int) -> None:
    """As attention has them: what is repeated with other last places stays finite, and small."""
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(2, 6, (), generator=generator))
    mask = torch.triu(torch.full((length, length), -torch.inf, dtype=torch.float64), 1)

    def masked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = batch
        scores = model(x) @ x.transpose(1, 2) + mask.to(x)
        return ((scores.softmax(-1) @ x - y).square().sum()), len(x)

    data = [torch.randn(7, length, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    objective = build_objective(Problem(nn.Linear(3, 3).double(), [tuple(data)], masked))
    for operator in ("hessian", "residual"):
        error = product_error(objective, operator, seed)
        assert 0 < error < 1e-9, f"seed {seed}, {operator}: {error}"


# Operations whose derivatives compute shapes alone on the way, or find by equality what was chosen.
CHOOSING: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "softsign": functional.softsign,
    "l1_loss": lambda x: functional.l1_loss(x, x.detach() / 2, reduction="none"),
    "normalize": lambda x: functional.normalize(x, dim=1),
    "norm": lambda x: x.norm(dim=1),
    "infinite norm": lambda x: torch.linalg.vector_norm(x, ord=torch.inf, dim=1),
    "least norm": lambda x: torch.linalg.vector_norm(x, ord=-torch.inf, dim=1),
    "amax": lambda x: x.amax(1),
    "amax of a computed one": lambda x: (x * x).sin().amax((0, 1)),
    "amin": lambda x: x.amin(0),
    "aminmax": lambda x: torch.stack(torch.aminmax(x)),
    "max": torch.max,
    "min": torch.min,
    "max of rows": lambda x: x.max(1).values,
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "median": torch.median,
    "nanmedian": torch.nanmedian,
    "kthvalue": lambda x: x.kthvalue(2, dim=1).values,
    "topk": lambda x: x.topk(2, dim=1).values,
    "cummax": lambda x: x.cummax(1).values,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "max_pool": lambda x: functional.max_pool1d(x, 2),
    "logsumexp": lambda x: x.logsumexp(1),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_other_last_places_change_derivatives_by_rounding_only(name: str) -> None:
    """Whatever the operation, and never by an error that leaves the repetition without other last places."""
    for seed in range(3):
        drawn_at = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def product(at: Tensor) -> Tensor:
            x = at.clone().requires_grad_()
            (slope,) = torch.autograd.grad((CHOOSING[name](x) * 1.5).sin().sum(), x, create_graph=True)
            return torch.autograd.grad(slope, x, torch.linspace(1, 2, 24, dtype=x.dtype).reshape(4, 6))[0]

        truth = product(drawn_at)
        with LastPlaces(seed):
            found = product(drawn_at)
        gap = float((found - truth).norm())
        assert gap <= 1e-12 * float(truth.norm()), f"{name}, seed {seed}: {gap}"


class Rounding(nn.Module):
    """Rounds to float32 on its way, whatever it is given; or does not, for the truth."""

    rounds = True

    def forward(self, x: Tensor) -> Tensor:
        return x.float().to(x.dtype) if Rounding.rounds else x


@pytest.mark.parametrize("seed", range(4))
def test_a_comparison_that_rounds_inside_as_the_job_does_shows_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    width = 3 + seed % 2
    body = nn.Sequential(nn.Linear(2, width), Rounding(), nn.Tanh(), Rounding(), nn.Linear(width, 1))
    x = 3 * torch.randn(60, 2)
    y = 1e3 + torch.randn(60, 1)
    with torch.no_grad():
        body[-1].bias += 1e3
    problem = Problem(nn.Sequential(body, Rounding()), (x, y), "mse")
    objective = build_objective(problem)
    noise = product_error(objective, "hessian", seed)
    monkeypatch.setattr(Rounding, "rounds", False)
    wide = CurvatureOperator(objective.in_dtype(torch.float64))
    truth = wide(torch.eye(wide.n, dtype=torch.float64))
    monkeypatch.setattr(Rounding, "rounds", True)
    assert off(objective, truth) <= noise, f"seed {seed}"
