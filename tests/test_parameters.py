"""Layout: tensors to vector and back; choosing names."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.problem.parameters import Layout, by_layer, select

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5)


@settings(deadline=None)
@given(SHAPES, st.lists(st.integers(1, 3), max_size=2))
def test_round_trip(shapes: list[list[int]], lead: list[int]) -> None:
    layout = Layout(tuple(f"p{i}" for i in range(len(shapes))), tuple(torch.Size(s) for s in shapes))
    vector = torch.arange(float(torch.Size(lead).numel() * layout.total)).reshape(*lead, layout.total)
    parts = layout.unflatten(vector)
    assert [tuple(p.shape) for p in parts] == [(*lead, *s) for s in shapes]
    assert torch.equal(torch.cat([p.reshape(*lead, -1 if p.numel() else 0) for p in parts], -1), vector)
    assert layout.offsets == tuple(sum(layout.sizes[:i]) for i in range(len(shapes)))
    if not lead:
        assert torch.equal(layout.flatten(parts), vector)


def test_patterns_and_layers() -> None:
    names = ("scale", "a.weight", "a.bias", "a.b.weight", "ab.weight")
    assert select(names, ["a"]) == ("a.weight", "a.bias", "a.b.weight")
    assert select(names, ["*.bias", "scale"]) == ("scale", "a.bias")
    assert by_layer(names)["a"] == ("a.weight", "a.bias")
    assert by_layer(names)["scale"] == ("scale",)
