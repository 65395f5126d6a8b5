"""Dense truth of a problem: columns of an own double backward in float64, Gauss–Newton by its formula, and jets.

Shares nothing with the library but `Problem`, the question: the loss is summed here, the named losses are written
out here, and tensors are moved here. Where float64 itself cancels (saturated outputs, targets of 1e9), networks of
linear layers and elementary functions are differentiated a third way: second-order Taylor arithmetic in 80 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import taylor
from landscape.problem.problem import Problem

EPS = np.finfo(np.float64).eps


@dataclass(frozen=True)
class Truth:
    """Matrix [n, n] of the selected parameters, its eigenvalues ascending, and how far all of that may be off."""

    matrix: np.ndarray
    eigenvalues: np.ndarray
    error: float
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    loss: float

    @property
    def scale(self) -> float:
        return float(np.abs(self.eigenvalues).max(initial=0.0))

    def block(self, layer: str) -> np.ndarray:
        """Eigenvalues of the diagonal block of the parameters named `layer.*`."""
        at = np.repeat([name.rpartition(".")[0] == layer for name in self.names], self.sizes)
        return np.linalg.eigvalsh(self.matrix[np.ix_(at, at)])


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _doubled(v) for name, v in value.items()}
    return type(value)(_doubled(v) for v in value) if isinstance(value, tuple | list) else value


def _batches(problem: Problem) -> list[Any]:
    """All data in float64."""
    data = problem.data
    return [_doubled(data)] if isinstance(data, tuple) else [_doubled(b) for b in data]


def named_loss(name: str, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The three losses as README and docstrings define them."""
    if name == "mse":
        return (outputs - y.reshape(outputs.shape)).square().sum(), len(outputs)
    if name == "bce":
        y = y.reshape(outputs.shape)
        # not by softplus, which torch cuts at 20
        return -(y * F.logsigmoid(outputs) + (1 - y) * F.logsigmoid(-outputs)).sum(), len(outputs)
    logs = outputs - torch.logsumexp(outputs, dim=1, keepdim=True)
    if y.is_floating_point():
        return -(y * logs).sum(), len(outputs)
    valid = y != -100
    return -logs[valid].gather(1, y[valid][:, None]).sum(), float(valid.sum())


def _loss(problem: Problem, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    if isinstance(problem.loss, str):
        return named_loss(problem.loss, model(batch[0]), batch[1])
    total, count = problem.loss(model, batch)
    return total, float(count)


def _columns(
    problem: Problem, model: nn.Module, chosen: list[nn.Parameter], batches: list[Any]
) -> tuple[Tensor, float]:
    """Hessian of the data's part of L, and that part; not symmetrised."""
    n = sum(p.numel() for p in chosen)
    matrix, total, count = torch.zeros(n, n, dtype=torch.float64), 0.0, 0.0
    for batch in batches:
        part, number = _loss(problem, model, batch)
        total, count = total + float(part.detach()), count + number
        if not part.requires_grad:
            continue
        first = torch.autograd.grad(part, chosen, create_graph=True, allow_unused=True)
        flat = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(chosen, first, strict=True)]
        )
        if not flat.requires_grad:
            continue
        for i in range(n):
            second = torch.autograd.grad(flat[i], chosen, retain_graph=True, allow_unused=True)
            parts = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(chosen, second, strict=True)]
            matrix[i] += torch.cat(parts)
    return matrix / count, total / count


def _output_curvature(name: str, z: Tensor, y: Tensor) -> Tensor:
    """∂²ℓ/∂z² of one sample [k, k]."""
    if name == "mse":
        return 2 * torch.eye(len(z), dtype=z.dtype)
    if name == "bce":
        return torch.diag(torch.sigmoid(z) * torch.sigmoid(-z))
    if not y.is_floating_point() and int(y) == -100:
        return torch.zeros(len(z), len(z), dtype=z.dtype)
    p = torch.softmax(z, 0)
    others = torch.stack([torch.cat([p[:i], p[i + 1 :]]).sum() for i in range(len(p))])  # 1 − p cancels
    curvature = -p[:, None] * p
    curvature.diagonal().copy_(p * others)
    return (y.sum() if y.is_floating_point() else 1.0) * curvature


def _gauss_newton(name: str, model: nn.Module, chosen: list[nn.Parameter], batches: list[Any]) -> tuple[Tensor, float]:
    """Σ JᵀHJ / Σ counts for a named loss, and the largest eigenvalue that J itself allows, Σ|J|²/Σ counts."""
    n = sum(p.numel() for p in chosen)
    matrix, reach, count = torch.zeros(n, n, dtype=torch.float64), 0.0, 0.0
    for x, y in batches:
        outputs = model(x)
        count += float((y != -100).sum()) if name == "cross_entropy" and not y.is_floating_point() else len(x)
        for z, target in zip(outputs.flatten(1), y, strict=True):
            rows = [torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True) for value in z]
            j = torch.stack([torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                                        for p, g in zip(chosen, row, strict=True)]) for row in rows])  # fmt: skip
            matrix += j.T @ _output_curvature(name, z.detach(), target) @ j
            reach += float(j.square().sum())
    return matrix / count, reach / count


