"""The random problems of `make coverage`: the generator repeats itself, the truth agrees with closed forms and with
itself, and every check notices a number that is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import taylor
from bounds_checked import Check, checks
from coverage_page import clopper_pearson, failed, page, table, widths
from coverage_run import read
from dense_truth import Truth, dense_truth
from landscape import spectrum
from landscape.problem.problem import Problem
from landscape.results.fields import Spectrum
from random_networks import Sine
from random_problems import Drawn, draw

ROOT = Path(__file__).resolve().parent.parent


def planted_problem(loss: str, scale: float, seed: int, offset: float = 0.0) -> Problem:
    """Regression on a `Linear`: its Hessian is known in closed form at every scale of outputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(11, 2, generator=generator, dtype=torch.float64) + offset
    if loss == "cross_entropy":
        y = torch.randint(2, (11,), generator=generator)
    elif loss == "bce":
        y = (y > 0).double()
    return Problem(model, (x, y), loss)


def closed_form(problem: Problem) -> np.ndarray:
    """(1/n) Σ C(z) ⊗ xxᵀ in 60 digits, C the curvature of the loss by the outputs; order: weight rows, then bias."""
    x, _ = problem.data
    z = problem.model(x).detach()
    size = 8
    total = mpmath.zeros(size)
    with mpmath.workdps(60):
        for row, out in zip(x.tolist(), z.tolist(), strict=True):
            weight, bias = problem.model.weight.tolist(), problem.model.bias.tolist()
            logits = [mpmath.fsum(mpmath.mpf(w) * mpmath.mpf(v) for w, v in zip(ws, row, strict=True)) + b
                      for ws, b in zip(weight, bias, strict=True)]  # fmt: skip
            assert np.allclose([float(v) for v in logits], out)
            if problem.loss == "mse":
                c = mpmath.diag([2, 2])
            elif problem.loss == "bce":
                c = mpmath.diag([1 / (2 + 2 * mpmath.cosh(v)) for v in logits])
            else:
                v = 1 / (2 + 2 * mpmath.cosh(logits[0] - logits[1]))
                c = mpmath.matrix([[v, -v], [-v, v]])
            jacobian = mpmath.zeros(2, size)
            for k in range(2):
                for i in range(3):
                    jacobian[k, 3 * k + i] = mpmath.mpf(row[i])
                jacobian[k, 6 + k] = 1
            total += jacobian.T * c * jacobian
        total /= len(x)
    return np.array(total.tolist(), dtype=np.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "scale", "offset"),
    [("mse", 1, 0), ("mse", 1, 1e9), ("cross_entropy", 1, 0), ("cross_entropy", 30, 0), ("bce", 1, 0), ("bce", 40, 0)],
)
def test_the_truth_is_the_closed_form_where_float64_cancels_too(
    loss: str, scale: float, offset: float, seed: int
) -> None:
    problem = planted_problem(loss, scale, seed, offset)
    right = closed_form(problem)
    for sharp in (True, False):
        truth = dense_truth(problem, sharp=sharp)
        allowed = truth.error if sharp else 1e-14
        assert np.linalg.norm(truth.matrix - right, 2) <= allowed, (loss, scale, seed, sharp)
        ggn = dense_truth(problem, "ggn", sharp=sharp)
        assert np.linalg.norm(ggn.matrix - right, 2) <= ggn.error, (loss, scale, seed)


@pytest.mark.parametrize("name", sorted(taylor.FUNCTIONS))
def test_taylor_arithmetic_agrees_with_double_backward(name: str) -> None:
    """Every function that it knows, under every named loss, ignored labels included: two ways that share nothing."""
    kind: Any = {"Sine": Sine}.get(name) or getattr(nn, name)
    for seed, loss in enumerate(("mse", "cross_entropy", "bce")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(3, 3), kind(), nn.Linear(3, 2), kind(), nn.Linear(2, 3)).double()
            x, y = torch.randn(7, 3, dtype=torch.float64), torch.rand(7, 3, dtype=torch.float64)
            if loss == "cross_entropy":
                y = torch.tensor([0, 1, -100, 2, 2, 1, 0])
        problem = Problem(model, [(x[:5], y[:5]), (x[5:], y[5:])], loss)
        found = taylor.hessian(loss, model, list(model.parameters()), list(problem.data))
        truth = dense_truth(problem, sharp=False)
        assert found is not None or not taylor.WIDER
        if found is not None:
            assert np.abs(found.astype(float) - truth.matrix).max() <= 1e-14 * truth.scale, (name, loss)


def test_hessian_is_the_sum_of_its_two_halves() -> None:
    """And Gauss–Newton has no negative eigenvalue beyond what its truth allows for."""
    for index in range(4):
        drawn = draw(8, index)
        if isinstance(drawn.problem.loss, str):
            whole, ggn, rest = (dense_truth(drawn.problem, o, sharp=False) for o in ("hessian", "ggn", "residual"))
            off = np.linalg.norm(whole.matrix - ggn.matrix - rest.matrix, 2)
            assert off <= whole.error + ggn.error + rest.error, drawn.name
            assert ggn.eigenvalues[0] >= -ggn.error, drawn.name


def test_a_draw_repeats_itself() -> None:
    for index in range(10):
        first, again = draw(3, index), draw(3, index)
        assert (first.kinds, first.settings) == (again.kinds, again.settings)
        for a, b in zip(
            first.problem.model.state_dict().values(), again.problem.model.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), first.name


