"""Layout: tensors to vector and back; choosing names."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape.problem.parameters import Layout, by_layer, select, spellings, trainable

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
    names = {n: n for n in ("scale", "a.weight", "a.bias", "a.b.weight", "ab.weight")}
    assert select(names, ["a"]) == ("a.weight", "a.bias", "a.b.weight")
    assert select(names, ["*.bias", "scale"]) == ("scale", "a.bias")
    assert by_layer(names)["a"] == ("a.weight", "a.bias")
    assert by_layer(names)["scale"] == ("scale",)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_tied_parameters_are_chosen_by_any_of_their_names(seed: int) -> None:
    """Random networks with random ties; which tensors a pattern means does not depend on who comes first."""
    rng = random.Random(seed)
    model = nn.ModuleDict({n: nn.Linear(2, 2, bias=rng.random() < 0.5) for n in rng.sample("abcdef", 4)})
    keys = list(model)
    for _ in range(2):
        one, other = rng.sample(keys, 2)
        model[one].weight = model[other].weight
    model[rng.choice(keys)].weight.requires_grad_(rng.random() < 0.8)
    for key in keys:
        pattern = rng.choice([f"{key}.weight", f"{key}.*", key])
        meant = {p for n, p in model.named_parameters(remove_duplicate=False) if fnmatchcase(n, f"{key}.*")}
        meant = {p for p in meant if p.requires_grad and (p.dim() == 2 or not pattern.endswith("weight"))}
        if meant:
            assert {trainable(model)[n] for n in select(spellings(model), [pattern])} == meant
    every = select(spellings(model), ["*"])
    assert every == tuple(trainable(model))
