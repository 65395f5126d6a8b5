"""What is refused, why, and what is not: problems, data and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from landscape.errors import LandscapeError, NumericalError, ProblemError, UsageError
from landscape.problem.objective import build_objective
from landscape.problem.problem import LOSSES, Problem, at_point


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(samples: int = 9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(samples, 4, generator=g), torch.randint(3, (samples,), generator=g)


def summed(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(m(batch[0]), batch[1], reduction="sum"), len(batch[1])


class RandomLoader:
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.randn(3, 4), torch.tensor([0, 1, 2]))])


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5)  # training=True is the default, also in eval mode


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=4, **options)


def with_nan(where: str) -> Problem:
    net, (x, y) = model(), data()
    with torch.no_grad():
        (net[0].weight if where == "weights" else x)[0, 0] = float("nan")
    return Problem(net, (x, y), "cross_entropy")


def train_mode(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
    m.train()
    return summed(m, batch)


REFUSED: dict[str, tuple[type[LandscapeError], str, Callable[[], Any]]] = {
    "shuffling": (ProblemError, "RandomSampler", lambda: Problem(model(), loader(shuffle=True), "mse")),
    "weighted": (
        ProblemError,
        "WeightedRandomSampler",
        lambda: Problem(model(), loader(sampler=WeightedRandomSampler([1.0] * 9, 9)), "mse"),
    ),
    "generator": (ProblemError, "one-shot", lambda: Problem(model(), (b for b in [data()]), "mse")),
    "random loader": (ProblemError, "two passes", lambda: Problem(model(), RandomLoader(), summed)),
    "dropout": (ProblemError, "differently twice", lambda: Problem(Dropping(), data(), "cross_entropy")),
    "buffers": (ProblemError, "'calls'", lambda: Problem(Counting(), data(), "cross_entropy")),
    "train mode": (ProblemError, "train mode", lambda: Problem(model(), data(), train_mode)),
    "vector loss": (
        ProblemError,
        "not a scalar",
        lambda: Problem(model(), data(), lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction="none"), 9)),
    ),
    "bare loss": (ProblemError, "not the pair", lambda: Problem(model(), data(), lambda m, b: summed(m, b)[0])),
    "zero counts": (ProblemError, "add up to 0", lambda: Problem(model(), data(), lambda m, b: (summed(m, b)[0], 0))),
    "all ignored": (
        ProblemError,
        "add up to 0",
        lambda: Problem(model(), (data()[0], torch.full((9,), -100)), "cross_entropy"),
    ),
    "empty pair": (ProblemError, "empty", lambda: Problem(model(), data(0), "cross_entropy")),
    "NumPy arrays": (
        ProblemError,
        "NumPy",
        lambda: Problem(model(), [t.numpy() for t in data(4)], "mse"),
    ),
    "empty list": (ProblemError, "empty", lambda: Problem(model(), [], "cross_entropy")),
    "lengths": (ProblemError, "9 inputs but 8", lambda: Problem(model(), (data()[0], data(8)[1]), "cross_entropy")),
    "NaN data": (ProblemError, "NaN", lambda: with_nan("data")),
    "NaN weights": (NumericalError, "nan", lambda: with_nan("weights")),
    "shapes": (ProblemError, "outputs have shape", lambda: Problem(model(), (data()[0], torch.zeros(9, 2)), "mse")),
    "bce shapes": (ProblemError, "outputs have shape", lambda: Problem(model(), (data()[0], torch.zeros(9)), "bce")),
    "bce of signs": (ProblemError, "from 0 to 1", lambda: Problem(model(), (data()[0], torch.ones(9, 3) * -1), "bce")),
    "class shapes": (
        ProblemError,
        "do not fit",
        lambda: Problem(model(), (data()[0], data()[1][:, None]), "cross_entropy"),
    ),
    "labels": (
        ProblemError,
        "fails on the data",
        lambda: Problem(model(), (data()[0], data()[1] + 3), "cross_entropy"),
    ),
    "width": (
        ProblemError,
        "fails on the data",
        lambda: Problem(model(), (torch.zeros(9, 5), data()[1]), "cross_entropy"),
    ),
    "not batches": (ProblemError, "needs batches", lambda: Problem(model(), [data()[0]], "cross_entropy")),
    "lazy": (ProblemError, "no memory yet", lambda: Problem(nn.Sequential(nn.LazyLinear(3)), data(), "mse")),
    "meta": (ProblemError, "no memory yet", lambda: Problem(model().to("meta"), data(), "mse")),
    "DDP": (
        ProblemError,
        "DistributedDataParallel",
        lambda: Problem(
            nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel), data(), "mse"
        ),
    ),
    "DataParallel": (ProblemError, "DataParallel", lambda: Problem(nn.DataParallel(model()), data(), "mse")),
    "not a module": (ProblemError, "not a torch.nn.Module", lambda: Problem(lambda x: x, data(), "mse")),
    "frozen": (ProblemError, "no trainable", lambda: Problem(model().requires_grad_(False), data(), "mse")),
    "loss name": (ProblemError, "no built-in loss 'hinge'", lambda: Problem(model(), data(), "hinge")),
    "loss type": (ProblemError, "not a name or a function", lambda: Problem(model(), data(), 3)),
    "data type": (ProblemError, "the data is a int", lambda: Problem(model(), 3, "mse")),
    "weight decay": (ProblemError, "weight_decay", lambda: Problem(model(), data(), "mse", weight_decay=-1.0)),
    "text weight decay": (ProblemError, "weight_decay", lambda: Problem(model(), data(), "mse", weight_decay="1e-3")),
    "NaN weight decay": (
        ProblemError,
        "weight_decay",
        lambda: Problem(model(), data(), "mse", weight_decay=float("nan")),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case: str) -> None:
    kind, words, build = REFUSED[case]
    with pytest.raises(kind) as caught:
        build_objective(build())
    assert words in caught.value.message
    if "weight decay" not in case:
        assert caught.value.hint


def test_a_list_of_inputs_and_targets_is_told_from_batches() -> None:
    inputs, targets = data()
    with pytest.raises(ProblemError, match="a list of two tensors") as refused:
        Problem(model(), [inputs, targets], "cross_entropy")
    for text in str(refused.value.hint).split("data=")[1:]:
        made = eval(text.partition(", or")[0], {"inputs": inputs, "targets": targets})
        assert build_objective(Problem(model(), made, "cross_entropy")).count == 9
    # A loss of one's own may well have such batches.
    own = Problem(model(), [inputs, inputs], lambda m, batch: (m(batch).square().sum(), len(batch)))
    assert build_objective(own).count == 18
    with pytest.raises(ProblemError, match="needs batches"):
        build_objective(Problem(model(), [inputs, inputs[:4]], "mse"))


def test_points_are_vectors_of_any_library_or_state_dicts() -> None:
    problem = Problem(nn.Linear(2, 1), (torch.ones(3, 2), torch.ones(3, 1)), "mse")
    there = at_point(problem, np.array([1.0, 2.0, 3.0]))  # type: ignore[arg-type]
    assert there.model.bias.item() == 3.0  # type: ignore[union-attr, operator]
    assert at_point(problem, there.model.state_dict()).model.weight.tolist() == [[1.0, 2.0]]  # type: ignore[union-attr]
    for point in ([1.0, 2.0, 3.0], "final.pt"):
        with pytest.raises(UsageError, match=f"the point is a {type(point).__name__}"):
            at_point(problem, point)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(ProblemError, match="TorchScript"):
        Problem(torch.jit.trace(model(), data()[0]), data(), "cross_entropy")


def test_a_pattern_that_matches_nothing_names_the_neighbours() -> None:
    with pytest.raises(UsageError, match="matches none of the 4") as caught:
        build_objective(Problem(model(), data(), "cross_entropy"), params=["0.weights"])
    assert "0.weight" in (caught.value.hint or "")


def test_mse_takes_a_trailing_one_and_flattened_images_but_no_transposes() -> None:
    x, net = torch.randn(6, 4), nn.Linear(4, 1)
    column, flat = torch.randn(6, 1), None
    values = [build_objective(Problem(net, (x, t), "mse")).value() for t in (column, column[:, 0])]
    assert values[0] == values[1]
    assert flat is None
    image = nn.Sequential(nn.Linear(4, 6))
    assert build_objective(Problem(image, (x, torch.randn(6, 1, 2, 3)), "mse")).count == 6
    grid = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    with pytest.raises(ProblemError, match="outputs have shape"):
        build_objective(Problem(grid, (x, torch.randn(6, 3, 2)), "mse"))


def test_an_ordered_loader_is_fine() -> None:
    x, y = data()
    net = model()
    a = build_objective(Problem(net, loader(), "cross_entropy"), dtype=torch.float64).value_and_gradient()
    b = build_objective(Problem(net, (x, y), "cross_entropy"), dtype=torch.float64).value_and_gradient()
    assert abs(a[0] - b[0]) < 1e-14
    torch.testing.assert_close(a[1], b[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("classes", [1, 2, 10, 15, 16])
@pytest.mark.parametrize("samples", [100, 3000])
def test_cross_entropy_of_few_classes_is_that_of_torch(classes: int, samples: int) -> None:
    """Many short rows in float32 go another way through memory: value, gradient, products and stacks agree."""
    generator = torch.Generator().manual_seed(classes)
    z = 3 * torch.randn(samples, classes, generator=generator)
    z[0] = torch.tensor([200.0] * classes)  # no overflow
    y = torch.randint(classes, (samples,), generator=generator)
    y[1] = -100
    loss, identity = LOSSES["cross_entropy"], nn.Identity()
    value, count = loss(identity, (z, y))
    exact = F.cross_entropy(z.double(), y, reduction="sum")
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    assert int(count) == samples - 1

    def ours(t: Tensor) -> Tensor:
        return loss(identity, (t, y))[0]

    def theirs(t: Tensor) -> Tensor:
        return F.cross_entropy(t, y, reduction="sum")

    v = torch.randn(z.shape, generator=generator)
    for of in (lambda f: torch.func.grad(f)(z), lambda f: torch.func.jvp(torch.func.grad(f), (z,), (v,))[1]):
        torch.testing.assert_close(of(ours), of(theirs), rtol=1e-4, atol=1e-5)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(leaf), leaf, create_graph=True)
    product = torch.autograd.grad(gradient, leaf, v)[0]
    torch.testing.assert_close(product, torch.func.jvp(torch.func.grad(theirs), (z,), (v,))[1], rtol=1e-4, atol=1e-5)
    stacked = torch.func.vmap(ours)(torch.stack([z, 2 * z]))
    torch.testing.assert_close(stacked[1], theirs(2 * z), rtol=1e-5, atol=1e-5)


class Several(nn.Module):
    """Gives its outputs in a container."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 2), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


