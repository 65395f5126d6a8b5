"""The problem: a network, its data and its loss. What every analysis is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import ProblemError, UsageError
from landscape.problem.batchnorm import BATCHNORM, batchnorm_statistics
from landscape.problem.copies import copied, is_compiled
from landscape.problem.parameters import trainable, without_memory

# Numbers of a vector register, and outputs from which on turning them pays (measured, float32 with AVX-512).
ROW, WORTH_TURNING = 16, 2048
# A batch is whatever the loss understands; the named losses want (inputs, targets).
Batch = Any
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, its data and its loss: L(θ) = Σ loss sums / Σ counts + weight_decay/2 ‖θ‖².

    Args:
        model: never moved, switched or changed; analyses work on a copy in eval mode. Parameters with
            `requires_grad=False` stay fixed, tied ones count once. Of what `torch.compile` made, the original.
        data: `(inputs, targets)` tensors, or any re-iterable of batches that gives the same batches each time.
        loss: "cross_entropy", "mse" (squared error summed over outputs, per sample, no ½), "bce" (on logits,
            summed over outputs, per sample), or a callable `loss(model, batch) -> (sum, count)`: the *sum* of
            the per-sample losses and their number, never a mean; this makes ragged batches and token weights exact.
        weight_decay: coefficient of ½‖θ‖² over all trainable parameters.
        batchnorm: "eval": BatchNorm normalises by its running statistics; "batch": by those of each batch of `data`,
            through which derivatives go as well, as in training. Batches are then never cut.

    Raises:
        ProblemError: what cannot be analysed, with the reason: a TorchScript model, a one-shot iterator, a
            shuffling or sampling loader, an unknown loss.
    """

    model: nn.Module
    data: tuple[Tensor, Tensor] | Iterable[Batch]
    loss: str | LossFunction
    weight_decay: float = 0.0
    batchnorm: str = "eval"

    def __post_init__(self) -> None:
        while is_compiled(self.model):  # second derivatives need plain PyTorch; the original shares all its tensors
            object.__setattr__(self, "model", self.model._orig_mod)
        _check_model(self.model)
        _check_data(self.data, own_loss=not isinstance(self.loss, str))
        if isinstance(self.loss, str):
            if self.loss not in LOSSES:
                raise ProblemError(
                    f"there is no built-in loss {self.loss!r}",
                    f"choose one of {', '.join(LOSSES)}, or pass a function loss(model, batch) -> (sum, count)",
                )
        elif (kind := _torch_module(self.loss)) is not None:
            named = BUILT_IN.get(kind)
            raise ProblemError(
                f"the loss is {type(self.loss).__name__}(), of outputs and targets; it should be of model and batch, "
                "and a sum",
                (f'pass "{named}", or ' if named else "") + "def loss(model, batch): "
                f"return nn.{kind}(reduction='sum')(model(batch[0]), batch[1]), len(batch[0])",
            )
        elif not callable(self.loss):
            raise ProblemError(
                f"the loss is a {type(self.loss).__name__}, not a name or a function",
                "pass loss(model, batch) -> (sum, count)",
            )
        decay: Any = self.weight_decay
        if isinstance(decay, str) or not decay >= 0:
            raise ProblemError(f"weight_decay is {decay!r}; it must be a number, zero or positive")
        if self.batchnorm not in BATCHNORM:
            raise ProblemError(f"batchnorm is {self.batchnorm!r}", f"choose one of {', '.join(BATCHNORM)}")

    @property
    def loss_function(self) -> LossFunction:
        """The loss as a callable `loss(model, batch) -> (sum, count)`."""
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def per_sample(self) -> bool:
        """Whether the loss is known to be a sum over samples, so that batches may be cut and joined freely."""
        mixed = self.batchnorm == "batch" and batchnorm_statistics(self.model) is not None
        return isinstance(self.loss, str) and not mixed


def _torch_module(loss: object) -> str | None:
    """The name in `torch.nn` of a loss that is called as PyTorch's own modules are; one's own forward may be of model
    and batch."""
    forward = getattr(type(loss), "forward", None)
    if not isinstance(loss, nn.Module) or not getattr(forward, "__module__", "").startswith("torch.nn."):
        return None
    kind = next(kind for kind in type(loss).__mro__ if kind.__module__.startswith("torch.nn."))
    return None if kind is nn.Module else kind.__name__


