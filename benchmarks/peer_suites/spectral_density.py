"""pytest plugin: google/spectral-density's JAX tests (2019), run on ours.

Their tests import parts of JAX that are gone; stand-ins of a few lines take their place. Their Lanczos becomes ours,
and so does their smoothing; their products stay, since JAX's functions have no PyTorch graph.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

PATHS = ("jax",)
IMPORT = "importlib"  # their folder is named like the package jax
FILES = ("jax/lanczos_test.py", "jax/spectral_density_test.py")
NOT_OURS = {
    "testHessianVectorProduct": "products of JAX functions",
}


def lanczos_alg(matrix_vector_product: Any, dim: int, order: int, rng_key: Any) -> tuple[Any, Any]:
    """T [order, order] and the rows of Q; a Krylov space that ends early goes on with random vectors."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peer_suites.matfree import krylov

    start = jax.random.normal(rng_key, (dim,), dtype=jnp.result_type(float))
    matrix = jax.vmap(matrix_vector_product, out_axes=1)(jnp.eye(dim, dtype=start.dtype))
    steps = min(order, dim)
    shapes = tuple(jax.ShapeDtypeStruct(s, start.dtype) for s in ((steps, dim), (steps, steps), (dim,), ()))
    basis, t, _, _ = jax.pure_callback(lambda a, v: krylov(a, v, steps, True), shapes, matrix, start)
    return t, basis


def eigv_to_density(
    eig_vals: Any, all_weights: Any = None, grids: Any = None, grid_len: int = 10000, sigma_squared: Any = None,
    grid_expand: float = 1e-2,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ours with a kernel of one width: the variance that they take, relative to the range of the spectrum."""
    from benchmarks.peer_suites import ours

    values = np.asarray(eig_vals, dtype=np.float64)
    weights = np.full_like(values, 1 / values.shape[1]) if all_weights is None else np.asarray(all_weights)
    high, low = values.max(axis=1).mean() + grid_expand, values.min(axis=1).mean() - grid_expand
    grid = np.linspace(low, high, grid_len) if grids is None else np.asarray(grids, dtype=np.float64)
    variance = (1e-5 if sigma_squared is None else sigma_squared) * max(1.0, high - low)
    drawn = ours.density(values, weights, grid, float(np.sqrt(variance))).mean(axis=0)
    return drawn / (drawn.sum() * (grid[1] - grid[0])), grid


def tridiag_to_density(tridiag_list: Any, sigma_squared: float = 1e-5, grid_len: int = 10000) -> Any:
    solved = [np.linalg.eigh(np.asarray(t, dtype=np.float64)) for t in tridiag_list]
    weights = np.stack([vectors[0] ** 2 for _, vectors in solved])
    return eigv_to_density(
        np.stack([values for values, _ in solved]), weights, grid_len=grid_len, sigma_squared=sigma_squared
    )


def _layers() -> dict[str, Any]:
    """The few layers that their tests build: (initialise, apply) pairs."""
    import jax
    import jax.numpy as jnp

    def dense(width: int) -> tuple[Any, Any]:
        def initialise(key: Any, shape: tuple[int, ...]) -> Any:
            first, second = jax.random.split(key)
            weight = jax.random.normal(first, (shape[-1], width)) * (2 / (shape[-1] + width)) ** 0.5
            return (*shape[:-1], width), (weight, 1e-2 * jax.random.normal(second, (width,)))

        return initialise, lambda params, x: x @ params[0] + params[1]

    def elementwise(function: Any) -> tuple[Any, Any]:
        return lambda key, shape: (shape, ()), lambda params, x: function(x)

    def serial(*layers: tuple[Any, Any]) -> tuple[Any, Any]:
        def initialise(key: Any, shape: tuple[int, ...]) -> Any:
            params = []
            for start, _ in layers:
                key, own = jax.random.split(key)
                shape, made = start(own, shape)
                params.append(made)
            return shape, params

        def apply(params: Any, x: Any) -> Any:
            for (_, layer), p in zip(layers, params, strict=True):
                x = layer(p, x)
            return x

        return initialise, apply

    relu, log_softmax = elementwise(lambda x: jnp.maximum(x, 0)), elementwise(lambda x: jax.nn.log_softmax(x))
    return {"serial": serial, "Dense": dense, "Relu": relu, "LogSoftmax": log_softmax}


def _module(name: str, **contents: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    sys.modules[name] = made
    return made


def pytest_configure(config: pytest.Config) -> None:
    """Stand-ins for what JAX has dropped, then ours in the place of theirs."""
    import jax
    from absl import flags
    from absl.testing import parameterized

    jax.config.update("jax_enable_x64", True)
    flags.DEFINE_string("jax_test_dut", "", "kind of device")
    flags.FLAGS(["tests"])

    class JaxTestCase(parameterized.TestCase):
        def assertArraysAllClose(
            self, a: Any, b: Any, check_dtypes: bool = True, atol: float | None = None, rtol: float | None = None
        ) -> None:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol or 1e-6, rtol=rtol or 1e-6)

        def assertAllClose(self, a: Any, b: Any, check_dtypes: bool = True, atol: float | None = None) -> None:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol or 1e-6, rtol=1e-6)

    jax.tree_util.tree_multimap = jax.tree_util.tree_map
    jax.test_util = _module("jax.test_util", JaxTestCase=JaxTestCase, cases_from_list=list)
    for name in ("api", "lib"):
        setattr(jax, name, _module(f"jax.{name}", jit=jax.jit, grad=jax.grad, jvp=jax.jvp))
    jax.api.jit, jax.api.grad, jax.api.jvp = jax.jit, jax.grad, jax.jvp
    settings = types.SimpleNamespace(parse_flags_with_absl=lambda: None)
    _module("jax.config", config=settings)
    _module("jax.lib.xla_bridge", canonicalize_dtype=lambda d: jax.dtypes.canonicalize_dtype(d))
    import jax.experimental

    jax.experimental.stax = _module("jax.experimental.stax", **_layers())  # type: ignore[attr-defined]
    density = _module("density", eigv_to_density=eigv_to_density, tridiag_to_density=tridiag_to_density)
    lanczos = _module("lanczos", lanczos_alg=lanczos_alg)
    _module("spectral_density", density=density, lanczos=lanczos)
    sys.modules["spectral_density.density"], sys.modules["spectral_density.lanczos"] = density, lanczos
