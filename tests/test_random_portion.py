"""The bar on a small fixed share of the random problems; `make coverage` does thousands of new ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from scipy.stats import binom

from coverage_run import examine

SEED, PROBLEMS = 2026, 8


@lru_cache(maxsize=1)
def records() -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [examine(SEED, index) for index in range(PROBLEMS)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
def test_certain_bounds_hold_on_random_problems() -> None:
    broken = [
        (SEED, record["problem"], record["kinds"], name, record["missed"][name])
        for record in records()
        for name, rate, missed, _ in record.get("checks", [])
        if rate == 0 and missed
    ]
    assert not broken, broken


@pytest.mark.filterwarnings("ignore")
def test_likely_bounds_hold_at_their_rate_on_random_problems() -> None:
    """More misses than a correct interval has once in ten thousand are a fault."""
    tally: dict[tuple[str, float], list[tuple[int, bool]]] = {}
    for record in records():
        for name, rate, missed, _ in record.get("checks", []):
            if rate > 0:
                tally.setdefault((name, rate), []).append((record["problem"], missed))
    for (name, rate), results in tally.items():
        wrong = [problem for problem, missed in results if missed]
        assert len(wrong) <= binom.ppf(1 - 1e-4, len(results), rate), (SEED, name, wrong)


@pytest.mark.filterwarnings("ignore")
def test_random_problems_end_in_a_result_or_in_a_reason() -> None:
    crashed = [(SEED, r["problem"], r["kinds"], r["crashed"]) for r in records() if "crashed" in r]
    assert not crashed, crashed
    assert sum("checks" in r for r in records()) >= PROBLEMS // 2
