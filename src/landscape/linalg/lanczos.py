"""Lanczos with full reorthogonalisation and thick restarts, by single vectors or by blocks: extreme eigenpairs with
residuals.

One step takes a product, makes it orthogonal to all basis rows and stores the coefficients as columns of
T = Q H Qᵀ. Orthogonalising twice is enough (Giraud, Langou & Rozložník 2005), and the first time only the last two
blocks matter, but after a thick restart (Wu & Simon 2000). T is kept as a general symmetric matrix, so that steps
before and after a restart are the same code. Blocks: Golub & Underwood 1977; their width shrinks where directions
are exhausted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.basis import Basis, gram_of, norms_of

Matvec = Callable[[Tensor], Tensor]

# Rounding of a Ritz pair in units of eps·max|θ|: a remainder is rounded at each subtraction in the operator's eps,
# which the unit vector s averages over the steps; T and the rotation of each restart are float64 and their errors
# add up randomly. Measured on planted spectra: 3 (float32), 4 (float64), 52 and 590 (114 and 2,425 restarts).
ROUNDING = 4.0
ROTATION, EPS64 = 20.0, float(np.finfo(np.float64).eps)
# A remainder of this many eps·‖Hq‖ is rounding, not a direction.
BREAKDOWN = 10.0
# Squares of singular values from a float64 Gram matrix are right to 1e-4 down to this part of the largest.
RESOLVED = 1e-12


@dataclass(frozen=True)
class Extremes:
    """Extreme eigenpairs of a symmetric operator on n dimensions; k_t and k_b are the pairs found at each end.

    Attributes:
        top_value, bottom_value: float64 [k_t] descending and [k_b] ascending; disjoint unless `exhausted`.
        top_residual, bottom_residual: float64; an eigenvalue lies within this distance of the value: |β s| plus twice
            the noise plus the rounding of the recurrence.
        top_converged, bottom_converged: bool; residual <= max(rtol |value|, tau max|value|).
        top_vector, bottom_vector: Tensor [n, k], unit columns, operator's dtype and device.
        project: X [n, b] -> Q X, float64 [m, b]; keeps the basis alive.
        projected: float64 [m, m], Q H Qᵀ; every row of Q has had its product.
        ritz_values: float64 [m] ascending, all eigenvalues of `projected`; the operator has at least as many below
            (above) any x, by Cauchy interlacing.
        basis_size, products, restarts: m, and what was spent.
        unrestarted_steps, unrestarted_min, unrestarted_max: steps (of blocks) before the first restart and the extreme
            Ritz values then; only these support `exclusion.exclusion_bound`.
        exhausted: the basis spans the whole space (less the deflated part): `ritz_values` are all eigenvalues.
    """

    top_value: np.ndarray
    top_residual: np.ndarray
    top_converged: np.ndarray
    top_vector: Tensor
    bottom_value: np.ndarray
    bottom_residual: np.ndarray
    bottom_converged: np.ndarray
    bottom_vector: Tensor
    project: Callable[[Tensor], Tensor]
    projected: np.ndarray
    ritz_values: np.ndarray
    basis_size: int
    products: int
    restarts: int
    unrestarted_steps: int
    unrestarted_min: float
    unrestarted_max: float
    exhausted: bool


@dataclass(frozen=True)
class _Task:
    matvec: Matvec
    like: Tensor  # of the operator's length, dtype and device
    generator: torch.Generator | None
    free: int
    top: int = 0
    bottom: int = 0
    rtol: float = 0.0
    tau: float = 0.0
    noise: float = 0.0
    least: int = 0


@dataclass
class _State:
    """Q and T = Q H Qᵀ as far as transferred.

    `factor`: C [c, b] with ‖C s‖ = ‖s W‖ for the remainder W [b, n], in the directions that are pursued; `last`: rows
    of the last block; `before`: of the one before it. `dense`: the next product has components along all rows.
    `broken`: the Krylov space has just ended.
    `block`: row at which the last random vector entered. `dropped`: the largest remainder that was given up.
    `scale`: the largest ‖Hq‖. `unrestarted`: steps, extreme values.
    """

    basis: Basis
    check_at: int = 0
    pending: list[Tensor] = field(default_factory=list)
    projected: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    factor: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))
    last: int = 0
    before: int = 0
    dense: bool = False
    products: int = 0
    steps: int = 0
    restarts: int = 0
    scale: float = 0.0
    dropped: float = 0.0
    block: int = 0
    broken: bool = False
    unrestarted: tuple[int, float, float] | None = None

    @property
    def rows(self) -> int:
        return self.basis.rows


@dataclass(frozen=True)
class _Ritz:
    """Ritz pairs, ascending; `error` is what noise and rounding add to the remainder; `done`: nothing more to gain."""

    value: np.ndarray
    vector: np.ndarray
    residual: np.ndarray
    converged: np.ndarray
    done: np.ndarray
    error: float


def lanczos_extremes(
    matvec: Matvec,
    start: Tensor,
    *,
    top: int,
    bottom: int,
    rtol: float,
    tau: float,
    noise: float,
    max_products: int,
    max_basis: int,
    generator: torch.Generator,
    least: int = 0,
    deflate: Tensor | None = None,
    on_device: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Extremes:
    """The `top` largest and `bottom` smallest eigenpairs, stopped on residuals.

    A Krylov space holds one vector of each eigenspace (b with a block): further copies of a multiple eigenvalue are
    found when it is exhausted (remainder at rounding level), by going on with random vectors until one adds nothing
    to the wanted values.

    Args:
        matvec: symmetric, V [n, b] -> H V [n, b], same dtype and device as `start`.
        start: [n], or [n, b] for blocks; random on the sphere if `exclusion_bound` is to be used.
        rtol, tau: a pair is converged when its residual is at most max(rtol |θ|, tau max|θ|).
        noise: absolute error norm of the product of a unit vector; where twice this exceeds the tolerance, a pair
            is not pursued beyond it and reported as not converged.
        max_products: never exceeded. least: products before which nothing stops it, for the sake of an exclusion.
        max_basis: largest number of basis rows held; at least top + bottom + 3 b (unless n is smaller).
        generator: CPU generator of the random continuation.
        deflate: [n, k] orthonormal columns; everything happens in their complement.
        on_device: basis rows that the device holds; the others live in host memory.
        progress: called as (products, pairs done, pairs wanted) at every check.

    Raises:
        FloatingPointError: a product has NaN or Inf.
        ValueError: arguments that allow no step.
    """
    rows = start.unsqueeze(0) if start.dim() == 1 else start.T
    free = rows.shape[1] - (0 if deflate is None else deflate.shape[1])
    wanted = min(top + bottom, free)
    b = rows.shape[0]
    if max_products < b or free < b or max_basis < min(free, wanted + 3 * b):
        raise ValueError(f"{max_products} products with {max_basis} basis rows cannot give {wanted} pairs")
    task = _Task(matvec, rows[0], generator, free, top, bottom, rtol, tau, noise, least)
    state = _State(Basis(task.like, min(max_basis, free), on_device, deflate), max(2, wanted))
    return _search(task, state, rows, max_products, progress)


def _search(
    task: _Task,
    state: _State,
    start: Tensor,
    max_products: int,
    progress: Callable[[int, int, int], None] | None,
) -> Extremes:
    rows = _unit(state, start.clone(memory_format=torch.contiguous_format))
    while True:
        remainder, following = _advance(state, task, rows)
        width = max(1, following.shape[1])
        last = state.rows == task.free or state.products + width > max_products
        full = state.rows + width > state.basis.limit
        if last or state.broken or full or state.products >= state.check_at:
            state.check_at = state.products + 1 + state.products // 32  # wastes 2 % of the products at most
            ritz = _ritz(state, task)
            if progress is not None:
                progress(state.products, _count_done(ritz, task), task.top + task.bottom)
            if last or _finished(state, task, ritz):
                return _extremes(state, task, ritz)
            if full:
                _restart(state, task, ritz)
        if state.broken:
            state.block = state.rows
        rows = _random(state, task) if state.broken else _next(state, remainder, following)


def lanczos(
    matvec: Matvec, start: Tensor, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, np.ndarray, float, Tensor]:
    """Plain Lanczos with full reorthogonalisation: Q [n, m], T float64 [m, m], β and the unit vector q [n] with
    H Q − Q T = β q e_mᵀ and QᵀQ = I, Qᵀq = 0.

    m = steps, or fewer when the Krylov space is exhausted: it ends there (β = 0, q = 0), unless a CPU `generator`
    is given, which goes on with random vectors up to min(steps, n).
    """
    task = _Task(matvec, start, generator, start.shape[0])
    state = _State(Basis(start, min(steps, task.free)))
    rows = _unit(state, start.unsqueeze(0).clone())
    while True:
        remainder, following = _advance(state, task, rows)
        if state.rows == state.basis.limit or (state.broken and generator is None):
            break
        rows = _random(state, task) if state.broken else _next(state, remainder, following)
    residual = torch.zeros_like(remainder) if state.broken else _next(state, remainder, following)
    return state.basis.matrix().T, _projected(state), float(np.linalg.norm(state.factor)), residual[0]


def _advance(state: _State, task: _Task, rows: Tensor) -> tuple[Tensor, np.ndarray]:
    """Append orthonormal rows [b, n] and take their products.

    Returns:
        The remainder W [b, n] orthogonal to all rows, and F [b, c] with orthonormal Fᵀ W, c <= b; none if broken.
    """
    state.basis.append(rows)
    state.before, state.last = state.last, rows.shape[0]
    state.products, state.steps = state.products + rows.shape[0], state.steps + 1
    w = task.matvec(rows.T).T.clone(memory_format=torch.contiguous_format)  # it may be the operator's own buffer
    columns, before, gram = state.basis.orthogonalise(w, recent=0 if state.dense else state.before + state.last)
    if not (np.all(np.isfinite(before)) and np.all(np.isfinite(gram))):
        raise FloatingPointError(f"the product of Lanczos step {state.steps} contains NaN or Inf")
    state.pending.append(columns)
    state.dense = False
    state.scale = max(state.scale, float(before.max()))
    nothing = max(BREAKDOWN * torch.finfo(w.dtype).eps * state.scale, task.noise)
    size, turn = _singular(w, gram)
    kept = size > nothing
    kept[: max(0, len(kept) - (task.free - state.rows))] = False  # the space has no room for more than rounding
    state.broken = not kept.any()
    state.dropped = max(state.dropped, float(np.max(size[~kept], initial=0.0)))
    state.factor = size[kept, None] * turn[:, kept].T
    return w, turn[:, kept] / size[kept]


def _singular(w: Tensor, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values σ [b] ascending of rows w [b, n], and U [b, b] with orthogonal rows Uᵀ w, from w wᵀ where that
    resolves them: it is wrong by eps64·max(σ)², which a float64 remainder can undercut."""
    square, turn = _eigh(gram)
    if w.dtype != torch.float64 or square[0] > RESOLVED * square[-1]:
        return np.sqrt(np.maximum(square, 0.0)), turn
    triangle = torch.linalg.qr(w.T, mode="r")[1].cpu()
    _, size, right = torch.linalg.svd(triangle)
    return size.flip(0).numpy(), right.flip(0).T.contiguous().numpy()


