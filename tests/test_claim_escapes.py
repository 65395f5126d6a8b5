"""`escape-dimensions` decided on synthetic sweeps where the answer is known, tickets, and `landscape check` itself."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import binom
from torch import nn

from commands import run
from landscape.checkpoints.source import Source
from landscape.claims.escape_dimensions.decide import CLAIM, Evidence, Kept, Pairs, Population, decide, draw
from landscape.claims.escape_dimensions.decide_splits import Splits, split_parts
from landscape.claims.escape_dimensions.tickets import matches, redraw_others, tickets_of, train_alone
from landscape.claims.negative_eigenvalues import decide as signs
from landscape.claims.negative_eigenvalues import experiments as negative_eigenvalues
from landscape.claims.read_runs import read_runs
from landscape.claims.result import checked
from landscape.claims.runs import Means, populations
from landscape.cli.views.check import parts_table
from landscape.problem.layers import Hidden, hidden_layers
from landscape.problem.problem import Problem
from landscape.results.fields import Spent
from landscape.runtime.pieces import KeptPieces
from landscape.widening.networks import narrowed, with_neurons

WIDTHS = (4, 5, 6, 8, 12)


def losses(shares: dict[int, float], seeds: int, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Zero loss with these probabilities, 0.01 otherwise."""
    return {w: np.where(rng.random(seeds) < p, 1e-25, 1e-2) for w, p in shares.items()}


def splits(reached: float, kicks: float, count: int = 12) -> list[Splits]:
    ones, none = np.ones(6, dtype=int), np.zeros(6, dtype=bool)
    return [
        Splits(f"run {i}", 0.01, ones, ones, np.full(6, reached), np.full((6, 2), kicks), np.full((6, 2), kicks), none)
        for i in range(count)
    ]


def escaping(rng: np.random.Generator, seeds: int = 60) -> Population:
    wide = rng.random(seeds) < 0.95
    winners = (rng.random(seeds) < 0.3).astype(int)
    pairs = [Pairs(w, wide, winners, 15, 15) for w in WIDTHS[1:]]
    kept = [Kept(8, np.full(10, 0.8), np.full(10, 0.1), 20)]
    shares = dict(zip(WIDTHS, (0.3, 0.5, 0.7, 0.9, 0.98), strict=True))
    return Population("teacher", 4, losses(shares, seeds, rng), splits(1e-25, 0.005), pairs, kept)


def lottery(rng: np.random.Generator, seeds: int = 60) -> Population:
    """A wide start wins exactly when one of its tickets does; splitting opens nothing; kept tickets always win."""
    winners = (rng.random(seeds) < 0.5).astype(int)
    pairs = [Pairs(w, winners > 0, winners, 15, 15) for w in WIDTHS[1:]]
    kept = [Kept(8, np.ones(100), np.ones(100), 20)]
    return Population("teacher", 4, losses(dict.fromkeys(WIDTHS, 0.5), seeds, rng), splits(0.01, 0.01), pairs, kept)


def test_a_sweep_that_escapes_supports_the_claim() -> None:
    made = decide(Evidence([escaping(np.random.default_rng(0))]))
    assert made.verdict == "supported", made.parts
    assert made.seeds == 60


def test_a_lottery_does_not_support_it() -> None:
    made = decide(Evidence([lottery(np.random.default_rng(0))]))
    assert made.verdict in ("contradicted", "undetermined", "conditional")
    words = {p.name.split(": ")[1]: p.verdict for p in made.parts}
    assert words["splitting opens a way down"] == "contradicted"
    assert words["kept ticket wins, width 8"] != "supported"
    assert not any(v == "supported" for k, v in words.items() if k.startswith("width"))


