"""No false verdict: planted critical points, kinks, channels and slopes in foreign units; what verdicts rest on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import landscape
from landscape.errors import ProblemError
from landscape.points.certify import certify_stack
from landscape.points.descent_large import certify_large
from landscape.points.gradient_scale import PARTS, part_gradients, part_gradients_of
from landscape.points.kinks import corners, piecewise
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.stack.build import build_stack
from planted_points import CRITICAL, EDGES, KINDS, fault, planted
from surfaces import surface

# Descents take longer than points.
DESCENTS = ("softmax", "separable")


@pytest.mark.parametrize("kind", KINDS)
def test_no_verdict_is_false(kind: str) -> None:
    number = 3 if kind in DESCENTS else 24 if kind in ("edge", "bend") else 16 if kind in CRITICAL else 8
    faults = [f for f in (fault(kind, seed) for seed in range(number)) if f]
    assert not faults, faults


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_verdict_of_others_is_false(kind: str) -> None:
    faults = [f for f in (fault(kind, seed) for seed in range(1000, 1000 + (3 if kind in DESCENTS else 12))) if f]
    assert not faults, faults


def both(t: Tensor) -> Tensor:
    return torch.stack([t, -t])


# Steps and choices: a corner at t = 0, where autograd follows what was chosen.
CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "abs of complex numbers": lambda t: torch.complex(t, 0 * t).abs(),
    "argmax": lambda t: both(t)[both(t).argmax()],
    "bucketize": lambda t: t * torch.bucketize(t.detach(), torch.zeros(1, dtype=t.dtype)),
    "ceil": lambda t: t * torch.ceil(t),
    "copysign": lambda t: t * torch.copysign(torch.ones_like(t), t.detach()),
    "cummax": lambda t: both(t).cummax(0).values[1],
    "equality": lambda t: t * torch.where(t == 0, 0.0, torch.sign(t.detach())),
    "floor": lambda t: t * torch.floor(t),
    "floor_divide": lambda t: t * torch.floor_divide(t.detach(), 2.0),
    "frac": lambda t: -t * torch.frac(t + 1),
    "heaviside": lambda t: t * torch.heaviside(t.detach(), torch.zeros_like(t)),
    "integers": lambda t: t * (t.detach() + 1).long(),
    "kthvalue": lambda t: both(t).kthvalue(2).values,
    "median": lambda t: torch.stack([t, -t, 2 * t]).median(),
    "quotient": lambda t: t * torch.div(t, 0.5, rounding_mode="floor"),
    "remainder": lambda t: -t * torch.remainder(t, 1.0),
    "round": lambda t: t * torch.round(t + 0.5),
    "searchsorted": lambda t: t * torch.searchsorted(torch.zeros(1, dtype=t.dtype), t.detach().reshape(1)).sum(),
    "sort": lambda t: both(t).sort().values[1],
    "topk": lambda t: both(t).topk(1).values.sum(),
    "trunc": lambda t: t * torch.trunc(t + 1),
}


class Point(nn.Module):
    """A loss that is a function of two parameters, at zero."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.theta, self.function = nn.Parameter(torch.zeros(2, dtype=torch.float64)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.theta) * x[:, 0]


