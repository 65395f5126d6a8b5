"""Gradient flow dθ/dt = −∇L(θ), by SciPy's integrators for stiff equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

Array = np.ndarray


@dataclass(frozen=True)
class Flow:
    """A trajectory of the gradient flow.

    Attributes:
        time: [K], from 0. theta: [K, P]. reached: whether max |∇L| fell to the tolerance.
        evaluations: gradients and Hessians taken.
    """

    time: Array
    theta: Array
    reached: bool
    evaluations: tuple[int, int]


def gradient_flow(
    gradient: Callable[[Array], Array],
    hessian: Callable[[Array], Array] | None,
    start: Array,
    *,
    until: float = 1e8,
    tolerance: float = 1e-8,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> Flow:
    """Follow the flow until max |∇L| <= `tolerance` or the time `until`.

    With a Hessian: Radau IIA of order 5 (Hairer & Wanner 1996, §IV.8), implicit, so that the largest eigenvalue does
    not limit the step; without one: LSODA, which switches to BDF and approximates the Hessian by differences.

    Args:
        gradient: θ [P] -> ∇L [P]. hessian: θ -> ∇²L [P, P]. start: θ at time 0.
        rtol, atol: of each step's local error.
    """

    def right_hand_side(_: float, theta: Array) -> Array:
        return -gradient(theta)

    def small(_: float, theta: Array) -> float:
        return float(np.abs(gradient(theta)).max()) - tolerance

    small.terminal = True  # type: ignore[attr-defined]
    options: dict[str, object] = {"method": "LSODA"}
    if hessian is not None:
        options = {"method": "Radau", "jac": lambda _, theta: -hessian(theta)}
    found = solve_ivp(
        right_hand_side,
        (0.0, until),
        start,
        rtol=rtol,
        atol=atol,
        events=small,
        **options,  # type: ignore[call-overload]
    )
    return Flow(found.t, found.y.T, bool(found.status == 1), (int(found.nfev), int(found.njev)))
