"""One slice as a page that turns: a standalone HTML file with plotly.js inside, which asks nothing of the network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.figures.slice_labels import SEPARATOR, axis_labels, remarks
from landscape.figures.style import INK, MARK, MUTED, NEGATIVE, POSITIVE
from landscape.results.reading import StoredLike, scalar, values
from landscape.slices.stored import METRICS, Grid, faults_of, grid_of, is_wide, marks_of, masked

IDENTIFIER = "landscape"  # of the element that holds the plot: fixed, so that the same result gives the same bytes
MOST_HOVERS = 40_000  # cells beyond which a text for each would make the page heavier than plotly itself
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{mark}">
<title>{title}</title>
<style>
html, body {{ height: 100%; margin: 0; }}
body {{ display: flex; flex-direction: column; font: 14px "DejaVu Sans", Verdana, sans-serif; color: {ink}; }}
header {{ padding: 12px 18px 0; }}
p {{ margin: 2px 0; color: #555555; }}
p.wrong {{ color: {wrong}; font-weight: bold; }}
#box {{ flex: 1; min-height: 420px; overflow: hidden; }}
</style>
</head>
<body>
<header>
<strong>{title}</strong>
{notes}
</header>
<div id="box">{plot}</div>
</body>
</html>
"""


def draw_page(result: StoredLike) -> bytes:
    """The page of one slice, UTF-8: a surface in 3-D, or a curve for a line. The same result gives the same bytes.

    Raises UsageError where plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
        import plotly.io
    except ImportError as error:
        raise UsageError(
            "an interactive page needs plotly, which is not installed", "pip install 'torch-landscape[html]'"
        ) from error
    grid = grid_of(result)
    traces, layout = _line(result, grid) if grid.line else _surface(result, grid)
    figure = go.Figure(data=traces, layout=layout)
    plot = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id=IDENTIFIER,
        default_height="100%",
        config={"displaylogo": False, "responsive": True},
    )
    said = [SEPARATOR.join([*_labels(result), *remarks(result, grid, _plain)])]
    notes = [f"<p>{html.escape(text)}</p>" for text in said]
    notes += [f'<p class="wrong">self-check failed: {html.escape(fault)}</p>' for fault in faults_of(result)]
    title = html.escape(f"{result.provenance.checkpoint}{SEPARATOR}{result.attributes.get('directions', 'slice')}")
    page = PAGE.format(mark=MARK, title=title, notes="\n".join(notes), plot=plot, ink=INK, wrong=NEGATIVE)
    return page.encode()


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _labels(result: StoredLike) -> list[str]:
    """The directions, x and y, in words."""
    labels = [label.replace(r"\$", "$") for label in axis_labels(result, _plain)]
    return [f"{name}: {label.replace(SEPARATOR, ', ')}" for name, label in zip("xy", labels, strict=False)]


def _hovers(result: StoredLike, grid: Grid) -> np.ndarray | None:
    """What each cell says when pointed at, [y, x] of text; None for a grid too large for that."""
    if grid.loss.size > MOST_HOVERS:
        return None
    fields = {"loss": grid.loss}
    for name, words in METRICS.items():
        found = values(result, name)
        if found is not None:
            fields[words] = masked(found, ~grid.missing)
    x, y = np.meshgrid(grid.x, grid.y)
    lines = [_column("x", x)] + ([] if grid.line else [_column("y", y)])
    lines += [_column(words, field) for words, field in fields.items()]
    text = ["<br>".join(parts) for parts in zip(*lines, strict=True)]
    return np.array(text).reshape(grid.loss.shape)


def _column(name: str, field: np.ndarray) -> list[str]:
    return [f"{name} {value:.6g}" for value in field.ravel().tolist()]


def _axis(text: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": text}, "showgrid": True, "gridcolor": "#dddddd", "zeroline": False, **more}


def _surface(result: StoredLike, grid: Grid) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The loss over the plane, coloured by itself; buttons change its scale where it is positive."""
    positive = not bool((grid.loss < 0).any()) and bool((grid.loss > 0).any())
    log = is_wide(grid.loss)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.where(grid.loss > 0, np.log10(grid.loss), np.nan)
    hovers = _hovers(result, grid)
    bars = {True: _decade_bar(decades), False: {"title": {"text": "loss"}}}
    surface = {
        "type": "surface",
        "name": "loss",
        "x": grid.x,
        "y": grid.y,
        "z": grid.loss,
        "surfacecolor": decades if log else grid.loss,
        "colorscale": "Viridis",
        "colorbar": {"len": 0.7, "thickness": 16, **bars[log]},
        "connectgaps": False,
        **({"hoverinfo": "text", "text": hovers} if hovers is not None else {}),
    }
    if marks_of(result) is not None:
        surface["opacity"] = 0.85  # marks below it stay visible
    traces = [surface, *_marks_in_space(result)]
    layout: dict[str, Any] = {
        "template": "none",
        "margin": {"l": 0, "r": 0, "t": 10, "b": 0},
        "legend": {"x": 0.01, "y": 0.9},
        "scene": {
            "xaxis": _axis("x"),
            "yaxis": _axis("y"),
            "zaxis": _axis("loss", type="log" if log else "linear", exponentformat="power"),
            "aspectmode": "manual",
            "aspectratio": {"x": 1.2, "y": 1.2, "z": 0.8},
            "camera": {"eye": {"x": 1.3, "y": -1.5, "z": 0.9}},
        },
    }
    if positive:
        layout["updatemenus"] = [_buttons(grid, decades, bars, log)]
    return traces, layout


