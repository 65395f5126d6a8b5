"""The slice rows: a plane of 41 × 41 points of the loss over all data, ours and two peers, each at its best chunk."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.problems import Case
from benchmarks.timing import Effort, Timed, clocked
from landscape import slice as sliced
from landscape.problem.objective import build_objective
from landscape.slices.directions.direction import Around
from landscape.slices.directions.random import Options, make

POINTS = 41
CHUNKS = (64, 256, 1024)


def mean_loss(case: Case, chunk: int) -> Callable[[Any], float]:
    """The loss over all data as a peer's user would write it, in chunks, without graphs."""
    batches = case.batches(chunk)

    def loss(model: Any) -> float:
        with torch.no_grad():
            sums = [F.cross_entropy(model(x), y, reduction="sum") for x, y in batches]
        return float(sum(sums)) / case.samples

    return loss


def landscapes(case: Case, seed: int, *, chunk: int) -> np.ndarray:
    """loss-landscapes: filter-normalised random plane, the loss as a metric of its kind."""
    import loss_landscapes
    from loss_landscapes.metrics.metric import Metric

    loss = mean_loss(case, chunk)

    class Chunked(Metric):
        def __call__(self, wrapper: Any) -> float:
            return loss(wrapper.forward)

    torch.manual_seed(seed)
    metric = Chunked()
    return np.asarray(loss_landscapes.random_plane(case.copy(), metric, distance=1, steps=POINTS, deepcopy_model=True))


def landscaper(case: Case, seed: int, *, chunk: int) -> np.ndarray:
    """Landscaper along two of our random directions (its own generator of them stands elsewhere)."""
    torch.manual_seed(seed)
    objective = build_objective(case.problem(), device=case.device)
    chosen = [
        [t.clone() for t in objective.layout.unflatten(d.vector)]
        for d in make(Around(objective, seed=seed), Options(), 2)
    ]
    loss = mean_loss(case, chunk)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        values, _ = _compute()(
            case.copy(), None, chosen, lambda model, data: loss(model), steps=POINTS, distance=1.0, dim=2,
            device=case.device.type,
        )  # fmt: skip
    return np.asarray(values)


@functools.cache
def _compute() -> Callable[..., Any]:
    """Its module `compute` without the package's own imports, which want a compiler of topological libraries."""
    spec = importlib.util.find_spec("landscaper")
    assert spec is not None
    assert spec.origin is not None
    package = types.ModuleType("landscaper")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["landscaper"] = package
    from landscaper.compute import compute_loss_landscape

    return compute_loss_landscape  # type: ignore[no-any-return]


def ours(case: Case, seed: int) -> np.ndarray:
    """`landscape.slice` as it is: directions, self-check and timing of chunks included."""
    return sliced(case.problem(), points=(POINTS, POINTS), seed=seed, device=case.device.type).loss


def slice_rows(case: Case, effort: Effort) -> list[Timed]:
    """All three in turn; the error is that of the cell that should be the checkpoint."""
    sizes = [c for c in (*CHUNKS, case.samples) if c <= case.samples]
    chunk = _fastest(case, sizes)
    methods: dict[str, Callable[[int], np.ndarray]] = {
        "ours, as it is": functools.partial(ours, case),
        "loss-landscapes": functools.partial(landscapes, case, chunk=chunk),
        "Landscaper": functools.partial(landscaper, case, chunk=chunk),
    }
    rows = {who: Timed(who, {} if who.startswith("ours") else {"chunk": chunk}, error=0.0) for who in methods}
    exact = build_objective(case.problem(), device=case.device).value()
    for run in methods.values():
        run(0)
    for seed in range(effort.repetitions):
        for who, run in methods.items():
            seconds, surface = clocked(functools.partial(run, seed))
            rows[who].seconds.append(seconds)
            centre = surface[POINTS // 2, POINTS // 2]
            rows[who].error = max(rows[who].error, abs(float(centre) - exact) / abs(exact))
    for row in rows.values():
        row.correct = row.error < 1e-4
    return list(rows.values())


def _fastest(case: Case, sizes: list[int]) -> int:
    model = case.copy()
    best = dict.fromkeys(sizes, float("inf"))
    for _ in range(6):
        for size in sizes:
            best[size] = min(best[size], clocked(functools.partial(mean_loss(case, size), model))[0])
    return min(best, key=lambda size: best[size])
