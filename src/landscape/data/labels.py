"""What the data sets share: label noise, the form of the targets, cutting to size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from landscape.errors import ProblemError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: float32 inputs, int64 class indices (or float32 one-hot targets).

    Attributes:
        train, test: (inputs, targets).
        classes: number of classes.
        name: key of `landscape.data.DATA`.
    """

    train: Pair
    test: Pair
    classes: int
    name: str


def check_labels(what: str, label_noise: float, targets: str) -> None:
    """Refuse settings out of range; `what` reads like "data 'digits'"."""
    if not 0 <= label_noise <= 1:
        raise ProblemError(f"{what}: label_noise is {label_noise}; it is a probability, between 0 and 1")
    if targets not in ("index", "onehot"):
        raise ProblemError(
            f"{what}: there are no targets {targets!r}",
            "known are index (for cross_entropy), onehot (for mse, bce)",
        )


def redrawn(labels: Tensor, classes: int, probability: float, seed: int) -> Tensor:
    """Labels of which each is, with `probability`, replaced by a uniform draw over *all* classes.

    One label in `classes` redrawn keeps its value, so about probability·(1 − 1/classes) become wrong. Which
    labels are hit and what they become does not depend on the probability: more noise adds to less.
    """
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(labels), generator=generator, dtype=torch.float64) < probability
    drawn = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(hit, drawn, labels)


def in_form(labels: Tensor, classes: int, targets: str) -> Tensor:
    """Class indices as they are, or as float32 one-hot rows."""
    return F.one_hot(labels, classes).to(torch.float32) if targets == "onehot" else labels
