"""One animal of the zoo through one analysis: right against a double backward written out, or refused by name.

By hand, all of them through everything (some minutes):  python tests/zoo_checked.py [names or ways]
"""

from __future__ import annotations

import copy
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

import zoo_of_models
from dense_truth import Truth, dense_truth
from landscape.diagnosis.run import doctor
from landscape.errors import LandscapeError
from landscape.points.descend import descend
from landscape.points.escape import escape
from landscape.problem.problem import Problem
from landscape.slices.run import slice as slice_surface
from landscape.spectra.run import spectrum
from zoo_of_models import Animal, build

# What float32, in which weights and data lie, makes of a loss; float64's own error is in `Truth.error`.
SINGLE = 2e-5


def truth_of(animal: Animal, theta: np.ndarray | None = None, operator: str = "hessian") -> Truth:
    """Of what is written out, at θ if that is given."""
    problem = animal.written_out
    model = copy.deepcopy(problem.model).double()
    if theta is not None:
        vector_to_parameters(torch.from_numpy(theta).double(), [p for p in model.parameters() if p.requires_grad])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dense_truth(
            Problem(model, problem.data, problem.loss, problem.weight_decay), operator=operator, sharp=False
        )


def contains(value: float, error: float, true: np.ndarray, slack: float) -> bool:
    """Whether an eigenvalue lies within a residual of the value."""
    return bool((np.abs(true - value) <= error + slack).any())


def exact(animal: Animal) -> None:
    """All eigenvalues from the dense matrix, the trace."""
    found, truth = spectrum(animal.problem, exact=True, density=False), truth_of(animal)
    slack = found.product_error + truth.error + 1e-12 * truth.scale
    assert found.loss == pytest.approx(truth.loss, rel=SINGLE, abs=1e-7)
    assert np.abs(found.eigenvalues - truth.eigenvalues).max() <= slack
    assert found.trace_low - slack <= truth.eigenvalues.sum() <= found.trace_high + slack


def iterative(strategy: str) -> Callable[[Animal], None]:
    """Both ends by Lanczos, in float32, each way of taking products."""

    def check(animal: Animal) -> None:
        settings = {"strategy": strategy, "exact": False, "density": False, "top": 2, "bottom": 2}
        found, truth = spectrum(animal.problem, **settings), truth_of(animal)
        for values, residuals in (
            (found.top_value, found.top_residual),
            (found.bottom_value, found.bottom_residual),
        ):
            for value, residual in zip(values, residuals, strict=True):
                assert contains(value, residual, truth.eigenvalues, truth.error), (value, residual, truth.eigenvalues)
        slack = truth.error + float(found.top_residual[0]) + 1e-3 * truth.scale
        assert abs(found.top_value[0] - truth.eigenvalues[-1]) <= slack
        assert abs(found.bottom_value[0] - truth.eigenvalues[0]) <= slack

    return check


def ggn(animal: Animal) -> None:
    """The Gauss–Newton matrix of a named loss by its formula; of others, that it is positive."""
    if not isinstance(animal.problem.loss, str) or animal.refused:
        spectrum(animal.problem, operator="ggn", exact=True, density=False)
        return
    truth = truth_of(animal, operator="ggn")
    found = spectrum(animal.problem, operator="ggn", exact=True, density=False)
    assert np.abs(found.eigenvalues - truth.eigenvalues).max() <= found.product_error + truth.error + 1e-12


def plane(animal: Animal) -> None:
    """The corners and the centre of a plane."""
    found = slice_surface(animal.problem, points=(3, 3), span=0.5)
    if found.faults:  # what the command warns of
        raise LandscapeError(f"the slice and its derivatives contradict each other: {found.faults}", "doctor")
    start = torch.cat([p.detach().flatten().double() for p in _trained(animal.problem)]).numpy()
    for i, j in ((0, 0), (1, 1), (2, 0)):
        theta = start + found.x[j] * found.direction_vector[0] + found.y[i] * found.direction_vector[1]
        assert found.loss[i, j] == pytest.approx(_loss(animal, theta), rel=10 * SINGLE, abs=1e-6), (i, j)


