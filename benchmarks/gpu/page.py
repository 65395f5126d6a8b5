"""`make gpu-page FILE...`: docs/benchmarks-gpu.md from result files of `make gpu`; rows without a figure say so.

Standard library only. Of several files of one card the later ones count, row by row.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks-gpu.md"
INTRODUCTION = """# On a GPU

Written by `make gpu-page` from what `make gpu` measured, in one call of at most 500 seconds on a bare machine:

    make gpu-wheels                       # where there is a network: what the machine lacks, below 60 MB
    make gpu                              # there, with gpu-wheels/ beside the Makefile: gpu-results/gpu.json and .log
    make gpu OPTIONS="--phases products,spectrum --budget 200"
    make gpu OPTIONS="--resume gpu-results/gpu.json"
    make gpu-page FILE=gpu-results/gpu.json
    make gpu DEVICE=cpu SIZE=tiny         # a rehearsal without a GPU; nothing in it is a measurement

- Seconds are medians; the spread is that between the fastest and the slowest repetition. A vector's share of a block's
  product is given. Beside every product stands the floor: two gradients of the same data, timed in turn with it.
- TF32 is off for everybody; attention runs in the kernel that has second derivatives. True errors of products are
  against double backward in float64 by PyTorch alone, those of eigenvalues against certified ones in the precision
  that is named, whose own residual is given.
- A peer for which there was no time is told by what its products alone cost ("at least").
- A ratio is the peer's seconds over ours: above 1, we are faster.
"""


@dataclass(frozen=True)
class Card:
    """All rows of one card, by phase, and the files' headers."""

    name: str
    headers: list[dict[str, Any]]
    phases: dict[str, dict[tuple[str, str, str], dict[str, Any]]]
    states: dict[str, dict[str, Any]]

    def find(self, phase: str, row: str, case: str, who: str) -> dict[str, Any]:
        """The row, or an empty one."""
        return self.phases.get(phase, {}).get((row, case, who), {})

    def cases(self, phase: str, row: str) -> list[str]:
        return list(dict.fromkeys(case for r, case, _ in self.phases.get(phase, {}) if r == row))

    def who(self, phase: str, row: str, case: str) -> list[str]:
        return [w for r, c, w in self.phases.get(phase, {}) if (r, c) == (row, case)]


def merged(results: Sequence[dict[str, Any]]) -> list[Card]:
    """One card for each name; results in the order of their time."""
    cards: dict[str, Card] = {}
    for result in sorted(results, key=lambda r: r["started"]):
        devices = result["machine"]["devices"]
        name = devices[0]["name"] if devices else f"{result['machine']['cpu']} (rehearsal, {result['size']})"
        card = cards.setdefault(name, Card(name, [], {}, {}))
        card.headers.append(result)
        for phase, found in result["phases"].items():
            for row in found["rows"]:
                card.phases.setdefault(phase, {})[row["row"], row["case"], row["who"]] = row
            if found["rows"] or phase not in card.states:
                card.states[phase] = {k: v for k, v in found.items() if k != "rows"}
    return list(cards.values())


# ---- numbers --------------------------------------------------------------------------------------------------------


def median(row: dict[str, Any], name: str = "seconds") -> float | None:
    return statistics.median(row[name]) if row.get(name) else None


def told(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def spread(row: dict[str, Any], scale: float = 1.0) -> str:
    taken = row.get("seconds") or []
    return f"{scale * min(taken):.3g} … {scale * max(taken):.3g}" if len(taken) > 1 else "–"


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float | None, str]:
    """The peer's seconds over ours, and "≥ " where only a bound of the peer's is known."""
    mine, other = median(ours), median(theirs)
    bound = theirs.get("at_least")
    if mine is None or (other is None and bound is None):
        return None, ""
    return (other / mine, "") if other is not None else (bound / mine, "≥ ")


# ---- the bar --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """What is aimed at: of which figure of a card, at least how much (`below`: at most)."""

    text: str
    figure: Callable[[Card], tuple[float | None, str]]
    aim: float
    unit: str = "×"
    below: bool = False


def _against(phase: str, row: str, case: str, peer: str) -> Callable[[Card], tuple[float | None, str]]:
    return lambda card: ratio(card.find(phase, row, case, "ours"), card.find(phase, row, case, peer))


def _slowest_slice(card: Card) -> tuple[float | None, str]:
    """Against the best correct peer, in the worst of the cases below a million parameters."""
    worst: list[float] = []
    for case in card.cases("slices", "slice"):
        mine = card.find("slices", "slice", case, "ours")
        others = [card.find("slices", "slice", case, who) for who in card.who("slices", "slice", case) if who != "ours"]
        right = [ratio(mine, o)[0] for o in others if o.get("right")]
        worst += [min(r for r in right if r is not None)] if any(r is not None for r in right) else []
    return (min(worst), "") if worst else (None, "")


