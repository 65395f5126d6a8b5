"""Several results ordered along one coordinate (width, step, seed …): which one, its rows, what to warn about."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from landscape.errors import UsageError
from landscape.figures.values import has_density, number, one_operator, smoothed
from landscape.results.reading import StoredLike, scalar

PREFERRED = ("width", "step", "seed", "parameters")
OWN = ("parameters", "checkpoint")  # what every result has, besides the coordinates of its sweep


@dataclass(frozen=True)
class Row:
    """All results at one value of the coordinate: its replicates, usually seeds."""

    label: str
    position: float
    results: tuple[StoredLike, ...]


@dataclass(frozen=True)
class Series:
    """Results in rows, ascending in the coordinate `name`; `numeric` is False where positions only count."""

    name: str
    numeric: bool
    rows: tuple[Row, ...]


def coordinate(result: StoredLike, name: str) -> Any:
    """The value of one coordinate of a result, None where it has none."""
    found = result.provenance.coordinates.get(name)
    if found is not None:
        return found
    if name == "parameters":
        number = scalar(result, "parameters")  # NaN: a surface of another program does not say
        return int(number) if number == number else None
    return result.provenance.checkpoint if name == "checkpoint" else None


def choose_coordinate(results: Sequence[StoredLike], by: str | None) -> str:
    """`by`, checked; or the first of width, step, seed and parameters that varies, else the checkpoint's name."""
    known = [set(r.provenance.coordinates) | set(OWN) for r in results]
    if by is None:
        shared = set.intersection(*known)
        varying = (n for n in PREFERRED if n in shared and len({_key(coordinate(r, n)) for r in results}) > 1)
        return next(varying, "checkpoint")
    missing = [r.provenance.checkpoint for r in results if coordinate(r, by) is None]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(results)} results have no coordinate {by!r}, such as that of {missing[0]}; "
            "coordinates come from the checkpoint's header or its path (width=8/seed=0/…).",
            hint="all have: " + ", ".join(sorted(set.intersection(*known))),
        )
    return by


def arrange(results: Sequence[StoredLike], by: str | None = None) -> Series:
    """Sort results into rows of equal coordinate."""
    if not results:
        raise UsageError("There is no result to plot.", hint="name result files, globs or folders")
    name = choose_coordinate(results, by)
    found = [coordinate(r, name) for r in results]
    numeric = all(_is_number(v) for v in found)
    groups: dict[Any, list[StoredLike]] = {}
    for value, result in zip(found, results, strict=True):
        groups.setdefault(float(value) if numeric else _key(value), []).append(result)
    rows = [
        Row(number(key, 4) if numeric else _short(key), key if numeric else float(i), tuple(groups[key]))
        for i, key in enumerate(sorted(groups))
    ]
    return Series(name.replace("$", r"\$"), numeric, tuple(rows))


def caveats(results: Sequence[StoredLike], by: str | None = None) -> list[str]:
    """What a reader of a figure of spectra must know about these results; also refuses mixed operators."""
    one_operator(list(results))
    notes = differences(results)
    series = arrange(results, by)
    mixed = sorted(
        name
        for name in {n for r in results for n in r.provenance.coordinates} - {series.name, "seed"}
        if any(len({_key(coordinate(r, name)) for r in row.results}) > 1 for row in series.rows)
    )
    if mixed:
        notes.append(f"results that differ in {', '.join(mixed)} share a value of {series.name} and are pooled")
    old = sum(has_density(r) and smoothed(r) == "asinh" and "eigenvalues" not in r.arrays for r in results)
    if old:
        notes.append(
            f"{old} of {len(results)} results hold a density of an older version, which may reach beyond the largest "
            "eigenvalues: repeat `landscape spectrum` with --force"
        )
    bare = sum(not has_density(r) for r in results)
    if bare:
        notes.append(f"{bare} of {len(results)} results hold no density; only their extreme eigenvalues are drawn")
    return notes


def differences(results: Sequence[StoredLike]) -> list[str]:
    """In what results in one figure are unlike, though they should not be; and how many are of unfinished runs."""
    notes = [
        f"results of different {words} are drawn together"
        for words, differing in (
            ("data", {r.provenance.data_fingerprint for r in results}),
            ("numbers of samples", {scalar(r, "samples") for r in results if "samples" in r.arrays}),
            ("tau", {scalar(r, "tau") for r in results if "tau" in r.arrays}),
        )
        if len(differing) > 1
    ]
    unfinished = [r for r in results if r.provenance.status != "complete"]
    if unfinished:
        notes.append(f"{len(unfinished)} of {len(results)} results are of unfinished runs")
    return notes


def _is_number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, numbers.Real) and math.isfinite(value)


def _key(value: Any) -> str:
    return str(value)


def _short(name: str, most: int = 22) -> str:
    """A label that fits beside a row: the end of a name tells checkpoints apart; no dollar starts mathtext."""
    shown = name if len(name) <= most else "…" + name[1 - most :]
    return shown.replace("$", r"\$")
