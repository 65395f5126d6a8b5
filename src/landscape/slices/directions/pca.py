"""Principal components of a trajectory, about the checkpoint through which the slice goes (Li et al. 2018, §7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.errors import UsageError
from landscape.slices.directions.direction import Around, Direction

# Drawn beyond the trajectory, in shares of its extent.
MARGIN = 0.2


@dataclass(frozen=True)
class Options:
    """There are none; --trajectory names the checkpoints."""


def make(around: Around, options: Options, count: int | None) -> list[Direction]:
    """Unit vectors of the leading components of θ_t − θ, with the share of Σ‖θ_t − θ‖² along each."""
    theta = around.objective.point()
    wanted = 2 if count is None else count
    moved = torch.stack([t.to(theta) - theta for _, t in around.trajectory]).double() if around.trajectory else None
    if moved is None or len(moved) < wanted:
        raise UsageError(
            f"pca needs a trajectory of at least {wanted} other checkpoints, and {len(around.trajectory)} are given",
            "--trajectory 'runs/step=*.pt' names them; quote the pattern",
        )
    # Through the Gram matrix: T checkpoints are few, P is large.
    values, vectors = torch.linalg.eigh(moved @ moved.T)
    total = float(values.clamp(min=0).sum())
    found = []
    for i in range(1, wanted + 1):
        value = float(values[-i])
        if not value > 1e-12 * total or total == 0:
            raise UsageError(
                f"the trajectory spans fewer than {wanted} dimensions",
                "take more checkpoints, or --points 51 for a line",
            )
        direction = (vectors[:, -i] @ moved) / value**0.5
        along = moved @ direction
        if abs(float(along.min())) > float(along.max()):  # the sign is free: the way back from the checkpoint is +
            direction, along = -direction, -along
        low, high = min(0.0, float(along.min())), max(0.0, float(along.max()))
        margin = MARGIN * (high - low)
        label = f"component {i}, {100 * value / total:.1f} % of the trajectory"
        found.append(Direction(label, direction.to(theta), low - margin, high + margin, value / total))
    return found
