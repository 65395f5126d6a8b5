"""The claim on negative eigenvalues, decided on evidence whose truth is known."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from landscape.claims.claim import VERDICTS, Decision, Part
from landscape.claims.negative_eigenvalues.critical_points import critical_points, starts
from landscape.claims.negative_eigenvalues.decide import CLAIM, AtWidth, Course, Evidence, Heights, Stage, Sweep, decide
from landscape.claims.negative_eigenvalues.decide_signs import LEAST_SEEDS, Signs
from landscape.claims.negative_eigenvalues.interpolation_bounds import interpolation
from landscape.claims.negative_eigenvalues.signs import sign_ensemble
from landscape.claims.statistics import goe_none, simulate_goe
from landscape.data import load_data
from landscape.models import build_model
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack

S = LEAST_SEEDS


def named(decision: Decision, start: str) -> Part:
    (found,) = [p for p in decision.parts if p.name.startswith(start)]
    return found


def coins(rng: np.random.Generator, P: int, seeds: int = S, a: float = 0.4) -> Signs:
    """Independent eigenvalues, a share a of them negative: uniform, so that their gaps are exactly Poisson's."""
    return Signs("coins", "start", np.sort(rng.uniform(-a, 1 - a, (seeds, P)), axis=1))


def goe(rng: np.random.Generator, P: int, seeds: int = S) -> Signs:
    return Signs("goe", "start", simulate_goe(P, seeds, rng))


def students(width: int, seeds: int, inputs: int = 6, samples: int = 60) -> list[Problem]:
    made = {"target": "random", "activation": "tanh", "features": inputs, "inputs": "gaussian", "samples": samples}
    data = load_data("teacher", made).train
    settings = {"inputs": inputs, "outputs": 1, "width": width, "activation": "tanh", "bias": False}
    return [Problem(build_model("mlp", settings, seed).double(), data, "mse") for seed in range(seeds)]


# ---- 2b --------------------------------------------------------------------------------------------------------------


def test_coins_are_supported_at_the_nominal_rate() -> None:
    """P = 6: none is negative in 5 % of the members, so that T3 has something to say."""
    rng = np.random.default_rng(1)
    runs, seen = 200, Counter[tuple[str, str]]()
    for _ in range(runs):
        parts = decide(Evidence(signs=[coins(rng, 6)])).parts
        seen.update((p.name.split(",")[0], p.verdict) for p in parts)
    for test in ("2b T1 dispersion", "2b T2 spacing ratio", "2b T3 none negative"):
        # 95 % intervals; three standard errors of 200 runs are 4.6 %.
        assert seen[test, "supported"] >= 0.90 * runs
        assert seen[test, "contradicted"] <= 0.035 * runs
    assert seen["2b signs are coins", "supported"] >= 0.8 * runs
    assert seen["2b signs are coins", "contradicted"] <= 0.035 * runs


@pytest.mark.parametrize("P", [6, 20])
def test_gaussian_orthogonal_matrices_contradict_coins(P: int) -> None:
    rng = np.random.default_rng(2)
    parts = [decide(Evidence(signs=[goe(rng, P)])).parts[0] for _ in range(30)]
    assert sum(p.verdict == "contradicted" for p in parts) > 0.9 * 30
    assert sum("GOE not excluded" in p.note for p in parts) > 0.9 * 30


def test_coins_exclude_goe() -> None:
    part = decide(Evidence(signs=[coins(np.random.default_rng(3), 20)])).parts[0]
    assert part.verdict == "supported"
    assert part.note == "coins not excluded; GOE excluded by T1 and T2"


def test_initial_networks_are_neither_coins_nor_goe() -> None:
    problems = students(3, S)
    found = sign_ensemble(*build_stack(problems))
    decision = decide(Evidence(signs=[Signs("tanh 6-r-1", "start", found.eigenvalues, found.tau)]))
    part = named(decision, "2b signs are coins")
    assert part.verdict == decision.verdict == "contradicted"
    assert "GOE excluded by T1 and T2" in part.note
    ratio = named(decision, "2b T2")
    assert ratio.low > 0.39
    assert ratio.high < 0.52
    assert named(decision, "2b T3").verdict == "undetermined"  # too rare to tell


