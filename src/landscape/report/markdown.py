"""A document as Markdown (GitHub's), figures as files beside it."""

from __future__ import annotations

from urllib.parse import quote

from landscape import __version__
from landscape.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Document,
    Folded,
    Heading,
    Paragraph,
    Picture,
    Table,
    Verdict,
)

# What would be markup in running text.
SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\*_`[]<>|#"})


def as_markdown(document: Document, folder: str) -> str:
    """The page; pictures are linked in `folder`."""
    mark = f"<!-- landscape {__version__}: written by `landscape report`, from result files -->"
    return "\n\n".join([f"# {_plain(document.title)}", mark, *(_block(b, folder) for b in document.blocks)]) + "\n"


def pictures(document: Document) -> dict[str, bytes]:
    """The images of a page by the names that it links."""
    return {b.name: b.svg for b in document.blocks if isinstance(b, Picture)}


def _block(block: Block, folder: str) -> str:
    match block:
        case Heading(text, level, anchor):
            name = f'<a id="{anchor}"></a>\n\n' if anchor else ""
            return f"{name}{'#' * level} {_plain(text)}"
        case Paragraph(text, label):
            start = f"**{_plain(label)}.** " if label else ""
            return f"{start}{_plain(text)}".strip()
        case Verdict(word, condition):
            return f"Verdict: **{word}**" + (f" ({_plain(condition)})" if condition else "")
        case Table():
            return _table(block)
        case Picture(name, alt, _):
            return f"![{_plain(alt)}]({quote(folder)}/{quote(name)})"
        case Code(text, summary):
            fenced = f"```text\n{text.rstrip()}\n```"
            return _folded(summary, fenced) if summary else fenced
        case Bullets(items):
            return "\n".join(f"- {_plain(i)}" for i in items)
        case Folded(summary, blocks):
            return _folded(summary, "\n\n".join(_block(b, folder) for b in blocks))


def _folded(summary: str, inner: str) -> str:
    return f"<details><summary>{_plain(summary)}</summary>\n\n{inner}\n\n</details>"


def _table(table: Table) -> str:
    rule = ["---:" if i in table.right else "---" for i in range(len(table.columns))]
    rows = [list(table.columns), rule, *([_cell(c) for c in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    if cell.link:
        text = f"[{text}](#{cell.link})"
    if cell.strong:
        return f"**{text}**"
    return f"<sub>{text}</sub>" if cell.muted and cell.text != "-" else text


def _plain(text: str) -> str:
    return text.translate(SPECIAL)
