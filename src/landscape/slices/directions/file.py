"""Directions from a file of named tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.settings import suggestion
from landscape.slices.directions.direction import Around, Direction


@dataclass(frozen=True)
class Options:
    """path: of the file, HDF5 or `.pt`. Parameters that it does not name stay as they are."""

    path: str


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """The file's directions as they are, at most `count` of them."""
    layout, theta = around.objective.layout, around.objective.point()
    found = []
    if options.path not in around.tensors:
        raise UsageError(f"no tensors of {options.path!r} are given", "beside=Beside(tensors={path: [...]}) in Python")
    for number, tensors in enumerate(around.tensors[options.path][:count], 1):
        for name, tensor in tensors.items():
            if name not in layout.names:
                raise UsageError(
                    f"{options.path} has a direction for {name!r}, which is no parameter of this model",
                    suggestion(name, layout.names),
                )
            if tensor.is_complex() or not bool(torch.isfinite(tensor.double()).all()):
                raise UsageError(
                    f"{options.path}: {name} holds complex numbers, NaN or Inf", "a direction has finite real entries"
                )
            shape = layout.shapes[layout.names.index(name)]
            if tensor.shape not in (shape, (shape.numel(),)):
                raise UsageError(
                    f"{options.path}: {name} has shape {tuple(tensor.shape)}, the model's {tuple(shape)}",
                    "the file belongs to another architecture",
                )
        pieces: list[Tensor] = [
            tensors[name].to(theta).reshape(shape) if name in tensors else theta.new_zeros(shape)
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        ]
        found.append(Direction(f"{options.path}, direction {number}", layout.flatten(pieces), -1.0, 1.0))
    return found
