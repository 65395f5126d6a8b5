"""What an unrestarted Lanczos run from a random start cannot have missed (Kuczyński & Woźniakowski 1992)."""

from __future__ import annotations

import math


def exclusion_bound(
    steps: int, n: int, ritz_min: float, ritz_max: float, probability: float, mixed_in: float = 0.0
) -> float:
    """A number below which no eigenvalue lies, except with at most this probability over the random start.

    Kuczyński & Woźniakowski (1992), Theorem 4.2, for k unrestarted Lanczos steps from a start uniform on the sphere
    of R^n: P[(λ₁ − ξ_k)/λ₁ > ε] <= 1.648 √n exp(−√ε (2k − 1)) for positive definite A. Applied to λ_max I − H and to
    H − λ_min I at half the probability each: with spread s = λ_max − λ_min both extreme Ritz values are within ε s,
    hence s <= (θ_max − θ_min)/(1 − 2ε). NaN when the bound says nothing (2ε >= 1).

    The start may also be r + g with r uniform on the sphere and any fixed g of norm `mixed_in`: its share of a unit
    vector v is at least |rᵀv + gᵀv|/(1 + ‖g‖), and a symmetric unimodal rᵀv falls into no interval of given length
    more often than into the one around zero (Anderson 1955), so that √n becomes √n (1 + ‖g‖).
    """
    if steps >= n:
        return ritz_min
    epsilon = ((_log_ratio(n, probability) + math.log1p(mixed_in)) / (2 * steps - 1)) ** 2
    if 2 * epsilon >= 1:
        return math.nan
    return ritz_min - epsilon * (ritz_max - ritz_min) / (1 - 2 * epsilon)


def _log_ratio(n: int, probability: float) -> float:
    return math.log(1.648 * math.sqrt(n) / (probability / 2))
