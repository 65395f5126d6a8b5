"""Diagonal blocks of the curvature, layer by layer: λ_max, λ_min and trace of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from landscape.curvature.eigenpairs import basis_room, find_extremes
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.problem.objective import Objective
from landscape.problem.parameters import by_layer
from landscape.spectra.probing import probe, trace_interval

PRODUCTS_PER_LAYER = 120


@dataclass(frozen=True)
class Layers:
    """Per layer [l]: see the fields of the same names in `results.Spectrum`; `products` spent in all."""

    layer: np.ndarray
    layer_parameters: np.ndarray
    layer_top: np.ndarray
    layer_top_residual: np.ndarray
    layer_bottom: np.ndarray
    layer_bottom_residual: np.ndarray
    layer_trace: np.ndarray
    layer_trace_low: np.ndarray
    layer_trace_high: np.ndarray
    products: int


def layer_blocks(
    objective: Objective,
    operator: str,
    *,
    rtol: float,
    tau: float,
    seed: int,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Layers:
    """Extremes and trace of every layer's diagonal block; a layer is a module that owns selected parameters."""
    groups = by_layer(objective.names)
    rows: list[tuple[float, ...]] = []
    products = 0
    for done, names in enumerate(groups.values()):
        part = objective.with_parameters(names)
        block = CurvatureOperator(part, operator, memory=memory, expected_products=PRODUCTS_PER_LAYER)
        rows.append((block.n, *_block_numbers(part, block, rtol, tau, seed, memory)))
        products += block.products
        if progress is not None:
            progress(done + 1, len(groups))
    sizes, top, top_residual, bottom, bottom_residual, trace, trace_low, trace_high = np.array(rows).T
    return Layers(
        np.array(list(groups)),
        sizes.astype(np.int64),
        top,
        top_residual,
        bottom,
        bottom_residual,
        trace,
        trace_low,
        trace_high,
        products,
    )


def _block_numbers(
    part: Objective, block: CurvatureOperator, rtol: float, tau: float, seed: int, memory: int | None
) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(seed)
    noise = product_error(part, block.plan.operator, seed, block.plan.chunk, block.uncounted)
    found = find_extremes(
        block,
        top=1,
        bottom=1,
        rtol=rtol,
        tau=tau,
        noise=noise,
        max_products=PRODUCTS_PER_LAYER,
        towards=part.value_and_gradient()[1],
        room=basis_room(block, memory, 2),
        generator=generator,
    )
    probing = probe(block, None, found, probes=8, steps=0, generator=generator)
    trace = trace_interval(block, found, probing.samples, noise=noise, budget=32, generator=generator)
    bottom_value = found.bottom_value if len(found.bottom_value) else found.top_value
    bottom_residual = found.bottom_residual if len(found.bottom_residual) else found.top_residual
    return (
        float(found.top_value[0]),
        float(found.top_residual[0]),
        float(bottom_value[0]),
        float(bottom_residual[0]),
        *trace,
    )