def verdict_at(corner: Callable[[Tensor], Tensor], sign: int, away: float) -> tuple[str, float, float]:
    """Of sign · (K(t) − g t) + 10 t² + s² at 0, autograd's slope g taken out; and its true slopes to either side."""
    at = torch.tensor(away, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(corner(at), at)

    def loss(theta: Tensor) -> Tensor:
        t, s = theta
        return sign * (corner(t + away) - slope * t) + 10 * t**2 + s**2

    x = torch.ones(3, 1, dtype=torch.float64)
    problem = Problem(Point(loss), [(x, x)], lambda model, batch: (model(batch[0]).sum(), len(batch[0])))
    sides = [float(loss(torch.tensor([h, 0.0], dtype=torch.float64)) - loss(torch.zeros(2))) for h in (1e-6, -1e-6)]
    try:
        verdict = landscape.escape(problem, certify_only=True).point_verdict
    except ProblemError:  # of equal numbers autograd takes one, whose slope need not be that of the loss
        verdict = "refused"
    return verdict, sides[0] / 1e-6, sides[1] / 1e-6


@pytest.mark.parametrize("name", CHOICES)
def test_no_minimum_at_a_step_or_a_tie_from_which_the_loss_falls(name: str) -> None:
    falls = False
    for sign in (1, -1):
        verdict, right, left = verdict_at(CHOICES[name], sign, 0.0)
        falls |= min(right, left) < -1e-4
        assert verdict != "minimum" or min(right, left) > -1e-4, f"sign {sign}: {right:.2g} and {left:.2g} to the sides"
        assert verdict_at(CHOICES[name], sign, 0.25)[0] == "minimum"
    assert falls


def marked(z: Tensor, y: Tensor) -> Tensor:
    """z where the label is, −z elsewhere."""
    return (2 * F.one_hot(y, z.shape[1]) - 1).to(z) * z


# Sums over samples, convex in the outputs, written as people write them.
OWN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "difference": lambda z, y: (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).sum(),
    "nll": lambda z, y: F.nll_loss(z.log_softmax(1), y, reduction="sum"),
    "softplus": lambda z, y: F.softplus(-marked(z, y)).sum(),
    "logsigmoid": lambda z, y: -F.logsigmoid(marked(z, y)).sum(),
}


@pytest.mark.parametrize("name", OWN)
def test_rounding_of_certain_probabilities_is_no_negative_curvature(name: str) -> None:
    """Linear models of separable data, far out: convex, so that ∇²L has no negative eigenvalue."""
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        n, inputs, classes = (int(torch.randint(a, b, (), generator=generator)) for a, b in ((3, 30), (2, 5), (2, 5)))
        model = nn.Linear(inputs, classes, bias=False).double()
        x, w = (torch.randn(k, inputs, generator=generator, dtype=torch.float64) for k in (n, classes))
        z = x @ w.T
        best = z.topk(2, 1).values
        scale = 20 + 60 * float(torch.rand((), generator=generator))
        model.weight.data = w * scale / float((best[:, 0] - best[:, 1]).min())

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
            return OWN[name](network(batch[0]), batch[1]), len(batch[1])

        stack, theta = build_stack([Problem(model, [(x, z.argmax(1))], loss)])
        made = certify_stack(stack, theta)[0]
        assert made.verdict != "saddle", f"seed {seed}: {made.reason}"
        assert made.lambda_min.high >= 0, f"seed {seed}: {made.lambda_min}"


@pytest.mark.parametrize("edge", [1.0, 1 + 2.0**-52, 1 - 2.0**-53])
@pytest.mark.parametrize("name", ["clamp", "hinge", "branch"])
def test_large_networks_see_corners_away_from_zero(name: str, edge: float) -> None:
    corner, sign = EDGES[name][1], -1 if name == "hinge" else 1
    theta = torch.tensor([edge, 0.0], dtype=torch.float64)
    problem = surface(lambda t: sign * corner(t[0]) + 10 * (t[0] - 1) ** 2 + t[1] ** 2, theta)
    made, _ = certify_large(build_objective(problem), loss_name=None, tau=1e-6)
    assert made.verdict == "not stationary"
    assert made.gradient_rounding < 1e-12


def test_a_celu_has_no_corner_in_its_slope() -> None:
    point = surface(lambda t: t[0] - F.celu(t[0], alpha=2.0) + t[1] ** 2, torch.zeros(2, dtype=torch.float64))
    made = certify_stack(*build_stack([point]))[0]
    assert made.verdict == "saddle"
    assert made.kinks is not None
    assert made.kinks.slope == 0
    assert made.kinks.curvature == pytest.approx(-0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["idle neuron", "zero network", "concave kink"])
def test_large_networks_are_no_minimum_at_a_kink_either(kind: str) -> None:
    problem = planted(kind, 1).problem
    made, _ = certify_large(build_objective(problem), loss_name="mse", tau=1e-6)
    assert made.kinks is not None
    assert made.verdict in ("saddle", "degenerate", "not stationary")


