"""Gradients and products against central differences that know their own error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.diagnosis.findings import Finding, Visit
from landscape.diagnosis.layers import FEW_SAMPLES
from landscape.diagnosis.ways import random_direction, set_point, uncut_operator
from landscape.problem.batches import take
from landscape.problem.objective import Objective

# Steps of the central differences relative to ‖θ‖: the one whose own error is least is used.
STEPS = tuple(1e-2 * 4.0**-k for k in range(6))
CONCLUSIVE = 1e-2  # differences that know themselves no better than this (relative) confirm nothing


def central(
    evaluate: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor, eps: float | None = None
) -> tuple[Tensor, float]:
    """Derivative of `evaluate` along a direction and its error: Richardson extrapolation over `STEPS`.

    The error is what the last extrapolation changed, plus what one last place of θ changes divided by the step; `eps`
    says how large that is where something computes in less than the dtype of θ.
    """
    eps = torch.finfo(point.dtype).eps if eps is None else eps
    size = max(float(point.norm()), 1.0)
    wobble = eps * direction.sign()
    ends = [evaluate(point * (1 + wobble)), evaluate(point * (1 - wobble))]
    noise = max(float((ends[0] - ends[1]).norm()), eps * float(ends[0].norm()))
    steps = [s * size for s in STEPS]
    plain = [(evaluate(point + h * direction) - evaluate(point - h * direction)) / (2 * h) for h in steps]
    better = [(16 * fine - coarse) / 15 for coarse, fine in pairwise(plain)]
    found = [(b, float((b - a).norm()) + noise / h) for (a, b), h in zip(pairwise(better), steps[2:], strict=True)]
    best = min(range(len(found)), key=lambda i: found[i][1] if found[i][1] == found[i][1] else float("inf"))
    return found[best]


def check_differences(
    visit: Visit,
    objective: Objective,
    operator: CurvatureOperator | None,
    generator: torch.Generator,
    scale: float,
    eps: float | None = None,
) -> None:
    """Gradient (no operator) or product against central differences of the loss or of the gradient."""
    if visit.kinks and visit.additive:
        objective = objective.with_batches([take(objective.batches[0], slice(0, FEW_SAMPLES))])
        operator = operator and uncut_operator(objective)
    probe, point = objective.in_dtype(objective.dtype), objective.point()
    value, gradient = objective.value_and_gradient()

    def evaluate(at: Tensor) -> Tensor:
        set_point(probe, at)
        return at.new_tensor([probe.value()]) if operator is None else probe.value_and_gradient()[1]

    pairs = []
    for _ in range(4 if visit.kinks else 2):
        direction = random_direction(objective, generator)
        estimate, error = central(evaluate, point, direction, eps)
        exact = (gradient @ direction).reshape(1) if operator is None else operator(direction)
        unit = max(float(exact.norm()), scale if operator else abs(value) / max(float(point.norm()), 1.0)) or 1.0
        pairs.append((float((exact - estimate).norm()) / unit, 3 * error / unit))
    sure = [t <= CONCLUSIVE for _, t in pairs]
    wrong = [s and not d <= t for s, (d, t) in zip(sure, pairs, strict=True)]
    # A wrong product is wrong along every direction; a crossed kink spoils one.
    fault = all(wrong) if visit.kinks else any(wrong)
    deviation, allowed = max(pairs, key=lambda pair: pair[0] / (pair[1] or 1e-300))
    name, of = ("gradient", "loss") if operator is None else ("central differences", "gradient")
    if not fault and not (all(sure) and not any(wrong)):
        deviation, allowed = max(pairs, key=lambda pair: pair[1])
        rough = f"{sum(wrong) + sure.count(False)} of {len(pairs)} differences of the {of} are too rough"
        text = f"{rough} to confirm it (kinks, or a loss that is not smooth)"
        numbers = {"deviation": deviation, "allowed": allowed}
        visit.findings.append(
            Finding(name, "care", f"{text}: off by {deviation:.1e}, own error {allowed:.1e}", numbers)
        )
        return
    good, bad = f"agrees with differences of the {of}", f"contradicts differences of the {of}: a wrong backward"
    visit.held(name, deviation, allowed, good, bad)
