"""Sampling error of a spectrum computed on a subset of the data, from disjoint parts of that subset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from landscape.curvature.eigenpairs import basis_room, find_extremes
from landscape.curvature.operator import CurvatureOperator
from landscape.errors import NumericalError, ProblemError, UsageError
from landscape.linalg.probes import sphere
from landscape.linalg.quadrature import gauss, negative_part_bracket, tridiagonalise
from landscape.linalg.student import mean_interval, skewness
from landscape.problem.batches import length_of, take, tensors_of
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.progress import Progress
from landscape.spectra.settings import SpectrumSettings

# Parts for eigenvalues, whose bias grows as parts get smaller; and for the trace and the masses, which have none: as
# many as leave three samples each, for what few parts say of a long tail is little.
GROUPS, MOST_GROUPS, LEAST_SAMPLES = 5, 40, 3
# Beyond this skewness of the parts, one of them makes the estimate, and the tail behind it has not been seen.
SKEWED = 1.5
# How the bias of an eigenvalue may fall: like 1/n − 1/N, and like its root at the edge of a bulk.
ORDERS = (1.0, 0.5)
PRODUCTS = 60
TRACE_PROBES = 8
# This many of the samples that are left out, for each that is used, show with this many products whether those used
# are like them. Samples that are drawn fairly are found to be unlike the others once in a hundred draws.
LOOKED_AT, LOOKS, FAIR = 8, 2, 0.99
MASS_STEPS = 40
# "How much data is enough" is answered for this relative half-width.
TARGET = 0.10


@dataclass(frozen=True)
class Estimate:
    """A quantity over all the data, 95 %, and the samples that would give a half-width of 10 %; NaN and None: the
    samples are not enough to say."""

    low: float
    high: float
    needed: int | None


UNKNOWN = Estimate(math.nan, math.nan, None)


@dataclass(frozen=True)
class LeftOut:
    """How many samples there are in all, and some of those that are not used, on the objective's device."""

    population: int
    others: list[Batch]


@dataclass(frozen=True)
class Parts:
    """The quantities on each of the disjoint parts: eigenvalues and masses (for the floors asked for) on a few [g],
    [g, f], the trace on many [h]; and whether samples that are left out are like these."""

    top: np.ndarray
    bottom: np.ndarray
    mass: np.ndarray
    trace: np.ndarray
    typical: bool
    products: float

    @classmethod
    def unknown(cls, floors: int) -> Parts:
        """Where the samples cannot be parted."""
        nan = np.full(2, math.nan)
        return cls(nan, nan, np.full((2, floors), math.nan), nan, False, 0.0)


def disjoint_parts(batches: list[Batch], groups: int = GROUPS, seed: int = 0) -> list[list[Batch]]:
    """Disjoint parts of equal size (to one sample) of all batches' samples, drawn at random.

    Raises:
        UsageError: fewer samples than parts.
    """
    lengths = [length_of(batch) for batch in batches]
    if sum(lengths) < groups:
        raise UsageError(
            f"--samples leaves fewer than {groups} samples, too few for a sampling error", "raise --samples"
        )
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed)).numpy()
    owner, offsets = np.repeat(np.arange(len(batches)), lengths), np.cumsum([0, *lengths])
    parts = []
    for drawn in np.array_split(order, groups):
        part = []
        for k in np.unique(owner[drawn]):
            local = np.sort(drawn[owner[drawn] == k]) - offsets[k]
            part.append(take(batches[k], torch.from_numpy(local).to(device_of(batches[k]))))
        parts.append(part)
    return parts


def device_of(batch: Batch) -> torch.device:
    """Where a batch's tensors are."""
    found = tensors_of(batch)
    return found[0].device if found else torch.device("cpu")


