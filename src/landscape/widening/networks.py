"""Function-preserving widening of a layer: neurons split into copies, fresh neurons without output, duplicates.

A copy i of neuron j keeps its input weights and gets the share μ_i of its output weights, Σμ_i = 1 (Fukumizu & Amari
2000; Simsek et al. 2021), so the network computes what it did. Works on any two consecutive linear or convolution
layers, normalisations by running statistics and pools between them included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from landscape.errors import ProblemError, UsageError
from landscape.problem.copies import copied
from landscape.problem.layers import WEIGHTED, Cornered, Hidden, hidden_layers

# Calls that softplus takes the place of.
RELUS = (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_)
# Second derivatives that vanish almost everywhere: the second-order test says nothing there.
KINKED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.Hardtanh, nn.Threshold, Cornered)


@dataclass(frozen=True)
class Split:
    """Neuron `neuron` of a layer split into copies with these shares of its output weights."""

    neuron: int
    shares: tuple[float, ...]


def find_hidden(model: nn.Module, layer: str, following: str | None = None) -> Hidden:
    """The hidden layer `layer`, with the layer that reads it.

    Args:
        following: its name, for models whose graph cannot be traced; then nothing may lie between the two that mixes
            neurons.

    Raises:
        UsageError: there is no such layer, it is not linear or a convolution, or nothing such follows it.
    """
    modules = dict(model.named_modules())
    weighted = [name for name, m in modules.items() if isinstance(m, WEIGHTED)]
    for name in filter(None, (layer, following)):
        if name not in modules:
            raise UsageError(f"the model has no layer {name!r}", f"its layers are {', '.join(weighted)}")
        if not isinstance(modules[name], WEIGHTED):
            kind = type(modules[name]).__name__
            raise UsageError(
                f"{name!r} is a {kind}, and only linear and convolution layers have neurons to split",
                f"choose one of {', '.join(weighted)}",
            )
    for name in filter(None, (layer, following)):
        _refuse_derived(modules[name], name)
    found = {h.layer: h for h in hidden_layers(model)}
    if layer in found and following in (None, found[layer].next):
        return found[layer]
    if following is None:
        raise UsageError(
            f"it cannot be seen which linear or convolution layer alone reads {layer!r}",
            f"name it with --next: one of {', '.join(n for n in weighted if n != layer)}"
            + (f"; seen are {', '.join(f'{h.layer} before {h.next}' for h in found.values())}" if found else ""),
        )
    return Hidden(layer, following, ())


def _refuse_derived(module: nn.Module, name: str) -> None:
    """Weights that are computed from other parameters cannot be given more neurons. Raises ProblemError."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own or ("bias" not in own and module.bias is not None):
        raise ProblemError(
            f"the weights of {name!r} are computed from other parameters (a parametrisation, such as weight_norm)",
            "write a checkpoint with plain weights: torch.nn.utils.parametrize.remove_parametrizations(layer,"
            " 'weight') "
            "(remove_weight_norm(layer), remove_spectral_norm(layer) of torch.nn.utils for the older kind), then "
            "torch.save(model.state_dict(), 'plain.pt'); and build the plain layer in the problem function",
        )


def require_smooth(model: nn.Module, hidden: Hidden) -> None:
    """Refuse activations whose second derivative vanishes almost everywhere.

    Raises:
        ProblemError: with the way out.
    """
    kinks = [kind.__name__ for kind in hidden.between if issubclass(kind, KINKED)]
    if not hidden.between:
        kinks = [type(m).__name__ for m in model.modules() if isinstance(m, KINKED)]
    if kinks:
        what = "a piecewise linear function" if kinks[0] == Cornered.__name__ else kinks[0]
        raise ProblemError(
            f"behind {hidden.layer!r} comes {what}, whose second derivative is zero almost everywhere: the "
            "second-order test of splits is void",
            "continue with a smooth activation: --smooth 20 puts softplus(20) in its place",
        )


