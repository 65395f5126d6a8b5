"""The figure of spectra: one in detail, or several in comparison."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from landscape.figures.series import caveats
from landscape.figures.spectra import draw_spectra
from landscape.figures.spectrum_detail import draw_spectrum
from landscape.results.reading import StoredLike


def draw(found: Sequence[StoredLike], by: str | None) -> tuple[Figure, list[str]]:
    """The figure, and what its readers must know."""
    return draw_spectrum(found[0]) if len(found) == 1 else draw_spectra(found, by), caveats(found, by)
