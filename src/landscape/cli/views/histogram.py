"""Histogram of a spectrum in plain text, for the terminal: one row a decade of eigenvalues, both signs."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.figures.values import linear_width, pairs
from landscape.results.reading import scalar, values
from landscape.spectra.density import Measure, brackets
from landscape.spectra.density import count as count_in

if TYPE_CHECKING:
    from landscape.results.fields import Array

ROWS = 12
# Mantissas of the bin edges and decades between them, finest first.
STEPS: tuple[tuple[tuple[int, ...], int], ...] = (((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 5), ((1,), 10))
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class _Spectrum:
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Counts:
    """Eigenvalues per bin between `edges` (ascending, the middle bin holds zero), with 95 % intervals."""

    edges: np.ndarray
    count: np.ndarray
    low: np.ndarray
    high: np.ndarray
    source: str


def histogram_lines(spectrum_arrays: Mapping[str, Array], columns: int = 72, unicode: bool | None = None) -> list[str]:
    """The number of eigenvalues per decade as bars on a log scale, largest eigenvalues first.

    Args:
        spectrum_arrays: the arrays of a `results.Spectrum`.
        columns: greatest width of a line.
        unicode: block characters, or ASCII only; None asks the encoding of stdout.

    Returns:
        A heading and at most about a dozen rows; empty if the spectrum holds neither density nor all eigenvalues.
    """
    counts = count_eigenvalues(spectrum_arrays)
    if counts is None:
        return []
    if unicode is None:
        unicode = (sys.stdout.encoding or "ascii").lower().replace("-", "").startswith("utf")
    labels = _labels(counts.edges, unicode)
    numbers = [_number(*each) for each in zip(counts.count, counts.low, counts.high, strict=True)]
    left, right = max(map(len, labels)), max(map(len, numbers))
    room = max(columns - left - right - 4, 4)
    most = math.log1p(max(float(counts.count.max()), 1.0))
    rows = []
    for label, count, text in zip(labels, counts.count, numbers, strict=True):
        bar = _bar(room * math.log1p(float(count)) / most, unicode)
        rows.append(f"{label:>{left}} {'│' if unicode else '|'}{bar:<{room}} {text:>{right}}")
    heading = f"eigenvalues by size, bars on a log scale ({counts.source})"
    return [heading[:columns], *reversed(rows)]


def count_eigenvalues(arrays: Mapping[str, Array]) -> Counts | None:
    """Bin all eigenvalues, or what the density counts in the same bins (`spectral.density.count`)."""
    spectrum = _Spectrum(arrays)
    eigenvalues, nodes, weights = (values(spectrum, n) for n in ("eigenvalues", "node", "weight"))
    floor = linear_width(spectrum)
    if eigenvalues is not None and np.isfinite(eigenvalues).any():
        known = eigenvalues[np.isfinite(eigenvalues)]
        edges = bin_edges(known, floor)
        each = np.histogram(known, edges)[0].astype(float)
        return Counts(edges, each, each, each, f"all {known.size:,} computed")
    if nodes is None or weights is None:
        return None
    real = np.isfinite(nodes) & np.isfinite(weights) & (weights > 0)  # a probe that ended early is padded
    if not real.any():
        return None
    measure = _measure(spectrum, nodes, np.where(real, weights, 0.0))
    edges = bin_edges(np.concatenate([measure.exact, nodes[real], measure.ends]), floor)
    found = count_in(measure, edges)
    probes = len(nodes)
    return Counts(edges, found.count, found.low, found.high, f"{probes} probe{'s' * (probes > 1)}, [95 %]")


def _measure(spectrum: _Spectrum, nodes: np.ndarray, weights: np.ndarray) -> Measure:
    """What the file says of the eigenvalues; files of older versions leave it to the neighbours of each node."""
    ends = [pairs(spectrum, end) for end in ("bottom", "top")]
    exact, exact_residual = (values(spectrum, f"deflated_{name}") for name in ("value", "residual"))
    if exact is None or exact_residual is None:
        exact = np.concatenate([end.value[end.deflated] for end in ends])
        exact_residual = np.concatenate([end.residual[end.deflated] for end in ends])
    low, high, residual = (values(spectrum, f"node_{name}") for name in ("low", "high", "residual"))
    reached = [n for n in (low, high) if n is not None]
    every = np.concatenate([nodes[weights > 0], *(n[weights > 0] for n in reached)])
    limits = (
        float((ends[0].value - ends[0].residual).min(initial=every.min())),
        float((ends[1].value + ends[1].residual).max(initial=every.max())),
    )
    if low is None or high is None or residual is None:
        residual = np.full(nodes.shape, np.inf)
        low, high = brackets(nodes, weights, residual, limits)
    size, noise = int(scalar(spectrum, "parameters")), scalar(spectrum, "product_error")
    return Measure(nodes, weights, low, high, residual, exact, exact_residual, limits, size, noise)


def bin_edges(eigenvalues: np.ndarray, floor: float) -> np.ndarray:
    """Edges at ±1 (and 3) times powers of ten, and one bin [-floor, floor]; the finest that fit `ROWS`."""
    low, high = float(eigenvalues.min()), float(eigenvalues.max())
    edges = np.array([-floor, floor])
    for mantissas, every in STEPS:
        sides = [_side(size, floor, mantissas, every) for size in (-low, high)]
        edges = np.array([-e for e in reversed(sides[0])] + [-floor, floor] + sides[1])
        if edges.size - 1 <= ROWS:
            break
    return edges


def _side(size: float, floor: float, mantissas: tuple[int, ...], every: int) -> list[float]:
    """Edges beyond `floor` until one reaches `size`, ascending."""
    if size <= floor:
        return []
    power = math.floor(math.log10(floor))
    power -= power % every  # the same edges on both sides, and in other spectra
    edges: list[float] = []
    for step in itertools.count(power, every):
        for mantissa in mantissas:
            # Through text, because 10.0**-5 is not the number that a user means by 1e-5.
            edge = float(f"{mantissa}e{step}")
            if edge > floor * 1.25:
                edges.append(edge)
                if edge >= size:
                    return edges
    return edges


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _labels(edges: np.ndarray, unicode: bool) -> list[str]:
    """`0.01 … 0.1` for each bin, `|λ| ≤ 3.5e-6` for the one around zero; ends aligned."""
    texts = [_short(float(e)) for e in edges]
    width = max(map(len, texts))
    dots, zero = ("…", "|λ| ≤ ") if unicode else ("to", "|x| <= ")
    labels = [f"{a:>{width}} {dots} {b:>{width}}" for a, b in itertools.pairwise(texts)]
    middle = int(np.flatnonzero(edges > 0)[0]) - 1
    labels[middle] = zero + texts[middle + 1]
    return labels


def _number(count: float, low: float, high: float) -> str:
    text = f"{count:,.0f}" if count == 0 or count >= 0.5 else "< 1"
    ends = [f"{value:,.0f}" for value in (low, high)]
    return text if ends[0] == ends[1] == text else f"{text} [{ends[0]}, {ends[1]}]"


def _bar(length: float, unicode: bool) -> str:
    if not unicode:
        return "#" * round(length)
    whole, eighths = divmod(round(8 * length), 8)
    return "█" * whole + EIGHTHS[eighths].strip()