def _slowest_rate(card: Card) -> tuple[float | None, str]:
    rates = [r["rate"] for (row, _, _), r in card.phases.get("certified", {}).items() if row == "certified"]
    return (min(rates), "") if rates else (None, "")


def _whole_check(card: Card) -> tuple[float | None, str]:
    row = card.find("check", "check", "all sweeps", "ours")
    if row.get("whole"):
        return median(row), ""
    return row.get("training_at_this_rate"), "training alone, at this rate: "


# Product per vector and whole spectrum: case, and how many times faster than the peer.
PRODUCT_AIMS = (("MLP 85k", 10), ("ResNet18 k=8", 10), ("ResNet18 k=64", 2), ("GPT 100M", 1), ("MLP 20M", 1))
SPECTRUM_AIMS = (("ResNet18 k=8", 5), ("ResNet18 k=64", 2))
KEPT, WHOLE = "product, {}, against PyHessian's kept graph", "whole spectrum, {}, against hessian-eigenthings"
AIMS = [
    *(Aim(KEPT.format(c), _against("products", "product", c, "PyHessian"), least) for c, least in PRODUCT_AIMS),
    *(
        Aim(WHOLE.format(c), _against("spectrum", "spectrum", c, "hessian-eigenthings"), least)
        for c, least in SPECTRUM_AIMS
    ),
    Aim("plane of 41 × 41 points below 1 M parameters, worst case, against the best correct peer", _slowest_slice, 3),
    Aim("certified runs a second, P ≤ 60, the slowest width", _slowest_rate, 2000, " a second"),
    Aim("`check --scale full`, whole", _whole_check, 600, " s", below=True),
]


def bar(card: Card | None) -> list[str]:
    """The aims with what was measured."""
    lines = ["| aim | wanted | measured | |", "|---|---|---|---|"]
    for aim in AIMS:
        value, prefix = aim.figure(card) if card is not None else (None, "")
        wanted = f"{'≤' if aim.below else '≥'} {aim.aim:g}{aim.unit}"
        if value is None:
            lines.append(f"| {aim.text} | {wanted} | not measured | |")
            continue
        reached = value <= aim.aim if aim.below else value >= aim.aim
        verdict = "reached" if reached else "**not reached**"
        lines.append(f"| {aim.text} | {wanted} | {prefix}{value:.3g}{aim.unit} | {verdict} |")
    return [*lines, ""]


# ---- tables ---------------------------------------------------------------------------------------------------------


