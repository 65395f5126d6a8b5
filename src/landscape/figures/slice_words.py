"""Words around slices: the heading with what must be known beside the picture, labels of panels, wrapping."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from landscape.figures.series import Series, arrange, coordinate
from landscape.figures.slice_labels import SEPARATOR, escaped, remarks
from landscape.figures.style import MUTED, NEGATIVE
from landscape.figures.values import number
from landscape.results.reading import StoredLike
from landscape.slices.stored import faults_of, grid_of, marks_of

LINE = 0.125  # inches from one line of the heading to the next
LETTERS = 150  # of a line of the heading


@dataclass(frozen=True)
class Heading:
    """Lines above the panels: what is shown, what to know about it and, in warning colour, what is wrong."""

    lines: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def height(self) -> float:
        """Inches that it needs."""
        return 0.08 + LINE * (len(self.lines) + len(self.wrong))

    def write(self, figure: Figure, keys: Sequence[Artist] = ()) -> None:
        """Write it into the space that `new_figure(head=...)` kept free, with a legend `keys` at the right."""
        inches = figure.get_figheight()
        texts = [(line, MUTED) for line in self.lines] + [(line, NEGATIVE) for line in self.wrong]
        for i, (line, colour) in enumerate(texts):
            figure.text(0.012, 1 - (0.06 + LINE * i) / inches, line, fontsize=6.3, color=colour, va="top")
        if keys:
            figure.legend(handles=list(keys), loc="upper right", ncols=len(keys), borderaxespad=0.3, fontsize=6.0)


def heading(results: Sequence[StoredLike], series: Series | None = None) -> Heading:
    """The words for one slice, or for several ordered along `series`."""
    first = results[0]
    if series is None or len(results) == 1:
        status = first.provenance.status
        words = [tail(first.provenance.checkpoint), _directions(results), "" if status == "complete" else status]
        said = remarks(first, grid_of(first))
        wrong = [f"SELF-CHECK FAILED: {escaped(fault)}" for fault in faults_of(first)]
    else:
        span = f"{series.name} {series.rows[0].label} to {series.rows[-1].label}" if series.numeric else ""
        words = [f"{len(results)} slices", span, _directions(results)]
        said = _together(results)
        failed = [label_of(result, series) for result in results if faults_of(result)]
        wrong = [f"SELF-CHECK FAILED: {', '.join(failed)}"] if failed else []
    title = SEPARATOR.join(word for word in words if word)
    notes = wrapped(SEPARATOR.join(said), LETTERS).splitlines()
    return Heading((title, *notes), tuple(line for fault in wrong for line in wrapped(fault, LETTERS).splitlines()))


def _directions(results: Sequence[StoredLike], most: int = 48) -> str:
    """The directions as they were asked for; of long ones the kinds alone, since axes tell the rest."""
    asked = {str(result.attributes.get("directions", "")) for result in results} - {""}
    told = ", ".join(sorted(asked))
    if len(told) > most:
        told = ", ".join(sorted({kind for text in asked for kind in re.findall(r"(?:^|\+)(\w+)", text)}))
    return escaped(f"directions: {told}") if told else ""


def _together(results: Sequence[StoredLike]) -> list[str]:
    """What must be said of several slices at once."""
    said = []
    holes = sum(grid_of(result).holes > 0 for result in results)
    if holes:
        said.append(f"{holes} of {len(results)} have holes")
    found = [marks for result in results if (marks := marks_of(result)) is not None]
    distances = np.concatenate([marks.distance for marks in found] or [np.zeros(0)])
    distances = distances[np.isfinite(distances)]
    if distances.size:
        said.append(f"marks lie up to {number(float(distances.max()))} off their planes")
    return said


def ordered(results: Sequence[StoredLike], by: str | None) -> tuple[Series, list[StoredLike]]:
    """The series, and its members in its order: replicates after one another, by seed where they have one."""
    series = arrange(results, by)
    placed: list[StoredLike] = []
    for row in series.rows:
        placed += sorted(row.results, key=_seed)
    return series, placed


def _seed(result: StoredLike) -> tuple[bool, float, str]:
    seed = coordinate(result, "seed")
    known = isinstance(seed, int | float)
    return (not known, float(seed) if known else 0.0, result.provenance.checkpoint)


def label_of(result: StoredLike, series: Series) -> str:
    """`width 8`, with the seed where several share the width; the checkpoint's name where nothing else tells."""
    (row,) = (row for row in series.rows if any(member is result for member in row.results))
    name = row.label if series.name == "checkpoint" else f"{series.name} {row.label}"
    if len(row.results) > 1:
        seed = coordinate(result, "seed")
        place = 1 + next(i for i, member in enumerate(row.results) if member is result)
        name += f", seed {escaped(str(seed))}" if seed is not None else f", no. {place}"
    return name


def tail(path: str, most: int = 70) -> str:
    """The end of a path, which tells checkpoints apart."""
    return escaped(path if len(path) <= most else "…" + path[1 - most :])


def stacked(label: str, letters: int) -> str:
    """A label of several parts on one line, or where that is too long, its parts below each other."""
    parts = label.split(SEPARATOR)
    plain = label.replace("$", "").replace(r"\times 10^", "")
    return label if len(plain) <= letters else "\n".join(wrapped(part, letters) for part in parts)


def wrapped(text: str, width: int) -> str:
    """Lines of at most about `width` letters; formulas stay whole."""
    kept = re.sub(r"(?<!\\)\$[^$]*\$", lambda found: found[0].replace(" ", "\0"), text)
    lines = []
    for line in textwrap.wrap(kept, width, break_long_words=False, break_on_hyphens=False):
        cut = len(line) if "\0" in line else width  # a path has no blanks to break at
        lines += [line[i : i + cut] for i in range(0, len(line), cut)]
    return "\n".join(lines).replace("\0", " ")
