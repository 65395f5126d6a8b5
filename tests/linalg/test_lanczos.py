"""Lanczos against its defining identity, planted spectra and its own bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.linalg.basis import Basis
from landscape.linalg.lanczos import Extremes, lanczos, lanczos_extremes
from planted import planted_dense, planted_matvec, planted_vectors

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def eps(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(n: int, dtype: torch.dtype = torch.float64, seed: int = 0, width: int = 0) -> torch.Tensor:
    """A random vector [n], or a block [n, width]."""
    shape = (n, width) if width else (n,)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def extremes(
    eigenvalues: np.ndarray, top: int, bottom: int, dtype=torch.float64, seed: int = 0, width: int = 0, **kwargs
) -> Extremes:
    settings = {
        "rtol": 1e-4 if dtype == torch.float32 else 1e-8,
        "tau": 3e-6 if dtype == torch.float32 else 1e-12,
        "noise": 0.0,
        "max_products": 10_000,
        "max_basis": 10_000,
        "generator": generator(seed + 1),
    }
    matvec = planted_matvec(eigenvalues, dtype, seed=3)
    begin = start(len(eigenvalues), dtype, seed, width)
    return lanczos_extremes(matvec, begin, top=top, bottom=bottom, **(settings | kwargs))


def hessian_like(n: int = 800) -> np.ndarray:
    """Outliers, a bulk around zero and a few small negatives: what a network's Hessian looks like."""
    bulk = np.abs(np.random.default_rng(0).normal(size=n - 15)) * 1e-3
    return np.r_[np.logspace(0, 2, 10), bulk, -4e-3 * np.arange(1, 6)]


SPECTRA = {
    "normal": np.random.default_rng(1).normal(size=300),
    "hessian": hessian_like(),
    "cluster": np.r_[3 + 1e-3 * np.arange(8), np.linspace(-1, 1, 400), -2 - 1e-3 * np.arange(5)],
    "graded": np.r_[np.logspace(-6, 2, 150), -np.logspace(-6, 1, 50)],
    "positive": np.linspace(1, 2, 200) ** 8,
}


def assert_within_residuals(found: Extremes, truth: np.ndarray) -> None:
    for value, residual in [(found.top_value, found.top_residual), (found.bottom_value, found.bottom_residual)]:
        distance = np.abs(value[:, None] - truth[None, :]).min(axis=1, initial=np.inf)
        assert np.all(distance <= residual)


@DTYPES
@pytest.mark.parametrize("steps", [1, 7, 60, 300])
def test_identity_and_orthogonality(dtype: torch.dtype, steps: int) -> None:
    truth = hessian_like()
    q, t, beta, residual = lanczos(planted_matvec(truth, dtype, seed=3), start(800, dtype), steps)
    assert q.shape == (800, steps)
    assert t.shape == (steps, steps)
    assert np.array_equal(t, t.T)
    q, residual = q.double(), residual.double()
    h = planted_dense(truth, seed=3)
    right = torch.zeros(800, steps, dtype=torch.float64)
    right[:, -1] = beta * residual
    assert float((h @ q - q @ torch.from_numpy(t) - right).norm(dim=0).max()) < 20 * eps(dtype) * 100
    together = torch.cat([q, residual[:, None]], dim=1)
    assert float((together.T @ together - torch.eye(steps + 1)).abs().max()) < 20 * eps(dtype)


@DTYPES
def test_tridiagonal_before_any_restart(dtype: torch.dtype) -> None:
    _, t, _, _ = lanczos(planted_matvec(hessian_like(), dtype, seed=3), start(800, dtype), 50)
    assert np.abs(np.triu(t, 2)).max() < 10 * eps(dtype) * 100


@DTYPES
def test_as_many_steps_as_dimensions_give_the_spectrum(dtype: torch.dtype) -> None:
    truth = np.sort(np.random.default_rng(2).normal(size=120))
    _, t, beta, residual = lanczos(planted_matvec(truth, dtype), start(120, dtype), 500)
    assert beta == 0
    assert float(residual.abs().max()) == 0
    assert np.abs(np.linalg.eigvalsh(t) - truth).max() < 20 * eps(dtype) * 3


