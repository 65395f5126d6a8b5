"""Extreme eigenpairs, with a second look for copies that a single Krylov space cannot see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.errors import NumericalError
from landscape.linalg.lanczos import Extremes, lanczos_extremes
from landscape.linalg.probes import sphere
from landscape.runtime.memory import usable_bytes

# Products of the second look when there are no density probes to do its work.
SECOND_LOOK = 10
# Vectors whose inner products are this small are orthonormal enough to project with, twice.
NEARLY = 1e-5
# Basis rows that are worth going to the host's memory for.
COMFORTABLE = 100
# A block of b takes b^0.62 times as many products as single vectors (52/84/128 for 2/4/8 against 36, measured).
DETOUR = 0.62
# Length of the gradient that is mixed into a unit start vector.
MIXED_IN = 1.0


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs at one end, best first: value, residual, converged [k] and unit vectors [n, k]."""

    value: np.ndarray
    residual: np.ndarray
    converged: np.ndarray
    vector: Tensor

    def pick(self, index: np.ndarray) -> Pairs:
        """The pairs at `index`, in that order."""
        columns = torch.as_tensor(index, device=self.vector.device)
        return Pairs(self.value[index], self.residual[index], self.converged[index], self.vector[:, columns])

    def loosened(self, coupling: float, settings: Mapping[str, Any]) -> Pairs:
        """Pairs found in the complement of others, as pairs of the whole operator.

        Deflating by approximate eigenvectors V hides VᵀHv = (HV − VΘ)ᵀv, at most the norm of V's residuals.
        """
        residual = self.residual + coupling
        scale = float(np.max(np.abs(self.value), initial=0.0))
        allowed = np.maximum(settings["rtol"] * np.abs(self.value), settings["tau"] * scale)
        return Pairs(self.value, residual, self.converged & (residual <= allowed), self.vector)

    def joined(self, other: Pairs, sign: float, keep: int) -> Pairs:
        """Both sets, sorted by sign·value ascending, the first `keep` of them."""
        both = Pairs(
            np.concatenate([self.value, other.value]),
            np.concatenate([self.residual, other.residual]),
            np.concatenate([self.converged, other.converged]),
            torch.cat([self.vector, other.vector], dim=1),
        )
        return both.pick(np.argsort(sign * both.value, kind="stable")[:keep])


def top_of(found: Extremes) -> Pairs:
    """The largest pairs of a Lanczos run, descending."""
    return Pairs(found.top_value, found.top_residual, found.top_converged, found.top_vector)


def bottom_of(found: Extremes) -> Pairs:
    """The smallest pairs of a Lanczos run, ascending."""
    return Pairs(found.bottom_value, found.bottom_residual, found.bottom_converged, found.bottom_vector)


@dataclass(frozen=True)
class Room:
    """Rows that a Krylov basis may have, and how many of them the device holds."""

    max_basis: int
    on_device: int


