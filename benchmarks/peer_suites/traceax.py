"""pytest plugin: traceax's tests of trace estimators on symmetric operators, run on ours.

lineax operators become products of torch tensors by way of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.peer_suites import ours

PATHS = ("src", "")
FILES = ("tests",)
NOT_OURS = {
    "None": "not symmetric", "tags3": "triangular",
    "tags4": "triangular", "tags5": "not symmetric", "tags6": "not symmetric",
    "estimator3": "XNysTrace, which we do not have",
}  # fmt: skip


class _Estimator:
    """Their call: estimate(key, operator, k) -> (trace, details), with k products."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def estimate(self, key: Any, operator: Any, k: int) -> tuple[Any, dict[str, Any]]:
        import jax
        import jax.numpy as jnp

        structure = operator.in_structure()
        dtype = {4: torch.float32, 8: torch.float64}[np.dtype(structure.dtype).itemsize]
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))

        def matvec(v: Tensor) -> Tensor:
            return torch.from_numpy(np.array(operator.mv(jnp.asarray(v.numpy(), dtype=structure.dtype))))

        value = self.trace(matvec, structure.shape[0], k, seed, dtype)
        return jnp.asarray(value, dtype=structure.dtype), {}

    def trace(self, matvec: ours.Matvec, n: int, k: int, seed: int, dtype: torch.dtype) -> float:
        raise NotImplementedError


class HutchinsonEstimator(_Estimator):
    def trace(self, matvec: ours.Matvec, n: int, k: int, seed: int, dtype: torch.dtype) -> float:
        cpu = torch.device("cpu")
        samples, _ = ours.trace_samples(matvec, n, k, sketch=0, signs=True, seed=seed, dtype=dtype, device=cpu)
        return float(samples.mean())


class HutchPlusPlusEstimator(_Estimator):
    def trace(self, matvec: ours.Matvec, n: int, k: int, seed: int, dtype: torch.dtype) -> float:
        third, cpu = max(k // 3, 1), torch.device("cpu")
        samples, known = ours.trace_samples(
            matvec, n, third, sketch=2 * third, signs=False, seed=seed, dtype=dtype, device=cpu
        )
        return known + float(samples.mean())


class XTraceEstimator(_Estimator):
    def trace(self, matvec: ours.Matvec, n: int, k: int, seed: int, dtype: torch.dtype) -> float:
        random, cpu = ours.generator(seed), torch.device("cpu")
        return ours.xtrace(ours.columnwise(matvec), n, max(k, 4), random, dtype, cpu)[0]


def pytest_configure(config: pytest.Config) -> None:
    """Replace theirs before their tests are imported."""
    import traceax as theirs

    for kind in (HutchinsonEstimator, HutchPlusPlusEstimator, XTraceEstimator):
        setattr(theirs, kind.__name__, kind)
