"""The analyses, one row each: commands, result files, figures, sections of reports and public names follow from it.

An analysis NAME has a package with settings, result and function, `cli/NAME.py` with the command, `cli/views/NAME.py`
with `print_json`, `print_one`, `print_many` and `warn`, and `figures/NAME.py` with `draw`. Everything is loaded when it
is asked for: this table imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Analysis:
    """One row.

    Attributes:
        name: of the command, of the group in result files and of their pattern.
        result: the class of its results, as "module:name". settings: that of its options; None: of no checkpoint.
        function: the function of the library; None: there is none.
        plural: what several of its results are called. title: heading of its section in a report.
        alone: whether a figure shows one result only.
    """

    name: str
    result: str
    settings: str | None
    function: str | None
    plural: str
    title: str
    alone: bool = False

    @property
    def pattern(self) -> str:
        """The pattern of its result files."""
        return f"*.{self.name}.h5"

    @property
    def result_class(self) -> type[Any]:
        """The frozen dataclass of its results."""
        return _named(self.result)  # type: ignore[no-any-return]

    @property
    def settings_class(self) -> type[Any] | None:
        """The frozen dataclass of its options."""
        return None if self.settings is None else _named(self.settings)

    @property
    def view(self) -> ModuleType:
        """How its results are shown on the terminal."""
        return import_module(f"landscape.cli.views.{self.name}")

    @property
    def figure(self) -> ModuleType:
        """How its results are drawn."""
        return import_module(f"landscape.figures.{self.name}")


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


ANALYSES: dict[str, Analysis] = {
    row.name: row
    for row in (
        Analysis(
            "spectrum",
            "landscape.results.fields:Spectrum",
            "landscape.spectra.settings:SpectrumSettings",
            "landscape.spectra.run:spectrum",
            "spectra",
            "Spectra",
        ),
        Analysis(
            "descend",
            "landscape.points.results:Descended",
            "landscape.points.settings:DescendSettings",
            "landscape.points.descend:descend",
            "descents",
            "Descents",
        ),
        Analysis(
            "escape",
            "landscape.points.results:Escaped",
            "landscape.points.settings:EscapeSettings",
            "landscape.points.escape:escape",
            "escapes",
            "Escapes",
            alone=True,
        ),
        Analysis(
            "widen",
            "landscape.widening.result:Widened",
            "landscape.widening.settings:WidenSettings",
            "landscape.widening.run:widen",
            "widened networks",
            "Widened networks",
            alone=True,
        ),
        Analysis(
            "slice",
            "landscape.slices.result:Sliced",
            "landscape.slices.settings:SliceSettings",
            "landscape.slices.run:slice",
            "slices",
            "Slices",
        ),
        Analysis(
            "check",
            "landscape.claims.result:Checked",
            None,
            None,
            "decided claims",
            "Verdicts",
            alone=True,
        ),
    )
}
