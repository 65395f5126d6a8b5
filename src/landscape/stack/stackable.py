"""Whether `torch.func.vmap` takes a stack's networks for what they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from landscape.curvature.trust import is_sure
from landscape.problem.batches import take
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.stack.stack import Stack

# Samples of the trial.
TRIED = 4
# Right derivatives differ by rounding, in units of eps; what vmap gets wrong is off by much more.
SAME_ULPS = 1e4


def why_alone(stack: Stack, theta: Tensor) -> str:
    """Why members have to go one at a time; empty if they may be stacked: on a few samples one launch gives the loss,
    gradient and second derivatives that the first one of θ [S, P] has by itself.

    What works in neither way goes alone: the first use says plainly what is wrong.
    """
    if stack.loss_name is not None and is_sure(stack.model, stack.loss):
        return ""
    few, first = _of_few_samples(stack), theta[:1]
    drawn = torch.randn(stack.parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with strict_arithmetic(), warnings.catch_warnings(), _only_rules():
        warnings.simplefilter("ignore")
        by_itself = _tried(replace(few, alone="tried"), first, drawn.to(theta))
        stacked = _tried(few, first, drawn.to(theta))
    if isinstance(stacked, Exception):
        return "" if is_out_of_memory(stacked) else " ".join(str(stacked).split())[:160] or type(stacked).__name__
    if isinstance(by_itself, Exception):
        return ""
    eps = float(torch.finfo(theta.dtype).eps)
    for name, one, other in zip(("loss", "gradient", "second derivative"), by_itself, stacked, strict=True):
        size = float(one.norm()) + float(by_itself[0].abs())
        if not float((one - other).norm()) <= SAME_ULPS * eps * size and size < float("inf"):
            return f"vmap gives another {name}"
    return ""


def _tried(few: Stack, first: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor] | Exception:
    """Loss, gradient and a second derivative of a few samples, after all else that a stack is asked for."""
    row = torch.zeros(1, dtype=torch.long, device=first.device)
    try:
        few.values(first, row)
        if few.least_squares_like:
            few.jacobians(first, few.batches[0], row)
        return few.derivatives(first, direction)
    except Exception as error:
        return error


@contextmanager
def _only_rules() -> Iterator[None]:
    """Inside, `vmap` does not loop over members where an operation has no rule for it: we do that better."""
    before = torch._C._functorch._is_vmap_fallback_enabled()  # type: ignore[attr-defined]
    torch._C._functorch._set_vmap_fallback_enabled(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(before)  # type: ignore[attr-defined]


def _of_few_samples(stack: Stack) -> Stack:
    """The stack over a few samples of its first batch, the batch if it must stay whole."""
    if stack.loss_name is None:
        return replace(stack, batches=stack.batches[:1])
    if not stack.own:
        return replace(stack, batches=[take(stack.batches[0], slice(0, TRIED))])
    inputs, name = stack.batches[0]
    others = stack.others | {name: stack.others[name][:, :TRIED]}
    return replace(stack, batches=[(inputs[:TRIED], name)], others=others)