def _decade_bar(decades: np.ndarray) -> dict[str, Any]:
    """A colour bar of log10(loss) that is read in losses."""
    known = decades[np.isfinite(decades)]
    if known.size == 0:
        return {"title": {"text": "loss"}}
    low, high = float(known.min()), float(known.max())
    step = max(1, round((high - low) / 8))
    ticks = list(range(int(np.ceil(low)), int(np.floor(high)) + 1, step))
    if len(ticks) < 2:
        return {"title": {"text": "log10 loss"}}
    return {"title": {"text": "loss"}, "tickvals": ticks, "ticktext": [f"1e{tick}" for tick in ticks]}


def _buttons(grid: Grid, decades: np.ndarray, bars: Mapping[bool, Any], log: bool) -> dict[str, Any]:
    """Linear and logarithmic height, with the colours to match."""
    choices = []
    for words, kind, colours in (("linear", "linear", grid.loss), ("logarithmic", "log", decades)):
        bar = {"len": 0.7, "thickness": 16, **bars[kind == "log"]}
        changes = {"surfacecolor": [colours], "colorbar": [bar]}
        choices.append({"label": words, "method": "update", "args": [changes, {"scene.zaxis.type": kind}, [0]]})
    place = {"type": "buttons", "direction": "right", "x": 0.01, "y": 0.99, "xanchor": "left", "yanchor": "top"}
    return {**place, "active": int(log), "showactive": True, "buttons": choices}


def _marks_in_space(result: StoredLike) -> list[dict[str, Any]]:
    """The checkpoint, and other ones at their true losses in order, with a stem down or up to the surface."""
    traces: list[dict[str, Any]] = []
    marks = marks_of(result)
    if marks is not None:
        trajectory = not str(result.attributes.get("directions")).startswith("between")
        text = [
            f"{html.escape(str(name))}<br>loss {loss:.6g}<br>surface {below:.6g}<br>{off:.4g} off the plane"
            for name, loss, below, off in zip(marks.name, marks.loss, marks.surface_loss, marks.distance, strict=True)
        ]
        gap = np.full(len(marks.x), np.nan)
        ends = ((marks.x, marks.x, gap), (marks.y, marks.y, gap), (marks.loss, marks.surface_loss, gap))
        across, up, height = (np.stack(parts, 1).ravel() for parts in ends)
        mode = "lines+markers" if trajectory else "markers"
        true, surface = (marks.x, marks.y, marks.loss), (marks.x, marks.y, marks.surface_loss)
        traces += [
            _in_space("other checkpoints, true loss", *true, mode, NEGATIVE, 5) | {"hoverinfo": "text", "text": text},
            _in_space("projected onto the plane", *surface, mode, INK, 3) | {"hoverinfo": "skip"},
            _in_space("from one to the other", across, up, height, "lines", MUTED, 2) | {"hoverinfo": "skip"},
        ]
    centre = scalar(result, "loss_centre")
    if np.isfinite(centre):
        hover = {"hoverinfo": "text", "text": [f"checkpoint<br>loss {centre:.6g}"]}
        traces.append(_in_space("checkpoint", [0.0], [0.0], [centre], "markers", INK, 6) | hover)
    return traces


