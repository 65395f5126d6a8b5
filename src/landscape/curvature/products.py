"""Curvature products of one batch: Hessian and Gauss–Newton, by double backward or by forward over reverse.

A builder takes (objective, batch) and returns a `Product`: a map of a tuple of blocks, one tensor [b, *shape] per
parameter, to the same for the *sum* over the batch. What a builder keeps alive (graphs, linearisations) lives in
the closure it returns and dies with it.

Only formulations that are right everywhere are used: double backward, and `jvp` or `linearize` of `grad`.
`jvp(jacrev)` and `grad(jvp)` are silently wrong for affine LayerNorm on torch 2.13.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from landscape.errors import ProblemError
from landscape.problem.batches import take
from landscape.problem.graph import crashes_linearize, gradients, nodes_of, undifferentiable
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory

Tensors = tuple[Tensor, ...]
Product = Callable[[Tensors], Tensors]
Builder = Callable[[Objective, Batch], Product]


NO_GAUSS_NEWTON = (
    "the loss is no function of what the model returns (it differentiates the model by its inputs, usually), so its "
    "Gauss-Newton matrix is not defined",
    "use --operator hessian",
)


def _aligned(part: Tensor) -> Tensor:
    """A part of a flat vector where it can be seen as complex numbers: those begin at an even place."""
    return part.clone() if part.shape[-1:] == (2,) and part.storage_offset() % 2 else part


def _loop(one: Product) -> Product:
    """A block product from a product of single vectors."""

    def block(vectors: Tensors) -> Tensors:
        width = vectors[0].shape[0]
        columns = [one(tuple(_aligned(v[j]) for v in vectors)) for j in range(width)]
        if width == 1:
            return tuple(c.unsqueeze(0) for c in columns[0])
        return tuple(torch.stack(parts) for parts in zip(*columns, strict=True))

    return block


def _vmapped(one: Product) -> Product:
    """A block product by vmap; vector by vector where vmap has no rule (GroupNorm), with the same numbers."""
    loop, able = _loop(one), True

    def block(vectors: Tensors) -> Tensors:
        nonlocal able
        if able and vectors[0].shape[0] > 1:
            try:
                return torch.func.vmap(one)(vectors)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                able = False
        return loop(vectors)

    return block


def _pullback(outputs: Tensors, inputs: Tensors, batched: bool) -> Product:
    """v -> (∂ outputs / ∂ inputs)ᵀ v with the graph kept; constants among the outputs contribute zero."""
    live = [i for i, out in enumerate(outputs) if out.requires_grad]

    def pull(vectors: Tensors) -> Tensors:
        if not live:
            lead = vectors[0].shape[:1] if batched else ()
            return tuple(x.new_zeros((*lead, *x.shape)) for x in inputs)
        found = torch.autograd.grad(
            [outputs[i] for i in live],
            inputs,
            [vectors[i] for i in live],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        lead = vectors[live[0]].shape[:1] if batched else ()
        return tuple(
            x.new_zeros((*lead, *x.shape)) if f is None else f.detach() for f, x in zip(found, inputs, strict=True)
        )

    return pull


def once_differentiable(total: Tensor) -> str | None:
    """Name of a `torch.autograd.Function` in the loss's graph whose backward is marked `@once_differentiable`.

    Through `autograd.grad(inputs=...)` torch drops the second derivative of such a function without a word: the node
    that would raise leads to none of the inputs, and is never visited.
    """
    marked = torch.autograd.function.once_differentiable(_pullback).__code__
    for node in nodes_of(total):
        function = getattr(node, "_forward_cls", None)
        if any(getattr(getattr(function, how, None), "__code__", None) is marked for how in ("backward", "vjp")):
            return str(function.__name__)  # type: ignore[union-attr]
    return None


def require_differentiable(total: Tensor) -> None:
    """Refuse a loss whose graph alone says that its second derivatives would be wrong.

    Raises:
        ProblemError: names what is in it, and what to do instead.
    """
    wrong, culprit = undifferentiable(total), once_differentiable(total)
    if wrong is not None:
        raise ProblemError(*wrong)
    if culprit is not None:
        raise ProblemError(
            f"this model cannot be differentiated twice: the backward of {culprit} is marked once_differentiable, "
            "and torch would take its second derivative for zero",
            "write its backward in differentiable operations and drop the mark",
        )


def hessian_reverse(objective: Objective, batch: Batch, batched: bool = False) -> Product:
    """Double backward through a kept gradient graph (Pearlmutter 1994): two gradients a product."""
    parameters = objective.parameters
    total, _ = objective.batch_sum(batch)
    pull = _pullback(gradients(total, parameters, create_graph=True), parameters, batched)
    return pull if batched else _loop(pull)


class _Recorder:
    """Stands in for the model in a loss: records what the model returned, or plays recorded outputs back."""

    def __init__(self, model: nn.Module, playback: list[Any] | None = None) -> None:
        self._model = model
        self._playback = None if playback is None else iter(playback)
        self.outputs: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._model(*args, **kwargs) if self._playback is None else next(self._playback)
        self.outputs.append(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _outputs(objective: Objective, model: nn.Module, batch: Batch) -> tuple[Tensors, Callable[[Tensors], Tensor]]:
    """Model outputs z(θ) inside the loss, and the loss as a function ℓ(z) of replacements for them."""
    from torch.utils import _pytree as pytree

    recorder = _Recorder(model)
    objective.loss(recorder, batch)  # type: ignore[arg-type]
    flat, structure = pytree.tree_flatten(recorder.outputs)
    places = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.is_floating_point()]
    if not places:
        raise ProblemError(
            "the loss does not call the model as model(...), so its Gauss–Newton matrix is not defined",
            "call the model itself inside the loss, or use --operator hessian",
        )
    outputs = tuple(flat[i] for i in places)
    if any(_escaped(z) for z in outputs):
        raise ProblemError(*NO_GAUSS_NEWTON)

    def loss_of(replacements: Tensors) -> Tensor:
        filled = list(flat)
        for place, tensor in zip(places, replacements, strict=True):
            filled[place] = tensor
        played = _Recorder(model, pytree.tree_unflatten(filled, structure))
        try:
            return objective.loss(played, batch)[0]  # type: ignore[arg-type]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ProblemError(*NO_GAUSS_NEWTON) from error

    return outputs, loss_of


def _escaped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a transformation of torch.func, inside of the loss, that is over."""
    level = torch._C._functorch.maybe_get_level(tensor)  # −1 for an ordinary one, below for one whose level is gone
    return bool(level < -1 or level > (torch._C._functorch.maybe_current_level() or 0))


