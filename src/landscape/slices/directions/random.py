"""Gaussian directions, scaled to the size of the parameters (Li et al. 2018, §4: filter normalisation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.slices.directions.direction import Around, Direction
from landscape.slices.directions.groups import NORMS, groups, ignored, orthogonalised, rescaled

LABELS = {"filter": "filter norm", "layer": "layer norm", "global": "norm of θ", "none": "standard Gaussian"}


@dataclass(frozen=True)
class Options:
    """norm: filter | layer | global | none. ignore: bias, norm, bias+norm or none: entries that stay as they are.
    seed: --seed if left out."""

    norm: str = "filter"
    ignore: str = "bias+norm"
    seed: int | None = None


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """Two directions unless one is asked for, orthogonal to each other within every group that is normalised."""
    if options.norm not in NORMS:
        raise UsageError(f"there is no norm {options.norm!r} of random directions", f"choose from {', '.join(NORMS)}")
    objective = around.objective
    theta = objective.point()
    members = groups(objective.model, objective.layout, options.norm).to(theta.device)
    left_alone = ignored(objective.model, objective.layout, options.ignore).to(theta.device)
    seed = around.seed if options.seed is None else options.seed
    if seed < 0:
        raise UsageError(f"a seed of {seed} is none", "seeds are 0 or above")
    words = [seed, around.plane, *([around.number] if around.number else [])]
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(state)
    found: list[Tensor] = []
    for _ in range(2 if count is None else count):
        drawn = torch.randn(len(theta), generator=generator, dtype=torch.float64).to(theta.device)
        drawn = drawn.masked_fill(left_alone, 0.0)
        for other in found:
            drawn = orthogonalised(drawn, other, members)
        found.append(drawn if options.norm == "none" else rescaled(drawn, theta.double(), members))
    return [Direction(f"random {i}, {LABELS[options.norm]}", d.to(theta), -1.0, 1.0) for i, d in enumerate(found, 1)]
