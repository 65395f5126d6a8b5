"""The peers, each as its documentation says, at the chunk size where it is fastest.

Each is imported where it is used, so that one that is not there costs its own rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.problems import Case
from benchmarks.truth import Measure

if TYPE_CHECKING:
    from curvlinops import HessianLinearOperator
    from hessian_eigenthings import HessianOperator
    from pyhessian import hessian

Product = Callable[[Tensor], Tensor]


def eigenthings(case: Case, chunk: int) -> HessianOperator:
    """`chunk` must divide the data: the tool averages the means of batches."""
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(case.copy(), case.batches(chunk), supervised_loss(nn.CrossEntropyLoss()))


def curvlinops(case: Case, chunk: int) -> HessianLinearOperator:
    """Without its check of determinism, which costs products."""
    from curvlinops import HessianLinearOperator

    model = case.copy()
    parameters = list(model.parameters())
    data = case.batches(chunk)
    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False, num_data=case.samples
    )


def pyhessian(case: Case) -> hessian:
    """One batch of all data: the only mode in which it keeps its graph."""
    from pyhessian import hessian

    return hessian(
        case.copy(), nn.CrossEntropyLoss(), data=(case.inputs, case.targets), cuda=case.device.type == "cuda"
    )


def eigenthings_extremes(case: Case, seed: int, *, chunk: int, k: int, which: str, steps: int) -> np.ndarray:
    from hessian_eigenthings import lanczos

    found = lanczos(eigenthings(case, chunk), k=k, max_iter=steps, which=which, seed=seed, reorthogonalize=True)
    return found.eigenvalues.double().cpu().numpy()


def curvlinops_extremes(case: Case, seed: int, *, chunk: int, k: int, which: str, tol: float, ncv: int) -> np.ndarray:
    operator = curvlinops(case, chunk).to_scipy()
    v0 = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)
    values = np.sort(eigsh(operator, k=k, which=which, tol=tol, ncv=ncv, v0=v0, return_eigenvectors=False))
    return values[::-1] if which == "LA" else values


def pyhessian_top(case: Case, seed: int, *, k: int, tol: float, iterations: int) -> np.ndarray:
    torch.manual_seed(seed)
    values, _ = pyhessian(case).eigenvalues(maxIter=iterations, tol=tol, top_n=k)
    return np.sort(np.array(values))[::-1]


def eigenthings_density(case: Case, seed: int, *, chunk: int, probes: int, steps: int) -> Measure:
    from hessian_eigenthings import spectral_density

    # the grid is only for drawing: as small as possible
    found = spectral_density(
        eigenthings(case, chunk), num_runs=probes, lanczos_steps=steps, num_grid_points=2, seed=100 * seed
    )
    node, weight = found.raw_eigenvalues.double().numpy().ravel(), found.raw_weights.double().numpy().ravel()
    return Measure(np.nan_to_num(node), weight / weight.sum())


def eigenthings_whole(
    case: Case, seed: int, *, chunk: int, steps: int, k: int = 10, probes: int = 8, density_steps: int = 80
) -> np.ndarray:
    """k eigenvalues at either end, top descending, then bottom ascending, and the density, on one operator."""
    from hessian_eigenthings import lanczos, spectral_density

    operator = eigenthings(case, chunk)
    ends = [
        lanczos(operator, k=k, max_iter=steps, which=which, seed=seed, reorthogonalize=True).eigenvalues
        for which in ("LA", "SA")
    ]
    spectral_density(operator, num_runs=probes, lanczos_steps=density_steps, num_grid_points=2, seed=100 * seed)
    return np.concatenate([end.double().cpu().numpy() for end in ends])


def curvlinops_density(
    case: Case, seed: int, *, chunk: int, probes: int, steps: int, ends: tuple[float, float]
) -> Measure:
    """The ends of the spectrum are given away for free: they cost it products otherwise."""
    from curvlinops.papyan2020traces.spectrum import LanczosApproximateSpectrumCached

    torch.manual_seed(seed)
    cached = LanczosApproximateSpectrumCached(curvlinops(case, chunk), steps, boundaries=ends)
    cached.approximate_spectrum(num_repeats=probes, num_points=2)
    rules = cached._get_lanczos_iters(probes)  # the nodes, computed above; there is no public way to them
    nodes = np.concatenate([values.double().numpy() for values, _ in rules])
    weights = np.concatenate([vectors[0].double().numpy() ** 2 for _, vectors in rules])
    return Measure(nodes, weights / weights.sum())


def pyhessian_density(case: Case, seed: int, *, probes: int, steps: int) -> Measure:
    torch.manual_seed(seed)
    nodes, weights = pyhessian(case).density(iter=steps, n_v=probes)
    return Measure(np.concatenate(nodes), np.concatenate(weights) / probes)


def eigenthings_product(case: Case, chunk: int) -> Product:
    return eigenthings(case, chunk).matvec


def curvlinops_product(case: Case, chunk: int) -> Product:
    operator = curvlinops(case, chunk)
    return lambda v: operator @ v


def pyhessian_product(case: Case) -> Product:
    from pyhessian.utils import hessian_vector_product

    tool = pyhessian(case)
    sizes = [p.numel() for p in tool.params]

    def product(v: Tensor) -> Tensor:
        parts = [x.reshape(p.shape) for x, p in zip(v.split(sizes), tool.params, strict=True)]
        return torch.cat([h.reshape(-1) for h in hessian_vector_product(tool.gradsH, tool.params, parts)])

    return product