def _slopes(name: str, z: Tensor, y: Tensor) -> Tensor:
    """∂ℓ/∂z of outputs [N, k], without the difference p − y where p is near 1."""
    if name == "bce":
        y = y.reshape(z.shape)
        return (1 - y) * torch.sigmoid(z) - y * torch.sigmoid(-z)
    p = torch.softmax(z, 1)
    others = 1 - torch.eye(z.shape[1], dtype=z.dtype)
    if not y.is_floating_point():
        valid = y != -100
        y = F.one_hot(y.clamp(min=0), z.shape[1]).to(z) * valid[:, None]
    return p * (y @ others) - y * (p @ others)


def _in_parts(name: str, model: nn.Module, chosen: list[nn.Parameter], batches: list[Any]) -> tuple[Tensor, float]:
    """The Hessian of a named loss as JᵀHJ + Σ ∂ℓ/∂z ∇²z, and how far float64 may be off: exponents of |z| are."""
    ggn, _ = _gauss_newton(name, model, chosen, batches)
    largest = 1.0

    def weighted(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        """Σ z ∂ℓ/∂z with the second factor held fixed."""
        nonlocal largest
        z = model(batch[0])
        largest = max(largest, float(z.detach().abs().max()))
        return (z * _slopes(name, z.detach(), batch[1])).sum(), named_loss(name, z.detach(), batch[1])[1]

    held = Problem(model, batches, weighted)
    residual, _ = _columns(held, model, chosen, batches)
    other, _ = _columns(held, model, chosen, _reversed(batches))
    size = float(ggn.norm()) + float(residual.norm())
    error = 4 * EPS * (len(ggn) + largest) * size + float((residual - residual.T).norm())
    return ggn + residual, error + 4 * float((residual - other).norm())


def _reversed(batches: list[Any]) -> list[Any]:
    """The same samples in the opposite order: other roundings."""
    return [type(b)(t.flip(0) for t in b) for b in reversed(batches)]


def _selected(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {k: p for k, p in found.items() if not patterns or any(fnmatchcase(k, g) for g in patterns)}


def dense_truth(problem: Problem, operator: str = "hessian", params: Sequence[str] = (), sharp: bool = True) -> Truth:
    """The operator's matrix over all the problem's data.

    `sharp` measures how far float64 itself may be off, for comparison with bounds of float64's size; without it only
    the roundings of a well-conditioned sum are allowed for.
    """
    model = copy.deepcopy(problem.model).double().eval()
    for module in model.modules():
        if hasattr(module, "casts"):
            module.casts = False
    chosen = _selected(model, params)
    tensors, batches = list(chosen.values()), _batches(problem)
    with sdpa_kernel([SDPBackend.MATH]):
        matrix, loss = _columns(problem, model, tensors, batches)
        error = 4 * len(matrix) * EPS * float(matrix.norm()) + float((matrix - matrix.T).norm())
        if sharp:
            other = _columns(problem, model, tensors, _reversed(batches))[0] if _samplewise(problem) else matrix
            error += 4 * float((matrix - other).norm())
        if operator != "hessian":
            ggn, reach = _gauss_newton(str(problem.loss), model, tensors, batches)
            matrix = ggn if operator == "ggn" else matrix - ggn
            error += 4 * len(matrix) * EPS * float(ggn.norm()) + 8 * EPS * reach
        elif sharp and isinstance(problem.loss, str):
            exact = taylor.hessian(problem.loss, model, tensors, batches)
            if exact is not None:
                matrix, error = (
                    torch.from_numpy(exact.astype(np.float64)),
                    len(matrix) * EPS * float(np.linalg.norm(exact)),
                )
            elif problem.loss != "mse":  # above, 1 − p is off by a rounding of 1, whatever the Hessian is
                matrix, error = _in_parts(problem.loss, model, tensors, batches)
    if operator != "residual":
        matrix = matrix + problem.weight_decay * torch.eye(len(matrix), dtype=torch.float64)
    norm = sum(float(p.detach().square().sum()) for p in model.parameters() if p.requires_grad)
    h = 0.5 * (matrix + matrix.T).numpy()
    if not (np.isfinite(h).all() and np.isfinite(error)):
        raise FloatingPointError("the Hessian overflows")
    names, sizes = tuple(chosen), tuple(p.numel() for p in tensors)
    return Truth(h, np.linalg.eigvalsh(h), error, names, sizes, loss + 0.5 * problem.weight_decay * norm)


def _samplewise(problem: Problem) -> bool:
    """Whether the order of samples is free, as it is in sums over samples."""
    return isinstance(problem.loss, str) or getattr(problem.loss, "__name__", "") != "pairwise"
