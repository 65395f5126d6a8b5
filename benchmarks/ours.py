"""This project, as a user of the library gets it cheapest; construction, planning and noise included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems import Case
from benchmarks.truth import Measure
from landscape import spectrum
from landscape.curvature.eigenpairs import basis_room, find_extremes, krylov_width
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.linalg.probes import sphere
from landscape.linalg.quadrature import gauss, tridiagonalise
from landscape.problem.graph import gradients
from landscape.problem.objective import Objective, build_objective


def extremes(case: Case, seed: int, *, top: int, bottom: int, rtol: float, expected: int) -> np.ndarray:
    """Eigenvalues with certified residuals: top descending, or bottom ascending."""
    objective = build_objective(case.problem(), device=case.device)
    operator = CurvatureOperator(objective, expected_products=expected)
    found = find_extremes(
        operator, top=top, bottom=bottom, rtol=rtol, tau=1e-6, noise=product_error(objective, "hessian", seed),
        max_products=1000, generator=torch.Generator().manual_seed(seed), width=krylov_width(operator, top + bottom),
        towards=objective.value_and_gradient()[1], room=basis_room(operator, None, top + bottom),
    )  # fmt: skip
    return np.r_[found.top_value, found.bottom_value]


def whole(case: Case, seed: int) -> np.ndarray:
    """`landscape.spectrum` as it is: ten eigenvalues at either end; density, trace and negative part besides."""
    found = spectrum(case.problem(), exact=False, seed=seed, device=case.device.type)
    return np.r_[found.top_value, found.bottom_value]


def density(case: Case, seed: int, *, probes: int, steps: int) -> Measure:
    """Quadrature, in blocks as wide as the operator plans."""
    operator = CurvatureOperator(build_objective(case.problem(), device=case.device), expected_products=probes * steps)
    generator = torch.Generator().manual_seed(seed)
    width = operator.width
    nodes, weights = [], []
    for start in range(0, probes, width):
        count = min(width, probes - start)
        starts = sphere(operator.n, count, generator=generator, dtype=operator.dtype, device=operator.device)
        rule = gauss(tridiagonalise(operator, starts, steps))
        nodes.append(rule.nodes.ravel())
        weights.append(rule.weights.ravel() / probes)
    return Measure(np.concatenate(nodes), np.concatenate(weights))


def operator_of(case: Case, expected: int = 640, **options: Any) -> tuple[CurvatureOperator, Objective]:
    """The operator of a long job, and the objective cut as it planned."""
    objective = build_objective(case.problem(), device=case.device)
    operator = CurvatureOperator(objective, expected_products=expected, **options)
    return operator, objective.with_chunks(operator.plan.chunk)


def gradient(objective: Objective) -> list[Tensor]:
    """One gradient over all data in the objective's chunks: the unit in which products are counted."""
    total = [torch.zeros_like(p) for p in objective.parameters]
    for batch in objective.batches:
        for t, g in zip(total, gradients(objective.batch_sum(batch)[0], objective.parameters), strict=True):
            t += g
    return total
