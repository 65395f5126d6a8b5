"""Points whose nature is known: planted critical points of known index, kinks, channels, and foreign units.

`planted(kind, seed)` makes one; `counts(kinds, seeds)` judges many and says what was called by a false name. The units
of every problem (of the loss, of the data, of the parameters, and a constant in the loss) are drawn over many decades.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import descend
from landscape.points.certificate import Certificate
from landscape.points.certify import certify_stack
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack
from planted import planted_dense
from surfaces import linear_network, surface

EPS = 2.0**-52
NO_MINIMUM = ("saddle", "degenerate", "not stationary")


@dataclass(frozen=True)
class Planted:
    """A problem at a point, the verdicts that are true of it, and its index (None: not checked).

    `descent`: certify where the default descent from there ends instead.
    """

    problem: Problem
    true: tuple[str, ...]
    index: int | None = None
    descent: bool = False


def judged(point: Planted) -> Certificate:
    """The certificate of a planted point."""
    if point.descent:
        return descend(point.problem).certificate
    return certify_stack(*build_stack([point.problem]))[0]


def fault(kind: str, seed: int) -> str:
    """What is false in the certificate of a planted point; empty if nothing is."""
    point = planted(kind, seed)
    found = judged(point)
    if found.verdict not in point.true:
        return f"{kind}, seed {seed}: {found.verdict} ({found.reason}), not {' or '.join(point.true)}"
    if point.index is not None and found.negative != point.index:
        return f"{kind}, seed {seed}: {found.negative} negative eigenvalues, not {point.index}"
    return ""


def counts(kinds: Iterable[str], seeds: Iterable[int]) -> tuple[int, list[str]]:
    """How many points were judged, and the faults."""
    both = [(kind, seed) for seed in seeds for kind in kinds]
    return len(both), [f for f in (fault(kind, seed) for kind, seed in both) if f]


# ---- functions of the parameters ----------------------------------------------------------------------------------


def decades(rng: np.random.Generator, width: float) -> float:
    """A unit: 10 to a uniform power within ± width."""
    return float(10 ** rng.uniform(-width, width))


def polynomial(rng: np.random.Generator, eigenvalues: np.ndarray, quartic: float = 0.0) -> Planted:
    """a (½ dᵀHd + Σ c d³ + q Σ d⁴) + b with d = θ/u − centre, at its centre within the last digits of θ."""
    n = len(eigenvalues)
    h = planted_dense(torch.as_tensor(eigenvalues), int(rng.integers(2**31)))
    a, unit = decades(rng, 10), decades(rng, 8)
    b = a * rng.choice([0.0, -1.0, 1e4, 1e8])
    cubic = 0.0 if quartic else rng.uniform(-1, 1)
    theta = torch.as_tensor(unit * rng.standard_normal(n) * rng.choice([0.0, 1.0, 1e3]))
    centre = theta * (1 + EPS * torch.as_tensor(rng.integers(-1, 2, n)))

    def function(t: Tensor) -> Tensor:
        d = (t - centre.to(t)) / unit
        return a * (0.5 * d @ (h.to(t) @ d) + cubic * d.pow(3).sum() + quartic * d.pow(4).sum()) + b

    return Planted(surface(function, theta), ())


def minimum(rng: np.random.Generator) -> Planted:
    eigenvalues = 10.0 ** rng.uniform(-5, 0, rng.integers(1, 15))
    return _with(polynomial(rng, eigenvalues), "minimum", index=0)


def saddle(rng: np.random.Generator) -> Planted:
    eigenvalues = 10.0 ** rng.uniform(-5, 0, rng.integers(2, 15))
    index = int(rng.integers(1, len(eigenvalues) + 1))
    eigenvalues[:index] *= -1
    return _with(polynomial(rng, eigenvalues), "saddle", index=index)


def degenerate(rng: np.random.Generator) -> Planted:
    eigenvalues = 10.0 ** rng.uniform(-4, 0, rng.integers(2, 15))
    eigenvalues[: rng.integers(1, len(eigenvalues) + 1)] = 0.0
    return _with(polynomial(rng, eigenvalues, quartic=float(rng.choice([-1.0, 1.0]))), "degenerate", index=0)


def slope(rng: np.random.Generator) -> Planted:
    """Beside the minimum, by a thousandth to a hundred times the parameters, whatever constant the loss has."""
    a, unit, n = decades(rng, 10), decades(rng, 8), int(rng.integers(1, 8))
    b, away = a * rng.choice([0.0, 1.0, 1e8, 1e10]), 10 ** rng.uniform(-3, 2)
    theta = torch.as_tensor(unit * rng.standard_normal(n))
    centre = theta + away * unit * torch.as_tensor(rng.standard_normal(n))
    at_zero = rng.random() < 0.3

    def function(t: Tensor) -> Tensor:
        d = (t - (centre - theta if at_zero else centre).to(t)) / unit
        return a * 0.5 * d @ d + b

    return Planted(surface(function, torch.zeros_like(theta) if at_zero else theta), ("not stationary",))


def _with(point: Planted, *true: str, index: int | None = None) -> Planted:
    return Planted(point.problem, true, index, point.descent)


# ---- networks -----------------------------------------------------------------------------------------------------


def regression(rng: np.random.Generator) -> Planted:
    """Least squares at its solution, in any units of the inputs and targets."""
    problem, solution, bias = _regression(rng, noise=1.0)
    _put(problem.model, solution, bias)
    return Planted(problem, ("minimum",), 0)


def off_regression(rng: np.random.Generator) -> Planted:
    """The same without its slope: the mean of the targets alone, or nothing at all."""
    problem, solution, bias = _regression(rng, noise=float(rng.choice([0.0, 1e-2, 1.0])))
    _put(problem.model, torch.zeros_like(solution), bias if rng.random() < 0.7 else torch.zeros_like(bias))
    return Planted(problem, ("not stationary", "gradient-flat"))


def _regression(rng: np.random.Generator, noise: float) -> tuple[Problem, Tensor, Tensor]:
    n, p = int(rng.integers(20, 90)), int(rng.integers(1, 5))
    x = torch.as_tensor(rng.standard_normal((n, p)))
    x = x - x.mean(0)
    unit_in, unit_out = decades(rng, 2), decades(rng, 8)
    offset = unit_out * float(rng.choice([0.0, 1.0, 1e4, 1e9]))
    w = torch.as_tensor(rng.standard_normal((p, 1)))
    y = x @ w + noise * torch.as_tensor(rng.standard_normal((n, 1)))
    mean = y.mean()
    solution = torch.linalg.lstsq(x, y - mean).solution
    problem = Problem(nn.Linear(p, 1).double(), (unit_in * x, unit_out * y + offset), "mse")
    return problem, (solution.T * unit_out / unit_in), (unit_out * mean + offset).reshape(1)


def _put(model: nn.Module, *values: Tensor) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)


def linear_net(rng: np.random.Generator) -> Planted:
    """Two linear layers at singular triplets S of the targets: index #{i∈S, j∉S: s_j > s_i} + (h − |S|)·#{j∉S}."""
    width, rank = int(rng.integers(2, 4)), 3
    s = np.sort(rng.uniform(0.5, 3, rank))[::-1].copy() * decades(rng, 6)
    samples = int(rng.integers(20, 60))
    x = torch.linalg.qr(torch.as_tensor(rng.standard_normal((samples, 4))))[0] * samples**0.5 * decades(rng, 1)
    size = float(x.square().sum() / (4 * samples)) ** 0.5
    u, v = (torch.linalg.qr(torch.as_tensor(rng.standard_normal((k, rank))))[0] for k in (3, 4))
    noise = torch.as_tensor(rng.standard_normal((samples, 3))) * s[-1]
    noise -= x @ torch.linalg.lstsq(x, noise).solution  # no linear map explains any of it
    y = x / size @ (v * torch.as_tensor(s)) @ u.T + noise
    chosen = sorted(rng.permutation(rank)[: rng.integers(0, min(width, rank) + 1)].tolist())
    model = linear_network(width, 2, 4, 3)
    first, second = (torch.zeros_like(p) for p in model.parameters())
    for k, j in enumerate(chosen):
        first[k], second[:, k] = (s[j] / size) ** 0.5 * v[:, j], (s[j] / size) ** 0.5 * u[:, j]
    _put(model, first, second)
    rest = [j for j in range(rank) if j not in chosen]
    index = sum(s[j] > s[i] for i in chosen for j in rest) + (width - len(chosen)) * len(rest)
    return Planted(Problem(model, (x, y), "mse"), ("saddle",) if index else ("minimum", "degenerate"), int(index))


