"""Quadrature against exact moments, and its brackets against exact measures and linear programs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from landscape.linalg.quadrature import (
    Tridiagonals,
    _radau,
    count_interval,
    density,
    distribution_bracket,
    gauss,
    negative_part_bracket,
    tridiagonalise,
)
from planted import planted_dense, planted_matvec, planted_vectors

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
NEGATIVE_AND_BULK = np.r_[np.random.default_rng(0).normal(size=290) * 0.1, 1.0, 2.0, 3.0, -1.0, -0.5]


def starts(n: int, count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def diagonal(values: np.ndarray):
    column = torch.from_numpy(values)[:, None]
    return lambda v: column.to(v.dtype) * v


def masses(z: torch.Tensor) -> np.ndarray:
    """Spectral masses [b, n] of probes z [n, b] for a diagonal operator."""
    z = z.double() / z.double().norm(dim=0)
    return (z**2).numpy().T


def negative_part(values: np.ndarray, mass: np.ndarray, x: float) -> np.ndarray:
    return mass @ np.where(values < -x, -values, 0.0)


@DTYPES
@pytest.mark.parametrize("width", [1, 3])
def test_gauss_moments_are_exact_to_degree_2m_minus_1(dtype: torch.dtype, width: int) -> None:
    z, m = starts(295, width, dtype), 9
    quad = gauss(tridiagonalise(planted_matvec(NEGATIVE_AND_BULK, dtype, seed=3), z, m))
    h = planted_dense(NEGATIVE_AND_BULK, seed=3)
    z = z.double() / z.double().norm(dim=0)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    power = z
    for degree in range(2 * m):
        truth = (z * power).sum(0).numpy()
        assert np.allclose(np.sum(quad.nodes**degree * quad.weights, axis=1), truth, rtol=tolerance)
        power = h @ power


def test_gauss_moments_are_exact_to_no_more_than_degree_2m_minus_1() -> None:
    values, z = np.linspace(-1, 1, 50), starts(50, 1)
    quad = gauss(tridiagonalise(diagonal(values), z, 4))
    errors = [np.sum(quad.nodes**d * quad.weights) - np.sum(values**d * masses(z)) for d in range(9)]
    assert np.all(np.abs(errors[:8]) < 1e-14)
    assert abs(errors[8]) > 1e-4


@DTYPES
def test_blocks_and_first_products_change_nothing(dtype: torch.dtype) -> None:
    matvec, z = planted_matvec(NEGATIVE_AND_BULK, dtype), starts(295, 4, dtype)
    block = tridiagonalise(matvec, z, 8)
    given_first = tridiagonalise(matvec, z, 8, first=matvec(z))
    single = tridiagonalise(matvec, z[:, 2:3], 8)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    assert np.allclose(block.alpha, given_first.alpha, atol=tolerance)
    assert np.allclose(block.beta, given_first.beta, atol=tolerance)
    assert np.allclose(block.alpha[2], single.alpha[0], atol=tolerance)
    assert np.allclose(block.beta[2], single.beta[0], atol=tolerance)


def test_first_saves_a_product_and_starts_are_left_alone() -> None:
    calls = 0
    inner = planted_matvec(NEGATIVE_AND_BULK)

    def counted(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return inner(v)

    z = starts(295, 2)
    kept, first = z.clone(), inner(z)
    first_kept = first.clone()
    tridiagonalise(counted, z, 6, first=first)
    assert calls == 5
    assert torch.equal(z, kept)
    assert torch.equal(first, first_kept)


def test_the_operator_may_reuse_its_buffer() -> None:
    values = torch.linspace(-1, 2, 50, dtype=torch.float64)[:, None]
    buffer = torch.empty(50, 2, dtype=torch.float64)
    z = starts(50, 2)
    plain = tridiagonalise(lambda v: values * v, z, 6)
    reused = tridiagonalise(lambda v: torch.mul(values, v, out=buffer), z, 6)
    assert np.array_equal(plain.alpha, reused.alpha)


@DTYPES
def test_deflation_removes_the_outliers_from_the_measure(dtype: torch.dtype) -> None:
    values = np.r_[100.0, 50.0, np.linspace(-1, 1, 98)]
    deflate = torch.eye(100, dtype=dtype)[:, :2]
    z = starts(100, 3, dtype)
    quad = gauss(tridiagonalise(diagonal(values), z, 30, deflate=deflate))
    assert quad.nodes.max() < 1.001
    inside = gauss(tridiagonalise(diagonal(values[2:]), z[2:], 30))
    moments = [np.sum(q.nodes**2 * q.weights, axis=1) for q in (quad, inside)]
    assert np.allclose(*moments, rtol=1e-4 if dtype == torch.float32 else 1e-10)


def one_sided(rng: np.random.Generator, n: int) -> np.ndarray:
    """Spectra whose α/β is large or whose outliers are: what a deflated recurrence must live with; all but one kind
    positive semidefinite."""
    kind = int(rng.integers(6))
    bulk = np.abs(rng.normal(size=n)) + 0.01
    if kind == 0:  # Marchenko–Pastur, of aspect ratio near one
        x = rng.normal(size=(n, n + int(rng.integers(1, n))))
        bulk = np.linalg.eigvalsh(x @ x.T / x.shape[1])
    elif kind == 1:  # far from zero: α/β as large as it gets
        bulk = rng.uniform(50, 51, n)
    elif kind == 2:  # outliers over many decades
        bulk[:5] = 10 ** rng.uniform(1, 5, 5)
    elif kind == 3:  # singular
        bulk[rng.random(n) < 0.6] = 0.0
    elif kind == 4:
        bulk = np.exp(rng.normal(0, 3, n))
    else:  # indefinite
        bulk = bulk * np.where(rng.random(n) < 0.4, -1, 1)
    return np.sort(bulk)


@pytest.mark.parametrize("seed", range(24))
def test_nodes_lie_within_the_known_ends(seed: int) -> None:
    """Of the operator compressed to the complement, whatever is deflated: exact or approximate vectors, orthonormal or
    nearly; so that a positive semidefinite operator has no negative node. Rounding is that of the whole operator."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 300))
    values = one_sided(rng, n)
    dtype = (torch.float32, torch.float64)[seed % 2]
    k, b, steps = int(rng.integers(0, 12)), int(rng.integers(1, 5)), int(rng.integers(20, 120))
    from_top = int(rng.integers(0, k + 1))
    which = np.r_[np.arange(n - from_top, n), np.arange(k - from_top)]
    columns = planted_vectors(n, torch.eye(n, dtype=torch.float64)[:, which], seed=seed)
    if rng.random() < 0.5:  # residuals, and inner products as large as curvature/eigenpairs.py lets through
        columns = columns + float(rng.choice([1e-3, 1e-5])) * starts(n, k, seed=seed) / math.sqrt(n)
        columns = torch.linalg.qr(columns)[0] + 1e-5 * starts(n, k, seed=seed + 1) / math.sqrt(n)
    deflate = columns.to(dtype)
    z = starts(n, b, dtype, seed)
    tri = tridiagonalise(planted_matvec(values, dtype, seed=seed), z, min(steps, n - k), deflate=deflate)
    nodes = gauss(tri).nodes
    rest = torch.linalg.qr(torch.cat([deflate.double(), torch.eye(n, dtype=torch.float64)], dim=1))[0][:, k:]
    inside = torch.linalg.eigvalsh(rest.T @ planted_dense(values, seed=seed) @ rest)
    rounding = 100 * float(torch.finfo(dtype).eps) * float(np.abs(values).max())
    told = f"seed {seed}, n {n}, {dtype}, {k} deflated, {from_top} from the top"
    assert nodes.min() >= float(inside[0]) - rounding, told
    assert nodes.max() <= float(inside[-1]) + rounding, told
    if values.min() >= 0:
        assert nodes.min() >= -rounding, told


