"""Ways of taking products that are wrong are refused, whatever the clock says; right ones are not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature import planner as planning
from landscape.curvature.agreement import Differences, Referee, product_contradicted, products
from landscape.curvature.operator import CurvatureOperator
from landscape.errors import ProblemError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem

PLAIN = ("recompute", "reverse", False)


class Writing(nn.Module):
    """Puts its features into a fresh tensor in one of the ways that torch 2.13 does not linearise."""

    def __init__(self, kind: str, shift: int) -> None:
        super().__init__()
        self.kind, self.shift = kind, shift

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "slice":
            out = torch.zeros_like(x)
            out[..., self.shift :] = x[..., : -self.shift]
        elif self.kind == "clone":
            out = x.clone()
            out[..., : self.shift] = x[..., -self.shift :].square()
        elif self.kind == "loop":
            out = torch.empty_like(x)
            for i in range(x.shape[-1]):
                out[..., i] = x[..., i] * x[..., i - self.shift]
        else:
            out = F.pad(x, (self.shift, 0), mode="circular")[..., : x.shape[-1]]
        return out


def writing(kind: str, seed: int) -> Problem:
    """A small convolutional network with one of these in its middle."""
    drawn = random.Random(seed)
    channels, length, classes = drawn.randint(2, 4), drawn.randint(6, 9), drawn.randint(2, 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv1d(1, channels, 3, padding=1), nn.Tanh(), Writing(kind, drawn.randint(1, 3)))
        model = nn.Sequential(body, nn.Conv1d(channels, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes))
        x, y = torch.randn(17, 1, length), torch.randint(classes, (17,))
        model(x)
    return Problem(model, (x, y), "cross_entropy")


class Bag(nn.Module):
    """Words that are averaged; number 0 is padding."""

    def __init__(self, words: int, width: int, classes: int, functional: bool, **options: Any) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(words, width, **options), nn.Linear(width, classes)
        self.functional = functional

    def forward(self, tokens: Tensor) -> Tensor:
        made = F.embedding(tokens, self.embedding.weight, padding_idx=0) if self.functional else self.embedding(tokens)
        return self.out(torch.tanh(made.mean(1)))


def padded(seed: int, functional: bool = False, **options: Any) -> Problem:
    """Sentences of different length whose padding row has been filled, as a checkpoint may have it."""
    drawn = random.Random(seed)
    words, classes = drawn.randint(6, 12), drawn.randint(2, 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Bag(words, drawn.randint(2, 4), classes, functional, **options)
        with torch.no_grad():
            model.embedding.weight.normal_()
        tokens = torch.randint(1, words, (19, 7))
        for row in tokens:
            row[drawn.randint(2, 7) :] = 0
        y = torch.randint(classes, (19,))
    return Problem(model, (tokens, y), "cross_entropy")


def wrong_ways(seed: int) -> Problem:
    """One of the networks on which some way of taking products is wrong."""
    kind = ("slice", "clone", "loop", "circular", "padding", "functional")[seed % 6]
    if kind in ("padding", "functional"):
        return padded(seed, kind == "functional", padding_idx=0)
    return writing(kind, seed)


def matrix(op: CurvatureOperator) -> Tensor:
    return op(torch.eye(op.n, dtype=op.dtype)).double()


@pytest.mark.parametrize("seed", range(6))
def test_the_strategy_never_changes_the_answer(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if every fast way is tried, and the clock calls it the faster one."""
    problem, dtype = wrong_ways(seed), (torch.float32, torch.float64, torch.float32)[seed % 3]
    objective = build_objective(problem, dtype=dtype)
    unit = torch.eye(objective.layout.total, dtype=torch.float64)
    truth = products(build_objective(problem, dtype=torch.float64), "hessian", PLAIN, unit)
    assert (truth - truth.T).norm() <= 1e-12 * truth.norm(), f"seed {seed}"
    for name in ("WORTH_PLANNING", "LAUNCH_BOUND"):
        monkeypatch.setattr(planning, name, -1.0)
    monkeypatch.setattr(planning, "LINEARIZE_PAYS_FROM", {"cpu": -1.0})
    monkeypatch.setattr(planning, "SHARE", 1e9)
    tried: list[str] = []
    trial = planning._Planner._trial

    def fastest(self: Any, way: Any, batch: Any, patient: bool) -> Any:
        found = trial(self, way, batch, patient)
        tried.append(way.strategy)
        return planning.replace(found, seconds=1.0 if way.strategy == "kept" else 1e-3 / way.block)

    monkeypatch.setattr(planning._Planner, "_trial", fastest)
    op = CurvatureOperator(objective, strategy=("auto", "linearize")[seed % 2], expected_products=10**6)
    bound = 1e4 * torch.finfo(dtype).eps
    assert (matrix(op) - truth).norm() <= bound * truth.norm(), f"seed {seed} {op.plan}"
    assert "linearize" in tried or op.plan.strategy == "kept"
    if op.plan.strategy == "kept":
        assert any("linearize" in n and "differs from double backward" in n for n in op.plan.notes), op.plan.notes