def softmax(rng: np.random.Generator) -> Planted:
    """Softmax regression with labels that no plane separates, where its descent ends: its shift is named."""
    n, classes = int(rng.integers(60, 120)), int(rng.integers(2, 4))
    x = torch.as_tensor(rng.standard_normal((n, 2))) * decades(rng, 2)
    y = torch.as_tensor(rng.integers(0, classes, n))
    layer = nn.Linear(2, classes).double()
    model = [layer, nn.Sequential(layer), nn.Sequential(layer, nn.Identity())][rng.integers(3)]
    return Planted(Problem(model, (x, y), "cross_entropy"), ("minimum",), descent=True)


def separable(rng: np.random.Generator) -> Planted:
    """Labels that a plane separates: the loss falls to 0 at infinity, and there is no minimum."""
    n, p = int(rng.integers(8, 60)), int(rng.integers(1, 4))
    x = torch.as_tensor(rng.standard_normal((n, p))) * decades(rng, 1)
    y = (x @ torch.as_tensor(rng.standard_normal(p)) > 0).long()
    if rng.random() < 0.5:
        return Planted(Problem(nn.Linear(p, 2).double(), (x, y), "cross_entropy"), ("channel",), descent=True)
    data = (x, y.double().unsqueeze(1))
    return Planted(Problem(nn.Linear(p, 1).double(), data, "bce"), ("channel",), descent=True)


