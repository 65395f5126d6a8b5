"""The caller's things stay as they were; value, gradient and count are exact over any batches."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import models_zoo
from landscape import spectrum
from landscape.curvature.operator import CurvatureOperator
from landscape.errors import LandscapeError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from test_problem import REFUSED, data, model


def state(net: nn.Module) -> list[Any]:
    """Everything of a model that a tool could change."""
    named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    tensors = [(n, id(t), t.detach().clone(), t.dtype, t.device, t.requires_grad, t.grad) for n, t in named]
    return [*tensors, [m.training for m in net.modules()], [len(m._forward_hooks) for m in net.modules()]]


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, tuple):
            assert torch.equal(old[2].nan_to_num(), new[2].nan_to_num()), old[0]
            assert (*old[:2], *old[3:]) == (*new[:2], *new[3:])
        else:
            assert old == new


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_the_callers_model_is_untouched(name: str) -> None:
    problem = models_zoo.build(name)
    problem.model.train()
    next(problem.model.parameters()).requires_grad_(False)
    before, generator = state(problem.model), torch.get_rng_state()
    objective = build_objective(problem, dtype=torch.float64)
    objective.value_and_gradient()
    op = CurvatureOperator(objective, batch_size=3, strategy="kept")
    op(torch.ones(op.n, 2, dtype=torch.float64))
    assert_same(before, state(problem.model))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("case", [c for c in REFUSED if c not in ("random loader",)])
def test_also_when_it_raises(case: str) -> None:
    try:
        problem = REFUSED[case][2]()
    except LandscapeError:
        return  # refused before anything could be touched
    before, generator = state(problem.model), torch.get_rng_state()
    with suppress(LandscapeError):
        build_objective(problem)
        pytest.fail("accepted")
    assert_same(before, state(problem.model))
    assert torch.equal(generator, torch.get_rng_state())


def test_reading_a_data_loader_leaves_the_generator_alone() -> None:
    """Each pass over a DataLoader draws a seed from the global generator."""
    problem = Problem(model(), DataLoader(TensorDataset(*data()), batch_size=4), "cross_entropy")
    generator = torch.get_rng_state()
    build_objective(problem)
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", models_zoo.ZOO)
def test_gradient_is_the_slope_of_the_value(name: str) -> None:
    """Fourth-order central differences: rounding eps·L/step ~ 1e-12, truncation step⁴ ~ 1e-12."""
    objective = build_objective(replace(models_zoo.build(name), weight_decay=0.2), dtype=torch.float64)
    theta, (_, gradient) = objective.point(), objective.value_and_gradient()
    direction = torch.nn.functional.normalize(torch.ones_like(theta) + theta, dim=0)
    values = []
    for k in (-2, -1, 1, 2):
        with torch.no_grad():
            for p, v in zip(
                objective.parameters, objective.layout.unflatten(theta + k * 1e-3 * direction), strict=True
            ):
                p.copy_(v)
        values.append(objective.value())
    a, b, c, d = values
    assert (a - 8 * b + 8 * c - d) / 12e-3 == pytest.approx(
        float(gradient @ direction), abs=1e-9 * (1 + float(gradient.norm()))
    )


def test_half_precision_models_are_analysed_in_float32() -> None:
    assert build_objective(Problem(model().to(torch.bfloat16), data(), "cross_entropy")).dtype == torch.float32


def test_non_finite_points_are_found_on_any_batch() -> None:
    """Only the second batch overflows."""
    net = nn.Linear(1, 1)
    batches = [(torch.ones(2, 1), torch.ones(2, 1)), (torch.full((2, 1), 3e38), torch.full((2, 1), -3e38))]
    with pytest.raises(LandscapeError, match="loss at the checkpoint is inf"):
        build_objective(Problem(net, batches, "mse"))


class Small(nn.Module):
    """Takes so many samples at a time, as a GPU does whose memory is full."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.layer, self.most, self.seen = nn.Linear(4, 3), most, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} bytes")
        self.seen = max(self.seen, len(x))
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_beyond_the_memory_is_taken_in_portions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "landscape.problem.passes.release_cached", lambda device: None
    )  # it collects garbage every time
    generator = torch.Generator().manual_seed(seed)
    samples = int(torch.randint(1, 60, (), generator=generator))
    most = int(torch.randint(1, 20, (), generator=generator))
    data = torch.randn(samples, 4, generator=generator), torch.randn(samples, 3, generator=generator)
    torch.manual_seed(seed)
    roomy, tight = (Problem(Small(m).double(), data, "mse", 0.1) for m in (10**9, most))
    tight.model.load_state_dict(roomy.model.state_dict())
    value, gradient = build_objective(roomy).value_and_gradient()
    objective = build_objective(tight)
    assert objective.count == samples, f"seed {seed}"
    assert objective.value() == pytest.approx(value, rel=1e-12), f"seed {seed}"
    found, slope = objective.value_and_gradient()
    assert found == pytest.approx(value, rel=1e-12), f"seed {seed}"
    torch.testing.assert_close(slope, gradient, rtol=1e-11, atol=1e-13)
    assert objective.model.seen > most // 2 or objective.model.seen == samples  # not smaller than it has to be


def test_no_memory_is_not_taken_for_data_that_do_not_fit() -> None:
    """A sample alone, and a batch of an own loss, which must not be cut."""
    data = torch.randn(9, 4), torch.randn(9, 3)
    with pytest.raises(torch.OutOfMemoryError):
        build_objective(Problem(Small(0), data, "mse"))
    with pytest.raises(torch.OutOfMemoryError):
        build_objective(Problem(Small(8), [data], lambda model, batch: (model(batch[0]).sum(), 9)))


