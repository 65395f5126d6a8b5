"""Losses that take derivatives, hold constants of another dtype, or call compiled parts are right everywhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dense_truth import dense_truth
from landscape.diagnosis.run import doctor
from landscape.errors import NarrowError, ProblemError
from landscape.problem.objective import build_objective, build_widest
from landscape.problem.problem import Problem
from landscape.problem.user_loss import CalledLoss
from landscape.slices.run import slice as slice_surface
from landscape.spectra.run import spectrum
from landscape.stack.build import build_stack
from landscape.stack.hessians import dense_hessians

SEEDS = range(6)
Loss = Callable[[nn.Module, Any], tuple[Tensor, int]]


def by_grad(order: int, enabled: bool) -> Loss:
    """‖u⁽ᵒʳᵈᵉʳ⁾ + u‖² by `autograd.grad`, perhaps with gradients switched on in the loss itself."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        with torch.enable_grad() if enabled else torch.autograd.set_detect_anomaly(False):
            x = batch[0].detach().clone().requires_grad_(True)
            u = part = model(x)
            for _ in range(order):
                part = torch.autograd.grad(part.sum(), x, create_graph=True)[0]
            return ((part.sum(1, keepdim=True) + u) ** 2).sum(), len(x)

    return loss


def by_func(order: int) -> Loss:
    """The same by `torch.func`, as PyTorch's tutorials write it."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        (x,) = batch

        def part(t: Tensor) -> Tensor:
            return model(t.unsqueeze(0)).sum()

        for _ in range(order):
            inner = part
            part = lambda t, inner=inner: torch.func.grad(inner)(t).sum()  # noqa: E731
        return ((torch.func.vmap(part)(x).unsqueeze(1) + model(x)) ** 2).sum(), len(x)

    return loss


class Force(nn.Module):
    """−∂E/∂x of an energy: a derivative inside of the model, which the named losses call."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class OnlyWithGradients(nn.Module):
    """Adds a term where gradients are recorded, as gradient penalties do in training."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return z + 0.1 * z**3 if torch.is_grad_enabled() else z


def derivative_problem(seed: int) -> tuple[str, Problem]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    inputs, width = rng.choice([1, 2]), rng.choice([2, 3])
    smooth = rng.choice([nn.Tanh, nn.GELU, nn.Softplus])
    net = nn.Sequential(nn.Linear(inputs, width), smooth(), nn.Linear(width, 1))
    x = torch.randn(rng.choice([3, 5]), inputs)
    kinds = ["grad", "grad enabled", "func", "force", "only with gradients"]
    kind, order = kinds[seed % len(kinds)], rng.choice([1, 2])
    name = f"seed {seed}: {kind}, order {order}, {smooth.__name__}, {inputs} inputs"
    if kind in ("force", "only with gradients"):
        model = Force(net) if kind == "force" else OnlyWithGradients(net)
        return name, Problem(model, (x, torch.randn(len(x), inputs if kind == "force" else 1)), "mse")
    loss = by_func(order) if kind == "func" else by_grad(order, kind == "grad enabled")
    return name, Problem(net, [(x,), (x[:2] + 1,)], loss)


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_with_derivatives_inside(seed: int) -> None:
    """Value, gradient and both ways to the Hessian, in whatever mode the caller is."""
    name, problem = derivative_problem(seed)
    truth = dense_truth(problem, sharp=False)
    with torch.inference_mode():
        objective = build_objective(problem, dtype=torch.float64)
        assert objective.value() == pytest.approx(truth.loss, rel=1e-12), name
    stack, theta = build_stack([problem], objective=objective)
    assert float(stack.values(theta)) == pytest.approx(truth.loss, rel=1e-12), name
    scale = max(truth.scale, 1e-12)
    matrix = dense_hessians(stack, theta).matrix[0]
    assert (matrix - torch.from_numpy(truth.matrix)).abs().max() < 1e-11 * scale, name
    found = spectrum(problem, exact=True, density=False)
    assert abs(found.eigenvalues - truth.eigenvalues).max() < 1e-10 * scale, name


def test_slices_and_diagnoses_of_derivatives() -> None:
    for seed in (0, 2):
        name, problem = derivative_problem(seed)
        surface = slice_surface(problem, points=(3, 3))
        assert not surface.faults, name
        assert surface.loss[1, 1] == pytest.approx(build_objective(problem).value(), rel=1e-5), name
        assert doctor(problem).verdict != "fault", name


def test_no_gauss_newton_matrix_of_what_is_no_function_of_the_outputs() -> None:
    for seed in (0, 2):
        with pytest.raises(ProblemError, match="Gauss-Newton") as caught:
            spectrum(derivative_problem(seed)[1], operator="ggn")
        assert "--operator hessian" in str(caught.value.hint)


# ---- constants ----------------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A table that is no buffer, a unit matrix made in forward, and sums scattered into fresh zeros."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.out = kind, nn.Linear(3, 2)
        self.table = torch.linspace(-1, 1, 3)
        self.more = {"tables": [torch.tensor([0.25, 0.5, 2.0])]}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "table":
            x = torch.tanh(F.linear(x, torch.outer(self.table, self.more["tables"][0])))
        elif self.kind == "eye":
            x = x @ (torch.eye(3) + 0.5 * torch.ones(3, 3)).to(x.device)
        else:
            x = torch.zeros(len(x), 3).index_add_(0, torch.arange(len(x)).flip(0), self.out.weight.sum() * x)
        return self.out(x)


def constant_problem(seed: int) -> tuple[str, Problem, Problem]:
    """A problem that holds float32, and the same one that holds float64."""
    torch.manual_seed(seed)
    kind = ["weights", "table", "eye", "scatter"][seed % 4]
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    if kind == "weights":
        weight, model = torch.rand(2) + 0.5, nn.Linear(3, 2)

        def weighted(weight: Tensor) -> Loss:
            return lambda m, b: (F.cross_entropy(m(b[0]), b[1], weight=weight, reduction="sum"), len(b[1]))

        return kind, Problem(model, [(x, y)], weighted(weight)), Problem(model, [(x, y)], weighted(weight.double()))
    model = Positions(kind)
    return kind, Problem(model, (x, y), "cross_entropy"), Problem(model, (x, y), "cross_entropy")


@pytest.mark.parametrize("seed", range(4))
def test_float32_constants_in_float64(seed: int) -> None:
    name, problem, twin = constant_problem(seed)
    made = build_objective(twin if name == "weights" else problem, dtype=torch.float64)
    before = torch.get_default_dtype()
    found = spectrum(problem, exact=True, density=False)
    assert torch.get_default_dtype() == before
    assert found.spent is not None
    assert found.spent.dtype == "float64"
    if name == "weights":
        truth = dense_truth(twin, sharp=False)
        assert abs(found.eigenvalues - truth.eigenvalues).max() < 1e-12 * truth.scale, name
    stack, theta = build_stack([problem], objective=build_objective(problem, dtype=torch.float64))
    assert float(stack.values(theta)) == pytest.approx(made.value(), rel=1e-12), name
    matrix = dense_hessians(stack, theta).matrix[0]
    assert abs(torch.linalg.eigvalsh(matrix).numpy() - found.eigenvalues).max() < 1e-12, name
    assert matrix.dtype == torch.float64


class OnlyFloat32(torch.autograd.Function):
    """A kernel that exists in one arithmetic, as those of many packages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("kernel: float32 only")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


