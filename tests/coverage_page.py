"""Counts of a coverage run as tables: on the terminal, and as docs/coverage.md."""

from __future__ import annotations

import datetime
import platform
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from scipy.stats import beta

import landscape

Record = dict[str, Any]
# A kind is named where it misses more often than allowed and chance does that once in a thousand.
SURE = 1e-3
# Kinds that the page lists, the worst first.
MOST = 25
# Problems that the page lists for each certain bound that broke.
SHOWN = 3
COLUMNS = ("bound", "may miss", "problems", "missed", "rate of misses", "verdict", "width: median, 90 %")
HEAD = """# Coverage: what the bounds held on random problems

Written by `make coverage` (`tests/coverage_run.py`); a new seed every time. Each problem is a random network (linear,
multilayer, convolutional, recurrent, attentive, tied, normalised, gated …), loss (the named ones and functions), data
set (Gaussian, heavy tails, trends, zeros first, ill-scaled, imbalanced … in uneven batches), point (as initialised to
saturated and interpolating) and setting. The truth is the dense Hessian by a double backward of the test's own in
float64, or by Taylor arithmetic in 80 bits where float64 cancels.

"Never" means that one miss is a fault; "5 %" that the interval may miss so often. The range is the 95 % interval of
Clopper and Pearson for the rate of misses: a bound **fails** when all of it lies above what is allowed, *holds*
otherwise, and is *shown* when all of it lies below. Widths are relative: to the largest |eigenvalue| (residuals,
product error, sampling), to Σ|λ| (trace), to the number of parameters (counts); masses and densities as they are.
"""


