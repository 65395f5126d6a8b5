"""What lies between the ends of a spectrum: densities, counts, masses and traces on random problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

import landscape
from landscape import Problem
from landscape.cli.views import histogram as terminal_histogram
from landscape.cli.views.histogram import histogram_lines
from landscape.errors import UsageError
from landscape.figures.values import linear_width, per_decade, shared_width, zero_cell
from landscape.linalg.quadrature import count_interval, distribution_bracket, gauss, tridiagonalise
from landscape.results.fields import Spectrum
from landscape.spectra.density import Measure, _distributions, brackets
from spectra import cell_counts, stored


class Quadratic(nn.Module):
    """L = ½ θᵀHθ, H = QΛQᵀ with a few reflections Q: its eigenvalues are the given ones up to rounding."""

    def __init__(self, eigenvalues: np.ndarray, dtype: torch.dtype, mirrors: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(eigenvalues), dtype=dtype))
        self.register_buffer("values", torch.from_numpy(eigenvalues).to(dtype))
        self.register_buffer("mirrors", (mirrors / mirrors.norm(dim=1, keepdim=True)).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = self.theta
        for v in self.mirrors:
            y = y - 2 * v * (v @ y)
        return 0.5 * (self.values * y.square()).sum() * x.sum()


def quadratic_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return model(batch[0]), len(batch[0])


def quadratic(eigenvalues: np.ndarray, seed: int, dtype: torch.dtype = torch.float32, mirrors: int = 2) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(mirrors, len(eigenvalues), generator=generator, dtype=torch.float64)
    x = torch.ones(4, 1, dtype=dtype)
    return Problem(Quadratic(eigenvalues, dtype, v), [(x, x)], quadratic_loss)


def eigenvalues_of(problem: Problem) -> np.ndarray:
    """Of the rounded problem, in float64."""
    h = problem.model.double()
    mirrors, values = h.mirrors, h.values
    q = torch.eye(len(values), dtype=torch.float64)
    for v in mirrors:
        q = q - 2 * torch.outer(v, v @ q)
    return np.asarray(torch.linalg.eigvalsh(q.T @ (values[:, None] * q)).numpy())


def drawn(rng: np.random.Generator) -> np.ndarray:
    """A random spectrum: bulk, outliers, atoms, clusters, many scales, one or both signs."""
    n = int(rng.integers(30, 220))
    bulk = rng.normal(size=n) * 10 ** rng.uniform(-2, 1)
    if rng.random() < 0.4:
        bulk = np.abs(bulk)
    if rng.random() < 0.4:
        bulk *= np.exp(rng.normal(0, 2, n))
    if rng.random() < 0.5:
        bulk[: n // int(rng.integers(2, 6))] = 0.0
    if rng.random() < 0.5:
        k = int(rng.integers(1, 8))
        bulk[-k:] = np.abs(bulk).max() * rng.uniform(2, 30, k)
    if rng.random() < 0.3:
        bulk[-3:] = bulk[-1]
    return bulk * 10 ** rng.uniform(-3, 3)


def solved(problem: Problem, **settings: Any) -> Spectrum:
    return landscape.spectrum(problem, exact=False, **settings)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_stored_is_the_whole_measure(seed: int) -> None:
    """Weights sum to the share that was not deflated, whatever the lists show; so that traces of functions are right:
    f = 1 and f = λ against closed forms."""
    rng = np.random.default_rng(seed)
    problem = quadratic(drawn(rng), seed, (torch.float32, torch.float64)[seed % 2])
    top, bottom = (int(rng.choice([0, 0, 1, 3, 10])) for _ in range(2))
    r = solved(problem, top=top, bottom=bottom, probes=4, steps=20, seed=seed)
    told = f"seed {seed}, top {top}, bottom {bottom}, n {r.parameters}"
    assert len(r.top_value) == min(top, r.parameters), told
    assert r.deflated_value is not None
    taken = len(r.deflated_value)
    marked = int(r.deflated.sum() + r.deflated_bottom.sum())
    assert marked <= taken, told
    if 0 in (top, bottom):  # an end that was not asked for leaves nothing out of the file
        assert np.isin(r.deflated_value, np.r_[r.top_value, r.bottom_value]).all(), told
    free = 0.0 if r.weight is None else r.weight.sum(axis=1)
    np.testing.assert_allclose(free, 1 - taken / r.parameters, atol=1e-12, err_msg=told)
    truth = eigenvalues_of(problem)
    near = np.abs(truth[None, :] - r.deflated_value[:, None]).min(axis=1, initial=np.inf)
    assert np.all(near <= r.deflated_residual), told


@pytest.mark.parametrize("signs", [(1.0,), (1.0, -2.0)], ids=["one", "two"])
@pytest.mark.parametrize("scale", [1.0, 1 / 3, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_traces_without_sampling_error_carry_rounding(
    dtype: torch.dtype, scale: float, signs: tuple[float, ...]
) -> None:
    """A multiple of the identity, whose samples are all the same, and diag(c, −2c), which the basis exhausts."""
    for n in (2, 50, 333)[: 1 if len(signs) > 1 else None]:
        problem = quadratic(scale * np.resize(signs, n), 0, dtype, mirrors=0)
        truth = float(problem.model.values.double().sum())
        for seed in range(3):
            r = solved(problem, top=2, bottom=2, probes=3, steps=5, seed=seed)
            assert r.trace_low <= truth <= r.trace_high, (seed, truth, r.trace_low, r.trace_high)
            assert r.trace_high - r.trace_low < 1e3 * float(torch.finfo(dtype).eps) * n * abs(scale)


@pytest.mark.parametrize("n", [2, 200, 10**7])
@pytest.mark.parametrize("probes", [3, 8])
def test_masses_of_nothing_and_all_are_told_through_rounding(n: int, probes: int) -> None:
    rng = np.random.default_rng(n)
    for rounding in (0.0, *10 ** rng.uniform(-17, -14, 20)):
        assert count_interval(0.0, 1 - rounding, n, probes) == (0, n)
        assert count_interval(rounding, 1.0, n, probes) == (0, n)
        assert count_interval(1 - rounding, 1 - rounding, n, probes)[1] == n
        assert count_interval(rounding, rounding, n, probes)[0] == 0


@pytest.mark.parametrize("seed", range(8))
def test_masses_contain_what_rounding_and_residuals_may_hide(seed: int) -> None:
    """Spectra that probes see exactly, of two values only: no sampling error is left to cover anything."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 120))
    negative = int(rng.integers(0, n + 1))
    values = np.where(np.arange(n) < negative, -1.0, rng.choice([0.0, 1.0, 3.0])) * 10 ** rng.uniform(-6, 6)
    problem = quadratic(values, seed, (torch.float32, torch.float64)[seed % 2])
    r = solved(problem, top=int(rng.integers(0, 4)), bottom=int(rng.integers(0, 4)), probes=3, steps=10, seed=seed)
    truth = eigenvalues_of(problem)
    for i, tau in enumerate(r.tau_absolute):
        mass = np.abs(truth[truth < -tau]).sum() / max(np.abs(truth).sum(), 1e-300)
        low, high = r.negative_mass_low[i], r.negative_mass_high[i]
        told = f"seed {seed}, {negative} of {n}, tau {tau}, {mass} in [{low}, {high}]"
        assert low <= mass <= high, told
        assert r.negative_count_low[i] <= np.sum(truth < -tau) <= r.negative_count_high[i], told


