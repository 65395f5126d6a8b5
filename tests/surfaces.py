"""Losses that are given functions of θ, as problems: planted quadratics, monkey saddles, linear networks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from landscape.problem.problem import Problem
from landscape.stack.build import build_stack
from landscape.stack.stack import Stack
from planted import planted_dense


class Point(nn.Module):
    """θ itself."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def surface(function: Callable[[Tensor], Tensor], theta: Tensor, samples: int = 3) -> Problem:
    """The problem whose loss at θ [P] is `function(θ)`, whatever its `samples` samples are."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return len(batch[0]) * function(model(batch[0][:1])[0]), len(batch[0])

    data = (torch.zeros(samples, 1, dtype=theta.dtype), torch.zeros(samples))
    return Problem(Point(theta), data, loss)


def surfaces(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Stack, Tensor]:
    """A stack whose members start at the rows of θ [S, P]."""
    stack, _ = build_stack([surface(function, row) for row in theta[:1]])
    return stack, theta


def quadratic(eigenvalues: Tensor, seed: int = 0, centre: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """½ (θ − c)ᵀ H (θ − c) with a planted spectrum; 3 at the centre."""
    h = planted_dense(eigenvalues, seed)
    c = torch.zeros(len(h), dtype=h.dtype) if centre is None else centre

    def function(theta: Tensor) -> Tensor:
        d = theta - c.to(theta)
        return 0.5 * d @ (h.to(theta) @ d) + 3

    return function


def monkey_saddle(theta: Tensor) -> Tensor:
    """x³ − 3xy² + 1: H = 0 at the origin, which is no minimum."""
    return theta[0] ** 3 - 3 * theta[0] * theta[1] ** 2 + 1


def linear_network(width: int, depth: int, inputs: int, outputs: int) -> nn.Sequential:
    """Linear layers without biases."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers).double()
