"""The user's loss as analyses call it: as plain PyTorch, with gradients where it takes some itself, in one arithmetic.

A loss may take derivatives inside (physics-informed ones, forces, gradient penalties), hold float32 constants while
its network is analysed in float64 (class weights, tables), or call what `torch.compile` made, which has no second
derivative. None of this is to be seen by those who call it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from landscape.problem.problem import Batch, LossFunction


@dataclass(frozen=True, eq=False)
class CalledLoss:
    """A loss `(model, batch) -> (sum, count)` with what has to be around its calls.

    Attributes:
        loss: the user's own.
        recorded: gradients are recorded inside whatever its caller says; one who records none gets a sum without graph.
        within: floating-point constants of other dtypes are brought to this one where an operation wants them equal,
            and new tensors are made in it; None: they are left alone.
        eager: what `torch.compile` made runs as it was before.
    """

    loss: LossFunction
    recorded: bool = False
    within: torch.dtype | None = None
    eager: bool = False

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        recording = torch.is_grad_enabled()
        with self.surroundings():
            answer = self.loss(model, batch)
        if recording or not self.recorded or not isinstance(answer, tuple) or not isinstance(answer[0], Tensor):
            return answer
        return (answer[0].detach(), *answer[1:])

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What has to be around a call of the loss, or of its model alone."""
        with ExitStack() as around:
            if self.eager:
                around.enter_context(torch.compiler.set_stance("force_eager"))
            if self.recorded:
                around.enter_context(torch.inference_mode(False))
                around.enter_context(torch.enable_grad())
            if self.within is not None:
                around.enter_context(_constants_in(self.within))
            yield


def outputs_of(loss: LossFunction, model: nn.Module, call: Callable[[nn.Module], Any]) -> Any:
    """`call(model)` with what has to be around a call of the loss, for those who want the model's outputs alone."""
    if not isinstance(loss, CalledLoss):
        return call(model)
    with loss.surroundings():
        return call(model)


def eager(loss: LossFunction) -> LossFunction:
    """The loss without `torch.compile`, if this process has ever called that."""
    return with_changes(loss, eager=True) if "torch._dynamo" in sys.modules else loss


def with_changes(loss: LossFunction, **changes: Any) -> LossFunction:
    """The loss, called with other attributes of `CalledLoss`."""
    return replace(loss, **changes) if isinstance(loss, CalledLoss) else CalledLoss(loss, **changes)


def plain(loss: LossFunction) -> LossFunction:
    """The loss with its constants in their own arithmetic."""
    return replace(loss, within=None) if isinstance(loss, CalledLoss) else loss


@contextmanager
def _constants_in(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _OneArithmetic():
            yield
    finally:
        torch.set_default_dtype(before)


class _OneArithmetic(TorchFunctionMode):
    """Inside, an operation that refuses operands of two floating-point dtypes gets them in the wider one; one that
    writes into a tensor, in that tensor's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):
            wanted = _common_dtype(args, kwargs, _writes(func))
            if wanted is None:
                raise

        def bring(tensor: Tensor) -> Tensor:
            if tensor.is_complex():
                return tensor.to(wanted.to_complex())
            return tensor.to(wanted) if tensor.is_floating_point() else tensor

        args, kwargs = pytree.tree_map_only(Tensor, bring, (args, kwargs))
        return func(*args, **kwargs)


def _writes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _common_dtype(args: Any, kwargs: dict[str, Any], writes: bool) -> torch.dtype | None:
    """The real dtype that all operands are to have; None where they agree already, or the result is given."""
    found = [t.dtype.to_real() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _is_inexact(t)]
    if len(set(found)) < 2 or "out" in kwargs:
        return None
    wanted = found[0]
    for dtype in found[1:]:
        wanted = wanted if writes else torch.promote_types(wanted, dtype)
    return wanted


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
