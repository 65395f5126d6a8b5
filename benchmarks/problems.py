"""The networks and data that are measured: digits, an MLP, a CNN with BatchNorm, and an MLP of 11 M parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import Problem


@dataclass(frozen=True)
class Case:
    """A trained network in eval mode, float32, with all its data; the loss is mean cross-entropy."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def samples(self) -> int:
        return len(self.targets)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def copy(self) -> nn.Module:
        """A fresh model: no tool sees what another one left behind."""
        return copy.deepcopy(self.model)

    def problem(self) -> Problem:
        return Problem(self.model, (self.inputs, self.targets), "cross_entropy")

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs.split(size), self.targets.split(size), strict=True))


def digits(image: bool = False) -> tuple[Tensor, Tensor]:
    """All 1797 digits, pixels in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    inputs = torch.from_numpy(x / 16).float()
    return inputs.reshape(-1, 1, 8, 8) if image else inputs, torch.from_numpy(y).long()


def mlp(width: int = 256) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def trained(model: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """A few epochs of Adam: away from the start, not yet at a minimum."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(targets)).split(128):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def mlp_case(epochs: int = 5) -> Case:
    """64-256-256-10, ReLU."""
    torch.manual_seed(0)
    data = digits()
    return Case("MLP 64-256-256-10", trained(mlp(), *data, epochs), *data)


def cnn_case(epochs: int = 5) -> Case:
    """1-16-32 channels on 8×8, BatchNorm."""
    torch.manual_seed(0)
    data = digits(image=True)
    return Case("CNN 1-16-32 with BatchNorm", trained(cnn(), *data, epochs), *data)


def large_case(samples: int = 512) -> Case:
    """11.1 M parameters, untrained: only its memory is measured."""
    torch.manual_seed(0)
    inputs, targets = digits()
    return Case("MLP of 11 M parameters", mlp(3300).eval(), inputs[:samples], targets[:samples])
