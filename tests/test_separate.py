"""Networks and losses whose samples see each other: batches stay whole, or what would cut them is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dense_truth import dense_truth
from landscape import descend, spectrum
from landscape import slice as slice_surface
from landscape.errors import ProblemError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem


def normalised(h: Tensor) -> Tensor:
    return F.batch_norm(h, None, None, training=True)


# What a network makes of its hidden units [N, h], in its own code.
MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "functional batch norm": normalised,
    "centred": lambda h: h - h.mean(0),
    "standardised": lambda h: (h - h.mean(0)) / (h.std(0) + 0.1),
    "attention over the batch": lambda h: (h @ h.T).softmax(1) @ h,
    "share of the batch": lambda h: len(h) * h.softmax(0),
    "largest of the batch": lambda h: h / h.abs().amax(0),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "layer norm": lambda h: F.layer_norm(h, h.shape[1:]),
    "half precision inside": lambda h: h.bfloat16().tanh().to(h),
    "sorted within": lambda h: h.sort(1).values,
}


class Net(nn.Module):
    def __init__(self, inside: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inside(self.first(x))))


def problem_of(inside: Callable[[Tensor], Tensor], seed: int, samples: int = 41) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(samples, 3, generator=generator), torch.randint(3, (samples,), generator=generator)
    if seed % 2:
        return Problem(Net(inside, seed), [(x[:20], y[:20]), (x[20:], y[20:])], "cross_entropy")
    return Problem(Net(inside, seed), (x, torch.eye(3)[y]), "mse")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MIXED)
def test_batches_of_a_built_in_loss_stay_whole(name: str, seed: int) -> None:
    problem = problem_of(MIXED[name], seed)
    truth = dense_truth(problem, sharp=False)
    for settings in ({"exact": True}, {"exact": False, "density": False, "memory": 2**30}):
        found = spectrum(problem, top=1, bottom=1, **settings)
        assert found.loss == pytest.approx(truth.loss, rel=1e-5)
        assert abs(found.top_value[0] - truth.eigenvalues[-1]) <= found.top_residual[0] + truth.error, settings
        assert any("batches stay as your data makes them" in note for note in found.spent.notes)
    for refused in ({"batch_size": 10}, {"samples": 21}):
        with pytest.raises(ProblemError, match="see each other"):
            spectrum(problem, **refused)
    assert descend(problem, steps=2).loss_before == pytest.approx(truth.loss, rel=1e-5)
    assert slice_surface(problem, points=(3,), span=0.1).loss[0, 1] == pytest.approx(truth.loss, rel=1e-5)


@pytest.mark.parametrize("name", APART)
def test_others_are_cut_as_memory_wants(name: str) -> None:
    assert build_objective(problem_of(APART[name], 0)).cuttable


def contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    z = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(z @ z.T / 0.5, torch.arange(len(z)), reduction="sum"), len(z)


def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


@pytest.mark.parametrize("samples", [8, 30])
def test_samples_are_not_left_out_of_a_loss_of_all_of_them(samples: int) -> None:
    x, y = torch.randn(64, 3), torch.randint(3, (64,))
    data = [(x[:32], y[:32]), (x[32:], y[32:])]
    settings: dict[str, Any] = {"samples": samples, "exact": True, "density": False}
    with pytest.raises(ProblemError, match="see each other") as caught:
        spectrum(Problem(Net(torch.tanh, 0), data, contrastive), **settings)
    assert "--samples" in (caught.value.hint or "")
    assert spectrum(Problem(Net(torch.tanh, 0), data, plain), **settings).samples == samples


def test_a_count_is_no_function_of_the_parameters() -> None:
    def weighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = model(batch[0])
        weights = z[:, 0].exp()
        return (weights * F.cross_entropy(z, batch[1], reduction="none")).sum(), weights.sum()

    x, y = torch.randn(20, 3), torch.randint(3, (20,))
    with pytest.raises(ProblemError, match="count depends on the parameters"):
        spectrum(Problem(Net(torch.tanh, 0), (x, y), weighted))


@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_classes_last_or_second_are_not_guessed(shape: tuple[int, ...]) -> None:
    """Where both readings fit, and where one does."""

    class Dense(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.table, self.last = nn.Parameter(torch.randn(3, 5)), last

        def forward(self, x: Tensor) -> Tensor:
            z = self.table[:, x].movedim(0, 1)  # [N, classes, ...]
            return z.movedim(1, -1) if self.last else z

    x, y = torch.randint(5, (7, *shape)), torch.randint(3, (7, *shape))
    for last in (True, False):
        with pytest.raises(ProblemError, match="classes last, or second") as caught:
            spectrum(Problem(Dense(last), (x, y), "cross_entropy"))
        model = Dense(last)
        hints = re.findall("`(.+?)`", caught.value.hint or "")
        loss = eval(hints[last], {"F": F})
        found = spectrum(Problem(model, (x, y), loss), exact=True, density=False)
        z = model(x).detach()
        expected = float(F.cross_entropy(z.movedim(-1, 1) if last else z, y))
        assert found.loss == pytest.approx(expected, rel=1e-5)
        wider = torch.cat([x, x], 1), torch.cat([y, y], 1)  # one of the readings fits
        found = spectrum(Problem(model, wider, "cross_entropy"), exact=True, density=False)
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert found.samples == wider[1].numel()


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.BatchNorm1d])
def test_instance_norm_has_statistics_too(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), kind(3, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(18, 2)
    )
    x, y = torch.randn(12, 2, 8), torch.randn(12, 2)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(3 * x + 1)
        training = float((model(x) - y).square().sum() / 12)
        running = float((model.eval()(x) - y).square().sum() / 12)
    assert abs(training - running) > 1e-3
    for batchnorm, expected in (("batch", training), ("eval", running)):
        found = spectrum(Problem(model, (x, y), "mse", batchnorm=batchnorm), exact=True, density=False)
        assert found.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_spectrum_has_no_rounding_of_float32(seed: int) -> None:
    """Sines of thousands, as in networks of sines, lose three digits in float32."""
    torch.manual_seed(seed)
    model, x = nn.Linear(2, 1), torch.randn(30, 2)

    def wave(model: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, int]:
        return torch.sin(1e4 * model(batch[0])).square().sum(), len(batch[0])

    wide = [p.detach().double().requires_grad_() for p in model.parameters()]
    slopes = torch.autograd.grad(torch.sin(1e4 * F.linear(x.double(), *wide)).square().sum() / 30, wide)
    exact = float(torch.cat([g.flatten() for g in slopes]).norm())
    found = spectrum(Problem(model, [(x,)], wave, weight_decay=0.0), top=1, bottom=1, density=False)
    assert found.gradient_norm == pytest.approx(exact, rel=1e-9)


def ring(nodes: int, layout: torch.layout) -> Tensor:
    """A graph's adjacency, each node with its neighbours."""
    at = torch.arange(nodes)
    dense = torch.zeros(nodes, nodes)
    dense[at, (at + 1) % nodes] = dense[(at + 1) % nodes, at] = 0.5
    return dense.to_sparse(layout=layout) if layout != torch.strided else dense