def _check_model(model: object) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ProblemError(
            "the model is a TorchScript module, which torch.func and second derivatives cannot go through",
            "build the original nn.Module and load its state_dict instead",
        )
    if not isinstance(model, nn.Module):
        raise ProblemError(f"the model is a {type(model).__name__}, not a torch.nn.Module", "pass the module itself")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ProblemError(
            f"the model is wrapped in {type(model).__name__}, through which Hessian products are silently wrong",
            "pass model.module",
        )
    if (empty := without_memory(model)) is not None:
        raise ProblemError(*empty)
    if not any(p.requires_grad for p in model.parameters()):
        raise ProblemError(
            "the model has no trainable parameters",
            "set requires_grad=True on the parameters whose curvature you want",
        )


def _check_data(data: object, own_loss: bool) -> None:
    if isinstance(data, Iterator):
        raise ProblemError(
            "the data is a one-shot iterator (a generator, perhaps): a second pass would find it empty",
            "pass a list of batches, or an object whose __iter__ starts afresh",
        )
    if not isinstance(data, Iterable):
        raise ProblemError(
            f"the data is a {type(data).__name__}",
            "pass (inputs, targets) tensors or a re-iterable of batches",
        )
    if isinstance(data, torch.utils.data.DataLoader):
        _check_loader(data)
    if isinstance(data, list) and not own_loss and is_pair(tuple(data)) and data[0].shape[:1] == data[1].shape[:1]:
        raise ProblemError(
            "the data is a list of two tensors, which is one of two batches; a built-in loss needs (inputs, targets)",
            "give them as a tuple, data=(inputs, targets), or as a list of one batch, data=[(inputs, targets)]",
        )


def _check_loader(loader: torch.utils.data.DataLoader[Any]) -> None:
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    random = (
        torch.utils.data.RandomSampler,
        torch.utils.data.WeightedRandomSampler,
        torch.utils.data.SubsetRandomSampler,
    )
    for candidate in (sampler, inner):
        if isinstance(candidate, random):
            raise ProblemError(
                f"the DataLoader draws at random ({type(candidate).__name__}): two passes differ, "
                "so there is no fixed loss to differentiate",
                "pass DataLoader(dataset, batch_size=..., shuffle=False), without random augmentation",
            )


def at_point(problem: Problem, point: Tensor | Mapping[str, Tensor] | None) -> Problem:
    """The problem with a copy of the model at `point`.

    Raises:
        UsageError: the point does not fit the model.
    """
    if point is None:
        return problem
    model = copied(problem.model)
    if type(point).__module__ == "numpy":
        point = torch.as_tensor(point)
    if not isinstance(point, Tensor | Mapping):
        raise UsageError(f"the point is a {type(point).__name__}", "give a flat vector of parameters, or a state_dict")
    if isinstance(point, Tensor):
        parameters = list(trainable(model).values())
        total = sum(p.numel() for p in parameters)
        if point.shape != (total,):
            raise UsageError(f"the point has shape {tuple(point.shape)}; this model has {total} trainable parameters")
        torch.nn.utils.vector_to_parameters(point.to(parameters[0]), parameters)
    else:
        try:
            model.load_state_dict({name.removeprefix("_orig_mod."): t for name, t in point.items()})
        except RuntimeError as error:
            raise UsageError(f"the point does not fit the model: {' '.join(str(error).split())[:300]}") from error
    return replace(problem, model=model)


def is_pair(data: object) -> bool:
    """Whether the data is the `(inputs, targets)` pair of tensors rather than a collection of batches."""
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)


def _inputs_and_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise ProblemError(
        f"a built-in loss needs batches (inputs, targets); this batch is a {type(batch).__name__}",
        "pass your own loss(model, batch) -> (sum, count)",
    )