def test_a_right_way_is_not_refused() -> None:
    """The plain network: neither of the forward ways differs from double backward by more than rounding."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    problem = Problem(model, (torch.randn(30, 5), torch.randint(3, (30,))), "cross_entropy")
    referee = Referee(build_objective(problem, dtype=torch.float32), "hessian")
    assert [referee.objection(s, "forward", b) for s in ("recompute", "linearize") for b in (False, True)] == [""] * 4
    assert referee.reverse == ""


class Lopsided(torch.autograd.Function):
    """sin, whose second derivative is wrong by a factor in reverse mode; forward mode has the right one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * Slope.apply(ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t * ctx.saved_tensors[0].cos()


class Slope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.cos()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -3 * g * ctx.saved_tensors[0].sin()

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return -t * ctx.saved_tensors[0].sin()


class Wave(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_differences_take_the_side_of_the_way_that_is_right() -> None:
    """Double backward is the wrong one here, and both are symmetric."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    layers = nn.Linear(3, 4), nn.Linear(4, 2)
    wrong = Problem(nn.Sequential(layers[0], Wave(Lopsided.apply), layers[1]), (x, y), "mse")
    right = Problem(nn.Sequential(layers[0], Wave(torch.sin), layers[1]), (x, y), "mse")
    referee = Referee(build_objective(wrong, dtype=torch.float32), "hessian")
    assert referee.objection("recompute", "forward", False) == ""
    assert "differences of gradients" in referee.reverse
    refused = build_objective(wrong, dtype=torch.float64).refusing({"reverse": referee.reverse})
    op = CurvatureOperator(refused)
    truth = matrix(CurvatureOperator(build_objective(right, dtype=torch.float64)))
    assert op.plan.mode == "forward"
    assert any(referee.reverse in note for note in op.plan.notes)
    assert (matrix(op) - truth).norm() <= 1e-12 * truth.norm()


@pytest.mark.parametrize("operator", ["hessian", "ggn", "residual"])
@pytest.mark.parametrize("seed", range(4))
def test_differences_confirm_right_products_and_contradict_wrong_ones(seed: int, operator: str) -> None:
    """Smooth and kinked networks, and embeddings whose padding row backward leaves alone."""
    torch.manual_seed(seed)
    activation = (nn.Tanh, nn.ReLU, nn.Softplus)[seed % 3]
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))
    problem = Problem(model, (torch.randn(23, 4), torch.randint(3, (23,))), "cross_entropy")
    objective = build_objective(problem if seed < 3 else padded(seed, padding_idx=0), dtype=torch.float64)
    differences = Differences(objective, seed)
    right = products(objective, operator, PLAIN, differences.direction[None])[0]
    assert product_contradicted(differences, operator, right) is False
    assert product_contradicted(differences, operator, 1.05 * right) is True


def test_embeddings_scaled_by_frequency_are_refused_by_name() -> None:
    with pytest.raises(ProblemError, match=r"'embedding'.*scale_grad_by_freq") as caught:
        build_objective(padded(0, scale_grad_by_freq=True))
    assert "scale_grad_by_freq=False" in str(caught.value.hint)
    problem = padded(0, scale_grad_by_freq=True)
    problem.model.embedding.scale_grad_by_freq = False  # what the hint says
    build_objective(problem)


def test_also_where_no_module_says_so() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 3))

        def forward(self, tokens: Tensor) -> Tensor:
            return F.embedding(tokens, self.table, scale_grad_by_freq=True).mean(1)

    problem = Problem(Words(), (torch.randint(6, (9, 4)), torch.randint(3, (9,))), "cross_entropy")
    with pytest.raises(ProblemError, match="scale_grad_by_freq"):
        CurvatureOperator(build_objective(problem))


class OnFresh(nn.Module):
    """Assigns to a slice of memory that nothing has written, all of which is read."""

    def forward(self, x: Tensor) -> Tensor:
        made = torch.empty(len(x), 4, dtype=x.dtype)
        made[:, :2], made[:, 2:] = x[:, :2].tanh(), x[:, 2:]
        return made


@pytest.mark.parametrize("kind", ["circular", "fresh"])
def test_a_way_that_reads_memory_nothing_has_written_is_refused_every_time(kind: str) -> None:
    """Torch 2.13's forward derivatives of both do; by chance what lay there was right."""
    torch.manual_seed(0)
    if kind == "circular":
        images = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        model = nn.Sequential(images, nn.Tanh(), nn.Flatten(), nn.Linear(32, 2))
        x = torch.randn(20, 1, 4, 4)
    else:
        model, x = nn.Sequential(nn.Linear(3, 4), OnFresh(), nn.Linear(4, 2)), torch.randn(20, 3)
    problem = Problem(model, (x, torch.randint(2, (20,))), "cross_entropy")
    truth = CurvatureOperator(build_objective(problem), strategy="kept")
    for _ in range(5):
        operator = CurvatureOperator(build_objective(problem), strategy="linearize")
        v = torch.randn(truth.n, 2)
        assert torch.allclose(operator(v), truth(v), atol=1e-4 * float(truth(v).norm()))
        assert operator.plan.strategy != "linearize" or kind == "fresh"
    assert not torch.are_deterministic_algorithms_enabled()
