"""Whether to solve a problem dense, by its measured cost, and doing so in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.product_error import product_error
from landscape.errors import NumericalError, ProblemError, UsageError
from landscape.linalg.dense import DenseSpectrum, dense_spectrum, materialise
from landscape.problem.objective import Objective
from landscape.runtime.arithmetic import is_out_of_memory
from landscape.runtime.memory import usable_bytes
from landscape.runtime.progress import Progress
from landscape.spectra.density import density_of, measure_of_all
from landscape.spectra.negative import negative_exact
from landscape.spectra.settings import SpectrumSettings

# Dense is worth waiting this long for (seconds), whatever the iterative way would cost: its numbers are exact.
PATIENCE = 10.0
# Seconds per n³ of a symmetric eigensolver on two CPU cores (4.5 s at n = 4,650); a GPU is much faster.
EIGENSOLVER = {"cpu": 4.5e-11, "cuda": 3e-12}
LARGEST = {"cpu": 12_000, "cuda": 30_000}
# H, its transpose while symmetrising, and the eigensolver's workspace.
COPIES = 4
# The share of ‖H‖ that may be antisymmetric where rounding does not explain it.
LOPSIDED = 1e-10


def dense_seconds(operator: CurvatureOperator) -> float:
    """Predicted wall time of all columns and of the eigensolver."""
    return operator.n * operator.plan.product_seconds + EIGENSOLVER.get(operator.device.type, 4.5e-11) * operator.n**3


def considered(n: int, device: torch.device) -> bool:
    """Whether a dense solution is worth measuring at all."""
    return n <= LARGEST.get(device.type, LARGEST["cpu"])


def wants_dense(operator: CurvatureOperator, iterative_products: int, memory: int | None) -> bool:
    """Whether the dense float64 solution costs little, in itself or against `iterative_products` in float32."""
    iterative = 0.5 * operator.plan.product_seconds * iterative_products
    affordable = dense_seconds(operator) <= max(PATIENCE, 1.5 * iterative)
    return affordable and _fits(operator, memory)


def offered(operator: CurvatureOperator, memory: int | None) -> float | None:
    """Seconds that the dense solution would take, where it would fit; None where it would not."""
    return dense_seconds(operator) if _fits(operator, memory) else None


def count_offer(found: Mapping[str, Any], seconds: float | None, tau: float) -> str:
    """What a bracket of the number of negative eigenvalues would cost to close; empty where there is nothing to say."""
    place = int(np.abs(np.asarray(found["tau"]) - tau).argmin())
    low, high = int(found["negative_count_low"][place]), int(found["negative_count_high"][place])
    if seconds is None or low == high:
        return ""
    words = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else "hours"
    return f"between {low:,} and {high:,} eigenvalues are below -tau: --exact counts them in about {words}"


def require_fit(operator: CurvatureOperator, memory: int | None) -> None:
    """Refuse `--exact` where the matrix does not fit.

    Raises:
        UsageError: with the memory it would take.
    """
    if not _fits(operator, memory):
        needed = COPIES * 8 * operator.n**2 / 1e9
        raise UsageError(
            f"--exact needs {needed:.3g} GB for the dense matrix of {operator.n} parameters, more than may be used",
            "leave --exact out, choose a block with --params, or raise --memory",
        )


def _fits(operator: CurvatureOperator, memory: int | None) -> bool:
    return COPIES * 8 * operator.n**2 <= usable_bytes(operator.device, memory)


def float64_operator(objective: Objective, operator: str, **plan: object) -> CurvatureOperator:
    """The operator in float64; the objective itself if it is float64 already.

    Raises:
        ProblemError: the model or loss does not run in float64.
    """
    try:
        wide = objective if objective.dtype == torch.float64 else objective.in_dtype(torch.float64)
        return CurvatureOperator(wide, operator, expected_products=wide.layout.total, **plan)  # type: ignore[arg-type]
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ProblemError(
            f"the model or loss does not run in float64 ({reason})",
            "make tensors in it in the dtype of the inputs, such as weight.to(outputs.dtype); or use --no-exact",
        ) from error


def solve_dense(operator: CurvatureOperator, vectors: tuple[int, int]) -> DenseSpectrum:
    """All eigenvalues, and eigenvectors of the `vectors` = (top, bottom) ends.

    Raises:
        NumericalError: a product has NaN or Inf.
    """
    try:
        matrix, asymmetry = materialise(
            operator, operator.n, dtype=operator.dtype, device=operator.device, block=max(operator.width, 16)
        )
    except FloatingPointError as error:
        raise NumericalError(
            "the Hessian has NaN or Inf entries", "`landscape doctor` looks for the layer that makes them"
        ) from error
    return dense_spectrum(matrix, asymmetry, top=vectors[0], bottom=vectors[1])


def dense_fields(operator: CurvatureOperator, settings: SpectrumSettings, tell: Progress) -> dict[str, Any]:
    """All spectral fields of `results.Spectrum` from the dense solution; bounds carry what cancels in its products."""
    n = operator.n
    top, bottom = min(settings.top, n), min(settings.bottom, n)
    solved = solve_dense(operator, (top, bottom) if settings.vectors else (0, 0))
    values = solved.values
    noise = product_error(operator.objective, settings.operator, settings.seed, operator.plan.chunk, operator.uncounted)
    _require_symmetric(solved, noise)
    bound = solved.bound + noise
    scale = float(np.max(np.abs(values)))
    allowed = np.maximum(settings.rtol * np.abs(values), settings.tau * scale)
    trace, slack = float(values.sum()), math.sqrt(n) * bound
    found: dict[str, Any] = {
        "exact": True,
        "product_error": bound,
        "top_value": values[::-1][:top],
        "top_residual": np.full(top, bound),
        "top_converged": (bound <= allowed)[::-1][:top],
        "top_complete": np.ones(top, dtype=bool),
        "bottom_value": values[:bottom],
        "bottom_residual": np.full(bottom, bound),
        "bottom_converged": (bound <= allowed)[:bottom],
        "bottom_complete": np.ones(bottom, dtype=bool),
        "trace": trace,
        "trace_low": trace - slack,
        "trace_high": trace + slack,
        "excluded_below": float(values[0] - bound),
        "excluded_probability": 0.0,
        "eigenvalues": values,
        **vars(negative_exact(values, bound, settings.tau)),
    }
    if settings.density:
        floor = float(found["tau_absolute"][0])
        found.update(vars(density_of(measure_of_all(values, bound), floor, settings.density_width)))
    if settings.vectors:
        found.update(vector_fields(operator, solved.top_vector, solved.bottom_vector))
    tell("dense matrix", n, n)
    return found


def _require_symmetric(solved: DenseSpectrum, noise: float) -> None:
    """What making the matrix symmetric has removed is rounding; here its Frobenius norm is held to all columns' errors.

    Raises:
        ProblemError: it is not.
    """
    size = float(np.linalg.norm(solved.values))
    if solved.bound > LOPSIDED * size + 10 * math.sqrt(len(solved.values)) * noise:
        raise ProblemError(
            f"the dense Hessian is not symmetric: its antisymmetric part is {solved.bound / size:.0e} of it, and "
            f"rounding explains {noise / size:.0e}",
            "`landscape doctor` looks for the layer whose second derivative is wrong",
        )


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
