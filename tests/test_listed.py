"""Lists of extreme eigenvalues say from which rank on one may be missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape import spectrum
from landscape.curvature.eigenpairs import Pairs, missed
from landscape.linalg.quadrature import tridiagonalise
from landscape.spectra.completeness import complete_ranks, reach_of
from planted import planted_matvec, planted_vectors
from surfaces import quadratic, surface


def pairs(values: np.ndarray, vectors: torch.Tensor) -> Pairs:
    few = len(values)
    return Pairs(values, np.full(few, 1e-9), np.ones(few, dtype=bool), vectors)


@pytest.mark.parametrize("seed", range(30))
def test_a_missing_eigenvalue_is_seen_or_its_rank_is_said_to_be_open(seed: int) -> None:
    r = np.random.default_rng(seed)
    n, steps, gone = 120, int(r.integers(4, 60)), int(r.integers(0, 5))
    ends = np.cumsum(10.0 ** r.uniform(-5, -1, 7))
    eigenvalues = np.concatenate([-1 + ends - ends[-1], np.sort(r.uniform(-1 + 1e-3, 1, n - 7))])
    matvec = planted_matvec(eigenvalues, seed=seed)
    listed = [k for k in range(6) if k != gone]
    vectors = planted_vectors(n, torch.eye(n, dtype=torch.float64)[:, listed], seed=seed)
    bottom = pairs(eigenvalues[listed], vectors)
    starts = torch.as_tensor(r.standard_normal((n, 3)))
    starts = starts - vectors @ (vectors.T @ starts)
    probes = tridiagonalise(matvec, starts / starts.norm(dim=0), steps, deflate=vectors)
    reach = reach_of(probes)
    nodes = np.concatenate(
        [
            np.linalg.eigvalsh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
            for a, b in zip(probes.alpha, probes.beta, strict=True)
        ]
    )
    none = pairs(np.zeros(0), vectors[:, :0])
    seen = missed(none, bottom, float(nodes.min()), float(nodes.max()))[1]
    _, complete, notes = complete_ranks(none, bottom, reach)
    assert seen or complete.sum() <= gone, (seed, steps, gone, notes)
    assert bool(notes) == (not complete.all())


def test_separate_ends_need_no_note_and_dense_ones_get_one() -> None:
    apart = torch.cat([torch.tensor([-3.0, -2.0]), torch.linspace(-0.1, 0.1, 296), torch.tensor([2.0, 3.0])]).double()
    together = -torch.cos(torch.pi * torch.linspace(0, 1, 300, dtype=torch.float64))
    for eigenvalues, expected in ((apart, 0), (together, 2)):
        problem = surface(quadratic(eigenvalues), torch.zeros(300, dtype=torch.float64))
        found = spectrum(problem, exact=False, top=2, bottom=2, probes=3, steps=12)
        assert found.spent is not None
        assert sum("the list may lack one" in note for note in found.spent.notes) == expected
        assert [bool(c.all()) for c in (found.top_complete, found.bottom_complete)] == [not expected] * 2
