"""Networks of equal architecture into one stack."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.batches import length_of, rechunk, take
from landscape.ensemble import CACHE_BYTES, Stack
from landscape.objective import Objective, build_objective
from landscape.parameters import trainable
from landscape.problem import Problem


def stack_key(problem: Problem) -> tuple[Any, ...]:
    """Equal for problems whose networks can go into one stack, given the same data."""
    state = {name: (tuple(t.shape), t.dtype) for name, t in problem.model.state_dict().items()}
    loss = problem.loss if isinstance(problem.loss, str) else id(problem.loss)
    modules = tuple(_plain_attributes(m) for m in problem.model.modules())
    kind = (repr(problem.model), modules, tuple(state.items()), tuple(trainable(problem.model)))
    return (*kind, loss, problem.weight_decay)


def _plain_attributes(module: nn.Module) -> tuple[Any, ...]:
    """What a module computes with besides its tensors and parts: numbers, text, tuples of them, functions."""
    found = []
    for name, value in sorted(vars(module).items()):
        if name == "training" or name.startswith("_"):
            continue
        if isinstance(value, bool | int | float | str | tuple | list | dict | type(None)):
            found.append((name, repr(value)))
        elif callable(value) and not isinstance(value, nn.Module):
            found.append((name, str(id(value))))
    return (type(module).__qualname__, *found)


def build_stack(
    problems: Sequence[Problem],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
    objective: Objective | None = None,
) -> tuple[Stack, Tensor]:
    """The stack of several problems with equal architecture and the data of the first, and their θ [S, P].

    Args:
        problems: left untouched; their `stack_key` must agree.
        objective: of the first problem, if the caller has built it.

    Raises:
        ProblemError, NumericalError: as `build_objective`, for the first problem.
    """
    first = problems[0]
    made = build_objective(first, device=device, dtype=dtype) if objective is None else objective
    model = copy.deepcopy(made.model)
    names = made.names
    states = [_tensors(p.model, made.device, made.dtype) for p in problems]
    theta = torch.stack([made.layout.flatten([s[n] for n in names]) for s in states])
    others = {n: torch.stack([s[n] for s in states]) for n in states[0] if n not in names}
    loss_name = first.loss if isinstance(first.loss, str) else None
    unit = unit_bytes(made)
    batches = rechunk(made.batches, max(1, CACHE_BYTES // unit)) if made.cuttable else made.batches
    # `functional_call` swaps the tensors; those of the template only say shapes.
    stack = Stack(
        model,
        made.loss,
        loss_name,
        batches,
        made.layout,
        others,
        made.count,
        made.weight_decay,
        len(problems),
        unit,
        memory,
    )
    return stack, theta


def _tensors(model: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and buffers by name, floating-point ones in `dtype`, tied ones once."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        name: t.detach().to(device, dtype if t.is_floating_point() else t.dtype, copy=True) for name, t in named.items()
    }


def unit_bytes(objective: Objective) -> int:
    """Bytes of the largest activation per sample, seen by hooks in one forward pass of a few samples."""
    batch = take(objective.batches[0], slice(0, 2)) if objective.cuttable else objective.batches[0]
    largest = 1

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    handles = [m.register_forward_hook(note) for m in objective.model.modules()]
    try:
        with torch.no_grad():
            objective.loss(objective.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, largest // max(1, length_of(batch))) * objective.dtype.itemsize