def clopper_pearson(missed: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval for a rate."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, missed, trials - missed + 1)) if missed else 0.0
    high = float(beta.ppf(1 - tail, missed + 1, trials - missed)) if missed < trials else 1.0
    return low, high


def _tally(records: list[Record]) -> dict[str, tuple[float, list[bool], list[float]]]:
    """Check -> allowed rate, whether each was missed, widths. A problem counts once, at its worst."""
    found: dict[str, tuple[float, list[bool], list[float]]] = {}
    for record in records:
        worst: dict[str, list[Any]] = {}
        for name, rate, missed, width in record.get("checks", []):
            before = worst.setdefault(name, [rate, False, width])
            before[1] |= missed
            before[2] = max(before[2], width)
        for name, (rate, missed, width) in worst.items():
            entry = found.setdefault(name, (rate, [], []))
            entry[1].append(missed)
            entry[2].append(width)
    return found


def _verdict(rate: float, missed: int, trials: int) -> str:
    if rate == 0:
        return "**fails**" if missed else "holds"
    low, high = clopper_pearson(missed, trials)
    return "**fails**" if low > rate else "shown" if high <= rate else "holds"


def _rows(records: list[Record]) -> list[tuple[str, ...]]:
    rows = []
    for name, (rate, missed, width) in sorted(_tally(records).items(), key=lambda item: (item[1][0], item[0])):
        k, n = sum(missed), len(missed)
        low, high = clopper_pearson(k, n)
        allowed = {0.0: "never", 0.05: "5 %", 1e-3: "0.1 %"}[rate]
        known = [w for w in width if np.isfinite(w)]
        spread = f"{np.median(known):.1e}, {np.quantile(known, 0.9):.1e}" if any(known) else ""
        rows.append(
            (name, allowed, f"{n:,}", str(k), f"{100 * low:.2f}–{100 * high:.2f} %", _verdict(rate, k, n), spread)
        )
    return rows


def _by_kind(records: list[Record]) -> list[tuple[str, ...]]:
    """Kinds of problems on which a bound misses more often than its rate, beyond chance; more than once."""
    count: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    rates: dict[str, float] = {}
    for record in records:
        for name, rate, missed, _ in record.get("checks", []):
            rates[name] = rate
            for group, kind in record["kinds"].items():
                entry = count[name, f"{group}: {kind}"]
                entry[0] += missed
                entry[1] += 1
    rows: list[tuple[float, tuple[str, ...]]] = []
    for (name, kind), (k, n) in sorted(count.items()):
        low, _ = clopper_pearson(k, n, 1 - 2 * SURE)
        if k > 1 and rates[name] > 0 and low > rates[name]:
            rows.append((low / rates[name], (name, kind, f"{n:,}", str(k), f"{100 * k / n:.0f} %")))
    return [row for _, row in sorted(rows, key=lambda found: -found[0])[:MOST]]


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(records: list[Record]) -> str:
    """All bounds, then the kinds that stand out, aligned for a terminal."""
    head = COLUMNS
    rows = [head, *_rows(records)]
    wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
    lines += [f"{name} on {kind}: {k} of {n} missed ({rate})" for name, kind, n, k, rate in _by_kind(records)]
    return "\n".join([*lines, *_ends(records)])


def _ends(records: list[Record]) -> list[str]:
    refused = Counter(r["refused"][:160] for r in records if "refused" in r)
    lines = [f"{len(records):,} problems; {sum('no truth' in r for r in records)} whose Hessian overflows"]
    lines.append(f"{sum('crashed' in r for r in records)} ended with a traceback")
    lines.append(f"{sum('too slow' in r for r in records)} took longer than the limit")
    lines.append(f"{sum(refused.values())} were refused{':' if refused else ''}")
    return [*lines, *(f"- {number} × {text}" for text, number in refused.most_common())]


def _broken(records: list[Record]) -> list[str]:
    """The first problems that break each certain bound."""
    shown: Counter[str] = Counter()
    lines = []
    for record in records:
        for name in sorted({c[0] for c in record.get("checks", []) if c[1] == 0 and c[2]}):
            shown[name] += 1
            if shown[name] <= SHOWN:
                about = ", ".join(record["kinds"].values())
                lines.append(f"- {name}, problem {record['problem']} ({about}): {record['missed'][name]}")
    return sorted(lines)


def widths(records: list[Record], others: list[Record]) -> str:
    """Widths of the same bounds of the same problems: the median of the ratio to the other version's."""
    theirs = {(r["problem"], i, c[0]): c[3] for r in others for i, c in enumerate(r.get("checks", []))}
    ratios = defaultdict(list)
    for r in records:
        for i, (name, _, _, width) in enumerate(r.get("checks", [])):
            if width > 0 and theirs.get((r["problem"], i, name), 0) > 0:
                ratios[name].append(width / theirs[r["problem"], i, name])
    lines = []
    for name, x in sorted(ratios.items()):
        low, middle, high = np.quantile(x, [0.1, 0.5, 0.9])
        lines.append(f"{name}: {middle:.3f} times as wide (10 % to 90 %: {low:.3g} to {high:.3g}; {len(x)})")
    return "\n".join(lines)


def failed(records: list[Record]) -> bool:
    """Whether a bound is broken or a problem ended with a traceback."""
    return any(row[5] == "**fails**" for row in _rows(records)) or any("crashed" in r for r in records)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def page(seed: int, records: list[Record]) -> str:
    """docs/coverage.md."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "scipy"))
    last = max((r["problem"] for r in records), default=0)
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, landscape {landscape.__version__}"
    where = f"Python {platform.python_version()}, {versions}, {platform.machine()}"
    ends = _ends(records)
    parts = [
        HEAD,
        f"{made}, {where}. Seed {seed}, problems 0 to {last:,}.\n",
        _markdown(COLUMNS, _rows(records)) + "\n",
        "\n".join([f"{ends[0]}.", "", *(f"- {line.removeprefix('- ')}" for line in ends[1:])]) + "\n",
    ]
    if kinds := _by_kind(records):
        parts.append(
            "Kinds on which a bound misses more often than allowed, beyond chance (1 in 1,000), the worst first:\n"
        )
        parts.append(_markdown(("bound", "kind", "problems", "missed", "rate"), kinds) + "\n")
    if broken := _broken(records):
        parts.append(f"Certain bounds that broke, up to {SHOWN} problems each:\n")
        parts.append("\n".join(broken) + "\n")
    return "\n".join(parts)
