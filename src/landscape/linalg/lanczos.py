"""Single-vector Lanczos with full reorthogonalisation and thick restarts: extreme eigenpairs with residuals.

One step takes a product, orthogonalises it twice against all basis rows (classical Gram–Schmidt, "twice is
enough": Giraud, Langou & Rozložník 2005) and stores the coefficients as a column of T = Q H Qᵀ. T is kept as a
general symmetric matrix, so that steps before and after a thick restart (Wu & Simon 2000) are the same code.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]

# Rounding of a Ritz pair in units of eps·max|θ|: a remainder is rounded at each subtraction in the operator's eps,
# which the unit vector s averages over the steps; T and the rotation of each restart are float64 and their errors
# add up randomly. Measured on planted spectra: 3 (float32), 4 (float64), 52 and 370 (114 and 2,419 restarts).
ROUNDING = 4.0
ROTATION, EPS64 = 10.0, float(np.finfo(np.float64).eps)
# A remainder of this many eps·‖Hq‖ is rounding, not a direction.
BREAKDOWN = 10.0
SLAB_ELEMENTS = 2**22


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
        unrestarted_steps, unrestarted_min, unrestarted_max: steps before the first restart and the extreme Ritz
            values then; only these support `exclusion.exclusion_bound`.
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
    deflate: Tensor | None
    generator: torch.Generator | None
    free: int
    top: int = 0
    bottom: int = 0
    rtol: float = 0.0
    tau: float = 0.0
    noise: float = 0.0


@dataclass
class _State:
    """Orthonormal rows in blocks [r, n], so that growing never copies, and T = Q H Qᵀ as far as transferred.

    `broken`: the Krylov space has just ended. `block`: row at which the last random vector entered. `dropped`: the
    largest remainder that such a vector replaced. `scale`: the largest ‖Hq‖. `unrestarted`: steps, extreme values.
    """

    limit: int
    check_at: int = 0
    rows: int = 0
    blocks: list[Tensor] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)
    projected: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    products: int = 0
    restarts: int = 0
    scale: float = 0.0
    dropped: float = 0.0
    block: int = 0
    broken: bool = False
    unrestarted: tuple[int, float, float] | None = None


@dataclass(frozen=True)
class _Ritz:
    """Ritz pairs, ascending; `error` is what noise and rounding add to |β s|; `done`: nothing more to gain."""

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
    deflate: Tensor | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Extremes:
    """The `top` largest and `bottom` smallest eigenpairs, stopped on residuals.

    A Krylov space holds one vector of each eigenspace: further copies of a multiple eigenvalue are found when it is
    exhausted (β at rounding level), by going on with random vectors until one adds nothing to the wanted values.

    Args:
        matvec: symmetric, V [n, b] -> H V [n, b], same dtype and device as `start`.
        start: [n]; random on the sphere if `exclusion_bound` is to be used.
        rtol, tau: a pair is converged when its residual is at most max(rtol |θ|, tau max|θ|).
        noise: absolute error norm of the product of a unit vector; where twice this exceeds the tolerance, a pair
            is not pursued beyond it and reported as not converged.
        max_products: never exceeded.
        max_basis: largest number of basis rows held; at least top + bottom + 3 (unless n is smaller).
        generator: CPU generator of the random continuation.
        deflate: [n, k] orthonormal columns; everything happens in their complement.
        progress: called as (products, pairs done, pairs wanted) at every check.

    Raises:
        FloatingPointError: a product has NaN or Inf.
        ValueError: arguments that allow no step.
    """
    free = start.shape[0] - (0 if deflate is None else deflate.shape[1])
    wanted = min(top + bottom, free)
    if max_products < 1 or free < 1 or max_basis < min(free, wanted + 3):
        raise ValueError(f"{max_products} products with {max_basis} basis rows cannot give {wanted} pairs")
    task = _Task(matvec, start, deflate, generator, free, top, bottom, rtol, tau, noise)
    return _search(task, _State(min(max_basis, free), max(2, wanted)), max_products, progress)


def _search(
    task: _Task, state: _State, max_products: int, progress: Callable[[int, int, int], None] | None
) -> Extremes:
    vector = _unit(state, task, task.like.clone())
    while True:
        remainder, beta = _advance(state, task, vector)
        last = state.rows == task.free or state.products == max_products
        if last or state.broken or state.rows == state.limit or state.products >= state.check_at:
            state.check_at = state.products + 1 + state.products // 16  # wastes 3 % of the products on average
            ritz = _ritz(state, task, beta)
            if progress is not None:
                progress(state.products, _count_done(ritz, task), task.top + task.bottom)
            if last or _finished(state, task, ritz, beta):
                return _extremes(state, task, ritz)
            if state.rows == state.limit:
                _restart(state, task, ritz)
        if state.broken:
            state.block = state.rows
        vector = _random(state, task) if state.broken else remainder.div_(beta)


def lanczos(
    matvec: Matvec, start: Tensor, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, np.ndarray, float, Tensor]:
    """Plain Lanczos with full reorthogonalisation: Q [n, m], T float64 [m, m], β and the unit vector q [n] with
    H Q − Q T = β q e_mᵀ and QᵀQ = I, Qᵀq = 0.

    m = steps, or fewer when the Krylov space is exhausted: it ends there (β = 0, q = 0), unless a CPU `generator`
    is given, which goes on with random vectors up to min(steps, n).
    """
    task = _Task(matvec, start, None, generator, start.shape[0])
    state = _State(min(steps, task.free))
    vector = _unit(state, task, start.clone())
    while True:
        remainder, beta = _advance(state, task, vector)
        if state.rows == state.limit or (state.broken and generator is None):
            break
        vector = _random(state, task) if state.broken else remainder.div_(beta)
    residual = torch.zeros_like(remainder) if state.broken else remainder.div_(beta)
    rows = torch.cat([block[: state.rows - first] for first, block in _offsets(state)])
    return rows.T, _projected(state), beta, residual


def _advance(state: _State, task: _Task, vector: Tensor) -> tuple[Tensor, float]:
    """Append the unit vector, take its product; the remainder orthogonal to all rows, with β (0: only rounding)."""
    _append(state, vector)
    state.products += 1
    w = task.matvec(vector.unsqueeze(1)).squeeze(1).clone()  # it may be the argument or the operator's own buffer
    column, before, beta = _orthogonalise(state, task, w)
    if not math.isfinite(before + beta):
        raise FloatingPointError(f"the product of Lanczos step {state.products} contains NaN or Inf")
    state.pending.append(column)
    state.scale = max(state.scale, before)
    nothing = max(BREAKDOWN * torch.finfo(w.dtype).eps * state.scale, task.noise)
    state.broken = state.rows == task.free or beta <= nothing
    if state.broken:
        state.dropped, beta = max(state.dropped, beta), 0.0
    return w, beta


def _append(state: _State, vector: Tensor) -> None:
    held = sum(block.shape[0] for block in state.blocks)
    if state.rows == held:
        rows = min(max(16, min(256, SLAB_ELEMENTS // vector.shape[0])), state.limit - held)
        state.blocks.append(vector.new_empty(rows, vector.shape[0]))
    state.rows += 1
    first, block = _offsets(state)[-1]
    block[state.rows - 1 - first].copy_(vector)


def _offsets(state: _State) -> list[tuple[int, Tensor]]:
    """The blocks in use, each with the number of its first row."""
    firsts = itertools.accumulate((block.shape[0] for block in state.blocks), initial=0)
    return [(first, block) for first, block in zip(firsts, state.blocks, strict=False) if first < state.rows]


def _orthogonalise(state: _State, task: _Task, w: Tensor) -> tuple[Tensor, float, float]:
    """Remove from w, in place, its components along the rows; coefficients [m] in float64, norm before and after."""
    total = torch.zeros(state.rows, dtype=torch.float64, device=w.device)
    norms = [_norm(w)]
    for _ in range(2):
        total += _pass(state, task, w)
        norms.append(_norm(w))
    before, middle, after = torch.stack(norms).tolist()  # the step's only synchronisation
    for _ in range(2):
        if not after < 0.5 * middle:  # near a breakdown even the second pass takes much away
            break
        total += _pass(state, task, w)
        middle, after = after, float(_norm(w))
    return total, before, after


def _pass(state: _State, task: _Task, w: Tensor) -> Tensor:
    if task.deflate is not None:
        w.addmv_(task.deflate, task.deflate.T @ w, alpha=-1)
    used = [block[: state.rows - first] for first, block in _offsets(state)]
    if not used:
        return w.new_zeros(0, dtype=torch.float64)
    parts = [block @ w for block in used]
    for block, part in zip(used, parts, strict=True):
        w.addmv_(block.T, part, alpha=-1)
    return torch.cat(parts).double()


def _norm(w: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(w, dtype=torch.float64)
    return norm


def _unit(state: _State, task: _Task, vector: Tensor) -> Tensor:
    """The vector made orthogonal to the basis and normalised, in place."""
    _, before, after = _orthogonalise(state, task, vector.div_(_norm(vector).to(vector.dtype)))
    if not (math.isfinite(before) and after > 0):
        raise ValueError("the start vector is zero, not finite, or lies in the deflated space")
    return vector.div_(after)


def _random(state: _State, task: _Task) -> Tensor:
    # the first draw may be the start vector over again, if that came from an equally seeded generator
    draw = torch.randn(2, task.like.shape[0], generator=task.generator, dtype=torch.float64)[1]
    return _unit(state, task, draw.to(task.like.device, task.like.dtype))


def _projected(state: _State) -> np.ndarray:
    """T with the pending columns moved over in one transfer."""
    known, m = state.projected.shape[0], state.rows
    if state.pending:
        grown = np.zeros((m, m))
        grown[:known, :known] = state.projected
        flat = torch.cat(state.pending).cpu().numpy()
        for j in range(known, m):
            column, flat = flat[: j + 1], flat[j + 1 :]
            grown[: j + 1, j] = column
            grown[j, : j + 1] = column
        state.projected, state.pending = grown, []
    return state.projected


def _ritz(state: _State, task: _Task, beta: float) -> _Ritz:
    value, vector = np.linalg.eigh(_projected(state))
    largest = float(np.max(np.abs(value)))
    bound = beta * np.abs(vector[-1])
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


def _finished(state: _State, task: _Task, ritz: _Ritz, beta: float) -> bool:
    """All wanted pairs exist with small residuals, and the last random vector, if any, brought nothing new."""
    if _count_done(ritz, task) < min(task.top + task.bottom, task.free):
        return False
    if state.broken:  # an invariant space: did the part that the last random vector added change any wanted value?
        if state.block < max(1, task.top + task.bottom):
            return False
        before = np.linalg.eigvalsh(state.projected[: state.block, : state.block])
        above = ritz.value[::-1][: task.top] - before[::-1][: task.top]
        below = ritz.value[: task.bottom] - before[: task.bottom]
        return bool(np.all(np.abs(np.r_[above, below]) <= ritz.error))
    if state.block:  # the extreme pairs of the random vector's own Krylov space must have converged too
        value, vector = np.linalg.eigh(state.projected[state.block :, state.block :])
        ends = [-1] * (task.top > 0) + [0] * (task.bottom > 0)
        tolerance = np.maximum(task.rtol * np.abs(value), task.tau * np.max(np.abs(ritz.value))) + ritz.error
        return bool(np.all(beta * np.abs(vector[-1, ends]) <= tolerance[ends]))
    return True


def _restart(state: _State, task: _Task, ritz: _Ritz) -> None:
    """Keep the wanted Ritz vectors and a pad of neighbours; their coupling to the next row comes with its product."""
    m = state.rows
    state.unrestarted = state.unrestarted or (state.products, float(ritz.value[0]), float(ritz.value[-1]))
    pad = max(1, (m - task.top - task.bottom) // 2)
    above = 0 if task.top == 0 else pad if task.bottom == 0 else (pad + 1) // 2
    first, last = task.bottom + pad - above, m - task.top - above
    keep = np.r_[0:first, last:m]
    rotation = torch.from_numpy(np.ascontiguousarray(ritz.vector[:, keep].T)).to(state.blocks[0].device)
    for columns, rows in _slabs(state):
        new = rotation @ rows
        for start, block in _offsets(state):
            part = new[start : start + block.shape[0]]
            block[: part.shape[0], columns] = part.to(block.dtype)
    state.rows, state.projected = len(keep), np.diag(ritz.value[keep])
    state.restarts, state.block = state.restarts + 1, 0


def _slabs(state: _State) -> Iterator[tuple[slice, Tensor]]:
    """The rows in float64, a slab of columns at a time: no second copy of the basis is ever held."""
    width = max(1024, SLAB_ELEMENTS // state.rows)
    for i in range(0, state.blocks[0].shape[1], width):
        columns = slice(i, i + width)
        yield columns, torch.cat([b[: state.rows - first, columns].double() for first, b in _offsets(state)])


def _extremes(state: _State, task: _Task, ritz: _Ritz) -> Extremes:
    top, bottom = _ends(state.rows, task)
    top_vector, bottom_vector = (_combine(state, task, ritz.vector[:, ends]) for ends in (top, bottom))
    steps, low, high = state.unrestarted or (state.products, float(ritz.value[0]), float(ritz.value[-1]))

    def project(x: Tensor) -> Tensor:
        parts = (rows @ x[columns].double() for columns, rows in _slabs(state))
        return functools.reduce(torch.add, parts)

    return Extremes(
        ritz.value[top], ritz.residual[top], ritz.converged[top], top_vector,
        ritz.value[bottom], ritz.residual[bottom], ritz.converged[bottom], bottom_vector,
        project, state.projected, ritz.value, state.rows,
        state.products, state.restarts, steps, low, high, state.rows == task.free,
    )  # fmt: skip


def _combine(state: _State, task: _Task, weights: np.ndarray) -> Tensor:
    """Unit vectors Qᵀ s for columns s [m, k]; Tensor [n, k], each column contiguous."""
    out = task.like.new_zeros(weights.shape[1], len(task.like))
    s = torch.from_numpy(np.ascontiguousarray(weights.T)).to(out.device, out.dtype)
    for start, block in _offsets(state):
        rows = block[: state.rows - start]
        out.addmm_(s[:, start : start + rows.shape[0]], rows)
    for row in out:
        row.div_(_norm(row).to(row.dtype))
    return out.T
