"""Multilayer perceptrons: `depth` hidden layers of equal width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from landscape.errors import ProblemError
from landscape.models.activations import ACTIVATIONS, ScaledLinear, drawing_from
from landscape.settings import choose, later, parse_settings

PARAMETRISATIONS = ("default", "ntk", "mean_field")


@dataclass(frozen=True)
class Settings:
    """Settings of an MLP.

    Attributes:
        inputs, outputs: numbers of features and of outputs.
        width: neurons in each hidden layer.
        depth: number of hidden layers; 0 is a linear model.
        activation: a name in `landscape.models.activations.ACTIVATIONS`.
        bias: whether the layers have biases.
        parametrisation: "default": PyTorch's, weights uniform in ±1/√fan-in. "ntk" (Jacot et al. 2018): W ~ N(0, 1),
            used as W/√fan-in. "mean_field" (Mei et al. 2018): the same, but the output layer is divided by the
            width, and the learning rate of first-order optimisers is multiplied by it.
        widths: of each hidden layer where they differ (as `landscape widen` makes them), in place of `width`.
    """

    inputs: int
    outputs: int
    width: int
    depth: int = 1
    activation: str = "tanh"
    bias: bool = True
    parametrisation: str = later("default")
    widths: tuple[int, ...] = later(())

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "width"):
            if getattr(self, name) < 1:
                raise ProblemError(f"model 'mlp': {name} is {getattr(self, name)}; it must be at least 1")
        if self.depth < 0:
            raise ProblemError(f"model 'mlp': depth is {self.depth}; it is the number of hidden layers, 0 or more")
        if self.widths and (len(self.widths) != self.depth or min(self.widths) < 1):
            raise ProblemError(f"model 'mlp': widths {list(self.widths)} are not {self.depth} positive numbers")
        choose(ACTIVATIONS, self.activation, "activation")
        choose(dict.fromkeys(PARAMETRISATIONS), self.parametrisation, "parametrisation")


def settings_for(shape: Sequence[int], outputs: int) -> dict[str, Any]:
    """The settings that follow from the data: inputs of one sample's `shape`, one output per class."""
    if len(shape) != 1:
        raise ProblemError(
            f"model 'mlp' takes flat inputs, but a sample of this data has shape {list(shape)} "
            f"({prod(shape)} numbers in an image)",
            "leave out 'image = true' in [data], or use the model 'cnn'",
        )
    return {"inputs": shape[0], "outputs": outputs}


def build(settings: Mapping[str, Any], generator: torch.Generator) -> nn.Sequential:
    """The network, freshly initialised in its parametrisation."""
    s = parse_settings(Settings, settings, "model 'mlp'")
    layers: list[nn.Module] = []
    features = s.inputs
    with drawing_from(generator):
        for width in s.widths or (s.width,) * s.depth:
            layers += [_linear(s, features, width), ACTIVATIONS[s.activation]()]
            features = width
        layers.append(_linear(s, features, s.outputs, last=True))
    return nn.Sequential(*layers)


def learning_rate_scale(settings: Settings) -> float:
    """What first-order learning rates are multiplied by, so that time runs alike for all widths."""
    return float(settings.width) if settings.parametrisation == "mean_field" and settings.depth else 1.0


def _linear(s: Settings, inputs: int, outputs: int, last: bool = False) -> nn.Linear:
    if s.parametrisation == "default":
        return nn.Linear(inputs, outputs, bias=s.bias)
    divided = last and s.depth > 0 and s.parametrisation == "mean_field"
    return ScaledLinear(inputs, outputs, s.bias, 1 / inputs if divided else inputs**-0.5)
