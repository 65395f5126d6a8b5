"""Losses of the random problems: the named ones, and functions as users write them, each with targets that fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST = 70  # first samples of a set: what a look at a few would see
Targets = Callable[[np.random.Generator, Tensor, int], tuple[str, Tensor]]


class Loss(NamedTuple):
    """A loss, the fewest outputs it makes sense with, and a maker of targets (kind, values)."""

    name: str
    loss: str | Callable[[nn.Module, Any], tuple[Tensor, Any]]
    least: int
    targets: Targets


def _classes(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    n = len(x)
    kind = str(rng.choice(["uniform", "imbalanced", "sorted", "one class", "separable", "first ignored"]))
    labels = rng.integers(outputs, size=n)
    if kind == "imbalanced":
        labels = (rng.random(n) < 0.04).astype(int) * int(rng.integers(outputs))
    elif kind == "sorted":
        labels = np.sort(labels)
    elif kind == "one class":
        labels[:] = int(rng.integers(outputs))
    elif kind == "separable":
        labels = (
            (x.reshape(n, -1).float() @ torch.from_numpy(rng.normal(size=(x[0].numel(), outputs))).float())
            .argmax(1)
            .numpy()
        )
    elif kind == "first ignored":
        labels[: min(FIRST, n - 1)] = -100
    return f"classes {kind}", torch.from_numpy(np.ascontiguousarray(labels)).long()


def _valid_classes(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    kind, labels = _classes(rng, x, outputs)
    return kind, labels.clamp_min(0)


def _probabilities(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    return "probabilities", torch.from_numpy(rng.dirichlet(np.full(outputs, 0.5), len(x))).float()


def _bits(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    kind = str(rng.choice(["even", "rare", "soft"]))
    if kind == "soft":
        return "bits soft", torch.from_numpy(rng.random((len(x), outputs))).float()
    rate = 0.03 if kind == "rare" else 0.5
    return f"bits {kind}", torch.from_numpy((rng.random((len(x), outputs)) < rate).astype(np.float32))


def _numbers(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    n = len(x)
    kind = str(rng.choice(["Gaussian", "heavy tails", "trend", "offset", "tiny", "teacher", "zero", "large offset"]))
    y = rng.normal(size=(n, outputs))
    if kind == "heavy tails":
        y = rng.standard_t(1.5, (n, outputs))
    elif kind == "trend":
        y *= np.geomspace(1e-3, 10, n)[:, None]
    elif kind == "offset":
        y += 100
    elif kind == "large offset":
        y += 10 ** rng.uniform(4, 9)
    elif kind == "tiny":
        y *= 1e-6
    elif kind == "zero":
        y[:] = 0
    elif kind == "teacher":
        y = np.tanh(x.reshape(n, -1).double().numpy() @ rng.normal(size=(x[0].numel(), outputs)))
    return f"numbers {kind}", torch.from_numpy(y).float()


def _modest(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    return "numbers Gaussian", torch.from_numpy(rng.normal(size=(len(x), outputs))).float()


def _counts(rng: np.random.Generator, x: Tensor, outputs: int) -> tuple[str, Tensor]:
    return "counts", torch.from_numpy(rng.poisson(3.0, (len(x), outputs)).astype(np.float32))


def huber(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return F.smooth_l1_loss(model(x), y, reduction="sum"), len(x)


def log_cosh(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    error = model(x) - y
    return (error + F.softplus(-2 * error)).sum(), len(x)


def poisson(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return F.poisson_nll_loss(model(x), y, log_input=True, reduction="sum"), y.numel()


def smoothed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return F.cross_entropy(model(x), y, label_smoothing=0.1, reduction="sum"), len(x)


def squared_hinge(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    scores = model(x)
    margins = 1 - scores.gather(1, y[:, None]) + scores
    return F.relu(margins).square().sum(), len(x)


def weighted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Weights of samples: the count is the sum of the weights."""
    x, y = batch
    weight = 0.1 + y[:, 0].abs()
    return (weight[:, None] * (model(x) - y).square()).sum(), weight.sum().detach()


def likelihood(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Mean and logarithm of the variance, both by the network."""
    x, y = batch
    out = model(x)
    mean, log_variance = out[:, :1], out[:, 1:2]
    return 0.5 * (log_variance + (y[:, :1] - mean).square() * torch.exp(-log_variance)).sum(), len(x)


def pairwise(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """A ranking loss between all pairs of a batch, which cannot be cut."""
    x, y = batch
    score, wanted = model(x)[:, 0], y[:, 0]
    order = torch.sign(wanted[:, None] - wanted[None, :])
    return F.softplus(-order * (score[:, None] - score[None, :])).mean(1).sum(), len(x)


def regularised(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Fourth powers of the parameters beside a squared error."""
    x, y = batch
    penalty = sum(p.pow(4).sum() for p in model.parameters() if p.requires_grad)
    return (model(x) - y).square().sum() + 0.01 * len(x) * penalty, len(x)


def cosine(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    x, y = batch
    return (1 - F.cosine_similarity(model(x), y, dim=1, eps=1e-3)).sum(), len(x)


LOSSES: tuple[Loss, ...] = (
    *(3 * (Loss("cross_entropy", "cross_entropy", 2, _classes),)),
    Loss("cross_entropy", "cross_entropy", 2, _probabilities),
    *(4 * (Loss("mse", "mse", 1, _numbers),)),
    *(2 * (Loss("bce", "bce", 1, _bits),)),
    Loss("Huber", huber, 1, _numbers), Loss("log cosh", log_cosh, 1, _modest), Loss("Poisson", poisson, 1, _counts),
    Loss("label smoothing", smoothed, 2, _valid_classes), Loss("squared hinge", squared_hinge, 2, _valid_classes),
    Loss("weighted", weighted, 1, _modest), Loss("Gaussian likelihood", likelihood, 2, _modest),
    Loss("pairwise", pairwise, 1, _modest), Loss("regularised", regularised, 1, _modest),
    Loss("cosine", cosine, 2, _modest),
)  # fmt: skip
