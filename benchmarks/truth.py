"""What is true: eigenvalues by two independent float64 ways, and a reference density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional as F

from benchmarks.problems import Case
from landscape.curvature.operator import CurvatureOperator
from landscape.linalg.lanczos import lanczos_extremes
from landscape.linalg.probes import sphere
from landscape.linalg.quadrature import gauss, tridiagonalise
from landscape.problem.objective import build_objective

# Step of the central difference, for a unit vector: rounding 1e-16/1e-8, and too short to cross many kinks of ReLU.
STEP = 1e-8


@dataclass(frozen=True)
class Measure:
    """A density of eigenvalues as atoms; weights sum to 1."""

    node: np.ndarray
    weight: np.ndarray

    def moment(self, k: int) -> float:
        return float(np.sum(self.weight * self.node**k))


@dataclass(frozen=True)
class Truth:
    """Largest and smallest eigenvalues, and how far the independent computation is from them (relative)."""

    top: np.ndarray
    bottom: np.ndarray
    disagreement: float
    operator: CurvatureOperator
    vectors: Tensor


@dataclass(frozen=True)
class Reference:
    """Reference density and how far eight exact probes are from it: W₁ over the spread, moments' standard errors."""

    measure: Measure
    spread: float
    typical_w1: float
    moment_error: tuple[float, float]


def truth_of(case: Case) -> Truth:
    """Ten eigenvalues of either end: our float64 Lanczos, against ARPACK on central differences."""
    objective = build_objective(case.problem(), dtype=torch.float64, device=case.device)
    operator = CurvatureOperator(objective, expected_products=150)
    generator = torch.Generator().manual_seed(123)
    start = sphere(operator.n, 1, generator=generator, dtype=torch.float64, device=operator.device)[:, 0]
    found = lanczos_extremes(
        operator, start, top=10, bottom=10, rtol=1e-7, tau=1e-12, noise=0.0,
        max_products=2000, max_basis=600, generator=generator,
    )  # fmt: skip
    if not (found.top_converged.all() and found.bottom_converged.all()):
        raise RuntimeError("the float64 reference has not converged")
    theirs = _independent(case)
    ours = np.r_[found.top_value, found.bottom_value]
    vectors = torch.cat([found.top_vector, found.bottom_vector], dim=1)
    worst = float(np.max(np.abs(theirs - ours) / np.abs(ours)))
    return Truth(found.top_value, found.bottom_value, worst, operator, vectors)


def _independent(case: Case) -> np.ndarray:
    """Top 10 descending, then the ten smallest ascending: nothing of this project is used."""
    model = case.copy().double()
    parameters = list(model.parameters())
    inputs = case.inputs.double()
    point = torch.nn.utils.parameters_to_vector(parameters).detach()

    def gradient(at: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(at, parameters)
        grads = torch.autograd.grad(F.cross_entropy(model(inputs), case.targets), parameters)
        return torch.cat([g.reshape(-1) for g in grads])

    def product(v: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(np.ascontiguousarray(v)).reshape(-1)
        size = float(vector.norm())
        step = vector * (STEP / size)
        difference: np.ndarray = ((gradient(point + step) - gradient(point - step)) * (size / (2 * STEP))).numpy()
        return difference

    n = len(point)
    central = LinearOperator((n, n), matvec=product, dtype=np.float64)
    v0 = np.random.default_rng(7).standard_normal(n)
    top = eigsh(central, k=10, which="LA", ncv=60, tol=1e-5, v0=v0, return_eigenvectors=False)
    bottom = eigsh(central, k=10, which="SA", ncv=80, tol=1e-5, v0=v0, return_eigenvectors=False)
    return np.r_[np.sort(top)[::-1], np.sort(bottom)]


def reference_of(truth: Truth, probes: int, steps: int) -> Reference:
    """Known eigenvalues exactly plus many float64 probes of the rest; and what eight plain probes would give."""
    operator = truth.operator
    values = np.r_[truth.top, truth.bottom]
    basis = torch.linalg.qr(truth.vectors)[0]
    generator = torch.Generator().manual_seed(99)
    draw = {"generator": generator, "dtype": torch.float64, "device": operator.device}
    nodes, weights = [values], [np.full(len(values), 1 / operator.n)]
    rest = (operator.n - len(values)) / operator.n / probes
    for _ in range(probes):
        rule = gauss(tridiagonalise(operator, sphere(operator.n, 1, **draw), steps, deflate=basis))
        nodes.append(rule.nodes[0])
        weights.append(rest * rule.weights[0])
    measure = Measure(np.concatenate(nodes), np.concatenate(weights))
    spread = float(values.max() - values.min())
    plain = []
    for _ in range(max(8, probes)):
        rule = gauss(tridiagonalise(operator, sphere(operator.n, 1, **draw), 80))
        plain.append(Measure(rule.nodes[0], rule.weights[0]))
    eights = [mean_of([plain[i] for i in np.random.default_rng(s).permutation(len(plain))[:8]]) for s in range(10)]
    w1 = float(np.median([distance(m, measure) for m in eights])) / spread
    first, second = (float(np.std([p.moment(k) for p in plain], ddof=1)) / np.sqrt(8) for k in (1, 2))
    return Reference(measure, spread, w1, (first, second))


def mean_of(measures: list[Measure]) -> Measure:
    return Measure(
        np.concatenate([m.node for m in measures]), np.concatenate([m.weight for m in measures]) / len(measures)
    )


def distance(a: Measure, b: Measure) -> float:
    """W₁ between two densities."""
    return float(wasserstein_distance(a.node, b.node, a.weight, b.weight))
