"""Which statistics BatchNorm normalises by: running ones, or those of each batch, as in training."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from landscape.errors import ProblemError

BATCHNORM = ("eval", "batch")
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def batchnorm_statistics(model: nn.Module) -> str | None:
    """Which statistics its BatchNorm uses in eval mode: "eval" (running ones), "batch", or None where it has none."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) or _tracks(m)]
    if not norms:
        return None
    return "batch" if all(module.running_mean is None for module in norms) else "eval"


def _tracks(module: nn.Module) -> TypeGuard[_InstanceNorm]:
    """Whether this is an InstanceNorm with running statistics, by which eval mode normalises."""
    return isinstance(module, _InstanceNorm) and module.running_mean is not None


def running_statistics(model: nn.Module) -> frozenset[str]:
    """Names of the buffers that `take_batch_statistics` leaves unused."""
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm) or _tracks(m)]
    return frozenset(f"{name}.{b}".lstrip(".") for name, module in norms for b in RUNNING if b in module._buffers)


def take_batch_statistics(model: nn.Module) -> None:
    """Have every BatchNorm take the statistics of its batch, and InstanceNorm those of each sample, as in training, in
    eval mode too, and change none."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) or _tracks(module):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def refuse_batch_statistics(model: nn.Module) -> None:
    """BatchNorm without running statistics mixes the samples of a batch: the loss would depend on how data are cut."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ProblemError(
                f"{name!r} is a BatchNorm without running statistics, so the loss depends on how the data are batched",
                "add --batchnorm batch (statistics of each whole batch), or make it with track_running_stats=True",
            )
