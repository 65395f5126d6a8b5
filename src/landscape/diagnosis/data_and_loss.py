"""First look at data and loss: copies, finite, the same twice, a sum over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from landscape.diagnosis.findings import Finding, Visit, raw_bytes, short
from landscape.diagnosis.layers import not_finite, watch_kinks
from landscape.errors import NumericalError, ProblemError
from landscape.problem.batches import length_of, subset, take, tensors_of
from landscape.problem.objective import Objective, build_objective
from landscape.problem.problem import Batch, Problem
from landscape.problem.user_loss import outputs_of
from landscape.runtime.arithmetic import strict_arithmetic

# Steps of autograd that change no number.
RESHAPED = ("Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "Select", "Transpose", "T")


def check_data(batches: list[Batch], samples: int) -> list[Finding]:
    """Size and exact copies among the samples."""
    total = sum(length_of(b) for b in batches)
    rows = [hash(tuple(raw_bytes(t[i]) for t in tensors_of(b))) for b in batches for i in range(length_of(b))]
    copies = len(rows) - len(set(rows))
    used = f"{total:,} samples in {len(batches)} batches, at most about {samples} of them used below"
    found = [Finding("data", "ok", used, {"samples": total, "batches": len(batches)})]
    if copies:
        text = f"{copies:,} of {total:,} samples are exact copies of another: each counts once more in the loss"
        found.append(Finding("duplicates", "care", text, {"copies": copies}))
    return found


def first_look(visit: Visit, problem: Problem, device: str, seed: int, samples: int) -> None:
    """A small objective of the problem: finite, fixed, a sum over samples."""
    batches, chosen = list(problem.data), list[Batch]()
    if problem.per_sample:
        chosen = subset(batches, samples, seed)
    for batch in [] if chosen else batches:
        chosen.append(batch)
        if sum(length_of(b) for b in chosen) >= samples:
            break
    try:
        objective = build_objective(problem, batches=chosen, device=device, dtype=torch.float64)
    except NumericalError as error:
        visit.findings.append(Finding("loss", "fault", f"{error.message}; {not_finite(problem, chosen)}"))
        return
    except ProblemError as error:
        objective = build_objective(problem, batches=chosen, device=device)
        text = f"the model does not run in float64 ({error.message}); checked in its own dtype instead"
        visit.findings.append(Finding("float64", "care", text))
    first = _sum(objective, objective.batches)
    again = _sum(objective, objective.batches)
    allowed = 1e3 * torch.finfo(objective.dtype).eps * max(abs(first), objective.count)
    good = f"finite ({first / objective.count:.6g}) and the same twice"
    visit.held("loss", abs(first - again), allowed, good, "it differs between two passes over the same data")
    visit.additive = _additive(visit, objective)
    if visit.additive and length_of(objective.batches[0]) > samples:
        objective = objective.with_batches([take(objective.batches[0], slice(0, samples))])
    visit.objective = objective
    _look_for_probabilities(visit, problem, objective)
    watch_kinks(visit, objective)


def _look_for_probabilities(visit: Visit, problem: Problem, objective: Objective) -> None:
    """Outputs that a sigmoid or softmax made, where the loss takes logits: the usual mistake of a last layer."""
    last = {"bce": "Sigmoid", "cross_entropy": "Softmax"}.get(str(problem.loss))
    if last is None:
        return
    with strict_arithmetic():
        inputs = objective.batches[0][0]
        made = outputs_of(objective.loss, objective.model, lambda model: model(inputs)).grad_fn
    while made is not None and type(made).__name__.startswith(RESHAPED):
        made = made.next_functions[0][0]
    if made is not None and type(made).__name__ == f"{last}Backward0":
        word = last.lower()
        text = (
            f"a {word} makes probabilities of them, but {problem.loss} takes logits and applies its own: leave it out"
        )
        visit.findings.append(Finding("outputs", "care", text))


def _sum(objective: Objective, batches: Sequence[Batch]) -> float:
    with strict_arithmetic(), torch.no_grad():
        return sum(float(objective.batch_sum(b)[0]) for b in batches)


def _additive(visit: Visit, objective: Objective) -> bool:
    """Whether sums and counts of a batch are those of its halves together; else says what that means."""
    whole = objective.batches[0]
    half = length_of(whole) // 2
    if half < 1:
        text = "these batches have no common sample axis or one sample: whether the loss is a sum is not checked"
        visit.findings.append(Finding("sums", "care", text))
        return False
    pieces = [take(whole, slice(0, 2 * half)), take(whole, slice(0, half)), take(whole, slice(half, 2 * half))]
    with strict_arithmetic(), torch.no_grad():
        try:
            (total, count), *parts = [(float(s), n) for s, n in map(objective.batch_sum, pieces)]
        except Exception as error:  # a custom loss may want whole batches
            text = f"the loss does not take half a batch ({short(error)}); batches are left whole"
            visit.findings.append(Finding("sums", "fault" if objective.cuttable else "care", text))
            return False
    halves, counts = sum(p[0] for p in parts), sum(p[1] for p in parts)
    allowed = 1e4 * torch.finfo(objective.dtype).eps * max(abs(total), abs(halves), count)
    mean = abs(total - halves / 2) <= allowed < abs(total)
    if not mean and count != counts:
        text = f"count is {count:g} for a batch but {counts:g} for its two halves; it must count the samples"
        visit.findings.append(Finding("sums", "fault", text))
    elif mean:
        lengths = {length_of(b) for b in objective.batches}
        harmless = count == 1 and len(lengths) == 1
        text = "the loss returns a mean, not a sum: " + (
            "with a count of 1, batches of different length weigh wrongly"
            if count == 1
            else f"dividing it by the count ({count:g}) again makes everything that much too small"
        )
        visit.findings.append(Finding("sums", "care" if harmless else "fault", text + "; use reduction='sum'"))
    elif not abs(total - halves) <= allowed:
        text = f"a batch gives {total:.9g} but its halves {halves:.9g}: samples see each other (batch statistics?)"
        more = (
            ", so results depend on how the data is cut" if objective.cuttable else "; the batches are left as they are"
        )
        visit.findings.append(Finding("sums", "fault" if objective.cuttable else "care", text + more))
    else:
        good = f"a batch is the sum of its halves, count {count:g} for {2 * half} samples"
        visit.held("sums", abs(total - halves), allowed, good, "")
        return True
    return False
