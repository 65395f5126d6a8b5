"""Certificates against points whose nature is known in closed form, and the verdicts that follow from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from landscape.data import load_data
from landscape.models import build_model
from landscape.points.certificate import VERDICTS, Certificate, Kinks, Pair, decide, from_dict
from landscape.points.certify import certify_stack
from landscape.points.descent_large import certify_large
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.results.fields import Interval
from landscape.results.identity import plain
from landscape.stack.build import build_stack
from landscape.stack.hessians import inertia
from planted import planted_dense
from surfaces import linear_network, monkey_saddle, quadratic, surface, surfaces

SOUND = Certificate(
    dtype="float64",
    full_data=True,
    parameters=10,
    loss=0.5,
    loss_floor=1e-21,
    gradient_inf=1e-12,
    gradient_norm=2e-12,
    gradient_rounding=1e-15,
    newton_decrement=1e-12,
    lambda_min=Interval(0.1, 0.09, 0.11),
    lambda_min_beyond=Interval(0.1, 0.09, 0.11),
    lambda_max=10.0,
    negative=0,
    zeros={"1e-08": 0, "1e-06": 0, "0.0001": 0},
    parameter_norm=3.0,
    norm_growth=0.001,
    loss_drop=0.01,
)


def at(value: float) -> dict[str, Interval]:
    around = Interval(value, value - 1e-12, value + 1e-12)
    return {"lambda_min": around, "lambda_min_beyond": around}


FALLING = {"vanishing": True, "gradient_norm": 1e-3, "gradient_pull": 1e-3, "gradient_inf": 1e-3}
PAIR = Pair("0", 1, 2, 0.01, 50.0)
FALLS = Kinks(1, "clamp", -1.0, math.nan, 1.0)
CASES: dict[str, tuple[dict[str, object], str]] = {
    "all eigenvalues positive": ({}, "minimum"),
    "a negative one": (at(-0.1), "saddle"),
    "a negative one within tau": (at(-1e-6), "degenerate"),
    "zero": (at(0.0), "degenerate"),
    "zero explained by symmetry": (
        {"lambda_min": Interval(0, -1e-12, 1e-12), "symmetries": {"rescaling": 1}},
        "minimum",
    ),
    "a gradient": ({"gradient_inf": 1e-3, "flatness": 0.5}, "not stationary"),
    "a gradient, and a negative eigenvalue": ({"gradient_inf": 1e-3, "flatness": 0.5, **at(-1.0)}, "not stationary"),
    "a gradient in the kernel of H": ({"gradient_inf": 1e-3, "flatness": 1e-5}, "gradient-flat"),
    "no loss left": ({"loss": 1e-25, **at(0.0)}, "minimum"),
    "growing pair": ({"gradient_inf": 1e-4, "flatness": 0.5, "norm_growth": 0.3, "pair": PAIR}, "channel"),
    "growing alone": ({"gradient_inf": 1e-4, "flatness": 0.5, "norm_growth": 0.5}, "channel"),
    "growing alone, while the loss still falls": (
        {"gradient_inf": 1e-4, "flatness": 0.5, "norm_growth": 0.5, "loss_drop": 0.4},
        "not stationary",
    ),
    "growing a little": ({"gradient_inf": 1e-4, "flatness": 0.5, "norm_growth": 0.01, "pair": PAIR}, "not stationary"),
    "grew, but arrived": ({"norm_growth": 2.0, "pair": PAIR}, "minimum"),
    "NaN": ({"loss": math.nan}, "failed"),
    "a gradient that the data's pulls cancel to": ({"gradient_norm": 1e-3, "gradient_pull": 1e6}, "minimum"),
    "a small gradient that nothing cancels": ({"gradient_norm": 1e-12, "gradient_pull": 1e-12}, "not stationary"),
    "a gradient of rounding": (
        {"gradient_norm": 1e-12, "gradient_pull": 1e-12, "gradient_rounding": 1e-12},
        "minimum",
    ),
    "probabilities next to certain": ({"vanishing": True, "loss": 1e-12}, "channel"),
    "a loss of probabilities that falls to 0": (
        {**FALLING, "loss": 1e-3, "newton_decrement": 1e-3**0.5, "loss_drop": 0.9},
        "channel",
    ),
    "the same, and no descent shows that it falls": (
        {**FALLING, "loss": 1e-3, "newton_decrement": 1e-3**0.5, "loss_drop": math.nan},
        "not stationary",
    ),
    "the same, but a minimum is near": (
        {**FALLING, "loss": 1e-3, "newton_decrement": 1e-6, "loss_drop": 0.9},
        "not stationary",
    ),
    "a kink that holds": ({"gradient_pull": 1.0, "kinks": Kinks(3, "relu", 0.1, math.nan, 1.0)}, "degenerate"),
    "a kink to fall from": ({"gradient_pull": 1.0, "kinks": Kinks(3, "relu", -0.1, 0.2, 1.0)}, "not stationary"),
    "a kink to bend down from": ({"gradient_pull": 1.0, "kinks": Kinks(3, "relu", 0.0, -0.2, 1.0)}, "saddle"),
    "a kink whose other side autograd takes": (
        {"gradient_norm": 1.0, "gradient_pull": 1.0, "kinks": Kinks(3, "relu", 0.1, math.nan, 1.0)},
        "degenerate",
    ),
    "a gradient in the kernel of H, at a kink": (
        {"gradient_norm": 1.0, "gradient_inf": 1.0, "gradient_pull": 1.0, "flatness": 0.0, "kinks": FALLS},
        "not stationary",
    ),
    "Lanczos, nothing excluded": (
        {"exact": False, "lambda_min_beyond": Interval(0.1, -math.inf, 0.1), "lambda_min": Interval(0.1, -1.0, 0.1)},
        "unresolved",
    ),
    "Lanczos, all excluded": ({"exact": False}, "minimum"),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name: str) -> None:
    changes, wanted = CASES[name]
    made = replace(SOUND, **changes)
    assert (made.verdict, bool(made.reason)) == (wanted, True)


def test_a_certificate_survives_a_header() -> None:
    kinks = Kinks(2, "relu in 1: 2", 0.0, math.nan, 1.0)
    made = replace(SOUND, pair=PAIR, kinks=kinks, flatness=math.nan, symmetries={"rescaling": 2}, gradient_pull=1.0)
    again = from_dict(plain(made.as_dict()))
    assert plain(again.as_dict()) == plain(made.as_dict())
    assert again.pair == PAIR
    assert again.verdict == made.verdict == "degenerate"


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(1e-5, 1.0), st.floats(-12, 12))
def test_a_planted_saddle_is_never_called_a_minimum(n: int, seed: int, depth: float, scale: float) -> None:
    generator = np.random.default_rng(seed)
    eigenvalues = 10.0 ** generator.uniform(-4, 0, n)
    eigenvalues[: generator.integers(1, n + 1)] *= -depth
    function = quadratic(torch.as_tensor(eigenvalues) * 10**scale, seed)
    made = certify_stack(*surfaces(function, torch.zeros(1, n, dtype=torch.float64)))[0]
    below = eigenvalues < -1e-6 * np.abs(eigenvalues).max()
    assert made.verdict == ("saddle" if below.any() else "degenerate")
    assert made.negative == below.sum()


@pytest.mark.slow
def test_no_planted_saddle_is_called_a_minimum() -> None:
    generator = np.random.default_rng(0)
    verdicts = []
    for seed in range(150):
        n = int(generator.integers(2, 30))
        eigenvalues = 10.0 ** generator.uniform(-5, 0, n)
        eigenvalues[0] = -(10.0 ** generator.uniform(-5.5, 0))
        eigenvalues /= np.abs(eigenvalues).max()
        matrix = planted_dense(torch.as_tensor(eigenvalues), seed)
        # Off the exact point by what a descent leaves, and with a cubic term.
        centre = torch.as_tensor(generator.standard_normal(n))
        theta = centre * (1 + torch.finfo(torch.float64).eps * torch.as_tensor(generator.integers(-2, 3, n)))
        stack, rows = surfaces(
            lambda t, m=matrix, c=centre: 0.5 * (t - c) @ (m @ (t - c)) + (t - c).pow(3).sum(), theta.unsqueeze(0)
        )
        verdicts.append(certify_stack(stack, rows)[0].verdict)
    assert set(verdicts) == {"saddle"}


@pytest.mark.parametrize("count", [1, 4])
def test_minima_of_quadratics_are_certified(count: int) -> None:
    eigenvalues = torch.linspace(0.01, 3, 9, dtype=torch.float64)
    stack, theta = surfaces(quadratic(eigenvalues), torch.zeros(count, 9, dtype=torch.float64))
    for made in certify_stack(stack, theta):
        assert made.verdict == "minimum"
        assert made.lambda_min.low <= 0.01 <= made.lambda_min.high
        assert made.lambda_max == pytest.approx(3, rel=1e-12)
        assert made.gradient_inf == 0
        assert made.newton_decrement == 0


def test_the_newton_decrement_is_that_of_the_quadratic() -> None:
    eigenvalues = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    theta = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    made = certify_stack(*surfaces(quadratic(eigenvalues), theta))[0]
    h = planted_dense(eigenvalues)
    assert made.newton_decrement == pytest.approx(math.sqrt(float(theta[0] @ h @ theta[0])), rel=1e-12)


def test_a_monkey_saddle_is_degenerate() -> None:
    made = certify_stack(*surfaces(monkey_saddle, torch.zeros(1, 2, dtype=torch.float64)))[0]
    assert (made.verdict, made.negative, made.zeros["1e-06"]) == ("degenerate", 0, 2)


# ---- linear networks: all critical points are known ---------------------------------------------------------------


def linear_problem(width: int, depth: int = 2) -> tuple[Problem, Tensor]:
    """Whitened inputs (XᵀX/N = I) and targets of a linear map with singular values s."""
    torch.manual_seed(0)
    inputs, outputs, samples = 5, 4, 40
    x = torch.linalg.qr(torch.randn(samples, inputs, dtype=torch.float64))[0] * math.sqrt(samples)
    s = torch.tensor([3.0, 2.0, 1.2, 0.7], dtype=torch.float64)
    u, v = torch.linalg.qr(torch.randn(outputs, 4).double())[0], torch.linalg.qr(torch.randn(inputs, 4).double())[0]
    y = x @ (v * s) @ u.T
    return Problem(linear_network(width, depth, inputs, outputs), (x, y), "mse"), torch.stack([s, s])


@pytest.mark.parametrize("chosen", [(), (0,), (1,), (0, 1), (1, 3), (0, 1, 2), (2, 3)])
@pytest.mark.parametrize("width", [3, 4])
def test_the_index_of_linear_networks(chosen: tuple[int, ...], width: int) -> None:
    """index = #{i∈S, j∉S: s_j > s_i} + (h − |S|)·#{j∉S: s_j > 0} (Baldi & Hornik 1989)."""
    problem, s = linear_problem(width)
    singular = s[0].tolist()
    x, y = problem.data  # type: ignore[misc]
    cross = y.T @ x / len(x)
    u, sigma, vt = torch.linalg.svd(cross)
    first, second = (p for p in problem.model.parameters())
    with torch.no_grad():
        first.zero_()
        second.zero_()
        for k, j in enumerate(chosen):
            first[k] = sigma[j].sqrt() * vt[j]
            second[:, k] = sigma[j].sqrt() * u[:, j]
    made = certify_stack(*build_stack([problem]))[0]
    rest = [j for j in range(4) if j not in chosen]
    index = sum(singular[j] > singular[i] for i in chosen for j in rest) + (width - len(chosen)) * len(rest)
    assert made.negative == index
    assert made.verdict == ("saddle" if index else "minimum")