def _next(state: _State, remainder: Tensor, following: np.ndarray) -> Tensor:
    """The next orthonormal rows Fᵀ W [c, n]."""
    if following.shape == (1, 1):
        return remainder.mul_(float(following[0, 0]))
    rows = torch.from_numpy(following.T.copy()).to(remainder.device, remainder.dtype) @ remainder
    # Short directions have been blown up, and their rounding with them: what the first pass leaves of it, times the
    # inverse of a factor away from 1, the second takes away (Giraud, Langou & Rozložník 2005, for blocks).
    for _ in range(2):
        state.basis.remove(rows)
        factor = torch.linalg.cholesky_ex(gram_of(rows))[0]
        one = torch.eye(len(rows), dtype=factor.dtype, device=factor.device)
        rows = torch.linalg.solve_triangular(factor, one, upper=False).to(rows.dtype) @ rows
    return rows


def _unit(state: _State, rows: Tensor) -> Tensor:
    """The rows made orthogonal to the basis and orthonormal, in place."""
    state.dense = True
    rows.div_(norms_of(rows).to(rows.dtype).unsqueeze(1))
    _, before, gram = state.basis.orthogonalise(rows)
    size, turn = _eigh(gram) if np.all(np.isfinite(gram)) else (np.zeros(1), gram)
    if not (np.all(np.isfinite(before)) and size[0] > 0):
        raise ValueError("the start vector is zero, not finite, or lies in the deflated space")
    return _next(state, rows, turn / np.sqrt(size))


