"""`doctor`: a healthy problem is found healthy, every planted disease is found, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature.products import hessian_linearized
from landscape.diagnosis.differences import central
from landscape.diagnosis.run import Diagnosis, Finding, doctor
from landscape.errors import UsageError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem

SAMPLES, FEATURES, CLASSES = 24, 5, 3


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    return inputs, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def mlp(*middle: nn.Module, width: int = 6) -> nn.Sequential:
    torch.manual_seed(1)
    middle = middle or (nn.Tanh(),)
    return nn.Sequential(nn.Linear(FEATURES, width), *middle, nn.Linear(width, CLASSES))


def examine(model: nn.Module, loss: Any = "cross_entropy", data: Any = None) -> Diagnosis:
    return doctor(Problem(model, draw() if data is None else data, loss), device="cpu")


@pytest.fixture
def without_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what follows the first look: tracing `torch.func` takes most of the time."""
    monkeypatch.setattr("landscape.diagnosis.run.check_products", lambda *_: None)


def named(diagnosis: Diagnosis, name: str) -> Finding:
    found = [f for f in diagnosis.findings if f.name == name]
    assert len(found) == 1, [f.name for f in diagnosis.findings]
    return found[0]


def faults(diagnosis: Diagnosis) -> list[str]:
    return [f.name for f in diagnosis.findings if f.verdict == "fault"]


class Apply(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_healthy_network_is_all_ok(loss: str) -> None:
    inputs, targets = draw()
    data = (inputs, F.one_hot(targets, CLASSES).float() if loss == "mse" else targets)
    diagnosis = examine(mlp(), loss, data)
    assert [f for f in diagnosis.findings if f.verdict != "ok"] == []
    assert diagnosis.verdict == "ok"
    assert diagnosis.error_float64 < 1e-13
    assert 1e-9 < diagnosis.error_float32 < 1e-5
    differences = named(diagnosis, "central differences").numbers
    assert differences["deviation"] <= differences["allowed"] < 1e-8
    assert named(diagnosis, "float32").numbers["floor"] > 0


def test_the_error_of_the_differences_bounds_their_deviation() -> None:
    point = torch.tensor([0.3, -1.2], dtype=torch.float64)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    value, error = central(lambda t: torch.sin(3 * t), point, direction)
    exact = 3 * torch.cos(3 * point) * direction
    assert float((value - exact).norm()) < 3 * error < 1e-8


def mean_and_length(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])


def mean_and_one(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1]), 1


def sum_and_one(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), 1


