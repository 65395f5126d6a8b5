"""Second-order Taylor arithmetic in extended precision: the Hessian of small networks where float64 cancels.

A jet holds a value and its first and second derivatives by all parameters, as NumPy arrays of `longdouble` (64 bits of
mantissa on x86; where it is no wider than float64, nothing is claimed). No autograd anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

LONG = np.longdouble
WIDER = np.finfo(LONG).eps < 1e-18
# Entries of second derivatives that one network may need.
MOST = 6_000_000
Array = Any


class Jet:
    """Value v [N, k], gradient g [N, k, P] and Hessian h [N, k, P, P]."""

    def __init__(self, v: Array, g: Array, h: Array) -> None:
        self.v, self.g, self.h = v, g, h

    def through(self, f: Array, f1: Array, f2: Array) -> Jet:
        """An elementary function with its two derivatives at v."""
        outer = self.g[..., :, None] * self.g[..., None, :]
        return Jet(f, f1[..., None] * self.g, f2[..., None, None] * outer + f1[..., None, None] * self.h)


def _tanh(v: Array) -> tuple[Array, Array, Array]:
    t = np.tanh(v)
    d = 4 * np.exp(-2 * np.abs(v)) / (1 + np.exp(-2 * np.abs(v))) ** 2  # 1 − t² would cancel
    return t, d, -2 * t * d


def _sigmoid(v: Array) -> tuple[Array, Array, Array]:
    small = np.exp(-np.abs(v))
    s = np.where(v >= 0, 1, small) / (1 + small)
    d = small / (1 + small) ** 2
    return s, d, d * np.where(v >= 0, -1, 1) * (1 - small) / (1 + small)


def _relu(v: Array) -> tuple[Array, Array, Array]:
    return np.maximum(v, 0), (v > 0).astype(LONG), np.zeros_like(v)


def _leaky(v: Array) -> tuple[Array, Array, Array]:
    slope = np.where(v > 0, LONG(1), LONG(0.01))
    return slope * v, slope, np.zeros_like(v)


def _silu(v: Array) -> tuple[Array, Array, Array]:
    s, d, d2 = _sigmoid(v)
    return v * s, s + v * d, 2 * d + v * d2


def _softsign(v: Array) -> tuple[Array, Array, Array]:
    b = 1 + np.abs(v)
    return v / b, 1 / b**2, -2 * np.sign(v) / b**3


def _sine(v: Array) -> tuple[Array, Array, Array]:
    return np.sin(v), np.cos(v), -np.sin(v)


FUNCTIONS: dict[str, Callable[[Array], tuple[Array, Array, Array]]] = {
    "Tanh": _tanh, "Sigmoid": _sigmoid, "ReLU": _relu, "Sine": _sine,
    "LeakyReLU": _leaky, "SiLU": _silu, "Softsign": _softsign,
    "Identity": lambda v: (v, np.ones_like(v), np.zeros_like(v)),
}  # fmt: skip


def _linear(jet: Jet, layer: nn.Linear, start: dict[int, int]) -> Jet:
    weight = layer.weight.detach().numpy().astype(LONG)
    out, inner = weight.shape
    v = jet.v @ weight.T
    g = np.einsum("jk,nkp->njp", weight, jet.g)
    h = np.einsum("jk,nkpq->njpq", weight, jet.h)
    at = start.get(id(layer.weight))
    if at is not None:
        for j in range(out):
            for k in range(inner):
                p = at + j * inner + k
                g[:, j, p] += jet.v[:, k]
                h[:, j, p, :] += jet.g[:, k, :]
                h[:, j, :, p] += jet.g[:, k, :]
    if layer.bias is not None:
        v = v + layer.bias.detach().numpy().astype(LONG)
        if (at := start.get(id(layer.bias))) is not None:
            for j in range(out):
                g[:, j, at + j] += 1
    return Jet(v, g, h)


def _curved(z: Jet, first: Array, second: Array) -> Array:
    """Σ over samples of the Hessian of ℓ(z): first [N, k] and second [N, k, k] derivatives of ℓ by z."""
    return np.einsum("njp,njk,nkq->pq", z.g, second, z.g) + np.einsum("nj,njpq->pq", first, z.h)


def _loss(name: str, z: Jet, y: Tensor) -> tuple[Array, float]:
    eye = np.eye(z.v.shape[1], dtype=LONG)
    if name == "cross_entropy":
        e = np.exp(z.v - z.v.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        if y.is_floating_point():
            t = y.numpy().astype(LONG)
            count = float(len(t))
        else:
            labels = y.numpy()
            t = np.where(labels[:, None] == np.arange(len(eye)), LONG(1), LONG(0))
            count = float((labels != -100).sum())
        weight = t.sum(axis=1)
        first = weight[:, None] * p - t
        second = weight[:, None, None] * (p[:, :, None] * eye - p[:, :, None] * p[:, None, :])
        # p(1 − p) from the others' sum, which does not cancel
        others = np.stack([np.delete(p, j, axis=1).sum(axis=1) for j in range(len(eye))], axis=1)
        second[:, np.arange(len(eye)), np.arange(len(eye))] = weight[:, None] * p * others
        own = t == weight[:, None]
        first = np.where(own & (weight[:, None] == 1), -others, first)
        return _curved(z, first, second), count
    t = y.numpy().astype(LONG).reshape(z.v.shape)
    if name == "mse":
        return _curved(z, 2 * (z.v - t), np.broadcast_to(2 * eye, (len(t), *eye.shape))), float(len(t))
    s, d, _ = _sigmoid(z.v)
    first = np.where(t == 1, -_sigmoid(-z.v)[0], s - t)
    return _curved(z, first, d[:, :, None] * eye), float(len(t))


def hessian(loss: str, model: nn.Module, chosen: list[nn.Parameter], batches: list[Any]) -> Array | None:
    """Hessian [P, P] of a named loss's mean, or None for networks that this arithmetic does not know."""
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    if not WIDER or not all(isinstance(m, nn.Linear) or type(m).__name__ in FUNCTIONS for m in layers):
        return None
    n = sum(p.numel() for p in chosen)
    widest = max(m.out_features for m in layers if isinstance(m, nn.Linear))
    if max(len(x) for x, _ in batches) * widest * n * n > MOST:
        return None
    start, at = {}, 0
    for p in chosen:
        start[id(p)] = at
        at += p.numel()
    total, count = np.zeros((n, n), LONG), 0.0
    for x, y in batches:
        v = x.numpy().astype(LONG)
        jet = Jet(v, np.zeros((*v.shape, n), LONG), np.zeros((*v.shape, n, n), LONG))
        for layer in layers:
            jet = (
                _linear(jet, layer, start)
                if isinstance(layer, nn.Linear)
                else jet.through(*FUNCTIONS[type(layer).__name__](jet.v))
            )
        part, number = _loss(loss, jet, y)
        total, count = total + part, count + number
    return total / count