# ---- kinks --------------------------------------------------------------------------------------------------------

CORNERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: torch.relu(z) + torch.relu(-z),
    "abs": torch.abs,
    "maximum": lambda z: torch.maximum(z, -z),
    "clamp": lambda z: z.clamp(min=0) - z.clamp(max=0),
    "comparison": lambda z: z * (z > 0) - z * (z <= 0),
}


def concave_kink(rng: np.random.Generator) -> Planted:
    """−|w| + w² at 0, written in several ways: the loss falls on both sides."""
    corner = CORNERS[str(rng.choice(list(CORNERS)))]
    a, n = decades(rng, 6), int(rng.integers(1, 6))

    def function(t: Tensor) -> Tensor:
        return a * (t.square().sum() - corner(t).sum())

    return Planted(surface(function, torch.zeros(n, dtype=torch.float64)), NO_MINIMUM)


def convex_kink(rng: np.random.Generator) -> Planted:
    """|w| + w² at 0 is a minimum, which second derivatives cannot show."""
    corner = CORNERS[str(rng.choice(list(CORNERS)))]
    a, n = decades(rng, 6), int(rng.integers(1, 6))
    return Planted(
        surface(lambda t: a * (t.square().sum() + corner(t).sum()), torch.zeros(n, dtype=torch.float64)),
        ("degenerate",),
    )


def idle_neuron(rng: np.random.Generator) -> Planted:
    """Least squares by linear units, with a ReLU neuron of zero weights beside them."""
    n, p = int(rng.integers(20, 60)), 2
    x = torch.as_tensor(rng.standard_normal((n, p)))
    y = x @ torch.as_tensor(rng.standard_normal((p, 1))) + x.square().sum(1, keepdim=True)
    y = y - y.mean()
    model = _Beside(p, int(rng.integers(1, 3)), rng.choice(["module", "function"]))
    both = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1)
    solution = torch.linalg.lstsq(both, y).solution.T
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.linear.weight.copy_(solution[:, :p])
        model.linear.bias.copy_(solution[:, p])
    return Planted(Problem(model, (x, y), "mse"), NO_MINIMUM)


