"""The exclusion bound: closed forms, and its probability by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.linalg.exclusion import exclusion_bound
from landscape.linalg.lanczos import lanczos


def test_closed_form() -> None:
    epsilon = (math.log(1.648 * 1000 / 5e-4) / 199) ** 2
    expected = -1 - epsilon * 11 / (1 - 2 * epsilon)
    assert exclusion_bound(100, 10**6, -1.0, 10.0, 1e-3) == pytest.approx(expected, rel=1e-12)


def test_nothing_is_excluded_by_few_steps_and_everything_by_all() -> None:
    assert math.isnan(exclusion_bound(5, 10**6, -1.0, 10.0, 1e-3))
    assert exclusion_bound(50, 50, -1.0, 10.0, 1e-3) == -1.0


@pytest.mark.slow
@pytest.mark.parametrize("mixed_in", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("steps", [20])
def test_misses_no_more_often_than_it_says(steps: int, mixed_in: float) -> None:
    """One eigenvalue far below a bulk: hard for Lanczos if the start has little of it, and what is mixed in nothing."""
    n, probability, runs = 400, 0.2, 300
    values = torch.cat([torch.linspace(-0.2, 1, n - 1), torch.tensor([-0.23])]).double()
    generator = torch.Generator().manual_seed(0)
    other = torch.nn.functional.normalize(torch.randn(n - 1, generator=generator, dtype=torch.float64), dim=0)
    other = mixed_in * torch.cat([other, torch.zeros(1, dtype=torch.float64)])
    missed = excluded = 0
    for _ in range(runs):
        start = torch.nn.functional.normalize(torch.randn(n, generator=generator, dtype=torch.float64), dim=0)
        _, t, _, _ = lanczos(lambda v: values[:, None] * v, start + other, steps)
        ritz = np.linalg.eigvalsh(t)
        bound = exclusion_bound(steps, n, ritz[0], ritz[-1], probability, mixed_in)
        excluded += not math.isnan(bound)
        missed += bound > -0.23
    assert excluded == runs
    assert missed <= probability * runs
