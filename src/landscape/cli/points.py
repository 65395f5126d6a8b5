"""Points that an analysis reached, as checkpoints that every other command takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from landscape.cli.jobs import Job
    from landscape.results.fields import Spent


def write_point(
    job: Job, target: Path, theta: np.ndarray, spent: Spent | None, certificate: Mapping[str, Any], how: dict[str, Any]
) -> None:
    """The job's network at θ [P], in the arithmetic of the analysis, with the certificate and `how` it was reached."""
    import torch

    from landscape.checkpoints.checkpoint import write_checkpoint
    from landscape.problem.copies import moved_model
    from landscape.problem.parameters import trainable
    from landscape.results.identity import plain

    assert spent is not None
    # Through the model, so that tied tensors stay tied under all their names.
    model = moved_model(job.problem.model, torch.device("cpu"), getattr(torch, spent.dtype))
    parameters = trainable(model)
    with torch.no_grad():
        pieces = torch.split(torch.as_tensor(theta), [p.numel() for p in parameters.values()])
        for parameter, piece in zip(parameters.values(), pieces, strict=True):
            parameter.copy_(piece.reshape(parameter.shape))
    found = job.loaded.checkpoint
    header = dict(found.header) if found.header else {"coordinates": dict(found.coordinates)}
    descent = {"from": found.sha256, **plain(how)}
    write_checkpoint(target, model, header | {"certificate": plain(certificate), "descent": descent})