def _random(state: _State, task: _Task) -> Tensor:
    # the first draw may be the start vector over again, if that came from an equally seeded generator
    draw = torch.randn(2, task.like.shape[0], generator=task.generator, dtype=torch.float64)[1:]
    return _unit(state, draw.to(task.like.device, task.like.dtype))


def _projected(state: _State) -> np.ndarray:
    """T with the pending columns moved over in one transfer."""
    if state.pending:
        m = state.rows
        grown = np.zeros((m, m))
        known = state.projected.shape[0]
        grown[:known, :known] = state.projected
        flat = torch.cat([columns.flatten() for columns in state.pending]).cpu().numpy()
        for height, width in (columns.shape for columns in state.pending):
            values, flat = flat[: height * width].reshape(height, width), flat[height * width :]
            own = slice(height - width, height)
            grown[:height, own] = values
            grown[own, : height - width] = values[: height - width].T
            grown[own, own] = (grown[own, own] + grown[own, own].T) / 2
        state.projected, state.pending = grown, []
    return state.projected


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By torch, whose threads do the products: numpy's own spin on after a call, and slow the next product 3 times."""
    value, vector = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix)))
    return value.numpy(), vector.numpy()


def _bounds(state: _State, vector: np.ndarray) -> np.ndarray:
    """‖W s‖ for the last entries s of each column: the residual norms of Ritz vectors, in exact arithmetic."""
    bounds: np.ndarray = np.linalg.norm(state.factor @ vector[-state.last :], axis=0)
    return bounds


