"""What is left to report where the loss or a product is not finite."""

from __future__ import annotations

import math

import numpy as np

from landscape.problem.batches import length_of
from landscape.problem.parameters import layout_of, select, spellings, trainable
from landscape.problem.problem import Problem, is_pair
from landscape.results.fields import Spectrum, Spent
from landscape.spectra.negative import floors
from landscape.spectra.settings import SpectrumSettings


def failed_spectrum(problem: Problem, settings: SpectrumSettings, seconds: float) -> Spectrum:
    """What can be said where the loss or a product is not finite: sizes, the rest NaN or empty."""
    own = trainable(problem.model)
    chosen = select(spellings(problem.model), settings.params) if settings.params else tuple(own)
    parameters = layout_of({name: own[name] for name in chosen}).total
    batches = [problem.data] if is_pair(problem.data) else list(problem.data)
    samples = settings.samples or sum(length_of(b) for b in batches)
    dtype = str(next(iter(own.values())).dtype).removeprefix("torch.")
    nothing, floors_ = np.zeros(0), floors(settings.tau)
    missing = np.full(len(floors_), math.nan)
    return Spectrum(
        operator=settings.operator,
        strategy="none",
        exact=False,
        parameters=parameters,
        samples=samples,
        loss=math.nan,
        gradient_norm=math.nan,
        product_error=math.nan,
        trace=math.nan,
        trace_low=math.nan,
        trace_high=math.nan,
        top_value=nothing,
        top_residual=nothing,
        bottom_value=nothing,
        bottom_residual=nothing,
        top_converged=nothing.astype(bool),
        bottom_converged=nothing.astype(bool),
        tau=floors_,
        tau_absolute=missing,
        negative_mass=missing,
        negative_mass_low=missing,
        negative_mass_high=missing,
        negative_count_low=np.zeros(len(floors_)),
        negative_count_high=np.full(len(floors_), float(parameters)),
        excluded_below=math.nan,
        excluded_probability=1.0,
        spent=Spent(0, seconds, dtype, settings.device, {}),
    )
