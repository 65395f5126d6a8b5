"""Cutting, drawing and fingerprinting batches: properties that hold for all sizes."""

from __future__ import annotations

import copy
import weakref
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
    read_batches,
    rechunk,
    share_of,
    split,
    subset,
    tensors_of,
)
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem

Pair = namedtuple("Pair", "x y")


class Again(list[Any]):
    """Iterable again, and, as loaders are, new objects each time."""

    def __iter__(self) -> Any:
        return (copy.copy(batch) for batch in super().__iter__())


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


class Record:
    """As objects of data sets are: attributes, and whatever else."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    """Without a `__dict__`."""

    __slots__ = ("text", "x")

    def __init__(self, x: Any, text: Any) -> None:
        self.x, self.text = x, text


@dataclass
class Derived:
    """With a field that no argument sets."""

    x: Any
    y: Any = field(init=False, default=None)


leaves = st.sampled_from([None, 3, "text"]) | st.integers(1, 4).map(lambda n: torch.arange(float(n)))
nested = st.recursive(
    leaves,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), below, max_size=3)
        | st.builds(Pair, below, below)
        | st.dictionaries(st.sampled_from("abc"), below, max_size=3).map(lambda d: Record(**d))
        | st.builds(Slotted, below, below)
        | st.builds(Derived, below)
    ),
    max_leaves=8,
)


def as_lists(value: Any) -> Any:
    """Structure and numbers of a nested batch, to compare."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, value.tolist())
    if isinstance(value, dict):
        return {k: as_lists(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_lists(v) for v in value]
    if isinstance(value, Slotted):
        return ("Slotted", as_lists(value.x), as_lists(value.text))
    return (type(value).__name__, as_lists(vars(value))) if hasattr(value, "__dict__") else value


@settings(deadline=None)
@given(nested)
def test_tensors_are_found_and_moved_wherever_they_are(batch: Any) -> None:
    before = as_lists(batch)
    there = move(batch, torch.device("cpu"), torch.float64)
    assert all(t.dtype == torch.float64 for t in tensors_of(there))
    assert len(tensors_of(there)) == len(tensors_of(batch)) == repr(before).count("'tensor'")
    assert repr(as_lists(there)).replace("float64", "float32") == repr(before)
    assert as_lists(batch) == before  # left alone


def test_objects_that_lead_back_to_themselves_and_modules_are_left_alone() -> None:
    child = Record(x=torch.ones(2))
    parent = Record(child=child, network=torch.nn.Linear(2, 1), y=torch.ones(2))
    child.parent = parent
    assert len(tensors_of(parent)) == 2
    assert move(parent, torch.device("cpu"), torch.float64).child.x.dtype == torch.float64
    assert (child.x.dtype, parent.child) == (torch.float32, child)


def test_objects_are_batches() -> None:
    x, y = torch.randn(9, 2), torch.randint(2, (9,))
    network = torch.nn.Linear(2, 2)

    def loss(model: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(batch.x), batch.y, reduction="sum"), len(batch.y)

    truth = build_objective(Problem(network, (x, y), "cross_entropy"), dtype=torch.float64).value()
    for batch in (Record(x=x, y=y), Record(x=x, y=y, around=Record(z=x))):
        found = build_objective(Problem(network, [batch], loss), dtype=torch.float64)
        assert float(found.value()) == pytest.approx(float(truth), rel=1e-12)


ARRAYS = (np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([ARRAYS], "the batches hold NumPy arrays"),
        ([{"x": ARRAYS[0]}], "the batches hold NumPy arrays"),
        (ARRAYS, "the data are NumPy arrays"),
        ([0, 1], "holds no tensor: it is 0"),
        ([None], "holds no tensor: it is None"),
        ([(torch.ones(2), torch.ones(2)), None], "holds no tensor: it is None"),
        (Again([Record(path="a.png")]), "holds no tensor: it is a Record"),
        ([], "the data set is empty"),
    ],
)
def test_what_holds_no_tensor_is_called_what_it_is(data: Any, words: str) -> None:
    with pytest.raises(ProblemError, match=words) as refused:
        read_batches(Problem(torch.nn.Linear(2, 2), data, lambda m, b: (m(b[0]).sum(), 1)))
    if "data = [torch" in (refused.value.hint or ""):
        made = eval(refused.value.hint.partition(" = ")[2], {"torch": torch, "data": data})  # type: ignore[union-attr]
        assert tensors_of(read_batches(Problem(torch.nn.Linear(2, 2), made, lambda m, b: (m(b[0]).sum(), 1))))


class Graph:
    """As PyTorch Geometric's Data: its tensors are kept by a part that knows it by a weak reference."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.stores = [Record(values=values, parent=weakref.ref(self))]

    def __copy__(self) -> Graph:
        return Graph(dict(self.stores[0].values))

    def apply(self, function: Any) -> Graph:
        values = self.stores[0].values
        values.update({k: function(v) for k, v in values.items()})  # whatever it is
        return self


def test_graphs_move_by_what_they_offer() -> None:
    graph = Graph({"x": torch.ones(3), "name": "a"})
    assert len(tensors_of(graph)) == 1
    there = move(graph, torch.device("cpu"), torch.float64)
    assert there.stores[0].values["x"].dtype == torch.float64
    assert there.stores[0].parent() is there
    assert graph.stores[0].values["x"].dtype == torch.float32
