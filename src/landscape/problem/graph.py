"""The graph of a loss: gradients through it, whom it reaches, and which of its nodes have no right derivative."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def nodes_of(total: Tensor) -> Iterator[Any]:
    """Every node of a tensor's graph once."""
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def reaches(total: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether backward would arrive at any of these leaves; through a reentrant checkpoint one cannot see."""
    wanted = {id(p) for p in parameters}
    return any(id(getattr(node, "variable", None)) in wanted or is_reentrant(node) for node in nodes_of(total))


def is_reentrant(node: Any) -> bool:
    """Whether a node is a checkpoint of the kind that `autograd.grad` passes by without a word."""
    return type(node).__name__ == "CheckpointFunctionBackward"


def undifferentiable(total: Tensor) -> tuple[str, str] | None:
    """What makes the derivatives of a loss wrong by its name alone, and what to do instead; None: nothing does."""
    for node in nodes_of(total):
        if is_reentrant(node):
            return (
                "a reentrant torch.utils.checkpoint gives no gradient to what is inside it, silently",
                "pass use_reentrant=False to checkpoint(...)",
            )
        if getattr(node, "_saved_scale_grad_by_freq", False):
            return SCALED
        if getattr(node, "_saved_sparse", False):
            return SPARSE
    return None


SCALED = (
    "an embedding with scale_grad_by_freq=True divides its gradient by counts: that is the gradient of no loss, and "
    "its Hessian is not symmetric",
    "set scale_grad_by_freq=False on it; the loss stays the same",
)
SPARSE = (
    "an embedding called with sparse=True has a sparse gradient, which has no second derivative",
    "call F.embedding with sparse=False; the loss stays the same",
)


def saved_bytes(roots: Sequence[Tensor], ignore: Sequence[Tensor]) -> int:
    """Bytes that graphs keep for backward, each storage once, without the tensors to be ignored."""
    seen, total = {t.untyped_storage().data_ptr() for t in ignore if not t.is_sparse and not t.is_sparse_csr}, 0
    nodes = {node for root in roots for node in nodes_of(root)}
    for node in nodes:
        for name in dir(node):
            if not name.startswith("_saved_"):
                continue
            with suppress(RuntimeError):  # what is freed, or was changed in place
                kept = getattr(node, name)
                for tensor in kept if isinstance(kept, tuple | list) else (kept,):
                    if isinstance(tensor, Tensor) and (at := tensor.untyped_storage().data_ptr()) not in seen:
                        seen.add(at)
                        total += tensor.untyped_storage().nbytes()
    return total


def crashes_linearize(total: Tensor) -> str:
    """What in a loss ends the process while `torch.func.linearize` traces it (torch 2.13); empty: nothing known."""
    names = {type(node).__name__ for node in nodes_of(total)}
    return "F.mse_loss, while torch.func.linearize traces it, ends the process" if "MseLossBackward0" in names else ""


def fixed_rows(total: Tensor, parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(number of the parameter, row) of embeddings' padding rows, which move the loss but are left out by backward."""
    places = {id(p): i for i, p in enumerate(parameters)}
    found = []
    for node in nodes_of(total):
        row = getattr(node, "_saved_padding_idx", None)
        leaf = id(getattr(node.next_functions[0][0], "variable", None)) if node.next_functions else None
        # an index of −1, as unsigned: there is none
        if row is not None and leaf in places and row < len(parameters[places[leaf]]):
            found.append((places[leaf], int(row)))
    return found


def gradients(total: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """∂ total / ∂ parameters, zero where the total does not depend on one."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(p) for p in parameters)
    found = torch.autograd.grad(total, parameters, create_graph=create_graph, materialize_grads=True)
    return tuple(f.to_dense() if f.is_sparse else f for f in found)
