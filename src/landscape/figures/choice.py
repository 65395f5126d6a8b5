"""The figure of results of one analysis: one of them in detail, or several in comparison."""

from __future__ import annotations

from matplotlib.figure import Figure

from landscape.analyses import ANALYSES
from landscape.errors import UsageError
from landscape.results.store import StoredResult


def draw(found: list[StoredResult], by: str | None) -> tuple[Figure, list[str]]:
    """The figure, and what its readers must know.

    Raises:
        UsageError: several results of an analysis whose figures show one.
    """
    analysis = ANALYSES[found[0].group]
    if analysis.alone and len(found) > 1:
        raise UsageError(
            f"a figure shows one result of `landscape {analysis.name}`, and {len(found)} were named", "name one file"
        )
    figure: tuple[Figure, list[str]] = analysis.figure.draw(found, by)
    return figure