def test_the_global_minimum_of_a_linear_network_is_one_up_to_its_symmetry() -> None:
    problem, _ = linear_problem(2)
    x, y = problem.data  # type: ignore[misc]
    u, sigma, vt = torch.linalg.svd(y.T @ x / len(x))
    first, second = (p for p in problem.model.parameters())
    with torch.no_grad():
        first.copy_(sigma[:2].sqrt().unsqueeze(1) * vt[:2])
        second.copy_(u[:, :2] * sigma[:2].sqrt())
    made = certify_stack(*build_stack([problem]))[0]
    assert made.verdict == "minimum"
    assert sum(made.symmetries.values()) == made.zeros["1e-06"] == 4


@pytest.mark.parametrize("chosen", [(0, 1), (0, 2), (1, 2), (2, 3), (0,), ()])
def test_critical_points_of_a_linear_autoencoder(chosen: tuple[int, ...]) -> None:
    """Baldi & Hornik 1989: projections on eigenvectors of the covariance; all but the leading ones are saddles."""
    torch.manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.2, 0.7], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    order = vectors.flip(1)[:, list(chosen)]
    model = linear_network(2, 2, 4, 4)
    first, second = (p for p in model.parameters())
    with torch.no_grad():
        first.zero_()
        second.zero_()
        first[: len(chosen)] = order.T
        second[:, : len(chosen)] = order
    made = certify_stack(*build_stack([Problem(model, (x, x), "mse")]))[0]
    assert made.gradient_inf < 1e-13
    assert made.loss == pytest.approx(float(values.sum() - values.flip(0)[list(chosen)].sum()), rel=1e-12)
    assert made.verdict == ("minimum" if chosen == (0, 1) else "saddle")


