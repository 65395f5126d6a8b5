"""pytest plugin: imate's tests of traces of functions of matrices, with our quadrature as the method "slq".

Their tests print errors and assert nothing. Here every call is a case: it fails where the interval over probes (four
standard errors beside one per cent, the error that they ask for) misses the dense answer; counts of eigenvalues where
our certain bracket at its rate does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from landscape.linalg.probes import sphere
from landscape.linalg.quadrature import Quadrature, count_interval, distribution_bracket, gauss, tridiagonalise

PATHS = ()
FILES = (
    "tests/test_trace.py", "tests/test_eigencount.py", "tests/test_density.py", "tests/test_trexp.py",
    "tests/test_trlinfrac.py",
)  # fmt: skip
NOT_OURS = {"test_density": "fails with theirs alone: its dense method returns a pair"}
CASES: list[tuple[str, str]] = []
Function = Callable[[np.ndarray], np.ndarray]


def _dense(A: Any, gram: bool) -> np.ndarray:
    a = np.asarray(A.toarray() if hasattr(A, "toarray") else A)
    return a.T @ a if gram else a


def _rules(a: np.ndarray, samples: int, steps: int) -> Quadrature:
    """All probes as one block."""
    matrix = torch.from_numpy(np.array(a))
    random = torch.Generator().manual_seed(0)
    starts = sphere(len(a), samples, generator=random, dtype=matrix.dtype, device=matrix.device)
    return gauss(tridiagonalise(lambda V: matrix @ V, starts, min(steps, len(a))))


def _traced(name: str, f: Function, A: Any, gram: bool, p: int, samples: int, steps: int) -> float:
    a = _dense(A, gram)
    values = np.linalg.eigvalsh(a.astype(np.float64))
    exact = float(f(values**p).sum())
    rule = _rules(a, samples, steps)
    drawn = len(a) * (rule.weights * f(rule.nodes**p)).sum(axis=1)
    error = drawn.std(ddof=1) / len(drawn) ** 0.5
    found = float(drawn.mean())
    wrong = abs(found - exact) > 4 * error + 0.01 * abs(exact)
    case = f"{name}, {a.dtype}, gram {gram}, p {p}"
    CASES.append((case, f"{found:.6g}, exact {exact:.6g}, standard error {error:.2g}" if wrong else ""))
    return found


def _counted(A: Any, gram: bool, p: int, interval: Any, samples: int, steps: int) -> float:
    """Eigenvalues of A^p in a closed interval of non-negative numbers, of a positive definite A."""
    a = _dense(A, gram)
    values = np.linalg.eigvalsh(a.astype(np.float64)) ** p
    exact = int(((values >= interval[0]) & (values <= interval[1])).sum())
    if p == 0:
        ends = [np.inf if interval[0] <= 1 <= interval[1] else -np.inf]
    else:
        ends = [float(np.nextafter(interval[1] ** (1 / p), np.inf))]
    low = high = 1.0
    if np.isfinite(ends[0]):
        low, high = (float(b.mean()) for b in distribution_bracket(_rules(a, samples, steps).tridiagonals, ends[0]))
    first, last = count_interval(low, high, len(a), samples)
    case = f"eigencount, {a.dtype}, gram {gram}, p {p}"
    CASES.append((case, "" if first <= exact <= last else f"[{first}, {last}], exact {exact}"))
    return 0.5 * (first + last)


def _method(
    theirs: Callable[..., Any], name: str, function_of: Callable[[dict[str, Any]], Function]
) -> Callable[..., Any]:
    def call(A: Any, gram: bool = False, p: int = 1, method: str = "exact", **options: Any) -> Any:
        if method != "slq":
            return theirs(A, gram=gram, p=p, method=method, **options)
        samples, steps = options.get("max_num_samples", 200), options.get("lanczos_degree", 30)
        if name == "eigencount":
            return _counted(A, gram, p, options["interval"], samples, steps)
        return _traced(name, function_of(options), A, gram, p, samples, steps)

    return call


def _gaussian(options: dict[str, Any]) -> Function:
    mu, sigma = options.get("mu", 0.0), options.get("sigma", 1.0)
    return lambda x: np.exp(-0.5 * ((x - mu) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def _fraction(options: dict[str, Any]) -> Function:
    a, b, c, d = options["coeff"]
    return lambda x: (a * x + b) / (c * x + d)


def pytest_configure(config: pytest.Config) -> None:
    """Replace theirs before their tests are imported."""
    import imate as theirs

    functions: dict[str, Callable[[dict[str, Any]], Function]] = {
        "trace": lambda o: lambda x: x, "eigencount": lambda o: lambda x: x, "density": _gaussian,
        "trexp": lambda o: lambda x: np.exp(o.get("coeff", 1.0) * x), "trlinfrac": _fraction,
    }  # fmt: skip
    for name, function_of in functions.items():
        setattr(theirs, name, _method(getattr(theirs, name), name, function_of))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A test of theirs fails with the cases that it held."""
    CASES.clear()
    result = yield
    wrong = [f"{case}: {detail}" for case, detail in CASES if detail]
    item.user_properties.append(("cases", len(CASES)))
    item.user_properties.append(("wrong", len(wrong)))
    if wrong:
        pytest.fail("; ".join(wrong))
    return result
