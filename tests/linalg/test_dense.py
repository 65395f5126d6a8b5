"""Dense spectra: the matrix, its eigenvalues and their bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.linalg import dense
from landscape.linalg.dense import dense_spectrum, inertia, materialise
from planted import planted_dense, planted_matvec

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TRUTH = np.sort(np.r_[np.random.default_rng(0).normal(size=90) * 0.1, np.zeros(7), 5.0, 5.0, -2.0])


@DTYPES
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_materialise(dtype: torch.dtype, block: int) -> None:
    h, asymmetry = materialise(planted_matvec(TRUTH, dtype), 100, dtype=dtype, device=CPU, block=block)
    assert h.dtype == dtype
    assert torch.equal(h, h.T)
    eps = float(torch.finfo(dtype).eps)
    assert float((h.double() - planted_dense(TRUTH)).abs().max()) < 20 * eps
    assert asymmetry < 100 * eps


@pytest.mark.parametrize("tile", [1, 3, 10, 64])
def test_asymmetry_is_the_norm_of_what_is_removed(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "TILE", tile)
    a = torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h, asymmetry = materialise(lambda v: a @ v, 10, dtype=torch.float64, device=CPU, block=4)
    assert torch.allclose(h, (a + a.T) / 2)
    assert asymmetry == pytest.approx(float((a - a.T).norm()) / 2)


@DTYPES
def test_every_value_is_within_the_bound(dtype: torch.dtype) -> None:
    h, asymmetry = materialise(planted_matvec(TRUTH, dtype), 100, dtype=dtype, device=CPU, block=16)
    found = dense_spectrum(h, asymmetry)
    assert found.top_vector is None
    assert found.bottom_vector is None
    assert found.values.dtype == np.float64
    assert np.all(np.abs(found.values - TRUTH) <= found.bound)
    assert found.bound < 1e-4 * 5 if dtype == torch.float32 else found.bound < 1e-12


def test_vectors() -> None:
    h = planted_dense(TRUTH)
    found = dense_spectrum(h, 0.0, top=3, bottom=2)
    assert found.top_vector is not None
    assert found.bottom_vector is not None
    for vectors, values in [(found.top_vector, found.values[::-1][:3]), (found.bottom_vector, found.values[:2])]:
        assert torch.allclose(h @ vectors, vectors * torch.from_numpy(values.copy()), atol=1e-12)
    assert dense_spectrum(h, 0.0, top=200).top_vector.shape == (100, 100)


def test_inertia_counts_with_a_floor() -> None:
    assert inertia(TRUTH, 0.5) == (1, 97, 2)
    assert inertia(np.array([-1.0, 0.0, 1.0]), 1.0) == (0, 3, 0)
    assert sum(inertia(TRUTH, 1e-9)) == 100
    assert inertia(TRUTH, 1e-12)[1] == 7


def test_not_finite() -> None:
    with pytest.raises(FloatingPointError):
        materialise(lambda v: v * math.inf, 4, dtype=torch.float64, device=CPU, block=2)