def test_one_drift_of_all_eigenvalues_is_seen_by_the_dispersion_alone() -> None:
    """Independent levels that shift together from seed to seed: the spacings are Poisson's, the counts are not."""
    rng = np.random.default_rng(4)
    made = coins(rng, 20)
    shifted = replace(made, eigenvalues=made.eigenvalues + rng.normal(0, 0.2, (S, 1)))
    decision = decide(Evidence(signs=[shifted]))
    assert decision.parts[0].verdict == "contradicted"
    assert decision.parts[0].note == "coins excluded by T1; GOE excluded by T1 and T2"
    assert named(decision, "2b T2").verdict != "contradicted"


def test_clusters_of_zeros_do_not_count_as_spacings() -> None:
    spectra = np.concatenate([np.zeros((S, 10)), goe(np.random.default_rng(5), 10).eigenvalues], axis=1)
    part = named(decide(Evidence(signs=[Signs("half zeros", "end", spectra)])), "2b T2")
    assert part.verdict == "undetermined"
    assert "50 % zeros" in part.note


@pytest.mark.parametrize(("kind", "verdict"), [("coins", "supported"), ("goe", "contradicted")])
def test_how_the_chance_of_none_falls_with_size(kind: str, verdict: str) -> None:
    rng = np.random.default_rng(6)
    sizes = (2, 4, 6, 8) if kind == "coins" else (2, 3, 4)
    seeds = 4000
    made = [coins(rng, P, seeds) if kind == "coins" else goe(rng, P, seeds) for P in sizes]
    part = named(decide(Evidence(signs=made)), "2b T4")
    assert part.verdict == verdict
    if kind == "goe":
        found = [named(decide(Evidence(signs=[s])), "2b T3") for s in made]
        assert all(p.low < goe_none(P) < p.high for p, P in zip(found, sizes, strict=True))


def test_too_few_seeds_decide_nothing() -> None:
    rng = np.random.default_rng(7)
    for made in (coins(rng, 20, S - 1), goe(rng, 20, S - 1)):
        decision = decide(Evidence(signs=[made]))
        assert decision.verdict == "undetermined"
        assert {p.verdict for p in decision.parts} == {"undetermined"}
        assert "only 149 of the 150 seeds" in decision.parts[0].note
        assert decision.settle == ("landscape check --claim negative-eigenvalues --run --scale full",)


# ---- 2a --------------------------------------------------------------------------------------------------------------


def heights(rng: np.random.Generator, strength: float, points: int = 60, name: str = "made") -> Heights:
    loss = rng.exponential(1.0, points)
    noise = rng.standard_normal(points)
    index = strength * loss + math.sqrt(1 - strength**2) * noise
    some = np.ones(points, dtype=bool)
    return Heights(name, loss, index, some, some, ("saddle",) * points, ("",) * points)


@pytest.mark.parametrize(
    ("strength", "points", "verdict"),
    [(0.9, 60, "supported"), (0.0, 400, "contradicted"), (0.25, 40, "undetermined"), (0.17, 800, "conditional")],
)
def test_index_against_height(strength: float, points: int, verdict: str) -> None:
    made = [heights(np.random.default_rng(seed), strength, points) for seed in range(3)]
    found = [decide(Evidence(heights=[h])).verdict for h in made]
    assert found.count(verdict) >= 2


def test_the_same_point_found_often_is_one_point() -> None:
    """Two points found 200 times: perfectly correlated, and no evidence."""
    loss, index = np.tile([0.1, 2.0], 200), np.tile([0.0, 0.5], 200)
    first = np.arange(400) < 2
    made = Heights("two", loss, index, np.ones(400, dtype=bool), first, ("saddle",) * 400, ("",) * 400)
    decision = decide(Evidence(heights=[made]))
    assert decision.verdict == "undetermined"
    assert "only 2 of the 30 distinct critical points" in decision.parts[0].note


def test_missing_certificates_and_unfinished_searches_decide_nothing() -> None:
    sound = heights(np.random.default_rng(0), 0.9)
    uncertified = replace(sound, verdict=("", *sound.verdict[1:]))
    reason = ("not stationary: steps",) * 40 + ("",) * 20
    cut = replace(sound, true=np.array([r == "" for r in reason]), reason=reason)
    for made, words in ((uncertified, "no certificate"), (cut, "40 of 60 searches did not converge")):
        decision = decide(Evidence(heights=[made]))
        assert (decision.verdict, len(decision.settle)) == ("undetermined", 1)
        assert words in decision.parts[0].note


