"""Spectra to draw: softmax regression dense and by quadrature, sweeps, and a gallery of odd ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from landscape.results.fields import Spectrum
from landscape.results.store import StoredResult
from landscape.spectra.density import Measure, brackets, density_of
from samples import sample_provenance, sample_spectrum

TAU = np.array([1e-6, 1e-4, 1e-2])


def stored(spectrum: Spectrum, checkpoint: str = "run/final.pt", status: str = "complete", **at: Any) -> StoredResult:
    provenance = sample_provenance(coordinates=at, checkpoint=checkpoint, status=status)
    return StoredResult("spectrum", spectrum.arrays(), spectrum.attributes(), provenance)


@functools.cache
def softmax_hessian(classes: int = 4, inputs: int = 12, samples: int = 60) -> np.ndarray:
    """Hessian of softmax regression at random weights, plus a little indefinite part as a hidden layer would add."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, inputs)) * np.geomspace(3, 0.01, inputs)
    scores = x @ rng.normal(size=(inputs, classes))
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    inner = np.einsum("nc,cd->ncd", p, np.eye(classes)) - np.einsum("nc,nd->ncd", p, p)
    hessian = np.einsum("ncd,ni,nj->cidj", inner, x, x).reshape(classes * inputs, classes * inputs) / samples
    noise = rng.normal(size=hessian.shape)
    return np.asarray(hessian + 1e-3 * (noise + noise.T))


