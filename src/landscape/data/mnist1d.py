"""MNIST-1D, generated offline (S. Greydanus, D. Kobak, "Scaling Down Deep Learning with MNIST-1D", 2020)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from landscape.data.labels import Dataset, Pair, check_labels, in_form, redrawn
from landscape.errors import ProblemError
from landscape.settings import parse_settings

CLASSES = 10
STANDARD = 5000  # 4000 for training and 1000 for testing, as published
TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class Settings:
    """Settings of MNIST-1D.

    Attributes:
        train_samples: up to 4000 are the first of the published training set; for more, a larger set is
            generated, with a test set of a quarter its size.
        image: inputs of shape [1, 40] (one channel) instead of 40 flat features.
        label_noise: probability with which a training label is redrawn uniformly over all classes.
        noise_seed: of that noise.
        targets: "index" (class indices) or "onehot" (float rows, for mse and bce).
    """

    train_samples: int = 4000
    image: bool = False
    label_noise: float = 0.0
    noise_seed: int = 0
    targets: str = "index"

    def __post_init__(self) -> None:
        if self.train_samples < 1:
            raise ProblemError(f"data 'mnist1d': train_samples is {self.train_samples}; it must be at least 1")
        check_labels("data 'mnist1d'", self.label_noise, self.targets)


def load(settings: Mapping[str, Any]) -> Dataset:
    """MNIST-1D as the package makes it: 40 features, standardised over the whole set."""
    s = parse_settings(Settings, settings, "data 'mnist1d'")
    # The package makes equally many of each class, so round up to a multiple of the classes.
    total = max(STANDARD, CLASSES * math.ceil(s.train_samples / TRAIN_SHARE / CLASSES))
    (x, y), (x_test, y_test) = _arrays(total)
    shape = (-1, 1, x.shape[1]) if s.image else (-1, x.shape[1])
    labels = redrawn(y[: s.train_samples], CLASSES, s.label_noise, s.noise_seed)
    # Copies, because the caller may change what it gets, and the cache is for all.
    return Dataset(
        train=(x[: s.train_samples].reshape(shape).clone(), in_form(labels, CLASSES, s.targets)),
        test=(x_test.reshape(shape).clone(), in_form(y_test, CLASSES, s.targets).clone()),
        classes=CLASSES,
        name="mnist1d",
    )


@lru_cache(maxsize=4)
def _arrays(total: int) -> tuple[Pair, Pair]:
    from mnist1d.data import get_dataset_args, make_dataset  # imports matplotlib

    args = get_dataset_args()
    args.num_samples, args.train_split = total, TRAIN_SHARE
    with _global_seeds_restored():
        made = make_dataset(args)
    train, test = (
        (torch.from_numpy(made[x]).to(torch.float32), torch.from_numpy(made[y]).to(torch.int64))
        for x, y in (("x", "y"), ("x_test", "y_test"))
    )
    return train, test


@contextmanager
def _global_seeds_restored() -> Iterator[None]:
    """The package seeds Python's and NumPy's global generators; put back what they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