def test_ends_with_the_krylov_space_unless_given_a_generator() -> None:
    truth = np.repeat([1.0, 2.0, 5.0], [10, 20, 3])
    matvec = planted_matvec(truth)
    _, t, beta, _ = lanczos(matvec, start(33), 20)
    assert beta == 0
    assert np.allclose(np.linalg.eigvalsh(t), [1, 2, 5])
    q, t, _, _ = lanczos(matvec, start(33), 33, generator())
    assert np.allclose(np.linalg.eigvalsh(t), np.sort(truth))
    assert torch.allclose(q.T @ q, torch.eye(33, dtype=torch.float64), atol=1e-13)


@DTYPES
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("top", "bottom"), [(5, 5), (10, 0), (0, 4), (1, 1)])
def test_finds_both_ends(name: str, dtype: torch.dtype, top: int, bottom: int) -> None:
    truth = np.sort(SPECTRA[name])
    found = extremes(truth, top, bottom, dtype)
    assert found.top_converged.all()
    assert found.bottom_converged.all()
    assert_within_residuals(found, truth)
    # by rank, not only near some eigenvalue: nothing skipped, nothing twice
    assert np.all(np.abs(found.top_value - truth[::-1][:top]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - truth[:bottom]) <= found.bottom_residual)
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1).double()
    assert float((vectors.norm(dim=0) - 1).abs().max()) < 10 * eps(dtype)
    values = torch.from_numpy(np.r_[found.top_value, found.bottom_value])
    true_residual = (planted_matvec(truth, seed=3)(vectors) - vectors * values).norm(dim=0).numpy()
    assert np.all(true_residual <= 1.001 * np.r_[found.top_residual, found.bottom_residual])


@DTYPES
def test_no_ghosts_at_400_steps(dtype: torch.dtype) -> None:
    truth = np.sort(hessian_like(1500))
    _, t, _, _ = lanczos(planted_matvec(truth, dtype), start(1500, dtype), 400)
    ritz = np.linalg.eigvalsh(t)
    # the outliers converge within 30 steps; without reorthogonalisation each would be there many times
    assert np.abs(ritz[-10:] - truth[-10:]).max() < 20 * eps(dtype) * 100
    assert np.all(ritz <= truth[-len(ritz) :] + 20 * eps(dtype) * 100)
    assert np.all(ritz >= truth[: len(ritz)] - 20 * eps(dtype) * 100)


@DTYPES
@pytest.mark.parametrize("max_basis", [13, 16, 25, 40])
def test_thick_restart_equals_unrestarted(dtype: torch.dtype, max_basis: int) -> None:
    truth = np.sort(hessian_like())
    found = extremes(truth, 5, 5, dtype, max_basis=max_basis)
    assert found.basis_size <= max_basis
    assert (found.restarts > 0) == (found.products > max_basis)
    assert np.all(np.abs(found.top_value - truth[::-1][:5]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - truth[:5]) <= found.bottom_residual)
    assert found.top_converged.all()
    assert found.bottom_converged.all()
    if found.restarts:
        assert found.unrestarted_steps == max_basis
        assert found.unrestarted_max <= truth[-1] + found.top_residual[0]


def test_restart_costs_few_products() -> None:
    plain = extremes(hessian_like(), 5, 5, rtol=1e-4, tau=1e-7).products
    restarted = extremes(hessian_like(), 5, 5, rtol=1e-4, tau=1e-7, max_basis=25).products
    assert restarted < 1.5 * plain


def test_rows_held_never_exceed_max_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    append = Basis.append

    def counted(basis, block):
        append(basis, block)
        held.append(sum(slab.shape[0] for slab in basis._slabs))

    monkeypatch.setattr(Basis, "append", counted)
    extremes(SPECTRA["normal"], 5, 5, max_basis=37)
    assert max(held) == 37
    held.clear()
    extremes(np.r_[10.0, np.ones(2999)], 1, 0)
    assert max(held) <= 256


@DTYPES
@pytest.mark.parametrize("max_basis", [10_000, 20])
def test_projected_is_the_projection(dtype: torch.dtype, max_basis: int) -> None:
    truth = hessian_like()
    found = extremes(truth, 5, 5, dtype, max_basis=max_basis)
    h = planted_dense(truth, seed=3)
    q = found.project(torch.eye(800, dtype=dtype))  # [m, n], the rows themselves
    assert q.dtype == torch.float64
    assert q.shape[0] == found.basis_size == len(found.ritz_values)
    assert np.abs((q @ h @ q.T).numpy() - found.projected).max() < 40 * eps(dtype) * 100
    assert float((q @ q.T - torch.eye(len(q))).abs().max()) < 20 * eps(dtype)
    assert np.allclose(found.ritz_values, np.linalg.eigvalsh(found.projected))
    # Cauchy interlacing is what makes counts of Ritz values certificates
    assert np.sum(found.ritz_values < -2e-3) <= np.sum(truth < -2e-3)


