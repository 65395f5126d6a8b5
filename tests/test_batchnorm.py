"""BatchNorm by running statistics or by those of each batch: which loss it is, and that its Hessian is right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.checkpoints.load import load_problem
from landscape.errors import CheckpointError, ProblemError
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem


def convolutional(seed: int, **norm: Any) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv1d(1, 2, 3),
        nn.BatchNorm1d(2, **norm),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
        nn.BatchNorm1d(3, **norm),
    ).double()
    if norm.get("track_running_stats", True):
        net.train()
        for _ in range(3):
            net(torch.randn(9, 1, 6, dtype=torch.float64))
    return net.eval()


def batches(seed: int, sizes: tuple[int, ...] = (5, 7, 3)) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 1, 6, generator=rng, dtype=torch.float64), torch.randint(0, 3, (n,), generator=rng))
        for n in sizes
    ]


def trained_loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """The mean loss in train mode with its graph, and its parameters; running statistics of a copy move."""
    import copy

    copied = copy.deepcopy(model).train()
    total = sum(F.cross_entropy(copied(x), y, reduction="sum") for x, y in data)
    assert isinstance(total, Tensor)
    return total / sum(len(y) for _, y in data), list(copied.parameters())


def double_backward(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(s, parameters, retain_graph=True, materialize_grads=True)])
        for s in slope
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_batch_statistics_are_those_of_training(seed: int, exact: bool, tracked: bool) -> None:
    model, data = convolutional(seed, track_running_stats=tracked), batches(seed)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = landscape.spectrum(
        Problem(model, data, "cross_entropy", batchnorm="batch"), exact=exact, top=3, bottom=2, density=False
    )
    loss, parameters = trained_loss(model, data)
    truth = torch.linalg.eigvalsh(double_backward(loss, parameters)).flip(0).numpy()
    assert abs(found.loss - loss.item()) <= 1e-12, f"seed {seed}"
    for got, right, bound in zip(found.top_value, truth, found.top_residual, strict=False):
        assert abs(got - right) <= bound + 1e-12 * truth[0], f"seed {seed}"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert any("statistics of each batch" in note for note in found.spent.notes)


def test_running_statistics_are_said_to_be_used() -> None:
    model, data = convolutional(0), batches(0)
    found = landscape.spectrum(Problem(model, data, "cross_entropy"), top=1, bottom=1, density=False)
    assert any("--batchnorm batch" in note for note in found.spent.notes)


def test_descents_slices_and_escapes_take_them_too() -> None:
    model, data = convolutional(1), batches(1)
    problem = Problem(model, data, "cross_entropy", weight_decay=0.01, batchnorm="batch")
    loss, _ = trained_loss(model, data)
    start = loss.item() + 0.005 * sum(p.square().sum().item() for p in model.parameters())
    line = landscape.slice(problem, dirs="random", points=(3,), span=(0.1,))
    assert abs(line.loss_centre - start) <= 1e-12
    assert line.batchnorm == "batch"
    ended = landscape.descend(problem, steps=30)
    assert abs(ended.loss_before - start) <= 1e-12
    escaped = landscape.escape(problem, descend=False, controls=0, steps=3)
    assert abs(escaped.loss - start) <= 1e-12


def test_what_cannot_be_is_refused() -> None:
    plain = Problem(convolutional(0, track_running_stats=False), batches(0), "cross_entropy")
    with pytest.raises(ProblemError) as refused:
        build_objective(plain)
    assert "--batchnorm batch" in str(refused.value.hint)
    whole = Problem(convolutional(0), batches(0), "cross_entropy", batchnorm="batch")
    with pytest.raises(ProblemError, match="see each other") as refused:
        landscape.spectrum(whole, batch_size=2)
    assert "leave --batch-size out" in str(refused.value.hint)
    with pytest.raises(ProblemError):
        Problem(convolutional(0), batches(0), "cross_entropy", batchnorm="train")


FILE = """
import torch
from torch import nn
from landscape import Problem

def problem(statistics="eval"):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    rng = torch.Generator().manual_seed(0)
    data = [(torch.randn(9, 3, generator=rng), torch.randn(9, 2, generator=rng)) for _ in range(2)]
    loss = lambda m, b: ((m(b[0]) - b[1]).square().sum(), len(b[1]))
    return Problem(model, data, loss, batchnorm=statistics)
"""


def test_batch_statistics_need_no_running_ones(tmp_path: Path) -> None:
    """Files without some of the running statistics: no misfit where they are unused, and the same loss."""
    (tmp_path / "problem.py").write_text(FILE)
    spec = f"{tmp_path / 'problem.py'}:problem"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model(torch.randn(20, 3))
    whole, path, rng = model.state_dict(), tmp_path / "c.pt", random.Random(0)
    torch.save(whole, path)
    wanted = build_objective(load_problem(path, spec, batchnorm="batch").problem).value_and_gradient()[1]
    running = [name for name in whole if "running" in name or "tracked" in name]
    for number in range(6):
        gone = set(running if number == 0 else rng.sample(running, 3)) | {"1.running_mean"}
        torch.save({f"module.{name}": t for name, t in whole.items() if name not in gone}, path)
        for options in ({"batchnorm": "batch"}, {"settings": {"statistics": "batch"}}):
            loaded = load_problem(path, spec, **options)  # type: ignore[arg-type]
            assert torch.equal(build_objective(loaded.problem).value_and_gradient()[1], wanted)
            assert any("running statistics are missing" in note for note in loaded.notes)
        with pytest.raises(CheckpointError, match="no running statistics of BatchNorm") as refused:
            load_problem(path, spec)
        assert "--batchnorm batch" in (refused.value.hint or "")
    torch.save({name: t for name, t in whole.items() if name != "1.weight"}, path)
    with pytest.raises(CheckpointError, match=r"missing: 1\.weight"):
        load_problem(path, spec, batchnorm="batch")
