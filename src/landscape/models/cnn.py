"""Small convolutional networks on images or sequences, with or without BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from landscape.errors import ProblemError
from landscape.models.activations import ACTIVATIONS, drawing_from
from landscape.settings import choose, parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of a CNN: blocks of convolution, BatchNorm, activation and 2-fold average pooling; linear.

    Attributes:
        inputs: shape of one sample: [channels, height, width] or [channels, length].
        outputs: number of outputs.
        width: channels of every convolution.
        depth: number of blocks; each halves the image.
        kernel: odd side of the kernel; padding keeps the size.
        batch_norm: a BatchNorm after every convolution (which then has no bias: BatchNorm would remove it).
        activation: a name in `landscape.models.activations.ACTIVATIONS`.
    """

    inputs: tuple[int, ...]
    outputs: int
    width: int
    depth: int = 2
    kernel: int = 3
    batch_norm: bool = False
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if len(self.inputs) not in (2, 3) or min(self.inputs) < 1:
            raise ProblemError(
                f"model 'cnn': inputs is {list(self.inputs)}; it must be [channels, height, width] or "
                "[channels, length]"
            )
        for name in ("outputs", "width", "depth"):
            if getattr(self, name) < 1:
                raise ProblemError(f"model 'cnn': {name} is {getattr(self, name)}; it must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ProblemError(f"model 'cnn': kernel is {self.kernel}; it must be odd and positive")
        if min(self.inputs[1:]) >> self.depth < 1:
            raise ProblemError(
                f"model 'cnn': {self.depth} blocks halve an image of {list(self.inputs[1:])} to nothing",
                "lower depth",
            )
        choose(ACTIVATIONS, self.activation, "activation")


def settings_for(shape: Sequence[int], outputs: int) -> dict[str, Any]:
    """The settings that follow from the data: images of one sample's `shape`, one output per class."""
    if len(shape) not in (2, 3):
        raise ProblemError(
            f"model 'cnn' takes images, but a sample of this data has shape {list(shape)}",
            "write 'image = true' in [data]",
        )
    return {"inputs": list(shape), "outputs": outputs}


def build(settings: Mapping[str, Any], generator: torch.Generator) -> nn.Sequential:
    """The network, in PyTorch's default initialisation: uniform in ±1/√fan-in, weights and biases."""
    s = parse_settings(Settings, settings, "model 'cnn'")
    flat = len(s.inputs) == 2
    convolution = nn.Conv1d if flat else nn.Conv2d
    norm = nn.BatchNorm1d if flat else nn.BatchNorm2d
    pool = nn.AvgPool1d if flat else nn.AvgPool2d
    layers: list[nn.Module] = []
    channels, *size = s.inputs
    with drawing_from(generator):
        for _ in range(s.depth):
            layers.append(convolution(channels, s.width, s.kernel, padding=s.kernel // 2, bias=not s.batch_norm))
            if s.batch_norm:
                layers.append(norm(s.width))
            layers += [ACTIVATIONS[s.activation](), pool(2)]
            channels, size = s.width, [side // 2 for side in size]
        layers.append(nn.Flatten())
        for side in size:
            channels *= side
        layers.append(nn.Linear(channels, s.outputs))
    return nn.Sequential(*layers)