@DTYPES
@pytest.mark.parametrize(
    "truth",
    [
        np.r_[[5.0] * 3, [1.0] * 60],
        np.r_[[5.0] * 3, [1.0] * 60, [-2.0] * 4],
        np.r_[3.0, 2.0, 1.0, np.zeros(200)],
        np.zeros(30),
        np.ones(30),
    ],
    ids=["two", "three", "low-rank", "zero", "identity"],
)
def test_multiplicities(truth: np.ndarray, dtype: torch.dtype) -> None:
    found = extremes(truth, 4, 5, dtype)
    ordered = np.sort(truth)
    assert np.all(np.abs(found.top_value - ordered[::-1][:4]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - ordered[:5]) <= found.bottom_residual)
    assert found.products < 40
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1).double()
    assert float((vectors.T @ vectors - torch.eye(9)).abs().max()) < 50 * eps(dtype)


@DTYPES
def test_disconnected_blocks(dtype: torch.dtype) -> None:
    # the start lies in the first block only: the larger eigenvalues are found by the random continuation
    values = torch.cat([torch.linspace(1, 2, 20), torch.linspace(-3, 4, 200)]).to(dtype)
    begin = torch.cat([start(20, dtype), torch.zeros(200, dtype=dtype)])
    found = lanczos_extremes(
        lambda v: values[:, None] * v, begin, top=3, bottom=2, rtol=1e-5, tau=1e-5, noise=0.0,
        max_products=500, max_basis=500, generator=generator(),
    )  # fmt: skip
    ordered = np.sort(values.double().numpy())
    assert np.allclose(found.top_value, ordered[::-1][:3], atol=1e-4)
    assert np.allclose(found.bottom_value, ordered[:2], atol=1e-4)


@DTYPES
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_changes_nothing(dtype: torch.dtype, scale: float) -> None:
    plain, scaled = extremes(hessian_like(), 5, 3, dtype), extremes(hessian_like() * scale, 5, 3, dtype)
    assert abs(plain.products - scaled.products) <= 3
    assert np.all(np.abs(scaled.top_value / scale - plain.top_value) <= 2 * plain.top_residual)
    assert scaled.top_converged.all()
    assert scaled.bottom_converged.all()


@DTYPES
def test_tiny_negatives(dtype: torch.dtype) -> None:
    small = 1e-4 if dtype == torch.float32 else 1e-9
    truth = np.r_[np.linspace(0.1, 1, 300), -small, -3 * small]
    found = extremes(truth, 1, 2, dtype, tau=small / 50)
    assert np.all(np.abs(found.bottom_value - [-3 * small, -small]) <= found.bottom_residual)
    assert np.all(found.bottom_residual < small / 10)


@pytest.mark.parametrize(("n", "top", "bottom"), [(1, 1, 1), (2, 5, 5), (12, 10, 10), (12, 12, 0), (12, 3, 9)])
def test_small_spaces_are_exhausted(n: int, top: int, bottom: int) -> None:
    truth = np.arange(n) - 3.0
    found = extremes(truth, top, bottom, max_products=n)
    assert found.exhausted
    assert found.products == n
    assert np.allclose(found.top_value, truth[::-1][:top])
    assert np.allclose(found.bottom_value, truth[:bottom])
    assert np.allclose(found.ritz_values, truth)


