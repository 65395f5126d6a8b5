"""Regression data made by a known function: teacher networks on a grid or on Gaussian inputs, no noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.data.labels import Dataset
from landscape.errors import ProblemError
from landscape.models.activations import ACTIVATIONS
from landscape.settings import choose, parse_settings

FOUR_NEURONS = ((0.6, 0.5), (-0.5, 0.5), (-0.2, -0.6), (0.1, -0.6))
TARGETS = ("four_neuron", "random", "rosenbrock")
INPUTS = ("grid", "gaussian")


@dataclass(frozen=True)
class Settings:
    """Settings of a teacher.

    Attributes:
        target: "four_neuron": Σ σ(w·x) with the input weights of Martinelli et al. (2023), output weights 1, no
            bias; "random": `neurons` input weights uniform on the sphere of radius `scale`, output weights ±1;
            "rosenbrock": the standardised logarithm of Rosenbrock's function (Flat Channels to Infinity, 2025).
        activation: σ, a name in `landscape.models.activations.ACTIVATIONS`; "rosenbrock" has none.
        neurons, features, scale, teacher_seed: of a random teacher; the other targets have two features.
        inputs: "grid": `points` per axis from −`extent` to `extent`; "gaussian": `samples` standard normal ones.
        sample_seed: of Gaussian inputs. test_samples: further Gaussian inputs, for testing.
    """

    target: str = "four_neuron"
    activation: str = "sigmoid_softplus"
    neurons: int = 4
    features: int = 2
    scale: float = 1.0
    teacher_seed: int = 0
    inputs: str = "grid"
    points: int = 41
    extent: float = 5.0
    samples: int = 1000
    sample_seed: int = 0
    test_samples: int = 0

    # Numbers rather than classes: for mse.
    targets: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        for table, value, what in ((TARGETS, self.target, "target"), (INPUTS, self.inputs, "inputs")):
            choose(dict.fromkeys(table), value, f"{what} of data 'teacher'")
        choose(ACTIVATIONS, self.activation, "activation")
        for name in ("neurons", "features", "samples"):
            if getattr(self, name) < 1:
                raise ProblemError(f"data 'teacher': {name} is {getattr(self, name)}; it must be at least 1")
        if self.points < 2 or self.extent <= 0 or self.scale <= 0 or self.test_samples < 0:
            raise ProblemError("data 'teacher': points must be at least 2, extent and scale above 0")
        if self.target != "random" and self.features != 2:
            raise ProblemError(f"data 'teacher': the target {self.target!r} has 2 features", "leave features out")
        if self.inputs == "grid" and self.points**self.features > 10**7:
            raise ProblemError(
                f"data 'teacher': a grid of {self.points} points in {self.features} dimensions is too large",
                'write inputs = "gaussian"',
            )


def load(settings: Mapping[str, Any]) -> Dataset:
    """Inputs [N, features] and targets [N, 1]; made in float64, which is what certificates work in."""
    s = parse_settings(Settings, settings, "data 'teacher'")
    x, y, x_test, y_test = (t.clone() for t in _arrays(s))
    return Dataset(train=(x, y), test=(x_test, y_test), classes=1, name="teacher")


def teacher_weights(settings: Mapping[str, Any]) -> Tensor | None:
    """Input weights of the teacher [neurons, features]; None for a target that is no network."""
    s = parse_settings(Settings, settings, "data 'teacher'")
    return None if s.target == "rosenbrock" else _teacher(s)[0]


@lru_cache(maxsize=8)
def _arrays(s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if s.inputs == "grid":
        axis = torch.linspace(-s.extent, s.extent, s.points, dtype=torch.float64)
        x = torch.cartesian_prod(*[axis] * s.features).reshape(-1, s.features)
        held_out = x[:0]
    else:
        generator = torch.Generator().manual_seed(s.sample_seed)
        both = torch.randn(s.samples + s.test_samples, s.features, dtype=torch.float64, generator=generator)
        x, held_out = both[: s.samples], both[s.samples :]
    return x, _target(s, x), held_out, _target(s, held_out)


def _target(s: Settings, x: Tensor) -> Tensor:
    if s.target == "rosenbrock":
        valley = 3 * (x[:, 1] + 1 - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2 + 0.1
        return ((valley.log() / math.log(10) - 0.6481) / 0.5113).unsqueeze(1)
    weights, signs = _teacher(s)
    hidden: Tensor = ACTIVATIONS[s.activation]()(x @ weights.T)
    return (hidden * signs).sum(1, keepdim=True)


def _teacher(s: Settings) -> tuple[Tensor, Tensor]:
    """Input weights [neurons, features] and output weights [neurons]."""
    if s.target == "four_neuron":
        return torch.tensor(FOUR_NEURONS, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(s.teacher_seed)
    rows = torch.randn(s.neurons, s.features, dtype=torch.float64, generator=generator)
    signs = torch.randint(2, (s.neurons,), generator=generator).double() * 2 - 1
    return s.scale * rows / rows.norm(dim=1, keepdim=True), signs
