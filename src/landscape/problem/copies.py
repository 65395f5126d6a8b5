"""Models and data in another arithmetic or on another device, and whether they are still the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from landscape.errors import ProblemError

# Losses of one model in two arithmetics differ by rounding, in units of the coarser eps; of half precision by less
# units, or anything would pass.
ULPS, HALF_ULPS = 1e4, 30.0
# What PyTorch itself keeps of every module.
INTERNAL = frozenset(vars(nn.Module()))
# In doubt: times what one last place of every parameter changes.
WOBBLES = 100.0


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """To a device; real floating point to `dtype`, complex numbers to complex ones of that precision, integers and
    booleans as they are."""
    if tensor.is_complex():
        return tensor.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, that runs as plain PyTorch does: parts that `torch.compile` made are as they were before it.

    Attributes that are results of a computation (what `nn.utils.spectral_norm` keeps, caches) come without their graph,
    with which PyTorch copies nothing; nor does it copy compressed sparse ones.
    """
    results: dict[int, Any] = {}
    for module in model.modules():
        for value in pytree.tree_leaves(vars(module)):
            if isinstance(value, Tensor) and (not value.is_leaf or value.layout == torch.sparse_csr):
                results[id(value)] = value.detach().clone()
    made = copy.deepcopy(model, results)
    for module in made.modules():
        if is_compiled(module):
            module.forward = module._orig_mod.__call__  # type: ignore[operator]
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # the same loss; a sparse gradient has no second derivative
    return made


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` makes of one; to import its class would take a second."""
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")


def moved_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of a model with all its tensors `moved`, plain attributes too (tables, masks that are no buffers);
    `nn.Module.to` would drop imaginary parts."""
    made = copied(model)
    made._apply(lambda t: moved(t, device, dtype))  # type: ignore[no-untyped-call]
    for module in made.modules():
        for name, value in list(vars(module).items()):
            if name not in INTERNAL and _holds_tensors(value):
                vars(module)[name] = pytree.tree_map_only(Tensor, lambda t: _moved_constant(t, device, dtype), value)
    return made


def _holds_tensors(value: Any) -> bool:
    kinds = (Tensor, list, tuple, dict)
    return isinstance(value, kinds) and any(isinstance(t, Tensor) for t in pytree.tree_leaves(value))


def _moved_constant(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    there = moved(tensor, device, dtype)
    return tensor if there is tensor else there.detach().requires_grad_(tensor.requires_grad)


def require_same_loss(
    before: nn.Module,
    after: nn.Module,
    loss_before: Callable[[nn.Module], tuple[float, float]],
    loss_after: Callable[[nn.Module], tuple[float, float]],
) -> None:
    """Two copies of a model have the same loss, up to the rounding of the coarser one.

    Args:
        loss_before, loss_after: (sum, count) of each on the same samples.

    Raises:
        ProblemError: they do not: something in the model depends on its arithmetic.
    """
    (first, count), (second, _) = loss_before(before), loss_after(after)
    if not (abs(first) < float("inf") and abs(second) < float("inf")):
        return  # overflow, in one of them; the loss over all data is looked at elsewhere
    kinds = {p.dtype for m in (before, after) for p in m.parameters() if p.is_floating_point()}
    eps = max((torch.finfo(d).eps for d in kinds), default=torch.finfo(torch.float32).eps)
    ulps = ULPS if eps <= torch.finfo(torch.float32).eps else HALF_ULPS
    off = abs(first - second)
    if off <= ulps * eps * max(abs(first), abs(second)) + 10 * eps * abs(count):
        return
    ends = [loss_before(_scaled(before, 1 + sign * eps))[0] for sign in (1, -1)]
    if off <= WOBBLES * max(abs(end - first) for end in ends):
        return
    what = " and ".join(sorted({str(d).removeprefix("torch.") for d in kinds}))
    raise ProblemError(
        f"the loss of the model is not that of its copy in another arithmetic ({what}): {first / count:.6g} and "
        f"{second / count:.6g}",
        "look for what depends on the dtype in its forward: casts, rounding, tensors that are no buffers; "
        "--precision float32 --no-exact stays in float32",
    )


def _scaled(model: nn.Module, factor: float) -> nn.Module:
    made = copied(model)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.is_floating_point():
                parameter.mul_(factor)
    return made


def require_unchanged(before: nn.Module, after: nn.Module) -> None:
    """Evaluating a loss on a copy `after` has not changed its parameters.

    Raises:
        ProblemError: names the first that it has.
    """
    named = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        if not torch.equal(moved(named[name].detach(), parameter.device, parameter.dtype), parameter.detach()):
            if bool(torch.isnan(parameter.detach()).any()):
                continue  # NaN differs from itself; the loss says so
            raise ProblemError(
                f"evaluating the loss changes the parameter {name!r}: the point would move while it is analysed "
                "(an embedding with max_norm rescales its rows, usually)",
                "build the embedding with max_norm=None, or set its max_norm to None in the problem function",
            )


def refuse_complex(names: Sequence[str], model: nn.Module) -> None:
    """The Hessian of a complex parameter is one of its real and imaginary parts, which nothing here takes apart.

    Raises:
        ProblemError: names one among the names.
    """
    named = dict(model.named_parameters())
    for name in names:
        if named[name].is_complex():
            raise ProblemError(
                f"the parameter {name!r} is complex",
                "hold it as real numbers, nn.Parameter(torch.view_as_real(w)), and use torch.view_as_complex in "
                "forward; or freeze it with requires_grad_(False)",
            )
