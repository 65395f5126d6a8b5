"""The blocks of a page, whatever it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """level 1 … 4; anchor: its name for links, "" for none."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """label: in bold before it."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class Verdict:
    """A verdict, and on what a conditional one depends."""

    word: str
    condition: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table. link: an anchor of the page. strong: a verdict. muted: what does not count."""

    text: str
    link: str = ""
    strong: bool = False
    muted: bool = False


@dataclass(frozen=True)
class Table:
    """right: columns of numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    right: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """An SVG image; name: of its file, where it is one."""

    name: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Code:
    """Lines to be typed or kept as a file; summary: shown instead until it is opened, "" shows them."""

    text: str
    summary: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Verdict | Table | Picture | Code | Bullets | Folded


@dataclass(frozen=True)
class Document:
    """A page."""

    title: str
    blocks: Sequence[Block]
