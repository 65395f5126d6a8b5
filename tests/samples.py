"""Synthetic results for tests: a `Spectrum` whose numbers agree, a `Provenance`, and how to compare."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from landscape.results.fields import Provenance, Result, Spectrum

TAU = np.array([1e-6, 1e-4, 1e-2])
LAYERS = ("hidden", "head")
TENSORS = ("hidden.weight", "hidden.bias", "head.weight", "head.bias")


def sample_eigenvalues(parameters: int = 40) -> np.ndarray:
    """Eigenvalues [parameters], ascending: a few negative, a bulk at zero, a few outliers above."""
    rng = np.random.default_rng(0)
    bulk = rng.normal(0.0, 1e-3, parameters - 8)
    return np.sort(np.concatenate([[-0.2, -0.1, -0.02], bulk, [0.3, 0.8, 1.5, 2.5, 3.5]]))


def sample_density(eigenvalues: np.ndarray, width: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Grid [200] and the density on it: each eigenvalue a Gaussian of standard deviation `width`."""
    grid = np.linspace(eigenvalues[0] - 5 * width, eigenvalues[-1] + 5 * width, 200)
    bumps = np.exp(-0.5 * ((grid[:, None] - eigenvalues) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return grid, bumps.mean(axis=1)


def _negative(eigenvalues: np.ndarray) -> dict[str, np.ndarray]:
    floor = TAU * np.abs(eigenvalues).max()
    counts = np.array([(eigenvalues < -t).sum() for t in floor], dtype=np.int64)
    mass = np.array([-eigenvalues[eigenvalues < -t].sum() for t in floor]) / np.abs(eigenvalues).sum()
    return {
        "tau": TAU,
        "tau_absolute": floor,
        "negative_count_low": counts - 1,
        "negative_count_high": counts + 1,
        "negative_count_exact": counts,
        "negative_mass": mass,
        "negative_mass_low": 0.9 * mass,
        "negative_mass_high": 1.1 * mass,
    }


def _layers() -> dict[str, np.ndarray]:
    return {
        "tensor": np.array(TENSORS),
        "tensor_size": np.array([24, 4, 8, 4], dtype=np.int64),
        "layer": np.array(LAYERS),
        "layer_parameters": np.array([28, 12], dtype=np.int64),
        "layer_top": np.array([3.1, 2.2]),
        "layer_top_residual": np.array([1e-5, 2e-5]),
        "layer_bottom": np.array([-0.15, -0.01]),
        "layer_bottom_residual": np.array([1e-5, 2e-5]),
        "layer_trace": np.array([5.0, 3.1]),
        "layer_trace_low": np.array([4.9, 3.0]),
        "layer_trace_high": np.array([5.1, 3.2]),
    }


def sample_spectrum(**overrides: Any) -> Spectrum:
    """A complete `Spectrum` of 40 parameters (no eigenvectors, no sampling fields); fields by keyword.

    Three eigenvalues at each end unless `pairs=k` asks for k; `pairs=0` is legal.
    """
    k = int(overrides.pop("pairs", 3))
    eigenvalues = sample_eigenvalues()
    grid, density = sample_density(eigenvalues)
    rng = np.random.default_rng(1)
    converged = np.arange(k) < 2
    fields: dict[str, Any] = {
        "operator": "hessian",
        "strategy": "kept",
        "exact": True,
        "parameters": eigenvalues.size,
        "samples": 1797,
        "loss": 0.123,
        "gradient_norm": 1.2e-3,
        "product_error": 1e-12,
        "top_value": eigenvalues[::-1][:k].copy(),
        "top_residual": np.full(k, 1e-5),
        "top_converged": converged,
        "top_complete": converged,
        "bottom_value": eigenvalues[:k].copy(),
        "bottom_residual": np.full(k, 2e-5),
        "bottom_converged": converged,
        "bottom_complete": converged,
        "trace": float(eigenvalues.sum()),
        "trace_low": float(eigenvalues.sum()) - 0.1,
        "trace_high": float(eigenvalues.sum()) + 0.1,
        "excluded_below": -0.21,
        "excluded_probability": 1e-3,
        "grid": grid,
        "density": density,
        "density_low": 0.9 * density,
        "density_high": 1.1 * density,
        "kernel_width": np.full(grid.size, 0.05),
        "node": np.sort(rng.choice(eigenvalues, (4, 10)), axis=1),
        "weight": np.full((4, 10), (1 - 2 * k / eigenvalues.size) / 10),
        "deflated": np.ones(k, dtype=bool),
        "deflated_bottom": np.ones(k, dtype=bool),
        "deflated_value": np.concatenate([eigenvalues[:k], eigenvalues[-k or eigenvalues.size :]]),
        "deflated_residual": np.full(2 * k, 2e-5),
        "eigenvalues": eigenvalues,
        **_negative(eigenvalues),
        **_layers(),
    }
    fields |= overrides
    if (node := fields["node"]) is not None:
        brackets = {"node_low": node - 1e-3, "node_high": node + 1e-3, "node_residual": np.full_like(node, 1e-3)}
        fields = brackets | fields
    return Spectrum(**fields)


def sample_provenance(**overrides: Any) -> Provenance:
    """Provenance of a finished spectrum of width 64, seed 3; fields by keyword."""
    fields: dict[str, Any] = {
        "command": "spectrum",
        "identity": "1f" * 32,
        "status": "complete",
        "settings": {"top": 3, "bottom": 3, "rtol": 1e-3, "density": True, "max_products": None},
        "checkpoint": "runs/width=64/seed=3/final.pt",
        "sha256": "ab" * 32,
        "header": {"format": 1, "model": "mlp", "model_settings": {"width": 64}},
        "coordinates": {"width": 64, "seed": 3, "step": 2000},
        "data_fingerprint": "cd" * 32,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "landscape": "0.1.0"},
        "device": "cpu",
        "dtype": "float64",
        "seed": 0,
        "products": 213,
        "seconds": 4.2,
        "plan": {"strategy": "kept", "chunk": 256},
        "notes": ("stripped the prefix 'module.'",),
    }
    return Provenance(**(fields | overrides))


def same(a: Any, b: Any) -> bool:
    """Equal in every entry, NaN to NaN."""
    return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f"))


def assert_same_result(got: Result, wanted: Result) -> None:
    """Every field equal, and of the same kind."""
    assert type(got) is type(wanted)
    for field in dataclasses.fields(wanted):
        a, b = getattr(got, field.name), getattr(wanted, field.name)
        assert same(a, b), field.name
        assert np.asarray(a).dtype.kind == np.asarray(b).dtype.kind, field.name
