"""Eigenvectors of the Hessian: the largest, or the most negative."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from landscape.curvature.eigenpairs import Pairs, basis_room, bottom_of, find_extremes, top_of
from landscape.curvature.operator import CurvatureOperator
from landscape.errors import UsageError
from landscape.slices.directions.direction import Around, Direction

RTOL, TAU, MAX_PRODUCTS = 1e-3, 1e-6, 500


@dataclass(frozen=True)
class Options:
    """top, bottom: how many eigenvectors from that end. Without either, those of the largest eigenvalues."""

    top: int = 0
    bottom: int = 0


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """Unit eigenvectors, the largest eigenvalues' first, then the smallest ones'."""
    top, bottom = options.top, options.bottom
    if min(top, bottom) < 0:
        raise UsageError("numbers of eigenvectors cannot be negative", "such as hessian:top=1")
    if top == bottom == 0:
        top = 2 if count is None else count
    if top + bottom > 2:
        raise UsageError(f"{top + bottom} eigenvectors are asked for; a plane has two", "such as hessian:top=1")
    return list(_directions(around, top, bottom))


def _directions(around: Around, top: int, bottom: int) -> Iterator[Direction]:
    found = _stored(around, top, bottom) or _computed(around, top, bottom)
    for (end, wanted), pairs in zip((("largest", top), ("smallest", bottom)), found, strict=True):
        for i in range(wanted):
            value, residual = float(pairs.value[i]), float(pairs.residual[i])
            rank = f"{end} eigenvalue" if i == 0 else f"second {end} eigenvalue"
            if not pairs.converged[i]:
                around.notes.append(f"the eigenvector of the {rank} has not converged: {value:.4g} ± {residual:.1g}")
            yield Direction(f"{rank} {value:.4g} ± {residual:.1g}", pairs.vector[:, i].contiguous())


def _stored(around: Around, top: int, bottom: int) -> tuple[Pairs, Pairs] | None:
    """From an earlier result, if it has as many."""
    known = around.eigenvectors
    if known is None:
        return None
    theta, found = around.objective.point(), []
    for pairs, wanted in ((known.top, top), (known.bottom, bottom)):
        if pairs is None or len(pairs[0]) < wanted:
            if wanted:
                return None
            empty = torch.zeros(0)
            pairs = (empty, empty, theta.new_zeros(0, len(theta)))
        value, residual = pairs[0].numpy(), pairs[1].numpy()
        scale = float(abs(value).max()) if len(value) else 0.0
        close = residual <= (RTOL * abs(value)).clip(min=TAU * scale)
        found.append(Pairs(value, residual, close, pairs[2].to(theta).T))
    if not _are_eigenvectors(around, [*found]):
        return None
    around.notes.append("eigenvectors are taken from the stored spectrum")
    return found[0], found[1]


def _are_eigenvectors(around: Around, found: list[Pairs]) -> bool:
    """Whether one product each bears them out: the spectrum may be of another loss, subset or weight decay."""
    operator = CurvatureOperator(around.objective, memory=around.memory, expected_products=4)
    for pairs in found:
        if len(pairs.value):
            vectors = pairs.vector[:, :2].contiguous()
            value = torch.as_tensor(pairs.value[:2].copy()).to(vectors)
            residual = (operator(vectors) - value * vectors).norm(dim=0).double().cpu().numpy()
            if (residual > 2 * pairs.residual[:2] + RTOL * abs(pairs.value[:2])).any():
                return False
    return True


def _computed(around: Around, top: int, bottom: int) -> tuple[Pairs, Pairs]:
    objective = around.objective
    operator = CurvatureOperator(objective, memory=around.memory, expected_products=100)
    found = find_extremes(
        operator,
        top=max(1, top),
        bottom=max(1, bottom),
        rtol=RTOL,
        tau=TAU,
        noise=0.0,
        max_products=MAX_PRODUCTS,
        room=basis_room(operator, around.memory, 4),
        generator=torch.Generator().manual_seed(around.seed),
        towards=objective.value_and_gradient()[1],
    )
    return top_of(found), bottom_of(found)
