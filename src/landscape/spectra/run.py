"""`spectrum`: both ends of a Hessian's spectrum, its density, trace and negative part, each with its bound."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from landscape.curvature.agreement import SAMPLES, require_separable
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.trust import trusted
from landscape.errors import NumericalError, ProblemError
from landscape.problem.batches import chosen, length_of, move, read_batches
from landscape.problem.batchnorm import batchnorm_statistics
from landscape.problem.distributed import ALONE, Ranks
from landscape.problem.objective import Objective, build_objective
from landscape.problem.parameters import trainable
from landscape.problem.problem import Problem, at_point
from landscape.results.fields import Spectrum, Spent
from landscape.runtime.arithmetic import resolve_device, resolve_dtype
from landscape.runtime.progress import Progress
from landscape.settings import keyword_settings
from landscape.spectra import exact as dense
from landscape.spectra.by_layer import layer_blocks
from landscape.spectra.cost import foreseen_seconds
from landscape.spectra.failed import failed_spectrum
from landscape.spectra.iterative import iterative_fields
from landscape.spectra.sampling import LOOKED_AT, LeftOut, sampling_fields
from landscape.spectra.settings import LOWERED, SpectrumSettings


def spectrum(
    problem: Problem,
    point: Tensor | Mapping[str, Tensor] | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Spectrum:
    """Spectrum of a curvature operator of the problem's loss at a point.

    Args:
        problem: model, data and loss; nothing of it is changed.
        point: θ as a flat vector over all trainable parameters, or a state_dict (buffers included); None: the
            model as it is.
        progress: called as (stage, done, total).
        settings: see `SpectrumSettings`.

    Returns:
        A frozen `Spectrum`; eigenvalues are those of the loss averaged over samples, intervals are 95 %.

    Raises:
        ProblemError: the model, data or loss cannot be analysed. UsageError: a setting makes no sense.
        NumericalError: the loss or a product is NaN or Inf.
    """
    return run_spectrum(at_point(problem, point), keyword_settings(SpectrumSettings, settings, "spectrum"), progress)


def run_spectrum(
    problem: Problem, settings: SpectrumSettings, progress: Progress | None = None, ranks: Ranks = ALONE
) -> Spectrum:
    """`spectrum` with its settings as one object; see there. `ranks`: the processes that share the data."""
    start = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    try:
        objective, left_out = _objective(problem, settings, ranks)
        loss, gradient = objective.value_and_gradient()
        loss, norm = objective.in_full_precision(loss, float(gradient.double().norm()))
        objective, doubts = trusted(objective, settings.operator, settings.seed)
        doubts += [*_rounded(problem, objective), *_statistics(objective), *_whole(problem, objective)]
        found, products, plan, dtype = _solve(objective, settings, tell, gradient)
    except NumericalError as error:
        error.partial = failed_spectrum(problem, settings, time.perf_counter() - start)
        raise
    except FloatingPointError as failure:
        told = NumericalError(str(failure), "`landscape doctor` looks for the layer")
        told.partial = failed_spectrum(problem, settings, time.perf_counter() - start)
        raise told from failure
    if settings.by_layer:
        layers = layer_blocks(
            objective,
            settings.operator,
            rtol=settings.rtol,
            tau=settings.tau,
            seed=settings.seed,
            memory=settings.memory,
            progress=lambda done, total: tell("layers", done, total),
        )
        products += layers.products
        found.update({f.name: getattr(layers, f.name) for f in fields(layers) if f.name != "products"})
    if left_out is not None:
        extra, spent = sampling_fields(objective, settings, found, left_out, tell)
        found.update(extra)
        products += spent
    spent_in_all = Spent(
        products,
        time.perf_counter() - start,
        str(dtype).removeprefix("torch."),
        str(objective.device),
        plan,
        (*doubts, *plan["notes"]),
    )
    return Spectrum(
        operator=settings.operator,
        strategy="dense" if found["exact"] else str(plan["strategy"]),
        parameters=objective.layout.total,
        samples=round(objective.count),
        loss=loss,
        gradient_norm=norm,
        spent=spent_in_all,
        **found,
    )


def _objective(problem: Problem, settings: SpectrumSettings, ranks: Ranks) -> tuple[Objective, LeftOut | None]:
    """The objective, and what it leaves out if only a part of the data is used."""
    others = LOOKED_AT * (settings.samples or 0)
    batches, population, beside = chosen(problem, settings.samples, settings.seed, others)
    own = next(iter(trainable(problem.model).values())).dtype
    objective = build_objective(
        problem,
        batches=batches,
        params=settings.params,
        device=resolve_device(settings.device),
        dtype=resolve_dtype(settings.precision, own),
        ranks=ranks,
        memory=settings.memory,
    )
    if population is not None and not objective.cuttable:
        _require_drawable(problem, objective)
    if settings.batch_size is not None and not objective.cuttable:
        require_separable(objective, settings.batch_size)
        objective = objective.with_chunks(settings.batch_size)
    if population is None:
        return objective, None
    enough = sum(length_of(b) for b in beside) >= ranks.size
    there = [move(b, objective.device, objective.dtype) for b in (ranks.shard(beside, True) if enough else [])]
    return objective, LeftOut(population, there)


def _require_drawable(problem: Problem, objective: Objective) -> None:
    """Samples may be left out of batches only where they do not see each other; else another loss is measured.

    Raises:
        ProblemError: they do.
    """
    first = max(read_batches(problem), key=length_of)
    whole = objective.sampled([move(first, objective.device, objective.dtype)])
    require_separable(whole, max(1, min(SAMPLES, length_of(first)) // 2), "--samples")


def _rounded(problem: Problem, objective: Objective) -> list[str]:
    """What to know of a float64 network that is analysed in less."""
    own = next(iter(trainable(problem.model).values())).dtype
    if not (own == torch.float64 and objective.dtype == torch.float32):
        return []
    return ["float64 weights and data were rounded to float32 first: all bounds are those of the rounded network"]


def _whole(problem: Problem, objective: Objective) -> list[str]:
    """What to know of a network that normalises over what else is in a batch, by its own code."""
    if objective.cuttable or not problem.per_sample:
        return []
    return ["a sample's outputs depend on what else is in its batch, so batches stay as your data makes them"]


def _statistics(objective: Objective) -> list[str]:
    """Which statistics normalise: curvature may be more than ten times as large by running ones."""
    said = {
        "eval": "BatchNorm by its running statistics, as in eval mode; the loss that was trained is that of "
        "--batchnorm batch, with data in batches of training's size",
        "batch": "BatchNorm by the statistics of each batch of the data, through which derivatives go too",
    }
    used = batchnorm_statistics(objective.model)
    return [said[used]] if used else []


def _solve(
    objective: Objective, settings: SpectrumSettings, tell: Progress, gradient: Tensor
) -> tuple[dict[str, Any], int, dict[str, Any], torch.dtype]:
    """Dense where that is cheap or forced, else iterative: fields, products, plan and dtype."""
    options: dict[str, Any] = {
        "strategy": settings.strategy,
        "batch_size": settings.batch_size,
        "block": settings.block,
        "memory": settings.memory,
    }
    n, ranks, dense_cost = objective.layout.total, objective.ranks, None
    wide, narrow = None, list[str]()
    if settings.exact or (settings.exact is None and dense.considered(n, objective.device)):
        try:
            wide = dense.float64_operator(objective, settings.operator, **options)
        except ProblemError as error:
            if settings.exact:
                raise
            narrow.append(f"no dense solution: {error.message}")
    if wide is not None:
        if settings.exact:
            dense.require_fit(wide, settings.memory)
        chosen = settings.exact or dense.wants_dense(wide, settings.iterative_products, settings.memory)
        if ranks.first(chosen):
            tell("dense matrix", 0, n)
            found = dense.dense_fields(wide, settings, tell)
            return found, wide.products, wide.plan.as_dict(), torch.float64
        dense_cost = dense.offered(wide, settings.memory)
    del wide
    if settings.precision in LOWERED:
        objective = objective.lowered(settings.precision)
    operator = CurvatureOperator(
        objective,
        settings.operator,
        reserve=min(100, n) * n * objective.dtype.itemsize,
        expected_products=settings.iterative_products,
        widest=settings.probes if settings.density else settings.top + settings.bottom,
        **options,
    )
    start = time.perf_counter()
    found, notes, basis = iterative_fields(objective, operator, settings, tell, gradient)
    seconds = time.perf_counter() - start
    if offer := dense.count_offer(found, dense_cost, settings.tau):
        notes.append(offer)
    if settings.precision in LOWERED:
        relative = found["product_error"] / max(abs(found["top_value"][0]), 1e-300) if len(found["top_value"]) else 0.0
        notes.append(
            f"products in {settings.precision} are off by up to {found['product_error']:.1e} "
            f"({relative:.0e} of the largest eigenvalue); every bound includes it"
        )
    plan = {
        **operator.plan.as_dict(),
        **basis,
        "predicted_seconds": foreseen_seconds(operator, settings),
        "actual_seconds": seconds,
    }
    return found, operator.products, {**plan, "notes": (*plan["notes"], *narrow, *notes)}, objective.dtype
