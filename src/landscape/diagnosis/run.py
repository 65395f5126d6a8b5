"""`doctor`: is this problem one whose curvature can be trusted? Every answer is measured on its own data."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import nn

from landscape.diagnosis.data_and_loss import check_data, first_look
from landscape.diagnosis.findings import Diagnosis, Finding, Visit, raw_bytes
from landscape.diagnosis.layers import check_layers
from landscape.diagnosis.products import check_products
from landscape.errors import UsageError
from landscape.problem.batches import read_batches
from landscape.problem.problem import Problem

__all__ = ["Diagnosis", "Finding", "doctor"]


def doctor(problem: Problem, *, device: str = "auto", seed: int = 0, samples: int = 256) -> Diagnosis:
    """Check a problem on at most `samples` of its samples, in float64 where the model allows it.

    Weight decay is left out: its curvature is exactly `weight_decay` times the identity.

    Raises:
        UsageError: unknown or absent device, fewer than 2 samples.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"--device {device}: there is no such device here", "choose auto or cpu")
    if samples < 2:
        raise UsageError(f"--samples is {samples}; it must be at least 2")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    before = _state(problem.model)
    visit = Visit()
    with visit.check("problem"):
        bare = dataclasses.replace(problem, weight_decay=0.0, data=read_batches(problem))
        visit.findings += check_data(list(bare.data), samples)
        visit.findings += check_layers(problem.model)
        first_look(visit, bare, place, seed, samples)
        if visit.objective is not None:
            check_products(visit, visit.objective, seed)
    same = _state(problem.model) == before
    text = "parameters, buffers and flags are as they were" if same else "the check changed it; this is a bug of ours"
    visit.findings.append(Finding("your model", "ok" if same else "fault", text))
    return Diagnosis(visit.findings, visit.error_float64, visit.error_float32)


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Everything of a model that a caller could miss: values, flags, gradients."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    digests = [(n, t.dtype, t.device, hashlib.sha256(raw_bytes(t)).hexdigest()) for n, t in tensors]
    flags = [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]
    return digests, flags, [(n, m.training) for n, m in model.named_modules()]
