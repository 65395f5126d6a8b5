"""Results other than claims as sections of a page: a figure and a table of files for each analysis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from landscape.analyses import ANALYSES
from landscape.errors import LandscapeError
from landscape.figures.choice import draw
from landscape.figures.style import render
from landscape.report.document import Block, Bullets, Cell, Folded, Heading, Paragraph, Picture, Table
from landscape.results.store import StoredResult

# At most this many figures of analyses that show one result each, and this many results that share a figure.
SHOWN, SHARED = 6, 60


def section(kind: str, found: list[tuple[Path, StoredResult]]) -> Iterator[Block]:
    """The results of one analysis, at least one."""
    analysis = ANALYSES[kind]
    yield Heading(f"{analysis.title} ({len(found)})", 2, kind)
    results = [r for _, r in found]
    if analysis.alone:
        for number, (path, result) in enumerate(found[:SHOWN]):
            yield from _picture([result], f"{kind}-{number + 1}", str(path))
        if len(found) > SHOWN:
            yield Paragraph(f"The figures of the first {SHOWN} of them; `landscape plot FILE` draws the others.")
    else:
        yield from _picture(results[:SHARED], kind, f"{analysis.plural} of {len(found)} checkpoints")
        if len(found) > SHARED:
            yield Paragraph(f"The figure shows the first {SHARED} of them.")
    yield Folded("1 result file" if len(found) == 1 else f"{len(found)} result files", (_files(found),))


def _picture(results: list[StoredResult], name: str, alt: str) -> Iterator[Block]:
    """The figure with what its readers must know; or why there is none."""
    try:
        figure, notes = draw(results, None)
        svg = render(figure, ".svg")
    except LandscapeError as error:  # results that share no figure are still listed
        yield Paragraph(f"no figure: {error.message}")
        return
    yield Picture(f"{name}.svg", alt, svg)
    if notes:
        yield Bullets(notes)


def _files(found: list[tuple[Path, StoredResult]]) -> Table:
    rows = [
        [
            Cell(str(path)),
            Cell(r.provenance.checkpoint),
            Cell(r.provenance.status),
            Cell(r.provenance.dtype),
            Cell(str(r.provenance.seed)),
            Cell(f"{r.provenance.seconds:.3g}"),
        ]
        for path, r in found
    ]
    return Table(("result", "checkpoint", "status", "arithmetic", "seed", "seconds"), rows, right=(4, 5))