@pytest.mark.parametrize("depth", [3, 4])
def test_the_origin_of_a_deep_linear_network_is_degenerate(depth: int) -> None:
    problem, _ = linear_problem(3, depth)
    stack, theta = build_stack([problem])
    made = certify_stack(stack, torch.zeros_like(theta))[0]
    assert (made.verdict, made.lambda_max) == ("degenerate", 0.0)


# ---- the published fixture ----------------------------------------------------------------------------------------


def fixture_problem() -> Problem:
    """A certified minimum of two neurons (Flat Channels to Infinity, 2025, Fig. 2)."""
    settings = {"target": "rosenbrock", "inputs": "grid", "points": 101, "extent": math.sqrt(3)}
    model = build_model("mlp", {"inputs": 2, "outputs": 1, "width": 2, "activation": "sigmoid_softplus", "bias": False})
    model = model.double()
    w = [[-1.6080957298801726, 1.014631100397268], [0.538673717309619, -0.18154411726825803]]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(w))  # type: ignore[index,union-attr,operator]
        model[0].weight.copy_(torch.tensor(w, dtype=torch.float64))  # type: ignore[index,union-attr,operator]
        model[2].weight.copy_(torch.tensor([[0.24129762395415225, -0.2766434728468965]], dtype=torch.float64))  # type: ignore[index,union-attr,operator]
    return Problem(model, load_data("teacher", settings).train, "mse")


