"""Memory does not grow with the data: every pass takes as many samples as fit, whatever the loss or network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.problem import passes
from landscape.problem.batches import length_of
from landscape.problem.objective import build_objective
from landscape.problem.passes import bytes_of_a_sample, samples_at_once
from landscape.problem.problem import Problem


def random_network(seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """A network of random width and depth, data, and the least bytes that the graph of a sample keeps: one tensor of
    outputs a layer, as tanh keeps its own."""
    rng = torch.Generator().manual_seed(seed)
    width, depth = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((20, 200), (1, 5)))
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    samples = int(torch.randint(50, 300, (), generator=rng))
    x = torch.randn(samples, width, generator=rng)
    y = torch.randint(0, width, (samples,), generator=rng)
    return nn.Sequential(*layers), (x, y), 4 * width * depth


@pytest.mark.parametrize("seed", range(10))
def test_a_sample_is_measured(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, least = random_network(seed)
    problem = Problem(model, data, "cross_entropy")
    each = bytes_of_a_sample(model, problem.loss_function, data)
    assert least <= each <= 10 * least, f"seed {seed}"
    monkeypatch.setitem(passes.PASS_BYTES, "cpu", 7 * each)
    whole, cut = problem, build_objective(problem)
    assert {length_of(b) for b in cut.batches} <= set(range(1, 8))
    monkeypatch.undo()
    uncut = build_objective(whole)
    assert len(uncut.batches) == 1
    (a, slope), (b, other) = uncut.value_and_gradient(), cut.value_and_gradient()
    assert abs(a - b) <= 1e-5 * abs(a)
    assert float((slope - other).norm()) <= 1e-4 * float(slope.norm())


def test_what_a_frozen_network_has_alive_counts() -> None:
    """No graph is kept of it, but its passes have activations all the same."""
    model = nn.Sequential(nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    data = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    assert bytes_of_a_sample(model, Problem(model, data, "cross_entropy").loss_function, data) >= 4 * 4000


def test_a_loss_that_differentiates_inside_is_measured_too() -> None:
    model = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        named = dict(net.named_parameters())

        def at(x: Tensor) -> Tensor:
            return torch.func.functional_call(net, named, (x,)).sum()

        return torch.vmap(torch.func.grad(at))(batch[0]).square().sum(), len(batch[0])

    assert bytes_of_a_sample(model, loss, (torch.randn(8, 1), torch.zeros(8, 1))) >= 4 * 50


def test_one_sample_is_never_cut() -> None:
    model = nn.Linear(3, 2)
    one = [(torch.randn(1, 3), torch.zeros(1, dtype=torch.long))]
    assert samples_at_once(model, Problem(model, one, "cross_entropy").loss_function, one, 1) is None


MEASURE = """
import resource, torch
from torch import nn
from landscape import Problem, {command}

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor([0.2]))
        self.register_buffer("grid", torch.linspace(-1, 1, 40000))

    def forward(self, x):
        h = self.a * x + self.grid
        return (h * h * self.b + h).mean(1, keepdim=True)

torch.set_num_threads(1)
torch.manual_seed(0)
{command}(Problem(Wide(), (torch.randn({samples}, 1), torch.randn({samples}, 1)), "mse"), {options}, memory={memory})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("spectrum", "exact=False, density=False, top=1, bottom=1, max_products=3"),
        ("slice", "dirs='random', points=(3,), span=(0.1,)"),
    ],
)
def test_data_given_as_a_pair_stay_within_the_memory(command: str, options: str) -> None:
    """Each of these samples keeps half a megabyte of graph, twice that in float64, and as much is alive beside it."""
    memory, samples = 10**9, 1200
    code = MEASURE.format(command=command, options=options, samples=samples, memory=memory)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < memory


def test_a_loss_of_ones_own_is_cut_only_when_told() -> None:
    model, (x, y) = nn.Linear(3, 2), (torch.randn(30, 3), torch.randint(0, 2, (30,)))

    def own(net: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(net(batch[0]), batch[1], reduction="sum"), len(batch[0])

    loss: Callable[..., Any] = own
    assert [length_of(b) for b in build_objective(Problem(model, (x, y), loss)).batches] == [30]
    cut = landscape.spectrum(Problem(model, (x, y), loss), batch_size=7, exact=False, density=False, top=1, bottom=1)
    assert (cut.spent.plan["chunk"], cut.spent.plan["chunks"]) == (7, 5)
    assert cut.samples == 30