@DTYPES
def test_breakdown_freezes_each_probe_on_its_own(dtype: torch.dtype) -> None:
    values = np.repeat([-2.0, 0.0, 1.0, 3.0], 25)
    z = starts(100, 3, dtype)
    z[:75, 1] = 0  # this probe sees one eigenvalue only
    tri = tridiagonalise(diagonal(values), z, 12)
    assert tri.length.tolist() == [4, 1, 4]
    assert np.all(tri.beta[[0, 1, 2], tri.length - 1] == 0)
    assert np.all(tri.alpha[1, 1:] == 0)
    quad = gauss(tri)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert np.allclose(quad.weights.sum(axis=1), 1)
    assert np.allclose(quad.nodes[0, :4], [-2, 0, 1, 3], atol=tolerance * 10)
    assert np.allclose(quad.weights[0, :4], masses(z)[0].reshape(4, 25).sum(axis=1), atol=tolerance)
    assert np.all(quad.nodes[1] == quad.nodes[1, 0])
    low, high = distribution_bracket(tri, 0.5)
    assert np.array_equal(low, high)
    assert np.allclose(low, masses(z)[:, :50].sum(axis=1), atol=tolerance)
    low, point, high = negative_part_bracket(quad, 0.1, -2.0)
    assert np.allclose(low, high)
    assert np.allclose(point, 2 * masses(z)[:, :25].sum(axis=1), atol=tolerance)


