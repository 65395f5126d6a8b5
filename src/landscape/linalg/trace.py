"""Traces of symmetric operators: exact on a known subspace, estimated with intervals on its complement.

The split into a subspace and its complement is Hutch++'s (Meyer, Musco, Musco & Woodruff 2021), with the Lanczos
basis that is there anyway as the sketch. `xtrace` is the standalone estimator of Epperly, Tropp & Webber (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]

SLAB_ELEMENTS = 2**22


def complement_quadratic_forms(
    probes: Tensor, products: Tensor, project: Callable[[Tensor], Tensor], projected: np.ndarray
) -> np.ndarray:
    """Unbiased samples, float64 [b], of tr((I − QᵀQ) H (I − QᵀQ)), the trace beyond a subspace.

    With y = (I − QᵀQ) z, yᵀHy = zᵀHz − 2 (Qz)ᵀ(QHz) + (Qz)ᵀT(Qz), divided by ‖y‖² and multiplied by the dimension
    n − m of the complement (y/‖y‖ is uniform on its sphere, for Gaussian or spherical z). All in float64: the terms
    cancel, and the products' own rounding remains, about eps · ‖H‖ · n.

    Args:
        probes, products: Z and HZ, [n, b].
        project: X [n, b] -> Q X, float64 [m, b], for orthonormal rows Q; see `lanczos.Extremes`.
        projected: T = Q H Qᵀ, float64 [m, m].
    """
    n, m = probes.shape[0], projected.shape[0]
    if m >= n:
        return np.zeros(probes.shape[1])
    both = project(torch.cat([probes, products], dim=1)).cpu().numpy()  # the basis is read once
    qz, qhz = both[:, : probes.shape[1]], both[:, probes.shape[1] :]
    form = _dots(probes, products) - 2 * np.sum(qz * qhz, axis=0) + np.sum(qz * (projected @ qz), axis=0)
    left = _dots(probes, probes) - np.sum(qz**2, axis=0)
    return np.asarray(form * (n - m) / left)


def student_interval(
    samples: np.ndarray, offset: float, confidence: float = 0.95, first_stage: int | None = None
) -> tuple[float, float, float]:
    """offset + mean of the samples, with the ends of its t-interval (infinite for a single sample).

    `first_stage`: variance and degrees of freedom come from that many first samples only, which keeps the interval
    valid when the number of samples was chosen by looking at them (Stein 1945); see `samples_for`.
    """
    seen = samples[:first_stage]
    value = offset + float(np.mean(samples))
    half = _half_width(seen, len(samples), confidence)
    return value, value - half, value + half


def samples_for(samples: np.ndarray, half_width: float, confidence: float = 0.95) -> int:
    """Samples in total, these included, whose interval has this half-width: Stein's (1945) two-stage rule.

    Afterwards `student_interval(all_samples, …, first_stage=len(samples))` is at most that wide and valid.
    """
    if len(samples) < 2:
        raise ValueError("the first stage needs at least two samples")
    ratio = _half_width(samples, 1, confidence) / half_width if half_width > 0 else math.inf
    if not math.isfinite(ratio):
        raise ValueError("no number of samples gives a half-width of zero")
    return max(len(samples), math.ceil(ratio**2))


def _half_width(seen: np.ndarray, count: int, confidence: float) -> float:
    if len(seen) < 2:
        return math.inf
    quantile = float(stdtrit(len(seen) - 1, (1 + confidence) / 2))
    return quantile * float(np.std(seen, ddof=1)) / math.sqrt(count)


def xtrace(
    matvec: Matvec,
    n: int,
    products: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[float, float]:
    """Trace and its standard error from at most this many products (XTrace; Epperly, Tropp & Webber 2024, §2).

    Each of l = products // 2 probes ω_i in turn is left out of the sketch Y = HΩ = QR: with s_i the unit vector
    orthogonal to the other columns of R, the sketch without i is Q(I − s_i s_iᵀ)Qᵀ, its trace is known from QᵀHQ,
    and ω_i gives an unbiased sample of the rest. The mean over i is unbiased.

    Raises:
        FloatingPointError: a product has NaN or Inf.
        ValueError: fewer than four products.
    """
    count = min(products // 2, n)
    if products < 4:
        raise ValueError("xtrace needs at least four products")
    draws = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(count)]
    omega = torch.stack([math.sqrt(n) * z / z.norm() for z in draws], dim=1).to(device, dtype)
    sketch = matvec(omega)
    if not bool(torch.isfinite(sketch).all()):
        raise FloatingPointError("a product of the trace estimate contains NaN or Inf")
    q = torch.linalg.qr(sketch.double())[0].to(dtype)
    hq = matvec(q)
    if not bool(torch.isfinite(hq).all()):
        raise FloatingPointError("a product of the trace estimate contains NaN or Inf")
    q, omega = q.double(), omega.double()
    r = (q.T @ sketch.double()).cpu().numpy()
    h, w = (q.T @ hq.double()).cpu().numpy(), (q.T @ omega).cpu().numpy()
    h = (h + h.T) / 2
    samples = _leave_one_out(r, h, w, n)
    error = float(np.std(samples, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return float(np.mean(samples)), 0.0 if count == n else error


def _leave_one_out(r: np.ndarray, h: np.ndarray, w: np.ndarray, n: int) -> np.ndarray:
    """Trace estimates [l] from R = QᵀHΩ, QᵀHQ and W = QᵀΩ, columns of Ω of norm √n."""
    # rank-deficient sketches (H of low rank): any s_i that completes the basis will do
    diagonal = np.abs(np.diag(r))
    floor = np.finfo(float).eps * float(np.max(diagonal)) or 1.0
    r_safe = r + np.diag(np.where(diagonal < floor, floor, 0.0))
    s = np.linalg.inv(r_safe).T
    s = s / np.linalg.norm(s, axis=0)
    x = w - s * np.sum(s * w, axis=0)
    inside = np.trace(h) - np.sum(s * (h @ s), axis=0)
    form = np.sum(w * r, axis=0) - 2 * np.sum(x * r, axis=0) + np.sum(x * (h @ x), axis=0)
    left = n - np.sum(x**2, axis=0)
    return np.asarray(inside + form * (n - len(h) + 1) / left)


def _dots(x: Tensor, y: Tensor) -> np.ndarray:
    """Column by column xᵀy in float64, [b], without float64 copies of the blocks."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    width = max(1024, SLAB_ELEMENTS // x.shape[1])
    for i in range(0, x.shape[0], width):
        total += (x[i : i + width].double() * y[i : i + width].double()).sum(0)
    return np.asarray(total.cpu().numpy())