@pytest.mark.parametrize("name", ["difference", "nll"])
def test_large_networks_measure_what_cancels_too(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(k, 900, generator=generator, dtype=torch.float64) for k in (12, 4))
    z = x @ w.T
    best = z.topk(2, 1).values
    model = nn.Linear(900, 4, bias=False).double()
    model.weight.data = w * 40 / float((best[:, 0] - best[:, 1]).min())
    problem = Problem(
        model, [(x, z.argmax(1))], lambda network, batch: (OWN[name](network(batch[0]), batch[1]), len(batch[1]))
    )
    made, _ = certify_large(build_objective(problem), loss_name=None, tau=1e-6, max_products=40)
    assert made.verdict != "saddle"
    assert made.lambda_min.high >= 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_large_networks_with_asymmetric_products_are_not_certified() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(9, 20)), nn.Tanh(), weight_norm(nn.Linear(20, 3))).double()
    problem = Problem(model, (torch.randn(30, 9, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)), "mse")
    with pytest.raises(ProblemError, match="not symmetric"):
        certify_large(build_objective(problem), loss_name="mse", tau=1e-6, max_products=40)


def net(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(53, 3, dtype=torch.float64), torch.randn(53, 2, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_what_parts_pull_is_the_sum_over_their_gradients(decay: float) -> None:
    model, x, y = net()
    stack, theta = build_stack([Problem(model, (x, y), "mse", decay)])
    squares = 0.0
    for j in range(PARTS):
        part = slice(53 * j // PARTS, 53 * (j + 1) // PARTS)
        loss = (model(x[part]) - y[part]).square().sum() / 53
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        squares += PARTS * sum(float(g.square().sum()) for g in slopes)
    wanted = (squares + decay**2 * float(theta.square().sum())) ** 0.5
    assert float(part_gradients(stack, theta)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("sizes", [[53], [1, 52], [20, 20, 13], [7] * 7 + [4]])
def test_batches_do_not_change_what_parts_pull(sizes: list[int]) -> None:
    model, x, y = net()
    whole = Problem(model, (x, y), "mse")
    cut = Problem(model, list(zip(x.split(sizes), y.split(sizes), strict=True)), "mse")
    wanted = float(part_gradients(*build_stack([whole])))
    assert float(part_gradients(*build_stack([cut]))) == pytest.approx(wanted, rel=1e-12)
    assert part_gradients_of(build_objective(cut)) == pytest.approx(wanted, rel=1e-12)


def test_members_with_targets_of_their_own_have_pulls_of_their_own() -> None:
    model, x, y = net()
    problems = [Problem(model, (x, scale * y), "mse") for scale in (1.0, 3.0)]
    together = part_gradients(*build_stack(problems))
    alone = torch.cat([part_gradients(*build_stack([p])) for p in problems])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_a_loss_that_is_no_sum_over_samples_is_taken_batch_by_batch() -> None:
    model, x, y = net()

    def spread(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        z = model(batch[0]) - batch[1]
        return len(z) * (z - z.mean(0)).square().mean(), len(z)

    batches = list(zip(x.split(20), y.split(20), strict=True))
    problem = Problem(model, batches, spread)
    squares = 0.0
    for batch in batches:
        slopes = torch.autograd.grad(spread(model, batch)[0] / 53, list(model.parameters()))
        squares += 3 * sum(float(g.square().sum()) for g in slopes)
    stack, theta = build_stack([problem])
    assert float(part_gradients(stack, theta)) == pytest.approx(squares**0.5, rel=1e-12)
    assert part_gradients_of(build_objective(problem)) == pytest.approx(squares**0.5, rel=1e-12)


CLASS = torch.tensor([1.0, 0.0], dtype=torch.float64)
WEIGHTS = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (torch.relu, 6),
    "functional relu": (F.relu, 6),
    "leaky relu": (F.leaky_relu, 6),
    "prelu": (lambda z: F.prelu(z, torch.full((1,), 0.1, dtype=z.dtype)), 6),
    "elu": (F.elu, 6),
    "selu": (F.selu, 6),
    "abs": (torch.abs, 6),
    "clamp": (lambda z: z.clamp(min=0), 6),
    "hardtanh": (lambda z: F.hardtanh(z - 1), 6),
    "relu6": (lambda z: F.relu6(z + 6), 6),
    "hardswish": (lambda z: F.hardswish(z + 3), 6),
    "maximum": (lambda z: torch.maximum(z, -z), 6),
    "written as a product": (lambda z: z * (z > 0), 6),
    "where": (lambda z: torch.where(z >= 0, z, 2 * z), 6),
    "softshrink": (lambda z: F.softshrink(z + 0.5), 6),
    "threshold": (lambda z: F.threshold(z, 0.0, 0.0), 6),
    "largest of a row": (lambda z: z.max(1).values, 3),
    "largest of all": (lambda z: z.amax(), 1),
    "pool": (lambda z: F.max_pool1d(z.unsqueeze(0), 2), 3),
    "absolute error": (lambda z: F.l1_loss(z, torch.zeros_like(z)), 6),
    "Huber": (lambda z: F.huber_loss(z + 1, torch.zeros_like(z)), 6),
    "sum of absolute values": (lambda z: torch.linalg.vector_norm(z, 1), 6),
    "the same of rows": (lambda z: z.norm(p=1, dim=1), 6),
    "largest absolute value": (lambda z: torch.linalg.vector_norm(z - CLASS.flip(0) + CLASS, math.inf, dim=1), 3),
    "largest absolute value of nothing": (lambda z: torch.linalg.vector_norm(z, math.inf, dim=1), 3),
    "distances of pairs": (lambda z: F.pairwise_distance(z, 2 * z, eps=0.0), 3),
    "distance": (lambda z: torch.dist(z, 2 * z), 1),
    "distances": (lambda z: torch.cdist(z, 2 * z[:1]), 3),
    "distances by absolute values": (lambda z: torch.cdist(z, 2 * z[:1], p=1.0), 6),
    "smallest and largest": (lambda z: torch.aminmax(z, dim=1).max, 6),
    "margins of classes": (lambda z: F.multi_margin_loss(z + CLASS, torch.zeros(3, dtype=torch.long)), 3),
    "hard tangent to a side": (lambda z: F.hardtanh(z + 1, -2.0), 6),
    "absolute error of long vectors": (lambda z: F.huber_loss(z + 1e6 + 1.3, torch.full_like(z, 1e6 + 0.3) + 1e-10), 6),
    "terms that cancel": (lambda z: torch.relu(z + 0.1 + 0.2 - 0.3), 6),
    "products that cancel": (lambda z: torch.relu(F.linear(z + 1, WEIGHTS) - 0.3), 3),
    "tanh": (torch.tanh, 0),
    "softplus": (F.softplus, 0),
    "gelu": (F.gelu, 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_at_corners_are_counted(name: str) -> None:
    function, wanted = FUNCTIONS[name]
    at = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    beside = torch.tensor([[0.3, -0.7], [0.2, -0.4], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    assert sum(corners(nn.Identity(), lambda: function(at)).values()) == wanted
    assert not corners(nn.Identity(), lambda: function(beside))
    assert piecewise(lambda: function(beside)) == (wanted > 0)


def test_a_neuron_at_a_kink_is_not_dead_and_a_dead_one_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    first, second = model[0], model[2]
    with torch.no_grad():
        for parameters in (first.weight, first.bias, second.weight):
            parameters[..., 0] = 0 if parameters is second.weight else parameters[..., 0]  # type: ignore[index]
        first.weight[0], first.bias[0] = 0.0, -1.0  # type: ignore[index]
        y = model(x)
    dead = certify_stack(*build_stack([Problem(model, (x, y + 0.1), "mse")]))[0]
    with torch.no_grad():
        first.bias[0] = 0.0  # type: ignore[index]
    kinked = certify_stack(*build_stack([Problem(model, (x, y + 0.1), "mse")]))[0]
    assert dead.kinks is None
    assert kinked.kinks is not None
    assert (kinked.kinks.count, kinked.kinks.where) == (40, "relu in 1: 40")
    assert "dead units" not in kinked.symmetries
