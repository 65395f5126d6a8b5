"""Networks, data and losses that curvature tools get wrong: name -> a small problem, built from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.problem.problem import Problem

SAMPLES, TIME, WIDTH, CLASSES = 7, 4, 6, 3


class Pooled(nn.Module):
    """A sequence layer, its first output averaged over time, and a linear head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return self.head((out[0] if isinstance(out, tuple) else out).tanh().mean(1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """A language model whose embedding is also its output matrix, with a plain parameter outside any module."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 5, bias=False)
        self.out.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.scale * torch.tanh(self.mix(self.embedding(tokens))))


class Answers(nn.Module):
    """Returns a dict with a tuple in it, an integer tensor and an output that the loss ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, scale: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.body(input_ids * scale[:, None]))
        logits = self.head(hidden)
        return {"logits": logits, "extra": (hidden, logits.argmax(-1)), "ignored": hidden.sum()}


def token_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Cross-entropy of an HF-like batch, each sample weighted by its number of tokens."""
    logits = model(input_ids=batch["input_ids"], scale=batch["scale"])["logits"]
    each = F.cross_entropy(logits, batch["labels"], reduction="none")
    return (each * batch["tokens"]).sum(), batch["tokens"].sum()


def twice(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Calls the model twice (a consistency term between an input and its mirror image)."""
    x, y = batch
    one, two = model(x), model(-x)
    return F.cross_entropy(one, y, reduction="sum") + (one - two).square().sum(), len(y)


def _layer(make: Callable[[], nn.Module]) -> Callable[[], Problem]:
    def build() -> Problem:
        model = Pooled(make())
        with torch.no_grad():
            for p in model.parameters():  # affine parameters away from 1 and 0, where mistakes hide
                p.add_(0.3 * torch.randn_like(p))
        x, y = torch.randn(SAMPLES, TIME, WIDTH), torch.randint(CLASSES, (SAMPLES,))
        return Problem(model, (x, y), "cross_entropy")

    return build


def _batchnorm() -> nn.Module:
    layer = nn.Sequential(nn.BatchNorm1d(TIME), nn.Linear(WIDTH, WIDTH))
    layer[0].running_mean.copy_(torch.randn(TIME))
    layer[0].running_var.copy_(torch.rand(TIME) + 0.5)
    return layer


def _tied() -> Problem:
    return Problem(Tied(), (torch.randint(5, (SAMPLES, TIME)), torch.randint(5, (SAMPLES, TIME))), "cross_entropy")


def _dictionary() -> Problem:
    def batch(n: int) -> dict[str, Tensor]:
        return {
            "input_ids": torch.randn(n, WIDTH),
            "scale": torch.rand(n) + 0.5,
            "labels": torch.randint(CLASSES, (n,)),
            "tokens": torch.randint(1, 9, (n,)),
        }

    return Problem(Answers(), [batch(20), batch(1)], token_loss)


def _twice() -> Problem:
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.GELU(), nn.Linear(5, CLASSES))
    return Problem(model, (torch.randn(SAMPLES, WIDTH), torch.randint(CLASSES, (SAMPLES,))), twice)


def _act(activation: Callable[[], nn.Module]) -> Callable[[], Problem]:
    return _layer(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, WIDTH)))


ZOO: dict[str, Callable[[], Problem]] = {
    "layernorm": _layer(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))),
    "batchnorm": _layer(_batchnorm),
    "groupnorm": _layer(lambda: nn.Sequential(nn.Conv1d(TIME, TIME, 1), nn.GroupNorm(2, TIME))),
    "attention": _layer(SelfAttention),
    "transformer": _layer(
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 5, activation="gelu", batch_first=True, dropout=0.3)
    ),
    "lstm": _layer(lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "gru": _layer(lambda: nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "conv": _layer(lambda: nn.Conv1d(TIME, TIME, 3, padding=1)),
    "silu": _act(nn.SiLU),
    "gelu": _act(nn.GELU),
    "tied": _tied,
    "dictionary": _dictionary,
    "twice": _twice,
}


def build(name: str, seed: int = 0) -> Problem:
    """The problem of that name; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return ZOO[name]()