@pytest.mark.parametrize("max_products", [1, 2, 5, 9, 17])
def test_max_products_is_strict(max_products: int) -> None:
    taken = 0
    inner = planted_matvec(SPECTRA["normal"])

    def counted(v: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += v.shape[1]
        return inner(v)

    found = lanczos_extremes(
        counted, start(300), top=5, bottom=5, rtol=1e-10, tau=0.0, noise=0.0,
        max_products=max_products, max_basis=13, generator=generator(),
    )  # fmt: skip
    assert taken == found.products == max_products
    assert len(found.top_value) + len(found.bottom_value) == min(10, max_products)
    assert not found.top_converged.any()
    assert_within_residuals(found, SPECTRA["normal"])
    assert np.all(found.top_value >= found.bottom_value.max(initial=-np.inf))


@DTYPES
def test_deflation(dtype: torch.dtype) -> None:
    truth = np.sort(hessian_like())
    picked = torch.zeros(800, 7, dtype=torch.float64)
    picked[[799, 798, 797, 796, 795, 0, 1], range(7)] = 1
    deflate = planted_vectors(800, picked, seed=3).to(dtype)
    found = extremes(truth, 3, 3, dtype, deflate=deflate)
    assert np.all(np.abs(found.top_value - truth[::-1][5:8]) <= found.top_residual + 1e-6 * (dtype == torch.float32))
    assert np.all(np.abs(found.bottom_value - truth[2:5]) <= found.bottom_residual)
    assert float((deflate.T @ found.top_vector).abs().max()) < 50 * eps(dtype)


def test_deflation_leaves_a_space_that_can_be_exhausted() -> None:
    deflate = planted_vectors(10, torch.eye(10)[:, :4])
    found = extremes(np.arange(10.0), 3, 3, deflate=planted_vectors(10, torch.eye(10)[:, :4], seed=3))
    assert deflate.shape == (10, 4)
    assert found.exhausted
    assert found.products == 6
    assert np.allclose(found.ritz_values, np.arange(4.0, 10.0))


def test_noise_is_in_the_residual_and_ends_the_search() -> None:
    truth, noise = hessian_like(), 1e-4
    inner, draws = planted_matvec(truth, seed=3), generator(9)

    def noisy(v: torch.Tensor) -> torch.Tensor:
        e = torch.randn(v.shape, generator=draws, dtype=torch.float64)
        return inner(v) + noise * v.norm() * e / e.norm()

    found = lanczos_extremes(
        noisy, start(800), top=5, bottom=5, rtol=1e-9, tau=0.0, noise=noise,
        max_products=2000, max_basis=2000, generator=generator(),
    )  # fmt: skip
    assert found.products < 120  # it would be all of them without the stop
    assert not found.top_converged.any()
    assert np.all(found.top_residual >= 2 * noise)
    assert_within_residuals(found, truth)


def test_float32_residuals_hold_with_the_noise_measured_against_float64() -> None:
    truth = np.sort(np.r_[np.random.default_rng(0).normal(size=500), 40.0, 60.0])
    z = start(502, seed=5)
    z /= z.norm()
    noise = float((planted_matvec(truth, torch.float32, 3)(z.float()[:, None]).double()
                   - planted_matvec(truth, torch.float64, 3)(z[:, None])).norm())  # fmt: skip
    for seed in range(5):
        found = extremes(truth, 8, 8, torch.float32, seed=seed, noise=noise, rtol=1e-3, tau=1e-4)
        assert_within_residuals(found, truth)
        assert found.top_converged.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    calls = 0

    def matvec(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        out = torch.linspace(0, 1, 50)[:, None] * v
        if calls == 4:
            out[7] = bad
        return out

    with pytest.raises(FloatingPointError, match="step 4"):
        lanczos_extremes(
            matvec, start(50, torch.float32), top=2, bottom=2, rtol=1e-6, tau=0.0, noise=0.0,
            max_products=50, max_basis=50, generator=generator(),
        )  # fmt: skip


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="basis rows"):
        extremes(np.arange(100.0), 5, 5, max_basis=12)
    with pytest.raises(ValueError, match="products"):
        extremes(np.arange(100.0), 5, 5, max_products=0)
    with pytest.raises(ValueError, match="start vector"):
        lanczos(planted_matvec(np.ones(5)), torch.zeros(5), 2)


def test_the_operator_may_return_its_argument() -> None:
    found = lanczos_extremes(
        lambda v: v, start(20), top=2, bottom=2, rtol=1e-9, tau=0.0, noise=0.0,
        max_products=20, max_basis=20, generator=generator(),
    )  # fmt: skip
    assert np.allclose(found.top_value, 1)
    assert np.allclose(found.bottom_value, 1)


def test_reproducible_and_independent_of_global_seeds() -> None:
    torch.manual_seed(1)
    first = extremes(np.r_[[5.0] * 3, [1.0] * 60], 4, 5)
    torch.manual_seed(2)
    second = extremes(np.r_[[5.0] * 3, [1.0] * 60], 4, 5)
    assert torch.equal(first.top_vector, second.top_vector)


def test_progress_ends_with_all_done() -> None:
    seen: list[tuple[int, int, int]] = []
    found = extremes(SPECTRA["normal"], 5, 5, progress=lambda *state: seen.append(state))
    assert seen[-1] == (found.products, 10, 10)
    assert [p for p, _, _ in seen] == sorted({p for p, _, _ in seen})
    assert len(seen) < found.products


@pytest.mark.parametrize("n", [400, 1000])
def test_wigner_edges(n: int) -> None:
    g = torch.randn(n, n, generator=generator(4), dtype=torch.float64)
    h = (g + g.T) / (2 * n) ** 0.5  # entries of variance 1/n: edges ±2, up to n^(−2/3)
    found = lanczos_extremes(
        lambda v: h @ v, start(n), top=1, bottom=1, rtol=1e-6, tau=0.0, noise=0.0,
        max_products=n, max_basis=n, generator=generator(),
    )  # fmt: skip
    assert abs(found.top_value[0] - 2) < 4 * n ** (-2 / 3)
    assert abs(found.bottom_value[0] + 2) < 4 * n ** (-2 / 3)


def test_spiked_wigner_outlier() -> None:
    n, theta = 1000, 3.0
    g = torch.randn(n, n, generator=generator(4), dtype=torch.float64)
    u = torch.nn.functional.normalize(start(n, seed=8), dim=0)
    h = (g + g.T) / (2 * n) ** 0.5 + theta * torch.outer(u, u)
    found = lanczos_extremes(
        lambda v: h @ v, start(n), top=2, bottom=0, rtol=1e-4, tau=0.0, noise=0.0,
        max_products=n, max_basis=n, generator=generator(),
    )  # fmt: skip
    assert abs(found.top_value[0] - (theta + 1 / theta)) < 4 / n**0.5
    assert abs(found.top_value[1] - 2) < 0.1


def test_marchenko_pastur_edges() -> None:
    samples, d = 4000, 250
    x = torch.randn(samples, d, generator=generator(6), dtype=torch.float64)
    found = lanczos_extremes(
        lambda v: 2 / samples * (x.T @ (x @ v)), start(d), top=1, bottom=1, rtol=1e-6, tau=0.0, noise=0.0,
        max_products=d, max_basis=d, generator=generator(),
    )  # fmt: skip
    root = (d / samples) ** 0.5
    assert abs(found.top_value[0] - 2 * (1 + root) ** 2) < 0.1
    assert abs(found.bottom_value[0] - 2 * (1 - root) ** 2) < 0.1


# ---- blocks ---------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("width", [2, 5])
def test_blocks_find_both_ends(name: str, dtype: torch.dtype, width: int) -> None:
    truth = np.sort(SPECTRA[name])
    found = extremes(truth, 5, 4, dtype, width=width)
    assert_within_residuals(found, truth)
    assert np.all(np.abs(found.top_value - truth[::-1][:5]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - truth[:4]) <= found.bottom_residual)
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1).double()
    values = torch.from_numpy(np.r_[found.top_value, found.bottom_value])
    true_residual = (planted_matvec(truth, seed=3)(vectors) - vectors * values).norm(dim=0).numpy()
    assert np.all(true_residual <= 1.001 * np.r_[found.top_residual, found.bottom_residual])