def proper(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


@pytest.mark.usefixtures("without_products")
def test_a_loss_that_returns_a_mean() -> None:
    inputs, targets = draw()
    ragged = [(inputs[:16], targets[:16]), (inputs[16:], targets[16:])]
    for loss, data, verdict in (
        (mean_and_length, ragged, "fault"),
        (mean_and_one, ragged, "fault"),
        (mean_and_one, [(inputs, targets)], "care"),
    ):
        finding = named(examine(mlp(), loss, data), "sums")
        assert finding.verdict == verdict
        assert "mean" in finding.text
    assert "count" in named(examine(mlp(), sum_and_one, ragged), "sums").text
    assert faults(examine(mlp(), sum_and_one, ragged)) == ["sums"]
    assert named(examine(mlp(), proper, ragged), "sums").verdict == "ok"


def test_functional_dropout_is_a_fault() -> None:
    diagnosis = examine(mlp(Apply(F.dropout), nn.Tanh()))
    assert faults(diagnosis) == ["problem"]
    assert "differently twice" in named(diagnosis, "problem").text


class WrongBackward(torch.autograd.Function):
    """tanh with a gradient 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.01 * slope * (1 - x.tanh() ** 2)


class WrongSecond(torch.autograd.Function):
    """tanh with the right gradient, computed from detached numbers: its own curvature is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach().clone()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * (1 - ctx.kept.tanh() ** 2)


class OnceDifferentiable(WrongSecond):
    """tanh marked as once differentiable: autograd drops its second derivative without a word."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * (1 - ctx.kept.tanh() ** 2)


class Slope(WrongBackward):
    """1 - tanh² that raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 1 - x.tanh() ** 2

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise RuntimeError("no derivative of slope")


class NoSecond(WrongBackward):
    """tanh whose backward cannot be differentiated."""

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * Slope.apply(ctx.saved_tensors[0])


def test_a_wrong_backward_is_found_by_differences_of_the_loss() -> None:
    found = faults(examine(mlp(Apply(WrongBackward.apply))))
    assert "gradient" in found


def test_a_lost_second_derivative_is_found_by_differences_of_the_gradient() -> None:
    found = faults(examine(mlp(Apply(WrongSecond.apply))))
    assert "gradient" not in found
    assert "central differences" in found


def test_a_function_marked_once_differentiable_is_named() -> None:
    (fault,) = [f for f in examine(mlp(Apply(OnceDifferentiable.apply))).findings if f.verdict == "fault"]
    assert fault.name == "second derivative"
    assert "OnceDifferentiable" in fault.text


def test_no_second_derivative_names_the_layer_and_still_checks_the_gradient() -> None:
    diagnosis = examine(mlp(Apply(NoSecond.apply)))
    assert faults(diagnosis) == ["second derivative"]
    assert "1 (Apply)" in named(diagnosis, "second derivative").text
    assert named(diagnosis, "gradient").verdict == "ok"


def by_batch(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()


@pytest.mark.usefixtures("without_products")
def test_samples_that_see_each_other() -> None:
    model = mlp(Apply(by_batch), nn.Tanh())
    finding = named(examine(model), "sums")
    assert finding.verdict == "care"  # every command leaves such batches whole
    assert "halves" in finding.text
    assert named(examine(model, proper, [draw()]), "sums").verdict == "care"  # batches of a custom loss stay whole


@pytest.mark.usefixtures("without_products")
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.Hardtanh(), Apply(F.relu)])
def test_kinks_are_seen(layer: nn.Module) -> None:
    assert named(examine(mlp(layer, width=16)), "kinks").verdict == "care"


@pytest.mark.parametrize("layer", [nn.ReLU()])
def test_kinks_need_care_and_are_no_fault(layer: nn.Module) -> None:
    diagnosis = examine(mlp(layer, width=16))
    assert named(diagnosis, "kinks").verdict == "care"
    assert faults(diagnosis) == []


def test_a_wrong_backward_is_found_behind_a_kink_as_well() -> None:
    assert "gradient" in faults(examine(mlp(nn.ReLU(), Apply(WrongBackward.apply))))


@pytest.mark.usefixtures("without_products")
def test_max_pooling_is_a_kink() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 2), nn.MaxPool1d(4), nn.Flatten())
    assert named(examine(nn.Sequential(model, nn.Linear(4, CLASSES))), "kinks").verdict == "care"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, :2].unsqueeze(-1))[0][:, -1])  # short: tracing is what takes time


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, activation=torch.tanh, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.lift(x.unsqueeze(-1))).mean(1))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: mlp(nn.GroupNorm(2, 6), nn.Tanh()), {"group norm"}),
        (lambda: mlp(nn.BatchNorm1d(6), nn.LayerNorm(6), nn.Tanh()), {"batch norm"}),
        pytest.param(Attentive, {"attention", "dropout"}, marks=pytest.mark.slow),
    ],
    ids=["group norm", "batch norm", "attention"],
)
def test_layers_that_need_care_but_work(build: Callable[[], nn.Module], names: set[str]) -> None:
    torch.manual_seed(0)
    diagnosis = examine(build())
    assert names <= {f.name for f in diagnosis.findings if f.verdict == "care"}
    assert faults(diagnosis) == []
    assert diagnosis.error_float64 < 1e-12
    assert named(diagnosis, "central differences").verdict == "ok"


@pytest.mark.usefixtures("without_products")
def test_places_read_as_a_sentence() -> None:
    one = named(examine(mlp(nn.BatchNorm1d(6), nn.Tanh())), "batch norm")
    assert one.text.startswith("in layer 1 it uses its running statistics")
    two = named(examine(mlp(nn.BatchNorm1d(6), nn.Tanh(), nn.BatchNorm1d(6))), "batch norm")
    assert two.text.startswith("in layers 1, 3 it uses its running statistics")
    assert two.numbers == {"layers": ["1", "3"]}