def test_false_claims_are_seldom_supported() -> None:
    """In 200 sweeps where the wide network and its tickets are equally good, each paired test at its nominal rate."""
    rng = np.random.default_rng(1)
    supported = tests = 0
    seeds = 60
    for _ in range(200):
        pairs = [Pairs(6, rng.random(seeds) < 0.6, (rng.random(seeds) < 0.6).astype(int), 15, 15)]
        population = Population("teacher", 4, losses(dict.fromkeys((4, 6), 0.6), seeds, rng), (), pairs)
        made = decide(Evidence([population]))
        parts = [p for p in made.parts if p.evidence and p.n]
        supported += sum(p.verdict == "supported" for p in parts)
        tests += len(parts)
        assert made.verdict == "undetermined"  # nothing was split
    assert tests == 400
    assert supported <= binom.ppf(1 - 1e-3, tests, 0.01)


def test_tickets_that_were_not_tried_may_have_won() -> None:
    """That none of 50 of 495 tickets wins does not say that none does; that the wide network loses to some does."""
    wide, nobody = np.ones(60, dtype=bool), np.zeros(60, dtype=int)
    for winner, won, tried, total, verdict in (
        (wide, nobody, 50, 495, "undetermined"),
        (wide, nobody, 15, 15, "supported"),
        (~wide, nobody + 1, 50, 495, "contradicted"),
    ):
        pairs = [Pairs(12, winner, won, tried, total)]
        (part,) = [p for p in decide(Evidence([Population("t", 4, {}, (), pairs)])).parts if "own tickets" in p.name]
        assert part.verdict == verdict
        assert ("may have won" in part.note) == (tried < total)


