"""Our algorithms under the calling conventions that peers' tests share: plain functions of a matvec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature.operator import CurvatureOperator
from landscape.linalg.lanczos import Extremes, lanczos, lanczos_extremes
from landscape.linalg.probes import gaussian, sphere
from landscape.linalg.quadrature import density, gauss, tridiagonalise
from landscape.linalg.trace import complement_quadratic_forms, xtrace
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem

Matvec = Callable[[Tensor], Tensor]


def columnwise(matvec: Matvec) -> Matvec:
    """A product of one vector as one of blocks [n, b]."""
    return lambda V: torch.stack([matvec(v) for v in V.T.contiguous()], dim=1) if V.dim() == 2 else matvec(V)


def operator_of(
    model: nn.Module,
    batches: list[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    kind: str = "hessian",
    names: tuple[str, ...] = (),
) -> CurvatureOperator:
    """Curvature of the mean over batches of `loss(model, batch)`, as peers weigh batches."""
    problem = Problem(model, list(batches), lambda m, batch: (loss(m, batch), 1))
    return CurvatureOperator(build_objective(problem, params=names), operator=kind)


def generator(seed: int | None) -> torch.Generator:
    """On the CPU; seeded from the global one where the caller gave no seed."""
    made = torch.Generator()
    made.manual_seed(int(torch.randint(2**31 - 1, ())) if seed is None else seed)
    return made


def extremes(
    matvec: Matvec, n: int, *, top: int, bottom: int, products: int, tolerance: float, seed: int | None,
    dtype: torch.dtype, device: torch.device,
) -> Extremes:  # fmt: skip
    """Both ends from one random start."""
    random = generator(seed)
    start = sphere(n, 1, generator=random, dtype=dtype, device=device)[:, 0]
    return lanczos_extremes(
        columnwise(matvec), start, top=top, bottom=bottom, rtol=tolerance, tau=0.0, noise=0.0,
        max_products=products, max_basis=products + top + bottom + 3, generator=random,
    )  # fmt: skip


def trace_samples(
    matvec: Matvec, n: int, count: int, *, sketch: int, signs: bool, seed: int | None, dtype: torch.dtype,
    device: torch.device,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Samples of the trace beyond a Krylov space of `sketch` dimensions, and the trace on it (0 and 0: Hutchinson)."""
    random, product = generator(seed), columnwise(matvec)
    if sketch:
        start = sphere(n, 1, generator=random, dtype=dtype, device=device)[:, 0]
        basis, projected, _, _ = lanczos(product, start, min(sketch, n), random)
    else:
        basis, projected = torch.zeros(n, 0, dtype=dtype, device=device), np.zeros((0, 0))
    if basis.shape[1] == n:
        return np.zeros(count), float(np.trace(projected))
    samples = []
    for _ in range(count):
        z = gaussian(n, 1, generator=random, dtype=dtype, device=device)
        z = z.sign() if signs and not sketch else z
        hz = product(z)
        if sketch:
            samples.append(complement_quadratic_forms(z, hz, lambda X: basis.double().T @ X.double(), projected)[0])
        else:
            samples.append(float((z.double() * hz.double()).sum()))
    return np.array(samples, dtype=np.float64), float(np.trace(projected))


def quadrature(
    matvec: Matvec, n: int, *, probes: int, steps: int, seed: int | None, dtype: torch.dtype, device: torch.device
) -> Any:
    """Gauss rules of random probes, one at a time."""
    random, rules = generator(seed), []
    for _ in range(probes):
        start = sphere(n, 1, generator=random, dtype=dtype, device=device)
        rules.append(gauss(tridiagonalise(columnwise(matvec), start, steps)))
    return rules


__all__ = ["columnwise", "density", "extremes", "generator", "operator_of", "quadrature", "trace_samples", "xtrace"]
