"""Second derivatives of the built-in losses by the outputs of a network, as roots: what Gauss–Newton matrices need."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def curved(name: str | None, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The summed loss of outputs z [A, n, O]: value [A], slope ∂ℓ/∂z, and R [A, n, O, O] with RᵀR = ∂²ℓ/∂z².

    Args:
        name: of a built-in loss. targets: of all members [n, ...], or of each [A, n, ...].

    R is None for mse, whose ∂²ℓ/∂z² is 2.
    """
    n, o = outputs.shape[1:]
    if name == "mse":
        residual = outputs - targets.reshape(-1, n, o).to(outputs.dtype)
        return residual.square().sum((1, 2)), 2 * residual, None
    if name == "bce":
        wanted = targets.reshape(-1, n, o).to(outputs.dtype)
        p = torch.sigmoid(outputs)
        own, other = nn.functional.logsigmoid(outputs), nn.functional.logsigmoid(-outputs)
        value = -(wanted * own + (1 - wanted) * other).sum((1, 2))
        return value, p - wanted, torch.diag_embed((p * (1 - p)).sqrt())
    if targets.is_floating_point():
        wanted = targets.to(outputs.dtype)
    else:
        wanted = nn.functional.one_hot(targets.reshape(n).long().clamp(min=0), o).to(outputs.dtype)
        wanted = wanted * (targets.reshape(n, 1) != -100)
    log_p = torch.log_softmax(outputs, -1)
    p, mass = log_p.exp(), wanted.sum(-1, keepdim=True)
    root = p.sqrt()
    # (diag √p − √p pᵀ) squares to diag p − p pᵀ.
    factor = torch.diag_embed(root) - root.unsqueeze(-1) * p.unsqueeze(-2)
    return -(wanted * log_p).sum((1, 2)), mass * p - wanted, factor * mass.sqrt().unsqueeze(-1)