def measure_parts(
    objective: Objective,
    operator: str,
    floors: np.ndarray,
    others: list[Batch],
    *,
    rtol: float,
    seed: int,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Parts:
    """λ_max, λ_min, trace and negative masses on parts of the data, with the same random vectors for all parts.

    `others`: samples beside the objective's, to see whether those are typical.
    """
    used, tell = sum(length_of(b) for b in objective.batches), progress or (lambda done, total: None)
    few = counted_parts(objective, objective.batches, GROUPS, seed)
    if len(few) < GROUPS:
        return Parts.unknown(len(floors))
    samples = int(objective.ranks.smallest(float(used)))
    most = max(GROUPS, min(MOST_GROUPS, samples // LEAST_SAMPLES))
    rows: list[tuple[float, float]] = []
    masses: list[np.ndarray] = []
    spent = 0.0
    for index, data in enumerate(few):
        part = CurvatureOperator(data, operator, memory=memory, expected_products=PRODUCTS + MASS_STEPS)
        rows.append(_ends(part, rtol, seed, memory))
        masses.append(_masses(part, floors, seed))
        spent += part.products / len(few)
        tell(index + 1, len(few) + 1)
    plan: dict[str, Any] = {}

    def curvatures(batches: list[Batch], groups: int, probes: int) -> np.ndarray:
        nonlocal spent, plan
        forms, counts = [], []
        for data in counted_parts(objective, batches, groups, seed):
            part = CurvatureOperator(data, operator, memory=memory, **plan)
            chunk = part.plan.chunk or None
            plan = {"strategy": part.plan.strategy, "batch_size": chunk if objective.cuttable else None}  # timed once
            forms.append(_curvatures(part, seed, probes))
            counts.append(data.count)
            spent += part.products * sum(length_of(b) for b in data.batches) / max(used, 1)
        if not counts:
            return np.zeros((0, probes))
        return np.stack([linearised(column, np.array(counts), groups) for column in np.array(forms).T], axis=1)

    forms = curvatures(objective.batches, most, TRACE_PROBES)
    pieces = int(objective.ranks.smallest(float(sum(length_of(b) for b in others) * most // max(used, 1))))
    try:
        there = curvatures(others, pieces, LOOKS).mean(axis=1) if pieces else np.zeros(0)
    except NumericalError:  # the loss overflows there
        there = np.array([math.inf])
    tell(len(few) + 1, len(few) + 1)
    top, bottom = np.array(rows).T
    typical = is_typical(forms[:, :LOOKS].mean(axis=1), there)
    return Parts(top, bottom, np.array(masses), forms.mean(axis=1), typical, spent)


def counted_parts(objective: Objective, batches: list[Batch], groups: int, seed: int) -> list[Objective]:
    """The objective on each of the disjoint parts in which something counts: not where all labels are ignored, say."""
    found = []
    for part in disjoint_parts(batches, groups, seed):
        try:
            found.append(objective.with_batches(part))
        except ProblemError:
            continue
    return found


def linearised(forms: np.ndarray, counts: np.ndarray, parts: int) -> np.ndarray:
    """Values [parts] whose mean is Σ counts · forms / Σ counts, and whose spread is that of this ratio, from what each
    of [g <= parts] parts says; in the others nothing counts (Cochran 1977, §6.4: ratio estimates)."""
    ratio = float((forms * counts).sum() / counts.sum())
    found = np.full(parts, ratio)
    found[: len(forms)] += counts / (counts.sum() / parts) * (forms - ratio)
    return found


def is_typical(parts: np.ndarray, others: np.ndarray) -> bool:
    """Whether what parts [g] of the data say of a mean agrees with what others [h], of the same size, say of it.

    They do not where one part outweighs all others, or where the means differ by more than chance would have it.
    """
    if not len(others):
        return True
    pooled = np.concatenate([parts, others])
    if not abs(skewness(pooled)) <= SKEWED * math.sqrt(len(pooled) / len(parts)):  # more of them show more of a tail
        return False
    low, high = mean_interval(parts, FAIR)
    widened = math.sqrt(1 + len(parts) / len(others))
    mean, other = float(parts.mean()), float(others.mean())
    return mean + (low - mean) * widened <= other <= mean + (high - mean) * widened


def _ends(part: CurvatureOperator, rtol: float, seed: int, memory: int | None) -> tuple[float, float]:
    found = find_extremes(
        part,
        top=1,
        bottom=1,
        rtol=max(rtol, 1e-2),
        tau=1e-4,
        noise=0.0,
        max_products=PRODUCTS,
        room=basis_room(part, memory, 2),
        generator=torch.Generator().manual_seed(seed),
    )
    return float(found.ritz_values[-1]), float(found.ritz_values[0])


def _curvatures(part: CurvatureOperator, seed: int, probes: int) -> list[float]:
    """n z·Hz of random unit vectors, whose mean is the trace."""
    generator = torch.Generator().manual_seed(seed)
    forms = []
    for _ in range(probes):
        z = sphere(part.n, 1, generator=generator, dtype=part.dtype, device=part.device)
        forms.append(part.n * float((z * part(z)).sum(dtype=torch.float64)))
    return forms


def _masses(part: CurvatureOperator, floors: np.ndarray, seed: int) -> np.ndarray:
    """Negative mass at absolute floors, from one probe."""
    generator = torch.Generator().manual_seed(seed + 1)
    z = sphere(part.n, 1, generator=generator, dtype=part.dtype, device=part.device)
    rule = gauss(tridiagonalise(part, z, min(MASS_STEPS, part.n)))
    edge = float(rule.nodes.min())
    total = float((rule.nodes * rule.weights).sum()) + 2 * float(negative_part_bracket(rule, 0.0, edge)[1][0])
    below = [float(negative_part_bracket(rule, float(x), edge)[1][0]) for x in floors]
    return np.array(below) / total if total > 0 else np.zeros(len(floors))


def extrapolate(value: float, parts: np.ndarray, samples: float, population: float) -> Estimate:
    """From a value on n samples and the values on G disjoint parts of them, the value over all N.

    The grouped jackknife (Quenouille 1956): parts of n/G samples have G times the bias and, each, G times the
    variance of the whole. Drawing without replacement leaves the share 1 − n/N of both: they fall like 1/n − 1/N.
    That is the bias of an eigenvalue that stands alone; at the edge of many, such as those that are zero over all the
    data, it is the size of what is drawn, the root of that. The interval covers both.
    """
    groups = len(parts)
    error = float(np.std(parts, ddof=1)) / math.sqrt(groups)
    share, moved = min(1.0, samples / population), float(np.mean(parts)) - value
    biases = [
        moved * (1 - share) ** order / max((groups - share) ** order - (1 - share) ** order, 1e-300) for order in ORDERS
    ]
    centres = [value - bias for bias in biases]
    quantile = float(stdtrit(groups - 1, 0.975))
    half = quantile * error * math.sqrt(1 - share)
    spread, bias = quantile * error * math.sqrt(samples), abs(moved) / (groups - 1) * samples
    return Estimate(
        min(value, *centres) - half,
        max(value, *centres) + half,
        _needed(spread, bias, TARGET * abs(value), population),
    )


def over_all(value: float, parts: np.ndarray, samples: float, population: float) -> Estimate:
    """As `extrapolate`, for a mean over samples, which has no bias; with what the parts' skewness adds.

    NaN where the parts are so skewed that the tail which makes them has not been seen.
    """
    (low, high), mean = mean_interval(parts), float(parts.mean())
    if not abs(skewness(parts)) <= SKEWED:
        return UNKNOWN
    left = math.sqrt(max(0.0, 1.0 - samples / population))
    below, above = (mean - low) * left, (high - mean) * left
    spread = max(mean - low, high - mean) * math.sqrt(samples)
    return Estimate(value - below, value + above, _needed(spread, 0.0, TARGET * abs(value), population))


def _needed(spread: float, bias: float, target: float, population: float) -> int:
    """Smallest m with spread/√m + bias/m <= target, at most the population."""
    if target <= 0 or not math.isfinite(spread + bias):
        return int(population)
    root = (spread + math.sqrt(spread**2 + 4 * bias * target)) / (2 * target)
    return int(min(population, max(1, math.ceil(root**2))))


def sampling_fields(
    objective: Objective,
    settings: SpectrumSettings,
    found: dict[str, Any],
    left_out: LeftOut,
    tell: Progress,
) -> tuple[dict[str, Any], int]:
    """Sampling error of the subset, merged into the intervals, and products spent."""
    floors, population = found["tau_absolute"], left_out.population
    parts = measure_parts(
        objective,
        settings.operator,
        floors,
        left_out.others,
        rtol=settings.rtol,
        seed=settings.seed,
        memory=settings.memory,
        progress=lambda done, total: tell("sampling error", done, total),
    )
    samples = float(settings.samples or 0)
    mean = float(np.mean(parts.trace))
    trace = over_all(mean, parts.trace, samples, population) if parts.typical else UNKNOWN
    top = extrapolate(
        float(found["top_value"][0]) if len(found["top_value"]) else math.nan, parts.top, samples, population
    )
    bottom = extrapolate(
        float(found["bottom_value"][0]) if len(found["bottom_value"]) else math.nan, parts.bottom, samples, population
    )
    if math.isnan(trace.low):  # a few samples make the trace: they make the outermost eigenvalues as well
        top = bottom = trace
    low, high = found["trace_low"] - (mean - trace.low), found["trace_high"] + (trace.high - mean)
    fields_found: dict[str, Any] = {
        "data_samples": population,
        "sampling_top_low": top.low,
        "sampling_top_high": top.high,
        "sampling_top_needed": top.needed,
        "sampling_bottom_low": bottom.low,
        "sampling_bottom_high": bottom.high,
        "sampling_bottom_needed": bottom.needed,
        "sampling_trace_low": low,
        "sampling_trace_high": high,
        "sampling_trace_needed": trace.needed,
        "trace_low": low,
        "trace_high": high,
    }
    widths = [extrapolate(float(np.mean(column)), column, samples, population) for column in parts.mass.T]
    halves = np.array([1.0 if math.isnan(trace.low) else (w.high - w.low) / 2 for w in widths])
    fields_found["negative_mass_low"] = np.maximum(found["negative_mass_low"] - halves, 0.0)
    fields_found["negative_mass_high"] = np.minimum(found["negative_mass_high"] + halves, 1.0)
    return fields_found, round(parts.products)