class Kernel(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(OnlyFloat32.apply(x @ self.weight.T @ self.weight))


def test_what_runs_in_float32_only_is_certified_in_it_or_refused_with_the_cause() -> None:
    torch.manual_seed(0)
    problem = Problem(Kernel(3, 2), (torch.randn(4, 3), torch.randn(4, 2)), "mse")
    with pytest.raises(NarrowError, match=r"not in float64.*float32 only"):
        build_objective(problem, dtype=torch.float64)
    objective, notes = build_widest(problem, "auto")
    assert objective.dtype == torch.float32
    assert "float32" in notes[0]
    with pytest.raises(NarrowError):
        build_widest(problem, "float64")
    with pytest.raises(ProblemError, match="not in float64"):
        spectrum(problem, exact=True)
    assert "no dense solution" in str(spectrum(problem, density=False, top=1, bottom=1).spent)


def test_a_loss_that_fails_everywhere_blames_the_data() -> None:
    problem = Problem(nn.Linear(3, 2), (torch.randn(4, 5), torch.randn(4, 2)), "mse")
    with pytest.raises(ProblemError, match="fails on the data") as caught:
        build_objective(problem, dtype=torch.float64)
    assert not isinstance(caught.value, NarrowError)


# ---- what torch.compile made --------------------------------------------------------------------------------------


def test_compiled_parts_run_as_they_were() -> None:
    """Of a whole network, of a part and of the loss; nothing is compiled, which would take a minute here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(5, 3), torch.randint(2, (5,))

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    truth = dense_truth(Problem(net, (x, y), "cross_entropy"), sharp=False)
    part = nn.Sequential(net[0], torch.compile(nn.Sequential(net[1], net[2])))
    for problem in (
        Problem(torch.compile(net), (x, y), "cross_entropy"),
        Problem(part, [(x, y)], loss),
        Problem(net, [(x, y)], torch.compile(loss)),
    ):
        objective = build_objective(problem, dtype=torch.float64)
        assert objective.value() == pytest.approx(truth.loss, rel=1e-12)
        stack, theta = build_stack([problem], objective=objective)
        assert (dense_hessians(stack, theta).matrix[0] - torch.from_numpy(truth.matrix)).abs().max() < 1e-13
    assert Problem(torch.compile(net), (x, y), "mse").model is net


def test_ordinary_losses_are_called_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "torch._dynamo", raising=False)
    problem = Problem(nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2)), "mse")
    assert not isinstance(build_objective(problem, dtype=torch.float64).loss, CalledLoss)


def scalar(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: model(z[None])[0, 0]


# Every way of `torch.func` to a derivative by the inputs; forward mode in its own tensors.
TRANSFORMED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap of grad": lambda m, x: torch.func.vmap(torch.func.grad(scalar(m)))(x).sum(1),
    "vmap of hessian": lambda m, x: torch.func.vmap(lambda z: torch.func.hessian(scalar(m))(z).diagonal().sum())(x),
    "vmap of jacfwd": lambda m, x: torch.func.vmap(torch.func.jacfwd(scalar(m)))(x).sum(1),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),))[1][:, 0],
    "jvp of jvp": lambda m, x: torch.func.jvp(
        lambda z: torch.func.jvp(m, (z,), (torch.ones_like(z),))[1], (x,), (torch.ones_like(x),)
    )[1][:, 0],
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_derivatives_inside(name: str, dtype: torch.dtype) -> None:
    """A repetition with other last places would end the process in some of them."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype), torch.randn(9, 2, dtype=dtype)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, int]:
        return (TRANSFORMED[name](model, batch[0]) + model(batch[0])[:, 0]).square().sum(), len(batch[0])

    problem = Problem(model, [(x,)], loss)
    truth = dense_truth(problem, sharp=False)
    for settings in ({"exact": True}, {"exact": False, "strategy": "kept"}):
        found = spectrum(problem, top=2, bottom=1, density=False, **settings)
        off = abs(found.top_value - truth.eigenvalues[::-1][:2])
        assert (off <= found.top_residual + truth.error + 1e-12 * truth.scale).all(), settings
    assert [f.name for f in doctor(problem).findings if f.verdict == "fault"] == []