@lru_cache(maxsize=1)
def solved() -> tuple[Drawn, Spectrum, Truth]:
    """One plain problem by both ways' fields: iterative, with layers and density."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = tuple(torch.randn(40, k, generator=generator, dtype=torch.float64) for k in (3, 2))
    settings = {"exact": False, "top": 2, "bottom": 2, "by_layer": True, "strategy": "kept", "steps": 12, "probes": 4}
    problem = Problem(model, data, "mse")
    return Drawn(0, 0, {}, problem, settings), spectrum(problem, **settings), dense_truth(problem)


def lies(r: Spectrum, truth: Truth) -> dict[str, dict[str, Any]]:
    """For each check a change of the result that makes the number wrong."""
    far, n = 10 * truth.scale, r.parameters
    every = np.full_like(r.negative_count_low, n)
    assert r.node is not None
    assert r.weight is not None
    assert r.density is not None
    assert r.layer_top is not None
    assert r.layer_bottom is not None
    assert r.grid is not None
    outside = np.full_like(r.density, 1.0)
    shifted = r.grid + far
    return {
        "top residual": {"top_value": r.top_value + far},
        "bottom residual": {"bottom_value": r.bottom_value - far},
        "top ranks": {"top_value": truth.eigenvalues[::-1][1:3].copy(), "top_complete": np.ones(2, bool)},
        "bottom ranks": {"bottom_value": truth.eigenvalues[1:3].copy(), "bottom_complete": np.ones(2, bool)},
        "trace": {"trace_low": r.trace_high + far, "trace_high": r.trace_high + 2 * far},
        "count, low end": {"negative_count_low": every + 1},
        "count, high end, floor 1": {"negative_count_high": 0 * every},
        "exact count": {"negative_count_exact": every + 1},
        "mass, floor 1": {
            "negative_mass_low": r.negative_mass_high + 1,
            "negative_mass_high": r.negative_mass_high + 2,
        },
        "exclusion": {"excluded_below": truth.eigenvalues[0] + 1e-3 * truth.scale},
        "all eigenvalues": {"eigenvalues": truth.eigenvalues + far},
        "nodes within the ends": {"node": r.node - far},
        "weights sum to the rest": {"weight": 0.9 * r.weight},
        "density integrates to 1": {"density": 1.1 * r.density},
        "no density beyond the ends": {"grid": shifted},
        "cells reach both ends": {"grid": shifted},
        "density over an interval": {"density_low": 1e9 * outside, "density_high": 1e9 * outside},
        "layer top residual": {"layer_top": r.layer_top + far},
        "layer bottom residual": {"layer_bottom": r.layer_bottom - far},
        "layer trace": {"layer_trace_low": r.layer_trace_high + far, "layer_trace_high": r.layer_trace_high + 2 * far},
        "product error, random vectors": {"product_error": 0.0},
        "product error, both ends": {"product_error": 0.0},
        "loss": {"loss": r.loss + 1},
        "sampling, top": {"data_samples": 40, "sampling_top_low": far, "sampling_top_high": 2 * far},
        "sampling, bottom": {"data_samples": 40, "sampling_bottom_low": far, "sampling_bottom_high": 2 * far},
        "sampling, trace": {"data_samples": 40, "sampling_trace_low": 9 * n * far, "sampling_trace_high": 10 * n * far},
    }


def found(drawn: Drawn, r: Spectrum, truth: Truth, name: str) -> list[Check]:
    if name.startswith("sampling"):
        drawn = dataclasses.replace(drawn, settings=drawn.settings | {"samples": 20})
    return [c for c in checks(drawn, r, truth) if c.name == name]


@pytest.mark.parametrize("name", sorted(lies(*solved()[1:])))
def test_every_check_notices_a_wrong_number(name: str) -> None:
    drawn, r, truth = solved()
    # the truth's own error would forgive a product that is right to the last digit
    sharp = dataclasses.replace(truth, error=0.0) if name.startswith("product") else truth
    assert any(c.missed for c in found(drawn, dataclasses.replace(r, **lies(r, truth)[name]), sharp, name))


def test_rates_tables_and_page() -> None:
    for n in (1, 20, 500):
        assert clopper_pearson(0, n)[1] == pytest.approx(1 - 0.025 ** (1 / n))
        assert clopper_pearson(n, n)[0] == pytest.approx(0.025 ** (1 / n))
    kinds, certain = {"network": "mlp"}, ["top residual", 0.0, False, 1e-6]
    good = [{"problem": i, "kinds": kinds, "checks": [["trace", 0.05, i % 40 == 0, 0.1], certain]} for i in range(400)]
    assert not failed(good)
    assert "**fails**" not in table(good)
    assert "shown" in table(good)
    lie = {"checks": [["top residual", 0.0, True, 1e-6]], "missed": {"top residual": "far off"}}
    bad = [*good, {"problem": 400, "kinds": {"network": "gru"}, **lie}]
    assert failed(bad)
    assert "**fails**" in page(1, bad)
    assert "- top residual, problem 400 (gru): far off" in page(1, bad)
    often = [r | {"checks": [["trace", 0.05, True, 0.2]]} if r["problem"] < 60 else r for r in good]
    assert failed(often)
    assert "| trace | network: mlp | 400 |" in page(1, often)
    assert "trace: 2.000 times as wide" in widths(often[:60], good)
    assert failed([{"problem": 0, "kinds": {}, "crashed": "Traceback"}])


def test_a_run_that_was_cut_short_is_read(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    lines = [json.dumps({"problem": i, "kinds": {}}) for i in (2, 0)]
    path.write_text("\n".join(lines) + '\n{"problem": 1, "ki')
    assert [r["problem"] for r in read(path)] == [0, 2]
    assert read(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_coverage_runs_it() -> None:
    shown = subprocess.run(["make", "-n", "coverage"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tests/coverage_run.py" in shown
