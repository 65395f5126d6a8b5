"""What autograd says of a loss is held to the loss before a spectrum is made of it; honest networks are left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from landscape import Problem, descend, escape, spectrum
from landscape.curvature.trust import trusted
from landscape.errors import ProblemError
from landscape.problem.objective import build_objective
from test_agreement import Lopsided, Wave, padded


def honest(seed: int) -> Problem:
    """An ordinary float32 network with kinks: fresh or moved biases, blank pixels, dead units, all-zero inputs."""
    drawn = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size, classes = drawn.choice([6, 8]), drawn.randint(2, 5)
        kink = drawn.choice([nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ELU, nn.ReLU6])
        body = [nn.Conv2d(1, drawn.randint(2, 6), 3, padding=1), kink(), nn.MaxPool2d(2)]
        if drawn.random() < 0.4:
            body.insert(1, nn.BatchNorm2d(body[0].out_channels))
        width = body[0].out_channels * (size // 2) ** 2
        head = [nn.Flatten(), nn.Linear(width, 8), kink(), nn.LayerNorm(8), nn.Linear(8, classes)]
        model = nn.Sequential(*body, *head)
        if drawn.random() < 0.5:
            for module in model:
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        x = torch.randn(90, 1, size, size)
        x[:, :, : drawn.randint(0, size // 2)] = 0  # blank borders, where max-pool and ReLU tie
        x[: drawn.choice([0, 30])] = 0
        if drawn.random() < 0.3:
            x = x.round()
        if drawn.random() < 0.3:
            y: Tensor = torch.randn(90, classes)
            return Problem(model, (x, y), "mse")
        y = torch.randint(classes, (90,))
    return Problem(model, (x, y), "cross_entropy")


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("block", range(4))
def test_no_false_alarm_on_networks_with_kinks(block: int, operator: str) -> None:
    for seed in range(10 * block, 10 * block + 10):
        objective, _ = trusted(build_objective(honest(seed)), operator, seed)
        assert objective.refused == {}, f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_backward_leaves_alone_are_no_false_alarm(seed: int) -> None:
    objective, doubts = trusted(build_objective(padded(seed, functional=seed % 2 == 0, padding_idx=0)), "hessian", seed)
    assert (objective.refused, doubts) == ({}, []), f"seed {seed}"


class Experts(nn.Module):
    """Linear experts, mixed by a softmax."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, 3)
        self.experts = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x).softmax(-1)[:, None] * torch.stack([e(x) for e in self.experts], -1)).sum(-1)


