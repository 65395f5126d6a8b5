"""Sampling error of a spectrum computed on a subset of the data, from disjoint parts of that subset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from landscape.batches import length_of, take
from landscape.errors import UsageError
from landscape.linalg.probes import sphere
from landscape.linalg.quadrature import gauss, negative_part_bracket, tridiagonalise
from landscape.objective import Objective
from landscape.operators import CurvatureOperator
from landscape.problem import Batch
from landscape.spectral.extremes import basis_room, find_extremes
from landscape.spectral.settings import Progress, SpectrumSettings

GROUPS = 5
PRODUCTS = 60
TRACE_PROBES = 8
MASS_STEPS = 40
# "How much data is enough" is answered for this relative half-width.
TARGET = 0.10


@dataclass(frozen=True)
class Estimate:
    """A quantity over all the data, 95 %, and the samples that would give a half-width of 10 %."""

    low: float
    high: float
    needed: int


@dataclass(frozen=True)
class Parts:
    """The quantities on each of the disjoint parts [g]; masses [g, f] for the floors asked for."""

    top: np.ndarray
    bottom: np.ndarray
    trace: np.ndarray
    mass: np.ndarray
    products: float


def disjoint_parts(batches: list[Batch], groups: int = GROUPS) -> list[list[Batch]]:
    """Disjoint parts of equal size of batches whose samples are in random order.

    Raises:
        UsageError: fewer samples than parts.
    """
    parts: list[list[Batch]] = [[] for _ in range(groups)]
    for batch in batches:
        edges = np.linspace(0, length_of(batch), groups + 1).astype(int)
        for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
            if stop > start:
                part.append(take(batch, slice(int(start), int(stop))))
    if not all(parts):
        raise UsageError(
            f"--samples leaves fewer than {groups} samples, too few for a sampling error", "raise --samples"
        )
    return parts


def measure_parts(
    objective: Objective,
    operator: str,
    floors: np.ndarray,
    *,
    rtol: float,
    seed: int,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Parts:
    """λ_max, λ_min, trace and negative masses on each part, with the same random vectors for all parts."""
    rows: list[tuple[float, float, float]] = []
    masses: list[np.ndarray] = []
    spent = 0.0
    parts = disjoint_parts(objective.batches)
    for index, batches in enumerate(parts):
        part = CurvatureOperator(
            objective.with_batches(batches), operator, memory=memory, expected_products=PRODUCTS + MASS_STEPS
        )
        rows.append(_ends_and_trace(part, rtol, seed, memory))
        masses.append(_masses(part, floors, seed))
        spent += part.products / len(parts)
        if progress is not None:
            progress(index + 1, len(parts))
    top, bottom, trace = np.array(rows).T
    return Parts(top, bottom, trace, np.array(masses), spent)


def _ends_and_trace(part: CurvatureOperator, rtol: float, seed: int, memory: int | None) -> tuple[float, float, float]:
    generator = torch.Generator().manual_seed(seed)
    found = find_extremes(
        part,
        top=1,
        bottom=1,
        rtol=max(rtol, 1e-2),
        tau=1e-4,
        noise=0.0,
        max_products=PRODUCTS,
        room=basis_room(part, memory, 2),
        generator=generator,
    )
    forms = []
    for _ in range(TRACE_PROBES):
        z = sphere(part.n, 1, generator=generator, dtype=part.dtype, device=part.device)
        forms.append(part.n * float((z * part(z)).sum(dtype=torch.float64)))
    ritz = found.ritz_values
    return float(ritz[-1]), float(ritz[0]), float(np.mean(forms))


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
    variance of the whole. Drawing without replacement leaves the share 1 − n/N of both.
    """
    groups = len(parts)
    error = float(np.std(parts, ddof=1)) / math.sqrt(groups)
    bias = (float(np.mean(parts)) - value) / (groups - 1)
    left = max(0.0, 1.0 - samples / population)
    quantile = float(student.ppf(0.975, groups - 1))
    centre = value - bias * left
    half = quantile * error * math.sqrt(left)
    return Estimate(
        min(value, centre) - half,
        max(value, centre) + half,
        _needed(quantile * error * math.sqrt(samples), abs(bias) * samples, TARGET * abs(value), population),
    )


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
    population: int,
    tell: Progress,
) -> tuple[dict[str, Any], int]:
    """Sampling error of the subset, merged into the intervals, and products spent."""
    floors = found["tau_absolute"]
    parts = measure_parts(
        objective,
        settings.operator,
        floors,
        rtol=settings.rtol,
        seed=settings.seed,
        memory=settings.memory,
        progress=lambda done, total: tell("sampling error", done, total),
    )
    samples = float(settings.samples or 0)
    top = extrapolate(
        float(found["top_value"][0]) if len(found["top_value"]) else math.nan, parts.top, samples, population
    )
    bottom = extrapolate(
        float(found["bottom_value"][0]) if len(found["bottom_value"]) else math.nan, parts.bottom, samples, population
    )
    trace = extrapolate(float(np.mean(parts.trace)), parts.trace, samples, population)
    half = (trace.high - trace.low) / 2
    fields_found: dict[str, Any] = {
        "data_samples": population,
        "sampling_top_low": top.low,
        "sampling_top_high": top.high,
        "sampling_top_needed": top.needed,
        "sampling_bottom_low": bottom.low,
        "sampling_bottom_high": bottom.high,
        "sampling_bottom_needed": bottom.needed,
        "sampling_trace_low": found["trace_low"] - half,
        "sampling_trace_high": found["trace_high"] + half,
        "sampling_trace_needed": trace.needed,
        "trace_low": found["trace_low"] - half,
        "trace_high": found["trace_high"] + half,
    }
    widths = [extrapolate(float(np.mean(column)), column, samples, population) for column in parts.mass.T]
    halves = np.array([(w.high - w.low) / 2 for w in widths])
    fields_found["negative_mass_low"] = np.maximum(found["negative_mass_low"] - halves, 0.0)
    fields_found["negative_mass_high"] = np.minimum(found["negative_mass_high"] + halves, 1.0)
    return fields_found, round(parts.products)
