"""Curvature operators over all data: V[n, b] -> [n, b], as planned, and narrower when memory runs out."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from landscape.curvature.plan import OPERATORS, STRATEGIES, Plan, Request
from landscape.curvature.planner import make_plan
from landscape.curvature.products import Product, builder_of
from landscape.problem.batches import length_of
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.runtime.memory import keep_budget, release_cached, synchronise

__all__ = ["OPERATORS", "STRATEGIES", "CurvatureOperator", "Plan"]


# Calls whose time is taken; what they show is better than what planning can, and comes with the work itself.
PACED = 8


class CurvatureOperator:
    """A symmetric curvature operator of an objective, over all its data, weight decay included.

    Args:
        objective: loss, point and data; not changed.
        operator: "hessian", "ggn" (weight decay counts as part of it) or "residual" = H − GGN.
        strategy: "auto", "kept", "linearize" or "recompute".
        batch_size: samples a chunk; None: chosen (batches of a custom loss are then left as they are).
        block: vectors a launch; None: chosen.
        memory: limit in bytes for the whole process; None: a share of what is free.
        reserve: bytes that the caller will need beside the operator (a Krylov basis).
        expected_products: how many products will be asked for; decides what planning is worth.
        widest: most vectors that will be asked for at once.

    Attributes:
        n: dimension. layout: of the flat vectors. products: spent so far, one per vector. plan: see `Plan`.
        width: vectors to ask for at once, the same for all processes that share the data.

    Raises:
        ProblemError: no strategy can differentiate this model twice; the reasons are listed.
        UsageError: an operator or strategy that does not exist.
    """

    def __init__(
        self,
        objective: Objective,
        operator: str = "hessian",
        *,
        strategy: str = "auto",
        batch_size: int | None = None,
        block: int | None = None,
        memory: int | None = None,
        reserve: int = 0,
        expected_products: int = 100,
        widest: int = 64,
    ) -> None:
        request = Request(operator, strategy, batch_size, block, expected_products, widest)
        self.layout = objective.layout
        self.n = objective.layout.total
        self.dtype, self.device = objective.dtype, objective.device
        self.products = 0
        self._shift = objective.weight_decay if operator != "residual" else 0.0
        working = 6 * self.n * self.dtype.itemsize
        request = replace(request, budget=keep_budget(self.device, reserve + working, memory))
        self._ranks, self._tf32 = objective.ranks, objective.arithmetic == "tf32"
        with strict_arithmetic(self._tf32):
            planned = make_plan(objective, request)
        self.plan, self._objective = planned.plan, planned.objective
        self.width = self.agreed(self.plan.block)
        self._chunks: list[Product | None] = [None] * self.plan.chunks
        self._pace: list[float] = []

    @property
    def objective(self) -> Objective:
        """What it is the curvature of, in the chunks of the plan."""
        return self._objective

    @property
    def pace(self) -> float:
        """Seconds a vector, as the first calls took (the very first one builds the graphs); planning's before that."""
        return median(self._pace[1:]) if len(self._pace) > 1 else self.plan.product_seconds

    def __call__(self, vectors: Tensor) -> Tensor:
        """Product with a block V[n, b] (or a vector [n]) in the operator's dtype and on its device."""
        if vectors.dim() == 1:
            return self(vectors.unsqueeze(1)).squeeze(1)
        if vectors.shape[1] == 0:
            return torch.empty_like(vectors)
        with strict_arithmetic(self._tf32):
            rows = vectors.T
            # a tensor made in inference mode could not enter a graph
            rows = rows.clone(memory_format=torch.contiguous_format) if rows.is_inference() else rows.contiguous()
            parts, done = [], 0
            begin = time.perf_counter()
            while done < rows.shape[0]:
                parts.append(self._safely(rows[done:]))
                done += parts[-1].shape[0]
            sums = parts[0] if len(parts) == 1 else torch.cat(parts)
            result = self._ranks.sum(sums).div_(self._objective.count)
        if len(self._pace) < PACED:
            synchronise(self.device)
            self._pace.append((time.perf_counter() - begin) / rows.shape[0])
        self.products += rows.shape[0]
        return (result.add_(rows, alpha=self._shift) if self._shift else result).T

    def uncounted(self, vectors: Tensor) -> Tensor:
        """A product that measures the operator itself, and is none of those that a job may spend."""
        spent = self.products
        found = self(vectors)
        self.products = spent
        return found

    def agreed(self, number: int) -> int:
        """The smallest of the numbers that the processes sharing the data propose."""
        return int(self._ranks.smallest(number))

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
            release_cached(self.device)

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
        """Products of rows [b, n] with the sum over this process's data."""
        layout = self._objective.layout
        parts = layout.unflatten(rows)
        result: Tensor | None = None
        for index, batch in enumerate(self._objective.batches):
            terms = self._chunk(index, batch)(parts)
            if result is None:
                result = torch.cat([t.detach().reshape(rows.shape[0], -1) for t in terms], dim=1)
                sums = layout.unflatten(result)
            else:
                for total, term in zip(sums, terms, strict=True):
                    total += term.detach()  # parameters that are not selected may require gradients
        assert result is not None
        return result

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