def test_no_false_alarm_where_a_few_samples_are_all_but_certain() -> None:
    """The loss is a sum of one to three numbers of the size of rounding, whose differences say nothing."""
    for seed in range(40):
        drawn = random.Random(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Experts(3, drawn.randint(2, 4)).double()
            for parameter in model.parameters():
                parameter.data *= 3
            x = drawn.choice([20, 50, 100, 1e4]) * torch.randn(drawn.randint(1, 3), 3, dtype=torch.float64)
        objective, _ = trusted(build_objective(Problem(model, (x, model(x).argmax(1)), "cross_entropy")), "hessian", 0)
        assert objective.refused == {}, f"seed {seed}"


class Wrong(torch.autograd.Function):
    """tanh with a backward that is off by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.factor * g * (1 - x.tanh().square()), None


class Surrogate(torch.autograd.Function):
    """Steps forward, a straight line backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(2 * x) / 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()


class Product(torch.autograd.Function):
    """x · w, whose double backward forgets one of the two mixed terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w.detach(), g * x


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.scale.expand_as(x))


class Hooked(nn.Module):
    """Replaces gradients that pass through it."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh()
        if y.requires_grad:
            y.register_hook(self.how)
        return y


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.requires_grad or not self.reentrant else x.clone().requires_grad_()
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def liar(kind: str, seed: int) -> Problem:
    """A network, one of whose modules (number 1, called so) tells autograd something else than it computes."""
    drawn = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inputs, width, classes = drawn.randint(2, 5), drawn.randint(3, 6), drawn.randint(2, 4)
        factor = drawn.choice([0.5, 0.9, 1.3, -1.0])
        modules: dict[str, nn.Module] = {
            "backward": Wave(lambda x: Wrong.apply(x, factor)),
            "surrogate": Wave(Surrogate.apply),
            "detached": Wave(lambda x: x.tanh() * x.tanh().detach()),
            "hook": Hooked(lambda g: factor * g),
            "clipping": Hooked(lambda g: g.clamp(-1e-4, 1e-4)),
            "second": Wave(lambda x: Lopsided.apply(x)),
            "mixed": Scaled(width),
            "weight_norm": weight_norm(nn.Linear(width, width)),
        }
        model = nn.Sequential(nn.Linear(inputs, width), modules[kind], nn.Tanh(), nn.Linear(width, classes))
        x, y = torch.randn(40, inputs), torch.randint(classes, (40,))
    return Problem(model, (x, y), "cross_entropy")


@pytest.mark.parametrize("kind", ["backward", "surrogate", "detached", "hook", "clipping"])
@pytest.mark.parametrize("seed", range(2))
def test_a_gradient_that_is_not_that_of_the_loss_is_said_and_placed(kind: str, seed: int) -> None:
    with pytest.raises(ProblemError, match=r"gradient is not the derivative of this loss because of '1'"):
        trusted(build_objective(liar(kind, seed)), "hessian", seed)


@pytest.mark.parametrize("kind", ["mixed", "weight_norm"])
@pytest.mark.parametrize("seed", range(2))
def test_an_asymmetric_operator_is_never_certified(kind: str, seed: int) -> None:
    where = r"'1(\.parametrizations\.weight\.0)?'"
    with pytest.raises(ProblemError, match=rf"Hessian is not that of this loss because of {where} .*u·Hv"):
        trusted(build_objective(liar(kind, seed)), "hessian", seed)
    for exact in (True, False):
        with pytest.raises(ProblemError, match="not that of this loss"):
            spectrum(liar(kind, seed), exact=exact)


class Faint(nn.Module):
    """A module that hardly counts beside a large, honest one."""

    def __init__(self, module: nn.Module, inputs: int, outputs: int, share: float) -> None:
        super().__init__()
        self.inner, self.first, self.last = module, nn.Linear(inputs, 4), nn.Linear(4, outputs)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.share * self.inner(x)


@pytest.mark.parametrize("kind", ["mixed", "weight_norm"])
@pytest.mark.parametrize("seed", range(3))
def test_a_small_asymmetric_part_beside_large_eigenvalues_is_not_certified(kind: str, seed: int) -> None:
    drawn = random.Random(seed)
    share = 10 ** -drawn.uniform(1, 2.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(5, 5), Scaled(5) if kind == "mixed" else weight_norm(nn.Linear(5, 5)))
        model = Faint(module, 5, 5, share)
        data = 3 * torch.randn(40, 5), torch.randn(40, 5)
    for exact in (True, False):
        with pytest.raises(ProblemError, match=r"because of 'inner.*u·Hv"):
            spectrum(Problem(model, data, "mse"), exact=exact)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_no_certificate_of_an_asymmetric_hessian() -> None:
    for made in (lambda p: escape(p, certify_only=True), lambda p: descend(p, steps=1, method="newton")):
        with pytest.raises(ProblemError, match=r"Hessian is not that of this loss because of.*WeightNorm") as caught:
            made(liar("weight_norm", 0))
        assert "landscape doctor" in str(caught.value.hint)


UNFINISHED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hardsigmoid": lambda z, t: F.hardsigmoid(z).sum(),
    "multi_margin_loss": lambda z, t: F.multi_margin_loss(z, t, reduction="sum"),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", UNFINISHED)
def test_functions_without_a_second_derivative_are_an_error_everywhere(name: str) -> None:
    problem = liar("backward", 0)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return UNFINISHED[name](model(batch[0]), batch[1]), len(batch[1])

    torch.manual_seed(0)
    honest_one = Problem(nn.Linear(problem.data[0].shape[1], 4), [problem.data], loss)
    for made in (spectrum, escape, descend):
        with pytest.raises(ProblemError, match=r"cannot be differentiated twice.*not implemented"):
            made(honest_one)


@pytest.mark.parametrize("exact", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_forward_mode_takes_over_where_only_reverse_mode_is_wrong(exact: bool) -> None:
    problem = liar("second", 0)
    found = spectrum(problem, exact=exact, precision="float64", top=3, bottom=3, density=False)
    model = nn.Sequential(problem.model[0], Wave(torch.sin), *problem.model[2:])
    truth = spectrum(Problem(model, problem.data, "cross_entropy"), exact=True)
    for value, residual, right in zip(found.top_value, found.top_residual, truth.top_value, strict=False):
        assert abs(value - right) <= residual + truth.top_residual[0]
    assert any("double backward" in note and "forward mode" in note for note in found.spent.notes)


def test_reentrant_checkpoints_are_refused_by_name_and_the_hint_works() -> None:
    torch.manual_seed(0)
    data = torch.randn(30, 4), torch.randint(3, (30,))

    def problem(reentrant: bool, whole: bool) -> Problem:
        inner, head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
        if whole:
            return Problem(Checkpointed(nn.Sequential(inner, head), reentrant), data, "cross_entropy")
        return Problem(nn.Sequential(Checkpointed(inner, reentrant), head), data, "cross_entropy")

    for whole in (True, False):
        with pytest.raises(ProblemError, match="reentrant") as caught:
            spectrum(problem(True, whole))
        assert "use_reentrant=False" in str(caught.value.hint)
        spectrum(problem(False, whole), density=False, exact=False)


def test_a_loss_that_never_reaches_the_model_is_an_error() -> None:
    torch.manual_seed(0)
    outer, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.randint(3, (20,))

    def closure(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(outer(batch[0]), batch[1], reduction="sum"), len(batch[1])

    def cut(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]).detach(), batch[1], reduction="sum"), len(batch[1])

    for loss in (closure, cut):
        with pytest.raises(ProblemError, match="does not depend on any trainable parameter") as caught:
            build_objective(Problem(outer, [(x, y)], loss))
        assert "call the `model` you are given" in str(caught.value.hint)
    unused = nn.ModuleDict({"body": nn.Linear(4, 3), "spare": nn.Linear(2, 2)})

    def through(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model["body"](batch[0]), batch[1], reduction="sum"), len(batch[1])

    problem = Problem(unused, [(x, y)], through)
    build_objective(problem, params=["body.*"])
    with pytest.raises(ProblemError, match="does not depend on"):
        build_objective(problem, params=["spare.*"])
