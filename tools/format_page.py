"""Writes the tables of docs/format.md from the code; `python tools/format_page.py` after a change of a result."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from landscape.analyses import ANALYSES
from landscape.results.fields import AXES, Provenance, Result

PAGE = Path(__file__).resolve().parent.parent / "docs" / "format.md"
JSON_FIELDS = "text, JSON"


def result_classes() -> list[type[Result]]:
    """All analyses' results, in the order of their list."""
    return [row.result_class for row in ANALYSES.values()]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def field_table(kind: type[Result]) -> str:
    """Every dataset of a group that a field declares."""
    optional = {f.name for f in fields(kind) if f.default is None}
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{d}`" for d in meta["dims"]),
            meta["units"],
            "yes" if name in optional else "",
            meta["long_name"],
        )
        for name, meta in kind.declared().items()
    ]
    return table(("dataset", "axes", "units", "may be absent", "what it is (`long_name`)"), rows)


def attribute_table(kind: type[Result]) -> str:
    """The group attributes that a result adds to its provenance."""
    types = {"str": "text", "bool": "uint8, 0 or 1", "int": "int64"}  # what Result.attributes lets through
    described = [f for f in fields(kind) if "dims" not in f.metadata and str(f.type) in types]
    rows = [(f"`{f.name}`", types[str(f.type)]) for f in described]
    return table(("attribute", "type"), rows)


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
