"""Curvature products against closed forms and finite differences, for every operator, strategy, width and chunk."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models_zoo
from landscape.curvature import operator as operators
from landscape.curvature import planner as planning
from landscape.curvature.eigenpairs import krylov_width
from landscape.curvature.operator import OPERATORS, STRATEGIES, CurvatureOperator
from landscape.errors import ProblemError, UsageError
from landscape.problem.objective import Objective, build_objective
from landscape.problem.problem import Problem

DTYPES = [torch.float32, torch.float64]
WIDTHS = [1, 3, 8]
# To trace `linearize` takes a second a chunk: one chunk, where chunks are not what is asked about.
CHUNK = {"linearize": 1000}
CHUNKS = [4, 7, 1000]  # 4 and 7 divide neither N = 10 nor 13; 1000 is everything at once


def rounding(dtype: torch.dtype, work: float = 100.0) -> float:
    """Relative error allowed of a product: `work` roundings, the length of the longest sums here, in a row."""
    return work * torch.finfo(dtype).eps


def dense(op: CurvatureOperator, width: int | None = None) -> Tensor:
    """The matrix, column by column, in launches of `width`, as float64."""
    if width is not None:
        op.plan = replace(op.plan, block=width)
        op.release()
    return op(torch.eye(op.n, dtype=op.dtype, device=op.device)).cpu().double()


def products(op: CurvatureOperator, width: int | None = None) -> Tensor:
    """Products with the eight directions of `differences`, in launches of `width`."""
    if width is not None:
        op.plan = replace(op.plan, block=width)
        op.release()
    return op(unit_directions(op.n).to(op.dtype)).double()


def close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """‖actual − expected‖ ≤ relative · ‖expected‖ (Frobenius)."""
    error = (actual.cpu().double() - expected.cpu().double()).norm() / expected.double().norm().clamp_min(1e-300)
    assert error <= relative, f"relative error {error:.2e} > {relative:.1e}"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- closed forms -----------------------------------------------------------------------------------------------


def linear_regression() -> tuple[Problem, Tensor]:
    """Two outputs without bias: H = (2/n) I₂ ⊗ XᵀX."""
    x = torch.randn(13, 5, generator=seeded(), dtype=torch.float64)
    y = torch.randn(13, 2, generator=seeded(1), dtype=torch.float64)
    return Problem(nn.Linear(5, 2, bias=False), (x, y), "mse"), torch.kron(torch.eye(2).double(), 2 / 13 * x.T @ x)


def softmax_regression() -> tuple[Problem, Tensor]:
    """H = (1/n) Σ (diag p − ppᵀ) ⊗ xxᵀ."""
    model = nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 5, generator=seeded(2)))
    x = torch.randn(10, 5, generator=seeded(3), dtype=torch.float64)
    scores = x @ model.weight.detach().double().T
    p = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("ncd,ni,nj->cidj", inner, x, x).reshape(15, 15) / 10
    return Problem(model, (x, torch.arange(10) % 3), "cross_entropy"), hessian


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("oracle", [linear_regression, softmax_regression])
def test_convex_closed_forms(
    oracle: Callable[[], tuple[Problem, Tensor]], strategy: str, dtype: torch.dtype, chunk: int, device: str
) -> None:
    """Where the model is linear in θ, H is the GGN and the residual vanishes."""
    problem, hessian = oracle()
    if strategy == "linearize" and chunk != 7:  # to trace it takes a second a chunk
        return
    widths = [3] if strategy == "linearize" else WIDTHS
    objective = build_objective(problem, dtype=dtype, device=device)
    for name in ("hessian", "ggn") if chunk in (4, 7) else ("hessian",):
        operator = CurvatureOperator(objective, name, strategy=strategy, batch_size=chunk)
        for width in widths:
            close(dense(operator, width), hessian, rounding(dtype))
    if chunk == 7:
        operator = CurvatureOperator(objective, "residual", strategy=strategy, batch_size=chunk)
        for width in widths:
            assert dense(operator, width).norm() <= rounding(dtype) * hessian.norm()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_layer_linear_net_at_the_origin_has_plus_minus_s(strategy: str) -> None:
    """L = (1/n) Σ‖y − W₂W₁x‖²: at 0 the Hessian is ∓(2/n)·(singular values of YᵀX), each as often as it is wide."""
    hidden, inputs, outputs, n = 3, 4, 2, 11
    model = nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x, y = (torch.randn(n, d, generator=seeded(d), dtype=torch.float64) for d in (inputs, outputs))
    s = torch.linalg.svdvals(y.T @ x) * 2 / n
    zeros = torch.zeros(hidden * (inputs + outputs) - 2 * hidden * len(s), dtype=torch.float64)
    expected = torch.cat([s.repeat(hidden), -s.repeat(hidden), zeros]).sort().values
    op = CurvatureOperator(
        build_objective(Problem(model, (x, y), "mse"), dtype=torch.float64), strategy=strategy, batch_size=4
    )
    torch.testing.assert_close(
        torch.linalg.eigvalsh(dense(op)), expected, rtol=0, atol=rounding(op.dtype) * float(s[0])
    )


# ---- finite differences -----------------------------------------------------------------------------------------


def set_point(objective: Objective, theta: Tensor) -> None:
    with torch.no_grad():
        for parameter, value in zip(objective.parameters, objective.layout.unflatten(theta), strict=True):
            parameter.copy_(value)


def central(objective: Objective, function: Callable[[], Tensor], directions: Tensor, step: float = 1e-3) -> Tensor:
    """d function(θ + t v) / dt [m, b] for every direction v, by fourth-order central differences.

    Truncation step⁴ f⁽⁵⁾/30 ~ 3e-14 f⁽⁵⁾, rounding 1.5 eps/step ~ 3e-13 of the size of f.
    """
    theta, columns = objective.point(), []
    for v in directions.T:
        values = []
        for k in (-2, -1, 1, 2):
            set_point(objective, theta + k * step * v)
            values.append(function())
        a, b, c, d = values
        columns.append((a - 8 * b + 8 * c - d) / (12 * step))
    set_point(objective, theta)
    return torch.stack(columns, dim=1)


def unit_directions(n: int, width: int = 8) -> Tensor:
    return F.normalize(torch.randn(n, width, generator=seeded(42), dtype=torch.float64), dim=0)


# torch 2.13: `linearize` gives the right product once, then its kept constants have been overwritten in place
OVERWRITTEN = ("groupnorm", "attention", "transformer", "lstm", "gru")
# 3e-13 · ‖∇L‖ / ‖Hv‖ (≤ 1e2 for random v) and 3e-14 · f⁽⁵⁾ / ‖Hv‖ (≤ 1e5): both below 1e-8; the known bugs are at 1e-2
DIFFERENCE = 1e-8


@pytest.fixture(scope="module")
def differences() -> Callable[[str], Tensor]:
    known: dict[str, Tensor] = {}

    def of(name: str) -> Tensor:
        if name not in known:
            objective = build_objective(models_zoo.build(name), dtype=torch.float64)
            directions = unit_directions(objective.layout.total)
            known[name] = central(objective, lambda: objective.value_and_gradient()[1], directions)
        return known[name]

    return of


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_hessian_is_the_derivative_of_the_gradient(
    name: str, strategy: str, differences: Callable[[str], Tensor]
) -> None:
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    op = CurvatureOperator(objective, strategy=strategy, batch_size=7 if strategy == "linearize" else 3)
    if strategy == "linearize" and name in OVERWRITTEN:
        assert op.plan.strategy == "kept"
        assert any("second product differs" in n or "linearize" in n for n in op.plan.notes)
    else:
        assert (op.plan.strategy, op.plan.notes) == (strategy, ())
    expected, v = differences(name), unit_directions(op.n)
    product = products(op)
    close(product, expected, DIFFERENCE)
    close(v.T @ product, product.T @ v, rounding(op.dtype, 1000))


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_forward_mode_recompute(name: str, differences: Callable[[str], Tensor]) -> None:
    """`vmap(jvp(grad))`, which plans use where reverse mode has no second derivative."""
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    op = CurvatureOperator(objective, strategy="recompute")
    op.plan = replace(op.plan, mode="forward")
    close(products(op, 8), differences(name), DIFFERENCE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [n for n in models_zoo.ZOO if n != "groupnorm"])
def test_batched_double_backward(name: str, width: int, differences: Callable[[str], Tensor]) -> None:
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    close(products(CurvatureOperator(objective, strategy="kept"), width), differences(name), DIFFERENCE)


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_auto_is_right_whatever_it_chooses(name: str, differences: Callable[[str], Tensor]) -> None:
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    close(products(CurvatureOperator(objective)), differences(name), DIFFERENCE)


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_float32_is_float32(name: str, differences: Callable[[str], Tensor]) -> None:
    """eps32 = 1.2e-7 per operation; two normalised layers amplify by at most their conditioning, ~1e2."""
    objective = build_objective(models_zoo.build(name), dtype=torch.float32)
    close(products(CurvatureOperator(objective, strategy="kept")), differences(name), rounding(torch.float32, 300))


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_operators_agree_with_each_other(name: str) -> None:
    """H = GGN + residual; the GGN is positive semidefinite; strategies and widths give one matrix."""
    objective = build_objective(models_zoo.build(name), dtype=torch.float64)
    found = {o: products(CurvatureOperator(objective, o, strategy="kept")) for o in OPERATORS}
    v = unit_directions(objective.layout.total)
    close(found["ggn"] + found["residual"], found["hessian"], rounding(torch.float64, 1000))
    small = v.T @ found["ggn"]
    close(small, small.T, rounding(torch.float64, 1000))
    assert torch.linalg.eigvalsh((small + small.T) / 2)[0] >= -rounding(torch.float64, 1000) * small.norm()
    assert found["residual"].norm() > 1e-3 * found["hessian"].norm()  # the two are really different here
    for operator in ("ggn", "residual"):
        for strategy in (
            ("linearize", "recompute") if operator == "ggn" else ("recompute",)
        ):  # the residual traces twice
            op = CurvatureOperator(objective, operator, strategy=strategy, batch_size=7)
            scale = found["hessian"].norm() / found[operator].norm()  # the residual is a difference of larger ones
            close(
                products(op, 8 if strategy == "linearize" else None), found[operator], rounding(op.dtype, 1000) * scale
            )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ggn_of_mse_is_two_jtj_over_n(strategy: str, width: int) -> None:
    """J by central differences of the outputs: no autograd at all on the right-hand side."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=seeded(i)))
    x = torch.randn(10, 3, generator=seeded(20), dtype=torch.float64)
    y = torch.randn(10, 2, generator=seeded(21), dtype=torch.float64)
    objective = build_objective(Problem(model, (x, y), "mse"), dtype=torch.float64)
    with torch.no_grad():
        unit = torch.eye(objective.layout.total, dtype=torch.float64)
        jacobian = central(objective, lambda: objective.model(x).reshape(-1), unit)
    op = CurvatureOperator(objective, "ggn", strategy=strategy, batch_size=4)
    close(dense(op, width), 2 / 10 * jacobian.T @ jacobian, DIFFERENCE)


