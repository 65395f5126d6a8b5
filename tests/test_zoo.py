"""Each animal of the model zoo through some of the analyses; `python tests/zoo_checked.py` takes all through each."""

from __future__ import annotations

import pytest

from landscape.errors import ProblemError
from landscape.widening.run import widen
from zoo_checked import WAYS, checked
from zoo_of_models import ZOO, build

# The cheap ways more often; which animal meets which is fixed.
TURNS = ("exact", "slice", "exact", "kept", "descend", "slice", "exact", "ggn", "exact", "slice", "recompute", "escape")


@pytest.mark.parametrize(("name", "way"), [(name, TURNS[i % len(TURNS)]) for i, name in enumerate(ZOO)])
def test_right_or_refused_by_name(name: str, way: str) -> None:
    checked(name, way)


@pytest.mark.parametrize(("name", "way"), [("slices assigned", "linearize"), ("diffusion", "linearize")])
def test_the_slow_ways(name: str, way: str) -> None:
    """`F.mse_loss` under `linearize` would end the process."""
    checked(name, way)


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 100
    assert set(TURNS) < set(WAYS)


@pytest.mark.parametrize("name", ["function once", "function wrong", "straight through", "weight norm"])
def test_certificates_are_not_made_of_wrong_derivatives(name: str) -> None:
    """`escape`, `descend` and `widen` hold them to differences, as `spectrum` does."""
    for way in ("escape", "descend"):
        assert checked(name, way).startswith("refused")
    problem = build(name).problem
    with pytest.raises(ProblemError):
        widen(problem, "0" if name == "weight norm" else "a", following="2" if name == "weight norm" else "h")
