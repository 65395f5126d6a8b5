"""What a direction of a slice is, and what it may look at when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from landscape.problem.objective import Objective


@dataclass(frozen=True)
class Direction:
    """One axis of a slice.

    Attributes:
        label: what it is, for axes. vector: [P]; coordinates are multiples of it.
        low, high: the range to draw; None: chosen from slope and curvature.
        explained: share of a trajectory's squared distances; None where there is none.
    """

    label: str
    vector: Tensor
    low: float | None = None
    high: float | None = None
    explained: float | None = None


@dataclass(frozen=True)
class Eigenvectors:
    """Eigenpairs of the Hessian at the checkpoint from an earlier result: values and residuals [k], vectors [k, P];
    `top` descends, `bottom` ascends."""

    top: tuple[Tensor, Tensor, Tensor] | None = None
    bottom: tuple[Tensor, Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Around:
    """What directions may look at.

    Attributes:
        objective: the loss at the checkpoint. seed, plane, number: of random choices; planes differ in the
            second, joined directions of one kind in the third.
        points: θ [P] of other checkpoints by the word that named them.
        trajectory: θ of checkpoints in order, by name.
        tensors: of each file of directions, one mapping of tensors by parameter name per direction.
        eigenvectors: see there. memory: limit in bytes.
        notes: sentences for the user; directions add theirs.
    """

    objective: Objective
    seed: int = 0
    plane: int = 0
    number: int = 0
    points: Mapping[str, Tensor] = field(default_factory=dict)
    trajectory: Sequence[tuple[str, Tensor]] = ()
    tensors: Mapping[str, Sequence[Mapping[str, Tensor]]] = field(default_factory=dict)
    eigenvectors: Eigenvectors | None = None
    memory: int | None = None
    notes: list[str] = field(default_factory=list)
