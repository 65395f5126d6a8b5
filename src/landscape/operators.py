"""Curvature operators over all data: V[n, b] -> [n, b], strategy and chunk chosen by timing and by memory."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from landscape.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.batches import length_of, take, tensors_of
from landscape.curvature import (
    Builder,
    Product,
    Tensors,
    difference,
    ggn_linearized,
    ggn_reverse,
    hessian_forward,
    hessian_linearized,
    hessian_reverse,
)
from landscape.errors import ProblemError, UsageError
from landscape.memory import count_saved, usable_bytes
from landscape.objective import Objective, gradients
from landscape.problem import Batch

OPERATORS = ("hessian", "ggn", "residual")
STRATEGIES = ("kept", "linearize", "recompute")
# A job shorter than this (seconds) does not pay for importing and tracing torch.func.
LINEARIZE_PAYS_FROM = 20.0
CHUNKS = (64, 256, 1024, 4096)
# From this many products on, chunks are timed with products themselves; below, with gradients.
THOROUGH_FROM = 200
# On a CPU several vectors a launch pay only where the launches themselves cost most of the time (seconds).
LAUNCH_BOUND = 3e-3


@dataclass(frozen=True)
class Plan:
    """What an operator chose, and why; stored with the result.

    Attributes:
        operator: hessian | ggn | residual.
        strategy: kept | linearize | recompute.
        mode: reverse (double backward) or forward (jvp of grad).
        chunk: samples in the largest chunk.
        chunks: number of chunks; kept_chunks: how many of them keep their graph.
        block: vectors taken in one launch.
        bytes_per_chunk: what one kept chunk holds.
        gradient_seconds, product_seconds: measured, over all data (NaN: not measured).
        notes: fall-backs and halvings, in words.
    """

    operator: str
    strategy: str
    mode: str = "reverse"
    chunk: int = 0
    chunks: int = 0
    kept_chunks: int = 0
    block: int = 1
    bytes_per_chunk: int = 0
    gradient_seconds: float = float("nan")
    product_seconds: float = float("nan")
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for files."""
        return asdict(self)


def _builder(operator: str, strategy: str, mode: str, batched: bool) -> Builder:
    if operator == "residual":
        first, second = (_builder(o, strategy, mode, batched) for o in ("hessian", "ggn"))
        return lambda objective, batch: difference(first(objective, batch), second(objective, batch))
    if strategy == "linearize" or mode == "forward":
        if operator == "ggn":
            return ggn_linearized
        return hessian_linearized if strategy == "linearize" else hessian_forward
    reverse = hessian_reverse if operator == "hessian" else ggn_reverse
    return lambda objective, batch: reverse(objective, batch, batched)


