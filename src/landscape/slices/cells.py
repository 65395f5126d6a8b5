"""The cells of a slice: L(θ + x d₀ + y d₁) and what else is asked for, at many points, at the cost of forward passes.

In place: θ is one flat vector of which the parameters are views, so that moving costs two vector additions. Stacked:
many points go through one launch under `vmap`, which pays for small networks, whose launches cost more than their
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.curvature.eigenpairs import basis_room, find_extremes
from landscape.curvature.operator import CurvatureOperator
from landscape.errors import NumericalError
from landscape.problem.graph import gradients
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import strict_arithmetic
from landscape.slices.metrics import classified, outputs_of
from landscape.slices.settings import CURVED

# Settings of the eigenvalues at cells.
RTOL, MAX_PRODUCTS = 1e-2, 200
# Samples a step when statistics of BatchNorm are re-estimated.
RECALIBRATED = 256


@dataclass(frozen=True)
class CellPlan:
    """How cells are computed; the bits of a result depend on it.

    Attributes:
        strategy: in place | stacked. chunk: samples a forward pass. points: cells a launch.
        channels_last: images and convolution weights with their channels last in memory.
        seconds: of a cell, measured. curvature: strategy and chunk of Hessian products, where they are needed.
    """

    strategy: str
    chunk: int
    points: int
    channels_last: bool = False
    seconds: float = math.nan
    curvature: tuple[str, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellPlan:
        """The plan of `as_dict`, also after a detour through JSON."""
        curvature = values.get("curvature")
        return cls(**{**values, "curvature": tuple(curvature) if curvature else None})


@dataclass(frozen=True, eq=False)
class Surface:
    """The function of (x, y) that a slice shows.

    Attributes:
        objective: at θ; its batches are cut to the plan's chunk, its model is moved about.
        start: θ [P]. directions: [1 or 2, P]. metrics: names from `METRICS`, "loss" first.
        recalibrate: whether BatchNorm's statistics are re-estimated at every cell.
        channels_last: whether convolution weights have their channels last in memory, see `moving`.
    """

    objective: Objective
    start: Tensor
    directions: Tensor
    metrics: tuple[str, ...] = ("loss",)
    recalibrate: bool = False
    seed: int = 0
    memory: int | None = None
    channels_last: bool = False

    @cached_property
    def moving(self) -> tuple[Tensor, Tensor]:
        """`start` and `directions` in the order in which the parameters lie in memory."""
        if not self.channels_last:
            return self.start, self.directions
        order = torch.cat([o + n for o, n in zip(_orders(self.objective), self.objective.layout.offsets, strict=True)])
        order = order.to(self.start.device)
        return self.start[order], self.directions[:, order]

    def along(self, directions: Tensor) -> Surface:
        """The same in another plane."""
        return replace(self, directions=directions)

    def only_loss(self) -> Surface:
        """The same without other metrics."""
        return replace(self, metrics=("loss",))


def cell_values(surface: Surface, plan: CellPlan, coordinates: Sequence[Sequence[float]]) -> Tensor:
    """The metrics at coordinates [T][1 or 2], as float64 [T, columns] on the CPU; `columns(metrics)` names them.

    What is not finite is a value. The model is back at θ afterwards.
    """
    if plan.strategy == "stacked":
        return _stacked(surface, coordinates)
    simple = not surface.recalibrate and set(surface.metrics) <= {"loss", "accuracy"}
    with at_view(surface) as flat:
        if simple:
            return _in_place(surface, flat, coordinates)
        rows, moves = [], Moves(surface, flat)
        for point in coordinates:
            moves.to(point)
            rows.append(_measured(surface, plan, flat))
    return torch.stack(rows).cpu()


def columns(metrics: Sequence[str]) -> list[str]:
    """The columns of `cell_values`: eigenvalues have their residual beside them."""
    found = []
    for name in metrics:
        found += [name, f"{name}_residual"] if name in CURVED else [name]
    return found


@contextmanager
def at_view(surface: Surface) -> Iterator[Tensor]:
    """Inside, the parameters are views of the flat vector that is given, at θ; afterwards they are their own again."""
    objective = surface.objective
    flat = surface.moving[0].detach().clone()
    parameters = objective.parameters
    before = [p.data for p in parameters]
    for parameter, piece in zip(parameters, torch.split(flat, list(objective.layout.sizes)), strict=True):
        if surface.channels_last and parameter.dim() == 4:
            o, i, h, w = parameter.shape
            parameter.data = piece.view(o, h, w, i).permute(0, 3, 1, 2)
        else:
            parameter.data = piece.view(parameter.shape)
    try:
        yield flat
    finally:
        for parameter, own in zip(parameters, before, strict=True):
            parameter.data = own


def _orders(objective: Objective) -> Iterator[Tensor]:
    """The place of every entry of each parameter, in the order of memory with the channels last."""
    for shape in objective.layout.shapes:
        order = torch.arange(shape.numel())
        yield order.reshape(shape).permute(0, 2, 3, 1).reshape(-1) if len(shape) == 4 else order


class Moves:
    """Moves of a flat vector to θ + y d₁ + x d₀, exactly θ at the centre; along a row only x changes, and one addition
    is enough."""

    def __init__(self, surface: Surface, flat: Tensor) -> None:
        self._flat, (self._start, self._directions) = flat, surface.moving
        self._row, self._y = self._start, 0.0

    def to(self, point: Sequence[float]) -> None:
        x, y = point[0], point[1] if len(point) > 1 else 0.0
        if y != self._y:
            self._row = torch.add(self._start, self._directions[1], alpha=y) if y else self._start
            self._y = y
        if x:
            torch.add(self._row, self._directions[0], alpha=x, out=self._flat)
        else:
            self._flat.copy_(self._row)


def _measured(surface: Surface, plan: CellPlan, flat: Tensor) -> Tensor:
    """One row of `cell_values` where the parameters are now."""
    objective, wanted = surface.objective, surface.metrics
    with recalibrated(objective) if surface.recalibrate else _unchanged():
        with _forward_only(objective, "accuracy" in wanted) as outputs:
            found = _forward(objective, outputs)
        if "gradient_norm" in wanted:
            found.append(_gradient_norm(objective))
        if any(name in wanted for name in CURVED):
            extremes = _extremes(surface, plan) if math.isfinite(float(found[0])) else {}
            for name in CURVED:
                if name in wanted:
                    pair = extremes.get(name, (math.nan, math.nan))
                    found += [torch.tensor(x, dtype=torch.float64, device=flat.device) for x in pair]
    return torch.stack([x.double() for x in found])


def _in_place(surface: Surface, flat: Tensor, coordinates: Sequence[Sequence[float]]) -> Tensor:
    """Loss and accuracy only: nothing but forward passes between one point and the next."""
    accuracy, rows, moves = "accuracy" in surface.metrics, [], Moves(surface, flat)
    with _forward_only(surface.objective, accuracy) as outputs:
        for point in coordinates:
            moves.to(point)
            rows += _forward(surface.objective, outputs)
    return torch.stack(rows).reshape(len(coordinates), -1).cpu()


@contextmanager
def _forward_only(objective: Objective, accuracy: bool) -> Iterator[list[Tensor] | None]:
    """The arithmetic of forward passes; what the model returned, where accuracy wants to know."""
    with strict_arithmetic(), torch.inference_mode():
        if not accuracy:
            yield None
            return
        with outputs_of(objective.model) as outputs:
            yield outputs


def _forward(objective: Objective, outputs: list[Tensor] | None) -> list[Tensor]:
    """L, and the share classified right if outputs are noted, in float64: one pass over the data."""
    totals, right = [], []
    for batch in objective.batches:
        totals.append(objective.loss(objective.model, batch)[0].double())
        if outputs is not None:
            right.append(torch.stack([x.double() for x in classified(outputs, batch)]))
    total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
    loss = total / objective.count
    if objective.weight_decay:
        loss = loss + objective.penalty_there()
    if outputs is None:
        return [loss]
    hits, samples = torch.stack(right).sum(0)
    return [loss, hits / samples]


def _gradient_norm(objective: Objective) -> Tensor:
    total = torch.zeros(objective.layout.total, dtype=objective.dtype, device=objective.device)
    with strict_arithmetic():
        for batch in objective.batches:
            total += objective.layout.flatten(gradients(objective.batch_sum(batch)[0], objective.parameters))
    total /= objective.count
    if objective.weight_decay:
        total.add_(objective.point(), alpha=objective.weight_decay)
    norm: Tensor = total.double().norm()
    return norm


def _extremes(surface: Surface, plan: CellPlan) -> dict[str, tuple[float, float]]:
    """λ_max and λ_min with their residuals; {} where the Hessian is not finite."""
    strategy, chunk = plan.curvature or ("auto", plan.chunk)
    operator = CurvatureOperator(surface.objective, strategy=strategy, batch_size=chunk, memory=surface.memory)
    try:
        found = find_extremes(
            operator,
            top=1,
            bottom=1,
            rtol=RTOL,
            tau=1e-6,
            noise=0.0,
            max_products=MAX_PRODUCTS,
            room=basis_room(operator, surface.memory, 2),
            generator=torch.Generator().manual_seed(surface.seed),
        )
    except NumericalError:
        return {}
    return {
        "lambda_max": (float(found.top_value[0]), float(found.top_residual[0])),
        "lambda_min": (float(found.bottom_value[0]), float(found.bottom_residual[0])),
    }


# ---- many points a launch -----------------------------------------------------------------------------------------


class _Totals(nn.Module):
    """Loss sum, hits and samples of a batch as a module, so that `functional_call` can swap the model's tensors."""

    def __init__(self, objective: Objective, accuracy: bool) -> None:
        super().__init__()
        self.model = objective.model
        self._loss, self._accuracy = objective.loss, accuracy

    def forward(self, batch: Batch) -> Tensor:
        with outputs_of(self.model) as outputs:
            total = self._loss(self.model, batch)[0]
            return torch.stack([total, *classified(outputs, batch)] if self._accuracy else [total])


