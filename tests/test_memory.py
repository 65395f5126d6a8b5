"""Amounts of memory, and what graphs are counted to keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landscape.errors import UsageError
from landscape.runtime.memory import DEFAULT_SHARE, SHARERS, count_saved, keep_budget, usable_bytes
from landscape.settings import parse_bytes

POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@given(
    st.integers(1, 4096), st.sampled_from(sorted(POWERS)), st.sampled_from(["", "b", "B"]), st.sampled_from(["", " "])
)
def test_amounts(number: int, unit: str, letter: str, space: str) -> None:
    for text in (unit, unit.upper(), unit.title()):
        assert parse_bytes(f"{space}{number}{space}{text}{letter}{space}") == number * POWERS[unit]


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,400}[kmgtib]*", fullmatch=True))
def test_anything_else_is_refused_or_positive(text: str) -> None:
    try:
        assert parse_bytes(text) > 0
    except UsageError as error:
        assert error.hint  # noqa: PT017


@pytest.mark.parametrize("text", ["", "0", "0GB", "-1GB", "0.4", "1.2.3GB", "5i", "5 PB", "9" * 400, "nan", "lots"])
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


def test_a_limit_counts_what_the_process_holds() -> None:
    cpu = torch.device("cpu")
    assert usable_bytes(cpu, 1) == 0
    assert 0 < usable_bytes(cpu, 10**15) < 10**15
    assert keep_budget(cpu, 10**18) == pytest.approx(0.1 * usable_bytes(cpu), rel=0.5)


@given(
    st.integers(1, 2**40), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9), st.integers(0, 2**41)
)
def test_memory_of_a_gpu_is_divided(
    total: int, taken: float, cached: float, used: float, sharers: int, limit: int
) -> None:
    """Workers that share a GPU never take more than their part of it together, nor more than there is; one alone takes
    a share of all that is free, and a limit is the user's word."""
    reserved = int(cached * (total - int(taken * total)))
    free, held = total - int(taken * total) - reserved, int(used * reserved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
        patch.setattr(torch.cuda, "memory_allocated", lambda device: held)
        patch.delenv(SHARERS, raising=False)
        cuda = torch.device("cuda")
        alone = usable_bytes(cuda)
        assert alone == int(DEFAULT_SHARE * (free + reserved - held))
        patch.setenv(SHARERS, str(sharers))
        assert 0 <= usable_bytes(cuda) <= min(alone, DEFAULT_SHARE * total / sharers)
        if held == 0 and free + reserved == total:
            assert usable_bytes(cuda) == int(DEFAULT_SHARE * total / sharers)
        assert usable_bytes(cuda, limit) == max(0, limit - held)
        patch.setenv(SHARERS, "many")
        assert usable_bytes(cuda) == alone


def test_saved_storages_count_once_and_ignored_ones_not() -> None:
    x, w = torch.randn(100), torch.randn(100, requires_grad=True)
    with count_saved((x, w)) as saved:
        y = (x * w).exp()  # saves its result, 400 bytes; x and w are ignored
        total = (y * y).sum() + (y * y[:50].sum()).sum()
    assert total.requires_grad
    assert 400 <= saved.total <= 500