class Graph(nn.Module):
    """Two convolutions on a graph that is given with the nodes, or kept as a buffer or an attribute."""

    def __init__(self, kept: Tensor | None, buffer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        if buffer:
            self.register_buffer("kept", kept)
        else:
            self.kept = kept

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        a = self.kept if adjacency is None else adjacency
        return a @ self.last(torch.tanh(a @ self.first(x)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr], ids=str)
@pytest.mark.parametrize("where", ["batch", "buffer", "attribute"])
@pytest.mark.parametrize("built_in", [True, False])
def test_networks_on_one_graph(layout: torch.layout, where: str, built_in: bool) -> None:
    if where == "batch" and built_in:
        return  # named losses take pairs
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2
    adjacency = ring(12, layout)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        *given, y = batch
        return F.cross_entropy(model(*given), y, reduction="sum"), len(y)

    def problem(a: Tensor, buffer: bool) -> Problem:
        model = Graph(None if where == "batch" else a, buffer)
        if built_in:
            return Problem(model, (x, y), "cross_entropy")
        return Problem(model, [(x, a, y) if where == "batch" else (x, y)], loss)

    truth = dense_truth(problem(ring(12, torch.strided), True), sharp=False)
    for exact in (True, False):
        found = spectrum(problem(adjacency, where == "buffer"), exact=exact, top=1, bottom=1, density=False)
        assert found.loss == pytest.approx(truth.loss, rel=1e-5)
        assert abs(found.top_value[0] - truth.eigenvalues[-1]) <= found.top_residual[0] + 1e-12