# ---- one matrix, however it is cut ------------------------------------------------------------------------------


def mlp_problem(samples: int = 21, seed: int = 0, **options: Any) -> Problem:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=seeded(100 + i)))
    x = torch.randn(samples, 4, generator=seeded(seed))
    y = torch.randint(3, (samples,), generator=seeded(seed + 1))
    return Problem(model, (x, y), "cross_entropy", **options)


def objective_of(problem: Problem, **options: Any) -> Objective:
    return build_objective(problem, dtype=torch.float64, **options)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("cut", [(20, 1), (1, 20), (13, 8), (7, 7, 7)])
def test_batches_and_chunks_change_nothing(operator: str, cut: tuple[int, ...]) -> None:
    """The 20 + 1 split on which a mean of batch means is 10 times off."""
    problem = mlp_problem()
    x, y = problem.data
    reference = dense(CurvatureOperator(objective_of(problem), operator, strategy="kept"))
    ragged = replace(problem, data=list(zip(x.split(cut), y.split(cut), strict=True)))
    for size in (None, 1, 4, 8):
        op = CurvatureOperator(objective_of(ragged), operator, batch_size=size, strategy="kept")
        close(dense(op), reference, rounding(torch.float64))


def weighted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    x, y, tokens = batch
    return (F.cross_entropy(model(x), y, reduction="none") * tokens).sum(), tokens.sum()