class Output:
    """As Hugging Face's models return it."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3), torch.randint(0, 2, (6,))


@pytest.mark.parametrize(
    "wrap", [lambda t: (t, None), lambda t: {"scores": t}, Output], ids=["tuple", "dict", "object"]
)
def test_outputs_in_a_container_have_a_hint_that_works(wrap: Callable[[Tensor], Any]) -> None:
    model = Several(wrap)
    with pytest.raises(ProblemError, match="needs one tensor") as refused:
        build_objective(Problem(model, pair(), "cross_entropy"))
    names = follow(refused.value.hint)
    assert build_objective(Problem(model, [pair()], names["loss"])).count == 6


class Renamed(nn.CrossEntropyLoss):
    """PyTorch's, of outputs and targets."""


class Weighing(nn.Module):
    """A loss of one's own, of model and batch, with numbers in it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0]))
        self.shift = nn.Parameter(torch.tensor([0.5, 0.0]))

    def forward(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        outputs = model(batch[0]) + self.shift
        return F.cross_entropy(outputs, batch[1], weight=self.weight, reduction="sum"), self.weight[batch[1]].sum()


class WeighingAsBuiltIn(nn.CrossEntropyLoss):
    """The same with another base."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


@pytest.mark.parametrize("loss", [Weighing(), WeighingAsBuiltIn()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_of_model_and_batch_is_a_loss_as_any_function(loss: nn.Module, dtype: torch.dtype) -> None:
    problem = Problem(nn.Linear(3, 2), [pair()], loss)
    found = build_objective(problem, dtype=dtype)
    same = build_objective(replace(problem, loss=lambda model, batch: loss(model, batch)), dtype=dtype)
    assert torch.equal(found.value_and_gradient()[1], same.value_and_gradient()[1])
    assert found.count == same.count


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MultiMarginLoss(), Renamed()])
def test_a_module_as_loss_has_a_hint_that_works(loss: nn.Module) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ProblemError, match=type(loss).__name__) as refused:
        Problem(model, pair(), loss)  # type: ignore[arg-type]
    assert ("cross_entropy" in str(refused.value.hint)) == isinstance(loss, nn.CrossEntropyLoss)
    names = follow(refused.value.hint)
    assert build_objective(Problem(model, [pair()], names["loss"])).count == 6


def test_a_mean_instead_of_sum_and_count_is_named() -> None:
    with pytest.raises(ProblemError, match="a mean over the batch") as refused:
        build_objective(Problem(nn.Linear(3, 2), [pair()], lambda m, b: F.cross_entropy(m(b[0]), b[1])))  # type: ignore[arg-type, return-value]
    assert "reduction='sum'" in str(refused.value.hint)


def follow(hint: str | None) -> dict[str, Any]:
    """The names that the code of a hint defines."""
    assert hint is not None
    names: dict[str, Any] = {"nn": nn, "F": F}
    exec(hint[hint.index("def loss") :], names)
    return names


@pytest.mark.parametrize("seed", range(12))
def test_noise_of_any_size_is_found(seed: int) -> None:
    """A few draws may be as good as equal; that numbers were drawn tells."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-4, 0)

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + size * torch.randn_like(x)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3), Noise())
    batch = (torch.randn(53, 6), torch.randint(3, (53,)))
    with pytest.raises(ProblemError, match="differently twice"):
        build_objective(Problem(model, batch, "cross_entropy"))
