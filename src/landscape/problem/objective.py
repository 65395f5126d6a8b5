"""The objective L(θ): value, gradient and count over all data, summed and divided once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import NarrowError, NumericalError, ProblemError
from landscape.problem.batches import (
    length_of,
    map_tensors,
    move,
    read_batches,
    rechunk,
    take,
    tensors_of,
)
from landscape.problem.batchnorm import refuse_batch_statistics, take_batch_statistics
from landscape.problem.copies import copied, moved_model, refuse_complex, require_unchanged
from landscape.problem.distributed import ALONE, Ranks
from landscape.problem.graph import gradients
from landscape.problem.last_places import LastPlaces
from landscape.problem.parameters import Layout, layout_of, select, spellings, trainable
from landscape.problem.passes import in_portions, samples_at_once
from landscape.problem.problem import Batch, LossFunction, Problem
from landscape.problem.trials import (
    FEWEST,
    ROUNDED,
    SAME_LOSS,
    as_it_runs,
    evaluate,
    in_arithmetic,
    is_separate,
    real_dtype,
    refuse_scaled,
    require_alike,
    require_fixed,
    require_own,
    require_reached,
)
from landscape.problem.user_loss import eager, plain
from landscape.runtime.arithmetic import strict_arithmetic, without_cudnn

# Samples on which two evaluations are compared.
CHECKED = 256
# Losses in two arithmetics that differ by no more than this are the same loss, rounded; or by no more than rounding
# explains.
ALIKE = 1e-2


@dataclass(frozen=True, eq=False)
class Objective:
    """L(θ) = Σ sums / Σ counts + weight_decay/2 ‖θ‖², on a private copy of the model in eval mode.

    Attributes:
        model: the copy, on the device, all floating-point tensors in `dtype`; its parameters hold θ.
        loss: `loss(model, batch) -> (sum, count)`.
        batches: the data, on the device.
        names: the selected parameters; only their copies require gradients.
        layout: order and shapes of the selected parameters.
        count: Σ counts over all batches.
        weight_decay: coefficient of ½‖θ‖² over all trainable parameters.
        cuttable: whether batches may be cut into smaller ones (the loss is a sum over samples).
        ranks: the processes that share the data; `batches` are this one's, sums and `count` are over all.
        arithmetic: strict | tf32 | bf16, of products; see `lowered`. strict_loss: the loss before that.
        at_once: samples whose gradient fits into one pass, see `passes`; None: all of them.
        refused: modes ("reverse", "forward") whose products are wrong for this model -> why.
    """

    model: nn.Module
    loss: LossFunction
    batches: list[Batch]
    names: tuple[str, ...]
    layout: Layout
    count: float
    weight_decay: float
    trainable_names: tuple[str, ...]
    cuttable: bool
    ranks: Ranks = ALONE
    arithmetic: str = "strict"
    strict_loss: LossFunction | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    at_once: int | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The selected parameter tensors themselves (leaves), in layout order."""
        named = dict(self.model.named_parameters())
        return tuple(named[n] for n in self.names)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    def point(self) -> Tensor:
        """θ of the selected parameters as a flat vector [n]."""
        return self.layout.flatten([p.detach() for p in self.parameters])

    def batch_sum(self, batch: Batch) -> tuple[Tensor, float]:
        """Loss sum (a scalar with graph) and count of one batch."""
        total, count = self.loss(self.model, batch)
        return total, float(count)

    def penalty(self) -> float:
        """weight_decay/2 ‖θ‖² over all trainable parameters."""
        return float(self.penalty_there()) if self.weight_decay else 0.0

    def penalty_there(self) -> Tensor:
        """As `penalty`, a scalar in float64 on the device: nobody has to wait for it."""
        named = dict(self.model.named_parameters())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for name in self.trainable_names:
            total = total + named[name].detach().abs().double().square().sum()
        return 0.5 * self.weight_decay * total

    def value(self) -> float:
        """L(θ) over all data.

        Raises:
            NumericalError: the loss is NaN or Inf.
        """
        totals: list[float] = []
        with strict_arithmetic(), torch.no_grad():
            for batch in self.batches:
                in_portions(lambda b: totals.append(float(self.batch_sum(b)[0].double())), batch, self.cuttable)
        return _finite(self.ranks.total(sum(totals)) / self.count + self.penalty())

    def in_full_precision(self, rounded: float, norm: float) -> tuple[float, float]:
        """L(θ) and ‖∇L(θ)‖ over all data in float64, batch by batch, where the model runs in it; else what is known, a
        `rounded` loss and `norm`, also where the two are not alike (code that asks for a dtype)."""
        if self.dtype == torch.float64:
            return rounded, norm
        totals: list[float] = []
        gradient, works = torch.zeros(0), 1
        loss = self.strict_loss or self.loss
        try:
            model = moved_model(self.model, self.device, torch.float64)
            named = dict(model.named_parameters())
            leaves = [named[n] for n in self.names]
            gradient = torch.zeros(self.layout.total, dtype=torch.float64, device=self.device)

            def add(batch: Batch) -> None:
                total = loss(model, move(batch, self.device, torch.float64))[0].double()
                gradient.add_(self.layout.flatten(gradients(total, leaves)))
                totals.append(float(total.detach()))

            with strict_arithmetic(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # float(tensor) inside a loss, say
                for batch in self.batches:
                    in_portions(add, batch, self.cuttable)
        except Exception:  # of the user's code, or no memory
            works = 0
        found = self.ranks.total(sum(totals)) / self.count + self.penalty()
        apart = abs(found - rounded)
        agrees = works and (apart <= ALIKE * max(abs(found), abs(rounded)) or apart <= ROUNDED * self._rounding())
        if not self.ranks.smallest(int(bool(agrees))):
            return rounded, norm
        self.ranks.sum(gradient).div_(self.count)
        if self.weight_decay:
            gradient.add_(self.point().double(), alpha=self.weight_decay)
        return found, float(gradient.norm())

    def _rounding(self) -> float:
        """How far the loss over this process's data moves where all results on the way are off by a last place."""
        alone, moved = self._replace(ranks=ALONE), 0.0
        try:
            for seed in range(2):
                with LastPlaces(seed):
                    repeated = alone.value()
                moved = max(moved, abs(repeated - alone.value()))
        except Exception:  # `torch.func` inside, NaN
            return 0.0
        return moved

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """L(θ) and ∇L(θ) [n] with respect to the selected parameters, over all data."""
        gradient = torch.zeros(self.layout.total, dtype=self.dtype, device=self.device)
        total = 0.0

        def add(batch: Batch) -> None:
            nonlocal total
            batch_total, _ = self.batch_sum(batch)
            slope = self.layout.flatten(gradients(batch_total, self.parameters))
            total += float(batch_total.detach().double())
            gradient.add_(slope)

        with strict_arithmetic():
            for batch in self.batches:
                in_portions(add, batch, self.cuttable)
        self.ranks.sum(gradient).div_(self.count)
        if self.weight_decay:
            gradient.add_(self.point(), alpha=self.weight_decay)
        return _finite(self.ranks.total(total) / self.count + self.penalty()), gradient

    def with_chunks(self, size: int) -> Objective:
        """The same objective with batches cut to at most `size` samples."""
        return self._replace(batches=rechunk(self.batches, size))

    def with_layout(self, memory_format: torch.memory_format) -> Objective:
        """The same objective with images (tensors of four dimensions) in another memory format."""

        def laid(tensor: Tensor) -> Tensor:
            return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor

        return self._replace(batches=[map_tensors(batch, laid) for batch in self.batches])

    def with_batches(self, batches: list[Batch], alone: bool = False) -> Objective:
        """The same loss and point over other data: a subset of the samples, usually; `alone`: of this process only."""
        ranks = ALONE if alone else self.ranks
        return self._replace(
            batches=batches, ranks=ranks, count=_total_count(self.model, self.loss, batches, ranks, self.cuttable)
        )

    def sampled(self, batches: list[Batch]) -> Objective:
        """The same sums over some of this process's samples, a part of the whole: the count stays; no weight decay."""
        return self._replace(batches=batches, ranks=ALONE, weight_decay=0.0)

    def refusing(self, refused: Mapping[str, str]) -> Objective:
        """The same objective with modes of differentiation that must not be used, and why."""
        return self._replace(refused={**self.refused, **refused})

    def lowered(self, arithmetic: str) -> Objective:
        """The same objective in cheaper arithmetic: "tf32" (matrix products on a GPU) or "bf16" (the forward pass)."""
        loss = _in_bfloat16(self.loss, self.device.type) if arithmetic == "bf16" else self.loss
        return self._replace(loss=loss, strict_loss=self.loss, arithmetic=arithmetic)

    def strict(self) -> Objective:
        """The objective that this one was lowered from."""
        return self._replace(loss=self.strict_loss or self.loss, strict_loss=None, arithmetic="strict")

    def with_parameters(self, names: Sequence[str]) -> Objective:
        """The same objective as a function of fewer parameters, on a copy of the model."""
        model = copied(self.model)
        layout = _require(model, names, self.loss, self.batches, self.cuttable)
        return self._replace(model=model, names=tuple(names), layout=layout)

    def in_dtype(self, dtype: torch.dtype, batches: list[Batch] | None = None) -> Objective:
        """The same objective (over `batches`, if given) in another arithmetic, on a copy of the model.

        Raises:
            NarrowError: the model or loss does not run in it. ProblemError: the copy has another loss.
        """
        model, loss = moved_model(self.model, self.device, dtype), self.loss
        if dtype != self.dtype and self.batches:
            first = self.batches[0]
            first = take(first, slice(0, FEWEST)) if self.cuttable else first
            there = move(first, self.device, dtype)
            loss = in_arithmetic(model, plain(loss), there, lambda: True)[0]
            require_alike((self.loss, loss), self.model, model, first, there)
        data = [move(b, self.device, dtype) for b in (self.batches if batches is None else batches)]
        count = self.count if batches is None else _total_count(model, loss, data, self.ranks, self.cuttable)
        return self._replace(model=model, loss=loss, batches=data, count=count)

    def _replace(self, **changes: Any) -> Objective:
        fields = {f: getattr(self, f) for f in self.__dataclass_fields__}
        return Objective(**{**fields, **changes})


def build_objective(
    problem: Problem,
    *,
    batches: list[Batch] | None = None,
    params: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    ranks: Ranks = ALONE,
    memory: int | None = None,
) -> Objective:
    """Copy the model, bring the data to the device, check that the loss is a fixed function of θ.

    Args:
        problem: left untouched.
        batches: data to use instead of all of the problem's (a subset drawn by the caller).
        params: glob patterns of the parameters to differentiate by; all trainable ones if empty.
        device, dtype: where and in which arithmetic; dtype defaults to the model's own, at least float32.
        ranks: the processes that share the data; each passes all of it and keeps its shard.
        memory: bytes that the process may use, if the user has said so.

    Raises:
        ProblemError: bad data, a loss that is not (sum, count), a model that answers differently twice.
        NarrowError: the model or loss runs in its own arithmetic, but not in `dtype`.
        UsageError: a pattern of `params` matches nothing.
        NumericalError: the loss at the checkpoint is NaN or Inf.
    """
    device = torch.device(device)
    first = next(iter(trainable(problem.model).values()))
    own = first.dtype
    dtype = torch.promote_types(own, torch.float32) if dtype is None else dtype
    dtype = dtype.to_real() if dtype.is_complex else dtype
    loss = eager(problem.loss_function)
    generators = [device] if device.type == "cuda" else []
    # The checks may draw random numbers (functional dropout, before it is refused): not at the caller's cost.
    with strict_arithmetic(), torch.random.fork_rng(devices=generators):
        model = without_cudnn(moved_model(problem.model, device, dtype).eval())
        take_batch_statistics(model) if problem.batchnorm == "batch" else refuse_batch_statistics(model)
        names = tuple(trainable(model))
        chosen = select(spellings(model), params) if params else names
        refuse_complex(chosen, model)
        everything = read_batches(problem) if batches is None else batches
        shares = ranks.shard(everything, problem.per_sample)
        given, moved = shares[0], [move(b, device, dtype) for b in shares]
        layout = _require(model, chosen, loss, moved, problem.per_sample)
        refuse_scaled(model)
        loss, cuttable = as_it_runs(problem, model, loss, given, moved[0])
        at_once = samples_at_once(model, loss, moved, memory) if cuttable else None
        if at_once is not None:
            moved = rechunk(moved, at_once)
        few = take(moved[0], slice(0, CHECKED)) if cuttable else moved[0]
        in_portions(lambda b: require_fixed(model, loss, b), few, cuttable)
        cuttable = cuttable and is_separate(model, loss, few)
        if problem.per_sample and ranks.largest(float(not cuttable)):
            shares, at_once, cuttable = ranks.shard(everything, False), None, False
            given, moved = shares[0], [move(b, device, dtype) for b in shares]
            few = moved[0]
        if (own, first.device.type) != (dtype, device.type):
            if cuttable:
                given = take(given, slice(0, length_of(few)))
            require_own(problem, loss, model, given, few)
        require_reached(model, loss, moved, chosen, cuttable)
        count = _total_count(model, loss, moved, ranks, cuttable)
        require_unchanged(problem.model, model)
    decay = problem.weight_decay
    return Objective(model, loss, moved, chosen, layout, count, decay, names, cuttable, ranks, at_once=at_once)


def build_widest(problem: Problem, precision: str, **options: Any) -> tuple[Objective, tuple[str, ...]]:
    """`build_objective` for certificates: in float64; for "auto" in the model's own arithmetic if it only runs in that,
    and a note that says so. For "float32" in that."""
    try:
        dtype = torch.float32 if precision == "float32" else torch.float64
        return build_objective(problem, dtype=dtype, **options), ()
    except NarrowError as error:
        if precision != "auto":
            raise
        made = build_objective(problem, **options)
        own = str(made.dtype).removeprefix("torch.")
        return made, (f"in {own}, with its coarser bounds: {error.message}; {error.hint}",)


def _require(
    model: nn.Module, names: Sequence[str], loss: LossFunction, batches: Sequence[Batch], cuttable: bool
) -> Layout:
    """Make the named parameters require gradients; their layout. The others cease to, which saves their graph, unless
    the loss looks at that: a penalty on all that is trained."""
    named, before = dict(model.named_parameters()), trainable(model)
    layout = layout_of({n: named[n] for n in names})
    if set(names) == set(before):
        return layout
    sums: list[float] = []

    def note() -> None:
        few = take(batches[0], slice(0, FEWEST)) if cuttable else batches[0]
        with torch.no_grad(), suppress(ProblemError, NotImplementedError):  # said where the loss is evaluated in full
            in_portions(lambda part: sums.append(float(evaluate(model, loss, part)[0])), few, cuttable)

    note()
    for name, parameter in named.items():
        parameter.requires_grad_(name in names)
    whole = sum(sums)
    note()
    eps = torch.finfo(real_dtype(model)).eps
    if abs(sum(sums) - 2 * whole) > SAME_LOSS * eps * abs(whole):
        for parameter in before.values():
            parameter.requires_grad_()
    return layout


def _in_bfloat16(loss: LossFunction, device: str) -> LossFunction:
    """The loss with its forward pass under bfloat16 autocast; the sum itself stays in the parameters' dtype."""

    def lowered(model: nn.Module, batch: Batch) -> tuple[Tensor, float | Tensor]:
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):  # a cache would outlive graphs and vmap
            total, count = loss(model, batch)
        return total.to(next(model.parameters()).dtype), count

    return lowered