@DTYPES
@pytest.mark.parametrize("max_basis", [10_000, 24])
@pytest.mark.parametrize("width", [3, 4])
def test_projected_is_the_projection_with_blocks(dtype: torch.dtype, max_basis: int, width: int) -> None:
    found = extremes(hessian_like(), 5, 5, dtype, width=width, max_basis=max_basis)
    assert found.basis_size <= max_basis
    assert (found.restarts > 0) == (max_basis == 24)
    assert found.top_converged.all()
    assert found.bottom_converged.all()
    h = planted_dense(hessian_like(), seed=3)
    q = found.project(torch.eye(800, dtype=dtype))
    assert np.abs((q @ h @ q.T).numpy() - found.projected).max() < 40 * eps(dtype) * 100
    assert float((q @ q.T - torch.eye(len(q))).abs().max()) < 20 * eps(dtype) * (1 + found.restarts)
    if not found.restarts:
        assert found.unrestarted_steps == -(-found.products // width)


@DTYPES
def test_a_block_sees_as_many_copies_as_it_is_wide(dtype: torch.dtype) -> None:
    truth = np.r_[[5.0] * 3, np.linspace(-1, 1, 300), [-2.0] * 2]
    found = extremes(truth, 3, 2, dtype, width=3)
    assert np.allclose(found.top_value, 5.0, atol=found.top_residual.max())
    assert np.allclose(found.bottom_value, -2.0, atol=found.bottom_residual.max())


@DTYPES
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize(
    "truth",
    [np.arange(12) - 3.0, np.r_[[5.0] * 3, [1.0] * 60], np.zeros(30), np.ones(31), np.r_[3.0, 2.0, 1.0, np.zeros(200)]],
    ids=["twelve", "two", "zero", "identity", "low-rank"],
)
def test_blocks_whose_space_is_exhausted(truth: np.ndarray, width: int, dtype: torch.dtype) -> None:
    found = extremes(truth, 4, 5, dtype, width=width)
    ordered = np.sort(truth)
    assert np.all(np.abs(found.top_value - ordered[::-1][:4]) <= found.top_residual)
    assert np.all(np.abs(found.bottom_value - ordered[:5]) <= found.bottom_residual)
    assert found.products < 60
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1).double()
    assert float((vectors.T @ vectors - torch.eye(9)).abs().max()) < 50 * eps(dtype)


