"""pytest plugin: matfree's tests of symmetric tridiagonalisation and what stands on it, run on ours.

Their matvecs are traced by JAX: the matrix is materialised inside the trace, and a callback hands it to our Lanczos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from landscape.linalg.lanczos import lanczos
from landscape.linalg.quadrature import tridiagonalise

PATHS = ("",)
FILES = (
    "tests/test_decomp/test_tridiag_sym.py", "tests/test_decomp/test_consistency.py",
    "tests/test_eig/test_eigh_partial.py", "tests/test_funm/test_funm_lanczos_sym.py",
    "tests/test_funm/test_monte_carlo_funm_sym_logdet.py",
)  # fmt: skip
NOT_OURS = {
    "hessenberg": "not symmetric", "bidiag": "not symmetric",
    "test_equal_to_linalg_eigh": "built on their Hessenberg form",
    "test_output_shape_as_expected": "not symmetric matrices",
    "schur": "a dense function of theirs",
}  # fmt: skip


def krylov(matrix: np.ndarray, vector: np.ndarray, steps: int, full: bool) -> tuple[np.ndarray, ...]:
    """Q [k, n], T [k, k], residual [n] and 1/‖v‖; coefficients by the three-term recurrence where `full` is False."""
    a, v = torch.from_numpy(np.array(matrix)), torch.from_numpy(np.array(vector))
    n, norm = len(v), float(v.norm())
    if steps == 0:
        return (
            np.zeros((0, n), v.numpy().dtype),
            np.zeros((0, 0), v.numpy().dtype),
            v.numpy(),
            v.numpy().dtype.type(1 / norm),
        )
    generator = torch.Generator().manual_seed(0)
    basis, projected, beta, last = lanczos(lambda V: a @ V, v / norm, steps, generator)
    t = np.array(projected, dtype=v.numpy().dtype)
    if not full:
        found = tridiagonalise(lambda V: a @ V, v[:, None], steps)
        if int(found.length[0]) == steps:
            off = np.diag(found.beta[0][: steps - 1], 1)
            t = (np.diag(found.alpha[0][:steps]) + off + off.T).astype(t.dtype)
    return basis.T.numpy().copy(), t, (beta * last).numpy().astype(t.dtype), t.dtype.type(1 / norm)


def tridiag_sym(
    num_matvecs: int, /, *, materialize: bool = True, reortho: str = "full", custom_vjp: bool = True
) -> Callable[..., Any]:
    """Their constructor; gradients are not ours."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    def decompose(matvec: Any, vector: Any, *params: Any) -> tuple[Any, ...]:
        flat, unravel = ravel_pytree(vector)
        n = flat.size
        if not 0 <= num_matvecs <= n:
            raise ValueError(f"num_matvecs={num_matvecs} exceeds the acceptable range 0..{n}")

        def product(x: Any) -> Any:
            return ravel_pytree(matvec(unravel(x), *params))[0]

        matrix = jax.vmap(product, out_axes=1)(jnp.eye(n, dtype=flat.dtype))
        k, dtype = num_matvecs, flat.dtype
        shapes = tuple(jax.ShapeDtypeStruct(s, dtype) for s in ((k, n), (k, k), (n,), ()))
        basis, t, residual, length = jax.pure_callback(
            lambda a, v: krylov(a, v, k, reortho == "full"), shapes, matrix, flat, vmap_method="sequential"
        )
        if not materialize:
            t = (jnp.diag(t), jnp.diag(t, 1))
        return jax.vmap(unravel)(basis), t, unravel(residual), length

    return decompose


def pytest_configure(config: pytest.Config) -> None:
    """Replace theirs before their tests are imported."""
    from matfree import decomp

    decomp.tridiag_sym = tridiag_sym