def _ritz(state: _State, task: _Task) -> _Ritz:
    value, vector = _eigh(_projected(state))
    largest = float(np.max(np.abs(value)))
    bound = _bounds(state, vector)
    rounding = ROUNDING * torch.finfo(task.like.dtype).eps + ROTATION * EPS64 * math.sqrt(1 + state.restarts)
    error = 2 * task.noise + state.dropped + rounding * largest
    tolerance = np.maximum(task.rtol * np.abs(value), task.tau * largest)
    converged = bound + error <= tolerance
    done = converged | ((error >= tolerance) & (bound <= error))
    return _Ritz(value, vector, bound + error, converged, done, error)


def _ends(m: int, task: _Task) -> tuple[np.ndarray, np.ndarray]:
    """Indices among m ascending Ritz values: top descending, bottom ascending; overlapping only if m is all."""
    top, bottom = min(task.top, m), min(task.bottom, m)
    if top + bottom > m and m < task.free:
        top = min(top, max(m - bottom, round(m * task.top / (task.top + task.bottom))))
        bottom = m - top
    return np.arange(m - 1, m - 1 - top, -1), np.arange(bottom)


def _count_done(ritz: _Ritz, task: _Task) -> int:
    return int(np.sum(ritz.done[np.concatenate(_ends(len(ritz.value), task))]))


def _finished(state: _State, task: _Task, ritz: _Ritz) -> bool:
    """All wanted pairs exist with small residuals, and the last random vector, if any, brought nothing new."""
    if state.products < task.least or _count_done(ritz, task) < min(task.top + task.bottom, task.free):
        return False
    if state.broken:  # an invariant space: did the part that the last random vector added change any wanted value?
        if state.block < max(1, task.top + task.bottom):
            return False
        before = _eigh(state.projected[: state.block, : state.block])[0]
        above = ritz.value[::-1][: task.top] - before[::-1][: task.top]
        below = ritz.value[: task.bottom] - before[: task.bottom]
        return bool(np.all(np.abs(np.r_[above, below]) <= ritz.error))
    if state.block:  # the extreme pairs of the random vector's own Krylov space must have converged too
        value, vector = _eigh(state.projected[state.block :, state.block :])
        ends = [-1] * (task.top > 0) + [0] * (task.bottom > 0)
        tolerance = np.maximum(task.rtol * np.abs(value), task.tau * np.max(np.abs(ritz.value))) + ritz.error
        return bool(np.all(_bounds(state, vector[:, ends]) <= tolerance[ends]))
    return True


def _restart(state: _State, task: _Task, ritz: _Ritz) -> None:
    """Keep the wanted Ritz vectors and a pad of neighbours; their coupling to the next rows comes with its product."""
    m = state.rows
    state.unrestarted = state.unrestarted or (state.steps, float(ritz.value[0]), float(ritz.value[-1]))
    pad = max(1, (m - task.top - task.bottom) // 2)
    above = 0 if task.top == 0 else pad if task.bottom == 0 else (pad + 1) // 2
    first, last = task.bottom + pad - above, m - task.top - above
    keep = np.r_[0:first, last:m]
    state.basis.rotate(ritz.vector[:, keep].T)
    state.projected = np.diag(ritz.value[keep])
    state.restarts, state.block, state.dense, state.last = state.restarts + 1, 0, True, 0


def _extremes(state: _State, task: _Task, ritz: _Ritz) -> Extremes:
    top, bottom = _ends(state.rows, task)
    top_vector, bottom_vector = (state.basis.combine(ritz.vector[:, ends]) for ends in (top, bottom))
    steps, low, high = state.unrestarted or (state.steps, float(ritz.value[0]), float(ritz.value[-1]))
    return Extremes(
        ritz.value[top], ritz.residual[top], ritz.converged[top], top_vector,
        ritz.value[bottom], ritz.residual[bottom], ritz.converged[bottom], bottom_vector,
        state.basis.project, state.projected, ritz.value, state.rows,
        state.products, state.restarts, steps, low, high, state.rows == task.free,
    )  # fmt: skip
