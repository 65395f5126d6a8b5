"""Built-in model families, one file each with the same names: `Settings`, `settings_for`, `build`.

A new family is one new file and one line in `MODELS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from landscape.models import cnn, mlp
from landscape.settings import choose

MODELS: dict[str, ModuleType] = {"mlp": mlp, "cnn": cnn}


def build_model(name: str, settings: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A network of a built-in family, float32 on the CPU; its weights follow from `seed` alone.

    Raises:
        ProblemError: an unknown name, setting or value; the hint lists what exists.
    """
    family = choose(MODELS, name, "built-in model")
    model: nn.Module = family.build(settings, torch.Generator().manual_seed(seed))
    return model


def learning_rate_scale(name: str, settings: Any) -> float:
    """What the learning rates of first-order optimisers are multiplied by for a network with these `Settings`."""
    scale = getattr(choose(MODELS, name, "built-in model"), "learning_rate_scale", None)
    return 1.0 if scale is None else float(scale(settings))


def settings_for(name: str, shape: Sequence[int], outputs: int) -> dict[str, Any]:
    """The settings of family `name` that follow from one sample's shape and the number of outputs."""
    family = choose(MODELS, name, "built-in model")
    derived: dict[str, Any] = family.settings_for(shape, outputs)
    return derived
