"""Handwritten digits of 8x8 pixels, shipped with scikit-learn (E. Alpaydin, C. Kaynak, UCI, 1998)."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.data.labels import Dataset, Pair, check_labels, in_form, redrawn
from landscape.errors import ProblemError
from landscape.settings import parse_settings

TOTAL = 1797
CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """Settings of the digits.

    Attributes:
        train_samples: use only this many of the training part, the first ones; None: all.
        test_fraction: share of the 1797 digits that is kept for testing, by default 359; 0 trains on all.
        split_seed: of the random split.
        image: inputs of shape [1, 8, 8] instead of 64 flat features.
        label_noise: probability with which a training label is redrawn uniformly over all classes.
        noise_seed: of that noise.
        targets: "index" (class indices) or "onehot" (float rows, for mse and bce).
    """

    train_samples: int | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    image: bool = False
    label_noise: float = 0.0
    noise_seed: int = 0
    targets: str = "index"

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ProblemError(f"data 'digits': test_fraction is {self.test_fraction}; it must lie in [0, 1)")
        if self.train_samples is not None and not 1 <= self.train_samples <= self.available:
            raise ProblemError(
                f"data 'digits': train_samples is {self.train_samples}, but there are {self.available} for training",
                "lower train_samples or test_fraction",
            )
        check_labels("data 'digits'", self.label_noise, self.targets)

    @property
    def available(self) -> int:
        """Digits outside the test part."""
        return TOTAL - round(TOTAL * self.test_fraction)


def load(settings: Mapping[str, Any]) -> Dataset:
    """The digits, pixels scaled from 0 … 16 to 0 … 1."""
    s = parse_settings(Settings, settings, "data 'digits'")
    x, y = _arrays()
    order = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(s.split_seed))
    train, test = order[: s.available][: s.train_samples], order[s.available :]
    x = x.reshape(-1, 1, 8, 8) if s.image else x
    labels = redrawn(y[train], CLASSES, s.label_noise, s.noise_seed)
    return Dataset(
        train=(x[train], in_form(labels, CLASSES, s.targets)),
        test=(x[test], in_form(y[test], CLASSES, s.targets)),
        classes=CLASSES,
        name="digits",
    )


@cache
def _arrays() -> Pair:
    """Pixels [1797, 64] and classes [1797], from the file in scikit-learn, whose import would take seconds."""
    found = find_spec("sklearn")
    place = Path(str(found.origin)).parent / "datasets" / "data" / "digits.csv.gz" if found is not None else Path()
    if place.is_file():
        with gzip.open(place, "rt") as file:
            table = np.loadtxt(file, delimiter=",")
        x, y = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x / 16.0).to(torch.float32), torch.from_numpy(y).to(torch.int64)
