"""Curvature operators over all data: V[n, b] -> [n, b], strategy and chunk chosen by timing and by memory."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from landscape.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.batches import length_of, share_of, tensors_of
from landscape.curvature import Product, builder_of, once_differentiable
from landscape.errors import ProblemError, UsageError
from landscape.memory import allocated, count_saved, keep_budget
from landscape.objective import Objective, gradients
from landscape.planning import THOROUGH_FROM, choose_chunk, timed
from landscape.problem import Batch

OPERATORS = ("hessian", "ggn", "residual")
STRATEGIES = ("kept", "linearize", "recompute")
# A job shorter than this (seconds) does not pay for importing and tracing torch.func.
LINEARIZE_PAYS_FROM = 20.0
# Linearisations keep 2.3–5.4 times the bytes of the gradient's graph.
LINEARIZED_BYTES = 3
# What to try, in this order, when a strategy is asked for.
ATTEMPTS = {
    "kept": (("kept", "reverse"), ("linearize", "forward"), ("recompute", "forward")),
    "linearize": (("linearize", "forward"), ("kept", "reverse"), ("recompute", "forward")),
    "recompute": (("recompute", "reverse"), ("recompute", "forward")),
}
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
            self._objective, seconds = choose_chunk(objective, batch_size, operator, thorough)
            self.plan = Plan(operator, "kept" if strategy == "auto" else strategy, gradient_seconds=seconds)
            working = 6 * self.n * self.dtype.itemsize
            self._budget = keep_budget(self.device, reserve + working, memory)
            self._settle(strategy, expected_products)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Product with a block V[n, b] (or a vector [n]) in the operator's dtype and on its device."""
        if vectors.dim() == 1:
            return self(vectors.unsqueeze(1)).squeeze(1)
        with strict_arithmetic():
            rows = vectors.T.clone(memory_format=torch.contiguous_format)
            start, out = 0, torch.empty_like(rows)
            while start < rows.shape[0]:
                part = self._safely(rows[start:])
                out[start : start + part.shape[0]] = part
                start += part.shape[0]
        self.products += rows.shape[0]
        return out.T

    def release(self) -> None:
        """Free kept graphs; the next product rebuilds them."""
        self._chunks = [None] * len(self._chunks)

    def _safely(self, rows: Tensor) -> Tensor:
        """Products of the first block of rows, which gets narrower when memory runs out."""
        while True:
            try:
                return self._apply(rows[: self.plan.block])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) and self.plan.block > 1 and self.plan.mode == "reverse":
                    return self._singly(rows, error)
                if not is_out_of_memory(error) or not self._shrink():
                    raise
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _singly(self, rows: Tensor, error: Exception) -> Tensor:
        """One product without a block, and no blocks from now on, if it is the block that fails (GroupNorm)."""
        before = self.plan
        self.plan = replace(before, block=1)
        self.release()
        try:
            product = self._apply(rows[:1])
        except Exception:
            self.plan = before
            raise error from None
        self._note(f"vector by vector: blocks of this width fail ({' '.join(str(error).split())[:120]})")
        return product

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
        return builder_of(plan.operator, plan.strategy, plan.mode, plan.block > 1)(self._objective, batch)

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
        self._refuse_once_differentiable()
        reasons: list[str] = []
        for name, mode in ATTEMPTS.get(strategy, ATTEMPTS["kept"]):
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

    def _refuse_once_differentiable(self) -> None:
        culprit = once_differentiable(self._objective.batch_sum(self._smallest())[0])
        if culprit is not None:
            raise ProblemError(
                f"this model cannot be differentiated twice: the backward of {culprit} is marked once_differentiable, "
                "and torch would take its second derivative for zero",
                "write its backward in differentiable operations and drop the mark",
            )

    def _try_first_chunk(self, trial: bool = False) -> str | None:
        """One product on one chunk: None if it works, else the reason; a trial does not shrink what works already."""
        while True:
            try:
                self._measure_first_chunk()
                return None
            except ProblemError:
                raise
            except (RuntimeError, NotImplementedError, MemoryError, AttributeError, AssertionError) as error:
                if is_out_of_memory(error) and not trial:
                    if self._shrink():
                        continue
                    raise
                return " ".join(str(error).split())[:200]

    def _largest(self) -> Batch:
        """The chunk to measure: its memory bounds the others'."""
        return max(self._objective.batches, key=length_of)

    def _smallest(self) -> Batch:
        return min(self._objective.batches, key=length_of)

    def _measure_first_chunk(self) -> None:
        batch = self._largest()
        held, product = self._built(batch)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(self.plan.block, self.n, dtype=self.dtype, generator=generator).to(self.device)
        probe = self._objective.layout.unflatten(rows)
        first, again = (torch.cat([t.flatten() for t in product(probe)]) for _ in range(2))  # this warms up, too
        if (first - again).norm() > 1e4 * torch.finfo(self.dtype).eps * first.norm():
            # torch 2.13: in-place operations overwrite what `linearize` keeps (attention, LSTM, GRU, GroupNorm)
            raise RuntimeError("the second product differs from the first: something overwrites what was kept")
        seconds = timed(lambda: product(probe), self.device) / self.plan.block
        share = share_of(self._objective.batches, batch)
        self.plan = replace(self.plan, product_seconds=seconds / share, bytes_per_chunk=held)

    def _built(self, batch: Batch) -> tuple[int, Product]:
        """The product of a chunk, and the bytes it keeps."""
        objective, before = self._objective, allocated(self.device)
        with count_saved((*objective.parameters, *tensors_of(batch))) as saved:
            if self.plan.mode == "reverse":
                product = self._build(batch)
                return max(saved.total, allocated(self.device) - before), product
            # torch.func refuses hooks: the gradient's graph is counted in its stead, and dropped
            gradients(objective.batch_sum(batch)[0], objective.parameters, create_graph=True)
        product = self._build(batch)
        return max(LINEARIZED_BYTES * saved.total, allocated(self.device) - before), product

    def _consider_linearize(self, expected_products: int) -> None:
        """On a long job, `linearize` is worth a try: 1.2–1.3 times faster on convolutions, at more memory."""
        current = self.plan
        cuda = self.device.type == "cuda"
        if not cuda and current.product_seconds * expected_products < LINEARIZE_PAYS_FROM:
            return
        self.plan = replace(current, strategy="linearize", mode="forward")
        reason = self._try_first_chunk(trial=True)
        fits = self.plan.bytes_per_chunk * self.plan.chunks <= self._budget
        if reason is not None or not fits or self.plan.product_seconds > 0.9 * current.product_seconds:
            self.plan = current
        if reason is not None:
            self._note(f"fell back: linearize (forward): {reason}")

    def _consider_blocks(self, expected_products: int) -> None:
        """Where the overhead of launches dominates (tiny nets, GPUs), several vectors a launch are cheaper."""
        chunk_seconds = self.plan.product_seconds * share_of(self._objective.batches, self._largest())
        if expected_products < 64 or (self.device.type == "cpu" and chunk_seconds > LAUNCH_BOUND):
            return
        best = self.plan
        for width in (8, 32):
            self.plan = replace(best, block=width)
            reason = self._try_first_chunk(trial=True)
            if reason is not None:
                best = replace(best, notes=(*best.notes, f"fell back to blocks of {best.block}: {reason}"))
                break
            if self.plan.product_seconds > 0.8 * best.product_seconds:
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
