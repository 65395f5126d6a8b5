"""Choosing how products are taken (strategy, chunk, block) by timing real work, within a small share of the job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from landscape.curvature.agreement import Referee, RefusedError, require_separable
from landscape.curvature.plan import Plan, Request
from landscape.curvature.products import Product, Tensors, builder_of, require_differentiable
from landscape.errors import LandscapeError, ProblemError
from landscape.problem.batches import even_size, length_of, share_of, take, tensors_of
from landscape.problem.graph import gradients, saved_bytes
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory
from landscape.runtime.memory import allocated, count_saved, release_cached, synchronise

# What choosing may cost, as a share of the products to come.
SHARE = 0.05
# A job shorter than this (seconds of products, judged by a few samples) takes the first way that works, as it is.
WORTH_PLANNING = 2.0
# A job shorter than this does not pay for importing and tracing torch.func, which gains 1.2-1.3 times on a CPU and
# 2-20 times on a GPU.
LINEARIZE_PAYS_FROM = {"cpu": 20.0, "cuda": 3.0}
# Linearisations keep 2.3–5.4 times the bytes of the gradient's graph.
LINEARIZED_BYTES = 3
# Tracing needs a part of PyTorch that takes some 150 MB to import, and several graphs at once.
LINEARIZE_ROOM = 5e8
# The graph of a chunk should stay in a CPU's cache, and fill a GPU; a chunk should also outweigh the parameters.
CHUNK_BYTES = {"cpu": 8e6, "cuda": 1e9}
PARAMETER_SHARE = 4
# The share of the budget for a graph: what a product has alive beside a chunk's graph is several times as much.
CHUNK_SHARE = 1 / 8
FEWEST, PIECE = 32, 64
# On a CPU several vectors a launch pay only where the launches themselves cost most of the time (seconds).
LAUNCH_BOUND = 3e-3
WIDTHS = (4, 8, 16, 32, 64)
# What to try, in this order, when a strategy is asked for.
ATTEMPTS = {
    "kept": (("kept", "reverse"), ("linearize", "forward"), ("recompute", "forward")),
    "linearize": (("linearize", "forward"), ("kept", "reverse"), ("recompute", "forward")),
    "recompute": (("recompute", "reverse"), ("recompute", "forward")),
}
# Timing a call is repeated for this many seconds, at most.
PATIENCE = 0.05


@dataclass(frozen=True)
class Way:
    """A way of taking products."""

    strategy: str
    mode: str
    block: int = 1


@dataclass(frozen=True)
class Trial:
    """A way tried on the largest chunk.

    Attributes:
        seconds: a vector, over all data. building: seconds to build all chunks' graphs once.
        held: bytes that the chunk keeps.
    """

    way: Way
    seconds: float
    building: float
    held: int


@dataclass(frozen=True)
class Planned:
    """The plan, and the objective cut as planned."""

    plan: Plan
    objective: Objective


def make_plan(objective: Objective, request: Request) -> Planned:
    """The fastest way that works on this model and fits into memory, as far as finding it is worth its time.

    Raises:
        ProblemError: no way can differentiate this model twice; the reasons are listed.
    """
    return _Planner(objective, request).run()


class _Planner:
    def __init__(self, objective: Objective, request: Request) -> None:
        self.whole, self.objective, self.request = objective, objective, request
        self.device = objective.device
        self.notes: list[str] = []
        self.gradient_seconds = float("nan")
        self.job = 0.0  # seconds of all products to come, taken the first way that works
        self.piece = PIECE
        self.by_block: dict[int, float] = {}
        self.begin = time.perf_counter()
        self.referee = Referee(objective, request.operator)

    def run(self) -> Planned:
        piece = take(min(self.whole.batches, key=length_of), slice(0, PIECE if self.whole.cuttable else None))
        require_differentiable(self.whole.batch_sum(piece)[0])
        if self.request.batch_size is not None:
            if not self.whole.cuttable:
                require_separable(self.whole, self.request.batch_size)
            self.objective = self.whole.with_chunks(self.request.batch_size)
        best = self._first_that_works()
        self.job = best.seconds * self.request.expected_products
        if self.job > WORTH_PLANNING:
            best = self._improved(best.way)
        best, kept = self._fitted(best)
        batches = self.objective.batches
        plan = Plan(
            operator=self.request.operator,
            strategy=best.way.strategy if kept else "recompute",
            mode=best.way.mode,
            chunk=max(self._longest(self.objective), 1),
            chunks=len(batches),
            kept_chunks=kept,
            block=best.way.block,
            bytes_per_chunk=best.held,
            gradient_seconds=self.gradient_seconds,
            product_seconds=best.seconds,
            seconds_by_block=tuple(sorted(self.by_block.items())),
            planning_seconds=time.perf_counter() - self.begin,
            notes=tuple(self.notes),
        )
        return Planned(plan, self.objective)

    # ---- what is tried ------------------------------------------------------------------------------------------

    def _first_that_works(self) -> Trial:
        """The first way of the list that takes a product of a few samples, and the chunk that suits its memory."""
        reasons: list[str] = []
        for strategy, mode in ATTEMPTS.get(self.request.strategy, ATTEMPTS["kept"]):
            way: Way | None = Way(strategy, mode, self.request.block or 1)
            while way is not None:
                try:
                    trial = self._on_a_piece(way)
                    self.notes += [f"fell back: {reason}" for reason in reasons]
                    return trial
                except LandscapeError:
                    raise
                except Exception as error:  # whatever tracing and differentiating a user's network raises
                    if not is_out_of_memory(error):
                        reasons.append(f"{strategy} ({mode}): {_in_short(error)}")
                        break
                    way = self._smaller(way)
                    if way is None:
                        raise
                release_cached(self.device)
        raise ProblemError(
            "this model cannot be differentiated twice: " + "; ".join(reasons),
            "run `landscape doctor` on the checkpoint; it names the layer",
        )

    def _on_a_piece(self, way: Way) -> Trial:
        """A trial on a few samples, as of a whole chunk; without a chunk size given, memory decides it."""
        batch = self._largest()
        if not self.whole.cuttable or length_of(batch) <= self.piece:
            return self._trial(way, batch, patient=False)
        trial = self._trial(way, take(batch, slice(0, self.piece)), patient=False)
        held = trial.held / self.piece
        if self.request.batch_size is None:
            self.objective = self.whole.with_chunks(self._likely_chunk(held))
        return replace(trial, held=round(held * self._longest(self.objective)))

    def _likely_chunk(self, held: float) -> int:
        """The chunk whose graph, at `held` bytes a sample, is as large as suits the device."""
        length = self._longest(self.whole)
        parameters = self.whole.layout.total * self.whole.dtype.itemsize
        wanted = max(CHUNK_BYTES.get(self.device.type, 8e6), PARAMETER_SHARE * parameters)
        return even_size(length, min(length, max(FEWEST, int(wanted / max(held, 1.0)))))

    def _smaller(self, way: Way) -> Way | None:
        """After running out of memory: half the block, else half the samples; None when nothing is left."""
        if way.block > 1:
            self.notes.append(f"out of memory: blocks of {way.block // 2} vectors instead of {way.block}")
            return replace(way, block=way.block // 2)
        chunk = min(self._longest(self.objective), self.piece)
        if chunk > 1 and self.whole.cuttable:
            self.piece = chunk // 2
            self.objective = self.whole.with_chunks(self.piece)
            self.notes.append(f"out of memory: chunks of {chunk // 2} samples instead of {chunk}")
            return way
        return None

    def _improved(self, way: Way) -> Trial:
        """Measured on whole chunks; other ways, chunks and blocks, as long as they are worth their time."""
        best = self._tried(way)
        while best is None and self.whole.cuttable and self._longest(self.objective) > self.piece:
            self.objective = self.whole.with_chunks(max(self.piece, self._longest(self.objective) // 2))
            best = self._tried(way)
        if best is None:  # it has worked on a piece: there is no memory for more
            return self._on_a_piece(way)
        self.gradient_seconds = self._gradient_seconds()
        self.job = best.seconds * self.request.expected_products
        if self.request.strategy == "auto" and way.strategy == "kept":
            best = self._linearized(best)
        if self.request.batch_size is None and self.whole.cuttable:
            best = self._climbed(best)
        return self._widened(best) if self.request.block is None else best

    def _linearized(self, best: Trial) -> Trial:
        """`linearize` is 1.2–1.3 times faster on convolutions, and what blocks are made of on a GPU."""
        if self.job < LINEARIZE_PAYS_FROM.get(self.device.type, 20.0) or self.request.budget < LINEARIZE_ROOM:
            return best
        trial = self._tried(Way("linearize", "forward", best.way.block), "fell back: linearize (forward)")
        if trial is not None and self.referee.reverse:
            self._tell(f"refused: {best.way.strategy} ({best.way.mode}): {self.referee.reverse}")
            return trial
        if trial is None or trial.held * len(self.objective.batches) > self.request.budget:
            return best
        blocks = self.device.type == "cuda" and self.request.widest > 1 and self.request.block is None
        return trial if trial.seconds < (2.0 if blocks else 0.9) * best.seconds else best

    def _climbed(self, best: Trial) -> Trial:
        """Chunks twice as large, else half as large, for as long as that is faster."""
        largest = self._longest(self.whole)
        for factor in (2.0, 0.5):
            moved = False
            while True:
                current = self._longest(self.objective)
                size = even_size(largest, min(largest, max(FEWEST, round(factor * current))))
                if (size - current) * (factor - 1) <= 0 or not self._affordable(4 * best.seconds * size / largest):
                    break
                if best.held * size / current > CHUNK_SHARE * self.request.budget:
                    break
                before, self.objective = self.objective, self.whole.with_chunks(size)
                trial = self._tried(best.way)
                # A larger chunk has to be clearly better: it costs memory.
                if trial is None or trial.seconds > (0.97 if factor > 1 else 1.0) * best.seconds:
                    self.objective = before
                    break
                best, moved = trial, True
            if moved:
                break
        return best

    def _widened(self, best: Trial) -> Trial:
        """Where launches cost most of the time (tiny nets, GPUs), several vectors a launch are cheaper."""
        share = share_of(self.objective.batches, self._largest())
        if self.device.type == "cpu" and best.seconds * share > LAUNCH_BOUND:
            return best
        self.by_block = {best.way.block: best.seconds}
        for width in WIDTHS:
            if width > self.request.widest or not self._affordable(2 * width * best.seconds * share):
                break
            trial = self._tried(replace(best.way, block=width), f"fell back to blocks of {best.way.block}")
            if trial is not None:
                self.by_block[width] = trial.seconds
            if trial is None or trial.seconds > 0.9 * best.seconds:
                break
            best = trial
        return best

    def _fitted(self, best: Trial) -> tuple[Trial, int]:
        """How many chunks' graphs the memory holds; the others are rebuilt, or a block shares what is recomputed."""
        if best.way.strategy == "recompute":
            return best, 0
        chunks = len(self.objective.batches)
        kept = min(chunks, int(self.request.budget // max(best.held, 1)))
        if kept == chunks:
            return best, kept
        rebuilding = best.building / best.way.block * (1 - kept / chunks)  # a block shares what is rebuilt for it
        rebuilt = replace(best, seconds=best.seconds + rebuilding)
        streamed = self._streamed(rebuilt)
        if streamed is not None:
            self.notes.append(
                f"the graphs of {chunks} chunks do not fit; {streamed.way.block} vectors share each recomputed pass"
            )
            return streamed, 0
        needed = best.held * chunks / 1e9
        self.notes.append(
            f"{kept} of {chunks} chunks keep their graph ({needed:.2g} GB would hold all, "
            f"{self.request.budget / 1e9:.2g} GB may be used); the others are rebuilt in every product"
        )
        return rebuilt, kept

    def _streamed(self, rebuilt: Trial) -> Trial | None:
        """Blocks of vectors that share one primal pass a chunk, if that beats rebuilding (6 + 3/b against 9 units)."""
        request = self.request
        long = rebuilt.seconds * request.expected_products > LINEARIZE_PAYS_FROM.get(self.device.type, 20.0)
        if request.strategy != "auto" or request.block is not None or request.widest < WIDTHS[0] or not long:
            return None
        best: Trial | None = None
        for width in WIDTHS:
            if width > request.widest or not self._affordable(
                2 * width * rebuilt.seconds / len(self.objective.batches)
            ):
                break
            trial = self._tried(Way("recompute", "forward", width))
            if trial is None or trial.seconds > 0.9 * (best or rebuilt).seconds:
                break
            best = trial
        return best

    # ---- one trial ----------------------------------------------------------------------------------------------

    def _tried(self, way: Way, label: str = "") -> Trial | None:
        """A patient trial of something that need not work; with a label, the reason of a failure becomes a note."""
        try:
            return self._trial(way, self._largest(), patient=True)
        except RefusedError as error:
            self._tell(f"refused: {way.strategy} ({way.mode}{', in blocks' if way.block > 1 else ''}): {error}")
            return None
        except LandscapeError:
            raise
        except Exception as error:  # as above
            reason = _in_short(error)
        release_cached(self.device)
        if label:
            self._tell(f"{label}: {reason}")
        return None

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _trial(self, way: Way, batch: Batch, patient: bool) -> Trial:
        key = (way.strategy, way.mode, way.block > 1)
        if objection := self.referee.objection(*key):
            raise RefusedError(objection)
        share = share_of(self.whole.batches, batch)
        generator = torch.Generator().manual_seed(0)
        row = torch.randn(self.objective.layout.total, dtype=self.objective.dtype, generator=generator).to(self.device)
        rows = torch.stack([row.roll(k) for k in range(way.block)])  # to draw each on the host would take its time
        probe = self.objective.layout.unflatten(rows)
        expected = self.referee.expected(batch, rows) if way.mode == "forward" or way.block > 1 else None
        start = time.perf_counter()
        held, product = self._built(way, batch)
        synchronise(self.device)
        building = time.perf_counter() - start
        first = product(probe)
        self.referee.require(key, first, expected)
        if way.mode == "forward":
            self._require_repeatable(_flat(first), _flat(product(probe)))
        seconds = timed(lambda: product(probe), self.device, min(PATIENCE, SHARE / 4 * self.job) if patient else 0.0)
        return Trial(way, seconds / way.block / share, building / share, held)

    def _require_repeatable(self, first: torch.Tensor, again: torch.Tensor) -> None:
        if (first - again).norm() > 1e4 * torch.finfo(self.objective.dtype).eps * first.norm():
            # torch 2.13: in-place operations overwrite what `linearize` keeps (attention, LSTM, GRU, GroupNorm)
            raise RuntimeError("the second product differs from the first: something overwrites what was kept")

    def _built(self, way: Way, batch: Batch) -> tuple[int, Product]:
        """The bytes that a chunk keeps, and its product."""
        objective, before = self.objective, allocated(self.device)
        build = builder_of(self.request.operator, way.strategy, way.mode, way.block > 1)
        constants = (*objective.parameters, *tensors_of(batch))

        def graph() -> Tensors:
            return gradients(objective.batch_sum(batch)[0], objective.parameters, create_graph=True)

        try:
            with count_saved(constants) as saved:
                if way.mode == "reverse":
                    product = build(objective, batch)
                    return max(saved.total, allocated(self.device) - before), product
                # torch.func refuses hooks: the gradient's graph is counted in its stead, and dropped
                graph()
            held = saved.total
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):  # torch.func in the loss refuses them, too
                raise
            held = saved_bytes(graph(), constants)
        product = build(objective, batch)
        held = held if way.mode == "reverse" else LINEARIZED_BYTES * held
        return max(held, allocated(self.device) - before), product

    # ---- sizes and times ----------------------------------------------------------------------------------------

    def _affordable(self, seconds: float) -> bool:
        """Whether a trial of this length in seconds still fits into planning's share of the job."""
        return time.perf_counter() - self.begin + seconds <= SHARE * self.job

    def _longest(self, objective: Objective) -> int:
        return max(length_of(b) for b in objective.batches)

    def _largest(self) -> Batch:
        """The chunk to measure: its memory bounds the others'."""
        return max(self.objective.batches, key=length_of)

    def _gradient_seconds(self) -> float:
        batch = self._largest()
        return gradient_seconds(self.objective, batch) / share_of(self.objective.batches, batch)


def gradient_seconds(objective: Objective, batch: Batch) -> float:
    """Seconds of one gradient of a batch."""

    def gradient() -> Tensors:
        return gradients(objective.batch_sum(batch)[0], objective.parameters)

    gradient()
    return timed(gradient, objective.device)


def timed(function: Callable[[], object], device: torch.device, patience: float = PATIENCE) -> float:
    """Smallest wall time of up to eight calls (one if it takes longer than `patience` seconds): noise only adds."""
    spent, calls = 0.0, 0
    best = float("inf")
    while calls < 1 or (calls < 8 and spent < patience):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        seconds = time.perf_counter() - start
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best


def _flat(parts: Tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in parts])


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