def _trained(problem: Problem) -> list[torch.Tensor]:
    return [p for p in problem.model.parameters() if p.requires_grad]


def _loss(animal: Animal, theta: np.ndarray) -> float:
    return truth_of(animal, theta).loss


def way_out(animal: Animal) -> None:
    """The point's certificate and the line through it; a short descent from both sides."""
    found, truth = escape(animal.problem, steps=3), truth_of(animal)
    slack = truth.error + 1e-10 * truth.scale + (SINGLE * truth.scale if found.spent.dtype == "float32" else 0)
    assert found.loss == pytest.approx(truth.loss, rel=SINGLE)
    lowest = found.certificate.lambda_min
    assert lowest.low - slack <= truth.eigenvalues[0] <= lowest.high + slack
    # What was reached is where it is said to be.
    assert found.loss_after == pytest.approx(_loss(animal, found.point), rel=SINGLE, abs=1e-7)


def descent(animal: Animal) -> None:
    """A few steps down, and the certificate of where they end."""
    found = descend(animal.problem, steps=12)
    truth = truth_of(animal, found.point)
    slack = truth.error + 1e-9 * truth.scale + (SINGLE * truth.scale if found.spent.dtype == "float32" else 0)
    assert found.loss <= found.loss_before * (1 + 1e-12) + 1e-12
    assert found.loss == pytest.approx(truth.loss, rel=SINGLE, abs=1e-9)
    lowest = found.certificate.lambda_min
    assert lowest.low - slack <= truth.eigenvalues[0] <= lowest.high + slack


def diagnosis(animal: Animal) -> None:
    """No false alarm, and an alarm where others refuse."""
    found = doctor(animal.problem)
    faults = [f"{f.name}: {f.text}" for f in found.findings if f.verdict == "fault"]
    if faults:
        raise LandscapeError("; ".join(faults), "doctor")


WAYS: dict[str, Callable[[Animal], None]] = {
    "exact": exact,
    "kept": iterative("kept"),
    "linearize": iterative("linearize"),
    "recompute": iterative("recompute"),
    "ggn": ggn,
    "slice": plane,
    "escape": way_out,
    "descend": descent,
    "doctor": diagnosis,
}
# (way, pattern of names) -> words of a refusal that is right there alone.
PARTLY: dict[tuple[str, str], str] = {
    ("ggn", "pinn|gradient penalty|variational|flow|gaussian"): "no function of what the model returns|does not call",
}


def checked(name: str, way: str) -> str:
    """ "right", or "refused: …"; anything else is an AssertionError, whatever was raised."""
    animal = build(name)
    expected = animal.refused or next(
        (words for (w, names), words in PARTLY.items() if w == way and re.search(names, name)), ""
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            WAYS[way](animal)
    except LandscapeError as error:
        said = f"refused: {error.message}"
        if error.hint and expected and re.search(expected, error.message):
            return said
        raise AssertionError(f"{name}, {way}: {said}; hint: {error.hint}") from error
    except AssertionError as error:
        raise AssertionError(f"{name}, {way}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{name}, {way}: a traceback, {type(error).__name__}: {error}") from error
    # Where a way stands without what is refused elsewhere, it is right.
    return "right"


def main(chosen: list[str]) -> int:
    names = [n for n in zoo_of_models.ZOO if n in chosen] or list(zoo_of_models.ZOO)
    ways = [w for w in WAYS if w in chosen] or list(WAYS)
    bad = 0
    for name in names:
        for way in ways:
            start = time.process_time()
            try:
                said = checked(name, way)
            except AssertionError as error:
                bad += 1
                said = f"WRONG {' '.join(str(error).split())[:300]}"
                if len(names) == 1:
                    traceback.print_exc()
            print(f"{name:26} {way:10} {time.process_time() - start:5.1f} s  {said[:330]}", flush=True)
    print(f"{bad} wrong of {len(names) * len(ways)}")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