class CurvatureOperator:
    """A symmetric curvature operator of an objective, over all its data, weight decay included.

    Args:
        objective: loss, point and data; not changed.
        operator: "hessian", "ggn" (weight decay counts as part of it) or "residual" = H − GGN.
        strategy: "auto", "kept", "linearize" or "recompute".
        batch_size: samples a chunk; None lets timing decide (batches of a custom loss are then left as they are).
        memory: limit in bytes for the whole process; None: a share of what is free.
        reserve: bytes that the caller will need beside the operator (a Krylov basis).
        expected_products: how many products will be asked for; decides what planning is worth.

    Attributes:
        n: dimension. layout: of the flat vectors. products: spent so far, one per vector. plan: see `Plan`.

    Raises:
        ProblemError: no strategy can differentiate this model twice; the reasons are listed.
    """

    def __init__(
        self,
        objective: Objective,
        operator: str = "hessian",
        *,
        strategy: str = "auto",
        batch_size: int | None = None,
        memory: int | None = None,
        reserve: int = 0,
        expected_products: int = 100,
    ) -> None:
        if operator not in OPERATORS:
            raise UsageError(f"there is no operator {operator!r}", f"choose one of {', '.join(OPERATORS)}")
        if strategy not in ("auto", *STRATEGIES):
            raise UsageError(f"there is no strategy {strategy!r}", f"choose one of auto, {', '.join(STRATEGIES)}")
        self.layout = objective.layout
        self.n = objective.layout.total
        self.dtype, self.device = objective.dtype, objective.device
        self.products = 0
        self._shift = objective.weight_decay if operator != "residual" else 0.0
        self._chunks: list[Product | None] = []
        with strict_arithmetic():
            thorough = expected_products >= THOROUGH_FROM
            self._objective, seconds = _choose_chunk(objective, batch_size, operator, thorough)
            self.plan = Plan(operator, "kept" if strategy == "auto" else strategy, gradient_seconds=seconds)
            self._budget = _keep_budget(objective, memory, reserve)
            self._settle(strategy, expected_products)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Product with a block V[n, b] (or a vector [n]) in the operator's dtype and on its device."""
        if vectors.dim() == 1:
            return self(vectors.unsqueeze(1)).squeeze(1)
        rows = vectors.T.contiguous()
        out = torch.empty_like(rows)
        with strict_arithmetic():
            for start in range(0, rows.shape[0], self.plan.block):
                stop = start + self.plan.block
                out[start:stop] = self._safely(rows[start:stop])
        self.products += rows.shape[0]
        return out.T

    def release(self) -> None:
        """Free kept graphs; the next product rebuilds them."""
        self._chunks = [None] * len(self._chunks)

    def _safely(self, rows: Tensor) -> Tensor:
        while True:
            try:
                return self._apply(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._shrink():
                    raise
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _apply(self, rows: Tensor) -> Tensor:
        layout = self._objective.layout
        parts = layout.unflatten(rows)
        sums = [torch.zeros_like(p) for p in parts]
        for index, batch in enumerate(self._objective.batches):
            for total, term in zip(sums, self._chunk(index, batch)(parts), strict=True):
                total += term
        result = torch.cat([s.reshape(rows.shape[0], -1) for s in sums], dim=1).div_(self._objective.count)
        return result.add_(rows, alpha=self._shift) if self._shift else result

    def _chunk(self, index: int, batch: Batch) -> Product:
        kept = self._chunks[index]
        if kept is not None:
            return kept
        product = self._build(batch)
        if index < self.plan.kept_chunks:
            self._chunks[index] = product
        return product

    def _build(self, batch: Batch) -> Product:
        plan = self.plan
        return _builder(plan.operator, plan.strategy, plan.mode, plan.block > 1)(self._objective, batch)

    def _note(self, text: str) -> None:
        self.plan = replace(self.plan, notes=(*self.plan.notes, text))

    def _shrink(self) -> bool:
        """After running out of memory: keep fewer graphs, then halve block, then chunk; False when nothing is left."""
        plan = self.plan
        if plan.kept_chunks:
            kept = plan.kept_chunks // 2
            self.plan = replace(plan, kept_chunks=kept, strategy=plan.strategy if kept else "recompute")
            self._note(f"out of memory: {kept} chunks kept instead of {plan.kept_chunks}")
        elif plan.block > 1:
            self.plan = replace(plan, block=plan.block // 2)
            self._note(f"out of memory: blocks of {plan.block // 2} vectors instead of {plan.block}")
            self.release()
        elif plan.chunk > 1 and self._objective.cuttable:
            self._objective = self._objective.with_chunks(plan.chunk // 2)
            self._describe()
            self._note(f"out of memory: chunks of {plan.chunk // 2} samples instead of {plan.chunk}")
        else:
            return False
        self._chunks = [
            c if i < self.plan.kept_chunks else None for i, c in enumerate(self._chunks[: len(self._objective.batches)])
        ]
        self._chunks += [None] * (len(self._objective.batches) - len(self._chunks))
        return True

    def _describe(self) -> None:
        batches = self._objective.batches
        self.plan = replace(
            self.plan, chunk=max(max((length_of(b) for b in batches), default=0), 1), chunks=len(batches)
        )
        self._chunks = [None] * len(batches)

    def _settle(self, strategy: str, expected_products: int) -> None:
        """Find a strategy that works on the first chunk, then what is fastest, then how much to keep."""
        self._describe()
        attempts = [("kept", "reverse"), ("linearize", "forward"), ("recompute", "forward")]
        if strategy != "auto":
            attempts = [a for a in attempts if a[0] == strategy] or [("recompute", "reverse")]
            attempts += [("recompute", "reverse")] if strategy == "recompute" else []
            attempts = sorted(set(attempts), key=lambda a: a[1], reverse=True)
        reasons: list[str] = []
        for name, mode in attempts:
            self.plan = replace(self.plan, strategy=name, mode=mode)
            reason = self._try_first_chunk()
            if reason is None:
                break
            reasons.append(f"{name} ({mode}): {reason}")
        else:
            raise ProblemError(
                "this model cannot be differentiated twice: " + "; ".join(reasons),
                "run `landscape doctor` on the checkpoint; it names the layer",
            )
        for reason in reasons:
            self._note(f"fell back: {reason}")
        if self.plan.strategy == "kept" and strategy == "auto":
            self._consider_linearize(expected_products)
            self._consider_blocks(expected_products)
        self._keep_what_fits()

    def _try_first_chunk(self) -> str | None:
        """One product on the first chunk: None if it works, else the reason; measures time and kept bytes."""
        while True:
            try:
                self._measure_first_chunk()
                return None
            except ProblemError:
                raise
            except (RuntimeError, NotImplementedError, MemoryError, AttributeError, AssertionError) as error:
                if is_out_of_memory(error) and self._shrink():
                    continue
                if is_out_of_memory(error):
                    raise
                return " ".join(str(error).split())[:200]

    def _measure_first_chunk(self) -> None:
        batch = self._objective.batches[0]
        before = _allocated(self.device)
        ignore = (*self._objective.parameters, *tensors_of(batch))
        with count_saved(ignore) as saved:
            product = self._build(batch)
        held = max(saved.total, _allocated(self.device) - before)
        if self.plan.mode == "forward":
            held *= 3  # linearisations keep 2.3–5.4 times the graph, and no hook counts them
        probe = self._objective.layout.unflatten(
            torch.ones(self.plan.block, self.n, dtype=self.dtype, device=self.device)
        )
        product(probe)  # the first call warms up
        seconds = _timed(lambda: product(probe), self.device, 2) / self.plan.block
        share = _share(self._objective, batch)
        self.plan = replace(self.plan, product_seconds=seconds / share, bytes_per_chunk=held)

    def _consider_linearize(self, expected_products: int) -> None:
        """On a long job, `linearize` is worth a try: 1.2–1.3 times faster on convolutions, at more memory."""
        current = self.plan
        cuda = self.device.type == "cuda"
        if not cuda and current.product_seconds * expected_products < LINEARIZE_PAYS_FROM:
            return
        self.plan = replace(current, strategy="linearize", mode="forward")
        reason = self._try_first_chunk()
        fits = self.plan.bytes_per_chunk * self.plan.chunks <= self._budget
        if reason is not None or not fits or self.plan.product_seconds > 0.9 * current.product_seconds:
            self.plan = current

    def _consider_blocks(self, expected_products: int) -> None:
        """Where the overhead of launches dominates (tiny nets, GPUs), several vectors a launch are cheaper."""
        chunk_seconds = self.plan.product_seconds * _share(self._objective, self._objective.batches[0])
        if expected_products < 64 or (self.device.type == "cpu" and chunk_seconds > LAUNCH_BOUND):
            return
        best = self.plan
        for width in (8, 32):
            self.plan = replace(best, block=width)
            if self._try_first_chunk() is not None or self.plan.product_seconds > 0.8 * best.product_seconds:
                break
            best = self.plan
        self.plan = best

    def _keep_what_fits(self) -> None:
        """Keep as many chunks' graphs as the memory allows; the others are rebuilt in every product."""
        plan = self.plan
        if plan.strategy == "recompute":
            return
        fit = int(self._budget // max(plan.bytes_per_chunk, 1))
        kept = min(plan.chunks, fit)
        self.plan = replace(plan, kept_chunks=kept, strategy=plan.strategy if kept else "recompute")
        if kept < plan.chunks:
            needed = plan.bytes_per_chunk * plan.chunks / 1e9
            self._note(
                f"{kept} of {plan.chunks} chunks keep their graph ({needed:.2g} GB would hold all, "
                f"{self._budget / 1e9:.2g} GB may be used); the others are rebuilt in every product"
            )


def _keep_budget(objective: Objective, memory: int | None, reserve: int) -> float:
    """Bytes for kept graphs: what is usable, less the caller's reserve and a working set, at least a tenth."""
    usable = usable_bytes(objective.device, memory)
    working = 6 * objective.layout.total * objective.dtype.itemsize
    return max(0.1 * usable, usable - reserve - working)


def _share(objective: Objective, batch: Batch) -> float:
    """The part of all data that a batch holds."""
    lengths = [length_of(b) for b in objective.batches]
    if min(lengths) == 0:
        return 1.0 / len(lengths)
    return length_of(batch) / sum(lengths)


def _choose_chunk(
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
                seconds = _gradient_seconds(objective, piece)
                rate = (_product_seconds(objective, piece, operator) if thorough else seconds) / size
            except (RuntimeError, MemoryError):
                break  # out of memory, or no second derivative here: found out, with its reason, later
            # A larger chunk has to be clearly better: it costs memory.
            if rate < 0.97 * best_rate:
                best, best_rate, gradient_rate = size, rate, seconds / size
            if rate > 1.15 * best_rate or rate * size > 5.0:
                break
        return objective.with_chunks(_even(length_of(largest), best)), gradient_rate * total
    first = objective.batches[0]
    return objective, _gradient_seconds(objective, first) / _share(objective, first)


def _even(total: int, size: int) -> int:
    """Chunk size near `size` that cuts `total` evenly, so that no small remainder wastes a launch."""
    pieces = max(1, round(total / size))
    return -(-total // pieces)


def _product_seconds(objective: Objective, batch: Batch, operator: str) -> float:
    product = _builder(operator, "kept", "reverse", False)(objective, batch)
    probe = tuple(torch.ones_like(p).unsqueeze(0) for p in objective.parameters)
    return _timed(lambda: product(probe), objective.device, 2)


def _gradient_seconds(objective: Objective, batch: Batch) -> float:
    def gradient() -> Tensors:
        return gradients(objective.batch_sum(batch)[0], objective.parameters)

    start = time.perf_counter()
    gradient()
    _synchronise(objective.device)
    if time.perf_counter() - start > 1.0:  # no need to repeat what takes long
        return time.perf_counter() - start
    return _timed(gradient, objective.device, 2)


def _timed(function: Any, device: torch.device, repeats: int) -> float:
    """Smallest wall time of a few calls: noise only adds."""
    best = float("inf")
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        function()
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
