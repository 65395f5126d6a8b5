"""Networks of equal architecture into one stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import ProblemError
from landscape.problem.batches import fingerprint, length_of, read_batches, rechunk, take
from landscape.problem.copies import copied
from landscape.problem.objective import Objective, build_objective
from landscape.problem.parameters import trainable
from landscape.problem.problem import Batch, Problem
from landscape.runtime.arithmetic import strict_arithmetic
from landscape.stack.stack import CACHE_BYTES, Stack
from landscape.stack.stackable import why_alone

# One [S, P, P]; a descent holds several.
MATRIX_BYTES = 2**30


def stack_key(problem: Problem) -> tuple[Any, ...]:
    """Equal for problems whose networks can go into one stack, given the same data."""
    state = {name: (tuple(t.shape), t.dtype) for name, t in problem.model.state_dict().items()}
    loss = problem.loss if isinstance(problem.loss, str) else id(problem.loss)
    modules = tuple(_plain_attributes(m) for m in problem.model.modules())
    kind = (repr(problem.model), modules, tuple(state.items()), tuple(trainable(problem.model)))
    return (*kind, loss, problem.weight_decay)


def _plain_attributes(module: nn.Module) -> tuple[Any, ...]:
    """What a module computes with besides its parameters, buffers and parts: numbers, text, tuples of them, functions,
    plain tensors."""
    found = []
    for name, value in sorted(vars(module).items()):
        if name == "training" or name.startswith("_"):
            continue
        if isinstance(value, bool | int | float | str | tuple | list | dict | type(None)):
            found.append((name, repr(value)))
        elif isinstance(value, Tensor):
            found.append((name, fingerprint([value])))
        elif callable(value) and not isinstance(value, nn.Module):
            found.append((name, str(id(value))))
    return (type(module).__qualname__, *found)


def most_members(most: Mapping[str, int], device: torch.device | str, parameters: int) -> int:
    """Members of a stack that is descended with matrices [S, P, P]: `most` by type of device, within memory."""
    return max(1, min(most[torch.device(device).type], MATRIX_BYTES // (8 * parameters**2)))


def build_stack(
    problems: Sequence[Problem],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
    objective: Objective | None = None,
) -> tuple[Stack, Tensor]:
    """The stack of several problems with equal architecture and equal `data_key`, and their θ [S, P].

    Args:
        problems: left untouched; their `stack_key` must agree.
        objective: of the first problem, if the caller has built it; its data are then those of all.

    Raises:
        ProblemError, NumericalError: as `build_objective`, for the first problem. ProblemError: the data of the others
            cannot go into one stack with those of the first.
    """
    first = problems[0]
    made = build_objective(first, device=device, dtype=dtype) if objective is None else objective
    model = copied(made.model)
    names = made.names
    states = [_tensors(p.model, made.device, made.dtype) for p in problems]
    theta = torch.stack([made.layout.flatten([s[n] for n in names]) for s in states])
    held = {n for n, _ in model.named_buffers()} | {n for n, _ in model.named_parameters()}  # no running statistics
    others = {n: torch.stack([s[n] for s in states]) for n in states[0] if n in held and n not in names}
    loss_name = first.loss if isinstance(first.loss, str) and made.cuttable else None
    unit = unit_bytes(made)
    batches = rechunk(made.batches, max(1, CACHE_BYTES // unit)) if made.cuttable else made.batches
    own = _own_targets(problems, batches) if objective is None else {}
    if own:
        batches = [(batch[0], name) for batch, name in zip(batches, own, strict=True)]
    # `functional_call` swaps the tensors; those of the template only say shapes.
    stack = Stack(
        model,
        made.loss,
        loss_name,
        batches,
        made.layout,
        others | own,
        made.count,
        made.weight_decay,
        len(problems),
        unit,
        memory,
        tuple(own),
    )
    return replace(stack, alone=why_alone(stack, theta)), theta


def data_key(problem: Problem, batches: Sequence[Batch]) -> str:
    """Equal for problems whose data, its `batches`, can go into one stack: the same, or with other regression targets
    for the same inputs."""
    if isinstance(problem.loss, str) and all(_is_regression(b) for b in batches):
        batches = [(inputs, torch.zeros_like(targets)) for inputs, targets in batches]
    return fingerprint(batches)


def _is_regression(batch: Batch) -> bool:
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
    return pair and bool(batch[1].is_floating_point())


def _own_targets(problems: Sequence[Problem], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Targets [S, n, ...] of every one of the `batches`, by name, where those of the problems differ; else nothing."""
    read = {id(p.data): p for p in problems}
    if len(read) == 1:
        return {}
    data = {key: read_batches(p) for key, p in read.items()}
    if len({fingerprint(found) for found in data.values()}) == 1:
        return {}
    if len({data_key(read[key], found) for key, found in data.items()}) > 1:
        raise ProblemError("the networks of one stack have different data", "analyse them one by one")
    targets = {key: torch.cat([b[1] for b in found]).to(batches[0][1]) for key, found in data.items()}
    every = torch.stack([targets[id(p.data)] for p in problems])
    parts = torch.split(every, [length_of(b) for b in batches], dim=1)
    return {f"targets of batch {k}": part for k, part in enumerate(parts)}


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
        with strict_arithmetic(), torch.no_grad():
            objective.loss(objective.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, largest // max(1, length_of(batch))) * objective.dtype.itemsize
