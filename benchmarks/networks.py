"""The larger networks of the benchmark; untrained and on random data, since only time and memory are measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice, around a shortcut (He et al. 2016b)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changed = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        around = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(F.relu(self.norm2(self.conv1(h)))) + around


def resnet18(k: int, classes: int = 10) -> nn.Sequential:
    """ResNet18 with pre-activation and widths k, 2k, 4k, 8k (Nakkiran et al. 2020); k = 64 is the usual one."""
    layers: list[nn.Module] = [nn.Conv2d(3, k, 3, 1, 1, bias=False)]
    inputs = k
    for outputs, stride in ((k, 1), (2 * k, 2), (4 * k, 2), (8 * k, 2)):
        layers += [PreActivationBlock(inputs, outputs, stride), PreActivationBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * k, classes))


class GPT(nn.Module):
    """A decoder with learned positions and GELU; logits [batch, vocabulary, time], as cross-entropy takes them."""

    def __init__(self, width: int, depth: int, vocabulary: int, time: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(time, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // 64), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(time))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.token(tokens) + self.place
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(h))
        return logits.transpose(1, 2)


def images(samples: int) -> tuple[Tensor, Tensor]:
    """Random 32 × 32 images in three channels, and labels."""
    return torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,))


def tokens(samples: int, time: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Random tokens, and the next ones."""
    drawn = torch.randint(0, vocabulary, (samples, time + 1))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
