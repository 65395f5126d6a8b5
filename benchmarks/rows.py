"""The rows of the benchmark: what is asked of every tool, and what counts as the right answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks import ours, peers
from benchmarks.problems import Case
from benchmarks.timing import Effort, Method, Setting, Timed, clocked, race
from benchmarks.truth import Measure, Reference, Truth, distance

ACCURACY = 1e-3
PROBES, STEPS = 8, 80
# Steps that hessian-eigenthings may take: it has no stopping rule.
KRYLOV_STEPS = (16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 48, 56, 64, 80, 100, 140, 200)
# How many standard errors of eight probes a moment may be off, and how many times their usual W₁ a density.
SIGMAS, TIMES_W1 = 5.0, 3.0
MAGNITUDE_ONLY = "only the eigenvalues of largest magnitude (power iteration)"


@dataclass(frozen=True)
class Row:
    """One line of the page: what was asked, in which accuracy, and what each tool took."""

    title: str
    accuracy: str
    tools: list[Timed]


def fastest_chunk(case: Case, build: Callable[[Case, int], peers.Product], sizes: tuple[int, ...]) -> int:
    """The chunk at which a peer's product is fastest (smallest of 5, in turn)."""
    products = {size: build(case, size) for size in sizes}
    v = unit(case.parameters, case.device)
    best = dict.fromkeys(sizes, float("inf"))
    for _ in range(6):
        for size, product in products.items():
            try:
                best[size] = min(best[size], clocked(functools.partial(product, v))[0])
            except RuntimeError:  # out of memory, or no second derivative
                best[size] = float("inf")
    return min(best, key=lambda size: best[size])