class _Beside(nn.Module):
    """A linear map plus a layer of ReLU neurons."""

    def __init__(self, inputs: int, width: int, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1).double()
        self.first, self.second = nn.Linear(inputs, width).double(), nn.Linear(width, 1, bias=False).double()
        self.relu = nn.ReLU() if how == "module" else torch.relu

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.linear(x) + self.second(self.relu(self.first(x)))
        return z


def zero_network(rng: np.random.Generator) -> Planted:
    """Linear–ReLU–Linear of zeros with weight decay, too weak to hold it there."""
    n = int(rng.integers(20, 60))
    x = torch.as_tensor(rng.standard_normal((n, 2)))
    y = x.square().sum(1, keepdim=True)
    y = y - y.mean()
    model = nn.Sequential(nn.Linear(2, int(rng.integers(1, 4))), nn.ReLU(), nn.Linear(1, 1)).double()
    width = len(model[0].weight)  # type: ignore[arg-type]
    model[2] = nn.Linear(width, 1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return Planted(Problem(model, (x, y), "mse", weight_decay=float(10 ** rng.uniform(-4, -2))), NO_MINIMUM)


def padded(rng: np.random.Generator) -> Planted:
    """ReLU without biases and samples of zeros: they are at the corner whatever the weights, and bend nothing."""
    n, width = 40, int(rng.integers(2, 4))
    x = torch.as_tensor(rng.standard_normal((n, 3)))
    x[: rng.integers(1, 10)] = 0
    model = nn.Sequential(nn.Linear(3, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False)).double()
    with torch.no_grad():
        y = model(x)
    return Planted(Problem(model, (x, y), "mse"), ("minimum",))


# Functions with a corner or a step away from 0, and where it is.
EDGES: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "clamp": (1.0, lambda z: z.clamp(-1, 1)),
    "clamp below": (-0.75, lambda z: z.clamp(min=-0.75)),
    "hardtanh": (1.0, lambda z: F.hardtanh(z, -3.0)),
    "relu6": (6.0, F.relu6),
    "maximum": (1.5, lambda z: torch.maximum(z, torch.full_like(z, 1.5))),
    "minimum of two": (3.0, lambda z: torch.minimum(z, 6 - z)),
    "hardswish": (3.0, F.hardswish),
    "hardswish below": (-3.0, F.hardswish),
    "threshold": (1.25, lambda z: F.threshold(z, 1.25, 1.25)),
    "softshrink": (-0.5, F.softshrink),
    "hardshrink": (0.5, F.hardshrink),
    "floor": (2.0, torch.floor),
    "hinge": (1.0, lambda z: torch.relu(1 - z)),
    "absolute error": (1.0, lambda z: (z - 1).abs()),
    "where": (2.0, lambda z: torch.where(z > 2, 2 * z - 2, z)),
    "branch": (1.0, lambda z: z if float(z.detach()) > 1 else 2 * z - 1),
}


def edge(rng: np.random.Generator) -> Planted:
    """± K(w) at its corner, with autograd's slope, that of a side or none taken out, in a steep enough parabola."""
    place, corner = EDGES[str(rng.choice(list(EDGES)))]
    sign, a, h = float(rng.choice([-1.0, 1.0])), decades(rng, 6), 2.0**-20
    beside = torch.tensor(place + float(rng.choice([-h, 0.0, h])), dtype=torch.float64, requires_grad=True)
    (taken,) = torch.autograd.grad(corner(beside), beside, materialize_grads=True)
    taken = taken * float(rng.choice([0.0, 1.0]))

    def function(t: Tensor) -> Tensor:
        w, rest = t[0], t[1:]
        return a * (sign * (corner(w) - taken.to(t) * w) + 10 * (w - place).square() + rest.square().sum())

    theta = torch.zeros(int(rng.integers(1, 5)), dtype=torch.float64)
    theta[0] = place
    here, steps = float(function(theta)), torch.tensor([h, -h], dtype=torch.float64)
    slopes = [(float(function(theta + h * torch.eye(len(theta))[0] * s)) - here) / (a * h) for s in steps.sign()]
    if min(slopes) > -1e-3:
        return Planted(surface(function, theta), ("degenerate", "minimum"))
    theta[0] *= 1 + EPS * int(rng.integers(-1, 2)) * (min(slopes) > -1e3)  # a step's own side may hold a minimum
    return Planted(surface(function, theta), ("not stationary",))