def _one_tensor(outputs: Any, name: str) -> Tensor:
    """What a network puts out, if it is a tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    part = "[0]"
    if isinstance(outputs, Mapping):
        part = f"[{next(iter(outputs))!r}]" if outputs else ""
    elif hasattr(outputs, "logits"):
        part = ".logits"
    function = {"cross_entropy": "cross_entropy", "mse": "mse_loss", "bce": "binary_cross_entropy_with_logits"}[name]
    raise ProblemError(
        f"the model returns a {type(outputs).__name__}, and loss {name!r} needs one tensor",
        "pass a loss that picks it: def loss(model, batch): "
        f"return F.{function}(model(batch[0]){part}, batch[1], reduction='sum'), len(batch[0])",
    )


def _matched(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Targets in the shape and dtype of the outputs; silent broadcasting is the classic way to a wrong loss."""
    if outputs.shape != targets.shape:
        if not _same_up_to_view(outputs.shape, targets.shape):
            raise ProblemError(
                f"loss {name!r}: outputs have shape {tuple(outputs.shape)} but targets {tuple(targets.shape)}",
                "give one target value per output",
            )
        targets = targets.reshape(outputs.shape)
    return targets.to(outputs.dtype)


def _same_up_to_view(outputs: torch.Size, targets: torch.Size) -> bool:
    """Whether two shapes differ only by axes of length 1 or by flattening all but the samples."""
    if outputs[:1] != targets[:1] or outputs.numel() != targets.numel():
        return False
    flat = min(len(outputs), len(targets)) <= 2
    return flat or [s for s in outputs if s != 1] == [s for s in targets if s != 1]


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """Softmax cross-entropy in nats, summed; class indices (−100 ignored, any leading shape) or probabilities."""
    inputs, targets = _inputs_and_targets(batch)
    outputs = _one_tensor(model(inputs), "cross_entropy")
    if targets.is_floating_point():
        return F.cross_entropy(outputs, targets.to(outputs.dtype), reduction="sum"), targets.shape[0]
    if outputs.dim() > 2 and outputs.shape[:-1] == targets.shape:  # language models: classes last
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            raise ProblemError(
                f"loss 'cross_entropy': outputs of shape {tuple(outputs.shape)} may have their classes last, or second "
                "as in PyTorch's own",
                "say which: `lambda m, b: (F.cross_entropy(m(b[0]), b[1], reduction='sum'), b[1].numel())` has them "
                "second, `lambda m, b: (F.cross_entropy(m(b[0]).flatten(0, -2), b[1].flatten(), reduction='sum'), "
                "b[1].numel())` last",
            )
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
    if outputs.dim() < 2 or outputs.shape[0] != targets.shape[0] or outputs.shape[2:] != targets.shape[1:]:
        raise ProblemError(
            f"loss 'cross_entropy': outputs of shape {tuple(outputs.shape)} do not fit targets of shape "
            f"{tuple(targets.shape)}",
            "outputs are (samples, classes), targets are (samples,) class indices",
        )
    return _negative_log_likelihood(outputs, targets.long()), (targets != -100).sum()


def _negative_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """−Σ log softmax(outputs)[target]. PyTorch's kernel for rows shorter than a vector register takes them number by
    number (ten classes: 150 μs for 1,800 samples); with the classes first it runs along the samples (40 μs)."""
    short = outputs.dim() == 2 and outputs.shape[1] < ROW and outputs.dtype == torch.float32
    if short and outputs.device.type == "cpu" and outputs.numel() >= WORTH_TURNING:
        outputs, targets = outputs.t().contiguous().unsqueeze(0), targets.unsqueeze(0)
    return F.cross_entropy(outputs, targets, reduction="sum")


def mse(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """Squared error summed over outputs and samples, no ½; the count is the number of samples."""
    inputs, targets = _inputs_and_targets(batch)
    outputs = _one_tensor(model(inputs), "mse")
    return (outputs - _matched(outputs, targets, "mse")).square().sum(), targets.shape[0]


def bce(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    """Binary cross-entropy on logits, summed over outputs and samples; the count is the number of samples."""
    inputs, targets = _inputs_and_targets(batch)
    outputs = _one_tensor(model(inputs), "bce")
    targets = _matched(outputs, targets, "bce")
    # PyTorch's own writes in place, which `torch.func.linearize` silently keeps from being repeated.
    total = targets * F.logsigmoid(outputs) + (1 - targets) * F.logsigmoid(-outputs)
    return -total.sum(), targets.shape[0]


# PyTorch's classes for them, at their defaults.
BUILT_IN = {"CrossEntropyLoss": "cross_entropy", "MSELoss": "mse", "BCEWithLogitsLoss": "bce"}
LOSSES: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mse, "bce": bce}