@DTYPES
def test_what_is_no_normal_number_ends_a_probe(dtype: torch.dtype) -> None:
    """The inverse of a β below the smallest normal number is infinite."""
    values = np.r_[np.full(20, float(torch.finfo(dtype).tiny) / 50), np.zeros(20)]
    tri = tridiagonalise(diagonal(values), starts(40, 3, dtype), 10)
    assert np.isfinite(tri.alpha).all()
    assert (tri.length <= 2).all()


def test_not_finite_and_zero_probes() -> None:
    with pytest.raises(FloatingPointError, match="step 1"):
        tridiagonalise(lambda v: v * math.nan, starts(10, 2), 3)
    with pytest.raises(ValueError, match="zero"):
        tridiagonalise(lambda v: v, torch.zeros(10, 2), 3)
    with pytest.raises(ValueError, match="deflated"):
        tridiagonalise(lambda v: v, torch.eye(3)[:, :1], 2, deflate=torch.eye(3))


spectra = st.lists(st.integers(-16, 16), min_size=2, max_size=30).map(lambda k: np.array(k) / 8)
between = st.integers(-20, 20).map(lambda k: (2 * k + 1) / 16)  # never an eigenvalue of the above


@settings(deadline=None, max_examples=150)
@given(spectra, st.integers(1, 14), between, st.integers(0, 1000))
def test_brackets_contain_the_truth(values: np.ndarray, steps: int, x: float, seed: int) -> None:
    z = starts(len(values), 2, seed=seed)
    tri = tridiagonalise(diagonal(values), z, min(steps, len(values)))
    low, high = distribution_bracket(tri, x)
    truth = masses(z)[:, values < x].sum(axis=1)
    assert np.all(low <= truth + 1e-9)
    assert np.all(truth <= high + 1e-9)
    low, point, high = negative_part_bracket(gauss(tri), abs(x), values.min())
    truth = negative_part(values, masses(z), abs(x))
    assert np.all(low <= truth + 1e-9)
    assert np.all(truth <= high + 1e-9)
    assert np.all((low <= point) & (point <= high))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(0, 1000), st.data())
def test_brackets_contain_the_truth_at_an_eigenvalue(steps: int, seed: int, data: st.DataObject) -> None:
    values = np.linspace(-1, 1, 21)
    x = float(data.draw(st.sampled_from(values)))
    z = starts(21, 1, seed=seed)
    tri = tridiagonalise(diagonal(values), z, steps)
    low, high = distribution_bracket(tri, x)
    assert low[0] <= masses(z)[0, values < x].sum() + 1e-12
    assert masses(z)[0, values <= x].sum() <= high[0] + 1e-12


@pytest.mark.parametrize("steps", [1, 2, 8, 40, 200])
def test_distribution_bracket_on_a_grid(steps: int) -> None:
    z = starts(295, 2)
    tri = tridiagonalise(diagonal(NEGATIVE_AND_BULK), z, steps)
    for x in np.linspace(-1.3, 3.3, 47) + 1e-3:
        low, high = distribution_bracket(tri, float(x))
        truth = masses(z)[:, x > NEGATIVE_AND_BULK].sum(axis=1)
        assert np.all((low <= truth + 1e-9) & (truth <= high + 1e-9))
        assert np.all((low >= 0) & (high <= 1))


@pytest.mark.parametrize("offset", [0.0, 1e-15, 1e-9, 1e-4, 0.3])
def test_width_is_the_christoffel_function(offset: float) -> None:
    """1 / Σ p_k(x)² over the orthonormal polynomials of degree 0 … m, at and near Gauss nodes too."""
    tri = tridiagonalise(diagonal(NEGATIVE_AND_BULK), starts(295, 1), 7)
    alpha, beta = tri.alpha[0], tri.beta[0]
    for node in gauss(tri).nodes[0]:
        x = float(node) + offset
        p = [0.0, 1.0]
        for k in range(7):
            p.append(((x - alpha[k]) * p[-1] - (beta[k - 1] if k else 0.0) * p[-2]) / beta[k])
        low, high = distribution_bracket(tri, x)
        assert high[0] - low[0] == pytest.approx(1 / np.sum(np.square(p)), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e-16, -1e-14, 1e-10])
