"""How far down a list of extreme eigenvalues is complete: what the look for missed ones could have seen.

A Krylov space shows an eigenvalue late where its own share in the start vector is small or its neighbours are near, so
that the list may hold the fourth eigenvalue where the third belongs. Fresh random vectors in the complement of the list
see what is missing, as sharply as their own Ritz values have settled.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import eigh_tridiagonal

from landscape.curvature.eigenpairs import Pairs
from landscape.linalg.quadrature import Tridiagonals

# The interval that a look leaves to what it has not seen: no eigenvalue of the complement lies outside it.
Reach = tuple[float, float]
BLIND: Reach = (-math.inf, math.inf)


def reach_of(probes: Tridiagonals) -> Reach:
    """Outermost Ritz values of all probes, further out by their residuals |β s|."""
    low, high = (math.inf, 0.0), (-math.inf, 0.0)
    for alpha, beta, length in zip(probes.alpha, probes.beta, probes.length, strict=True):
        m = int(length)
        values, vectors = eigh_tridiagonal(alpha[:m], beta[: m - 1])
        residual = np.abs(beta[m - 1] * vectors[-1])
        low = min(low, (float(values[0]), float(residual[0])))
        high = max(high, (float(values[-1]), float(residual[-1])))
    return low[0] - low[1], high[0] + high[1]


def complete_ranks(top: Pairs, bottom: Pairs, reach: Reach) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Whether every eigenvalue before a rank is listed, at each end (bool [k]); and a sentence where not all are."""
    found, notes = [], []
    for name, pairs, sign, edge in (("largest", top, -1.0, reach[1]), ("smallest", bottom, 1.0, reach[0])):
        apart = sign * pairs.value + pairs.residual < sign * edge
        found.append(np.logical_and.accumulate(apart) if len(apart) else apart)
        sure = int(found[-1].sum())
        if sure < len(pairs.value):
            notes.append(
                f"{name} eigenvalues: from rank {sure + 1} on the list may lack one (only beyond {edge:.4g} was every "
                "one seen): more --steps look closer"
            )
    return found[0], found[1], notes
