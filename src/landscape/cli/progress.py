"""Progress on stderr: a bar with remaining time on a terminal, else a plain line every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from landscape.cli.terminal import print_note, stderr
from landscape.runtime.progress import Progress

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def stage_progress(label: str, quiet: bool) -> Iterator[Progress]:
    """A function (stage, done, total) that shows how far an analysis is."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bar(label) as report:
            yield report
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    import rich.progress
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(label, total=None)

        def report(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{label}: {stage}", completed=done, total=total)

        yield report


def _lines(label: str) -> Progress:
    begin = said = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            print_note(f"{label}: {stage}, {done} of {total}{_left(now - begin, done, total)}")

    return report


def _left(spent: float, done: int, total: int) -> str:
    """ ", about 2 min left", from the pace so far."""
    if not 0 < done < total:
        return ""
    seconds = spent * (total - done) / done
    return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"
