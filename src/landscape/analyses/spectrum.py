"""`spectrum`: both ends of a Hessian's spectrum, its density, trace and negative part, each with its bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.arithmetic import resolve_dtype
from landscape.batches import length_of, read_batches, subset
from landscape.errors import UsageError
from landscape.objective import Objective, build_objective
from landscape.operators import OPERATORS, CurvatureOperator
from landscape.parameters import trainable
from landscape.problem import Problem
from landscape.results import Spectrum, Spent
from landscape.spectral import exact as dense
from landscape.spectral.iterative import iterative_fields
from landscape.spectral.layers import layer_blocks
from landscape.spectral.subsample import extrapolate, measure_parts

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SpectrumSettings:
    """All options of `spectrum`; the command line and the library share these names and defaults.

    Attributes:
        operator: "hessian", "ggn" (Gauss–Newton) or "residual" (hessian − ggn).
        top, bottom: eigenpairs wanted at each end.
        rtol: a pair is converged when its residual is at most max(rtol |λ|, τ).
        tau: floor, relative to max |λ|, below which an eigenvalue counts as zero.
        density: whether to estimate the spectral density and the negative part's upper bounds.
        probes, steps: of the stochastic Lanczos quadrature.
        max_products: limit for everything but the dense solution, the layers and the sampling error.
        exact: True forces the dense float64 solution, False forbids it, None decides by measured cost.
        params: glob patterns of parameters to restrict the operator to.
        by_layer: also λ_max, λ_min and trace of every layer's diagonal block.
        vectors: keep the eigenvectors.
        samples: size of a random subset of the data; None: all.
        seed: of every random choice.
        device: "auto", "cpu" or "cuda". precision: "auto", "float32", "float64" or "tf32".
        batch_size: samples a chunk; None: by timing. strategy: see `CurvatureOperator`.
        memory: limit in bytes for the whole process.
    """

    operator: str = "hessian"
    top: int = 10
    bottom: int = 10
    rtol: float = 1e-3
    tau: float = 1e-6
    density: bool = True
    probes: int = 8
    steps: int = 80
    max_products: int | None = None
    exact: bool | None = None
    params: tuple[str, ...] = ()
    by_layer: bool = False
    vectors: bool = False
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    strategy: str = "auto"
    memory: int | None = field(default=None)

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise UsageError(f"there is no operator {self.operator!r}", f"choose one of {', '.join(OPERATORS)}")
        for name, least in (("top", 0), ("bottom", 0), ("probes", 3), ("steps", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("max_products", "samples", "batch_size", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        for name in ("rtol", "tau"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.precision not in ("auto", "float32", "float64", "tf32"):
            raise UsageError(f"there is no precision {self.precision!r}", "choose auto, float32, float64 or tf32")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return {**asdict(self), "params": list(self.params)}

    @property
    def iterative_products(self) -> int:
        """Products that an iterative solution will take, roughly; decides what planning is worth."""
        guess = 4 * (self.top + self.bottom) + 20 + (self.probes * self.steps if self.density else self.probes)
        return guess if self.max_products is None else min(guess, self.max_products)


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
    return run_spectrum(at_point(problem, point), SpectrumSettings(**_tidy(settings)), progress)


def _tidy(settings: dict[str, Any]) -> dict[str, Any]:
    unknown = set(settings) - {f.name for f in fields(SpectrumSettings)}
    if unknown:
        names = ", ".join(f.name for f in fields(SpectrumSettings))
        raise UsageError(f"spectrum has no setting {sorted(unknown)[0]!r}", f"settings are {names}")
    if isinstance(settings.get("params"), str):
        settings["params"] = (settings["params"],)
    if isinstance(settings.get("params"), list):
        settings["params"] = tuple(settings["params"])
    return settings


def at_point(problem: Problem, point: Tensor | Mapping[str, Tensor] | None) -> Problem:
    """The problem with a copy of the model at `point`.

    Raises:
        UsageError: the point does not fit the model.
    """
    if point is None:
        return problem
    import copy

    model = copy.deepcopy(problem.model)
    if isinstance(point, Tensor):
        parameters = list(trainable(model).values())
        total = sum(p.numel() for p in parameters)
        if point.shape != (total,):
            raise UsageError(f"the point has shape {tuple(point.shape)}; this model has {total} trainable parameters")
        torch.nn.utils.vector_to_parameters(point.to(parameters[0]), parameters)
    else:
        try:
            model.load_state_dict(point)
        except RuntimeError as error:
            raise UsageError(f"the point does not fit the model: {' '.join(str(error).split())[:300]}") from error
    return Problem(model, problem.data, problem.loss, problem.weight_decay)


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        UsageError: CUDA asked for and not there, or an unknown device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but PyTorch sees no CUDA device", "use --device cpu, or install a CUDA build")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", "choose auto, cpu or cuda")
    return torch.device(name)


def run_spectrum(problem: Problem, settings: SpectrumSettings, progress: Progress | None = None) -> Spectrum:
    """`spectrum` with its settings as one object; see there."""
    start = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    objective, population = _objective(problem, settings)
    loss, gradient = objective.value_and_gradient()
    found, products, plan, dtype = _solve(objective, settings, tell)
    notes = list(plan["notes"])
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
    if population is not None:
        extra, spent, lines = _sampling(objective, settings, found, population, tell)
        found.update(extra)
        products += spent
        notes += lines
    spent_in_all = Spent(
        products,
        time.perf_counter() - start,
        str(dtype).removeprefix("torch."),
        str(objective.device),
        plan,
        tuple(notes),
    )
    return Spectrum(
        operator=settings.operator,
        strategy="dense" if found["exact"] else str(plan["strategy"]),
        parameters=objective.layout.total,
        samples=round(objective.count),
        loss=loss,
        gradient_norm=float(gradient.double().norm()),
        spent=spent_in_all,
        **found,
    )


def _objective(problem: Problem, settings: SpectrumSettings) -> tuple[Objective, int | None]:
    """The objective, and the size of the whole data set if only a part of it is used."""
    batches = read_batches(problem)
    population = None
    if settings.samples is not None:
        total = sum(length_of(b) for b in batches)
        if total and settings.samples < total:
            population = total
            batches = subset(batches, settings.samples, settings.seed)
    own = next(iter(trainable(problem.model).values())).dtype
    objective = build_objective(
        problem,
        batches=batches,
        params=settings.params,
        device=resolve_device(settings.device),
        dtype=resolve_dtype(settings.precision, own),
    )
    return objective, population


def _solve(
    objective: Objective, settings: SpectrumSettings, tell: Progress
) -> tuple[dict[str, Any], int, dict[str, Any], torch.dtype]:
    """Dense where that is cheap or forced, else iterative: fields, products, plan and dtype."""
    options: dict[str, Any] = {"strategy": settings.strategy, "batch_size": settings.batch_size, "memory": settings.memory}
    n = objective.layout.total
    if settings.exact or (settings.exact is None and dense.considered(n, objective.device)):
        wide = dense.float64_operator(objective, settings.operator, **options)
        if settings.exact:
            dense.require_fit(wide, settings.memory)
        if settings.exact or dense.wants_dense(wide, settings.iterative_products, settings.memory):
            tell("dense matrix", 0, n)
            found = _dense_fields(wide, settings, tell)
            return found, wide.products, wide.plan.as_dict(), torch.float64
        del wide
    reserve = min(100, n) * n * objective.dtype.itemsize
    operator = CurvatureOperator(
        objective, settings.operator, reserve=reserve, expected_products=settings.iterative_products, **options
    )
    found, notes = iterative_fields(objective, operator, settings, tell)
    plan = operator.plan.as_dict()
    return found, operator.products, {**plan, "notes": (*plan["notes"], *notes)}, objective.dtype


def _dense_fields(operator: CurvatureOperator, settings: SpectrumSettings, tell: Progress) -> dict[str, Any]:
    from landscape.spectral.density import spectral_density
    from landscape.spectral.negative import negative_exact

    n = operator.n
    top, bottom = min(settings.top, n), min(settings.bottom, n)
    solved = dense.solve_dense(operator, (top, bottom) if settings.vectors else (0, 0))
    values, bound = solved.values, solved.bound
    scale = float(np.max(np.abs(values)))
    allowed = np.maximum(settings.rtol * np.abs(values), settings.tau * scale)
    trace, slack = float(values.sum()), math.sqrt(n) * bound
    found: dict[str, Any] = {
        "exact": True,
        "product_error": bound,
        "top_value": values[::-1][:top],
        "top_residual": np.full(top, bound),
        "top_converged": (bound <= allowed)[::-1][:top],
        "bottom_value": values[:bottom],
        "bottom_residual": np.full(bottom, bound),
        "bottom_converged": (bound <= allowed)[:bottom],
        "trace": trace,
        "trace_low": trace - slack,
        "trace_high": trace + slack,
        "excluded_below": float(values[0] - bound),
        "excluded_probability": 0.0,
        "eigenvalues": values,
        **vars(negative_exact(values, bound, settings.tau)),
    }
    if settings.density:
        nothing = np.zeros((0, 0))
        found.update(vars(spectral_density(nothing, nothing, values, n)))
    if settings.vectors:
        found.update(vector_fields(operator, solved.top_vector, solved.bottom_vector))
    tell("dense matrix", n, n)
    return found


def vector_fields(operator: CurvatureOperator, top: Tensor | None, bottom: Tensor | None) -> dict[str, Any]:
    """Eigenvectors as rows, and the names and sizes of the tensors they are made of."""
    layout = operator.layout

    def rows(vectors: Tensor | None) -> np.ndarray:
        return np.zeros((0, operator.n)) if vectors is None else vectors.T.cpu().numpy()

    return {
        "top_vector": rows(top),
        "bottom_vector": rows(bottom),
        "tensor": np.array(layout.names),
        "tensor_size": np.array(layout.sizes, dtype=np.int64),
    }


def _sampling(
    objective: Objective, settings: SpectrumSettings, found: dict[str, Any], population: int, tell: Progress
) -> tuple[dict[str, Any], int, list[str]]:
    """Sampling error of the subset, merged into the intervals, and a sentence on how much data would do."""
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
    line = (
        f"{settings.samples} of {population} samples: a half-width of 10 % takes about {top.needed} samples for the "
        f"largest eigenvalue, {bottom.needed} for the smallest, {trace.needed} for the trace"
    )
    return fields_found, round(parts.products), [line]


def names_of(params: Sequence[str]) -> tuple[str, ...]:
    """Patterns of one or several comma-separated --params options."""
    return tuple(p.strip() for text in params for p in text.split(",") if p.strip())
