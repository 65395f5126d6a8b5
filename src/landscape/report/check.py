"""A decided claim as a section of a page: all of it from its result file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from landscape.claims.claim import group_of, interval_words
from landscape.figures.check import draw_check
from landscape.figures.style import render
from landscape.report.document import Block, Bullets, Cell, Code, Folded, Heading, Paragraph, Picture, Table, Verdict
from landscape.results.store import StoredResult


def labels(found: list[tuple[Path, StoredResult]]) -> list[str]:
    """A name of its own for every section: a claim can be decided on several sweeps."""
    names = [str(r.attributes["claim"]) for _, r in found]
    return [
        name if names[:i].count(name) == 0 else f"{name}-{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]


def summary(found: list[tuple[Path, StoredResult]]) -> Table:
    """One row a claim."""
    rows = [
        [
            Cell(str(r.attributes["claim"]), link=f"claim-{label}"),
            Cell(str(r.attributes["verdict"]), strong=True),
            Cell(str(r.attributes["condition"]) or "-"),
            Cell(f"{_number(r, 'runs')}"),
            Cell(f"{_number(r, 'seeds')}"),
        ]
        for label, (_, r) in zip(labels(found), found, strict=True)
    ]
    return Table(("claim", "verdict", "condition", "runs", "seeds"), rows, right=(3, 4))


def section(path: Path, result: StoredResult, label: str) -> Iterator[Block]:
    """Statement, verdict, figure, tables, how it was measured, commands."""
    words = {k: str(result.attributes[k]) for k in ("claim", "verdict", "condition", "statement", "source")}
    yield Heading(words["claim"], 2, f"claim-{label}")
    yield Paragraph(f"\u201c{words['statement']}\u201d")
    yield Paragraph(words["source"], "Source")
    yield Verdict(words["verdict"], words["condition"])
    yield Paragraph(str(result.attributes["says_not"]), "What this verdict does not say")
    if len(_texts(result, "curve_panel")):
        svg = render(draw_check(result), ".svg")
        yield Picture(f"{label}.svg", f"figure of {words['claim']}, {words['verdict']}", svg)
    yield from _parts(result)
    yield from _measured(result)
    yield from _commands(path, result)


def _parts(result: StoredResult) -> Iterator[Block]:
    names = _texts(result, "part")
    groups = [group_of(name) for name in names]
    yield Heading("Parts", 3)
    yield Paragraph(
        "In small or pale print: theorems, which check this program, and reports; they do not enter the verdict."
    )
    for group in dict.fromkeys(groups):
        yield Heading(group, 4)
        rows = [_row(result, i, names[i].removeprefix(group).lstrip(": ")) for i, g in enumerate(groups) if g == group]
        yield Table(("part", "verdict", "statistic", "value [95 %]", "n", "note"), rows, right=(3, 4))


def _row(result: StoredResult, i: int, name: str) -> list[Cell]:
    def text(field: str) -> str:
        return _texts(result, f"part_{field}")[i]

    value, low, high = (float(result.arrays[f"part_{k}"].values[i]) for k in ("value", "low", "high"))
    evidence = bool(result.arrays["part_evidence"].values[i])
    return [
        Cell(name, muted=not evidence),
        Cell(text("verdict"), strong=True) if evidence else Cell("-", muted=True),
        Cell(text("statistic"), muted=not evidence),
        Cell(interval_words(value, low, high), muted=not evidence),
        Cell(str(int(result.arrays["part_n"].values[i])), muted=not evidence),
        Cell(text("note"), muted=not evidence),
    ]


def _measured(result: StoredResult) -> Iterator[Block]:
    """Tests and thresholds, what was asked of the runs, the runs, and those left out."""
    p = result.provenance
    yield Heading("How it was measured", 3)
    yield Paragraph(str(result.attributes.get("how", "")))
    needs = _texts(result, "need")
    if needs:
        yield Paragraph("", "Needed of the runs")
        yield Bullets(needs)
    spent = ", ".join(f"{k} {v}" for k, v in dict(p.settings.get("budget", {})).items())
    yield Paragraph(
        f"scale {p.settings.get('scale', '?')}{f' ({spent})' if spent else ''}, seed {p.seed}; {p.seconds:.0f} s on "
        f"{p.device} in {p.dtype}; {', '.join(f'{k} {v}' for k, v in dict(p.versions).items())}",
        "Made with",
    )
    rows = [
        [Cell(name), Cell(number)]
        for name, number in zip(_texts(result, "population"), _texts(result, "population_runs"), strict=True)
    ]
    if rows:
        yield Table(("runs of", "number"), rows, right=(1,))
    left, why = _texts(result, "excluded"), _texts(result, "excluded_reason")
    if left:
        out = [[Cell(run), Cell(reason)] for run, reason in zip(left, why, strict=True)]
        table = Table(("run, or sweep", "reason"), out)
        yield Folded(f"Left out of {_number(result, 'runs')} runs: {len(left)}, and why", (table,))


def _commands(path: Path, result: StoredResult) -> Iterator[Block]:
    """What to type to get the same again: from sweep files where the runs are ours, else from the runs as named."""
    settings = result.provenance.settings
    named = [str(r) for r in settings.get("runs", ())]
    populations = zip(_texts(result, "population"), _texts(result, "population_sweep"), strict=True)
    sweeps = {_stem(name): text for name, text in populations if text}
    ours = bool(sweeps) and len(sweeps) == len(_texts(result, "population"))
    lines = [f"landscape train {stem}.toml --out runs/{stem}" for stem in sweeps] if ours else []
    check = ["landscape", "check", *([f"runs/{stem}" for stem in sweeps] if ours else named)]
    check += ["--claim", str(result.attributes["claim"]), "--scale", str(settings.get("scale", "small"))]
    check += [str(word) for word in settings.get("problem", ())]
    check += ["--seed", str(result.provenance.seed), "--out", str(path.parent)]
    yield Heading("Repeat it", 3)
    yield Code("\n".join([*lines, shlex.join(check)]))
    for stem, text in sweeps.items():
        yield Code(text, f"{stem}.toml")
    yield Paragraph(", ".join(named), "The runs were read from")
    settle = _texts(result, "settle")
    if settle:
        yield Paragraph("", "What is undetermined may be settled by")
        yield Code("\n".join(settle))


def _stem(population: str) -> str:
    """Name of a population's sweep file, without .toml."""
    return "-".join("".join(c if c.isalnum() else " " for c in population).split())


def _texts(result: StoredResult, name: str) -> list[str]:
    found = result.arrays.get(name)
    return [] if found is None else [str(v) for v in np.atleast_1d(found.values)]


def _number(result: StoredResult, name: str) -> int:
    value: Any = result.arrays[name].values
    return int(value)
