"""Writes the tables of docs/format.md from the code; `python tools/format_page.py` after a change of a result."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from landscape.analyses import ANALYSES
from landscape.points.certificate import Certificate
from landscape.results.fields import AXES, Provenance, Result, declared_fields

PAGE = Path(__file__).resolve().parent.parent / "docs" / "format.md"
JSON_FIELDS = "text, JSON"


def result_classes() -> list[type[Result]]:
    """All analyses' results, in the order of their list."""
    return [row.result_class for row in ANALYSES.values()]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def field_table(kind: type[Any], parts: bool = False) -> str:
    """Every dataset of a group that a field declares, and of its parts where these have no table of their own."""
    inside = {f.name: f.metadata for f in fields(kind) if "part" in f.metadata and not parts}
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{d}`" for d in meta["dims"]),
            meta["units"],
            "yes" if meta["optional"] else "",
            meta["long_name"],
        )
        for name, meta in declared_fields(kind).items()
        if name.partition(".")[0] not in inside
    ]
    rows += [
        (f"`{name}`", "", "", "yes" if told["optional"] else "", f"a part: [{told['part']().__name__.lower()}](#parts)")
        for name, told in inside.items()
    ]
    return table(("dataset", "axes", "units", "may be absent", "what it is (`long_name`)"), rows)


TYPES = {"str": "text", "bool": "uint8, 0 or 1", "int": "int64"}  # what Result.attributes lets through


def attribute_table(kind: type[Any], before: str = "") -> str:
    """The group attributes that a result adds to its provenance, or that a part has."""
    return table(("attribute", "type"), _described(kind, before))


def _described(kind: type[Any], before: str) -> list[tuple[str, str]]:
    rows = []
    for f in fields(kind):
        if before and "part" in f.metadata:
            rows += _described(f.metadata["part"](), f"{before}{f.name}.")
        elif not {"dims", "interval", "part"} & set(f.metadata):
            if before and str(f.type).startswith("Mapping"):
                rows.append((f"`{before}{f.name}`".replace("certificate.", ""), JSON_FIELDS))
            elif str(f.type) in TYPES:
                rows.append((f"`{before}{f.name}`".replace("certificate.", ""), TYPES[str(f.type)]))
    return rows


def axis_table() -> str:
    """Every axis, and whether its scale carries positions or only counts."""
    rows = [(f"`{a}`", "the field of that name" if c else "0, 1, 2 …", text) for a, (text, c) in AXES.items()]
    return table(("axis", "scale holds", "what it is"), rows)


def provenance_table() -> str:
    """The attributes that every group has; the texts are those of the class's docstring."""
    entries = re.split(r"\n {8}(?=\S)", (Provenance.__doc__ or "").split("Attributes:")[1])
    texts: dict[str, str] = {}
    for entry in entries[1:]:
        names, text = " ".join(entry.split()).split(": ", 1)
        texts |= dict.fromkeys(names.split(", "), text)
    types = {"str": "text", "int": "int64", "float": "float64"}
    rows = [(f"`{f.name}`", types.get(str(f.type), JSON_FIELDS), texts[f.name]) for f in fields(Provenance)]
    return table(("attribute", "type", "what it is"), rows)


def generated() -> dict[str, str]:
    """Name of a generated part of the page -> its Markdown."""
    parts = {"axes": axis_table(), "provenance": provenance_table()}
    for kind in result_classes():
        parts[f"{kind.group} attributes"] = attribute_table(kind)
        parts[f"{kind.group} datasets"] = field_table(kind)
    parts["certificate attributes"] = attribute_table(Certificate, "certificate.")
    parts["certificate datasets"] = field_table(Certificate, parts=True)
    return parts


def render(page: str) -> str:
    """The page with its generated parts renewed. Raises KeyError where page and code name different parts."""
    parts = generated()
    pattern = re.compile(r"<!-- begin: (.+?) -->\n.*?<!-- end -->", re.DOTALL)
    if missing := set(parts) - set(pattern.findall(page)):
        raise KeyError(f"docs/format.md has no part for {sorted(missing)}")
    return pattern.sub(lambda m: f"<!-- begin: {m[1]} -->\n{parts[m[1]]}\n<!-- end -->", page)


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    PAGE.write_text(new, encoding="utf-8")
    sys.stdout.write("unchanged\n" if new == old else f"wrote {PAGE.name}\n")
