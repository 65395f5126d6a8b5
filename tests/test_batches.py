"""Cutting, drawing and fingerprinting batches: properties that hold for all sizes."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from landscape.errors import ProblemError
from landscape.problem.batches import (
    even_size,
    fingerprint,
    length_of,
    map_tensors,
    move,
    rechunk,
    share_of,
    split,
    subset,
)

Pair = namedtuple("Pair", "x y")
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=5)


def make(lengths: list[int]) -> list[dict[str, Tensor]]:
    """Batches whose samples are numbered through."""
    numbers = torch.arange(sum(lengths)).split(lengths)
    return [{"id": n, "x": torch.stack([n, -n], 1).double(), "constant": torch.tensor(3.0)} for n in numbers]


def ids(batches: list[Any]) -> list[int]:
    return [int(i) for b in batches for i in b["id"]]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 30))
def test_rechunk_keeps_every_sample_in_order(lengths: list[int], size: int) -> None:
    pieces = rechunk(make(lengths), size)
    assert ids(pieces) == list(range(sum(lengths)))
    assert max(length_of(p) for p in pieces) <= size
    for piece in pieces:
        assert torch.equal(piece["x"][:, 0], piece["id"].double())
        assert piece["constant"] == 3.0


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 120), st.integers(0, 5))
def test_subset_draws_without_replacement_and_the_same_again(lengths: list[int], samples: int, seed: int) -> None:
    batches = make(lengths)
    drawn = subset(batches, samples, seed)
    assert len(set(ids(drawn))) == len(ids(drawn)) == min(samples, sum(lengths))
    assert all(torch.equal(b["x"][:, 1], -b["id"].double()) for b in drawn)  # rows stay together
    assert fingerprint(drawn) == fingerprint(subset(batches, samples, seed))


def test_subset_is_nested_in_larger_ones_and_changes_with_the_seed() -> None:
    batches = make([20, 1, 30])
    assert set(ids(subset(batches, 10, 1))) < set(ids(subset(batches, 30, 1)))
    assert set(ids(subset(batches, 10, 1))) != set(ids(subset(batches, 10, 2)))


@settings(deadline=None)
@given(LENGTHS, st.data())
def test_fingerprint_sees_every_value(lengths: list[int], draw: st.DataObject) -> None:
    batches, changed = make(lengths), make(lengths)
    assert fingerprint(batches) == fingerprint(changed)
    batch = draw.draw(st.integers(0, len(lengths) - 1))
    row = draw.draw(st.integers(0, lengths[batch] - 1))
    changed[batch]["x"][row, 0] += 1e-9
    assert (fingerprint(batches) == fingerprint(changed)) == bool(torch.equal(batches[batch]["x"], changed[batch]["x"]))


def test_fingerprint_sees_shapes_and_types() -> None:
    x = torch.arange(6, dtype=torch.float32)
    variants = [x, x.reshape(2, 3), x.reshape(3, 2), x.double(), x.int(), x.view(torch.int32)]
    assert len({fingerprint([v]) for v in variants}) == len(variants)
    assert fingerprint([x.reshape(2, 3).T]) == fingerprint([x.reshape(2, 3).T.contiguous()])


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_even_size_is_near_and_leaves_no_crumbs(total: int, size: int) -> None:
    even = even_size(total, size)
    last = total - (total - 1) // even * even
    assert 1 <= even <= max(total, 1)
    assert even <= 2 * size
    assert even - last < -(-total // even)  # pieces differ by less than their number


def test_structures_survive() -> None:
    moved = move(
        {"pair": Pair(torch.ones(2), torch.tensor([1, 2])), "text": "a", "list": [torch.tensor([True])]},
        torch.device("cpu"),
        torch.float64,
    )
    assert isinstance(moved["pair"], Pair)
    assert (moved["pair"].x.dtype, moved["pair"].y.dtype) == (torch.float64, torch.int64)
    assert moved["text"] == "a"
    assert moved["list"][0].dtype == torch.bool
    assert map_tensors(None, lambda t: t) is None


def test_batches_without_a_common_axis_are_not_cut() -> None:
    odd = (torch.zeros(4, 2), torch.zeros(3))
    assert length_of(odd) == 0
    assert list(split(odd, 2)) == [odd]
    assert share_of([odd, odd], odd) == 0.5
    with pytest.raises(ProblemError, match="no common first"):
        subset([odd], 2, 0)