def test_inertia_of_a_stack_is_that_of_its_certificates_and_one_broken_member_harms_no_other() -> None:
    problems = [linear_problem(w)[0] for w in (2, 2, 2)]
    stack, theta = build_stack(problems)
    theta = theta + 0.3 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    theta[1, 0] = torch.nan
    found = inertia(stack, theta, 1e-6)
    whole = certify_stack(stack.of(torch.tensor([0, 2])), theta[[0, 2]])
    assert found.negative[[0, 2]].tolist() == [c.negative for c in whole]
    np.testing.assert_allclose(found.lowest[[0, 2]], [c.lambda_min.value for c in whole], rtol=1e-9)
    assert (found.negative[1], found.error[1]) == (0, torch.inf)
    assert torch.isnan(found.lowest[1])


def test_the_published_minimum_is_certified() -> None:
    stack, theta = build_stack([fixture_problem()])
    made = certify_stack(stack, theta)[0]
    assert made.verdict == "minimum"
    assert made.loss == pytest.approx(0.743319384157008, abs=1e-14)
    assert made.gradient_inf < 1e-14
    wanted = torch.tensor([0.0115662, 0.0480512, 0.1213608, 0.5088967, 3.1456870, 9.7649223])
    assert torch.allclose(torch.linalg.eigvalsh(stack.hessians(theta)[0]).float(), wanted, atol=2e-7, rtol=0)


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_edge_of_a_line_of_saddles_is_no_minimum(mu: float) -> None:
    """A copy without output: λ_min is zero, and points of the same loss beside it are saddles."""
    problem = fixture_problem()
    made = build_model("mlp", {"inputs": 2, "outputs": 1, "width": 3, "activation": "sigmoid_softplus", "bias": False})
    made = made.double()
    w, a = (p.detach() for p in problem.model.parameters())
    first, second = made.parameters()
    with torch.no_grad():
        first.copy_(torch.cat([w, w[1:]]))
        second.copy_(torch.cat([a[:, :1], mu * a[:, 1:], (1 - mu) * a[:, 1:]], dim=1))
    assert certify_stack(*build_stack([Problem(made, problem.data, "mse")]))[0].verdict == "degenerate"


# ---- named symmetries ---------------------------------------------------------------------------------------------


def explained(model: nn.Module, loss: str = "mse") -> Certificate:
    torch.manual_seed(3)
    x = torch.randn(30, 3, dtype=torch.float64)
    with torch.no_grad():
        outputs = model.double()(x)
    # At zero loss every symmetry's tangent is in the kernel, wherever the weights are.
    y = outputs if loss == "mse" else torch.softmax(outputs, 1)
    made = certify_stack(*build_stack([Problem(model, (x, y), loss)]))[0]
    return replace(made, loss_floor=0.0)


def test_relu_networks_have_a_rescaling_per_live_neuron_and_dead_units_are_free() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    alive = explained(model)
    assert alive.symmetries == {"rescaling": 4}
    with torch.no_grad():
        model[0].bias[1] = -100.0  # type: ignore[union-attr,operator,index]
    dead = explained(model)
    assert dead.symmetries == {"dead units": 3 + 1 + 2, "rescaling": 3}
    assert dead.verdict == "minimum"


