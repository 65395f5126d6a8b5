"""What `landscape check` shows: one JSON object a claim, or a table of its parts at 80 columns."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from landscape.claims.claim import group_of, interval_words
from landscape.claims.result import Checked
from landscape.cli.terminal import plain, stdout
from landscape.results.fields import Provenance


def check_json(r: Checked, p: Provenance, path: Path) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN is None."""
    report = {
        "claim": r.claim,
        "verdict": r.verdict,
        "condition": r.condition or None,
        "statement": r.statement,
        "source": r.source,
        "says_not": r.says_not,
        "parts": [_part(r, i) for i in range(len(r.part))],
        "runs": int(r.runs),
        "seeds": int(r.seeds),
        "excluded": [
            {"run": str(run), "reason": str(why)} for run, why in zip(r.excluded, r.excluded_reason, strict=True)
        ],
        "settle": [str(s) for s in r.settle],
        "seconds": p.seconds,
        "result": str(path),
    }
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _part(r: Checked, i: int) -> dict[str, Any]:
    return {
        "name": str(r.part[i]),
        "verdict": str(r.part_verdict[i]),
        "statistic": str(r.part_statistic[i]),
        "value": float(r.part_value[i]),
        "low": float(r.part_low[i]),
        "high": float(r.part_high[i]),
        "n": int(r.part_n[i]),
        "evidence": bool(r.part_evidence[i]),
        "note": str(r.part_note[i]) or None,
    }


def print_json(r: Checked, p: Provenance, path: Path) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(check_json(r, p, path), allow_nan=False) + "\n")
    sys.stdout.flush()


def print_one(r: Checked, p: Provenance, path: Path) -> None:
    """The claim, its verdict, every part, and what the verdict does not say."""
    stdout.print(f"{r.claim}: {r.verdict}{f' ({r.condition})' if r.condition else ''}")
    stdout.print(f"  {r.statement}")
    stdout.print(f"  {r.source}")
    groups = [group_of(str(name)) for name in r.part]
    for group in dict.fromkeys(groups):
        stdout.print(f"\n  {group}", soft_wrap=True)
        stdout.print(parts_table(r, [i for i, g in enumerate(groups) if g == group]))
    stdout.print("  (in brackets: theorems and reports, which do not enter the verdict)")
    if len(r.excluded):
        stdout.print(
            f"  left out (runs, or whole sweeps): {len(r.excluded)}, the first {r.excluded[0]}: {r.excluded_reason[0]}"
        )
    stdout.print(f"  What it does not say: {r.says_not}")
    for command in r.settle:
        stdout.print(f"  What is undetermined may be settled by: {command}", soft_wrap=True)
    stdout.print(f"  {r.runs} runs, {p.seconds:.0f} s, written to {path}", soft_wrap=True)


def parts_table(r: Checked, numbers: list[int]) -> Group:
    """The parts of these numbers: name, verdict, value with its interval and sample size, and below them what the value
    is and what a reader must know. Names wrap where the terminal is narrow, numbers never do."""
    values = [interval_words(*(float(x[i]) for x in (r.part_value, r.part_low, r.part_high))) for i in numbers]
    sizes = [str(r.part_n[i]) for i in numbers]
    widths = (len("undetermined"), max(map(len, [*values, "value [95 %]"])), max(map(len, sizes)))
    rows: list[RenderableType] = [_row(("part", "verdict", "value [95 %]", "n"), widths), Rule(characters="─")]
    for i, value, size in zip(numbers, values, sizes, strict=True):
        name = str(r.part[i]).removeprefix(group_of(str(r.part[i]))).lstrip(": ")
        evidence = bool(r.part_evidence[i])
        verdict = str(r.part_verdict[i]) if evidence else "-"
        rows.append(_row((name if evidence else f"({name})", verdict, value, size), widths))
        told = [str(text) for text in (r.part_statistic[i], r.part_note[i]) if str(text).strip("-")]
        if told:
            rows.append(Padding(Text("; ".join(told), style="dim"), (0, 0, 0, 4)))
    return Group(*rows)


def _row(cells: tuple[str, str, str, str], widths: tuple[int, int, int]) -> Table:
    """One line; all lines of one table have the same widths."""
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(ratio=1, overflow="fold")
    row.add_column(width=widths[0], no_wrap=True)
    for width in widths[1:]:
        row.add_column(width=width, justify="right", no_wrap=True)
    row.add_row(*(Text(cell) for cell in cells))
    return row
