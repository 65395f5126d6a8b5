"""What a command and its worker processes say to each other: requests, progress, files of pieces."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from landscape.runtime.workers import Task

# A worker says how far it is in lines on stderr that begin so.
SAYS = "@progress "


def guarded(work: Callable[..., object], *arguments: object) -> None:
    """What a worker process calls: `work`, its errors said and made exit codes, as of a command."""
    from landscape.cli.terminal import within_errors

    within_errors(lambda: work(*arguments))


def task_of(label: str, work: Callable[..., object], *arguments: object) -> Task:
    """A task of a worker process, which calls a function of a module."""
    from landscape.runtime.workers import call

    return call(guarded, work, *arguments, label=label)


def part(place: Path, number: int) -> Path:
    """Where a worker keeps what it has found."""
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