@pytest.mark.slow
def test_recurrent_layers_and_a_linearisation_that_changes_between_calls() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    objective = build_objective(Problem(model, draw(), "cross_entropy"), dtype=torch.float64)
    push = hessian_linearized(objective, objective.batches[0])
    ones = tuple(torch.ones_like(p).unsqueeze(0) for p in objective.parameters)
    first, _, third = (torch.cat([t.reshape(-1) for t in push(ones)]) for _ in range(3))
    lstm = examine(model)
    assert named(lstm, "recurrent").verdict == "care"
    assert named(lstm, "central differences").verdict == "ok"  # double backward is right
    # torch 2.13: the linearised LSTM works in place on its own constants, and is wrong from the second call on.
    sound = torch.allclose(first, third, rtol=1e-9)
    assert named(lstm, "hessian").verdict == "ok"  # a product that changes is not used, and not counted as one
    if not sound:
        ways = named(lstm, "hessian ways")
        assert ways.verdict == "care"
        assert "linearize" in ways.numbers["failed"]
        assert "because of lstm (LSTM)" in ways.text


@pytest.mark.parametrize(
    ("loss", "last", "said"),
    [
        ("bce", nn.Sigmoid(), "a sigmoid makes probabilities"),
        ("cross_entropy", nn.Softmax(-1), "a softmax makes probabilities"),
        ("cross_entropy", nn.Sigmoid(), ""),
        ("bce", nn.Identity(), ""),
        ("mse", nn.Softmax(-1), ""),
    ],
)
@pytest.mark.usefixtures("without_products")
def test_probabilities_where_logits_belong(loss: str, last: nn.Module, said: str) -> None:
    inputs, classes = draw()
    targets = classes if loss == "cross_entropy" else torch.eye(CLASSES)[classes]
    found = examine(nn.Sequential(mlp(), last), loss, (inputs, targets))
    assert said in (named(found, "outputs").text if said else "")
    assert bool(said) == any(f.name == "outputs" for f in found.findings)


@pytest.mark.usefixtures("without_products")
def test_tied_and_frozen_parameters() -> None:
    tied = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES))
    tied[2].weight = tied[0].weight
    diagnosis = examine(tied)
    assert "2.weight" in named(diagnosis, "tied").text
    assert named(diagnosis, "parameters").numbers == {"parameters": FEATURES * FEATURES + 2 * FEATURES}
    frozen = mlp()
    frozen[0].requires_grad_(False)
    assert "0.weight, 0.bias" in named(examine(frozen), "frozen").text


def test_dead_parameters() -> None:
    dead = mlp()
    dead.register_parameter("unused", nn.Parameter(torch.ones(4)))
    finding = named(examine(dead), "flat directions")
    assert finding.verdict == "care"
    assert finding.numbers == {"dead": 4, "tensors": ["unused"]}


@pytest.mark.usefixtures("without_products")
def test_sparse_embeddings_half_precision_and_copies() -> None:
    class Looked(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 3, **options), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).tanh())

    data = (torch.arange(8) % 4, torch.arange(8) % 3)
    assert named(examine(Looked(sparse=True), data=data), "embedding").verdict == "care"
    assert named(examine(Looked(padding_idx=0), data=data), "embedding").verdict == "care"
    assert named(examine(mlp().half(), data=draw()), "parameters").verdict == "care"
    inputs, targets = draw()
    twice = (torch.cat([inputs, inputs[:5]]), torch.cat([targets, targets[:5]]))
    assert named(examine(mlp(), data=twice), "duplicates").numbers == {"copies": 5}


def test_bad_data_is_a_fault_and_no_exception() -> None:
    inputs, targets = draw()
    assert faults(examine(mlp(), data=(inputs, targets + 2))) == ["problem"]
    assert "NaN" in named(examine(mlp(), data=(inputs * float("nan"), targets)), "problem").text
    diverged = mlp()
    with torch.no_grad():
        diverged[2].weight[0, 0] = float("nan")
    assert "2.weight" in named(examine(diverged), "loss").text
    overflow = examine(mlp(nn.Tanh(), Apply(torch.log)))
    assert "layer to give NaN or Inf is 2" in named(overflow, "loss").text


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(training: bool) -> None:
    model = mlp(nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU()).train(training)
    model[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    diagnosis = examine(model)
    assert named(diagnosis, "your model").verdict == "ok"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training is training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()][:2] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_changed_model_is_noticed() -> None:
    model = mlp()

    def meddling(copied: nn.Module, batch: Any) -> tuple[Tensor, int]:
        model[0].bias.data += 1.0
        return proper(copied, batch)

    assert named(examine(model, meddling, [draw()]), "your model").verdict == "fault"


