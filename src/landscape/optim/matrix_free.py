"""Descents of one large problem, by gradients and Hessian products only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# θ [P] -> L, ∇L [P].
Gradient = Callable[[Tensor], tuple[float, Tensor]]
# θ [P] -> (v [P] -> ∇²L v); valid until the next call.
Products = Callable[[Tensor], Callable[[Tensor], Tensor]]
# Called with (θ, L, ∇L) at every accepted point.
Observe = Callable[[Tensor, float, Tensor], None]


@dataclass(frozen=True)
class Ended:
    """Where a descent ended.

    Attributes:
        theta: [P]. value, gradient_inf: L and max |∇L| there.
        steps: accepted points. reason: converged | stalled | steps. products: Hessian products spent.
    """

    theta: Tensor
    value: float
    gradient_inf: float
    steps: int
    reason: str
    products: int = 0


def lbfgs(gradient: Gradient, theta: Tensor, *, tolerance: float, steps: int, observe: Observe) -> Ended:
    """L-BFGS (SciPy's L-BFGS-B without bounds), to max |∇L| <= `tolerance`, absolute."""
    from scipy.optimize import minimize

    seen = 0
    last = (theta, *gradient(theta))
    observe(*last)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        point = torch.as_tensor(x).to(theta)
        last = (point, *gradient(point))
        return last[1], last[2].double().cpu().numpy()

    def accepted(x: np.ndarray) -> None:
        nonlocal seen
        seen += 1
        point = torch.as_tensor(x).to(theta)
        observe(*(last if torch.equal(point, last[0]) else (point, *gradient(point))))

    if steps < 1:
        return Ended(theta, last[1], float(last[2].abs().max()), 0, "steps")
    options = {"maxcor": 50, "maxiter": steps, "maxfun": 10**9, "maxls": 50, "ftol": 0.0, "gtol": tolerance}
    start = theta.double().cpu().numpy()
    found = minimize(function, start, jac=True, method="L-BFGS-B", callback=accepted, options=options)  # type: ignore[call-overload]
    point = torch.as_tensor(found.x).to(theta)
    value, slope = gradient(point)
    size = float(slope.abs().max())
    reason = "converged" if size <= tolerance else "steps" if seen >= steps else "stalled"
    return Ended(point, value, size, seen, reason)


def newton_krylov(
    gradient: Gradient, products: Products, theta: Tensor, *, tolerance: float, steps: int, observe: Observe
) -> Ended:
    """Trust-region Newton, each step by Steihaug's conjugate gradients (1983): directions of negative curvature are
    followed to the boundary, so that saddles met on the way are left."""
    point = theta.clone()
    value, slope = gradient(point)
    observe(point, value, slope)
    radius, spent = 0.1 * max(1.0, float(point.norm())), 0
    eps = torch.finfo(theta.dtype).eps
    for step in range(steps):
        size = float(slope.abs().max())
        if size <= tolerance:
            return Ended(point, value, size, step, "converged", spent)
        move, predicted, used = _steihaug(products(point), slope, radius)
        spent += used
        trial = point + move
        new_value, new_slope = gradient(trial)
        length = float(move.norm())
        blind = predicted <= 32 * eps * abs(value) and float(new_slope.norm()) < float(slope.norm())
        ratio = 1.0 if blind else (value - new_value) / max(predicted, 1e-300)
        if ratio > 1e-3:
            point, value, slope = trial, new_value, new_slope
            observe(point, value, slope)
        if ratio > 0.75 and length > 0.8 * radius:
            radius *= 2
        elif not ratio > 0.25:
            radius = length / 4
        if radius <= 4 * eps * float(point.norm()):
            return Ended(point, value, float(slope.abs().max()), step + 1, "stalled", spent)
    return Ended(point, value, float(slope.abs().max()), steps, "steps", spent)


def _steihaug(product: Callable[[Tensor], Tensor], slope: Tensor, radius: float) -> tuple[Tensor, float, int]:
    """A step within the radius, the decrease that the quadratic model predicts for it, and products spent."""
    s, r = torch.zeros_like(slope), -slope.clone()
    direction, rr = r.clone(), float(r @ r)
    goal = min(0.5, rr**0.25) * rr**0.5  # superlinear: forcing term √‖g‖
    image = torch.zeros_like(slope)  # H s
    used = 0
    while used < 500:
        used += 1
        curved = product(direction)
        curvature = float(direction @ curved)
        length = rr / curvature if curvature > 0 else float("inf")
        outside = curvature <= 0 or float((s + length * direction).norm()) >= radius
        if outside:
            length = _to_boundary(s, direction, radius)
        s, image = s + length * direction, image + length * curved
        r = r - length * curved
        new = float(r @ r)
        if outside or new**0.5 <= goal:
            break
        direction, rr = r + (new / rr) * direction, new
    return s, -float(slope @ s) - 0.5 * float(s @ image), used


def _to_boundary(s: Tensor, direction: Tensor, radius: float) -> float:
    """t > 0 with ‖s + t d‖ = radius."""
    a, b, c = float(direction @ direction), float(s @ direction), float(s @ s) - radius**2
    return float((-b + (b * b - a * c) ** 0.5) / a)


def newton_mr(
    gradient: Gradient, products: Products, theta: Tensor, *, tolerance: float, steps: int, observe: Observe
) -> Ended:
    """Newton-MR (Roosta et al. 2018, Algorithm 1): −H⁺∇L by MINRES, line search on ‖∇L‖²; ends at any index."""
    from scipy.sparse.linalg import LinearOperator, minres

    point, spent = theta.clone(), 0
    value, slope = gradient(point)
    observe(point, value, slope)
    for step in range(steps):
        size = float(slope.abs().max())
        if size <= tolerance:
            return Ended(point, value, size, step, "converged", spent)
        product = products(point)

        def matvec(v: np.ndarray, product: Callable[[Tensor], Tensor] = product) -> np.ndarray:
            return product(torch.as_tensor(v).to(theta)).double().cpu().numpy()

        operator = LinearOperator((len(theta), len(theta)), matvec=matvec, dtype=np.float64)
        counted: list[object] = []
        found, _ = minres(operator, -slope.double().cpu().numpy(), rtol=1e-3, maxiter=300, callback=counted.append)
        spent += len(counted) + 2
        move = torch.as_tensor(found).to(theta)
        square, slope_along = float(slope @ slope), float((product(slope)) @ move)
        t = 1.0
        while t > 1e-10:
            new_value, new_slope = gradient(point + t * move)
            if float(new_slope @ new_slope) <= square + 2e-4 * t * min(slope_along, 0.0) and slope_along < 0:
                break
            t /= 2
        else:
            return Ended(point, value, size, step, "stalled", spent)
        point, value, slope = point + t * move, new_value, new_slope
        observe(point, value, slope)
    return Ended(point, value, float(slope.abs().max()), steps, "steps", spent)
