"""Networks that `torch.func.vmap` cannot stack go one at a time, with the same numbers; the others stay stacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dense_truth import dense_truth
from landscape.points.certify import certify_stack
from landscape.points.descend import descend, run_descents
from landscape.points.escape import escape
from landscape.points.settings import DescendSettings
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack, stack_key
from landscape.stack.hessians import dense_hessians
from landscape.widening.run import widen

SAMPLES, TIME, WIDTH, CLASSES = 5, 3, 3, 2


class Recurrent(nn.Module):
    def __init__(self, body: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.body, self.packed, self.head = body, packed, nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = TIME - (x[:, 0, 0] > 0).long()
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            out, _ = self.body(x)
            return self.head(nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].mean(1))
        return self.head(self.body(x)[0][:, -1])


class Checkpointed(nn.Module):
    """Its first layer is computed again in backward, from whatever its parameters are then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda t: torch.tanh(self.a(t)), x, use_reentrant=False).mean(1))


class Experts(nn.Module):
    """Samples sorted by their best expert, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        weights = self.gate(x).softmax(1)
        out = torch.zeros(len(x), CLASSES, dtype=x.dtype)
        for k, expert in enumerate(self.experts):
            chosen = (weights.argmax(1) == k).nonzero().squeeze(1)
            if len(chosen):
                out = out.index_add(0, chosen, weights[chosen, k : k + 1] * expert(x[chosen]))
        return out


class Looping(nn.Module):
    """A fixed point found by a loop that looks at numbers."""

    def __init__(self, item: bool) -> None:
        super().__init__()
        self.item, self.mix, self.head = item, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = x = x.mean(1)
        if self.item:
            return self.head(torch.tanh(self.mix(x)) * (1 + 0 * x.sum().item() + self.mix.weight.sum().item() * 0))
        for _ in range(30):
            new = torch.tanh(0.3 * self.mix(z) + x)
            done = (new - z).abs().max() < 1e-3
            z = new
            if done:
                break
        return self.head(z)


class Hooked(nn.Module):
    """A hook that keeps what it saw and reads numbers from it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 3), nn.Linear(3, CLASSES)
        self.a.register_forward_hook(lambda m, i, o: o if float(o.detach().abs().max()) < 1e9 else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.mean(1))))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(2, 2, 2, batch_first=True, dropout=0.0), 1, enable_nested_tensor=True
        )
        self.inner, self.head = nn.Linear(WIDTH, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.arange(x.shape[1]).expand(len(x), -1) >= 2
        return self.head(self.layer(self.inner(x), src_key_padding_mask=padded).mean(1))


KINDS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "lstm": (lambda: Recurrent(nn.LSTM(WIDTH, 2, batch_first=True)), True),
    "gru": (lambda: Recurrent(nn.GRU(WIDTH, 2, batch_first=True)), True),
    "packed": (lambda: Recurrent(nn.LSTM(WIDTH, 2, batch_first=True), packed=True), True),
    "checkpoint": (Checkpointed, True),
    "experts": (Experts, True),
    "loop": (lambda: Looping(False), True),
    "item": (lambda: Looping(True), True),
    "hook": (Hooked, True),
    "encoder": (Masked, False),
    "layer norm": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(TIME * WIDTH, 3), nn.LayerNorm(3)), False),
}


def problem_of(kind: str, seed: int, loss: str = "cross_entropy") -> Problem:
    torch.manual_seed(0)
    data = torch.randn(SAMPLES, TIME, WIDTH), torch.randint(CLASSES, (SAMPLES,))
    torch.manual_seed(1 + seed)
    model = KINDS[kind][0]()
    if loss == "custom":

        def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

        return Problem(model, [data], summed, 0.1)
    return Problem(model, data, loss)


