"""A document as one self-contained HTML page: style and figures inside, no script, nothing from a network."""

from __future__ import annotations

import base64
from html import escape

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

COLOURS = {"supported": "#00734d", "contradicted": "#b3400a", "conditional": "#8a6100", "undetermined": "#5c5c5c"}
STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #262626; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 2px solid #262626; } h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
h4 { font-size: .95rem; margin: 1rem 0 .2rem; color: #404040; }
p { margin: .5rem 0; max-width: 48rem; } .verdict { display: inline-block; color: #fff; border-radius: .25rem;
  padding: .1rem .7rem; font-weight: 600; } .word { font-weight: 600; white-space: nowrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 1.5px solid #767676; font-weight: 600; }
td.right, th.right { text-align: right; white-space: nowrap; }
.muted { color: #767676; } img { width: 100%; height: auto; margin: 1rem 0; }
pre { background: #f5f5f3; padding: .7rem .9rem; overflow-x: auto; font-size: .82rem; border-radius: .25rem; }
summary { cursor: pointer; margin: .4rem 0; } a { color: #005a8f; }
@media print { details > * { display: block; } h2 { break-before: page; } }
"""


def as_html(document: Document) -> str:
    """The page."""
    body = "\n".join(_block(b) for b in document.blocks)
    title = escape(document.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="generator" content="landscape {__version__}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, level, anchor):
            name = f' id="{escape(anchor)}"' if anchor else ""
            return f"<h{level}{name}>{escape(text)}</h{level}>"
        case Paragraph(text, label):
            start = f"<strong>{escape(label)}.</strong> " if label else ""
            return f"<p>{start}{escape(text)}</p>"
        case Verdict(word, condition):
            colour = COLOURS.get(word, "#262626")
            after = f" <span>{escape(condition)}</span>" if condition else ""
            return f'<p><span class="verdict" style="background:{colour}">{escape(word)}</span>{after}</p>'
        case Table():
            return _table(block)
        case Picture(_, alt, svg):
            data = base64.b64encode(svg).decode("ascii")
            return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
        case Code(text, summary):
            shown = f"<pre><code>{escape(text)}</code></pre>"
            return f"<details><summary>{escape(summary)}</summary>{shown}</details>" if summary else shown
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(i)}</li>" for i in items) + "</ul>"
        case Folded(summary, blocks):
            inner = "\n".join(_block(b) for b in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def _table(table: Table) -> str:
    def side(i: int) -> str:
        return ' class="right"' if i in table.right else ""

    head = "".join(f"<th{side(i)}>{escape(c)}</th>" for i, c in enumerate(table.columns))
    rows = [
        "<tr>" + "".join(f"<td{side(i)}>{_cell(c)}</td>" for i, c in enumerate(row)) + "</tr>" for row in table.rows
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.link:
        text = f'<a href="#{escape(cell.link)}">{text}</a>'
    if cell.strong:
        text = f'<span class="word" style="color:{COLOURS.get(cell.text, "inherit")}">{text}</span>'
    return f'<span class="muted">{text}</span>' if cell.muted else text