def test_at_a_gauss_node_the_bracket_is_its_weight(offset: float) -> None:
    """Where the extra node of the Radau rule runs off to infinity."""
    quad = gauss(tridiagonalise(diagonal(NEGATIVE_AND_BULK), starts(295, 1), 6))
    before = np.r_[0, np.cumsum(quad.weights[0])]
    for j, node in enumerate(quad.nodes[0]):
        low, high = distribution_bracket(quad.tridiagonals, float(node) + offset)
        assert low[0] == pytest.approx(before[j], abs=1e-6)
        assert high[0] == pytest.approx(before[j + 1], abs=1e-6)


def test_exactly_at_a_gauss_node() -> None:
    """μ with mean 0 and variance 1 may have all its mass on either side of 0, or just there."""
    low, high = distribution_bracket(Tridiagonals(np.zeros((1, 1)), np.ones((1, 1)), np.array([1])), 0.0)
    assert (low[0], high[0]) == (0.0, 1.0)


def test_radau_bracket_is_tighter_than_the_separation_theorem() -> None:
    z = starts(295, 3)
    quad = gauss(tridiagonalise(diagonal(NEGATIVE_AND_BULK), z, 12))
    lowest = np.full((3, 1), NEGATIVE_AND_BULK.min())
    left, right = np.hstack([lowest, quad.nodes[:, :-1]]), np.hstack([quad.nodes[:, 1:], np.full((3, 1), 9.0)])
    for x in [0.0, 0.01, 0.05, 0.2, 0.7]:
        low, _, high = negative_part_bracket(quad, x, NEGATIVE_AND_BULK.min())
        szego_low, szego_high = (np.sum(quad.weights * np.where(t < -x, -t, 0), axis=1) for t in (right, left))
        assert np.all(szego_low <= low + 1e-12)
        assert np.all(high <= szego_high + 1e-12)
        assert np.all(high - low < 0.7 * (szego_high - szego_low))
        cumulative = np.cumsum(quad.weights, axis=1)
        f_low, f_high = distribution_bracket(quad.tridiagonals, -x)
        for i in range(3):
            k = int(np.sum(quad.nodes[i] < -x))
            below = cumulative[i, k - 2] if k > 1 else 0.0
            assert below - 1e-12 <= f_low[i] <= f_high[i] <= cumulative[i, min(k, 11)] + 1e-12


@pytest.mark.parametrize("x", [0.0, 0.21])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_brackets_are_the_best_that_the_moments_allow(steps: int, x: float) -> None:
    """Against a linear program over all measures on a fine grid with the same moments 0 … 2m."""
    values = np.random.default_rng(5).uniform(-1, 1, 40)
    tri = tridiagonalise(diagonal(values), starts(40, 1, seed=2), steps)
    far = 10 if steps == 1 else 3  # as the extremal measures need; farther would only worsen the conditioning
    support = np.r_[np.linspace(-far, far, 4001), -x - 1e-9, -x]
    polynomials = np.polynomial.legendre.legvander(support / far, 2 * steps).T
    moments = np.polynomial.legendre.legvander(values / far, 2 * steps).T
    target = moments @ masses(starts(40, 1, seed=2))[0]
    mass = np.where(support < -x, -support, 0.0)
    count = (support < -x).astype(float)
    low, _, high = negative_part_bracket(gauss(tri), x, -1e6)
    f_low, f_high = distribution_bracket(tri, -x)
    for cost, ends in [(mass, (low[0], high[0])), (count, (f_low[0], f_high[0]))]:
        for sign, end in zip([1, -1], ends, strict=True):
            found = linprog(sign * cost, A_eq=polynomials, b_eq=target, bounds=(0, None), method="highs")
            assert found.status == 0
            assert sign * found.fun == pytest.approx(end, abs=2e-3)


