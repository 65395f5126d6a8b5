"""What an iterative spectrum will cost: its products, and the vectors that are made orthogonal between them."""

from __future__ import annotations

import time

import torch

from landscape.curvature.operator import CurvatureOperator
from landscape.runtime.memory import synchronise
from landscape.spectra.probing import TOGETHER
from landscape.spectra.settings import TRACE_PRODUCTS, SpectrumSettings

# Rows of the sample whose product with a vector is timed; its bytes a second are the machine's for this length.
ROWS = 16
# What does not grow with n: small eigenproblems and brackets of the quadrature, seconds a step; and the measurement
# of a product's error, seconds.
SMALL, ERROR = 1e-3, 0.3


def foreseen_seconds(operator: CurvatureOperator, settings: SpectrumSettings) -> float:
    """Seconds of the whole, from the pace of the first products and the speed of memory."""
    item = operator.dtype.itemsize
    krylov = min(settings.extreme_products, operator.n)
    probing = settings.probes * settings.steps if settings.density else settings.probes
    deflated = settings.top + settings.bottom
    # Twice projected and subtracted: against a basis that grows, then against the deflated pairs.
    read = 4 * operator.n * item * (krylov**2 / 2 + probing * deflated)
    # The trace's probes are projected in float64, a few at a time: read, converted, copied, multiplied.
    read += 4 * operator.n * 8 * krylov * (TRACE_PRODUCTS + settings.probes) / TOGETHER
    return (
        settings.iterative_products * operator.pace
        + read / _bytes_a_second(operator)
        + SMALL * (probing + krylov)
        + ERROR
    )


def _bytes_a_second(operator: CurvatureOperator) -> float:
    rows = torch.ones(ROWS, operator.n, dtype=operator.dtype, device=operator.device)
    vector = torch.ones(operator.n, 1, dtype=operator.dtype, device=operator.device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        rows @ vector
        synchronise(operator.device)
        best = min(best, time.perf_counter() - start)
    return rows.numel() * operator.dtype.itemsize / max(best, 1e-7)
