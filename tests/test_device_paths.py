"""Every path with a device in it, on a GPU that is not there: see `pretended`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landscape.curvature.eigenpairs
import landscape.points.descend
import landscape.points.escape
from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.claims.escape_dimensions.splits import split_minima
from landscape.claims.escape_dimensions.tickets import redraw_others, train_alone
from landscape.claims.negative_eigenvalues.critical_points import critical_points, starts
from landscape.claims.negative_eigenvalues.interpolation_bounds import counts, interpolation
from landscape.claims.negative_eigenvalues.signs import sign_ensemble
from landscape.curvature.operator import CurvatureOperator
from landscape.diagnosis.run import doctor
from landscape.linalg.basis import Basis
from landscape.linalg.lanczos import lanczos
from landscape.optim.damped import Limits, damped_descent
from landscape.optim.levenberg_marquardt import levenberg_marquardt
from landscape.points.certify import certify_stack
from landscape.points.descend import descend
from landscape.points.descent import Way, descend_stack
from landscape.points.escape import escape
from landscape.problem.batches import map_tensors
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem, is_pair
from landscape.slices.run import slice as slice_through
from landscape.spectra.run import spectrum
from landscape.stack.build import build_stack
from landscape.stack.first_order import FirstOrder, first_order
from landscape.training.stacks import train_stack
from landscape.widening.run import widen
from pretended import ANYWHERE, CPU, CUDA, MistakeError, pretended_gpu
from test_training_stacks import TABLES, TEACHER, runs_of


def problem(
    loss: str = "mse",
    hidden: int = 2,
    outputs: int = 1,
    samples: int = 7,
    act: type[nn.Module] = nn.Tanh,
    seed: int = 0,
) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, hidden), act(), nn.Linear(hidden, outputs))
    wanted = torch.randint(0, outputs, (samples,)) if loss == "cross_entropy" else torch.rand(samples, outputs)
    return Problem(model, (torch.randn(samples, 3), wanted), loss)


def on_gpu(made: Problem) -> Problem:
    """The same, as a user makes it whose own model and data lie there."""
    data = [map_tensors(batch, lambda t: t.to("cuda")) for batch in made.data]
    return Problem(copy.deepcopy(made.model).to("cuda"), tuple(data) if is_pair(made.data) else data, made.loss)


# ---- the pretence itself ---------------------------------------------------------------------------------------------


def x(device: str = "cuda", *shape: int) -> Tensor:
    return torch.ones(shape or (3,), device=device)


MISTAKES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: x().numpy(),
    "asarray": lambda: np.asarray(x()),
    "pickle": lambda: torch.save(x(), Path("/dev/null")),
    "two devices": lambda: x() + x("cpu"),
    "a GPU's number and a vector here": lambda: x().sum() + x("cpu"),
    "matrix product": lambda: x("cuda", 2, 2) @ x("cpu", 2, 2),
    "joined": lambda: torch.cat([x(), x("cpu")]),
    "indices on the GPU": lambda: x("cpu")[torch.zeros(1, dtype=torch.long, device="cuda")],
    "in place": lambda: x("cpu").add_(x()),
    "generator of the CPU": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    "drawn in place": lambda: x().normal_(generator=torch.Generator()),
    "under vmap": lambda: torch.func.vmap(lambda a: a * x("cpu"))(x("cuda", 2, 3)),
    "under grad": lambda: torch.func.grad(lambda a: (a * x("cpu")).sum())(x()),
    "of a module": lambda: nn.Linear(3, 2).to("cuda")(x("cpu")),
    "copy that does not wait": lambda: x().to("cpu", non_blocking=True),
    "pinned there": lambda: torch.empty(3, device="cuda", pin_memory=True),
}
FINE: dict[str, Callable[[], Any]] = {
    "a number here": lambda: x() + x("cpu").sum(),
    "copied": lambda: x("cpu").copy_(x()),
    "moved": lambda: x().cpu().numpy(),
    "like another": lambda: x("cpu").to(x()) + torch.zeros_like(x()) + x().new_tensor([1.0]),
    "indices here": lambda: x()[torch.zeros(1, dtype=torch.long)],
    "a number written": lambda: x().__setitem__(0, 2.0),
    "views": lambda: x("cuda", 4).view(2, 2).T @ x("cuda", 2, 2),
    "backward": lambda: x().requires_grad_().square().sum().backward(),
    "copied deeply": lambda: copy.deepcopy(nn.Linear(3, 2).to("cuda"))(x()),
    "drawn here and moved": lambda: torch.randn(3, generator=torch.Generator()).to("cuda") + x(),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pretended_gpu(monkeypatch), pytest.raises(MistakeError):
        MISTAKES[name]()


@pytest.mark.parametrize("name", FINE)
def test_what_cuda_takes_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pretended_gpu(monkeypatch) as gpu:
        FINE[name]()
    assert gpu.computed[CUDA] > 0


def test_where_a_tensor_says_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch) as gpu:
        there = x()
        assert (there.device, there.is_cuda, x("cpu").device) == (torch.device("cuda:0"), True, torch.device("cpu"))
        assert torch.func.vmap(lambda a: torch.zeros(3, device=a.device) + a)(x("cuda", 2, 3)).is_cuda
        assert not gpu.waits
        assert float(there.sum()) == 3.0
        assert sum(gpu.waits.values()) == 1
    assert not there.is_cuda


# ---- the library -----------------------------------------------------------------------------------------------------


def _own_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    losses = nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return (losses * batch["mask"]).sum(), batch["mask"].sum()


def _dictionaries() -> Problem:
    torch.manual_seed(0)
    data = [{"x": torch.randn(4, 3), "y": torch.randint(0, 2, (4,)), "mask": torch.ones(4)} for _ in range(2)]
    return Problem(nn.Linear(3, 2), data, _own_loss)


def _images(act: type[nn.Module] = nn.Softplus) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), act(), nn.Flatten(), nn.Linear(8, 2))
    return Problem(model, (torch.randn(6, 1, 4, 4), torch.randint(0, 2, (6,))), "cross_entropy", 0.01)


FEW: dict[str, Any] = {"device": "cuda", "exact": False, "top": 1, "bottom": 1, "probes": 3, "steps": 3}
KEPT = FEW | {"strategy": "kept", "block": 1}


def _offloaded(patch: pytest.MonkeyPatch) -> None:
    """The rows of the Krylov basis that a GPU has no room for lie in pinned memory here."""
    patch.setattr(landscape.curvature.eigenpairs, "usable_bytes", lambda d, *_: 0 if d.type == "cuda" else 2**30)
    slabs = []
    new = Basis._new_slab
    patch.setattr(Basis, "_new_slab", lambda self, held: slabs.append(new(self, held)) or slabs[-1])
    spectrum(problem(hidden=6), **KEPT | {"rtol": 1e-9, "top": 2})
    assert {slab.is_cuda for slab in slabs} == {True, False}


def _large(patch: pytest.MonkeyPatch, what: Callable[[], Any]) -> None:
    """As of a network with too many parameters for dense matrices."""
    for module, name in (
        (landscape.points.descend, "DENSE_STEPS"),
        (landscape.points.descend, "DENSE_CERTIFICATE"),
        (landscape.points.escape, "DENSE_STEPS"),
        (landscape.points.escape, "DENSE"),
    ):
        patch.setattr(module, name, 1)
    what()


def _stacks() -> tuple[Any, Tensor]:
    first, second = problem(), problem(seed=1)
    return build_stack([first, Problem(second.model, first.data, "mse")], device="cuda")


def _with_own_targets(hidden: int) -> list[Problem]:
    first, second = problem(hidden=hidden), problem(hidden=hidden, seed=1)
    assert isinstance(first.data, tuple)
    assert isinstance(second.data, tuple)
    return [first, Problem(second.model, (first.data[0], second.data[1]), "mse")]


def _trained(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    runs = runs_of(folder, changes)[:2]
    train_stack(runs, folder / "out", device="cuda")
    written = sorted((folder / "out").rglob("*.pt"))
    assert len(written) > len(runs)
    for path in written:
        read_checkpoint(path)


def _tickets() -> None:
    first, second = _with_own_targets(3)
    train_alone(
        [first, second], "0", 2, 2, 2, np.random.default_rng(0), device="cuda", first=FirstOrder("adam", 0.1, 2)
    )
    fresh = [[Problem(second.model, first.data, "mse")], [Problem(first.model, second.data, "mse")]]
    redraw_others(
        [first, second], fresh, "0", [[0], [1]], 2, teachers=[np.ones((2, 3))] * 2, optimiser="newton", device="cuda"
    )


def _critical() -> None:
    stack, theta = _stacks()
    critical_points(stack, starts(stack, theta, scales=(0.5,), heights=1, steps=2), steps=2)


def _interpolated() -> None:
    stack, theta = _stacks()
    for norm in ("spectral", "frobenius"):
        interpolation(stack, theta, norm=norm)
    counts(stack, theta)
    sign_ensemble(stack, theta)


def _examined(made: Problem) -> None:
    """A check that raises becomes a finding."""
    found = doctor(made, device="cuda", samples=4).findings
    assert not [f for f in found if f.verdict == "fault" or "MistakeError" in str(f)], found


ADAM = {"optimiser": "adam", "target_loss": 9.0, "steps": 4, "batch_size": 100, "finish": "minimum", "finish_steps": 1}
DOUBLE = {"dtype": "float64", "save_dtype": "float64"}
Case = Callable[[pytest.MonkeyPatch, Path], Any]
CASES: dict[str, Case] = {
    "spectrum, dense": lambda p, f: spectrum(on_gpu(problem()), device="cuda", strategy="kept"),
    "spectrum, by layers": lambda p, f: spectrum(problem(), **KEPT, vectors=True, by_layer=True, density=False),
    "spectrum, subset": lambda p, f: spectrum(
        problem(hidden=1, samples=12), **KEPT, operator="ggn", samples=10
    ),
    "spectrum, bfloat16": lambda p, f: spectrum(on_gpu(problem()), **KEPT, precision="bf16"),
    "spectrum, linearize": lambda p, f: spectrum(problem(), **FEW, strategy="linearize", block=2, precision="tf32"),
    "spectrum, own loss": lambda p, f: spectrum(on_gpu(_dictionaries()), **KEPT),
    "spectrum, full GPU": lambda p, f: _offloaded(p),
    "slice, everything measured": lambda p, f: slice_through(
        problem("cross_entropy", outputs=2), device="cuda", points=(3,), dirs="hessian:bottom=1",
        metrics=("loss", "accuracy", "gradient_norm", "lambda_max"), batch_size=4,
    ),
    "slice, images": lambda p, f: slice_through(
        on_gpu(_images()), device="cuda", points=(3,), dirs="random", batchnorm="recalibrate"
    ),
    "slice, timed": lambda p, f: slice_through(_images(nn.ReLU), device="cuda", points=(4,), dirs="gradient"),
    "descend": lambda p, f: descend(problem(), device="cuda", steps=5),
    "descend, critical": lambda p, f: descend(on_gpu(problem("bce")), device="cuda", steps=3, to="critical"),
    "descend, newton": lambda p, f: descend(
        problem("cross_entropy", outputs=2, act=nn.ReLU), device="cuda", steps=3, method="newton"
    ),
    "descend, large": lambda p, f: _large(p, lambda: descend(problem("bce"), device="cuda", steps=2)),
    "descend, large, critical": lambda p, f: _large(
        p, lambda: descend(problem("cross_entropy", outputs=2), device="cuda", steps=2, to="critical")
    ),
    "escape": lambda p, f: escape(on_gpu(problem()), device="cuda", steps=3, controls=1, descend=True),
    "escape, large": lambda p, f: _large(
        p, lambda: escape(problem(), device="cuda", steps=1, controls=1, max_products=9)
    ),
    "widen": lambda p, f: widen(
        on_gpu(problem()), "0", device="cuda", steps=2, follow=True, controls=1, neurons=(0,), shares=((0.3, 0.7),)
    ),
    "train, adam and certificates": lambda p, f: _trained(f, {"training": TABLES["training"] | ADAM | DOUBLE}),
    "train, second order": lambda p, f: _trained(f, TEACHER | {"training": TEACHER["training"] | {"steps": 3}}),
    "check, splits": lambda p, f: split_minima(_with_own_targets(1), "0", 1, 1, device="cuda"),
    "check, tickets": lambda p, f: _tickets(),
    "check, critical points": lambda p, f: _critical(),
    "check, interpolation and signs": lambda p, f: _interpolated(),
    "doctor": lambda p, f: _examined(on_gpu(problem(hidden=1, samples=4))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_library_on_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """No mistake, and what costs is done there."""
    with pretended_gpu(monkeypatch) as gpu:
        CASES[name](monkeypatch, tmp_path)
    here = 0 if name.startswith("train") else 2 * gpu.computed[CPU]  # weights are drawn and files measured here
    assert gpu.computed[CUDA] > max(100, here), gpu.computed
    assert gpu.computed[ANYWHERE] < gpu.computed[CUDA] / 2, gpu.computed


def test_results_are_on_the_cpu_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem()
    here = spectrum(made, device="cpu", strategy="kept")
    with pretended_gpu(monkeypatch):
        there = spectrum(made, device="cuda", strategy="kept")
    np.testing.assert_allclose(there.eigenvalues, here.eigenvalues, atol=1e-12)
    assert there.spent is not None
    assert there.spent.device.startswith("cuda")


# ---- how often the host waits ----------------------------------------------------------------------------------------


def waits(patch: pytest.MonkeyPatch, what: Callable[[int], Any], size: int) -> int:
    with pretended_gpu(patch) as gpu:
        what(size)
    return sum(gpu.waits.values())


def _cells(count: int) -> None:
    """With weight decay, so that the penalty of every cell is asked for."""
    slice_through(_images(), device="cuda", points=(count,), dirs="random", batch_size=6)


def _products(count: int) -> None:
    objective = build_objective(problem(), device="cuda")
    operator = CurvatureOperator(objective, strategy="kept", block=1)
    for _ in range(count):
        operator(torch.ones(objective.layout.total, 1, device="cuda"))


def _steps(count: int) -> None:
    made = problem(hidden=9, outputs=2)
    objective = build_objective(made, device="cuda", dtype=torch.float64)
    start = torch.ones(objective.layout.total, dtype=torch.float64, device="cuda")
    lanczos(CurvatureOperator(objective, strategy="kept", block=1), start, count)


def _first_order(count: int) -> None:
    stack, theta = _stacks()
    first_order(stack, theta, FirstOrder("adam", 0.01, count))


def _damped(count: int) -> None:
    stack, theta = _stacks()
    damped_descent(theta, levenberg_marquardt(stack.values, stack.gauss_newton), Limits(gradient=0.0, steps=count))


def _stacked_training(steps: int) -> None:
    with TemporaryDirectory() as folder:
        training = TABLES["training"] | {"steps": steps, "save": [0]}
        _trained(Path(folder), {"training": training})


def _descent(steps: int) -> None:
    stack, theta = _stacks()
    descend_stack(stack, theta, Way("minimum", steps, gradient=1e-300, gauss_newton=False))


def _certificates(members: int) -> None:
    made = [problem(act=nn.ReLU, hidden=3, seed=seed) for seed in range(members)]
    stack, theta = build_stack([Problem(p.model, made[0].data, "mse") for p in made], device="cuda")
    certify_stack(stack, theta)


# How many more times the host may wait where four more of them are computed.
WAITS: dict[str, tuple[Callable[[int], Any], int]] = {
    "cells of a slice": (_cells, 1),  # a tile
    "products": (_products, 0),
    "Lanczos steps": (_steps, 4),
    "full batches": (_first_order, 0),
    "minibatches": (_stacked_training, 4),
    "damped steps": (_damped, 16),
    "steps with a trajectory": (_descent, 28),
    "certificates": (_certificates, 8),  # point and Hessian of a member with zero modes
}


@pytest.mark.parametrize("name", WAITS)
def test_the_host_does_not_wait_in_loops(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    what, more = WAITS[name]
    few, many = (waits(monkeypatch, what, size) for size in (5, 9))
    assert few <= many <= few + more