def products(card: Card) -> list[str]:
    lines = []
    for case in card.cases("products", "product"):
        rows = [(who, card.find("products", "product", case, who)) for who in card.who("products", "product", case)]
        known = next((r for _, r in rows if "parameters" in r), {})
        lines += [f"### product, {case} ({known.get('parameters', 0):,} parameters, N = {known.get('samples')})", ""]
        lines += ["| | ms | spread | two gradients, ms | in gradients | true error | peak GB | setting |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for who, row in rows:
            seconds, gradient = median(row), median(row, "gradient")
            if seconds is None or gradient is None:
                lines.append(f"| {who} | {row.get('why', '–')} | | | | | | |")
                continue
            setting = row.get("setting", {})
            how = [str(setting[k]) for k in ("strategy",) if k in setting]
            how += [f"{setting['block']} vectors"] if setting.get("block", 1) > 1 else []
            how += [f"chunk {setting['chunk']}"] if "chunk" in setting else []
            cells = [who, told(1e3 * seconds), spread(row, 1e3), told(2e3 * gradient), told(seconds / gradient)]
            cells += [told(row["error"], 2), told(row["memory"] / 1e9), ", ".join(how)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def spectra(card: Card) -> list[str]:
    lines = []
    for case in card.cases("spectrum", "spectrum"):
        rows = [(who, card.find("spectrum", "spectrum", case, who)) for who in card.who("spectrum", "spectrum", case)]
        known = next((r for _, r in rows if "reference" in r), {})
        lines += [f"### whole spectrum, {case}", ""]
        if known:
            lines += [f"Reference in {known['reference']}, certified to {known['reference_error']:.1e}.", ""]
        lines += ["| | seconds | spread | true error | peak GB | |", "|---|---|---|---|---|---|"]
        for who, row in rows:
            seconds = median(row)
            if seconds is None:
                least = f"≥ {row['at_least']:.3g}" if "at_least" in row else "–"
                lines.append(f"| {who} | {least} | | | | {row.get('why', '')} |")
                continue
            verdict = "" if row["right"] else "not right to 1e-3"
            steps = row.get("setting", {}).get("steps")
            verdict = ", ".join(t for t in (verdict, f"{steps} steps" if steps else "") if t)
            cells = [who, told(seconds), spread(row), told(row["error"], 2), told(row["memory"] / 1e9), verdict]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def slices(card: Card) -> list[str]:
    cases = card.cases("slices", "slice")
    if not cases:
        return []
    lines = ["### planes of 41 × 41 points", ""]
    lines += ["| | | seconds | spread | error at the centre |", "|---|---|---|---|---|"]
    for case in cases:
        for who in card.who("slices", "slice", case):
            row = card.find("slices", "slice", case, who)
            error = told(row.get("error"), 2) + ("" if row.get("right", True) else ": not on its grid")
            shown = [case, who, told(median(row)), spread(row), row.get("why") or error]
            lines.append(f"| {' | '.join(shown)} |")
    return [*lines, ""]


def certified(card: Card) -> list[str]:
    lines = []
    rows = [(key, row) for key, row in card.phases.get("certified", {}).items()]
    if rows:
        lines += ["### certified runs", "", "| | members | seconds | a second | |", "|---|---|---|---|---|"]
        for (_, case, _), row in rows:
            verdicts = ", ".join(f"{n} {v}" for v, n in row.get("verdicts", {}).items())
            verdicts = verdicts or ("files written" if row.get("whole") else "cut off")
            lines.append(f"| {case} | {row['members']} | {told(median(row))} | {told(row['rate'])} | {verdicts} |")
        lines.append("")
    rows = [(key, row) for key, row in card.phases.get("check", {}).items()]
    if rows:
        lines += ["### `check --claim escape-dimensions --run`", "", "| sweep | trained | of |", "|---|---|---|"]
        lines += [f"| {case} | {row['members']} | {row['wanted']} |" for (_, case, _), row in rows]
        whole = card.find("check", "check", "all sweeps", "ours")
        if whole:
            at_rate = told(whole.get("training_at_this_rate"))
            end = (
                "the whole command"
                if whole["whole"]
                else f"then it was stopped; all training at this rate: {at_rate} s"
            )
            lines += [
                "",
                f"{told(median(whole))} s at scale {whole['scale']}, {told(whole['rate'])} runs a second; {end}.",
            ]
        lines.append("")
    return lines


def memory(card: Card) -> list[str]:
    rows = card.phases.get("memory", {})
    if not rows:
        return []
    lines = ["### memory", "", "| | | peak GB | seconds | |", "|---|---|---|---|---|"]
    for (row, case, who), found in rows.items():
        what = "top 10" if row == "memory" else "the top, 12 products"
        size = told(found["memory"] / 1e9) if "memory" in found else "–"
        lines.append(f"| {case}, {what} | {who} | {size} | {told(median(found))} | {found.get('why', '')} |")
    return [*lines, ""]


def tests(card: Card) -> list[str]:
    rows = card.phases.get("tests", {})
    if not rows:
        return []
    outcomes: dict[str, int] = {}
    for row in rows.values():
        outcomes[row.get("outcome", "failed")] = outcomes.get(row.get("outcome", "failed"), 0) + 1
    lines = [f"Tests marked `gpu`: {', '.join(f'{n} {o}' for o, n in sorted(outcomes.items()))}.", ""]
    for (_, case, _), row in rows.items():
        if row.get("failed"):
            reason = (row.get("why") or "").strip().split("\n")[-1][:160]
            lines.append(f"- **failed**: `{case}`: {reason}")
    return [*lines, ""] if len(lines) > 2 else lines


def section(card: Card) -> list[str]:
    """Everything of one card."""
    last = card.headers[-1]
    machine = last["machine"]
    device = machine["devices"][0] if machine["devices"] else None
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    lines = [f"## {card.name}", ""]
    if device:
        size, capability = device["memory"] / 2**30, device["capability"]
        lines += [f"- {size:.0f} GiB, compute capability {capability}, driver {machine['driver']}"]
    lines += [f"- {', '.join(h['started'] for h in card.headers)}; {machine['cpu']}, {machine['cores']} cores"]
    lines += [f"- Python {machine['python']}, {versions}", ""]
    states = [f"{n} {s['status']} after {s['seconds']:.0f} s" for n, s in card.states.items() if "seconds" in s]
    lines += [f"Phases: {'; '.join(states)}.", ""] if states else []
    for part in (bar, tests, products, spectra, slices, certified, memory):
        lines += part(card)
    return lines


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    cards = merged(results)
    lines = [INTRODUCTION]
    if not cards:
        lines += ["No result file is there yet: nothing here has been measured.", "", *bar(None)]
    for card in cards:
        lines += section(card)
    return "\n".join(lines).rstrip() + "\n"


def main(words: Sequence[str]) -> int:
    """Write the page; a file that is none of ours ends it."""
    results = []
    for word in words:
        try:
            result = json.loads(Path(word).read_text())
            rehearsed = (result["format"], result["size"]) != (1, "full")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"error: {word} is no result of `make gpu`: {error}\nhint: name its gpu.json", file=sys.stderr)
            return 2
        if rehearsed:
            print(f"error: {word} is a rehearsal: nothing in it was measured\nhint: leave it out", file=sys.stderr)
            return 2
        results.append(result)
    PAGE.write_text(page(results))
    print(f"wrote {PAGE.relative_to(ROOT)} from {len(results)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