def ggn_reverse(objective: Objective, batch: Batch, batched: bool = False) -> Product:
    """Jᵀ ∇²ℓ J by reverse mode only, graphs kept (Schraudolph 2002; Jv as the gradient of uᵀJ… in u)."""
    parameters = objective.parameters
    outputs, loss_of = _outputs(objective, objective.model, batch)
    dummies = tuple(torch.zeros_like(z, requires_grad=True) for z in outputs)
    live = [i for i, z in enumerate(outputs) if z.requires_grad]
    rows = torch.autograd.grad(
        [outputs[i] for i in live],
        parameters,
        [dummies[i] for i in live],
        create_graph=True,
        materialize_grads=True,
    )
    leaves = tuple(z.detach().requires_grad_() for z in outputs)
    slopes = gradients(loss_of(leaves), leaves, create_graph=True)
    jvp = _pullback(rows, dummies, batched)
    hvp = _pullback(slopes, leaves, batched)
    vjp = _pullback(outputs, parameters, batched)

    def one(vectors: Tensors) -> Tensors:
        return vjp(hvp(jvp(vectors)))

    return one if batched else _loop(one)


def ggn_slope(still: Objective, moving: Objective) -> Callable[[], Tensor]:
    """J(θ)ᵀ ∇ℓ(z(θ′)) / count at whatever θ′ `moving` is: its derivative by θ′ at θ is the Gauss–Newton matrix.

    Two copies of one objective: the graph of J(θ) would not survive a change of θ.
    """
    pulls = [_pullback(_outputs(still, still.model, b)[0], still.parameters, False) for b in still.batches]

    def slope() -> Tensor:
        total = torch.zeros_like(moving.point())
        for pull, batch in zip(pulls, moving.batches, strict=True):
            outputs, loss_of = _outputs(moving, moving.model, batch)
            leaves = tuple(z.detach().requires_grad_() for z in outputs)
            total += moving.layout.flatten(pull(gradients(loss_of(leaves), leaves)))
        return total / moving.count

    return slope


