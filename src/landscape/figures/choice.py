"""The figure of results of one analysis: one of them in detail, or several in comparison."""

from __future__ import annotations

from matplotlib.figure import Figure

from landscape.errors import UsageError
from landscape.figures.check import draw_check
from landscape.figures.descend import draw_descents
from landscape.figures.escape import draw_escape, draw_widen
from landscape.figures.series import caveats, differences
from landscape.figures.slice_planes import draw_slices
from landscape.figures.spectra import draw_spectra
from landscape.figures.spectrum import draw_spectrum
from landscape.results.store import StoredResult

SINGLE = ("escape", "widen", "check")  # one result a figure


def draw(found: list[StoredResult], by: str | None) -> tuple[Figure, list[str]]:
    """The figure, and what its readers must know.

    Raises:
        UsageError: several results of an analysis whose figures show one.
    """
    kind = found[0].group
    if kind in SINGLE:
        if len(found) > 1:
            raise UsageError(
                f"a figure shows one result of `landscape {kind}`, and {len(found)} were named", "name one file"
            )
        return {"escape": draw_escape, "widen": draw_widen, "check": draw_check}[kind](found[0]), []
    if kind == "descend":
        return draw_descents(found, by), []
    if kind == "slice":
        return draw_slices(found, by), differences(found)
    return draw_spectrum(found[0]) if len(found) == 1 else draw_spectra(found, by), caveats(found, by)
