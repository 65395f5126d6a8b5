"""Which layers of a network follow each other: neurons between two linear or convolution layers."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (nn.Linear, *CONVOLUTIONS)
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
# Maps of each number by itself, or of each channel by itself, that come between layers.
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
SHAPES = (nn.Flatten, nn.Identity, nn.Dropout)
# Modules and functions that hand numbers on as they are, in eval mode.
KEEPING = (*SHAPES, nn.Unflatten, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_KEEPING_FUNCTIONS: tuple[Any, ...] = (
    *(torch.flatten, torch.squeeze, torch.unsqueeze, torch.reshape),
    *("flatten", "squeeze", "unsqueeze", "reshape", "view", "contiguous", "float", "double"),
)
# σ(cz) = cσ(z) for c > 0.
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, *POOLS, *SHAPES)
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    torch.relu: nn.ReLU,
    F.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.leaky_relu: nn.LeakyReLU,
    torch.flatten: nn.Flatten,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "flatten": nn.Flatten,
}


class Elementwise(nn.Module):
    """Stands for a smooth function of each number by itself that is no module: sums, products, powers, exponentials."""


class Cornered(nn.Module):
    """Stands for a piecewise linear function of each number by itself that is no module."""


_SMOOTH = "add sub mul div true_divide neg pow square exp expm1 sin cos sinc erf atan sinh cosh asinh log1p rsub mish"
_SMOOTH += " elu celu selu logsigmoid softsign tanhshrink hardswish"
_CORNERED = "abs clamp clamp_min clamp_max maximum minimum relu6 hardtanh hardsigmoid threshold"
_FUNCTIONS |= {
    function: kind
    for names, kind in ((_SMOOTH, Elementwise), (_CORNERED, Cornered))
    for name in names.split()
    for function in (name, getattr(torch, name, None), getattr(F, name, None))
    if function is not None
}
_FUNCTIONS |= dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), Elementwise)
_FUNCTIONS |= {operator.neg: Elementwise, operator.pow: Elementwise, operator.abs: Cornered}


@dataclass(frozen=True)
class Hidden:
    """A layer of neurons (or channels) and the layer that reads them.

    Attributes:
        layer, next: names of the two modules, linear or convolution.
        between: types of the modules between them, in order.
    """

    layer: str
    next: str
    between: tuple[type[nn.Module], ...]

    @property
    def homogeneous(self) -> bool:
        """Whether scaling the neurons' inputs by c > 0 scales what the next layer reads by c."""
        return all(issubclass(kind, HOMOGENEOUS) for kind in self.between)

    @property
    def linear(self) -> bool:
        """Whether nothing but reshaping lies between."""
        return all(issubclass(kind, SHAPES) for kind in self.between)


def hidden_layers(model: nn.Module) -> tuple[Hidden, ...]:
    """All pairs of layers of which the second reads the first's neurons and nothing else does.

    Found in the graph that `torch.fx` traces; () for a model that it cannot trace.
    """
    graph = traced(model)
    if graph is None:
        return ()
    modules = dict(model.named_modules())
    shared = _called_twice(graph)
    found = []
    for node in graph.nodes:
        if isinstance(_module(node, modules), WEIGHTED) and node.target not in shared:
            hidden = _follow(node, modules)
            if hidden is not None and hidden.next not in shared:
                found.append(hidden)
    return tuple(found)


def traced(model: nn.Module) -> fx.Graph | None:
    """The model's graph with our modules and PyTorch's as leaves; None where tracing fails."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            own = m.__module__.startswith("landscape.models")
            return super().is_leaf_module(m, qualified_name) or (own and not list(m.children()))

    try:
        return Tracer().trace(model)
    except Exception:  # control flow on data, and whatever else a user's forward does
        return None


def _called_twice(graph: fx.Graph) -> set[Any]:
    called: list[Any] = [n.target for n in graph.nodes if n.op == "call_module"]
    return {t for t in called if called.count(t) > 1}


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _follow(node: fx.Node, modules: dict[str, nn.Module]) -> Hidden | None:
    """From a layer through what acts on each neuron by itself, in branches that may meet again, to the one layer that
    reads it."""
    inside, between, reader = {node}, list[type[nn.Module]](), None
    for current in itertools.dropwhile(lambda n: n is not node, node.graph.nodes):
        if not inside & set(current.all_input_nodes):
            continue
        module = _module(current, modules)
        if isinstance(module, WEIGHTED):
            if reader is not None or getattr(module, "groups", 1) != 1:
                return None
            reader = current
            continue
        kind = type(module) if module is not None else _FUNCTIONS.get(current.target)
        others = set(current.all_input_nodes) - inside
        if kind is None or not _acts_alone(kind) or not all(_is_one_number(n, modules) for n in others):
            return None
        inside.add(current)
        between.append(kind)
    return None if reader is None else Hidden(str(node.target), str(reader.target), tuple(between))


def _is_one_number(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a parameter or constant of the model with one entry, the same for every neuron."""
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(modules.get(owner), name, None) if node.op == "get_attr" else None
    return isinstance(value, torch.Tensor) and value.numel() == 1


def _acts_alone(kind: type[nn.Module]) -> bool:
    from torch.nn.modules import activation, batchnorm

    if issubclass(kind, POOLS + SHAPES) or issubclass(kind, batchnorm._BatchNorm):
        return True
    if kind in (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.GLU):
        return False
    return kind.__module__ in (activation.__name__, "landscape.models.activations", __name__)


def followed_by(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> tuple[tuple[str, nn.Module], ...]:
    """Linear and convolution layers whose only reader is a module of one of the kinds: (name, that module)."""
    graph = traced(model)
    if graph is None:
        return ()
    modules = dict(model.named_modules())
    found = []
    for node in graph.nodes:
        if isinstance(_module(node, modules), WEIGHTED) and len(node.users) == 1:
            reader = _module(next(iter(node.users)), modules)
            if isinstance(reader, kinds):
                found.append((str(node.target), reader))
    return tuple(found)


def last_layer(model: nn.Module) -> str | None:
    """Name of the linear layer whose output is the model's, but for what changes no number; "" where the model itself
    is the layer; None if there is none or it cannot be found."""
    if isinstance(model, nn.Linear):
        return ""
    graph = traced(model)
    if graph is None:
        return None
    modules = dict(model.named_modules())
    output = next(n for n in graph.nodes if n.op == "output")
    source = output.args[0]
    while isinstance(source, fx.Node) and _keeps_numbers(source, modules):
        source = source.args[0]
    is_linear = isinstance(source, fx.Node) and isinstance(_module(source, modules), nn.Linear)
    return str(source.target) if is_linear else None


def _keeps_numbers(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node hands on the numbers of its first argument, in another shape at most, in eval mode."""
    module = _module(node, modules)
    if module is not None:
        return isinstance(module, KEEPING)
    return node.op in ("call_function", "call_method") and node.target in _KEEPING_FUNCTIONS
