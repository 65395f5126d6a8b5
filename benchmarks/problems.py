"""The networks and data that are measured: digits, an MLP, a CNN with BatchNorm, and an MLP of 11 M parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import networks
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

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def to(self, device: str) -> Case:
        """The same case on another device."""
        return replace(
            self, model=self.copy().to(device), inputs=self.inputs.to(device), targets=self.targets.to(device)
        )

    def problem(self) -> Problem:
        if self.targets.dim() == 1:
            return Problem(self.model, (self.inputs, self.targets), "cross_entropy")
        return Problem(self.model, [(self.inputs, self.targets)], token_loss)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs.split(size), self.targets.split(size), strict=True))


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """Cross-entropy summed over tokens; logits [batch, vocabulary, time]."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets, reduction="sum"), targets.numel()


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


def small_case(epochs: int = 20) -> Case:
    """64-16-10: a launch costs more than its arithmetic."""
    torch.manual_seed(0)
    data = digits()
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    return Case("MLP 64-16-10", trained(model, *data, epochs), *data)


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


def resnet_case(k: int, samples: int = 512) -> Case:
    """ResNet18 of width k on random images."""
    torch.manual_seed(0)
    return Case(f"ResNet18, k = {k}", networks.resnet18(k).eval(), *networks.images(samples))


def gpt_case(width: int, depth: int, vocabulary: int, samples: int, time: int) -> Case:
    """A decoder on random tokens."""
    torch.manual_seed(0)
    model = networks.GPT(width, depth, vocabulary, time).eval()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return Case(f"GPT of {size:.0f} M parameters", model, *networks.tokens(samples, time, vocabulary))


def wide_mlp_case(samples: int = 4096) -> Case:
    """20 M parameters on random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4400), nn.ReLU(), nn.Linear(4400, 4400), nn.ReLU(), nn.Linear(4400, 10)).eval()
    return Case("MLP of 20 M parameters", model, torch.randn(samples, 64), torch.randint(0, 10, (samples,)))


NETWORKS = {
    "mlp": mlp_case,
    "cnn": cnn_case,
    "resnet8": lambda: resnet_case(8),
    "resnet64": lambda: resnet_case(64),
    "gpt1": lambda: gpt_case(128, 5, 65, 64, 128),
    "gpt100": lambda: gpt_case(768, 12, 16384, 8, 256),
    "mlp20": wide_mlp_case,
}
