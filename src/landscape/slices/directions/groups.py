"""Which entries of θ make up a filter, a layer or the whole, for normalised directions (Li et al. 2018, §4)."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.errors import UsageError
from landscape.problem.parameters import Layout

NORMS = ("filter", "layer", "global", "none")
IGNORED = ("bias", "norm")
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMALISING = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Names of classes that are none of PyTorch's: "LlamaRMSNorm", "T5LayerNorm"; what they hold are scales and shifts.
NORM = re.compile("norm(?!al)", re.IGNORECASE)


def groups(model: nn.Module, layout: Layout, norm: str) -> Tensor:
    """The number of the group that each entry belongs to [P].

    Args:
        norm: "filter": the input weights of one neuron, channel or token (rows of linear, embedding and attention
            weights, convolution kernels of one output channel), and each vector parameter as a whole; "layer": each
            tensor; "global" and "none": all entries together.
    """
    found, count = [], 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if norm == "filter" and len(shape) > 1:
            axis = 1 if isinstance(_owner(model, name), TRANSPOSED) else 0
            view = [1] * len(shape)
            view[axis] = shape[axis]
            numbers = torch.arange(shape[axis]).reshape(view).expand(shape).reshape(-1)
        else:
            numbers = torch.zeros(shape.numel(), dtype=torch.long)
        found.append(numbers + count)
        count += (int(numbers.max()) + 1 if numbers.numel() else 0) if norm in ("filter", "layer") else 0
    return torch.cat(found)


def ignored(model: nn.Module, layout: Layout, what: str) -> Tensor:
    """The entries [P] that a direction leaves alone: "bias", "norm" (scales and shifts of normalisations), or both
    with "+"; "none" for none.

    Raises:
        UsageError: another word.
    """
    words = [] if what in ("", "none") else what.split("+")
    for word in words:
        if word not in IGNORED:
            raise UsageError(f"there is nothing called {word!r} to ignore", "ignore=bias, norm, bias+norm or none")
    found = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        last = name.rpartition(".")[2]
        bias = "bias" in words and (last.endswith("bias") or last.startswith("bias_"))  # bias_ih_l0 of an LSTM
        norm = "norm" in words and _normalises(_owner(model, name))
        found.append(torch.full((shape.numel(),), bias or norm))
    return torch.cat(found)


def norms_of(vector: Tensor, groups: Tensor) -> Tensor:
    """Euclidean norm of each group of entries [G], in float64."""
    squares = vector.new_zeros(int(groups.max()) + 1, dtype=torch.float64)
    return squares.index_add_(0, groups, vector.double().square()).sqrt()


def rescaled(vector: Tensor, like: Tensor, groups: Tensor) -> Tensor:
    """The vector with every group as long as the same group of `like`; zero where either is zero."""
    own, wanted = norms_of(vector, groups), norms_of(like, groups)
    factor = torch.where(own > 0, wanted / own.clamp(min=1e-300), 0.0)
    return (vector.double() * factor[groups]).to(vector.dtype)


def orthogonalised(vector: Tensor, against: Tensor, groups: Tensor) -> Tensor:
    """The vector made orthogonal to another within every group of two entries or more, so that rescaling the groups
    keeps it so."""
    sizes = torch.bincount(groups)
    inner = vector.new_zeros(len(sizes), dtype=torch.float64)
    inner.index_add_(0, groups, vector.double() * against.double())
    factor = torch.where(sizes > 1, inner / norms_of(against, groups).square().clamp(min=1e-300), 0.0)
    return (vector.double() - factor[groups] * against.double()).to(vector.dtype)


def _normalises(module: nn.Module) -> bool:
    """Whether a module is a normalisation: one of PyTorch's, or one by its name whose parameters are vectors."""
    if isinstance(module, NORMALISING):
        return True
    parameters = list(module.parameters())
    return bool(NORM.search(type(module).__name__)) and all(p.dim() <= 1 for p in parameters)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