def _stacked(surface: Surface, coordinates: Sequence[Sequence[float]]) -> Tensor:
    objective = surface.objective
    accuracy = "accuracy" in surface.metrics
    where = torch.tensor(coordinates, dtype=surface.start.dtype, device=surface.start.device)
    theta = surface.start + (where.unsqueeze(2) * surface.directions).sum(1)
    holder = _Totals(objective, accuracy)
    names = [f"model.{name}" for name in objective.names]

    def totals(batch: Batch) -> Callable[[Tensor], Tensor]:
        def one(flat: Tensor) -> Tensor:
            named = dict(zip(names, objective.layout.unflatten(flat), strict=True))
            answer: Tensor = torch.func.functional_call(holder, named, (batch,))
            return answer

        return one

    found = torch.zeros(len(theta), 3 if accuracy else 1, dtype=torch.float64, device=theta.device)
    with strict_arithmetic(), torch.no_grad():
        for batch in objective.batches:
            found += torch.func.vmap(totals(batch))(theta).double()
    loss = found[:, 0] / objective.count
    if objective.weight_decay:
        loss = loss + 0.5 * objective.weight_decay * theta.double().square().sum(1)
    return torch.stack([loss, found[:, 1] / found[:, 2]] if accuracy else [loss], 1).cpu()


# ---- statistics of BatchNorm --------------------------------------------------------------------------------------


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


@contextmanager
def recalibrated(objective: Objective) -> Iterator[None]:
    """Inside, BatchNorm's running statistics are those of the data at the present θ: averages over steps of 256
    samples, as `torch.optim.swa_utils.update_bn` takes them. The old ones come back afterwards."""
    norms = normalisations(objective.model)
    before = [{name: b.clone() for name, b in m.named_buffers()} for m in norms]
    momenta = [m.momentum for m in norms]
    steps = objective.with_chunks(RECALIBRATED) if objective.cuttable else objective
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
            module.train()
        with strict_arithmetic(), torch.no_grad():
            for batch in steps.batches:
                objective.loss(objective.model, batch)
        for module in norms:
            module.eval()
        yield
    finally:
        for module, buffers, momentum in zip(norms, before, momenta, strict=True):
            module.eval()
            module.momentum = momentum
            for name, buffer in buffers.items():
                getattr(module, name).copy_(buffer)


def normalisations(model: nn.Module) -> list[_NormBase]:
    """Modules with running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
