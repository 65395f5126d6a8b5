"""What the model families share: the table of activations, and PyTorch's initialisation from a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Erf(nn.Module):
    """The Gauss error function, the activation for which many infinite-width integrals are closed forms."""

    def forward(self, x: Tensor) -> Tensor:
        """erf(x / √2), whose slope at 0 is √(2/π)."""
        return torch.erf(x * 0.7071067811865476)


class SigmoidSoftplus(nn.Module):
    """sigmoid(4x) + softplus(x), an asymmetric activation without the symmetries that make minima degenerate."""

    def forward(self, x: Tensor) -> Tensor:
        """sigmoid(4x) + softplus(x)."""
        return torch.sigmoid(4 * x) + torch.nn.functional.softplus(x)


class Sine(nn.Module):
    """sin(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """sin(x)."""
        return torch.sin(x)


class ScaledLinear(nn.Linear):
    """A linear layer whose weights enter with a fixed factor: z = gain · W x + b, with W ~ N(0, 1) and b = 0 at first.

    Args:
        inputs, outputs: sizes. bias: whether there is b. gain: the factor.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, gain: float) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.gain = gain
        nn.init.normal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """gain · W x + b."""
        return nn.functional.linear(x, self.gain * self.weight, self.bias)

    def extra_repr(self) -> str:
        """Also the factor, which tells architectures apart."""
        return f"{super().extra_repr()}, gain={self.gain:g}"


# Smooth ones first: relu's Hessian is that of the active pieces only, and misses the kinks.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "erf": Erf,
    "sine": Sine,
    "sigmoid_softplus": SigmoidSoftplus,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let code that knows only PyTorch's default generator draw from `generator` instead.

    Layers initialise themselves in their constructors, from the process-wide generator and with no way to
    pass another. Its state is put back afterwards, so the caller's random numbers do not notice.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed every GPU.
        torch.default_generator.set_state(generator.get_state())
        yield
        generator.set_state(torch.default_generator.get_state())
