"""`check` where several random teachers made the data: one population, every network with its own teacher's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from commands import run
from landscape.checkpoints.source import Source
from landscape.claims.claim import Part
from landscape.claims.escape_dimensions import experiments as escape_dimensions
from landscape.claims.escape_dimensions.decide import Evidence, Kept, Pairs, Population, decide, draw
from landscape.claims.escape_dimensions.decide_splits import Splits, split_parts
from landscape.claims.negative_eigenvalues import experiments as negative_eigenvalues
from landscape.claims.read_runs import read_runs
from landscape.claims.runs import Means, SweptRun, populations, together
from landscape.claims.statistics import null_p_value
from landscape.claims.sweep_text import as_sweep
from landscape.errors import UsageError
from landscape.problem.objective import build_objective
from landscape.runtime.pieces import FORGETFUL
from test_claim_escapes import SWEEP, losses, splits

TEACHERS = (3, 4)
MEANS = Means(escape_dimensions.Scale(6, 1, 18, 10, 4, 3, 1, 0, 150), 0, "cpu", lambda *a: None, FORGETFUL)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> list[SweptRun]:
    """Six seeds of two widths for each of two teachers, trained to certified points; ends are called bad minima, so
    that there is something to split."""
    folder = tmp_path_factory.mktemp("taught")
    text = SWEEP.replace("[sweep]\n", f'[sweep]\nteacher_seed = "{TEACHERS[0]}..{TEACHERS[1]}"\n')
    (folder / "sweep.toml").write_text(text)
    done = run("train", "sweep.toml", "--out", "runs", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return read_runs([str(folder / "runs")], Source())[0]


def test_they_are_one_population(taught: list[SweptRun]) -> None:
    ((name, members),) = populations(taught).items()
    assert name == "2 random teachers, tanh, levenberg-marquardt"
    assert [(r.width, r.seed, r.teacher) for r in members][:3] == [(2, 0, 3), (2, 0, 4), (2, 1, 3)]
    assert 'teacher_seed = "3..4"' in as_sweep(members) or "teacher_seed = [3, 4]" in as_sweep(members)
    # two sweeps of a teacher each, where no coordinate says so, are the same
    bare = [replace(r, coordinates={k: v for k, v in r.coordinates.items() if k != "teacher_seed"}) for r in taught]
    assert [r.teacher for r in next(iter(populations(bare).values()))] == [r.teacher for r in members]
    assert all(
        "teacher_seed = [3, 4]" in as_sweep(some) for some in (bare, [members[0], *bare[1:]], [bare[0], *members])
    )
    with pytest.raises(UsageError, match="teacher_seed 'x' is not a whole number"):
        populations([replace(taught[0], coordinates={"width": 2, "seed": 0, "teacher_seed": "x"})])
    with pytest.raises(UsageError, match="same seed of the same width"):
        populations([*taught, replace(taught[0], name="other.pt")])


def test_only_what_has_the_same_inputs_goes_into_one_stack(taught: list[SweptRun]) -> None:
    problems = [r.problem() for r in taught]
    assert {r.teacher for r in taught} == set(TEACHERS)
    assert together(problems) == [list(range(len(taught)))]
    inputs, targets = problems[3].data  # type: ignore[misc]
    problems[3] = replace(problems[3], data=(inputs + 1, targets))
    assert together(problems) == [[i for i in range(len(taught)) if i != 3], [3]]


@pytest.mark.slow
def test_every_network_is_followed_on_its_own_data(taught: list[SweptRun]) -> None:
    """What is found of both teachers together is what is found of each alone."""
    both = _population(taught)
    alone = {t: _population([r for r in taught if r.teacher == t]) for t in TEACHERS}
    assert sorted(both.teachers) == [2, 3]
    assert not alone[3].teachers
    for pair in both.pairs:
        for t, one in alone.items():
            mine = both.teachers[pair.width][: len(pair.wide)] == t
            (same,) = [p for p in one.pairs if p.width == pair.width]
            some = int(mine.sum())
            np.testing.assert_array_equal(pair.winners[mine], same.winners[:some])
            np.testing.assert_array_equal(pair.wide[mine], same.wide[:some])
    for found in both.splits:
        (same_split,) = [s for s in alone[found.teacher].splits if s.run == found.run]
        np.testing.assert_array_equal(found.found, same_split.found)
        np.testing.assert_allclose(found.reached, same_split.reached, rtol=1e-3, atol=1e-12)
    assert {s.teacher for s in both.splits} == {r.teacher for r in taught if _bad(r)}


def _population(runs: Sequence[SweptRun]) -> Population:
    ((name, members),) = populations(runs).items()
    (made,) = escape_dimensions.gather({name: members}, MEANS).populations
    return made


def _bad(run_: SweptRun) -> bool:
    return run_.width == 2 and bool(run_.certificate and run_.certificate.verdict == "minimum") and run_.loss > 1e-10


def test_bounds_and_counts_are_of_their_own_data(taught: list[SweptRun]) -> None:
    means = replace(MEANS, scale=negative_eigenvalues.Scale(2, 12, 12))
    ((name, members),) = populations(taught).items()
    made = negative_eigenvalues._sweep(name, members, means)
    assert not isinstance(made, str)
    at = made.widths[0]
    own = sorted(build_objective(r.problem()).value() for r in members if r.width == at.width)
    np.testing.assert_allclose(np.sort(at.loss), own, rtol=1e-9, atol=1e-20)
    course = negative_eigenvalues._course(name, members, means)
    assert not isinstance(course, str)
    end = next(s for s in course if s.stage == "end" and s.width == at.width)
    np.testing.assert_allclose(np.sort(end.loss), own, rtol=1e-9, atol=1e-20)


# ---- statistics ------------------------------------------------------------------------------------------------------


def _parts(made: list[Splits]) -> dict[str, Part]:
    return {p.name.removeprefix("t: "): p for p in split_parts("t", made, True, several=True)}


def test_teachers_are_the_units_where_there_are_several() -> None:
    made = [replace(s, teacher=i % 3) for i, s in enumerate(splits(1e-25, 0.005, 30))]
    parts = _parts(made)
    down = parts["splitting opens a way down"]
    assert (down.n, down.verdict) == (3, "undetermined")
    assert "only 3 of the 8" in down.note
    assert parts["ways out against kicks, wide"].n == 3
    one = {p.name: p for p in split_parts("t", made, True)}
    assert one["t: splitting opens a way down"].n == 30
    assert (
        len(_parts([replace(s, teacher=7) for s in made])) == 3
    )  # one teacher of several has minima: no spread to test


def test_minima_that_follow_their_teacher_are_seldom_called_ways_out() -> None:
    """200 sweeps of ten teachers with five minima each, which all differ from kicks by what is the teacher's."""
    rng = np.random.default_rng(3)
    found = Counter[str]()
    for _ in range(200):
        gains = np.repeat(rng.normal(0, 1, 10), 5)
        made = [
            replace(s, wide=np.full((6, 2), 1e-4 * 10**g), teacher=i // 5)
            for i, (s, g) in enumerate(zip(splits(1e-4, 0, 50), gains, strict=True))
        ]
        found[_parts(made)["ways out against kicks, wide"].verdict] += 1
    # With minima as units it would be a third.
    assert found["supported"] + found["contradicted"] <= binom.ppf(1 - 1e-3, 200, 0.01)


def test_hard_and_easy_teachers_of_other_widths_are_no_gain() -> None:
    """No teacher's networks gain by width: the easy ones were trained wide, the hard ones narrow."""
    rng = np.random.default_rng(0)
    hard, easy = losses({4: 0.1, 8: 0.1}, 200, rng), losses({4: 0.9, 8: 0.9}, 200, rng)
    apart = Population("t", 4, {4: hard[4], 8: easy[8]}, teachers={4: np.zeros(200), 8: np.ones(200)})
    mixed = Population(
        "t", 4, {4: hard[4], 8: np.concatenate([hard[8], easy[8]])},
        teachers={4: np.arange(200) % 10, 8: np.concatenate([np.arange(200) % 10, 10 + np.arange(200) % 10])},
    )  # fmt: skip
    for made in (apart, mixed):
        (gain,) = [p for p in decide(Evidence([made])).parts if "grows with width" in p.name]
        assert gain.verdict == "undetermined"


def test_teachers_with_preferences_of_their_own_seldom_decide_the_paired_test() -> None:
    """200 sweeps of sixteen teachers; each favours the wide networks of its thirty starts, or their tickets."""
    rng = np.random.default_rng(5)
    found = Counter[str]()
    teachers = np.repeat(np.arange(16), 30)
    for _ in range(200):
        wide = rng.random(480) < np.repeat(rng.random(16), 30)
        pairs = [Pairs(5, wide, (~wide).astype(int), 5, 5, teachers)]
        made = Population("t", 4, {}, pairs=pairs, teachers={4: teachers})
        (part,) = [p for p in decide(Evidence([made])).parts if "own tickets" in p.name]
        found[part.verdict] += 1
    # With starts as units it would be a fifth.
    assert max(found["supported"], found["contradicted"]) <= binom.ppf(1 - 1e-3, 200, 0.01)


def test_kept_tickets_of_few_teachers_are_few() -> None:
    """A hundred tickets that win as their two teachers have it: nothing is known about teachers."""
    teachers, shares = np.repeat([0, 1], 50), np.repeat([0.9, 0.4], 50)
    kept = [Kept(5, shares, np.full(100, np.nan), 20, teachers)]
    (one,) = _kept_parts(Population("t", 4, {}, kept=kept))
    (both,) = _kept_parts(Population("t", 4, {}, kept=kept, teachers={4: teachers}))
    assert one.verdict == "supported"
    assert both.verdict == "undetermined"
    assert both.high > one.high


def _kept_parts(p: Population) -> list[Part]:
    return [x for x in decide(Evidence([p])).parts if "kept ticket" in x.name]


def test_lottery_nulls_are_of_every_teacher() -> None:
    """A lottery that is exactly true of each of two teachers; pooled, it would be rejected."""
    rng = np.random.default_rng(0)
    easy, hard = (losses({4: p, 8: 1 - (1 - p) ** 2}, 200, rng) for p in (0.9, 0.05))
    both = Population(
        "t",
        4,
        {w: np.concatenate([easy[w], hard[w]]) for w in easy},
        teachers={w: np.repeat([0, 1], 200) for w in easy},
    )
    (part,) = [p for p in decide(Evidence([both])).parts if "disjoint" in p.name]
    singles = [null_p_value(*t[8], *t[4], 8, 4, "disjoint") for t in both.by_teacher]
    assert part.value == pytest.approx(min(1, 2 * min(s.high for s in singles)))
    assert "not rejected" in part.note
    assert null_p_value(*_pooled(both, 8), *_pooled(both, 4), 8, 4, "disjoint").high < 1e-3
    curve = next(c for c in draw(Evidence([both])) if c.series == "null: disjoint tickets")
    assert curve.y[1] == pytest.approx(np.mean([1 - (1 - t[4][0] / t[4][1]) ** 2 for t in both.by_teacher]))


def _pooled(p: Population, width: int) -> tuple[int, int]:
    return int((p.losses[width] < 1e-10).sum()), len(p.losses[width])


def test_a_teacher_without_wide_or_narrow_networks_has_no_null() -> None:
    rng = np.random.default_rng(0)
    made = losses({4: 0.5, 8: 0.7}, 20, rng)
    apart = Population("t", 4, made, teachers={4: np.zeros(20, dtype=int), 8: np.ones(20, dtype=int)})
    assert apart.by_teacher == []
    assert not [p for p in decide(Evidence([apart])).parts if "null of" in p.name]
    draw(Evidence([apart]))
