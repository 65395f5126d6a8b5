"""A bracket that a dense solution would close says what that costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from landscape import spectrum
from landscape.problem.problem import Problem
from landscape.spectra import exact


@pytest.fixture
def problem() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))
    x = torch.randn(90, 4)
    return Problem(model, (x, x.prod(1, keepdim=True)), "mse")


def test_a_bracket_names_the_price_of_the_count(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "wants_dense", lambda *_: False)
    found = spectrum(problem, probes=3, steps=20)
    truth = spectrum(problem, exact=True)
    low, high = int(found.negative_count_low[0]), int(found.negative_count_high[0])
    assert truth.negative_count_exact is not None
    assert low <= truth.negative_count_exact[0] <= high
    assert low < high
    assert found.spent is not None
    assert found.spent.notes[-1].startswith(f"between {low:,} and {high:,} eigenvalues are below -tau: --exact counts")
    assert not any("--exact" in note for note in spectrum(problem, exact=False, probes=3, steps=20).spent.notes)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("low", "high", "seconds", "words"),
    [(3, 3, 5.0, ""), (3, 9, None, ""), (3, 9000, 5.0, "9,000"), (0, 1, 600.0, "10 min"), (0, 1, 9000.0, "hours")],
)
def test_what_is_offered(low: int, high: int, seconds: float | None, words: str) -> None:
    counts = {"negative_count_low": np.array([low, 0]), "negative_count_high": np.array([high, 0])}
    said = exact.count_offer({"tau": np.array([1e-6, 1e-2]), **counts}, seconds, 1e-6)
    assert (words in said) if words else said == ""