def test_radau_rules_are_exact_to_degree_2m() -> None:
    tri = tridiagonalise(diagonal(NEGATIVE_AND_BULK), starts(295, 1), 5)
    mass = masses(starts(295, 1))[0]
    for x in [-0.7, -0.03, 0.2, 1.5]:
        node, weight, index = _radau(tri.alpha[0], tri.beta[0, :-1], float(tri.beta[0, -1]), x)
        assert node[index] == pytest.approx(x, abs=1e-12)
        for degree in range(11):
            truth = np.sum(mass * NEGATIVE_AND_BULK**degree)
            assert np.sum(weight * node**degree) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_brackets_scale(scale: float) -> None:
    z = starts(295, 2)
    plain = gauss(tridiagonalise(diagonal(NEGATIVE_AND_BULK), z, 10))
    scaled = gauss(tridiagonalise(diagonal(NEGATIVE_AND_BULK * scale), z, 10))
    for a, b in zip(
        negative_part_bracket(plain, 0.02, -1.0), negative_part_bracket(scaled, 0.02 * scale, -scale), strict=True
    ):
        assert np.allclose(a, b / scale, rtol=1e-6)
    for a, b in zip(
        distribution_bracket(plain.tridiagonals, 0.02), distribution_bracket(scaled.tridiagonals, 0.02 * scale),
        strict=True,
    ):  # fmt: skip
        assert np.allclose(a, b, rtol=1e-8)


def test_the_zero_operator() -> None:
    tri = tridiagonalise(lambda v: 0 * v, starts(20, 2), 5)
    assert tri.length.tolist() == [1, 1]
    assert np.array_equal(distribution_bracket(tri, -1e-9), np.zeros((2, 2)))
    assert np.array_equal(negative_part_bracket(gauss(tri), 0.0, 0.0), np.zeros((3, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("probes", [1, 4, 10])
@pytest.mark.parametrize("k", [0, 1, 3, 50, 9990, 10_000])
def test_count_interval_covers(k: int, probes: int) -> None:
    n, runs = 10_000, 300
    rng = np.random.default_rng(k + probes)
    inside, outside = rng.chisquare(k, (runs, probes)) if k else np.zeros((runs, probes)), 0.0
    if k < n:
        outside = rng.chisquare(n - k, (runs, probes))
    fraction = (inside / (inside + outside)).mean(axis=1)
    covered = sum(low <= k <= high for low, high in (count_interval(f, f, n, probes) for f in fraction))
    assert covered >= 0.95 * runs - 3 * math.sqrt(0.05 * 0.95 * runs)


def test_count_interval_edges() -> None:
    assert count_interval(0.0, 1.0, 100, 5) == (0, 100)
    low, high = count_interval(0.0, 0.0, 10**7, 4)
    assert (low, high) == (0, 0)
    assert count_interval(1.0, 1.0, 50, 3) == (50, 50)
    assert count_interval(1e-17, 1e-9, 1000, 4)[0] == 0  # rounding is not an eigenvalue
    assert count_interval(1e-4, 1e-4, 1000, 4)[0] == 1  # but real mass is
    narrow, wide = count_interval(0.1, 0.1, 10**6, 20), count_interval(0.05, 0.15, 10**6, 20)
    assert wide[0] < narrow[0] < 10**5 < narrow[1] < wide[1]
    assert narrow[1] - narrow[0] < 1000


def test_density_integrates_to_the_weights() -> None:
    quad = gauss(tridiagonalise(diagonal(NEGATIVE_AND_BULK), starts(295, 3), 20))
    grid = np.linspace(-3, 5, 2001)
    curve = density(quad.nodes, 0.5 * quad.weights, grid, 0.05)
    assert curve.shape == (3, 2001)
    assert np.allclose(np.trapezoid(curve, grid, axis=1), 0.5, atol=1e-10)
    assert np.allclose(density(quad.nodes, 0.5 * quad.weights, grid, np.full(2001, 0.05)), curve)


def test_density_of_a_wigner_matrix_is_the_semicircle() -> None:
    n = 600
    g = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = (g + g.T) / math.sqrt(2 * n)
    quad = gauss(tridiagonalise(lambda v: h @ v, starts(n, 40), 60))
    grid = np.linspace(-1.6, 1.6, 9)
    found = density(quad.nodes, quad.weights, grid, 0.2).mean(axis=0)
    assert np.allclose(found, np.sqrt(4 - grid**2) / (2 * math.pi), atol=0.03)


def test_padding_by_the_caller_is_ignored() -> None:
    z = starts(295, 1)
    tri = tridiagonalise(diagonal(NEGATIVE_AND_BULK), z, 6)
    padded = Tridiagonals(np.pad(tri.alpha, ((0, 0), (0, 4))), np.pad(tri.beta, ((0, 0), (0, 4))), tri.length)
    assert np.array_equal(distribution_bracket(tri, 0.1), distribution_bracket(padded, 0.1))
    assert np.array_equal(negative_part_bracket(gauss(tri), 0.1, -1.0), negative_part_bracket(gauss(padded), 0.1, -1.0))