@pytest.mark.parametrize("kind", KINDS)
def test_two_networks_have_the_numbers_that_each_has(kind: str) -> None:
    loss = "custom" if kind in ("gru", "experts") else "cross_entropy"
    problems = [problem_of(kind, seed, loss) for seed in (0, 1)]
    stack, theta = build_stack(problems)
    assert bool(stack.alone) == KINDS[kind][1], stack.alone
    hessians = dense_hessians(stack, theta).matrix
    values, slopes = stack.values_and_gradients(theta)
    for i, problem in enumerate(problems):
        truth = dense_truth(problem, sharp=False)
        matrix = torch.from_numpy(truth.matrix)
        assert float(stack.values(theta)[i]) == pytest.approx(truth.loss, rel=1e-13)
        assert float(values[i]) == pytest.approx(truth.loss, rel=1e-13)
        assert (hessians[i] - matrix).abs().max() < 1e-13 * max(1, truth.scale)
        objective = build_objective(problem, dtype=torch.float64)
        assert (objective.value_and_gradient()[1] - slopes[i]).abs().max() < 1e-14
    # The second alone, and what float64's cancellation is measured by, which sees all of a batch.
    row = torch.tensor([1])
    assert float(stack.values(theta[1:], row)) == pytest.approx(float(values[1]), rel=1e-13)
    if loss != "custom":
        again, start = build_stack(problems[1:])
        assert float(stack.saturation(theta[1:], row)) == pytest.approx(float(again.saturation(start)), rel=1e-12)
        assert float(again.saturation(start)) > 0


def test_the_way_taken_does_not_change_certificates() -> None:
    """A network that can be stacked, taken alone all the same."""
    from dataclasses import replace

    torch.manual_seed(0)
    data = torch.randn(9, 3), torch.randn(9, 2)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    stack, theta = build_stack([Problem(model, data, "mse")])
    assert stack.alone == ""
    one, other = (certify_stack(s, theta)[0] for s in (stack, replace(stack, alone="to see")))
    assert one.lambda_min.value == pytest.approx(other.lambda_min.value, rel=1e-10)
    assert one.verdict == other.verdict
    assert one.gradient_inf == pytest.approx(other.gradient_inf, rel=1e-12)
    assert (one.kinks is None) == (other.kinks is None)


@pytest.mark.parametrize("kind", ["lstm", "experts", "checkpoint"])
def test_descents_and_ways_out_of_one_network_at_a_time(kind: str) -> None:
    problem = problem_of(kind, 0)
    found = run_descents([problem, problem_of(kind, 1)], DescendSettings(steps=25))
    truth = dense_truth(problem, sharp=False)
    for one in found:
        assert not isinstance(one, Exception), one
        assert one.loss < one.loss_before
    assert found[0].loss_before == pytest.approx(truth.loss, rel=1e-12)
    out = escape(problem, certify_only=True)
    assert out.certificate.lambda_min.value == pytest.approx(truth.eigenvalues[0], abs=1e-12)
    assert out.line_loss[len(out.line_loss) // 2] == pytest.approx(truth.loss, rel=1e-12)


def test_a_network_beyond_dense_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of large networks, for a small one."""
    for module in ("points.descend", "points.escape", "points.ways_out"):
        monkeypatch.setattr(f"landscape.{module}.DENSE_STEPS", 10)
    monkeypatch.setattr("landscape.points.escape.DENSE", 10)
    problem = problem_of("gru", 0)
    found = descend(problem, steps=3)
    assert found.loss < found.loss_before
    out = escape(problem, steps=3)
    assert out.certificate.lambda_min.value == pytest.approx(dense_truth(problem, sharp=False).eigenvalues[0], rel=1e-2)


def test_widening_one_network_at_a_time() -> None:
    found = widen(problem_of("hook", 0), "a", neurons=(1,), shares=((0.5, 0.5),), following="b")
    assert found.preserved.max() < 1e-14
    assert len(found.measured_negative) == 1


def test_tables_that_are_no_buffers_part_stacks() -> None:
    """Networks with other constants are not one stack, whose template would lend all of them its own."""
    problems = [problem_of("hook", seed) for seed in (0, 0, 0)]
    for problem, number in zip(problems, (1.0, 1.0, 2.0), strict=True):
        problem.model.table = torch.tensor([number])
    first, same, other = (stack_key(p)[1] for p in problems)
    assert first[0] == same[0]
    assert first[0] != other[0]