class _Total(nn.Module):
    """The loss sum of a batch as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._loss = objective.loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)[0]


def _functional(objective: Objective, batch: Batch) -> Callable[[Tensors], Tensor]:
    total = _Total(objective).eval()
    names = [f"model.{n}" for n in objective.names]

    def function(parameters: Tensors) -> Tensor:
        swapped = dict(zip(names, parameters, strict=True))
        return cast(Tensor, torch.func.functional_call(total, swapped, (batch,)))

    return function


def hessian_linearized(objective: Objective, batch: Batch) -> Product:
    """`vmap(linearize(grad))`: the primal pass kept, a block of vectors in one launch.

    Raises:
        RuntimeError: PyTorch would crash.
    """
    _require_no_crash(objective, batch)
    parameters = tuple(p.detach() for p in objective.parameters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        _, push = torch.func.linearize(torch.func.grad(_functional(objective, batch)), parameters)

    return _vmapped(push)


def _require_no_crash(objective: Objective, batch: Batch) -> None:
    few = take(batch, slice(0, 1)) if objective.cuttable else batch
    if words := crashes_linearize(objective.batch_sum(few)[0]):
        raise RuntimeError(words)


def hessian_forward(objective: Objective, batch: Batch) -> Product:
    """`vmap(jvp(grad))`: nothing kept, one primal pass shared by the vectors of a block."""
    parameters = tuple(p.detach() for p in objective.parameters)
    gradient = torch.func.grad(_functional(objective, batch))

    def one(vectors: Tensors) -> Tensors:
        return cast(Tensors, torch.func.jvp(gradient, (parameters,), (vectors,))[1])

    return _vmapped(one)


def ggn_linearized(objective: Objective, batch: Batch) -> Product:
    """Jᵀ ∇²ℓ J with J by `linearize` and Jᵀ by `vjp` of the outputs, a block in one launch."""
    parameters = tuple(p.detach() for p in objective.parameters)
    total = _Total(objective).eval()

    def outputs_of(values: Tensors) -> Tensors:
        swapped = dict(zip([f"model.{n}" for n in objective.names], values, strict=True))
        return cast(Tensors, torch.func.functional_call(_Outputs(total, objective), _nest(swapped), (batch,)))

    outputs, pull = torch.func.vjp(outputs_of, parameters)[:2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        _, push = torch.func.linearize(outputs_of, parameters)
    with torch.no_grad():
        _, loss_of = _outputs(objective, objective.model, batch)
    outputs = tuple(z.detach() for z in outputs)
    slope = torch.func.grad(loss_of)

    def one(vectors: Tensors) -> Tensors:
        curved = torch.func.jvp(slope, (outputs,), (push(vectors),))[1]
        return cast(Tensors, pull(curved)[0])

    return _vmapped(one)


class _Outputs(nn.Module):
    """The model's outputs inside the loss as a module, for `functional_call`."""

    def __init__(self, total: _Total, objective: Objective) -> None:
        super().__init__()
        self.total = total
        self._objective = objective

    def forward(self, batch: Batch) -> Tensors:
        return _outputs(self._objective, self.total.model, batch)[0]


def _nest(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"total.{name}": tensor for name, tensor in parameters.items()}


def difference(first: Product, second: Product) -> Product:
    """The product of first − second: the residual part R = H − GGN."""

    def block(vectors: Tensors) -> Tensors:
        return tuple(a - b for a, b in zip(first(vectors), second(vectors), strict=True))

    return block


def builder_of(operator: str, strategy: str, mode: str, batched: bool) -> Builder:
    """The builder of an operator ("hessian", "ggn" or "residual") for a strategy and mode of `operators.Plan`."""
    if operator == "residual":
        first, second = (builder_of(o, strategy, mode, batched) for o in ("hessian", "ggn"))
        return lambda objective, batch: difference(first(objective, batch), second(objective, batch))
    if strategy == "linearize" or mode == "forward":
        if operator == "ggn":
            return ggn_linearized
        return hessian_linearized if strategy == "linearize" else hessian_forward
    reverse = hessian_reverse if operator == "hessian" else ggn_reverse
    return lambda objective, batch: reverse(objective, batch, batched)
