"""The operations of a forward pass, each with its module: which compute in less than was given, which have no finite
second derivative where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from landscape.problem.batches import take, tensors_of
from landscape.problem.objective import Objective
from landscape.runtime.arithmetic import strict_arithmetic

# (function, arguments, keyword arguments, result, module)
Look = Callable[[Any, tuple[Any, ...], dict[str, Any], Any, str], None]


class _Watched(TorchFunctionMode):
    """Shows every call of PyTorch to `look`; unlike a dispatch mode it bears `torch.func` inside."""

    def __init__(self, look: Look, place: list[str]) -> None:
        super().__init__()
        self._look, self._place = look, place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._look(func, args, kwargs or {}, result, self._place[-1] if self._place else "")
        return result


@contextmanager
def _places(objective: Objective) -> Iterator[list[str]]:
    """Inside, the list ends with the module that runs."""
    place: list[str] = []

    def enter(name: str, module: Any, args: Any) -> None:
        place.append(f"{name} ({type(module).__name__})" if name else type(module).__name__)

    def leave(module: Any, args: Any, output: Any) -> None:
        place.pop()

    handles = []
    for name, module in objective.model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield place
    finally:
        for handle in handles:
            handle.remove()


def watch(objective: Objective, look: Look, samples: int | None = None) -> None:
    """Show `look` every call of PyTorch in the loss of the first batch, or of `samples` of it if it may be cut."""
    batch = objective.batches[0]
    if samples is not None and objective.cuttable:
        batch = take(batch, slice(0, samples))
    with strict_arithmetic(), _places(objective) as place, _Watched(look, place):
        objective.batch_sum(batch)


def narrowed(objective: Objective) -> tuple[torch.dtype, list[str]]:
    """The narrowest arithmetic that parameters pass through, and where it is narrower than that of the objective."""
    wide, found, narrowest = objective.dtype.itemsize, dict[str, None](), objective.dtype

    def look(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, place: str) -> None:
        nonlocal narrowest
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.dtype.itemsize >= wide:
            return
        given = any(
            t.is_floating_point() and t.dtype.itemsize == wide for t in tensors_of((args, list(kwargs.values())))
        )
        if result.requires_grad and given:
            found.setdefault(place or "the loss")
            narrowest = min(narrowest, result.dtype, key=lambda d: d.itemsize)

    watch(objective, look)
    return narrowest, list(found)


def singular_operations(objective: Objective) -> list[str]:
    """Operations whose first or second derivative is NaN or Inf at what they are given: "sqrt in the layer norm"."""
    found: dict[str, None] = {}

    def look(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, place: str) -> None:
        name = getattr(func, "__name__", "an operation").strip("_")
        if isinstance(result, Tensor) and result.requires_grad and _singular(func, args, kwargs):
            found.setdefault(f"{name} in {place or 'the loss'}")

    watch(objective, look)
    return list(found)


def _singular(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the first or second derivative of a call by one of its tensors is not finite."""
    for index, given in enumerate(args):
        if not (isinstance(given, Tensor) and given.is_floating_point()):
            continue
        leaf = given.detach().clone().requires_grad_()
        rest = [a.detach() if isinstance(a, Tensor) else a for a in args]
        rest[index] = leaf
        try:
            out = func(*rest, **kwargs)
            (slope,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
            curved = [slope]
            if slope.requires_grad:
                curved += torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)
        except Exception:  # in place, or of several results
            continue
        if not all(bool(torch.isfinite(t).all()) for t in curved):
            return True
    return False