def _in_space(name: str, x: Any, y: Any, z: Any, mode: str, colour: str, size: float) -> dict[str, Any]:
    points = {"type": "scatter3d", "name": name, "x": x, "y": y, "z": z, "mode": mode}
    return {**points, "line": {"color": colour, "width": size}, "marker": {"color": colour, "size": size}}


def _line(result: StoredLike, grid: Grid) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Loss against x with the bands of several lines, marks at their true losses, and buttons for the scale."""
    traces = _bands(result, grid)
    hovers = _hovers(result, grid)
    curve: dict[str, Any] = {"type": "scatter", "name": "loss", "x": grid.x, "y": grid.loss[0], "mode": "lines+markers"}
    curve |= {"line": {"color": INK, "width": 2}, "marker": {"size": 3}, "connectgaps": False}
    traces.append(curve | ({"text": hovers[0], "hoverinfo": "text"} if hovers is not None else {}))
    points: list[tuple[str, Any, Any, list[str], str, str]] = [
        ("checkpoint", [0.0], [scalar(result, "loss_centre")], ["checkpoint"], POSITIVE, "circle")
    ]
    marks = marks_of(result)
    if marks is not None:
        names = [html.escape(str(name)) for name in marks.name]
        points.append(("other checkpoints, true loss", marks.x, marks.loss, names, NEGATIVE, "diamond"))
    for name, x, y, text, colour, symbol in points:
        marker = {"color": colour, "size": 9, "symbol": symbol}
        traces.append(
            {"type": "scatter", "name": name, "mode": "markers", "x": x, "y": y, "text": text, "marker": marker}
        )
    log = is_wide(grid.loss)
    layout: dict[str, Any] = {
        "template": "none",
        "margin": {"l": 80, "r": 20, "t": 50, "b": 60},
        "xaxis": _axis("x"),
        "yaxis": _axis("loss", type="log" if log else "linear", exponentformat="power"),
        "hovermode": "closest",
    }
    if not (grid.loss < 0).any():
        place: dict[str, Any] = {"type": "buttons", "direction": "right", "x": 0, "y": 1.02}
        place |= {"xanchor": "left", "yanchor": "bottom"}
        choices = [
            {"label": words, "method": "relayout", "args": [{"yaxis.type": kind}]}
            for words, kind in (("linear", "linear"), ("logarithmic", "log"))
        ]
        layout["updatemenus"] = [{**place, "active": int(log), "showactive": True, "buttons": choices}]
    return traces, layout


def _bands(result: StoredLike, grid: Grid) -> list[dict[str, Any]]:
    """Quantiles over several lines, thin."""
    shares, quantiles = values(result, "quantile"), values(result, "loss_quantile")
    if shares is None or quantiles is None:
        return []
    return [
        {
            "type": "scatter",
            "name": f"{100 * share:g} % of the lines",
            "mode": "lines",
            "x": grid.x,
            "y": masked(quantile[0], ~grid.missing[0]),
            "line": {"color": POSITIVE, "width": 1, "dash": "dot"},
        }
        for share, quantile in zip(shares.tolist(), quantiles, strict=True)
        if share != 0.5  # the curve itself
    ]