def _total_count(model: nn.Module, loss: LossFunction, batches: Sequence[Batch], ranks: Ranks, cuttable: bool) -> float:
    """Σ counts over all processes, after one evaluation of every batch."""
    evaluated: list[tuple[float, float]] = []

    def note(batch: Batch) -> None:
        total, count = evaluate(model, loss, batch)
        evaluated.append((float(total), count))

    with torch.no_grad():
        for batch in batches:
            in_portions(note, batch, cuttable)
    counts = [c for _, c in evaluated]
    narrow = all(p.dtype != torch.float64 for p in model.parameters())
    if narrow and any(c != round(c) or c >= 2**24 for c in counts):
        counts = _counts_in_float64(model, loss, batches, cuttable) or counts
    count = ranks.total(math.fsum(counts))
    if not count > 0:
        raise ProblemError(
            f"the loss's counts add up to {count:g}; there is nothing to average over",
            "return the number of samples (or tokens) as the second value",
        )
    _finite(ranks.total(sum(total for total, _ in evaluated)) / count)
    return count


def _counts_in_float64(
    model: nn.Module, loss: LossFunction, batches: Sequence[Batch], cuttable: bool
) -> list[float] | None:
    """Counts that are sums of weights, without the rounding of float32, by which every number is divided; None where
    the model runs in no other arithmetic."""
    device = tensors_of(batches[0])[0].device
    wide = moved_model(model, device, torch.float64)
    counts: list[float] = []

    def note(batch: Batch) -> None:
        counts.append(evaluate(wide, loss, move(batch, device, torch.float64))[1])

    try:
        with torch.no_grad():
            for batch in batches:
                in_portions(note, batch, cuttable)
    except (ProblemError, NotImplementedError):
        return None
    return counts


def _finite(value: float) -> float:
    if not abs(value) < float("inf"):
        raise NumericalError(
            f"the loss at the checkpoint is {value}",
            "the checkpoint has diverged, or the data is scaled differently than in training or holds -inf that masks "
            "nothing",
        )
    return value
