"""Multilayer perceptrons: `depth` hidden layers of equal width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from landscape.errors import ProblemError
from landscape.models.parts import ACTIVATIONS, drawing_from
from landscape.settings import choose, parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of an MLP.

    Attributes:
        inputs, outputs: numbers of features and of outputs.
        width: neurons in each hidden layer.
        depth: number of hidden layers; 0 is a linear model.
        activation: a name in `landscape.models.parts.ACTIVATIONS`.
        bias: whether the layers have biases.
    """

    inputs: int
    outputs: int
    width: int
    depth: int = 1
    activation: str = "tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "width"):
            if getattr(self, name) < 1:
                raise ProblemError(f"model 'mlp': {name} is {getattr(self, name)}; it must be at least 1")
        if self.depth < 0:
            raise ProblemError(f"model 'mlp': depth is {self.depth}; it is the number of hidden layers, 0 or more")
        choose(ACTIVATIONS, self.activation, "activation")


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
    """The network, in PyTorch's default initialisation: uniform in ±1/√fan-in, weights and biases."""
    s = parse_settings(Settings, settings, "model 'mlp'")
    layers: list[nn.Module] = []
    features = s.inputs
    with drawing_from(generator):
        for _ in range(s.depth):
            layers += [nn.Linear(features, s.width, bias=s.bias), ACTIVATIONS[s.activation]()]
            features = s.width
        layers.append(nn.Linear(features, s.outputs, bias=s.bias))
    return nn.Sequential(*layers)
