"""How the cells of a slice are computed: candidates timed on a few cells, the fastest taken."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from landscape.curvature.operator import CurvatureOperator
from landscape.errors import UsageError
from landscape.problem.batches import length_of, tensors_of
from landscape.problem.objective import Objective
from landscape.runtime.arithmetic import is_out_of_memory
from landscape.runtime.memory import release_cached, synchronise, usable_bytes
from landscape.runtime.pieces import FORGETFUL, Pieces
from landscape.slices.cells import CellPlan, Surface, cell_values
from landscape.slices.settings import CURVED
from landscape.stack.build import unit_bytes

# Fewer cells than this are not worth a search: the rule is taken.
WORTH_TIMING = 200
# What one forward pass of the rule touches on a CPU.
CACHE_BYTES = 2**21
CHUNKS = (1024, 256, 4096, 64)
# Points a launch, the likeliest first, where launches cost more than arithmetic: on a CPU, seconds a cell below which
# that is so.
STACKS, SMALL_SECONDS = (64, 16, 256), 1.2e-4
# Floats that the stacked parameters may take; share of the free memory for their activations, and live copies; bytes
# of one activation of all points on a CPU (with more, pages that are touched for the first time make it erratic).
STACKED_NUMBERS, MEMORY_SHARE, LIVE, STACKED_BYTES = 2**25, 0.25, 4, 2**21
# Cells of a timing, and how often; the share of the job that all timings may take.
CELLS, REPETITIONS, SHARE = 2, 1, 0.02
# A candidate takes over where it needs less than this share of the time.
CLEARLY = 0.95
# Limits between two looks at the clock: seconds, and cells in place.
TILE_SECONDS, LONGEST_TILE, FEW = 0.1, 64, 8


def plan_cells(
    surface: Surface, cells: int, *, chunk: int | None = None, memory: int | None = None, wisdom: Pieces = FORGETFUL
) -> CellPlan:
    """A plan for a number of cells.

    Args:
        chunk: samples a forward pass, if the user says so: then nothing is timed, and bits repeat on every machine.
        wisdom: what was chosen for the same shapes on this machine before. Timings differ a little from run to run,
            and with the chunk the last bits of a sum; so that a repeated command gives the same bits, it does not
            choose again.
    """
    objective = surface.objective
    whole = max(1, max(length_of(b) for b in objective.batches))
    simple = objective.cuttable and not surface.recalibrate
    rule = min(whole, chunk or max(16, CACHE_BYTES // unit_bytes(objective)))
    fallback = CellPlan("in place", rule if objective.cuttable else whole, 1 if surface.recalibrate else FEW)
    if chunk is not None or cells < WORTH_TIMING or objective.device.type == "meta":
        return _curved(surface, fallback)
    key = _key(surface)
    known = _remembered(surface, wisdom.get(key))
    if known is not None:
        return known
    best, spent = _timed(surface, fallback), 0.0
    for candidate in _candidates(surface, fallback, whole, cells, simple, memory):
        if spent > SHARE * best.seconds * cells:
            break
        if candidate.strategy == "stacked" and not _launches_dominate(objective, best):
            continue
        if candidate.strategy == "in place" and not candidate.channels_last:
            candidate = replace(candidate, channels_last=best.channels_last)
        start = time.perf_counter()
        best = _faster(best, _timed(surface, candidate, best.seconds))
        spent += time.perf_counter() - start
    if not math.isfinite(best.seconds):
        raise UsageError("not even one cell at a time fits into memory", "give a smaller --batch-size")
    best = _curved(surface, _tiled(best))
    wisdom.put(key, best.as_dict())
    return best


def _remembered(surface: Surface, known: Any) -> CellPlan | None:
    """What was chosen before, if it can be carried out: the key does not know all that a loss does."""
    try:
        plan = CellPlan.from_dict(known) if known is not None else None
    except (TypeError, AttributeError):
        return None
    if plan is None or (plan.strategy == "in place" and not plan.channels_last):
        return plan
    where = [[0.0] * len(surface.directions)] * plan.points
    try:
        cell_values(cut(surface, plan), plan, where)
    except Exception:  # whatever vmap or `view` says of this network; the search finds what works
        return None
    return plan


def _candidates(
    surface: Surface, rule: CellPlan, whole: int, cells: int, simple: bool, memory: int | None
) -> Iterator[CellPlan]:
    """Other plans, the likelier ones first."""
    objective = surface.objective
    if any(len(shape) == 4 for shape in objective.layout.shapes):
        yield replace(rule, channels_last=True)
    stackable = simple and set(surface.metrics) <= {"loss", "accuracy"}
    stacks = [
        CellPlan("stacked", size, points)
        for points in (STACKS if stackable else ())
        if points * objective.layout.total <= STACKED_NUMBERS and points <= cells
        for size in _stack_chunks(objective, points, whole, memory)
    ]
    yield from stacks[:1]
    for size in (whole, *CHUNKS) if objective.cuttable else ():
        if size <= whole and size != rule.chunk:
            yield replace(rule, chunk=size)
    yield from stacks[1:]


def _tiled(plan: CellPlan) -> CellPlan:
    """So many cells in place one after the other that nothing but forward passes counts; their bits are the same."""
    if plan.strategy == "stacked" or not plan.seconds > 0:
        return plan
    return replace(plan, points=max(1, min(LONGEST_TILE, int(TILE_SECONDS / plan.seconds))))


def cut(surface: Surface, plan: CellPlan) -> Surface:
    """The surface with its data cut, and laid in memory, as the plan says."""
    objective = surface.objective.with_chunks(plan.chunk) if surface.objective.cuttable else surface.objective
    if plan.channels_last:
        objective = objective.with_layout(torch.channels_last)
    return replace(surface, objective=objective, channels_last=plan.channels_last)


def _launches_dominate(objective: Objective, best: CellPlan) -> bool:
    return objective.device.type == "cuda" or best.seconds < SMALL_SECONDS


def _stack_chunks(objective: Objective, points: int, whole: int, memory: int | None) -> list[int]:
    """Numbers of samples a launch to try for a number of points: all that memory allows, and fewer."""
    room = MEMORY_SHARE * usable_bytes(objective.device, memory) / (LIVE * points * unit_bytes(objective))
    most = min(whole, int(room))
    if objective.device.type == "cpu":
        most = min(most, STACKED_BYTES // (points * unit_bytes(objective)))
    return [most] if most >= min(whole, 64) else []


def _timed(surface: Surface, plan: CellPlan, to_beat: float = math.inf) -> CellPlan:
    """The plan with the seconds of a cell; infinite where it cannot be carried out. A first cell twice as slow as
    what is to beat, warm or not, ends it."""
    shown, axes = cut(surface, plan), len(surface.directions)
    shown = replace(shown, metrics=tuple(m for m in shown.metrics if m not in CURVED))
    count = plan.points if plan.strategy == "stacked" else CELLS
    where: Sequence[Sequence[float]] = [[1e-3 * i / count] * axes for i in range(count)]
    best = math.inf
    try:
        for _ in range(REPETITIONS + 1):
            start = time.perf_counter()
            cell_values(shown, plan, where)
            synchronise(surface.objective.device)
            best = min(best, (time.perf_counter() - start) / count)
            if best > 2 * to_beat and surface.objective.device.type == "cpu":
                break
    except Exception as error:
        # vmap knows not every operation, `view` not every layout, and a candidate may be too large: in place is
        # always there.
        if plan.strategy == "in place" and not plan.channels_last and not is_out_of_memory(error):
            raise
        release_cached(surface.objective.device)
        return replace(plan, seconds=math.inf)
    return replace(plan, seconds=best)


def _faster(one: CellPlan, other: CellPlan) -> CellPlan:
    """The other one only where it is clearly faster: timings of a few cells are uncertain by a few per cent."""
    return other if other.seconds < CLEARLY * one.seconds or math.isinf(one.seconds) else one


def _curved(surface: Surface, plan: CellPlan) -> CellPlan:
    """With the strategy of Hessian products settled, where there are any."""
    if not any(name in CURVED for name in surface.metrics):
        return plan
    chosen = CurvatureOperator(surface.objective, memory=surface.memory, expected_products=50).plan
    return replace(plan, curvature=(chosen.strategy, chosen.chunk))


def _key(surface: Surface) -> str:
    """Equal for what takes equally long: architecture, data shapes, arithmetic, metrics, machine."""
    objective = surface.objective
    device = objective.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    shapes = [[str(tuple(t.shape)) + str(t.dtype) for t in tensors_of(b)] for b in objective.batches[:1]]
    parts = (
        repr(objective.model),
        f"{getattr(objective.loss, '__module__', '')}.{getattr(objective.loss, '__qualname__', '')}",
        objective.cuttable,
        [str(tuple(s)) for s in objective.layout.shapes],
        shapes,
        len(objective.batches),
        str(objective.dtype),
        surface.metrics,
        surface.recalibrate,
        len(surface.directions),
        machine,
        torch.__version__,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
