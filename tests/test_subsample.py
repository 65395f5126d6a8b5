"""`--samples`: equal random parts whatever the batches, and intervals that hold, or say that they cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import commands
from landscape import spectrum
from landscape.errors import UsageError
from landscape.problem.problem import Problem
from landscape.spectra.sampling import disjoint_parts, extrapolate, over_all

RAGGED = [[1, 8, 22, 8, 61], [100], [7] * 14 + [2], [99, 1], [5] * 20]


@pytest.mark.parametrize("sizes", RAGGED)
@pytest.mark.parametrize("groups", [5, 33])
def test_parts_are_equal_and_disjoint_and_all(sizes: list[int], groups: int) -> None:
    numbers = torch.arange(100.0)
    batches = [(b, -b) for b in numbers.split(sizes)]
    parts = disjoint_parts(batches, groups)
    lengths = [sum(len(x) for x, _ in part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert torch.equal(torch.cat([x for part in parts for x, _ in part]).sort().values, numbers)
    assert all(torch.equal(x, -y) for part in parts for x, y in part)
    again = disjoint_parts([(numbers, -numbers)], groups)
    assert [sorted(x for b, _ in p for x in b.tolist()) for p in parts] == [
        sorted(b.tolist()) for p in again for b, _ in p
    ]


def test_fewer_samples_than_parts_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than 5 samples"):
        disjoint_parts([(torch.zeros(4, 1), torch.zeros(4))])


# What samples contribute to a trace, and whether so many of them are enough to say (None: either).
TAILS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], bool | None]] = {
    "even": (lambda r, n: 1 + r.random(n), True),
    "normal squared": (lambda r, n: r.standard_normal(n) ** 2, True),
    "exponential": (lambda r, n: r.exponential(size=n), True),
    "a last batch of another scale": (lambda r, n: np.where(np.arange(n) < 0.95 * n, 1.0, 25.0) * r.random(n), None),
    "long": (lambda r, n: np.exp(1.5 * r.standard_normal(n)), None),
    "endless": (lambda r, n: np.exp(2.5 * r.standard_normal(n)), False),
}


# One sample's share of a Hessian of dimension d, as a direction and a weight, and what is there in every sample.
SPECTRA: dict[str, Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "nothing but sampling": (lambda r, n, d: (r.normal(size=(n, d)), r.normal(size=n), np.zeros(d))),
    "zeros beside a large one": (
        lambda r, n, d: (r.normal(size=(n, d)), 0.3 * r.normal(size=n), np.r_[np.zeros(d - 1), 2])
    ),
    "one that stands alone": (
        lambda r, n, d: (r.normal(size=(n, d)), 0.2 * r.normal(size=n), np.r_[-2, np.zeros(d - 2), 3])
    ),
    "semidefinite": (lambda r, n, d: (r.normal(size=(n, d)), r.random(n), np.zeros(d))),
}


@pytest.mark.parametrize("kept", [80, 150, 300])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues_over_all_data_are_held_at_either_end(name: str, kept: int) -> None:
    """Of 600 samples; whether the eigenvalue stands alone or is the edge of many."""
    rng, total, trials = np.random.default_rng(kept), 600, 80
    missed = np.zeros(2, dtype=int)
    for _ in range(trials):
        size = int(rng.integers(2, kept // 20))  # parts hold four times as many samples at least
        x, weight, fixed = SPECTRA[name](rng, total, size)

        def ends(part: np.ndarray, x: np.ndarray = x, w: np.ndarray = weight, f: np.ndarray = fixed) -> np.ndarray:
            values = np.linalg.eigvalsh((x[part] * w[part, None]).T @ x[part] / len(part) + np.diag(f))
            return values[[0, -1]]

        drawn = rng.permutation(total)[:kept]
        parts = np.array([ends(p) for p in np.array_split(drawn, 5)])
        for end, (true, value) in enumerate(zip(ends(np.arange(total)), ends(drawn), strict=True)):
            found = extrapolate(value, parts[:, end], kept, total)
            missed[end] += not found.low <= true <= found.high
    most = stats.binom.ppf(0.999, trials, 0.05)
    assert missed.max() <= most, f"{missed} of {trials} missed"


@pytest.mark.parametrize("name", TAILS)
def test_the_mean_over_all_data_is_held_or_not_said(name: str) -> None:
    """Of 400 samples of 4,000, in 40 parts."""
    draw, enough = TAILS[name]
    seed, sets = 11, 250
    r = np.random.default_rng(seed)
    missed = said = 0
    for _ in range(sets):
        everything = draw(r, 4000)
        used = torch.as_tensor(r.permutation(everything)[:400])
        parts = np.array([float(p[0].mean()) for p in disjoint_parts([used], 40, int(r.integers(1 << 30)))])
        found = over_all(float(used.mean()), parts, 400, 4000)
        said += not math.isnan(found.low)
        missed += bool(found.low > everything.mean() or found.high < everything.mean())
    assert stats.binomtest(missed, sets).proportion_ci(0.998, method="exact").low <= 0.05, (seed, missed)
    if enough is not None:
        assert (said > 0.9 * sets) if enough else (said < 0.3 * sets), (seed, said)


def regression(scale: np.ndarray, sizes: list[int]) -> Problem:
    """Linear regression: the trace of its Hessian is 2/n Σ ‖x_i‖²."""
    r = np.random.default_rng(3)
    x = torch.as_tensor(scale[:, None] * r.standard_normal((len(scale), 6)))
    y = torch.as_tensor(r.standard_normal((len(scale), 1)))
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return Problem(nn.Linear(6, 1, bias=False).double(), batches, "mse")


def test_the_trace_over_all_data_is_held_across_batches_of_different_scales() -> None:
    sizes = [100, 150, 100, 250]
    problem = regression(np.repeat([1.0, 1.0, 1.0, 3.0], sizes), sizes)
    truth = spectrum(problem).trace
    missed = said = 0
    for seed in range(12):
        found = spectrum(problem, samples=200, seed=seed, density=False, top=1, bottom=1)
        said += found.sampling_trace_needed is not None
        missed += found.trace_low > truth or found.trace_high < truth
    assert said >= 9
    assert missed <= 3  # of 12 at 5 %: one in four hundred


def test_where_a_few_samples_make_the_spectrum_it_says_so(tmp_path: Path) -> None:
    scale = np.exp(2.5 * np.random.default_rng(1).standard_normal(600))
    found = spectrum(regression(scale, [600]), samples=200, density=False, top=1, bottom=1)
    assert found.sampling_trace_needed is found.sampling_top_needed is None
    assert math.isnan(found.trace_low)
    (tmp_path / "problem.py").write_text(
        "import torch\nfrom torch import nn\nfrom landscape import Problem\n"
        "def problem():\n    torch.manual_seed(1)\n"
        "    x = torch.randn(600, 3) * torch.exp(2.5 * torch.randn(600, 1))\n"
        "    return Problem(nn.Linear(3, 1), (x, x.sum(1, keepdim=True)), 'mse')\n"
    )
    torch.save(nn.Linear(3, 1).state_dict(), tmp_path / "net.pt")
    options = ("spectrum", "net.pt", "--problem", "problem.py:problem", "--samples", "200", "--force")
    done = commands.run(*options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sampling"]["trace"] == {"low": None, "high": None, "needed": None}
    shown = commands.run(*options, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "not enough samples to say" in shown.stdout


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_out_is_looked_at(seed: int) -> None:
    """A few samples of another scale, none of them drawn: what those drawn say is not enough."""
    r = np.random.default_rng(seed)
    scale = np.ones(400)
    for _ in range(400):
        scale[r.permutation(400)[: r.integers(1, 4)]] = np.exp(r.uniform(2, 6))
        kept = torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:60]
        if (scale[kept.numpy()] == 1).all():
            break
        scale[:] = 1
    else:
        pytest.fail("no such draw")
    found = spectrum(regression(scale, [150, 250]), samples=60, seed=seed, density=False, top=1, bottom=1)
    assert found.sampling_top_low is not None
    assert math.isnan(found.sampling_top_low), f"seed {seed}"
    even = spectrum(regression(np.ones(400), [400]), samples=60, seed=seed, density=False, top=1, bottom=1)
    assert even.sampling_top_low is not None


@pytest.mark.parametrize("ignored", [0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("samples", [30, 200])
def test_parts_in_which_nothing_counts(ignored: float, samples: int) -> None:
    """Labels that are ignored leave parts with nothing to average; at worst nothing is said of all data."""
    torch.manual_seed(samples)
    x, y = torch.randn(600, 5), torch.randint(0, 3, (600,))
    model = nn.Linear(5, 3)
    y[torch.rand(600) < ignored] = -100
    y[torch.randperm(600, generator=torch.Generator().manual_seed(0))[0]] = 1  # one that counts is drawn
    found = spectrum(Problem(model, (x, y), "cross_entropy"), samples=samples, density=False, top=1, bottom=1)
    truth = spectrum(Problem(model, (x, y), "cross_entropy"), density=False, top=1, bottom=1).trace
    assert found.sampling_trace_low is not None
    assert math.isnan(found.sampling_trace_low) or found.sampling_trace_low <= truth <= found.sampling_trace_high
    if ignored == 0.5 and samples == 200:
        assert not math.isnan(found.sampling_trace_low)