@pytest.mark.parametrize(("total", "chance"), [(495, 0.01), (70, 0.03)])
def test_a_lottery_of_which_some_tickets_are_tried_is_never_a_victory(total: int, chance: float) -> None:
    """The wide network wins exactly when any of all its tickets does."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        every = rng.random((60, total)) < chance
        pairs = [Pairs(12, every.any(1), every[:, :50].sum(1), 50, total)]
        parts = decide(Evidence([Population("t", 4, {}, (), pairs)])).parts
        assert all(p.verdict != "supported" for p in parts if "own tickets" in p.name)


@pytest.mark.parametrize("known", [0, 1, 40])
def test_starts_of_unfinished_tickets_leave_the_comparison_open(known: int) -> None:
    """The wide network wins where no ticket does; of twenty more starts the tickets did not finish."""
    pair = Pairs(5, np.ones(known, dtype=bool), np.zeros(known, dtype=int), 5, 5, unknown=20)
    parts = [p for p in decide(Evidence([Population("t", 4, {}, pairs=[pair])])).parts if "own tickets" in p.name]
    assert [(p.verdict, p.n) for p in parts] == [("undetermined", known)]
    assert "20 starts left out" in parts[0].note
    settled = decide(Evidence([Population("t", 4, {}, pairs=[replace(pair, unknown=0)])])).parts
    assert [p.verdict for p in settled if "own tickets" in p.name] == ["supported" if known == 40 else "undetermined"]


def test_kept_tickets_can_show_both() -> None:
    """That they always win takes many; that they do not, few. Redraws that did not finish show nothing."""

    def verdict(made: Kept) -> str:
        (part,) = [p for p in decide(Evidence([Population("t", 4, {}, kept=[made])])).parts if "wins" in p.name]
        return part.verdict

    none = np.full(100, np.nan)
    assert verdict(Kept(5, np.ones(100), none, 20)) == "contradicted"
    assert verdict(Kept(5, np.ones(12), none[:12], 20)) == "undetermined"
    assert verdict(Kept(5, np.full(12, 0.5), none[:12], 20)) == "supported"
    assert verdict(Kept(5, np.full(12, 0.5), none[:12], 20, unknown=0.3)) == "undetermined"


def test_success_against_width_never_decides_alone() -> None:
    rng = np.random.default_rng(6)
    grown = losses(dict(zip(WIDTHS, (0.3, 0.5, 0.7, 0.9, 0.98), strict=True)), 60, rng)
    made = decide(Evidence([Population("t", 4, grown, untried="no initial checkpoints")]))
    assert [p.verdict for p in made.parts if "grows" in p.name] == ["supported"]
    assert made.verdict == "undetermined"
    missing = {p.name: p.note for p in made.parts if p.evidence and not p.n}
    assert missing["t: the wide network against its own tickets"] == "no initial checkpoints"
    assert "minimum" in missing["t: splitting opens a way down"]


def test_many_runs_left_out_leave_success_open() -> None:
    known = escaping(np.random.default_rng(0))
    made = decide(Evidence([replace(known, unfinished=0.3)]))
    open_ = [p for p in made.parts if p.evidence and ("grows" in p.name or "own tickets" in p.name)]
    assert len(open_) == 5
    assert all(p.verdict == "undetermined" and "30% of a width" in p.note for p in open_)


@pytest.mark.parametrize("draw", ["normal", "two points"])
def test_splits_that_lead_nowhere_are_seldom_called_ways_out(draw: str) -> None:
    """500 sweeps of eight minima whose differences from kicks are symmetric around none."""
    rng = np.random.default_rng(7)
    found = Counter[str]()
    for _ in range(500):
        gains = rng.normal(0, 1, 8) if draw == "normal" else rng.choice([-1.0, 1.0], 8) * 2
        one = [replace(s, wide=np.full((6, 2), 1e-4 * 10**g)) for s, g in zip(splits(1e-4, 0, 8), gains, strict=True)]
        parts = {p.name: p for p in split_parts("t", one, False)}
        found[parts["t: ways out against kicks, wide"].verdict] += 1
    assert found["supported"] <= 12  # 1 % of both tails together would be 5
    assert found["contradicted"] <= 12


def test_descents_that_diverge_have_not_left_the_minimum() -> None:
    made = [replace(s, wide=np.full((6, 2), np.inf)) for s in splits(1e-4, 1.0)]
    (part,) = [p for p in split_parts("t", made, False) if p.name.endswith("kicks, wide")]
    assert part.value == pytest.approx(2.0)  # from 0.01, where the minima are


def test_minima_that_agree_give_no_interval_of_no_width() -> None:
    parts = {p.name.removeprefix("a: "): p for p in split_parts("a", splits(1e-25, 0.005, count=2), True)}
    for name in ("drop of the loss along ways out", "ways out that run to infinity"):
        share = parts[name]
        assert share.high - share.low > 0.5
        assert share.low <= share.value <= share.high
    for kind in ("wide", "narrow"):
        gain = parts[f"ways out against kicks, {kind}"]
        assert gain.value == pytest.approx(np.log10(0.005 / 1e-10))
        assert np.isnan([gain.low, gain.high]).all()
        assert "nothing to estimate an interval from" in gain.note


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_keeps_every_number_at_any_width(width: int) -> None:
    decision = decide(Evidence([replace(escaping(np.random.default_rng(0)), splits=splits(1e-25, 0.00512345))]))
    result = checked(CLAIM, decision, [], [], Spent(0, 0.0, "float64", "cpu", {}))
    result.part_value[:], result.part_low[:], result.part_high[:] = -1.23e-8, -4.5e-32, -6.7e-12  # the longest words
    console = Console(file=io.StringIO(), width=width)
    console.print(parts_table(result, list(range(len(result.part)))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("-1.23e-08 [-4.5e-32, -6.7e-12]") == len(result.part)
    assert max(map(len, shown.splitlines())) <= width
    rows = [line.split() for line in shown.splitlines() if "-6.7e-12]" in line]
    assert [int(row[-1]) for row in rows] == result.part_n.tolist()
    words = " ".join(shown.split())
    assert all(" ".join(str(text).split()) in words for text in result.part_statistic)


def test_relabelled_seeds_change_nothing() -> None:
    rng = np.random.default_rng(2)
    population = escaping(rng)
    order = rng.permutation(60)
    pairs = [Pairs(p.width, p.wide[order], p.winners[order], p.tried, p.total) for p in population.pairs]
    shuffled = {w: rng.permutation(v) for w, v in population.losses.items()}
    other = Population("teacher", 4, shuffled, population.splits[::-1], pairs, population.kept)
    for one, two in zip(decide(Evidence([population])).parts, decide(Evidence([other])).parts, strict=True):
        assert (one.verdict, one.n) == (two.verdict, two.n)
        np.testing.assert_allclose([one.value, one.low, one.high], [two.value, two.low, two.high], equal_nan=True)


def test_too_few_seeds_decide_nothing_and_say_what_would() -> None:
    rng = np.random.default_rng(3)
    few = escaping(rng, seeds=6)
    population = Population(few.name, 4, few.losses, few.splits[:3], few.pairs, [Kept(8, np.ones(3), np.ones(3), 5)])
    made = decide(Evidence([population]))
    assert made.verdict == "undetermined"
    assert all(p.verdict == "undetermined" for p in made.parts if p.evidence)
    assert all("only" in p.note or p.n == 0 for p in made.parts if p.evidence)
    assert "--scale full" in made.settle[0]


def test_a_wrong_index_is_a_fault_of_the_program_and_no_evidence() -> None:
    bad = splits(1e-25, 0.005)
    bad[0] = Splits(
        "x", 0.01, np.zeros(6, dtype=int), np.ones(6, dtype=int), *[np.full(6, 1e-25)] * 3, np.zeros(6, dtype=bool)
    )
    part = decide(Evidence([Population("t", 4, {}, bad)])).parts[0]
    assert (part.verdict, part.evidence) == ("contradicted", False)


def test_the_figure_shows_what_was_decided() -> None:
    curves = draw(Evidence([escaping(np.random.default_rng(0))]))
    assert {c.panel for c in curves} == {"success, teacher", "splits, teacher", "counting, no training"}
    for c in curves:
        assert len(c.x) == len(c.y) == len(c.low) == len(c.high)
    assert CLAIM.decide is decide


# ---- tickets --------------------------------------------------------------------------------------------------------


def student(seed: int, width: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


def test_a_ticket_is_these_neurons_and_nothing_else() -> None:
    model = student(0)
    hidden = hidden_layers(model)[0]
    x = torch.randn(7, 2, dtype=torch.float64)
    part = narrowed(model, hidden, [3, 1])
    wanted = (
        torch.tanh(x @ model[0].weight[[3, 1]].T + model[0].bias[[3, 1]]) @ model[2].weight[:, [3, 1]].T + model[2].bias
    )
    torch.testing.assert_close(part(x), wanted)
    made = with_neurons(student(1), hidden, model, [3, 1])
    for j in range(5):
        source = model if j in (3, 1) else student(1)
        assert torch.equal(made[0].weight[j], source[0].weight[j])
        assert torch.equal(made[2].weight[:, j], source[2].weight[:, j])
    assert torch.equal(made[2].bias, model[2].bias)


def test_tickets_are_drawn_without_repetition() -> None:
    rng = np.random.default_rng(0)
    assert len(tickets_of(6, 3, 100, rng)) == 20
    drawn = tickets_of(12, 4, 50, rng)
    assert len({tuple(t) for t in drawn}) == len(drawn) == 50
    assert (np.diff(drawn, axis=1) > 0).all()


def test_tickets_trained_alone_and_kept() -> None:
    torch.manual_seed(5)
    x = torch.randn(60, 2, dtype=torch.float64)
    teacher = student(7, width=1)
    data = (x, teacher(x).detach())
    starts = [Problem(student(s, 3), data, "mse") for s in range(2)]
    alone = train_alone(starts, "0", 1, 10, 300, np.random.default_rng(0))
    assert alone.start.tolist() == [0, 0, 0, 1, 1, 1]
    assert alone.total == 3
    assert (alone.loss < 1e-10).any()
    fresh = [[Problem(student(100 + k, 3), data, "mse") for k in range(2)] for _ in starts]
    rows = teacher[0].weight.detach().numpy()
    made = redraw_others(starts, fresh, "0", [[0], [1]], 300, [rows, rows])
    assert made.ticket.tolist() == [0, 0, 1, 1]
    assert ((made.matched >= 0) & (made.matched <= 1)).all()
    assert np.isfinite(made.loss).all()
    assert matches(torch.as_tensor(-2 * rows), Hidden("0", "2", ()), [0], rows) == 1
    assert matches(torch.tensor([[1.0, 0.0]]), Hidden("0", "2", ()), [0], np.array([[0.0, 1.0]])) == 0


# ---- the command ----------------------------------------------------------------------------------------------------

SWEEP = """
[sweep]
width = [2, 3]
seed = "0..5"