# --- the density ----------------------------------------------------------------------------------------------


def cases(seeds: range) -> Iterator[tuple[str, np.random.Generator, Spectrum, np.ndarray]]:
    """Random problems with random settings: what to tell of a failure, a generator, the result, the true spectrum."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        problem = quadratic(drawn(rng), seed, (torch.float32, torch.float64)[seed % 2])
        settings = {"top": int(rng.integers(0, 5)), "bottom": int(rng.integers(0, 5))}
        settings |= {"probes": int(rng.integers(3, 9)), "steps": int(rng.integers(5, 40)), "seed": seed}
        yield f"seed {seed}, {settings}", rng, solved(problem, **settings), eigenvalues_of(problem)


def test_nothing_lies_beyond_the_ends_and_any_interval_is_covered() -> None:
    """The integral is 1 between ends that hold every eigenvalue; one interval between random edges a problem, where at
    most 5 % may be missed: more than allowed here have probability 1e-3."""
    missed, seeds = [], range(5000, 5024)
    for told, rng, r, truth in cases(seeds):
        edges, low, high = cell_counts(r)
        assert edges[0] <= truth[0], told
        assert truth[-1] <= edges[-1], told
        known = np.r_[r.top_value + r.top_residual, r.node.max() if r.node is not None else -np.inf]
        if len(r.top_value):
            assert edges[-1] <= known.max() * (1 + 1e-12), told
        assert np.trapezoid(r.density, r.grid) == pytest.approx(1, abs=1e-9), told
        assert np.all((r.density_low <= r.density) & (r.density <= r.density_high)), told
        assert np.isfinite(r.density_high).all(), told
        first, last = sorted(rng.choice(len(edges), 2, replace=False))
        inside = np.sum((truth > edges[first]) & (truth <= edges[last]))
        if not low[first:last].sum() - 1e-6 <= inside <= high[first:last].sum() + 1e-6:
            missed.append((told, edges[first], edges[last], int(inside)))
    assert len(missed) <= binom.ppf(1 - 1e-3, len(seeds), 0.05), missed


def test_the_density_is_made_of_what_is_stored() -> None:
    """By docs/format.md alone: half of each weight falls linearly to node_low, half to node_high."""
    for told, _, r, _ in cases(range(6000, 6005)):
        edges, _, _ = cell_counts(r)
        x = edges[1:-1, None]
        below = np.sum(r.deflated_value <= x, axis=1) / r.parameters
        for t, w, low, high in zip(*(v if v is not None else () for v in node_fields(r)), strict=True):
            left = np.where(t > low, np.clip((x - low) / np.where(t > low, t - low, 1), 0, 1) ** 2, x >= t)
            right = np.where(high > t, np.clip((high - x) / np.where(high > t, high - t, 1), 0, 1) ** 2, x < t)
            below = below + (w / 2 * (left + 1 - right)).sum(axis=1) / len(r.node)
        shares = np.diff(np.r_[0, below, 1])
        np.testing.assert_allclose(r.density[::2] * np.diff(r.grid)[::2], shares, atol=1e-12, err_msg=told)


def node_fields(r: Spectrum) -> tuple[np.ndarray | None, ...]:
    return r.node, r.weight, r.node_low, r.node_high


def test_the_terminal_counts_as_the_density_does() -> None:
    """The same edges give the same numbers: one mathematics."""
    for told, _, r, _ in cases(range(7000, 7003)):
        if r.node is None:
            continue
        edges, low, high = cell_counts(r)
        arrays = r.arrays()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(terminal_histogram, "bin_edges", lambda *_, e=edges: e)
            found = terminal_histogram.count_eigenvalues(arrays)
        assert found is not None
        np.testing.assert_allclose(found.low, low, atol=1e-6, err_msg=told)
        np.testing.assert_allclose(found.high, high, atol=1e-6, err_msg=told)


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_a_distribution_are_those_of_its_moments(seed: int) -> None:
    """Against the sharp bracket: as far apart as the Christoffel function, and never inside of it."""
    rng = np.random.default_rng(seed)
    values = np.sort(drawn(rng))
    z = torch.from_numpy(rng.normal(size=(len(values), 3)))
    rule = gauss(tridiagonalise(lambda v: torch.from_numpy(values)[:, None] * v, z, int(rng.integers(2, 25))))
    inside = float(values[0]), float(values[-1])
    low, high = brackets(rule.nodes, rule.weights, rule.residuals, inside)
    none = np.zeros(0)
    measure = Measure(rule.nodes, rule.weights, low, high, rule.residuals, none, none, (-np.inf, np.inf), len(values))
    for x in rng.uniform(*inside, 20):
        least, most = _distributions(measure, np.array([x]), np.zeros(1))
        sharp = distribution_bracket(rule.tridiagonals, float(x))
        assert np.all(least[:, 0] <= sharp[0] + 1e-9), (seed, x)
        assert np.all(sharp[1] <= most[:, 0] + 1e-9), (seed, x)
        assert np.all(most[:, 0] - least[:, 0] <= 2 * (sharp[1] - sharp[0]) + 1e-9), (seed, x)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1.0, -1e-20, 1e20])
def test_multiples_of_the_identity_have_finite_densities(scale: float, exact: bool) -> None:
    """The zero Hessian too: one cell, of width 2 where nothing gives a unit."""
    problem = quadratic(np.full(40, scale), 0, torch.float64, mirrors=0)
    r = landscape.spectrum(problem, exact=exact, probes=3, steps=5, top=2, bottom=2)
    edges, low, high = cell_counts(r)
    assert np.isfinite(r.density).all()
    assert np.trapezoid(r.density, r.grid) == pytest.approx(1)
    place = int(np.flatnonzero((edges[:-1] <= scale) & (scale <= edges[1:]))[0])
    assert low[place] - 1e-9 <= 40 <= high[place] + 1e-9
    if scale == 0:
        assert r.density.max() == 0.5
    assert histogram_lines(r.arrays())


@pytest.mark.parametrize("products", [None, 5])
@pytest.mark.parametrize("exact", [True, False])
def test_a_kernel_stands_where_all_eigenvalues_are_zero(products: int | None, exact: bool) -> None:
    """Also where too few products were allowed for taking one out."""
    settings = {"exact": exact, "density_width": 0.1, "max_products": products}
    r = landscape.spectrum(quadratic(np.zeros(12), 0), **settings)
    expected = np.exp(-0.5 * (r.grid / 0.1) ** 2) / (0.1 * np.sqrt(2 * np.pi))
    for density in (r.density_low, r.density, r.density_high):
        assert np.allclose(density, expected)


def test_a_kernel_of_given_width_is_the_one_of_the_papers() -> None:
    """Gaussians at what is stored; its interval, averaged over the grid, contains the smoothed true spectrum."""
    inside = []
    for told, rng, _, truth in cases(range(8000, 8006)):
        seed = int(rng.integers(10**6))
        width = float(np.ptp(truth) * 10 ** rng.uniform(-2, -0.5))
        r = solved(quadratic(truth, seed), probes=6, steps=20, top=2, bottom=2, seed=seed, density_width=width)
        assert set(r.kernel_width) == {width}

        def smooth(at: np.ndarray, weight: np.ndarray, w: float = width, grid: np.ndarray = r.grid) -> np.ndarray:
            return norm.pdf(grid[:, None], at.ravel(), w) @ weight.ravel()

        exact = smooth(r.deflated_value, np.full(len(r.deflated_value), 1 / len(truth)))
        probes = smooth(r.node, r.weight) / len(r.node) if r.node is not None else 0.0
        np.testing.assert_allclose(r.density, exact + probes, rtol=1e-9, atol=1e-12 / width, err_msg=told)
        assert np.trapezoid(r.density, r.grid) == pytest.approx(1, abs=1e-3), told
        true = smooth(truth, np.full(len(truth), 1 / len(truth)))
        inside.append(np.mean((r.density_low <= true + 1e-9 / width) & (true <= r.density_high + 1e-9 / width)))
    assert np.mean(inside) >= 0.95, inside


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_kernel_without_width_is_refused(width: float) -> None:
    with pytest.raises(UsageError, match="--density-width"):
        solved(quadratic(np.ones(5), 0), density_width=width)
    with pytest.raises(UsageError, match="--no-density"):
        solved(quadratic(np.ones(5), 0), density_width=1.0, density=False)


def test_a_peak_at_zero_is_one_in_every_figure() -> None:
    """The cell around zero holds most; a finer axis would stretch it over decades until it looked like a dip."""
    values = np.r_[np.zeros(120), np.geomspace(1e-3, 1, 40), -np.geomspace(1e-3, 0.3, 20)]
    peaked = solved(quadratic(values, 0), probes=4, steps=15, top=2, bottom=2)
    fine = landscape.spectrum(quadratic(np.geomspace(1e-9, 1, 60), 0, torch.float64), exact=True, top=2, bottom=2)
    results = [stored(peaked, width=1), *(stored(fine, width=w) for w in (2, 3, 4))]
    cell = zero_cell(results[0])
    assert cell is not None
    for width in (linear_width(results[0]), shared_width(results)):
        curve = per_decade(results[0], width)
        assert curve is not None
        assert set(curve.x[curve.y == curve.y.max()]) == set(cell)
        assert width >= max(-cell[0], cell[1])