@pytest.mark.parametrize("cut", [(1000, 1), (1, 1000)])
def test_token_weights_over_ragged_batches(cut: tuple[int, int]) -> None:
    """A sample with w tokens weighs w, whatever batch it is in: the same as w copies of it."""
    problem = mlp_problem(1001)
    x, y = problem.data
    tokens = torch.randint(1, 4, (1001,), generator=seeded(5))
    tokens[-1] = 50  # the odd one out weighs most
    copies = (x.repeat_interleave(tokens, 0), y.repeat_interleave(tokens))
    reference = dense(CurvatureOperator(objective_of(replace(problem, data=copies))))
    data = list(zip(x.split(cut), y.split(cut), tokens.split(cut), strict=True))
    custom = replace(problem, data=data, loss=weighted)
    for size in (None, 300):
        close(dense(CurvatureOperator(objective_of(custom), batch_size=size)), reference, rounding(torch.float64, 1000))


class Fourier(nn.Module):
    """Complex weights kept as pairs of numbers, after an odd number of others."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.linspace(-1, 1, before))
        self.pairs = nn.Parameter(torch.stack([torch.linspace(0.1, 1, 3), torch.linspace(1, -0.5, 3)], dim=1))

    def forward(self, x: Tensor, viewed: bool = True) -> Tensor:
        spectrum = torch.fft.rfft(torch.tanh(x * self.before.sum()))
        real, imaginary = self.pairs.unbind(-1)
        weights = torch.view_as_complex(self.pairs) if viewed else torch.complex(real, imaginary)
        return torch.fft.irfft(spectrum * weights, n=4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("before", [1, 2, 3])
def test_pairs_seen_as_complex_numbers_anywhere_in_the_flat_vector(strategy: str, before: int) -> None:
    x, y = torch.randn(9, 4, generator=seeded(0)), torch.randn(9, 4, generator=seeded(1))

    def loss(viewed: bool) -> Callable[[nn.Module, tuple[Tensor, Tensor]], tuple[Tensor, int]]:
        return lambda model, batch: ((model(batch[0], viewed) - batch[1]).square().sum(), len(batch[0]))

    found, truth = (
        dense(CurvatureOperator(objective_of(Problem(Fourier(before), [(x, y)], loss(viewed))), strategy=how))
        for viewed, how in ((True, strategy), (False, "kept"))
    )
    close(found, truth, rounding(torch.float64))


COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": lambda z, y: F.cross_entropy(z @ y.T, torch.arange(len(z)), reduction="sum"),
    "variance": lambda z, y: ((z - z.mean(0)) ** 2).sum() + ((z - y) ** 2).sum(),
    "hardly": lambda z, y: ((z - y) ** 2).sum() + 1e-6 * (z.mean(0) ** 2).sum(),
    "ranking": lambda z, y: F.softplus(z.roll(1, 0) - z).sum(),
}


@pytest.mark.parametrize("kind", COUPLED)
@pytest.mark.parametrize("seed", range(2))
def test_batches_whose_samples_see_each_other_are_not_cut(kind: str, seed: int) -> None:
    generator = seeded(seed)
    n, outputs = int(torch.randint(6, 20, (), generator=generator)), int(torch.randint(2, 5, (), generator=generator))
    x, y = torch.randn(n, 3, generator=generator), torch.randn(n, outputs, generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return COUPLED[kind](model(batch[0]), batch[1].to(model(batch[0]).dtype)), len(batch[0])

    objective = objective_of(Problem(nn.Linear(3, outputs), [(x, y)], loss))
    whole = dense(CurvatureOperator(objective))
    close(dense(CurvatureOperator(objective, batch_size=n)), whole, rounding(torch.float64, 100))
    with pytest.raises(ProblemError, match=rf"of {n} samples differs.*pieces of 4") as caught:
        CurvatureOperator(objective, batch_size=4)
    assert "leave --batch-size out" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_over_samples_of_ones_own_may_be_cut(dtype: torch.dtype) -> None:
    """In any arithmetic, also where the network computes in less than its own."""
    for seed in range(4):
        x, y = (torch.randn(50, 3, generator=seeded(2 * seed + i), dtype=dtype) for i in range(2))

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor], cast: bool = seed % 2 == 1) -> tuple[Tensor, int]:
            inputs, targets = (t.float() for t in batch) if cast else batch
            weight = model.weight.to(inputs.dtype)
            return (1e3 + torch.tanh(inputs @ weight.T) - targets).square().sum(), len(inputs)

        objective = build_objective(Problem(nn.Linear(3, 3, bias=False).to(dtype), [(x, y)], loss), dtype=dtype)
        cut = dense(CurvatureOperator(objective, batch_size=7))
        close(cut, dense(CurvatureOperator(objective)), rounding(torch.float32, 1e3))


def test_duplicated_data_and_permuted_neurons() -> None:
    problem = mlp_problem()
    x, y = problem.data
    reference = dense(CurvatureOperator(objective_of(problem)))
    doubled = replace(problem, data=(torch.cat([x, x]), torch.cat([y, y])))
    close(dense(CurvatureOperator(objective_of(doubled), batch_size=5)), reference, rounding(torch.float64))
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        first, last = problem.model[0], problem.model[2]
        first.weight.copy_(first.weight[order].clone())
        first.bias.copy_(first.bias[order].clone())
        last.weight.copy_(last.weight[:, order].clone())
    permuted = dense(CurvatureOperator(objective_of(problem)))
    assert (permuted - reference).norm() > 0.1 * reference.norm()  # the matrix does move
    values, expected = torch.linalg.eigvalsh(permuted), torch.linalg.eigvalsh(reference)
    close(values, expected, rounding(torch.float64, 1000))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_symmetric_and_linear(operator: str, strategy: str, dtype: torch.dtype) -> None:
    objective = build_objective(mlp_problem(), dtype=dtype)
    op = CurvatureOperator(objective, operator, strategy=strategy, batch_size=CHUNK.get(strategy, 8))
    u, v = (torch.randn(op.n, 2, generator=seeded(i)).to(dtype) for i in (1, 2))
    norm = float(op(u).norm() * v.norm())
    assert abs(float((v.T @ op(u) - op(v).T @ u).norm())) <= rounding(dtype) * norm
    assert (op(2.5 * u - v) - (2.5 * op(u) - op(v))).norm() <= rounding(dtype) * norm
    torch.testing.assert_close(op(u[:, 0]), op(u)[:, 0])
    assert op(u).shape == u.shape
    assert op(u).dtype == dtype
    assert (op(torch.zeros_like(u)) == 0).all()
    assert op(u[:, :0]).shape == (op.n, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_decay_shifts_hessian_and_ggn_only(strategy: str) -> None:
    plain, decayed = objective_of(mlp_problem()), objective_of(mlp_problem(weight_decay=0.3))
    for operator, shift in (("hessian", 0.3), ("ggn", 0.3), ("residual", 0.0)):
        chunk = CHUNK.get(strategy, 8)
        a, b = (dense(CurvatureOperator(o, operator, strategy=strategy, batch_size=chunk)) for o in (plain, decayed))
        close(b, a + shift * torch.eye(len(a), dtype=torch.float64), rounding(torch.float64))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("pattern", ["0", "2.weight", "*.bias"])
def test_a_subset_of_parameters_is_the_diagonal_block(pattern: str, operator: str, strategy: str) -> None:
    problem = mlp_problem(weight_decay=0.1)
    whole, part = objective_of(problem), objective_of(problem, params=[pattern])
    index = torch.cat(
        [
            torch.arange(offset, offset + size)
            for name, offset, size in zip(whole.names, whole.layout.offsets, whole.layout.sizes, strict=True)
            if name in part.names
        ]
    )
    assert 0 < len(index) == part.layout.total < whole.layout.total
    block = dense(CurvatureOperator(whole, operator, strategy="kept"))[index][:, index]
    if strategy == "linearize" and (operator == "residual" or pattern == "0"):  # a second a trace
        return
    chunk = CHUNK.get(strategy, 8)
    close(dense(CurvatureOperator(part, operator, strategy=strategy, batch_size=chunk)), block, rounding(torch.float64))
    again = dense(CurvatureOperator(whole.with_parameters(part.names), operator, strategy=strategy))
    close(again, block, rounding(torch.float64))


def test_frozen_parameters_stay_fixed_and_tied_ones_count_once() -> None:
    problem = mlp_problem()
    whole = dense(CurvatureOperator(objective_of(problem)))
    problem.model[0].requires_grad_(False)
    op = CurvatureOperator(objective_of(problem))
    assert op.n == 5 * 3 + 3
    close(dense(op), whole[-18:, -18:], rounding(torch.float64))
    tied = objective_of(models_zoo.build("tied"))
    assert tied.names == ("scale", "embedding.weight", "mix.weight", "mix.bias")
    assert tied.layout.total == 1 + 30 + 36 + 6


# ---- no strategy fits all ---------------------------------------------------------------------------------------


class NoForwardMode(torch.autograd.Function):
    """x³ with double backward but without a forward-mode rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class OnlyOnce(NoForwardMode):
    """x³ that cannot be differentiated twice."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Cubed(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def cubed(function: Callable[[Tensor], Tensor]) -> Problem:
    model = Cubed(function)
    with torch.no_grad():
        model.linear.weight.copy_(torch.randn(3, 4, generator=seeded(7)))
        model.linear.bias.copy_(torch.randn(3, generator=seeded(8)))
    return replace(mlp_problem(), model=model)


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_forward_mode_missing_falls_back_to_reverse(strategy: str) -> None:
    reference = dense(CurvatureOperator(objective_of(cubed(lambda x: x**3))))
    op = CurvatureOperator(objective_of(cubed(NoForwardMode.apply)), strategy=strategy, batch_size=8)
    close(dense(op), reference, rounding(torch.float64))
    assert op.plan.mode == "reverse"
    if strategy == "linearize":
        assert op.plan.strategy == "kept"
        assert any(n.startswith("fell back: linearize") for n in op.plan.notes)


def test_blocks_fail_through_groupnorm_and_the_operator_takes_single_vectors(
    differences: Callable[[str], Tensor],
) -> None:
    op = CurvatureOperator(objective_of(models_zoo.build("groupnorm")), strategy="kept", expected_products=10**6)
    assert op.plan.block == 1
    assert any(n.startswith("fell back to blocks of 1") for n in op.plan.notes)
    close(products(op), differences("groupnorm"), DIFFERENCE)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_once_differentiable_is_refused_by_name(strategy: str, kind: str) -> None:
    with pytest.raises(ProblemError, match="cannot be differentiated twice: the backward of OnlyOnce"):
        CurvatureOperator(objective_of(cubed(OnlyOnce.apply)), kind, strategy=strategy)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_callers_no_grad_does_not_make_products_vanish(strategy: str, context: Callable[[], Any]) -> None:
    reference = dense(CurvatureOperator(objective_of(mlp_problem())))
    with context():
        op = CurvatureOperator(objective_of(mlp_problem()), strategy=strategy, batch_size=8)
        matrix = dense(op)
    close(matrix.clone(), reference, rounding(torch.float64))


# ---- plans, counts, memory --------------------------------------------------------------------------------------


def test_products_are_counted_one_a_vector_and_the_plan_is_plain_data() -> None:
    op = CurvatureOperator(objective_of(mlp_problem()), batch_size=8)
    assert op.products == 0
    op(torch.randn(op.n, 5).double())
    op(torch.randn(op.n).double())
    assert op.products == 6
    plan = op.plan.as_dict()
    assert (plan["operator"], plan["chunk"], plan["chunks"]) == ("hessian", 8, 3)
    assert plan["bytes_per_chunk"] > 0
    assert 0 < plan["product_seconds"] < 10


@pytest.mark.parametrize("expected", [10, 100, 1000])
def test_expected_products_change_the_plan_and_not_the_numbers(expected: int) -> None:
    reference = dense(CurvatureOperator(objective_of(mlp_problem(300)), strategy="kept", batch_size=77))
    op = CurvatureOperator(objective_of(mlp_problem(300)), expected_products=expected)
    assert op.plan.block == 1 or expected >= 64
    close(dense(op), reference, rounding(torch.float64))


@pytest.mark.parametrize("strategy", ["auto", "kept", "linearize"])
def test_little_memory_means_recomputing(strategy: str) -> None:
    reference = dense(CurvatureOperator(objective_of(mlp_problem()), strategy="kept"))
    op = CurvatureOperator(objective_of(mlp_problem()), strategy=strategy, batch_size=8, memory=1)
    assert (op.plan.strategy, op.plan.kept_chunks, op.plan.chunks) == ("recompute", 0, 3)
    assert any("0 of 3 chunks keep their graph" in n for n in op.plan.notes)
    close(dense(op), reference, rounding(torch.float64))
    assert op._chunks == [None] * 3


def test_part_of_the_chunks_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(mlp_problem())
    reference = CurvatureOperator(objective, strategy="kept", batch_size=8)
    room = 2.5 * reference.plan.bytes_per_chunk
    monkeypatch.setattr(operators, "keep_budget", lambda *_: room)
    op = CurvatureOperator(objective, strategy="kept", batch_size=8)
    assert (op.plan.kept_chunks, op.plan.strategy) == (2, "kept")
    close(dense(op), dense(reference), rounding(torch.float64))
    assert [c is not None for c in op._chunks] == [True, True, False]
    op.release()
    assert op._chunks == [None] * 3
    close(dense(op), dense(reference), rounding(torch.float64))


def test_the_largest_batch_is_the_one_measured() -> None:
    """A batch of one in front must not make the plan believe that graphs are small."""
    problem = mlp_problem(201)
    x, y = problem.data
    sizes = []
    for cut in ((1, 200), (200, 1)):
        data = list(zip(x.split(cut), y.split(cut), strict=True))
        custom = replace(
            problem, data=data, loss=lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))
        )
        sizes.append(CurvatureOperator(objective_of(custom), strategy="kept").plan.bytes_per_chunk)
    assert sizes[0] == sizes[1]


FAILURES = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


class Allocator:
    """Products that fail by `rule(samples, width, kept)`; counts the calls."""

    def __init__(self, op: CurvatureOperator, error: Exception, rule: Callable[[int, int, int], bool]) -> None:
        self.op, self.error, self.rule, self.calls, self.armed = op, error, rule, 0, True
        self.build = op._build

    def __call__(self, batch: Any) -> Any:
        product = self.build(batch)

        def wrapped(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self.calls += 1
            samples, width = len(batch[0]), vectors[0].shape[0]
            if self.rule(samples, width, self.op.plan.kept_chunks):
                raise self.error
            return product(vectors)

        return wrapped


@pytest.mark.parametrize("error", FAILURES, ids=["cuda", "cpu"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_out_of_memory_gives_up_graphs_then_blocks_then_chunks(
    strategy: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = dense(CurvatureOperator(objective_of(mlp_problem()), strategy="kept"))
    op = CurvatureOperator(objective_of(mlp_problem()), strategy=strategy, batch_size=8)
    op.plan = replace(op.plan, block=8)
    allocator = Allocator(op, error, lambda samples, width, kept: kept > 0 or width > 2 or samples > 4)
    monkeypatch.setattr(op, "_build", allocator)
    monkeypatch.setattr(operators, "release_cached", lambda device: None)  # it collects garbage every time
    op.release()
    close(dense(op), reference, rounding(torch.float64))
    assert (op.plan.kept_chunks, op.plan.block, op.plan.chunk, op.plan.chunks) == (0, 1, 4, 6)
    assert op.products == op.n
    told = " ".join(op.plan.notes)
    assert "chunks of 4 samples instead of 8" in told
    assert "blocks of 4 vectors instead of 8" in told
    assert ("chunks kept instead of 3" in told) == (strategy != "recompute")
    assert op.plan.strategy == "recompute"


def test_a_narrower_block_serves_the_call_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 fit: nothing more than the block may be given up."""
    op = CurvatureOperator(objective_of(mlp_problem()), strategy="recompute", batch_size=8)
    reference = dense(op)
    op.plan = replace(op.plan, block=8)
    allocator = Allocator(op, FAILURES[0], lambda samples, width, kept: width > 4)
    monkeypatch.setattr(op, "_build", allocator)
    close(dense(op), reference, rounding(torch.float64))
    assert (op.plan.block, op.plan.chunk) == (4, 8)


