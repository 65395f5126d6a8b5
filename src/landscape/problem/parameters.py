"""Named parameter tensors <-> one flat vector: the layout, selection by pattern, grouping by layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import Tensor, nn

from landscape.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """Order, shapes and places of parameter tensors within a flat vector of `total` entries."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(s.numel() for s in self.shapes)

    @property
    def total(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor in the flat vector."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors in the layout's order as one vector [total]."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def unflatten(self, vector: Tensor) -> tuple[Tensor, ...]:
        """A vector [..., total] as views of shapes [..., *shape]; nothing is copied for a contiguous vector."""
        lead = vector.shape[:-1]
        parts = torch.split(vector, list(self.sizes), dim=-1)
        return tuple(p.reshape((*lead, *s)) for p, s in zip(parts, self.shapes, strict=True))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, tied ones once under their first name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def without_memory(model: nn.Module) -> tuple[str, str] | None:
    """What is wrong with a model that has tensors without numbers, and what to do; None where all have some."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            return (
                f"the model's tensor {name!r} has no memory yet (a lazy module, or the meta device)",
                "call the model once on a sample, and build it on the CPU, before you make a Problem of it",
            )
    return None


def layout_of(parameters: Mapping[str, Tensor]) -> Layout:
    """The layout of named tensors in their own order."""
    return Layout(tuple(parameters), tuple(p.shape for p in parameters.values()))


def spellings(model: nn.Module) -> dict[str, str]:
    """Every name of a trainable parameter, tied ones under all of theirs, and the first name of each."""
    first = {id(p): name for name, p in trainable(model).items()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if id(p) in first}


def select(names: Mapping[str, str], patterns: Sequence[str]) -> tuple[str, ...]:
    """First names of the parameters that match any of the glob patterns; a module's name stands for all its parameters.

    Args:
        names: all names of each parameter -> its first, as `spellings` gives them.
        patterns: globs, of any of the names.

    Raises:
        UsageError: a pattern matches nothing; the hint names the nearest parameters.
    """
    first = tuple(dict.fromkeys(names.values()))
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {f for n, f in names.items() if fnmatchcase(n, pattern) or fnmatchcase(n, pattern.rstrip(".") + ".*")}
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or first[:5]
            raise UsageError(
                f"--params {pattern!r} matches none of the {len(first)} trainable parameter tensors",
                f"names here look like {', '.join(near)}",
            )
        chosen |= hits
    return tuple(n for n in first if n in chosen)


def by_layer(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parameter names grouped by the module that owns them, in order; top-level parameters stand alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = name.rpartition(".")[0] or name
        groups.setdefault(layer, []).append(name)
    return {layer: tuple(members) for layer, members in groups.items()}