[model]
name = "mlp"
activation = "tanh"
bias = false

[data]
name = "teacher"
target = "random"
activation = "tanh"
neurons = 2
features = 2
scale = 2.0
inputs = "gaussian"
samples = 60

[training]
loss = "mse"
optimiser = "levenberg_marquardt"
steps = 200
dtype = "float64"
save_dtype = "float64"
save = [0]
"""


def signs_of_a_sweep(folder: Path) -> None:
    """The evidence of `negative-eigenvalues`, gathered once and then taken from where it was put aside."""
    runs, _ = read_runs([str(folder)], Source())
    kept: dict[str, Any] = {}
    groups, scale = populations(runs), negative_eigenvalues.Scale(2, 6, 2)
    made = negative_eigenvalues.gather(groups, Means(scale, 0, "cpu", lambda *a: None, KeptPieces({}, kept.update)))
    again = negative_eigenvalues.gather(groups, Means(scale, 0, "cpu", lambda *a: None, KeptPieces(kept, pytest.fail)))
    decision = signs.CLAIM.decide(made)
    assert [(p.name, p.verdict) for p in decision.parts] == [
        (p.name, p.verdict) for p in signs.CLAIM.decide(again).parts
    ]
    theorems = [p for p in decision.parts if p.name.startswith("2c") and not p.evidence]
    assert theorems
    assert all(p.value == 1.0 for p in theorems)
    assert [s.parameters for s in made.signs] == [9, 17, 25, 33]
    assert all(p.verdict == "undetermined" for p in decision.parts if p.name.startswith("2b signs"))  # six seeds
    assert signs.CLAIM.draw(made)


@pytest.mark.parametrize("optimiser", ["levenberg_marquardt", "newton", "flow"])
def test_tickets_are_trained_as_their_networks_and_say_whether_they_finished(optimiser: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 2, dtype=torch.float64)
    y = torch.tanh(x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    starts = [Problem(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), (x, y), "mse")]
    most = 1 if optimiser == "flow" else 9  # member by member
    short = train_alone(starts, "0", 2, most, 1, np.random.default_rng(0), optimiser=optimiser)
    whole = train_alone(starts, "0", 2, most, 2000, np.random.default_rng(0), optimiser=optimiser)
    assert whole.finished.all()
    if optimiser != "flow":  # which goes on until it has arrived
        assert not short.finished.any()
        assert (whole.loss < short.loss).all()


@pytest.mark.slow
def test_signs_of_a_trained_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.replace('seed = "0..5"', 'seed = "0..1"'))
    assert run("train", "sweep.toml", "--out", "runs", cwd=tmp_path).returncode == 0
    signs_of_a_sweep(tmp_path / "runs")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "no runs are named"),
        (("nowhere",), 2, "does not exist"),
        ((".", "--claim", "flatness"), 2, "escape-dimensions"),
        ((".", "--scale", "huge"), 2, "'small', 'medium', 'full'"),
        ((".", "--seed", "-1"), 2, "at least 0"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    done = run("check", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