class Casting(nn.Module):
    """A scaled root-mean-square norm in less than it is given, as language models have it."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = nn.Parameter(torch.ones(width)), dtype

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype)
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-3)).to(x.dtype)


@pytest.mark.parametrize("seed", range(3))
def test_arithmetic_narrower_than_what_is_given_is_no_fault(seed: int) -> None:
    torch.manual_seed(seed)
    width, last = 4 + seed, (nn.Tanh(), nn.Softplus(), nn.GELU())[seed]
    model = nn.Sequential(nn.Linear(FEATURES, width), Casting(width, torch.float32), last, nn.Linear(width, CLASSES))
    diagnosis = examine(model)
    assert faults(diagnosis) == [], f"seed {seed}"
    assert named(diagnosis, "arithmetic").numbers["layers"] == ["1 (Casting)"]
    assert "float32" in named(diagnosis, "arithmetic").text


class Padded(nn.Module):
    """An embedding whose padding row is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.embedding.weight[0] = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(x).mean(1).tanh())


class Masked(nn.Module):
    """An encoder that is given a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True), 1)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        hidden = self.body(self.embedding(x), src_key_padding_mask=padding)
        kept = (~padding)[..., None].to(hidden.dtype)
        return self.out((hidden * kept).sum(1) / kept.sum(1))


class Filled(nn.Module):
    """Fills a fresh tensor by slices, which `linearize` gets wrong and every command refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), 4, dtype=x.dtype)
        hidden[:, :2] = self.body(x)[:, :2].tanh()
        hidden[:, 2:] = self.body(x)[:, 2:].sin()
        return self.out(hidden)


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 7, (12, 5), generator=generator)
    inputs[:6, 3:] = 0
    return inputs, torch.randint(CLASSES, (12,), generator=generator)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("model", "data"), [(Padded, tokens), (Masked, tokens), (Filled, draw)])
def test_what_every_command_copes_with_is_no_fault(
    model: Callable[[], nn.Module], data: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    torch.manual_seed(0)
    assert faults(examine(model(), data=data())) == []


def test_a_loss_that_calls_another_method_has_no_gauss_newton_matrix_and_no_fault() -> None:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
            return -F.cross_entropy(self.net(x), y, reduction="none")

    diagnosis = examine(Flow(), lambda model, batch: (-model.log_prob(*batch).sum(), len(batch[0])), [draw()])
    assert faults(diagnosis) == []
    assert named(diagnosis, "ggn").verdict == "care"


# Operations without a second derivative at zero, or without a first.
SINGULAR: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": lambda x: (x - x.detach()).square().sqrt(),
    "pow": lambda x: (x - x.detach()).abs().pow(1.5),
    "acos": lambda x: (1 - (x - x.detach())).acos(),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_an_operation_without_second_derivative_is_named_with_its_module(name: str) -> None:
    diagnosis = examine(mlp(nn.Tanh(), Apply(lambda x: x + SINGULAR[name](x))))
    finding = named(diagnosis, "second derivative")
    assert finding.verdict == "fault"
    assert f"{name} in 2 (Apply)" in finding.text, finding.text


def test_the_doctor_does_not_send_to_the_doctor() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return slope

    diagnosis = examine(mlp(Apply(Once.apply)))
    assert faults(diagnosis) != []
    assert not any("landscape doctor" in f.text for f in diagnosis.findings)


def test_usage() -> None:
    with pytest.raises(UsageError):
        doctor(Problem(mlp(), draw(), "cross_entropy"), samples=1)
    with pytest.raises(UsageError):
        doctor(Problem(mlp(), draw(), "cross_entropy"), device="abacus")
