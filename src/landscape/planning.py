"""Choosing the data chunk by timing real work on real data."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from landscape.batches import even_size, length_of, share_of, take
from landscape.curvature import Tensors, builder_of
from landscape.memory import synchronise
from landscape.objective import Objective, gradients
from landscape.problem import Batch

CHUNKS = (64, 256, 512, 1024, 4096)
# From this many products on, chunks are timed with products themselves; below, with gradients.
THOROUGH_FROM = 200
# Timing a call is repeated for so many seconds.
PATIENCE = 0.03


def choose_chunk(
    objective: Objective, batch_size: int | None, operator: str, thorough: bool
) -> tuple[Objective, float]:
    """Chunk size by timing growing chunks of real data; returns the cut objective and seconds per full gradient."""
    largest = max(objective.batches, key=length_of)
    total = sum(length_of(b) for b in objective.batches)
    if batch_size is not None:
        objective = objective.with_chunks(batch_size)
    elif objective.cuttable and length_of(largest) > CHUNKS[0]:
        sizes = [c for c in CHUNKS if c < length_of(largest)] + [length_of(largest)]
        best, best_rate, gradient_rate = sizes[0], float("inf"), float("inf")
        for size in sizes:
            piece = take(largest, slice(0, size))
            try:
                seconds = gradient_seconds(objective, piece)
                rate = (_product_seconds(objective, piece, operator) if thorough else seconds) / size
            except (RuntimeError, MemoryError):
                break  # out of memory, or no second derivative here: found out, with its reason, later
            # A larger chunk has to be clearly better: it costs memory.
            if rate < 0.97 * best_rate:
                best, best_rate, gradient_rate = size, rate, seconds / size
            if rate > 1.15 * best_rate or rate * size > 5.0:
                break
        return objective.with_chunks(even_size(length_of(largest), best)), gradient_rate * total
    first = objective.batches[0]
    return objective, gradient_seconds(objective, first) / share_of(objective.batches, first)


def _product_seconds(objective: Objective, batch: Batch, operator: str) -> float:
    product = builder_of(operator, "kept", "reverse", False)(objective, batch)
    probe = tuple(torch.ones_like(p).unsqueeze(0) for p in objective.parameters)
    return timed(lambda: product(probe), objective.device)


def gradient_seconds(objective: Objective, batch: Batch) -> float:
    def gradient() -> Tensors:
        return gradients(objective.batch_sum(batch)[0], objective.parameters)

    start = time.perf_counter()
    gradient()
    synchronise(objective.device)
    if time.perf_counter() - start > 1.0:  # no need to repeat what takes long
        return time.perf_counter() - start
    return timed(gradient, objective.device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Smallest wall time of two to six calls (short ones more often): noise only adds."""
    spent, calls = 0.0, 0
    best = float("inf")
    while calls < 2 or (calls < 6 and spent < PATIENCE):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        seconds = time.perf_counter() - start
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best
