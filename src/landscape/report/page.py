"""All results of a folder as one document: claims first, then every other analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from landscape.analyses import ANALYSES
from landscape.report import check as claims
from landscape.report import results
from landscape.report.document import Block, Document, Heading, Paragraph
from landscape.results.store import StoredResult


def make_page(title: str, found: Mapping[str, list[tuple[Path, StoredResult]]]) -> Document:
    """The document of results by analysis, in the order in which they come; at least one."""
    blocks: list[Block] = []
    decided = found.get("check", [])
    if decided:
        blocks += [Heading("Verdicts", 2, "verdicts"), claims.summary(decided)]
        blocks.append(
            Paragraph(
                "Every test and threshold was fixed in the program before any data; a claim is undetermined where "
                "there are too few seeds, unconverged runs or missing certificates."
            )
        )
        for label, (path, result) in zip(claims.labels(decided), decided, strict=True):
            blocks += claims.section(path, result, label)
    for kind in ANALYSES:
        if kind != "check" and found.get(kind):
            blocks += results.section(kind, found[kind])
    return Document(title, tuple(blocks))
