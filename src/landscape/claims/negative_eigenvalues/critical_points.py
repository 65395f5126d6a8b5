"""Critical points of any index, from many starts at many heights (Dauphin et al. 2014, Fig. 1; Frye et al. 2021).

From every start ½‖∇L‖² is brought down by Newton's method on it, and what is reached is certified. Where H∇L = 0 but
∇L ≠ 0 the method ends as well: such gradient-flat points are no critical points, and their index means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.optim.damped import REASONS
from landscape.points.certificate import Certificate
from landscape.points.certify import certify_dense
from landscape.points.descent import Trajectory, Way, descend_stack
from landscape.points.settings import TAU
from landscape.problem.symmetries import symmetries_of
from landscape.runtime.progress import Progress
from landscape.stack.hessians import HESSIAN_BYTES, dense_hessians
from landscape.stack.stack import Stack

# ‖∇L‖² below this is a critical point. Certificates ask for more, max |∇L| ≤ 1e-8: the verdict tells which do.
GRADIENT_SQUARE = 1e-10
# Initial weights are multiplied by these: small ones end near saddles at the origin, large ones high up.
SCALES = (0.1, 0.5, 1.0, 2.0, 4.0)
# Two points of equal index count once if their losses agree to this share, or within this share of the highest loss.
SAME, NOTHING = 1e-6, 1e-10


@dataclass(frozen=True, eq=False)
class Starts:
    """Where searches begin.

    Attributes:
        theta: [K, P]. rows: the member of the stack that each belongs to [K]. kind: in words, K of them.
    """

    theta: Tensor
    rows: Tensor
    kind: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CriticalPoints:
    """What K searches reached, in their order.

    Attributes:
        member, kind: the member of the stack [K], and where the search began, K of them.
        loss: L [K]. negative: eigenvalues below −τ max |λ| [K]. index: as a share of P [K].
        zeros: eigenvalues within τ max |λ| of zero [K].
        verdict: of the certificate, K of them; see `landscape.points.certificate.VERDICTS`.
        gradient_square: ‖∇L‖² [K]. flatness: ‖H∇L‖/(‖H‖‖∇L‖), NaN where the gradient is rounding [K].
        true: whether it is a critical point: ‖∇L‖² < 1e-10, and neither a channel nor gradient-flat [K].
        distinct: the first of the true points of equal loss and index [K].
        reason: why it is not a true one, K of them; "" for those that are.
        theta: [K, P]. parameters: P. tau: of all counts.
    """

    member: np.ndarray
    kind: tuple[str, ...]
    loss: np.ndarray
    negative: np.ndarray
    index: np.ndarray
    zeros: np.ndarray
    verdict: tuple[str, ...]
    gradient_square: np.ndarray
    flatness: np.ndarray
    true: np.ndarray
    distinct: np.ndarray
    reason: tuple[str, ...]
    theta: np.ndarray
    parameters: int
    tau: float

    @property
    def shares(self) -> dict[str, float]:
        """The outcome of all searches: those that reached true critical points, each reason for which the others did
        not, and the true points that are "degenerate" or "distinct"."""
        count = max(1, len(self.true))
        found = {"true": float(self.true.sum()) / count}
        for reason in sorted(set(self.reason) - {""}):
            found[reason] = self.reason.count(reason) / count
        degenerate = sum(v == "degenerate" and bool(t) for v, t in zip(self.verdict, self.true, strict=True))
        return found | {"degenerate": degenerate / count, "distinct": float(self.distinct.sum()) / count}


def starts(
    stack: Stack,
    theta: Tensor,
    *,
    scales: Sequence[float] = SCALES,
    heights: int = 3,
    steps: int = 200,
    progress: Progress | None = None,
) -> Starts:
    """Starts at many heights from initial weights θ [S, P]: the weights times every scale, and points of descents.

    Args:
        heights: points of each member's descent to a minimum, evenly spread over its iterations, its end included.
        steps: iterations of those descents.
    """
    everyone = torch.arange(len(theta), device=theta.device)
    points = [scale * theta for scale in scales]
    rows = [everyone] * len(points)
    kind = [f"initial weights × {scale:g}" for scale in scales for _ in range(len(theta))]
    if heights > 0:
        _, paths = descend_stack(stack, theta, Way("minimum", steps=steps), progress)
        for i, path in enumerate(paths):
            chosen = _spread(path, heights)
            points.append(torch.stack([torch.as_tensor(p, dtype=theta.dtype) for p in chosen]).to(theta.device))
            rows.append(everyone[i].repeat(len(chosen)))
            kind += ["along a descent"] * len(chosen)
    return Starts(torch.cat(points), torch.cat(rows), tuple(kind))


def critical_points(
    stack: Stack, begin: Starts, *, steps: int = 500, tau: float = TAU, progress: Progress | None = None
) -> CriticalPoints:
    """What the gradient-norm Newton method reaches from every start, with its certificate."""
    searched = stack.of(begin.rows)
    way = Way("critical", steps=steps, tau=tau, keep_points=False)
    ended, paths = descend_stack(searched, begin.theta, way, progress)
    certificates: list[Certificate] = []
    spectra = []
    known = symmetries_of(stack.model, stack.layout, stack.loss_name)
    rows = torch.arange(len(begin.theta), device=begin.theta.device)
    for part in torch.split(rows, max(1, HESSIAN_BYTES // (8 * stack.parameters**2))):
        hessians = dense_hessians(searched, ended.theta[part], part)
        certificates += certify_dense(searched, ended.theta[part], hessians, part, tau, True, known)
        spectra.append(hessians.values.cpu().numpy())
    halves = [path.second_half for path in paths]
    certificates = [c.after(half) for c, half in zip(certificates, halves, strict=True)]
    stopped = [REASONS[int(r)] for r in ended.reason]
    return _collected(begin, ended.theta.cpu().numpy(), certificates, stopped, np.concatenate(spectra), tau)


def _collected(
    begin: Starts,
    theta: np.ndarray,
    certificates: Sequence[Certificate],
    stopped: Sequence[str],
    spectra: np.ndarray,
    tau: float,
) -> CriticalPoints:
    square = np.array([c.gradient_norm**2 for c in certificates])
    verdict = tuple(c.verdict for c in certificates)
    reason = tuple(_excluded(v, s, why) for v, s, why in zip(verdict, square, stopped, strict=True))
    true = np.array([r == "" for r in reason])
    loss = np.array([c.loss for c in certificates])
    negative = np.array([c.negative for c in certificates])
    return CriticalPoints(
        member=begin.rows.cpu().numpy(),
        kind=begin.kind,
        loss=loss,
        negative=negative,
        index=negative / theta.shape[1],
        zeros=(np.abs(spectra) <= tau * np.abs(spectra).max(axis=1, keepdims=True)).sum(axis=1),
        verdict=verdict,
        gradient_square=square,
        flatness=np.array([c.flatness for c in certificates]),
        true=true,
        distinct=_distinct(loss, negative, true),
        reason=reason,
        theta=theta,
        parameters=theta.shape[1],
        tau=tau,
    )


def _excluded(verdict: str, square: float, stopped: str) -> str:
    """Why a point is no critical point; "" if it is one."""
    if verdict in ("failed", "channel", "gradient-flat"):
        return verdict
    return "" if square < GRADIENT_SQUARE else f"not stationary: {stopped}"


def _distinct(loss: np.ndarray, negative: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The first of all true points of one loss and index: images of a point under symmetries, members of a continuum.

    Critical points of small networks often form continua (a neuron with output weight 0 may point anywhere where its
    slope vanishes), on which the loss is constant and the rest of the spectrum is not.
    """
    first = np.zeros(len(loss), dtype=bool)
    if not true.any():
        return first
    room = SAME * np.abs(loss) + NOTHING * np.abs(loss[true]).max()
    chosen: list[int] = []
    for i in np.flatnonzero(true):
        if not any(negative[i] == negative[k] and abs(loss[i] - loss[k]) <= room[k] for k in chosen):
            first[i] = True
            chosen.append(int(i))
    return first


def _spread(path: Trajectory, heights: int) -> list[np.ndarray]:
    """Kept points of a descent, nearest to evenly spread losses on a logarithmic scale."""
    kept = np.array([path.loss[i] for i in path.kept])
    level = np.log(np.maximum(kept, 1e-300))
    wanted = np.linspace(level[0], level[-1], heights + 1)[1:]
    return [path.points[int(np.abs(level - w).argmin())] for w in wanted]