# Functions whose second derivative alone jumps away from 0, by one upwards, and where.
BENDS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "square of relu": (1.0, lambda z: 0.5 * torch.relu(z - 1).square()),
    "Huber": (-1.5, lambda z: F.huber_loss(z - 0.5, torch.full_like(z, 0.0), delta=2.0)),
    "smooth l1": (3.5, lambda z: -F.smooth_l1_loss(z, torch.full_like(z, 3.0), beta=0.5) / 2),
    "product of clamp": (2.0, lambda z: 0.5 * (z.clamp(min=2.0) - 2).square()),
    "where": (1.25, lambda z: torch.where(z > 1.25, 0.5 * (z - 1.25).square(), 0.0)),
    "celu": (1.0, lambda z: -F.celu(z - 1, alpha=1.0)),
    "squared hinge": (1.0, lambda z: 0.5 * z.square() - z - 0.5 * torch.relu(1 - z).square()),
}


def bend(rng: np.random.Generator) -> Planted:
    """± K(w) with its slope taken out, whose second derivative is −½ and ½ on the sides: beside a saddle, or at it."""
    place, curve = BENDS[str(rng.choice(list(BENDS)))]
    sign, a = float(rng.choice([-1.0, 1.0])), decades(rng, 6)
    at = torch.tensor(place, dtype=torch.float64, requires_grad=True)
    (taken,) = torch.autograd.grad(curve(at), at)
    beside = [second_derivative(curve, place + h) for h in (1e-3, -1e-3)]
    middle = sum(beside) / 2

    def function(t: Tensor) -> Tensor:
        d, rest = t[0] - place, t[1:]
        return a * (sign * (curve(t[0]) - taken.to(t) * d - 0.5 * middle * d.square()) + rest.square().sum())

    theta = torch.zeros(int(rng.integers(1, 5)), dtype=torch.float64)
    theta[0] = place * (1 + EPS * int(rng.integers(-2, 3)))
    return Planted(surface(function, theta), NO_MINIMUM)


def second_derivative(function: Callable[[Tensor], Tensor], place: float) -> float:
    """Of a function of one number."""
    z = torch.tensor(place, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(z), z, create_graph=True)
    return float(torch.autograd.grad(slope, z)[0]) if slope.requires_grad else 0.0


KINDS: dict[str, Callable[[np.random.Generator], Planted]] = {
    "minimum": minimum,
    "saddle": saddle,
    "degenerate": degenerate,
    "linear network": linear_net,
    "regression": regression,
    "softmax": softmax,
    "slope": slope,
    "off a regression": off_regression,
    "separable": separable,
    "concave kink": concave_kink,
    "convex kink": convex_kink,
    "idle neuron": idle_neuron,
    "zero network": zero_network,
    "padded": padded,
    "edge": edge,
    "bend": bend,
}
CRITICAL = ("minimum", "saddle", "degenerate", "linear network", "regression", "softmax")
STRANGE = tuple(k for k in KINDS if k not in CRITICAL)


def planted(kind: str, seed: int) -> Planted:
    """One point of a kind."""
    torch.manual_seed(seed)
    return KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind)]))


if __name__ == "__main__":
    begin, number = (int(a) for a in (*sys.argv[1:], "0", "20")[:2])
    chosen = sys.argv[3:] or list(KINDS)
    judged_in_all, faults = counts(chosen, range(begin, begin + number))
    print(f"{judged_in_all} points, seeds {begin} to {begin + number - 1}: {len(faults)} false")
    print("\n".join(faults))
    print(Counter(f.split(",")[0] for f in faults))