def unit(n: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(device)
    return v / v.norm()


def even_chunks(case: Case) -> tuple[int, ...]:
    """Sizes that cut the data evenly: others give hessian-eigenthings a wrong product."""
    return tuple(size for size in (case.samples, case.samples // 3) if case.samples % size == 0)


class Bench:
    """All rows of one case; peers' chunk sizes are found once."""

    def __init__(self, case: Case, effort: Effort) -> None:
        self.case, self.effort = case, effort
        self.eigenthings_chunk = fastest_chunk(case, peers.eigenthings_product, even_chunks(case))
        sizes = (case.samples, case.samples // 3, 256, 128)
        self.curvlinops_chunk = fastest_chunk(case, peers.curvlinops_product, sizes)

    def products(self, truth: CurvatureTruth) -> Row:
        """One product against one gradient (the unit), both in our chunks, all graphs and plans ready."""
        operator, objective = ours.operator_of(self.case)
        v = unit(operator.n, self.case.device)
        block = v[:, None].expand(-1, operator.width)
        calls: dict[str, Callable[[], object]] = {
            "gradient, our chunks": lambda: ours.gradient(objective),
            "gradient, one batch": functools.partial(ours.gradient, objective.with_chunks(self.case.samples)),
            "ours": lambda: operator(v),
            **({f"ours, {operator.width} vectors": lambda: operator(block)[:, 0]} if operator.width > 1 else {}),
        }
        failed: list[Timed] = []
        for who, build in self._peer_products().items():
            try:
                calls[who] = functools.partial(build(), v)
                calls[who]()
            except Exception as error:  # a peer's own failure is a result
                calls.pop(who, None)
                reason = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
                failed.append(Timed(who, reason=reason))
        chunks = {"ours": operator.plan.chunk, "gradient, our chunks": operator.plan.chunk}
        chunks |= {"hessian-eigenthings": self.eigenthings_chunk, "curvlinops": self.curvlinops_chunk}
        rows = {who: Timed(who, {"chunk": chunks.get(who, self.case.samples)}, correct=True) for who in calls}
        exact = truth(v.double())
        for who, call in calls.items():
            answer = call()
            if isinstance(answer, Tensor):
                rows[who].error = float((answer.detach().double() - exact).norm() / exact.norm())
                rows[who].correct = rows[who].error < 1e-4
        for _ in range(10 * self.effort.repetitions):
            for who, call in calls.items():
                rows[who].seconds.append(clocked(call)[0])
        for who, row in rows.items():
            if who.endswith("vectors"):  # a vector's share
                row.seconds = [seconds / operator.width for seconds in row.seconds]
        return Row(f"product, {self.case.name}", "1e-4", [*rows.values(), *failed])

    def _peer_products(self) -> dict[str, Callable[[], peers.Product]]:
        return {
            "PyHessian": lambda: peers.pyhessian_product(self.case),
            "hessian-eigenthings": lambda: peers.eigenthings_product(self.case, self.eigenthings_chunk),
            "curvlinops": lambda: peers.curvlinops_product(self.case, self.curvlinops_chunk),
        }

    def top(self, truth: Truth) -> Row:
        """The ten largest eigenvalues."""
        methods = [
            *self._ours(top=10, bottom=0, expected=50),
            self._eigenthings(10, "LA"),
            self._curvlinops(10, "LA", ncvs=(20, 25, 30, 40, 60), tols=(0.3, 0.1, 1e-2, 1e-3)),
            Method("PyHessian", functools.partial(peers.pyhessian_top, self.case), [
                {"k": 10, "tol": tol, "iterations": 2000} for tol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
            ]),
        ]  # fmt: skip
        return self._row("top 10 eigenvalues", methods, truth.top)

    def bottom(self, truth: Truth) -> Row:
        """The most negative eigenvalue."""
        methods = [
            *self._ours(top=0, bottom=1, expected=50),
            self._eigenthings(1, "SA"),
            self._curvlinops(1, "SA", ncvs=(12, 20, 30, 40, 60), tols=(0.3, 0.1, 1e-2, 1e-3)),
            Method("PyHessian", None, refused=MAGNITUDE_ONLY),
        ]
        return self._row("most negative eigenvalue", methods, truth.bottom[:1])

    def density(self, truth: Truth, reference: Reference) -> Row:
        """Stochastic Lanczos quadrature."""
        size: Setting = {"probes": PROBES, "steps": STEPS}
        ends = (float(truth.bottom[0]), float(truth.top[0]))
        methods = [
            Method("ours", functools.partial(ours.density, self.case), [size]),
            Method("hessian-eigenthings", functools.partial(peers.eigenthings_density, self.case),
                   [{**size, "chunk": self.eigenthings_chunk}]),
            Method("curvlinops", functools.partial(peers.curvlinops_density, self.case),
                   [{**size, "chunk": self.curvlinops_chunk, "ends": ends}]),
            Method("PyHessian", functools.partial(peers.pyhessian_density, self.case), [size]),
        ]  # fmt: skip

        def error(measure: Measure) -> float:
            """W₁ over the spread; infinite if one of the first moments is wrong."""
            for k, sigma in zip((1, 2), reference.moment_error, strict=True):
                if not abs(measure.moment(k) - reference.measure.moment(k)) <= SIGMAS * sigma:
                    return float("inf")
            return distance(measure, reference.measure) / reference.spread

        limit = TIMES_W1 * reference.typical_w1
        tools = race(methods, error, limit, max(2, self.effort.repetitions // 2), self.effort.patience)
        return Row(f"SLQ, {STEPS} steps × {PROBES} probes", f"W₁ ≤ {limit:.1e} of the spread, moments", tools)

    def whole(self, truth: Truth) -> Row:
        """Ten pairs at either end and the density, as one job; peers by their separate calls, one after the other."""
        steps = [{"chunk": self.eigenthings_chunk, "steps": m} for m in KRYLOV_STEPS if m >= 40]
        methods = [
            Method("ours, default: residuals to 1e-3", functools.partial(ours.whole, self.case), [{}]),
            Method("hessian-eigenthings", functools.partial(peers.eigenthings_whole, self.case), steps),
        ]
        return self._row("whole spectrum: 10 + 10 + density", methods, np.r_[truth.top, truth.bottom])

    def _row(self, title: str, methods: list[Method], truth: np.ndarray) -> Row:
        def error(values: np.ndarray) -> float:
            if len(values) != len(truth):
                return float("inf")
            return float(np.max(np.abs(values - truth) / np.abs(truth)))

        return Row(title, "1e-3", race(methods, error, ACCURACY, self.effort.repetitions, self.effort.patience))

    def _ours(self, **wanted: int) -> list[Method]:
        run = functools.partial(ours.extremes, self.case, **wanted)
        loose = [{"rtol": r} for r in (0.3, 0.1, 0.05, 0.03, 0.02, 0.015, 0.01)]
        return [Method("ours, tuned", run, loose), Method("ours, default: residuals to 1e-3", run, [{"rtol": 1e-3}])]

    def _eigenthings(self, k: int, which: str) -> Method:
        settings = [{"chunk": self.eigenthings_chunk, "k": k, "which": which, "steps": m} for m in KRYLOV_STEPS]
        return Method("hessian-eigenthings", functools.partial(peers.eigenthings_extremes, self.case), settings)

    def _curvlinops(self, k: int, which: str, ncvs: tuple[int, ...], tols: tuple[float, ...]) -> Method:
        chunk = self.curvlinops_chunk
        settings = [{"chunk": chunk, "k": k, "which": which, "tol": tol, "ncv": ncv} for tol in tols for ncv in ncvs]
        return Method("curvlinops", functools.partial(peers.curvlinops_extremes, self.case), settings)


CurvatureTruth = Callable[[Tensor], Tensor]