@pytest.mark.parametrize("behind", [None, nn.Identity(), nn.Dropout(0.5), nn.Flatten()])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_common_shift_is_named_wherever_the_last_layer_stands(behind: nn.Module | None, hidden: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(3, 3)
    parts = [nn.Linear(3, 3), nn.Tanh()] if hidden else []
    model = layer if behind is None and not hidden else nn.Sequential(*parts, layer, *([behind] if behind else []))
    assert explained(model, "cross_entropy").symmetries == {"softmax shift": 4}


def test_a_common_shift_of_logits_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    assert explained(model, "cross_entropy").symmetries == {"softmax shift": 5}
    assert explained(model, "mse").symmetries == {}


def test_duplicated_neurons_are_named_and_silent_ones_are_no_symmetry() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[2] = model[0].weight[0]  # type: ignore[union-attr,operator,index]
        model[0].bias[2] = model[0].bias[0]  # type: ignore[union-attr,operator,index]
        model[2].weight[:, 3] = 0  # type: ignore[union-attr,operator,index]
    assert explained(model).symmetries == {"duplicated neurons": 2}


def test_a_normalisation_hides_a_common_shift() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-30), nn.Tanh(), nn.Linear(4, 2))
    # Three columns and the bias shift, and one scale.
    assert explained(model).symmetries == {"normalisation": 5}


def test_symmetries_are_not_claimed_where_there_are_none() -> None:
    torch.manual_seed(0)
    assert explained(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).symmetries == {}


# ---- large networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowest", "products", "wanted"),
    [(0.2, 400, "minimum"), (-0.05, 400, "saddle"), (1e-3, 20, "unresolved")],
)
def test_lanczos_certificates_of_planted_quadratics(lowest: float, products: int, wanted: str) -> None:
    eigenvalues = torch.linspace(0.2, 1.0, 300, dtype=torch.float64)
    eigenvalues[0] = lowest
    objective = build_objective(surface(quadratic(eigenvalues), torch.zeros(300, dtype=torch.float64)))
    made, _ = certify_large(objective, loss_name=None, tau=1e-2, max_products=products)
    assert made.verdict == wanted
    assert made.lambda_min.low - 1e-12 <= lowest <= made.lambda_min.high + 1e-12
    if wanted == "unresolved":
        assert made.products_needed is not None
        again, _ = certify_large(objective, loss_name=None, tau=1e-2, max_products=made.products_needed)
        assert again.verdict == "degenerate"


@pytest.mark.parametrize("seed", range(6))
def test_lanczos_certificates_of_multiple_eigenvalues_are_settled_within_what_they_ask_for(seed: int) -> None:
    """A Krylov space of few eigenvalues is exhausted long before anything is excluded."""
    rng = np.random.default_rng(seed)
    values = np.r_[rng.choice([-1, 1]) * 10 ** rng.uniform(-4, -2), rng.uniform(0.01, 1.0, rng.integers(1, 30)), 1.0]
    eigenvalues = torch.as_tensor(np.r_[values, rng.choice(values, 300 - len(values))])
    objective = build_objective(surface(quadratic(eigenvalues, seed), torch.zeros(300, dtype=torch.float64)))
    wanted = "saddle" if values[0] < 0 else "minimum"
    made, _ = certify_large(objective, loss_name=None, tau=1e-5, max_products=300)
    assert made.verdict == wanted
    made, _ = certify_large(objective, loss_name=None, tau=1e-5, max_products=40)
    assert made.verdict in ("unresolved", wanted)
    if made.verdict == "unresolved":
        assert f"max_products={made.products_needed} " in made.reason
        again, _ = certify_large(objective, loss_name=None, tau=1e-5, max_products=made.products_needed)
        assert again.verdict == wanted


def test_nothing_is_promised_that_products_cannot_give() -> None:
    unresolved = {"exact": False, "lambda_min_beyond": Interval(0.1, -1.0, 0.1), "lambda_min": Interval(0.1, -1.0, 0.1)}
    assert "max_products=700 " in replace(SOUND, **unresolved, products_needed=700).reason
    assert "max_products" not in replace(SOUND, **unresolved, products_needed=None).reason


def test_dense_and_lanczos_certificates_agree() -> None:
    problem = fixture_problem()
    dense = certify_stack(*build_stack([problem]))[0]
    large, _ = certify_large(build_objective(problem), loss_name="mse", tau=1e-6)
    assert large.verdict == dense.verdict == "minimum"
    assert large.lambda_min.value == pytest.approx(dense.lambda_min.value, rel=1e-6)


def test_every_verdict_has_a_case() -> None:
    assert {wanted for _, wanted in CASES.values()} == set(VERDICTS)
    assert decide(SOUND)[0] == "minimum"
