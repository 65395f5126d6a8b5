"""pytest plugin: hessian-eigenthings' tests of operators, eigenpairs, traces and densities, run on ours.

Their package is imported for what is not curvature (loss helpers, result classes); the functions and classes that
compute are replaced before any test imports them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.peer_suites import ours

FILES = (
    "tests/test_analytic_hessian.py", "tests/test_eigendecomp_on_hessian.py", "tests/test_ggn_operator.py",
    "tests/test_hessian_operator.py", "tests/test_lanczos_random_matrix.py", "tests/test_loss_fns.py",
    "tests/test_power_iteration_random_matrix.py", "tests/test_spectral_density.py", "tests/test_trace.py",
    "tests/test_large_n_memory.py", "tests/test_ggn_matvec.py", "tests/test_hessian_finite_difference.py",
)  # fmt: skip
# Part of a test's name -> why it asks for something that is not ours to give.
NOT_OURS = {
    "microbatch": "their guard of a setting of theirs",
    "full_dataset_false": "stochastic operators, refused here on purpose",
    "fisher": "the empirical Fisher is no curvature of the loss",
    "requires_hvp": "a setting of theirs",
    "hf_": "needs models from the net",
    "tlens": "needs models from the net",
    "finite_difference": "a way of theirs; ours are exact",
    "fd_": "a way of theirs; ours are exact",
    "unknown": "a setting of theirs",
    "rejects_unknown": "a setting of theirs",
    "max_iter_cannot_exceed": "a limit of theirs; Krylov spaces end by themselves",
    "steps_must_not_exceed": "a limit of theirs; Krylov spaces end by themselves",
    "fused": "kernels of theirs",
}


class _Operator:
    """Their interface over one of our operators."""

    def __init__(self, operator: Any) -> None:
        self.inner = operator
        self.size, self.device, self.dtype = operator.n, operator.device, operator.dtype

    def matvec(self, v: Tensor) -> Tensor:
        if v.shape != (self.size,):
            raise ValueError(f"expected shape ({self.size},), got {tuple(v.shape)}")
        return self.inner(v[:, None])[:, 0]

    rmatvec = __call__ = __matmul__ = matvec


def _names(model: nn.Module, param_filter: Any) -> tuple[str, ...]:
    return tuple(
        k for k, p in model.named_parameters() if p.requires_grad and (param_filter is None or param_filter(k, p))
    )


class HessianOperator(_Operator):
    def __init__(self, model: nn.Module, dataloader: Any, loss_fn: Any, param_filter: Any = None, **_: Any) -> None:
        super().__init__(ours.operator_of(model, list(dataloader), loss_fn, names=_names(model, param_filter)))


class GGNOperator(_Operator):
    def __init__(
        self,
        model: nn.Module,
        dataloader: Any,
        forward_fn: Any,
        loss_of_output_fn: Any,
        param_filter: Any = None,
        **_: Any,
    ) -> None:
        def loss(m: nn.Module, batch: Any) -> Tensor:
            return loss_of_output_fn(forward_fn(m, batch), batch)

        super().__init__(ours.operator_of(model, list(dataloader), loss, kind="ggn", names=_names(model, param_filter)))


def _check(k: int, n: int) -> None:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if k > n:
        raise ValueError(f"k={k} exceeds operator size {n}")


def lanczos(
    operator: Any, *, k: int = 10, max_iter: int | None = None, tol: float = 1e-4, which: str = "LM",
    seed: int | None = None, **_: Any,
) -> Any:  # fmt: skip
    """Ours finds both ends; theirs is asked for one of them or for the largest magnitudes."""
    from hessian_eigenthings.algorithms.result import EigenResult

    n = operator.size
    _check(k, n)
    top, bottom = (0 if which == "SA" else k), (0 if which == "LA" else k)
    found = ours.extremes(
        operator.matvec, n, top=min(top, n), bottom=min(bottom, n), products=n if max_iter is None else max_iter,
        tolerance=tol, seed=seed, dtype=operator.dtype, device=operator.device,
    )  # fmt: skip
    values = np.concatenate([found.top_value, found.bottom_value])
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1)
    residuals = np.concatenate([found.top_residual, found.bottom_residual])
    converged = np.concatenate([found.top_converged, found.bottom_converged])
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    order, taken = [], set()
    for i in np.argsort(key, kind="stable"):
        # an exhausted space lists a pair at both ends
        if not any(abs(float(vectors[:, i] @ vectors[:, j])) > 0.5 for j in taken):
            order.append(int(i))
            taken.add(int(i))
    order = order[:k]
    return EigenResult(
        torch.from_numpy(values[order]).to(operator.dtype), vectors[:, order].T.contiguous(),
        torch.from_numpy(residuals[order]).to(operator.dtype), found.products, torch.from_numpy(converged[order]),
    )  # fmt: skip


def deflated_power_iteration(
    operator: Any, *, k: int = 10, max_iter: int = 100, tol: float = 1e-4, seed: int | None = None, **_: Any
) -> Any:
    return lanczos(operator, k=k, max_iter=min(max_iter, operator.size), tol=tol, which="LM", seed=seed)


def power_iteration_one(
    operator: Any, *, max_iter: int = 100, tol: float = 1e-4, seed: int | None = None, **_: Any
) -> Any:
    found = lanczos(operator, k=1, max_iter=min(max_iter, operator.size), tol=tol, which="LM", seed=seed)
    first = float(found.eigenvalues[0]), found.eigenvectors[0], float(found.residuals[0])
    return (*first, found.iterations, bool(found.converged[0]))


def _traced(operator: Any, count: int, sketch: int, signs: bool, seed: int | None) -> Any:
    from hessian_eigenthings.algorithms.trace import TraceResult

    samples, known = ours.trace_samples(
        operator.matvec, operator.size, count, sketch=sketch, signs=signs, seed=seed, dtype=operator.dtype,
        device=operator.device,
    )  # fmt: skip
    error = float(samples.std(ddof=1) / len(samples) ** 0.5) if len(samples) > 1 else float("inf")
    return TraceResult(known + float(samples.mean()), error, torch.from_numpy(known + samples))


def hutchinson(
    operator: Any, *, num_samples: int = 100, distribution: str = "rademacher", seed: int | None = None, **_: Any
) -> Any:
    return _traced(operator, num_samples, 0, distribution == "rademacher", seed)


def hutch_plus_plus(operator: Any, *, num_matvecs: int = 99, seed: int | None = None, **_: Any) -> Any:
    """Ours takes the Krylov space for the sketch: two products of three go there."""
    return _traced(operator, max(num_matvecs // 3, 1), 2 * (num_matvecs // 3), False, seed)


def trace(operator: Any, *, num_matvecs: int = 100, method: str = "hutch++", seed: int | None = None, **_: Any) -> Any:
    if num_matvecs < 1:
        raise ValueError(f"num_matvecs must be >= 1, got {num_matvecs}")
    if method == "hutchinson":
        return hutchinson(operator, num_samples=num_matvecs, seed=seed)
    return hutch_plus_plus(operator, num_matvecs=num_matvecs, seed=seed)


def spectral_density(
    operator: Any, *, num_runs: int = 10, lanczos_steps: int = 80, num_grid_points: int = 10000,
    sigma: float | None = None, grid_padding: float = 0.1, seed: int | None = None, **_: Any,
) -> Any:  # fmt: skip
    from hessian_eigenthings.algorithms.spectral_density import SpectralDensityResult

    if num_runs < 1:
        raise ValueError(f"num_runs must be >= 1, got {num_runs}")
    rules = ours.quadrature(
        operator.matvec, operator.size, probes=num_runs, steps=lanczos_steps, seed=seed, dtype=operator.dtype,
        device=operator.device,
    )  # fmt: skip
    nodes = np.concatenate([rule.nodes for rule in rules])
    weights = np.concatenate([rule.weights for rule in rules])
    low, high = float(nodes.min()), float(nodes.max())
    width = sigma if sigma is not None else max((high - low) / 100, 1e-12)
    pad = max(grid_padding * (high - low), 5 * width)
    grid = np.linspace(low - pad, high + pad, num_grid_points)
    drawn = ours.density(nodes, weights, grid, width).mean(axis=0)
    return SpectralDensityResult(
        torch.from_numpy(grid), torch.from_numpy(drawn), torch.from_numpy(nodes), torch.from_numpy(weights), width
    )


def pytest_configure(config: pytest.Config) -> None:
    """Replace theirs before their tests are imported."""
    import hessian_eigenthings as theirs
    from hessian_eigenthings import algorithms, operators

    # the packages hold functions under the names of the modules that define them
    home = {name: sys.modules[f"hessian_eigenthings.algorithms.{name}"] for name in (
        "lanczos", "trace", "power_iteration", "spectral_density")}  # fmt: skip
    replaced = {
        "lanczos": (lanczos,), "trace": (hutchinson, hutch_plus_plus, trace),
        "power_iteration": (deflated_power_iteration, power_iteration_one), "spectral_density": (spectral_density,),
    }  # fmt: skip
    for name, functions in replaced.items():
        for function in functions:
            for place in (theirs, algorithms, home[name]):
                setattr(place, function.__name__, function)
    for kind in (HessianOperator, GGNOperator):
        for place in (theirs, operators):
            setattr(place, kind.__name__, kind)
