"""The figure of slices: contours and surface of one, several on one scale, lines in one panel."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from landscape.figures.series import differences
from landscape.figures.slice_planes import draw_slices
from landscape.results.reading import StoredLike


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure, and what its readers must know."""
    return draw_slices(found, by), differences(found)