def smoothed(model: nn.Module, beta: float) -> nn.Module:
    """A copy with softplus(β) for every ReLU, be it a module or a call in `forward`.

    Raises:
        UsageError: β is not positive.
    """
    if not beta > 0:
        raise UsageError(f"--smooth is {beta}; it must be above 0", "20 is close to ReLU")
    made = copied(model)
    for parent in list(made.modules()):
        for name, child in list(parent._modules.items()):  # every place of a module that is used several times
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(beta))
    made.__class__ = _smooth_class(type(made), beta)
    return made


class _Softplus(TorchFunctionMode):
    """Inside, calls of ReLU are calls of softplus(β)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return F.softplus(args[0], self.beta) if func in RELUS else func(*args, **(kwargs or {}))


def _smooth_class(kind: type[nn.Module], beta: float) -> type[nn.Module]:
    """The class with its forward pass inside `_Softplus`."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Softplus(beta):
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def widened(model: nn.Module, hidden: Hidden, splits: Sequence[Split]) -> nn.Module:
    """A copy of the model with these neurons split; the first copy takes the neuron's place, the others come last.

    Raises:
        UsageError: a neuron that is not there, or shares that do not preserve the function.
    """
    width = width_of(model, hidden.layer)
    source = list(range(width))
    factor = [1.0] * width
    if len({split.neuron for split in splits}) < len(splits):
        raise UsageError(
            "the same neuron is split twice", "give all its shares at once, such as --split 0 --mu .3,.3,.4"
        )
    for split in splits:
        check_split(split, width, hidden.layer)
        factor[split.neuron] *= split.shares[0]
        source += [split.neuron] * (len(split.shares) - 1)
        factor += list(split.shares[1:])
    return _rebuilt(model, hidden, source, factor)


def narrowed(model: nn.Module, hidden: Hidden, neurons: Sequence[int]) -> nn.Module:
    """A copy with these neurons of the layer only, as they are; everything else as it is.

    Raises:
        UsageError: a neuron that is not there.
    """
    width = width_of(model, hidden.layer)
    if not neurons or not all(0 <= j < width for j in neurons):
        raise UsageError(f"{hidden.layer!r} has the neurons 0 to {width - 1}, and {list(neurons)} are asked for")
    return _rebuilt(model, hidden, list(neurons), [1.0] * len(neurons))