def basis_room(operator: CurvatureOperator, memory: int | None, pairs: int, spare: int = 12) -> Room:
    """Room for a Krylov basis.

    What memory allows beside the vectors returned. Where a GPU has no room for a basis that works without restarts,
    the host's memory takes the rest of it.
    """
    row = operator.n * operator.dtype.itemsize
    working = 2 * pairs + spare  # the pairs' vectors, once joined for deflation, and temporaries
    on_device = max(2 * pairs + 8, int(usable_bytes(operator.device, memory) // row) - working)
    limit = on_device
    if operator.device.type == "cuda":
        wanted = COMFORTABLE + 4 * pairs
        limit = max(on_device, min(wanted, on_device + usable_bytes(torch.device("cpu")) // row))
    return Room(operator.agreed(limit), on_device)


def krylov_width(operator: CurvatureOperator, pairs: int) -> int:
    """Vectors a Lanczos step: more than one where a block's products are so cheap that its detour pays."""
    timed = dict(operator.plan.seconds_by_block)
    best = 1
    for width, seconds in timed.items():
        cost = width**DETOUR * seconds
        if width <= max(8, pairs) and cost < 0.8 * best**DETOUR * timed.get(best, float("nan")):
            best = width
    return operator.agreed(best)


def find_extremes(
    operator: CurvatureOperator,
    *,
    top: int,
    bottom: int,
    rtol: float,
    tau: float,
    noise: float,
    max_products: int,
    room: Room,
    generator: torch.Generator,
    least: int = 0,
    width: int = 1,
    towards: Tensor | None = None,
    deflate: Tensor | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Extremes:
    """`lanczos_extremes` from `width` random starts on the sphere; NaN in a product becomes a NumericalError.

    `towards` [n], the gradient, is mixed in with the same length: much of it lies in the leading eigenspaces
    (Gur-Ari, Roberts & Dyer 2018), which saves a tenth to a quarter of the products.
    """
    free = operator.n - (0 if deflate is None else deflate.shape[1])
    if max_products < 8 * width or free < 4 * width or room.max_basis < top + bottom + 3 * width:
        width = 1
    start = sphere(operator.n, width, generator=generator, dtype=operator.dtype, device=operator.device)
    if towards is not None and (length := float(torch.linalg.vector_norm(towards, dtype=torch.float64))) > 0:
        start[:, 0].add_(towards, alpha=MIXED_IN / length)
    try:
        return lanczos_extremes(
            operator,
            start,
            top=top,
            bottom=bottom,
            rtol=rtol,
            tau=tau,
            noise=noise,
            max_products=max_products,
            max_basis=room.max_basis,
            generator=generator,
            least=least,
            deflate=deflate,
            on_device=room.on_device,
            progress=progress,
        )
    except FloatingPointError as error:
        raise NumericalError(
            f"a curvature product is not finite: {error}",
            "try --precision float64; `landscape doctor` looks for the layer",
        ) from error


def orthonormal(*pairs: Pairs) -> Tensor | None:
    """Orthonormal basis [n, k] of all pairs' vectors; None if there are none."""
    vectors = [p.vector for p in pairs if p.vector.shape[1]]
    if not vectors:
        return None
    stacked = torch.cat(vectors, dim=1)
    gram = (stacked.T @ stacked).double().cpu()
    if float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()) < NEARLY:
        return stacked  # of one Lanczos run: QR would only cost memory
    basis: Tensor = torch.linalg.qr(stacked)[0]
    return basis


def missed(top: Pairs, bottom: Pairs, seen_min: float, seen_max: float) -> tuple[bool, bool]:
    """Whether Ritz values seen in the complement of the pairs belong among them: (at the top, at the bottom)."""
    above = len(top.value) > 0 and bool(top.converged.all()) and seen_max > top.value[-1] + top.residual[-1]
    below = len(bottom.value) > 0 and bool(bottom.converged.all()) and seen_min < bottom.value[-1] - bottom.residual[-1]
    return above, below


def complete(
    operator: CurvatureOperator,
    top: Pairs,
    bottom: Pairs,
    seen: tuple[float, float],
    budget: int,
    **settings: Any,
) -> tuple[Pairs, Pairs, int, bool]:
    """Add the copies that were missed, until a random start in the complement sees nothing that belongs.

    A multiple eigenvalue shows one copy per Krylov space, so each round finds one copy of each.

    Args:
        seen: extreme Ritz values (min, max) already seen in the complement of `top` and `bottom`.
        budget: products that may be spent.
        settings: rtol, tau, noise, room and generator of `find_extremes`.

    Returns:
        top, bottom, copies found, and whether the last look found nothing (False: the budget ran out first).
    """
    copies = 0
    while True:
        above, below = missed(top, bottom, *seen)
        if not (above or below):
            return top, bottom, copies, True
        deflate = orthonormal(top, bottom)
        free = operator.n - (0 if deflate is None else deflate.shape[1])
        wanted_top, wanted_bottom = len(top.value) if above else 1, len(bottom.value) if below else 1
        if budget < wanted_top + wanted_bottom + 3 or free < 1:
            return top, bottom, copies, free < 1
        spent = operator.products
        found = find_extremes(
            operator,
            top=wanted_top if above else 0,
            bottom=wanted_bottom if below else 0,
            max_products=budget,
            deflate=deflate,
            **settings,
        )
        budget -= operator.products - spent
        values = (top.value, bottom.value)
        coupling = float(np.linalg.norm(np.concatenate([top.residual, bottom.residual])))
        top = top.joined(top_of(found).loosened(coupling, settings), -1.0, len(top.value)) if above else top
        bottom = (
            bottom.joined(bottom_of(found).loosened(coupling, settings), 1.0, len(bottom.value)) if below else bottom
        )
        fresh = int(np.sum(~np.isin(top.value, values[0])) + np.sum(~np.isin(bottom.value, values[1])))
        if fresh == 0:
            return top, bottom, copies, True
        copies += fresh
        look, _, spent = second_look(operator, top, bottom, min(SECOND_LOOK, budget), **settings)
        seen, budget = look, budget - spent


def second_look(
    operator: CurvatureOperator, top: Pairs, bottom: Pairs, steps: int, **settings: Any
) -> tuple[tuple[float, float], tuple[float, float], int]:
    """Extreme Ritz values (min, max) of a few steps from a random start in the complement, how far out they may still
    move by their residuals, and products spent."""
    deflate = orthonormal(top, bottom)
    free = operator.n - (0 if deflate is None else deflate.shape[1])
    if free < 1 or steps < min(free, 5):
        everywhere = (-np.inf, np.inf) if free else (np.inf, -np.inf)
        return (np.inf, -np.inf), everywhere, 0
    spent = operator.products
    found = find_extremes(
        operator,
        top=1,
        bottom=1,
        max_products=steps,
        deflate=deflate,
        **settings,
    )
    low, high = float(found.ritz_values[0]), float(found.ritz_values[-1])
    reach = (low - float(found.bottom_residual[0]), high + float(found.top_residual[0]))
    return (low, high), reach, operator.products - spent
