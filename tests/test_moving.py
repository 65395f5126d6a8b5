"""A model in another arithmetic is the same model: imaginary parts, integers and its loss stay what they were."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import Problem, spectrum
from landscape.errors import ProblemError
from landscape.problem.batches import move
from landscape.problem.copies import moved_model
from landscape.problem.objective import build_objective


class Turning(nn.Module):
    """Linear layers with complex numbers between them, a mask, a table of integers and a frozen complex parameter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = random.Random(seed)
        self.pairs, inputs, classes = drawn.randint(1, 4), drawn.randint(2, 4), drawn.randint(2, 4)
        self.enter, self.leave = nn.Linear(inputs, 2 * self.pairs), nn.Linear(2 * self.pairs, classes)
        angle = 3 * torch.rand(self.pairs)
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle), persistent=drawn.random() < 0.5)
        self.register_buffer("order", torch.randperm(2 * self.pairs))
        self.register_buffer("mask", torch.rand(2 * self.pairs) < 0.7)
        self.shift = nn.Parameter(torch.randn(self.pairs, dtype=torch.complex64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).tanh()
        z = torch.view_as_complex(h.unflatten(-1, (self.pairs, 2)).contiguous()) * self.turn + self.shift
        return self.leave(torch.view_as_real(z).flatten(-2)[..., self.order] * self.mask)


def turning(seed: int, dtype: torch.dtype = torch.float32) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Turning(seed)
        x = torch.randn(30, model.enter.in_features)
        y = torch.randint(model.leave.out_features, (30,))
    return Problem(model, (x.to(dtype), y), "cross_entropy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_complex_integers_and_booleans_survive_a_move(seed: int, dtype: torch.dtype) -> None:
    problem = turning(seed)
    made = moved_model(problem.model, torch.device("cpu"), dtype)
    there = made.state_dict(keep_vars=True) | dict(made.named_buffers())
    for name, tensor in (problem.model.state_dict() | dict(problem.model.named_buffers())).items():
        kind = {torch.float32: dtype, torch.complex64: dtype.to_complex()}.get(tensor.dtype, tensor.dtype)
        assert there[name].dtype == kind, f"seed {seed}: {name}"
        assert torch.equal(there[name].to(tensor.dtype), tensor), f"seed {seed}: {name}"
    own = F.cross_entropy(problem.model(problem.data[0]), problem.data[1]).detach()
    assert build_objective(problem, dtype=dtype).value() == pytest.approx(float(own), rel=1e-5), f"seed {seed}"
    assert build_objective(problem).in_dtype(dtype).value() == pytest.approx(float(own), rel=1e-5), f"seed {seed}"


def test_the_spectrum_of_a_network_with_complex_buffers_is_that_of_its_written_out_form() -> None:
    """(a + ib)(cos t + i sin t), as real numbers."""

    class Real(Turning):
        def forward(self, x: Tensor) -> Tensor:
            a, b = self.enter(x).tanh().unflatten(-1, (self.pairs, 2)).unbind(-1)
            c, s = self.turn.real, self.turn.imag
            z = torch.stack([a * c - b * s + self.shift.real, a * s + b * c + self.shift.imag], -1)
            return self.leave(z.flatten(-2)[..., self.order] * self.mask)

    problem = turning(1)
    model = Real(1)
    model.load_state_dict(problem.model.state_dict(), strict=False)
    model.turn.copy_(problem.model.turn)
    found, truth = (spectrum(Problem(m, problem.data, "cross_entropy"), exact=True) for m in (problem.model, model))
    assert found.loss == pytest.approx(truth.loss, rel=1e-6)
    assert found.top_value == pytest.approx(truth.top_value, abs=1e-6)


def test_complex_data_keep_their_imaginary_part() -> None:
    batch = {"z": torch.randn(3, dtype=torch.complex64), "n": torch.arange(3), "b": torch.ones(3, dtype=torch.bool)}
    found = move(batch, torch.device("cpu"), torch.float64)
    assert {k: t.dtype for k, t in found.items()} == {"z": torch.complex128, "n": torch.int64, "b": torch.bool}
    assert torch.equal(found["z"].to(torch.complex64), batch["z"])


def test_a_selected_complex_parameter_is_refused_and_the_hint_works() -> None:
    problem = turning(0)
    problem.model.shift.requires_grad_(True)
    with pytest.raises(ProblemError, match="'shift' is complex"):
        build_objective(problem)
    build_objective(problem, params=["enter", "leave"])
    problem.model.shift.requires_grad_(False)
    build_objective(problem)


class ByDtype(nn.Module):
    """Computes something else in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.1 if x.dtype == torch.float64 else 1.0)


def test_a_copy_with_another_loss_is_an_error_and_the_hint_works() -> None:
    torch.manual_seed(0)
    problem = Problem(ByDtype(), (torch.randn(20, 4), torch.randn(20, 3)), "mse")
    with pytest.raises(ProblemError, match="not that of its copy"):
        build_objective(problem, dtype=torch.float64)
    with pytest.raises(ProblemError, match="not that of its copy") as caught:
        spectrum(problem, exact=True)
    assert "--precision float32 --no-exact" in str(caught.value.hint)
    spectrum(problem, exact=False, precision="float32", density=False)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_no_other_loss(half: torch.dtype) -> None:
    """Half precision, targets far from 0, and losses near 0 lose digits, not their meaning."""
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    build_objective(Problem(nn.Linear(4, 3).to(half), (x.to(half), torch.randint(3, (40,))), "cross_entropy"))
    far = nn.Linear(4, 1)
    with torch.no_grad():
        far.bias.fill_(1.7e9)
    build_objective(Problem(far, (x, 1.7e9 + torch.randn(40, 1)), "mse"), dtype=torch.float64)
    sure = nn.Linear(4, 3)
    with torch.no_grad():
        sure.weight.mul_(200)
    y = sure(x).argmax(1)
    build_objective(Problem(sure, (x, y), "cross_entropy"), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_that_a_forward_changes_are_found_out(seed: int) -> None:
    drawn = random.Random(seed)

    class Words(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(9, 3, **options), nn.Linear(3, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.embedding(tokens).mean(1))

    torch.manual_seed(seed)
    model = Words(max_norm=drawn.uniform(0.2, 1.0))
    # the last samples alone have the word that is too long
    tokens = torch.zeros(400, 5, dtype=torch.long)
    tokens[-drawn.randint(1, 50) :] = 1 + torch.randint(8, ())
    with torch.no_grad():
        model.embedding.weight[0] = 0
    problem = Problem(model, (tokens, torch.randint(2, (400,))), "cross_entropy")
    before = model.embedding.weight.clone()
    with pytest.raises(ProblemError, match=r"changes the parameter 'embedding\.weight'"):
        build_objective(problem)
    assert torch.equal(before, model.embedding.weight), f"seed {seed}"
    model.embedding.max_norm = None  # what the hint says
    build_objective(problem)


def test_a_constant_in_float32_is_no_traceback() -> None:
    """Class weights inside a loss come along to float64."""
    torch.manual_seed(0)
    weight = torch.tensor([0.5, 1.0, 1.5])

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], weight=weight, reduction="sum"), len(batch[1])

    problem = Problem(nn.Linear(4, 3), [(torch.randn(20, 4), torch.randint(3, (20,)))], loss)
    found = spectrum(problem, density=False)
    assert found.exact
    assert not found.spent.notes