class Flags(nn.LSTM):
    """Says whether cuDNN would be used for it."""

    def forward(self, *args: Any) -> Any:
        self.seen = torch.backends.cudnn.enabled
        if torch.is_tensor(args[0]) and args[0].shape[-1] != self.input_size:
            raise ValueError("of another size")
        return super().forward(*args)


def test_recurrent_layers_do_without_cudnn() -> None:
    """cuDNN has no second derivative of them, and in eval mode not even a first one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.out = Flags(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.recurrent(x)[0][:, -1])
            self.seen = torch.backends.cudnn.enabled
            return found

    data = torch.randn(5, 6, 3), torch.randint(0, 2, (5,))
    problem = Problem(Net(), data, "cross_entropy")
    objective = build_objective(problem)
    for made in (objective, objective.in_dtype(torch.float64), objective.with_parameters(["out.weight"])):
        made.value()
        assert (made.model.recurrent.seen, made.model.seen) == (False, True)
    with pytest.raises(ValueError, match="another size"):
        objective.model(torch.randn(5, 6, 7))
    assert torch.backends.cudnn.enabled
    problem.model(data[0])
    assert problem.model.recurrent.seen  # the caller's own is as it was


@pytest.mark.parametrize("seed", range(6))
def test_counts_that_are_sums_of_weights_are_not_rounded(seed: int) -> None:
    """Everything is divided by the count: float32's rounding of it would be in every number and in no bound."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 90, (int(torch.randint(1, 5, (1,), generator=generator)),), generator=generator).tolist()
    weights = [torch.rand(n, generator=generator) * 10.0 ** (seed - 3) for n in sizes]
    batches = [(torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator), w)
               for n, w in zip(sizes, weights, strict=True)]  # fmt: skip

    def weighted(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, y, w = batch
        return ((model(x) - y).square().sum(1) * w).sum(), w.sum()

    exact = float(torch.cat(weights).double().sum())
    x, w = (torch.cat([b[i] for b in batches]).double() for i in (0, 2))
    hessian = (
        2 / exact * torch.cat([x, torch.ones(len(x), 1)], 1).T @ (torch.cat([x, torch.ones(len(x), 1)], 1) * w[:, None])
    )
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    problem = Problem(nn.Linear(3, 2), batches, weighted)
    for dtype in (torch.float32, torch.float64):
        count = build_objective(problem, dtype=dtype).count
        assert abs(count - exact) <= 1e-14 * exact, f"seed {seed}, {dtype}: {count} for {exact}"
    found = spectrum(problem, exact=True, top=1, bottom=1)
    assert abs(found.top_value[0] - largest) <= found.top_residual[0] + 1e-15 * largest, f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_of_a_spectrum_has_no_rounding_of_float32(seed: int) -> None:
    """Where outputs and targets are large and close, a squared error in float32 is mostly rounding."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.bias += 10.0 ** (2 + seed % 2)
    x = torch.randn(40, 3)
    y = model(x).detach() + 0.01 * torch.randn(40, 1)
    wide = model.weight.detach().double(), model.bias.detach().double()
    exact = float((nn.functional.linear(x.double(), *wide) - y.double()).square().mean())
    found = spectrum(Problem(model, [(x[:13], y[:13]), (x[13:], y[13:])], "mse"), top=1, bottom=1, density=False)
    assert found.loss == pytest.approx(exact, rel=1e-12), f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_nor_where_nothing_but_rounding_is_left(seed: int) -> None:
    """An interpolating network far from 0: the squared error in float32 is many times what it is."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.bias += 10.0 ** (6 + seed % 2)
    x = torch.randn(40, 3)
    wide = nn.functional.linear(x.double(), *(p.detach().double() for p in model.parameters()))
    y = wide.float()  # what is left is this rounding, and float32 makes another one of it
    exact = float((wide - y.double()).square().mean())
    found = spectrum(Problem(model, (x, y), "mse"), top=1, bottom=1, density=False)
    assert found.loss == pytest.approx(exact, rel=1e-9), f"seed {seed}"


@pytest.mark.parametrize("params", [("0.bias",), ("2.*",), ("*.weight",), ()])
def test_a_penalty_on_what_is_trained_does_not_depend_on_the_selection(params: tuple[str, ...]) -> None:
    """Many losses regularise "what requires gradients": of a selection of parameters, the loss stays what it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model[2].bias.requires_grad_(False)
    x, y = torch.randn(30, 3).double(), torch.randn(30, 1).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = batch
        penalty = sum(p.pow(4).sum() for p in model.parameters() if p.requires_grad)
        return (model(x) - y).square().sum() + len(x) * penalty, len(x)

    true = float(loss(model, (x, y))[0].detach()) / 30
    objective = build_objective(Problem(model, (x, y), loss), params=params)
    assert objective.value() == pytest.approx(true, rel=1e-12)
    one = objective.with_parameters(objective.names[:1])
    assert one.value() == pytest.approx(true, rel=1e-12)
    assert one.in_dtype(torch.float32).value() == pytest.approx(true, rel=1e-5)
    assert one.value_and_gradient()[1].shape == (one.layout.total,)
    cut = build_objective(Problem(model, [(x[:11], y[:11]), (x[11:], y[11:])], loss), params=params)
    unit = torch.eye(cut.layout.total, dtype=torch.float64)
    kept = CurvatureOperator(cut, strategy="kept")(unit)
    for strategy in ("linearize", "recompute"):
        torch.testing.assert_close(CurvatureOperator(cut, strategy=strategy)(unit), kept, rtol=1e-9, atol=1e-12)
