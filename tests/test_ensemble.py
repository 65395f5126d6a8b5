"""Stacks of networks against each network alone, differentiated by other means; chunks change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import landscape.stack.build as stacking
import landscape.stack.stack as ensemble
from landscape.errors import ProblemError
from landscape.points.certify import loss_floor
from landscape.problem.batches import read_batches
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack, data_key, most_members, stack_key
from landscape.stack.stack import Stack

S, N = 5, 23
EPS = {torch.float64: 1e-12, torch.float32: 3e-5}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 3, 3, padding=1), nn.BatchNorm1d(3), nn.Softplus(), nn.Flatten(), nn.Linear(9, 2))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": convolutional, "layernorm": normalised}


def problems(name: str, loss: str, dtype: torch.dtype = torch.float64, decay: float = 0.0) -> list[Problem]:
    torch.manual_seed(0)
    x = torch.randn(N, 1, 3) if name == "conv" else torch.randn(N, 3)
    y = torch.randint(2, (N,)) if loss == "cross_entropy" else torch.rand(N, 2).round()
    found = []
    for _ in range(S):
        model = NETWORKS[name]().to(dtype)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):  # members differ in their statistics as well
                assert module.running_mean is not None
                module.running_mean.normal_()
        found.append(Problem(model.eval(), (x.to(dtype), y), loss, decay))
    return found


def taught(loss: str, decay: float = 0.0) -> list[Problem]:
    """Networks with the same inputs, each with targets of its own; of two the same."""
    made = []
    for i, problem in enumerate(problems("mlp", loss, decay=decay)):
        torch.manual_seed(100 + i % (S - 1))
        y = torch.rand(N, 2, dtype=torch.float64)
        made.append(Problem(problem.model, (problem.data[0].clone(), y / y.sum(1, keepdim=True)), loss, decay))  # type: ignore[index]
    return made


def alone(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """L, ∇L and ∇²L of one network by `torch.autograd.functional`, no vmap anywhere."""
    model = problem.model
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes])
        named = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        x, y = problem.data  # type: ignore[misc]
        total, count = problem.loss_function(lambda z: torch.func.functional_call(model, named, (z,)), (x, y))  # type: ignore[arg-type]
        return total / float(count) + 0.5 * problem.weight_decay * flat.square().sum()

    return (
        loss(theta),
        torch.autograd.functional.jacobian(loss, theta),
        torch.autograd.functional.hessian(loss, theta),
    )


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce"])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_gradients_and_hessians_are_those_of_each_network_alone(name: str, loss: str, decay: float) -> None:
    made = problems(name, loss, decay=decay)
    stack, theta = build_stack(made)
    value, gradient = stack.values_and_gradients(theta)
    hessian = stack.hessians(theta)
    close(stack.values(theta), value, 1e-14)
    for i, problem in enumerate(made):
        wanted = alone(problem)
        close(value[i], wanted[0], 1e-13)
        close(gradient[i], wanted[1], 1e-13)
        close(hessian[i], wanted[2], 1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce"])
@pytest.mark.parametrize("cache", [100, 2**21])
def test_targets_of_its_own_are_every_members_own(
    loss: str, decay: float, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ensemble, stacking):
        monkeypatch.setattr(module, "CACHE_BYTES", cache)
    monkeypatch.setattr(ensemble, "PIECE_BYTES", cache)
    made = taught(loss, decay)
    stack, theta = build_stack(made)
    assert (len(stack.batches) > 1) == (cache == 100)
    value, gradient, matrix = stack.gauss_newton(theta)
    hessian, floors = stack.hessians(theta), loss_floor(stack, torch.arange(S))
    for i, problem in enumerate(made):
        wanted = alone(problem)
        close(value[i], wanted[0], 1e-13)
        close(gradient[i], wanted[1], 1e-13)
        close(hessian[i], wanted[2], 1e-12)
        single, point = build_stack([problem])
        assert not single.own
        close(matrix[i], single.gauss_newton(point)[2][0], 1e-13)
        close(stack.saturation(theta)[i], single.saturation(point)[0], 1e-13)
        close(floors[i], loss_floor(single, torch.arange(1))[0], 1e-45)
    few = torch.tensor([3, 0, 3])
    close(stack.of(few).values(theta[few]), value[few], 1e-14)
    close(stack.values(theta[few], few), value[few], 1e-14)
    sums = sum(stack.sums(theta, stack.others, b) for b in stack.batches)
    close(sums / N + 0.5 * decay * theta.square().sum(1), value, 1e-14)


def test_small_losses_of_saturated_outputs_are_the_same_everywhere() -> None:
    """Steps are judged by `values` against the value of the local model."""
    x = torch.full((3, 1), 1.0, dtype=torch.float64)
    for weight in (-33.0, -36.0, -40.0, 40.0):
        line = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(line.weight, weight)
        stack, theta = build_stack([Problem(line, (x, torch.full((3, 1), float(weight > 0))), "bce")])
        wanted = torch.tensor([-abs(weight)]).double().exp()
        assert torch.allclose(stack.values(theta), wanted, rtol=1e-12, atol=0.0)
        assert torch.allclose(stack.gauss_newton(theta)[0], wanted, rtol=1e-12, atol=0.0)


def test_own_targets_are_for_regression_on_the_same_inputs() -> None:
    first, second = taught("mse")[:2]
    assert build_stack([first, first])[0].own == ()
    assert build_stack([first, Problem(second.model, first.data, "mse")])[0].own == ()
    moved = Problem(second.model, (second.data[0] + 1, second.data[1]), "mse")  # type: ignore[index]
    inputs = first.data[0]  # type: ignore[index]
    classes = [Problem(first.model, (inputs, torch.arange(N) % k), "cross_entropy") for k in (1, 2)]
    custom = [Problem(p.model, p.data, lambda m, b: (m(b[0]).sum(), len(b[0]))) for p in (first, second)]
    for different in ([first, moved], classes, custom):
        with pytest.raises(ProblemError, match="different data"):
            build_stack(different)
    keys = {data_key(p, read_batches(p)) for p in (first, second)}
    assert len(keys) == 1
    assert len({data_key(p, read_batches(p)) for p in (first, moved, *classes, *custom)}) == 6


@pytest.mark.parametrize("name", NETWORKS)
def test_columns_by_forward_mode_agree_with_kept_graphs(name: str) -> None:
    stack, theta = build_stack(problems(name, "mse"))
    kept = sum(stack._columns_kept(b, theta, stack.others) for b in stack.batches)
    forward = sum(stack._columns_forward(b, theta, stack.others) for b in stack.batches)
    close(forward, kept, 1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gauss_newton_is_the_hessian_of_the_linearised_network(loss: str, dtype: torch.dtype) -> None:
    """G = ∇² of ℓ(z₀ + J (θ − θ₀)) at θ₀, by a network that is linear in its weights: there G = H."""
    torch.manual_seed(1)
    x, y = torch.randn(N, 3), torch.randint(2, (N,)) if loss == "cross_entropy" else torch.rand(N, 2).round()
    made = [Problem(nn.Linear(3, 2).to(dtype), (x, y), loss, 0.1) for _ in range(S)]
    stack, theta = build_stack(made, dtype=dtype)
    value, gradient, matrix = stack.gauss_newton(theta)
    close(value, stack.values(theta), EPS[dtype])
    close(gradient, stack.values_and_gradients(theta)[1], EPS[dtype])
    close(matrix, stack.hessians(theta), EPS[dtype])


@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton_of_a_squared_error_is_made_of_jacobians(name: str) -> None:
    made = problems(name, "mse")
    stack, theta = build_stack(made)
    matrix = stack.gauss_newton(theta)[2]
    for i, problem in enumerate(made):
        names = [n for n, _ in problem.model.named_parameters()]

        def outputs(*tensors: Tensor, problem: Problem = problem, names: list[str] = names) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            return torch.func.functional_call(problem.model, named, (problem.data[0],)).flatten()  # type: ignore[index,no-any-return]

        parts = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in problem.model.parameters()))
        jacobian = torch.cat([p.flatten(1) for p in parts], dim=1)
        close(matrix[i], 2 / N * jacobian.T @ jacobian, 1e-12)


@pytest.mark.parametrize("cache", [100, 1000, 2**30])
@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_of_members_and_samples_change_nothing(name: str, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = problems(name, "mse")
    reference, theta = build_stack(made)
    wanted = (*reference.gauss_newton(theta), reference.hessians(theta), reference.values(theta))
    for module in (ensemble, stacking):
        monkeypatch.setattr(module, "CACHE_BYTES", cache)
    monkeypatch.setattr(ensemble, "PIECE_BYTES", cache)
    stack, _ = build_stack(made)
    found = (*stack.gauss_newton(theta), stack.hessians(theta), stack.values(theta))
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-12)


def test_a_member_does_not_depend_on_who_else_is_in_the_stack() -> None:
    """But for the last bit: matrix products depend on the alignment of a member in memory."""
    made = problems("mlp", "mse")
    stack, theta = build_stack(made)
    few = torch.tensor([3, 1])
    for method in (stack.values_and_gradients, stack.gauss_newton):
        for whole, part in zip(method(theta), method(theta[few], few), strict=True):
            close(whole[few], part, 1e-14)
    close(stack.hessians(theta)[few], stack.hessians(theta[few], few), 1e-14)


def test_rows_choose_the_buffers_of_their_members() -> None:
    made = problems("conv", "mse")
    stack, theta = build_stack(made)
    few = torch.tensor([4, 0])
    close(stack.values(theta[few], few), stack.values(theta)[few], 1e-14)
    assert not torch.allclose(stack.values(theta[few]), stack.values(theta)[few])


def test_frozen_parameters_stay_fixed_and_differ_between_members() -> None:
    made = problems("mlp", "mse")
    for problem in made:
        next(problem.model.parameters()).requires_grad_(False)
    stack, theta = build_stack(made)
    assert theta.shape == (S, sum(p.numel() for p in list(made[0].model.parameters())[1:]))
    whole, everything = build_stack(problems("mlp", "mse"))
    close(stack.values(theta), whole.values(everything), 1e-14)


def test_running_out_of_memory_takes_fewer_members_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, theta = build_stack(problems("mlp", "mse"))
    wanted, sizes, total = stack.values(theta), [], Stack._over_batches

    def greedy(self: Stack, function: Callable[[object], Tensor]) -> Tensor:
        found = total(self, function)
        sizes.append(len(found))
        if len(found) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(Stack, "_over_batches", greedy)
    close(stack.values(theta), wanted, 1e-14)
    assert sizes == [5, 2, 2, 1]


def test_what_vmap_cannot_do_goes_one_at_a_time() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.layer(x)
            return z if float(z.sum()) > 0 else -z

    x, y = torch.randn(4, 3), torch.randn(4, 2)
    problem = Problem(Branching().double(), (x.double(), y.double()), "mse")
    stack, theta = build_stack([problem] * 2)
    assert "vmap" in stack.alone
    close(stack.values(theta), torch.full((2,), build_objective(problem).value(), dtype=torch.float64), 1e-14)
    with pytest.raises(ProblemError, match="cannot be stacked"):
        stack.sums(theta, stack.others, stack.batches[0])


@pytest.mark.parametrize(("parameters", "members"), [(1, 100), (1000, 100), (2000, 33), (10**5, 1)])
def test_stacks_are_no_larger_than_their_matrices_allow(parameters: int, members: int) -> None:
    assert most_members({"cpu": 100, "cuda": 1}, "cpu", parameters) == members


def test_keys_tell_architectures_apart() -> None:
    keys = {stack_key(problems(name, loss)[0]) for name in NETWORKS for loss in ("mse", "bce")}
    assert len(keys) == 6
    assert len({stack_key(p) for p in problems("mlp", "mse")}) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_gives_the_same_numbers(name: str) -> None:
    made = problems(name, "mse")
    stack, theta = build_stack(made)
    there, moved = build_stack(made, device="cuda")
    for a, b in zip(there.gauss_newton(moved), stack.gauss_newton(theta), strict=True):
        close(a.cpu(), b, 1e-11)
    close(there.hessians(moved).cpu(), stack.hessians(theta), 1e-11)
