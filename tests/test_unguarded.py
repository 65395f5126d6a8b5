"""Networks whose gradients, copies or masks are of a special kind: analysed for what they are, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dense_truth import dense_truth
from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.checkpoints.fit import load_into
from landscape.errors import CheckpointError, NumericalError, ProblemError
from landscape.problem.copies import copied
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.spectra.run import spectrum
from landscape.stack.build import build_stack
from landscape.stack.hessians import dense_hessians


class Words(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        table = nn.EmbeddingBag if kind == "bag" else nn.Embedding
        self.table, self.head = table(4, 2, sparse=kind != "function"), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bag":
            return self.head(torch.tanh(self.table(x)))
        found = F.embedding(x, self.table.weight, sparse=True) if self.kind == "function" else self.table(x)
        return self.head(torch.tanh(found).mean(1))


def words(kind: str) -> Problem:
    torch.manual_seed(0)
    return Problem(Words(kind), (torch.randint(4, (6, 3)), torch.randint(2, (6,))), "cross_entropy")


def same_as_truth(problem: Problem, truth_of: Problem) -> None:
    """Spectrum and stack against a double backward written out."""
    truth = dense_truth(truth_of, sharp=False)
    found = spectrum(problem, exact=True, density=False)
    assert abs(found.eigenvalues - truth.eigenvalues).max() < 1e-13 * max(1.0, truth.scale)
    stack, theta = build_stack([problem])
    assert (dense_hessians(stack, theta).matrix[0] - torch.from_numpy(truth.matrix)).abs().max() < 1e-13


def test_sparse_embeddings() -> None:
    dense = words("table")
    dense.model.table.sparse = False
    problem = words("table")
    same_as_truth(problem, dense)
    assert problem.model.table.sparse  # the user's own stays


def test_a_sparse_bag_is_refused_for_what_torch_lacks() -> None:
    for sparse in (True, False):
        problem = words("bag")
        problem.model.table.sparse = sparse
        with pytest.raises(ProblemError, match="_embedding_bag"):
            spectrum(problem)
        stack, theta = build_stack([problem])
        with pytest.raises(ProblemError, match="_embedding_bag"):
            stack.hessians(theta)


def test_a_sparse_function_is_refused_by_name() -> None:
    with pytest.raises(ProblemError, match="sparse=True") as caught:
        spectrum(words("function"))
    assert "sparse=False" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
def test_norms_of_the_older_kind(kind: str) -> None:
    """They keep the weights as results of a computation, with which PyTorch copies nothing; the formula is compared."""
    torch.manual_seed(0)
    with pytest.warns(FutureWarning) if kind == "weight_norm" else torch.no_grad():
        layer = getattr(nn.utils, kind)(nn.Linear(3, 3))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    model(x)  # as after training
    copied(copied(model))

    class Formula(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = dict(layer.named_parameters())
            self.bias = nn.Parameter(own["bias"].detach().clone())
            for name in own:
                if name != "bias":
                    setattr(self, name, nn.Parameter(own[name].detach().clone()))
            for name, buffer in layer.named_buffers():
                self.register_buffer(name, buffer.detach().clone())
            self.head = nn.Linear(3, 2)
            self.head.load_state_dict(model[2].state_dict())

        def forward(self, x: Tensor) -> Tensor:
            if kind == "weight_norm":
                weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
            else:
                weight = self.weight_orig / (self.weight_u @ self.weight_orig @ self.weight_v)
            return self.head(torch.tanh(F.linear(x, weight, self.bias)))

    model.eval()
    formula = Problem(Formula(), (x, y), "cross_entropy")
    problem = Problem(model, (x, y), "cross_entropy")
    if kind == "spectral_norm":
        same_as_truth(problem, formula)
    else:  # torch 2.13: the fused weight norm has a wrong second derivative
        truth = dense_truth(formula, sharp=False)
        assert build_objective(problem, dtype=torch.float64).value() == pytest.approx(truth.loss, rel=1e-13)


# ---- masks --------------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        z = self.inner(x)
        weights = torch.softmax(z @ z.transpose(1, 2) + (self.mask if mask is None else mask), -1)
        return self.head((weights @ z).mean(1))


def test_masks_of_minus_infinity_are_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Causal()
    x, y = torch.randn(4, 3, 2), torch.randint(2, (4,))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    load_into(model, read_checkpoint(tmp_path / "net.pt"))
    problem = Problem(model, (x, y), "cross_entropy")
    same_as_truth(problem, problem)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch["x"], batch["mask"]), batch["y"], reduction="sum"), len(batch["y"])

    batch = {"x": x, "y": y, "mask": model.mask.expand(4, 3, 3).clone()}
    found = build_objective(Problem(model, [batch], loss), dtype=torch.float64)
    assert found.value() == pytest.approx(build_objective(problem, dtype=torch.float64).value(), rel=1e-14)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_mask_is_refused(value: float, tmp_path: Path) -> None:
    """In parameters, in whole tensors, and in data where the loss is not finite for it."""
    model = Causal()
    state = model.state_dict()
    state["head.bias"][0] = value
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"NaN or Inf in head\.bias"):
        load_into(model, read_checkpoint(tmp_path / "net.pt"))
    x = torch.randn(4, 3, 2)
    x[0, 0, 0] = value
    with pytest.raises((ProblemError, NumericalError), match=r"NaN or Inf|loss at the checkpoint is nan"):
        build_objective(Problem(Causal(), (x, torch.randint(2, (4,))), "cross_entropy"))


# ---- what tracing makes of a network ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [IndexError, KeyError, ValueError, TypeError])
def test_whatever_tracing_raises_another_way_is_taken(error: type[Exception]) -> None:
    """A forward pass that fails inside of torch.func, as some of the T5 family do, with any exception."""

    class Fragile(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if torch._C._functorch.maybe_current_level() is not None:
                raise error("tuple index out of range")
            return torch.tanh(super().forward(x))

    torch.manual_seed(0)
    problem = Problem(Fragile(3, 2), (torch.randn(5, 3), torch.randn(5, 2)), "mse")
    truth = dense_truth(problem, sharp=False)
    found = spectrum(problem, strategy="linearize", exact=False, density=False, top=1, bottom=1)
    assert found.top_value[0] == pytest.approx(truth.eigenvalues[-1], rel=1e-3)
    assert any("tuple index" in note for note in found.spent.notes)