@functools.cache
def quadrature(probes: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values, weights and residuals [probe, step] of Lanczos from random starts."""
    rng, matrix = np.random.default_rng(1), softmax_hessian()
    nodes, weights, residuals = [], [], []
    for _ in range(probes):
        basis = rng.normal(size=(len(matrix), 1))
        for _ in range(steps - 1):
            basis = np.linalg.qr(np.hstack([basis, matrix @ basis[:, -1:]]))[0]
        values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
        ritz = basis @ vectors
        residuals.append(np.linalg.norm(matrix @ ritz - ritz * values, axis=0))
    return np.array(nodes), np.array(weights), np.array(residuals)


def spectrum_of(known: np.ndarray, k: int = 5, **overrides: Any) -> Spectrum:
    """A dense spectrum with these eigenvalues."""
    e = np.sort(np.asarray(known, dtype=float))
    floor = TAU * np.abs(e).max()
    count = np.array([(e < -t).sum() for t in floor])
    mass = np.array([-e[e < -t].sum() for t in floor]) / max(np.abs(e).sum(), 1e-300)
    fields: dict[str, Any] = {
        "parameters": e.size,
        "exact": True,
        "top_value": e[::-1][:k].copy(),
        "bottom_value": e[:k].copy(),
        "top_residual": np.full(k, 1e-12),
        "bottom_residual": np.full(k, 1e-12),
        "top_converged": np.ones(k, dtype=bool),
        "bottom_converged": np.ones(k, dtype=bool),
        "top_complete": np.ones(k, dtype=bool),
        "bottom_complete": np.ones(k, dtype=bool),
        "deflated": np.ones(k, dtype=bool),
        "deflated_bottom": np.ones(k, dtype=bool),
        "trace": e.sum(),
        "trace_low": e.sum(),
        "trace_high": e.sum(),
        "tau": TAU,
        "tau_absolute": floor,
        **{f"negative_count_{end}": count for end in ("low", "high", "exact")},
        **{f"negative_mass{end}": mass for end in ("", "_low", "_high")},
        "excluded_below": np.nan,
        "excluded_probability": 0.0,
        "eigenvalues": e,
    }
    fields |= dict.fromkeys(("grid", "density", "density_low", "density_high", "kernel_width", "node", "weight"))
    fields |= dict.fromkeys(("deflated_value", "deflated_residual", "node_low", "node_high", "node_residual"))
    return sample_spectrum(pairs=k, **(fields | overrides))


def probed(probes: int = 4, **overrides: Any) -> Spectrum:
    """The softmax Hessian by quadrature, with nothing deflated."""
    matrix = softmax_hessian()
    nodes, weights, residuals = quadrature(probes, steps=15)
    known = np.linalg.eigvalsh(matrix)
    ends = float(known[0]), float(known[-1])
    low, high = brackets(nodes, weights, residuals, ends)
    none = np.zeros(0)
    measure = Measure(nodes, weights, low, high, residuals, none, none, ends, len(matrix))
    shape = density_of(measure, 1e-6 * float(np.abs(known).max()))
    shapes = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape)}
    fields = {"exact": False, "eigenvalues": None, "node": nodes, "weight": weights, **shapes}
    fields |= {"node_low": low, "node_high": high, "node_residual": residuals}
    nothing = {"deflated": np.zeros(5, dtype=bool), "deflated_bottom": np.zeros(5, dtype=bool)}
    nothing |= {"deflated_value": np.zeros(0), "deflated_residual": np.zeros(0)}
    bound = {"excluded_below": -0.02, "excluded_probability": 1e-3, "negative_count_exact": None}
    return spectrum_of(known, **(fields | nothing | bound | overrides))


def cell_counts(result: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of the density's cells, and the least and the largest number of eigenvalues in each."""
    assert result.grid is not None
    assert result.density_low is not None
    assert result.density_high is not None
    size = result.parameters * np.diff(result.grid)[::2]
    edges = np.r_[result.grid[::2], result.grid[-1]]
    return edges, result.density_low[::2] * size, result.density_high[::2] * size


def without_density(**overrides: Any) -> Spectrum:
    return probed(**(dict.fromkeys(("grid", "density", "density_low", "density_high", "kernel_width")) | overrides))


def diverged() -> Spectrum:
    nan = np.full(5, np.nan)
    scalars = dict.fromkeys(("loss", "gradient_norm", "trace", "trace_low", "trace_high", "excluded_below"), np.nan)
    arrays = {"top_value": nan, "bottom_value": nan, "tau_absolute": np.full(3, np.nan)}
    return probed(**scalars, **arrays, density=np.full_like(probed().density, np.nan))


def sweep(widths: tuple[int, ...] = (4, 8, 16, 64), seeds: int = 3) -> list[StoredResult]:
    rng = np.random.default_rng(3)
    found = []
    for width, seed in itertools.product(widths, range(seeds)):
        sizes = np.concatenate([-(10 ** rng.uniform(-7, -2, 3 * width)), 10 ** rng.uniform(-8, 1, 12 * width)])
        found.append(stored(spectrum_of(sizes / width), width=width, seed=seed, step=100))
    return found


@functools.cache
def gallery() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    wide = 10 ** rng.uniform(-8, 3, 800)
    long_name = "/data/$a$/" + "deep/" * 40 + "final.pt"
    return {
        "probed": [stored(probed())],
        "dense": [stored(spectrum_of(np.concatenate([wide, -wide[:99] / 1e3])))],
        "positive": [stored(spectrum_of(wide), checkpoint=long_name, status="interrupted")],
        "narrow": [stored(spectrum_of(rng.uniform(3, 5, 50)))],
        "zero": [stored(spectrum_of(np.zeros(30)))],
        "tiny": [stored(spectrum_of(1e-30 * rng.normal(size=30)))],
        "diverged": [stored(diverged())],
        "without density": [stored(without_density())],
        "one probe": [stored(probed(probes=1))],
        "no pairs": [stored(spectrum_of(wide, k=0))],
        "positive sweep": [stored(spectrum_of(wide * w), width=w) for w in (1, 2, 3)],
        "two": sweep((4, 64), 1),
        "sweep": sweep(),
        "steps": [stored(probed(), step=100 * i) for i in range(20)],
        "many seeds": [stored(probed(), width=w, seed=s) for w in (8, 16) for s in range(12)],
        "names": [stored(probed(), checkpoint=f"models/${n}$/a-very-long-name-{n}.pt") for n in "abcde"],
        "mixed": [
            stored(s, width=2**i)
            for i, s in enumerate(
                (probed(), spectrum_of(wide), diverged(), spectrum_of(np.zeros(9)), without_density())
            )
        ],
        "all diverged": [stored(diverged(), width=w) for w in (1, 2)],
    }
