"""Points that an analysis reached, as checkpoints that every other command takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from landscape.cli.jobs import Job
    from landscape.results import Spent


def write_point(
    job: Job, target: Path, theta: np.ndarray, spent: Spent | None, certificate: Mapping[str, Any], how: dict[str, Any]
) -> None:
    """The job's network at θ [P], in the arithmetic of the analysis, with the certificate and `how` it was reached."""
    import torch

    from landscape.checkpoint import write_checkpoint
    from landscape.identity import plain
    from landscape.parameters import trainable

    assert spent is not None
    model = job.problem.model
    dtype = getattr(torch, spent.dtype)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    parameters = trainable(model)
    pieces = torch.split(torch.as_tensor(theta), [p.numel() for p in parameters.values()])
    for (name, parameter), piece in zip(parameters.items(), pieces, strict=True):
        state[name] = piece.to(dtype).reshape(parameter.shape)
    found = job.loaded.checkpoint
    header = dict(found.header) if found.header else {"coordinates": dict(found.coordinates)}
    descent = {"from": found.sha256, **plain(how)}
    write_checkpoint(target, state, header | {"certificate": plain(certificate), "descent": descent})