def test_shares_of_what_is_no_critical_point_are_reported() -> None:
    sound = heights(np.random.default_rng(0), 0.9, 100)
    verdict = ("gradient-flat",) * 20 + ("degenerate",) * 10 + ("saddle",) * 70
    made = replace(sound, verdict=verdict, true=np.arange(100) >= 20, distinct=np.arange(100) >= 20)
    decision = decide(Evidence(heights=[made]))
    assert decision.verdict == "supported"
    shares = {p.name.split(",")[0]: p.value for p in decision.parts if not p.evidence}
    assert shares["2a gradient-flat"] == 0.2
    assert shares["2a degenerate critical points"] == 0.1
    assert shares["2a true critical points"] == 0.8


def test_a_real_search_gives_evidence() -> None:
    stack, theta = build_stack(students(2, 6, inputs=2, samples=30))
    found = critical_points(stack, starts(stack, theta, scales=(0.5, 2.0), heights=1, steps=50), steps=100)
    made = Heights("2-2-1", found.loss, found.index, found.true, found.distinct, found.verdict, found.reason)
    decision = decide(Evidence(heights=[made]))
    assert decision.verdict == "undetermined"
    assert named(decision, "2a true critical points").n == 18


# ---- 2c --------------------------------------------------------------------------------------------------------------


