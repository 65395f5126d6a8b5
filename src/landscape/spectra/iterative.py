"""The matrix-free spectrum: extremes first, then probes of what they leave, then the numbers made of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.eigenpairs import (
    MIXED_IN,
    SECOND_LOOK,
    Pairs,
    basis_room,
    bottom_of,
    complete,
    find_extremes,
    krylov_width,
    orthonormal,
    second_look,
    top_of,
)
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.linalg.exclusion import exclusion_bound
from landscape.linalg.lanczos import Extremes
from landscape.problem.objective import Objective
from landscape.runtime.progress import Progress
from landscape.spectra.completeness import BLIND, complete_ranks, reach_of
from landscape.spectra.density import Measure, brackets, density_of
from landscape.spectra.exact import vector_fields
from landscape.spectra.negative import Known, negative_bracketed
from landscape.spectra.probing import FEWEST_PROBES, Probing, probe, trace_interval
from landscape.spectra.settings import SpectrumSettings

# The probability of the exclusion statement.
MISS_PROBABILITY = 1e-3
# Products for the extremes when the user sets no limit.
MOST_EXTREME_PRODUCTS = 1000
TRACE_PROBES = 8


def iterative_fields(
    objective: Objective,
    operator: CurvatureOperator,
    settings: SpectrumSettings,
    tell: Progress,
    gradient: Tensor,
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """All spectral fields of `results.Spectrum`, sentences about limits that were hit, and how the Krylov basis was
    held; gradient: ∇L [n]."""
    generator = torch.Generator().manual_seed(settings.seed)
    noise = product_error(objective, settings.operator, settings.seed, operator.plan.chunk, operator.uncounted)
    probes, steps, for_extremes, notes = _shares(settings, operator.n)
    ends = (max(settings.top, 1), max(settings.bottom, 1))
    width = krylov_width(operator, sum(ends))
    foreseen = Foreseen(settings.extreme_products, probes * max(steps, 1))
    common: dict[str, Any] = {
        "rtol": settings.rtol,
        "tau": settings.tau,
        "noise": noise,
        "generator": generator,
        "room": (room := basis_room(operator, settings.memory, sum(ends))),
    }
    found = find_extremes(
        operator,
        top=ends[0],
        bottom=ends[1],
        max_products=for_extremes,
        width=width,
        towards=gradient,
        progress=lambda products, done, wanted: tell(f"eigenpairs ({done} of {wanted})", *foreseen.first(products)),
        **common,
    )
    top, bottom = top_of(found), bottom_of(found)
    taken = _converged(top, bottom, found, settings) if steps else None
    deflated = orthonormal(*taken) if taken else None
    probing = probe(
        operator,
        deflated,
        found,
        probes=probes,
        steps=steps,
        generator=generator,
        progress=lambda done, total: tell("density" if steps else "trace", *foreseen.second(done)),
    )
    budget = for_extremes - found.products
    trace = trace_interval(operator, found, probing.samples, noise=noise, budget=budget, generator=generator)
    known = _known(found, bottom, taken or (), operator.n)
    found = replace(found, project=_no_basis)  # frees the Krylov basis
    del deflated, taken
    top, bottom, listed, more = _second_look(operator, found, top, bottom, probing, for_extremes, common)
    notes += more
    basis = {
        "krylov_rows": room.max_basis if found.restarts else found.basis_size,
        "krylov_width": width,
        "restarts": found.restarts,
    }
    fields = _fields(settings, operator, found, (top, bottom), probing, known, trace, noise)
    for end, sure in zip(("top", "bottom"), listed, strict=True):
        fields[f"{end}_complete"] = sure[: len(fields[f"{end}_value"])]
    return fields, notes, basis


@dataclass(frozen=True)
class Foreseen:
    """How far the whole is, in products: those of the extremes are a guess, those of the probes are known."""

    extremes: int
    probes: int

    def first(self, products: int) -> tuple[int, int]:
        """(done, total) while the extremes are sought; an underestimate grows as it is found out."""
        return products, max(self.extremes, products + products // 8) + self.probes

    def second(self, products: int) -> tuple[int, int]:
        """(done, total) while the probes run."""
        return self.extremes + products, self.extremes + self.probes


def _no_basis(vectors: Tensor) -> Tensor:
    raise RuntimeError("the Krylov basis has been freed")


def _shares(settings: SpectrumSettings, n: int) -> tuple[int, int, int, list[str]]:
    """How a limit on products is shared: (probes, steps, products for the extremes, notes)."""
    probes, steps = (settings.probes, min(settings.steps, n)) if settings.density else (TRACE_PROBES, 0)
    if settings.max_products is None:
        return probes, steps, MOST_EXTREME_PRODUCTS, []
    limit = settings.max_products
    notes: list[str] = []
    cost = probes * max(steps, 1)
    if cost > limit // 2:
        steps = max(2, limit // 2 // probes) if steps else 0
        if probes * max(steps, 1) > limit // 2:
            probes = max(FEWEST_PROBES, limit // 2 // max(steps, 1))
        cost = probes * max(steps, 1)
        notes.append(f"--max-products {limit}: the density has {probes} probes of {max(steps, 1)} steps")
    return probes, steps, max(2, limit - cost), notes


def _converged(top: Pairs, bottom: Pairs, found: Extremes, settings: SpectrumSettings) -> tuple[Pairs, Pairs]:
    """The pairs to deflate: converged ones, each once, and none at an end that was not asked for."""
    if settings.top == 0:
        top = top.pick(np.arange(0))
    if settings.bottom == 0:
        bottom = bottom.pick(np.arange(0))
    if found.exhausted:  # the two lists may then overlap; everything is known anyway
        top = top.pick(np.flatnonzero(top.converged))
        lowest_top = top.value.min() if len(top.value) else np.inf
        keep = np.flatnonzero(bottom.converged & (bottom.value < lowest_top))
        return top, bottom.pick(keep)
    return top.pick(np.flatnonzero(top.converged)), bottom.pick(np.flatnonzero(bottom.converged))


def _known(found: Extremes, bottom: Pairs, deflated: Sequence[Pairs], n: int) -> Known:
    value = np.concatenate([np.zeros(0), *(p.value for p in deflated)])
    residual = np.concatenate([np.zeros(0), *(p.residual for p in deflated)])
    edge = float(found.ritz_values[0])
    if len(bottom.value):
        edge -= float(bottom.residual[0])
    return Known(value, residual, found.ritz_values, edge, n)


def _second_look(
    operator: CurvatureOperator,
    found: Extremes,
    top: Pairs,
    bottom: Pairs,
    probing: Probing,
    budget: int,
    common: dict[str, Any],
) -> tuple[Pairs, Pairs, tuple[np.ndarray, np.ndarray], list[str]]:
    """Copies of multiple eigenvalues, which one Krylov space cannot show; the probes have looked already. With them,
    which ranks of either list are complete, and notes."""
    if found.exhausted:
        return top, bottom, (np.ones(len(top.value), bool), np.ones(len(bottom.value), bool)), []
    left = budget - found.products
    seen = probing.seen
    reach = BLIND if probing.tridiagonals is None else reach_of(probing.tridiagonals)
    if probing.quadrature is None:
        seen, reach, spent = second_look(operator, top, bottom, min(SECOND_LOOK, left), **common)
        left -= spent
    top, bottom, copies, settled = complete(operator, top, bottom, seen, left, **common)
    *listed, notes = complete_ranks(top, bottom, reach)
    if copies:
        notes.append(f"{copies} further copies of multiple eigenvalues were found from fresh random starts")
    if not settled:
        notes.append("copies of multiple eigenvalues may be missing: raise --max-products")
    return top, bottom, (listed[0], listed[1]), notes


def _fields(
    settings: SpectrumSettings,
    operator: CurvatureOperator,
    found: Extremes,
    pairs: tuple[Pairs, Pairs],
    probing: Probing,
    known: Known,
    trace: tuple[float, float, float],
    noise: float,
) -> dict[str, Any]:
    top, bottom = (
        p.pick(np.arange(min(k, len(p.value)))) for p, k in zip(pairs, (settings.top, settings.bottom), strict=True)
    )
    scale = float(np.max(np.abs(found.ritz_values)))
    below = exclusion_bound(
        found.unrestarted_steps,
        operator.n,
        found.unrestarted_min,
        found.unrestarted_max,
        MISS_PROBABILITY,
        MIXED_IN,
    )
    fields: dict[str, Any] = {
        "exact": False,
        "product_error": noise,
        "top_value": top.value,
        "top_residual": top.residual,
        "top_converged": top.converged,
        "bottom_value": bottom.value,
        "bottom_residual": bottom.residual,
        "bottom_converged": bottom.converged,
        "trace": trace[0],
        "trace_low": trace[1],
        "trace_high": trace[2],
        "excluded_below": below - noise,
        "excluded_probability": MISS_PROBABILITY,
        **vars(negative_bracketed(known, probing, scale, noise, settings.tau)),
    }
    if settings.density:
        ends = _ends(found, pairs, probing)
        floor = float(fields["tau_absolute"][0])
        fields.update(_density_fields(operator.n, probing, known, (top, bottom), ends, (noise, floor), settings))
    if settings.vectors:
        fields.update(vector_fields(operator, top.vector, bottom.vector))
    return fields


def _ends(found: Extremes, pairs: tuple[Pairs, Pairs], probing: Probing) -> tuple[float, float]:
    """Between which all eigenvalues lie: the outermost pairs with their residuals, and what the probes have seen."""
    top, bottom = pairs
    low = [found.ritz_values[0], probing.seen[0], *(bottom.value - bottom.residual)[:1]]
    high = [found.ritz_values[-1], probing.seen[1], *(top.value + top.residual)[:1]]
    return float(min(low)), float(max(high))


def _density_fields(
    n: int,
    probing: Probing,
    known: Known,
    listed: tuple[Pairs, Pairs],
    ends: tuple[float, float],
    errors: tuple[float, float],
    settings: SpectrumSettings,
) -> dict[str, Any]:
    """The density and all that it is made of. `errors`: of the products, and the floor below which λ counts as zero."""
    order = np.argsort(known.value, kind="stable")
    exact, exact_residual = known.value[order], known.residual[order]
    rule, nothing = probing.quadrature, np.zeros((0, 0))
    node, weight, residual = (
        (nothing,) * 3 if rule is None else (rule.nodes, rule.weights * (probing.free / n), rule.residuals)
    )
    bracket = brackets(node, weight, residual, _ends_of_rest(ends, probing.seen, exact, exact_residual))
    measure = Measure(node, weight, *bracket, residual, exact, exact_residual, ends, n, errors[0])
    top, bottom = listed
    marked = _marks(np.concatenate([top.value, bottom.value]), known.value)
    fields = {
        **vars(density_of(measure, errors[1], settings.density_width)),
        "deflated": marked[: len(top.value)],
        "deflated_bottom": marked[len(top.value) :],
        "deflated_value": exact,
        "deflated_residual": exact_residual,
    }
    if rule is not None:
        fields |= {"node": node, "weight": weight, "node_residual": residual}
        fields |= {"node_low": bracket[0], "node_high": bracket[1]}
    return fields


def _ends_of_rest(
    ends: tuple[float, float], seen: tuple[float, float], exact: np.ndarray, residual: np.ndarray
) -> tuple[float, float]:
    """Ends of what the probes see: up to the pairs taken out next to it."""
    above, below = exact >= seen[1], exact <= seen[0]
    high = float((exact + residual)[above].min(initial=ends[1]))
    return float((exact - residual)[below].max(initial=ends[0])), high


def _marks(listed: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Which of the listed values were taken out, each once: a copy found later is equal to the last bit, perhaps."""
    left = taken.tolist()
    marks = np.zeros(len(listed), dtype=bool)
    for i, value in enumerate(listed.tolist()):
        if value in left:
            left.remove(value)
            marks[i] = True
    return marks