def with_neurons(model: nn.Module, hidden: Hidden, source: nn.Module, neurons: Sequence[int]) -> nn.Module:
    """A copy of `source` in which all neurons of the layer but these are those of `model`, input weights, biases and
    output weights: what a ticket meets when the rest is drawn anew."""
    made, fresh = copied(source), dict(model.named_parameters())
    kept = torch.zeros(width_of(source, hidden.layer), dtype=torch.bool)
    kept[list(neurons)] = True
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            layer = name.rpartition(".")[0]
            if layer == hidden.layer:
                parameter[~kept] = fresh[name][~kept].to(parameter)
            elif name == f"{hidden.next}.weight":
                columns = (~kept).repeat_interleave(parameter.shape[1] // len(kept))
                parameter[:, columns] = fresh[name][:, columns].to(parameter)
    return made


def with_fresh(
    model: nn.Module, hidden: Hidden, count: int, generator: torch.Generator, zero: bool = False
) -> nn.Module:
    """A copy with `count` more neurons, whose output weights are zero.

    Their input weights are Gaussian, of the size of a typical neuron's; zero as well with `zero`.
    """
    width = width_of(model, hidden.layer)
    made = _rebuilt(model, hidden, [*range(width), *[0] * count], [*[1.0] * width, *[0.0] * count])
    layer = made.get_submodule(hidden.layer)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            if not isinstance(parameter, Tensor):
                continue
            old, fresh = parameter[:width], parameter[width:]
            size = float(old.double().square().mean().sqrt())
            drawn = torch.randn(fresh.shape, generator=generator, dtype=torch.float64) * size
            fresh.copy_(torch.zeros_like(fresh) if zero else drawn.to(fresh))
    return made


def width_of(model: nn.Module, layer: str) -> int:
    """Neurons (or channels) of a linear or convolution layer."""
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return len(weight)


def check_split(split: Split, width: int, layer: str) -> None:
    """Refuse what is no function-preserving split of a layer of this width. Raises UsageError."""
    if not 0 <= split.neuron < width:
        raise UsageError(
            f"--split {split.neuron}: {layer!r} has {width} neurons", f"they are numbered 0 to {width - 1}"
        )
    if len(split.shares) < 2 or abs(sum(split.shares) - 1) > 1e-9:
        raise UsageError(
            f"the shares {', '.join(f'{s:g}' for s in split.shares)} sum to {sum(split.shares):g}, not to 1",
            "give one share --mu M for two copies (M and 1 - M), or all of them: --mu .3,.3,.4",
        )
    if any(abs(s) < 1e-12 for s in split.shares):
        raise UsageError(
            "a share of 0 leaves a copy without output: its input weights are then free, and no curvature tells",
            "choose shares other than 0 and 1, such as --mu 0.5, or 1.8 and -0.8",
        )


# ---- the layers, rebuilt ------------------------------------------------------------------------------------------


def _rebuilt(model: nn.Module, hidden: Hidden, source: list[int], factor: list[float]) -> nn.Module:
    """A copy whose neuron i is the old neuron source[i], its output weights times factor[i]."""
    made = copied(model)
    first, second = made.get_submodule(hidden.layer), made.get_submodule(hidden.next)
    width = width_of(made, hidden.layer)
    weight = second.weight
    assert isinstance(weight, Tensor)
    incoming = weight.shape[1]
    if getattr(first, "groups", 1) != 1 or getattr(second, "groups", 1) != 1 or incoming % width:
        raise ProblemError(
            f"{hidden.next!r} reads {incoming} numbers, not some of each of the {width} neurons of {hidden.layer!r}",
            "grouped convolutions and layers that mix in other inputs cannot be widened",
        )
    _refuse_tied(made, hidden)
    index = torch.tensor(source)
    _select(first, index, "out_features" if isinstance(first, nn.Linear) else "out_channels", len(source))
    for norm in norms_between(made, hidden, width):
        _select(norm, index, "num_features", len(source))
    places = incoming // width
    columns = (index.unsqueeze(1) * places + torch.arange(places)).reshape(-1)
    scale = torch.tensor(factor, dtype=torch.float64).repeat_interleave(places)
    shape = (1, -1, *[1] * (weight.dim() - 2))
    chosen = weight.detach()[:, columns.to(weight.device)] * scale.to(weight).reshape(shape)
    second.weight = nn.Parameter(chosen, requires_grad=weight.requires_grad)
    setattr(second, "in_features" if isinstance(second, nn.Linear) else "in_channels", len(columns))
    return made


def _refuse_tied(model: nn.Module, hidden: Hidden) -> None:
    """Layers whose parameters are used elsewhere as well cannot be given more neurons alone. Raises ProblemError."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for layer in (hidden.layer, hidden.next):
        for parameter in model.get_submodule(layer).parameters(recurse=False):
            tied = names[id(parameter)]
            if len(tied) > 1:
                raise ProblemError(
                    f"{tied[0]} and {tied[1]} are tied: one tensor, which cannot be widened in one place alone",
                    "name another layer with --layer",
                )


def _select(module: nn.Module, index: Tensor, size: str, value: int) -> None:
    """Rows `index` of every parameter and per-neuron buffer of a module."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        chosen = parameter.detach()[index.to(parameter.device)].clone()
        setattr(module, name, nn.Parameter(chosen, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim():
            module.register_buffer(name, buffer[index.to(buffer.device)].clone())
    setattr(module, size, value)


def norms_between(model: nn.Module, hidden: Hidden, width: int) -> list[nn.Module]:
    """BatchNorm modules between the two layers: those of the right size that come between them in the model."""
    from torch.nn.modules.batchnorm import _BatchNorm

    wanted = sum(issubclass(kind, _BatchNorm) for kind in hidden.between)
    names = [name for name, _ in model.named_modules()]
    first, last = names.index(hidden.layer), names.index(hidden.next)
    between = [model.get_submodule(n) for n in names[first + 1 : last]]
    norms = [m for m in between if isinstance(m, _BatchNorm) and m.num_features == width]
    if len(norms) < wanted:
        raise ProblemError(
            f"the normalisation behind {hidden.layer!r} cannot be found among the model's modules",
            "register it between the two layers",
        )
    return list(norms)
