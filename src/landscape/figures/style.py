"""How figures look and how they become bytes: sizes, colours, rc parameters, deterministic rendering."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from landscape import __version__
from landscape.errors import UsageError

PAGE = 7.0  # inches: both columns of a two-column journal
Colour = tuple[float, float, float, float]
FORMATS = ("png", "svg", "pdf")
MARK = f"landscape {__version__}"

# Okabe-Ito: told apart by colour-blind readers and in grey.
INK = "#262626"
MUTED = "#767676"
PALE = "#d9d9d9"
POSITIVE = "#0072b2"
NEGATIVE = "#d55e00"

RC: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same bytes on every machine
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.8,
    "ytick.major.size": 2.8,
    "xtick.minor.size": 1.6,
    "ytick.minor.size": 1.6,
    "legend.fontsize": 6.3,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.2,
    "savefig.dpi": 300,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: text stays text, which journals ask for
    "svg.fonttype": "path",
    "svg.hashsalt": "landscape",
}


def new_figure(height: float, head: float) -> Figure:
    """An empty page-wide figure of `height` inches that keeps the upper `head` of it free for a heading."""
    return Figure(figsize=(PAGE, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head / height)))


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib's defaults plus `RC`, whatever the user's matplotlibrc says; restored on leaving."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def sequence_colours(n: int) -> list[Colour]:
    """`n` colours of equal perceptual steps, dark to light, without the illegible yellow end."""
    colours = matplotlib.colormaps["viridis"]
    return [colours(0.05 + 0.72 * i / max(n - 1, 1)) for i in range(n)]


def check_format(suffix: str) -> str:
    """`.PNG` -> `png`; refuses what we do not write."""
    name = suffix.lower().lstrip(".")
    if name not in FORMATS:
        said = f"the suffix {suffix!r}" if suffix else "a name without a suffix"
        raise UsageError(
            f"Figures cannot be written to {said}; the format is chosen by the suffix.",
            hint="use one of " + ", ".join(f".{f}" for f in FORMATS),
        )
    return name


def render(figure: Figure, suffix: str) -> bytes:
    """The figure as the bytes of a PNG (300 dpi), SVG or PDF file: the same figure gives the same bytes."""
    name = check_format(suffix)
    every: dict[str, dict[str, Any]] = {
        "png": {"Software": MARK},
        "svg": {"Creator": MARK, "Date": None},
        "pdf": {"Creator": MARK, "CreationDate": None},
    }
    buffer = io.BytesIO()
    with paper_style():
        figure.savefig(buffer, format=name, metadata=every[name])
    return buffer.getvalue()


def is_ours(data: bytes, suffix: str) -> bool:
    """Whether these bytes are an image that `render` wrote, or one of our pages (html, md; any version of them)."""
    name = suffix.lower().lstrip(".")
    start, mark = {
        "html": (b"<!DOCTYPE html", b'<meta name="generator" content="landscape '),
        "md": (b"# ", b"<!-- landscape "),
        "png": (b"\x89PNG", b"Software\x00landscape "),
        "svg": (b"<?xml", b"<dc:title>landscape "),
        "pdf": (b"%PDF", b"/Creator (landscape "),
    }[name if name in ("html", "md") else check_format(suffix)]
    return data.startswith(start) and mark in data