def at_width(rng: np.random.Generator, width: int, *, flat: bool = True, networks: int = 10) -> AtWidth:
    P, none = 4 * width, np.zeros(networks)
    zeros = rng.integers(2 * width - 3, 2 * width) + (width**2 // 8 if flat else -rng.integers(0, width))
    mass = rng.uniform(0, 1, networks) / width**2 if flat else rng.uniform(0, 1, networks) * width**2
    return AtWidth(
        width, P, 20, none, none, none - 1, none, none + P, none + zeros, mass, np.ones(networks, dtype=bool)
    )


def test_width_adds_flat_directions_where_it_does() -> None:
    rng = np.random.default_rng(0)
    for flat, verdict in ((True, "supported"), (False, "contradicted")):
        sweep = Sweep("made", [at_width(rng, w, flat=flat) for w in (4, 8, 16)])
        decision = decide(Evidence(sweeps=[sweep]))
        assert named(decision, "2c negative mass").verdict == verdict
        assert named(decision, "2c lowest eigenvalue").verdict == "supported"
        assert not named(decision, "2c lowest eigenvalue").evidence
        if flat:
            assert decision.verdict == "supported"


def test_a_broken_bound_shows_in_the_checks_only() -> None:
    rng = np.random.default_rng(0)
    made = [at_width(rng, w) for w in (4, 8, 16)]
    made[0] = replace(made[0], lambda_min=made[0].lambda_min - 2, flat=made[0].flat - 100)
    decision = decide(Evidence(sweeps=[Sweep("made", made)]))
    assert named(decision, "2c lowest eigenvalue").verdict == "contradicted"
    assert named(decision, "2c at least").verdict == "contradicted"
    assert decision.verdict == "supported"


def test_two_widths_are_no_trend_and_equal_numbers_are_no_evidence() -> None:
    rng = np.random.default_rng(0)
    two = [at_width(rng, w) for w in (4, 8)]
    assert decide(Evidence(sweeps=[Sweep("two", two)])).verdict == "undetermined"
    same = [replace(at_width(rng, w), negative_mass=np.zeros(10)) for w in (4, 8, 16)]
    part = named(decide(Evidence(sweeps=[Sweep("same", same)])), "2c negative mass")
    assert (part.verdict, part.note) == ("undetermined", "the same in all networks: nothing to compare")
    nobody = [replace(w, interpolates=np.zeros(10, dtype=bool)) for w in same]
    assert named(decide(Evidence(sweeps=[Sweep("none", nobody)])), "2c flat").verdict == "undetermined"


def test_real_networks_give_evidence() -> None:
    widths = []
    for width in (2, 3, 4):
        found = interpolation(*build_stack(students(width, 5, samples=20)))
        fields = {name: getattr(found, name) for name in AtWidth.__dataclass_fields__ if name != "width"}
        widths.append(AtWidth(width=width, **fields))
    decision = decide(Evidence(sweeps=[Sweep("tanh 6-r-1", widths)]))
    assert named(decision, "2c lowest eigenvalue").value == 1
    assert named(decision, "2c at least").value == 1


# ---- all -------------------------------------------------------------------------------------------------------------


def everything(rng: np.random.Generator) -> Evidence:
    return Evidence(
        heights=[heights(rng, 0.9), heights(rng, 0.0, 20, "few")],
        signs=[coins(rng, 6), goe(rng, 12), coins(rng, 8, 20)],
        sweeps=[Sweep("made", [at_width(rng, w) for w in (4, 8, 16)])],
    )


def relabelled(evidence: Evidence, rng: np.random.Generator) -> Evidence:
    def heights_(h: Heights) -> Heights:
        order = rng.permutation(len(h.loss))
        words = {k: tuple(getattr(h, k)[i] for i in order) for k in ("verdict", "reason")}
        return replace(h, **words, **{k: getattr(h, k)[order] for k in ("loss", "index", "true", "distinct")})

    def width_(w: AtWidth) -> AtWidth:
        order = rng.permutation(len(w.loss))
        arrays = {k: v[order] for k, v in vars(w).items() if isinstance(v, np.ndarray)}
        return replace(w, **arrays)

    return Evidence(
        [heights_(h) for h in evidence.heights],
        [replace(s, eigenvalues=rng.permuted(rng.permutation(s.eigenvalues), axis=1)) for s in evidence.signs],
        [replace(s, widths=[width_(w) for w in reversed(s.widths)]) for s in evidence.sweeps],
    )


def test_relabelling_seeds_changes_no_digit() -> None:
    rng = np.random.default_rng(8)
    made = everything(rng)
    once, again = decide(made), decide(relabelled(made, rng))
    assert once.verdict == again.verdict
    for a, b in zip(once.parts, again.parts, strict=True):
        assert (a.name, a.verdict, a.n, a.note) == (b.name, b.verdict, b.n, b.note)
        assert np.allclose([a.value, a.low, a.high], [b.value, b.low, b.high], rtol=1e-12, equal_nan=True)


def test_what_every_decision_has() -> None:
    decision = CLAIM.decide(everything(np.random.default_rng(9)))
    assert decision.claim == CLAIM.name
    assert decision.verdict == "conditional"
    assert "2b signs are coins, goe" in decision.condition
    assert decision.settle
    assert decision.seeds == 80 + 2 * S + 20 + 30
    assert len({p.name for p in decision.parts}) == len(decision.parts)
    for p in decision.parts:
        assert p.verdict in VERDICTS
        assert math.isnan(p.value) or not p.low > p.value
        assert math.isnan(p.value) or not p.high < p.value
    assert decide(Evidence()).verdict == "undetermined"
    assert decide(Evidence()).settle


def test_every_curve_has_one_interval_a_point() -> None:
    rng = np.random.default_rng(10)
    curves = CLAIM.draw(replace(everything(rng), courses=[course(rng, 0.05)]))
    assert {c.panel.split(",")[0] for c in curves} >= {"critical points", "dispersion", "spacings", "negative mass"}
    for c in curves:
        assert len(c.x) == len(c.y) == len(c.low) == len(c.high)


def course(rng: np.random.Generator, slope: float, networks: int = 8, bounded: bool = False) -> Course:
    """Zeros rise and negative mass falls with width if `slope` is positive; a start where neither does."""
    stages = []
    for k, width in enumerate((2, 4, 8, 16)):
        noise = rng.normal(0, 0.01, (3, networks))
        stages.append(Stage(width, "start", 1 + noise[0], 0.2 + noise[1], 0.3 + noise[2]))
        stages.append(Stage(width, "end", 0.1 + noise[0], 0.2 + slope * k + noise[1], 0.3 - slope * k + noise[2]))
    return Course("digits", stages, bounded)


@pytest.mark.parametrize(("slope", "verdict"), [(0.05, "supported"), (-0.05, "contradicted"), (0.0, "undetermined")])
def test_trends_at_the_end_of_training(slope: float, verdict: str) -> None:
    decision = decide(Evidence(courses=[course(np.random.default_rng(0), slope)]))
    assert [p.verdict for p in decision.parts] == [verdict] * 2
    assert decision.seeds == 32
    few_networks = decide(Evidence(courses=[course(np.random.default_rng(0), slope, networks=4)]))
    assert {p.verdict for p in few_networks.parts} == {"undetermined"}
    covered = Evidence(courses=[course(np.random.default_rng(0), slope, bounded=True)])
    assert decide(covered).parts == ()  # a sweep with bounds has the same trends
    panels = {c.panel: c for c in CLAIM.draw(covered)}
    assert set(panels) == {f"{q}, digits" for q in ("loss", "share of zero eigenvalues", "negative mass")}


def test_trends_that_are_none_are_seldom_found() -> None:
    rng = np.random.default_rng(5)
    verdicts = [p.verdict for _ in range(100) for p in decide(Evidence(courses=[course(rng, 0.0)])).parts]
    assert len(verdicts) == 200
    assert sum(v != "undetermined" for v in verdicts) <= binom.ppf(1 - 1e-3, 200, 0.01)