@pytest.mark.parametrize("max_products", [4, 5, 9, 18])
def test_max_products_is_strict_with_blocks(max_products: int) -> None:
    found = extremes(SPECTRA["normal"], 3, 3, width=4, max_products=max_products)
    assert found.products <= max_products
    assert found.products == max_products - max_products % 4
    assert not found.top_converged.all()
    assert_within_residuals(found, SPECTRA["normal"])


def test_basis_rows_off_the_device_change_nothing() -> None:
    plain, offloaded = (extremes(SPECTRA["normal"], 5, 5, on_device=rows) for rows in (None, 20))
    assert np.allclose(plain.ritz_values, offloaded.ritz_values, atol=1e-12)
    assert torch.allclose(plain.top_vector, offloaded.top_vector, atol=1e-9)


def short_of_room(seed: int) -> tuple[np.ndarray, int]:
    """A spectrum whose Krylov space ends early or whose remainders differ by many orders, and a block's width."""
    rng = np.random.default_rng(seed)
    n, width = int(rng.integers(20, 240)), int(rng.integers(2, 8))
    count = int(rng.integers(1, 9))
    kind = seed % 4
    if kind == 0:  # low rank
        truth = np.r_[rng.normal(size=count), np.zeros(n - count)]
    elif kind == 1:  # a few multiple eigenvalues
        truth = rng.choice(rng.normal(size=count), size=n)
    elif kind == 2:  # ranks at every order of magnitude
        truth = np.r_[10.0 ** -rng.uniform(0, 17, size=2 * count), np.zeros(n - 2 * count)] * rng.choice([-1, 1], n)
    else:  # clusters a rounding apart
        truth = rng.choice(rng.normal(size=count), size=n) * (1 + rng.normal(size=n) * 10.0 ** -rng.uniform(8, 16))
    return truth, width


@DTYPES
@pytest.mark.parametrize("seed", range(40))
def test_short_directions_of_a_block_stay_orthogonal(seed: int, dtype: torch.dtype) -> None:
    truth, width = short_of_room(seed)
    found = extremes(truth, 4, 4, dtype, seed=seed, width=width)
    case = f"short_of_room({seed}): n={len(truth)}, width={width}"
    q = found.project(torch.eye(len(truth), dtype=dtype))
    assert float((q @ q.T - torch.eye(len(q))).abs().max()) < 20 * eps(dtype) * (1 + found.restarts), case
    assert_within_residuals(found, truth)
    ordered, rounding = np.sort(truth), 20 * eps(dtype) * np.abs(truth).max()
    # Copies may be missing, since the space need not be exhausted; by Cauchy interlacing nothing is there twice.
    assert np.all(found.ritz_values <= ordered[-len(q) :] + rounding), case
    assert np.all(found.ritz_values >= ordered[: len(q)] - rounding), case
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1).double()
    values = torch.from_numpy(np.r_[found.top_value, found.bottom_value])
    true_residual = (planted_matvec(truth, seed=3)(vectors) - vectors * values).norm(dim=0).numpy()
    assert np.all(true_residual <= 1.001 * np.r_[found.top_residual, found.bottom_residual]), case