@pytest.mark.parametrize("fail_at", [1, 2, 5, 9])
def test_running_out_once_half_way_loses_nothing(fail_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some chunks had been added when it happened: the block starts over."""
    op = CurvatureOperator(objective_of(mlp_problem()), strategy="kept", batch_size=8)
    reference = dense(op)
    op.release()
    allocator = Allocator(op, FAILURES[1], lambda *_: allocator.calls == fail_at)
    monkeypatch.setattr(op, "_build", allocator)
    close(dense(op), reference, rounding(torch.float64))
    assert op.plan.kept_chunks == 1
    assert op.plan.chunk == 8


def test_nothing_left_to_give_up_raises_the_original_error(monkeypatch: pytest.MonkeyPatch) -> None:
    op = CurvatureOperator(objective_of(mlp_problem()), batch_size=8)
    op.release()
    monkeypatch.setattr(op, "_build", Allocator(op, FAILURES[0], lambda *_: True))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        op(torch.randn(op.n, 3).double())
    assert caught.value is FAILURES[0]
    assert op.plan.chunk == 1
    gc.collect()


def test_other_errors_are_not_mistaken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    op = CurvatureOperator(objective_of(mlp_problem()), batch_size=8)
    before = op.plan
    op.release()
    monkeypatch.setattr(op, "_build", Allocator(op, RuntimeError("shapes do not match"), lambda *_: True))
    with pytest.raises(RuntimeError, match="shapes"):
        op(torch.randn(op.n).double())
    assert op.plan == before


@pytest.mark.parametrize("options", [{"operator": "jacobian"}, {"strategy": "fast"}])
def test_unknown_names_are_refused_with_the_choices(options: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        CurvatureOperator(objective_of(mlp_problem()), **options)
    assert "choose one of" in (caught.value.hint or "")


# ---- planning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_block_that_is_asked_for_is_used(strategy: str) -> None:
    reference = dense(CurvatureOperator(objective_of(mlp_problem())))
    op = CurvatureOperator(objective_of(mlp_problem()), strategy=strategy, block=5, expected_products=10**6)
    assert (op.plan.block, op.width) == (5, 5)
    close(dense(op), reference, rounding(torch.float64))


def test_a_long_job_of_a_tiny_net_is_planned_in_blocks_and_its_cost_is_known() -> None:
    op = CurvatureOperator(objective_of(mlp_problem()), expected_products=10**5)
    timed = dict(op.plan.seconds_by_block)
    assert set(timed) >= {1, 4}
    assert op.plan.block == min(timed, key=lambda width: timed[width])
    assert op.plan.product_seconds == timed[op.plan.block]
    assert op.plan.planning_seconds < 0.2 * 10**5 * timed[1]


def test_a_short_job_is_not_planned() -> None:
    op = CurvatureOperator(objective_of(mlp_problem(300)), expected_products=1)
    assert op.plan.seconds_by_block == ()
    assert op.plan.planning_seconds < 1.0


def test_where_graphs_do_not_fit_a_block_shares_what_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LINEARIZE_PAYS_FROM", {"cpu": 0.0})
    reference = dense(CurvatureOperator(objective_of(mlp_problem())))
    op = CurvatureOperator(objective_of(mlp_problem()), batch_size=8, memory=1, expected_products=10**6)
    assert (op.plan.strategy, op.plan.kept_chunks) == ("recompute", 0)
    assert op.plan.block > 1
    close(dense(op), reference, rounding(torch.float64))


@pytest.mark.parametrize(
    ("timed", "width"),
    [
        (((1, 1.0), (4, 0.9)), 1),  # blocks gain nothing a vector: their detour would only cost
        (((1, 1.0), (4, 0.2), (16, 0.1)), 4),  # 4^0.62 · 0.2 = 0.47 < 16^0.62 · 0.1 = 0.56
        (((1, 1.0), (4, 0.2), (16, 0.02)), 16),
        ((), 1),
    ],
)
def test_lanczos_takes_blocks_where_their_predicted_cost_is_lower(
    timed: tuple[tuple[int, float], ...], width: int
) -> None:
    op = CurvatureOperator(objective_of(mlp_problem()))
    op.plan = replace(op.plan, seconds_by_block=timed)
    assert krylov_width(op, 20) == width
