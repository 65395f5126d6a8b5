"""What a command and its worker processes say to each other: command lines, progress, files of pieces."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from landscape.checkpoints.source import Source

# A worker says how far it is in lines on stderr that begin so.
SAYS = "@progress "


def source_options(source: Source) -> list[tuple[str, Any]]:
    """The options that name a problem, for a worker's command line."""
    return [
        ("--problem", source.problem),
        *(("--set", f"{k}={v}") for k, v in source.sets.items()),
        ("--data", source.data),
        ("--loss", source.loss),
        *(("--allow-global", name) for name in source.allow_globals),
        ("--key", source.key),
        ("--batchnorm", source.batchnorm),
    ]


def words(options: Iterable[tuple[str, Any]]) -> list[str]:
    """Options as words of a command line, without those that are None."""
    return [word for option, value in options if value is not None for word in (option, str(value))]


def part(place: Path, number: int) -> Path:
    """Where a worker puts aside what it has found."""
    return place.with_name(f".{place.name}.pieces-{number}")


def parts(place: Path, left_behind: bool = False) -> list[Path]:
    """The files of workers; with `left_behind` also of those of which a kill left a temporary only."""
    found = set(place.parent.glob(f".{place.name}.pieces-*"))
    if left_behind:
        temporaries = place.parent.glob(f"..{place.name}.pieces-*.tmp")
        found |= {t.with_name(t.name.removeprefix(".").rsplit(".", 2)[0]) for t in temporaries}
    return sorted(found)


def teller(say: Callable[[str, int, int], str], seconds: float) -> Callable[[str, int, int], None]:
    """A worker's progress: a line for the parent, not more often than that; it stops when the parent is gone.

    Args:
        say: (stage, done, total) -> the line. seconds: between two lines.
    """
    parent, last = os.getppid(), [0.0]

    def tell(stage: str, done: int, total: int) -> None:
        if os.getppid() != parent:
            raise typer.Exit(1)
        if time.monotonic() - last[0] > seconds:
            last[0] = time.monotonic()
            sys.stderr.write(f"{SAYS}{say(stage, done, total)}\n")
            sys.stderr.flush()

    return tell
