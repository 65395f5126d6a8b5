"""Random problems for the bar of the project: networks, losses, data, points and settings, all from two numbers.

`draw(seed, index)` gives the same problem on every machine and at every time. Its kinds tuned nothing in the library:
whoever mends a fault that it finds writes a generator of that fault beside the mended part, and leaves this one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.problem.problem import Problem
from random_losses import LOSSES, Loss
from random_networks import MAKERS, TOKENS, Network

MOST_PARAMETERS = 160
# First samples of a set: what a look at a few would see.
FIRST = 70


@dataclass(frozen=True)
class Drawn:
    """A problem, how to analyse it, and what kind of thing it is."""

    seed: int
    index: int
    kinds: dict[str, str]
    problem: Problem
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"seed {self.seed} problem {self.index} ({', '.join(f'{k} {v}' for k, v in self.kinds.items())})"


def _spread(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _heavy(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.standard_t(1.5, (n, d))


def _trend(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) * np.geomspace(_spread(rng, 1e-4, 0.3), 1, n)[:, None]


def _sorted(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d)) * rng.lognormal(0, 1, (n, 1))
    return x[np.argsort((x**2).sum(1))[:: int(rng.choice([-1, 1]))]]


def _zeros_first(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d))
    x[: min(FIRST, n // 2)] = 0
    return x


def _sparse(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.08)


def _duplicated(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(1 + n // 8, d))[rng.integers(1 + n // 8, size=n)]


def _ill_scaled(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) * 10 ** rng.uniform(-3, 2, d)


def _offset(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) + _spread(rng, 1, 300)


def _outlier(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.normal(size=(n, d))
    x[int(rng.integers(n))] *= _spread(rng, 10, 1e4)
    return x


def _units(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) * _spread(rng, 1e-5, 1e3)


def _signs(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], (n, d))


INPUTS: tuple[tuple[str, Callable[[np.random.Generator, int, int], np.ndarray]], ...] = (
    ("Gaussian", lambda rng, n, d: rng.normal(size=(n, d))), ("heavy tails", _heavy), ("trend", _trend),
    ("sorted", _sorted), ("zeros first", _zeros_first), ("sparse", _sparse), ("duplicated", _duplicated),
    ("ill scaled", _ill_scaled), ("offset", _offset), ("outlier", _outlier), ("foreign units", _units),
    ("signs", _signs),
)  # fmt: skip


def _inputs(rng: np.random.Generator, network: Network, n: int) -> tuple[str, Tensor]:
    if network.tokens:
        kind = ("uniform", "rare words", "sorted", "one word first")[int(rng.integers(4))]
        words = rng.integers(TOKENS, size=(n, *network.shape))
        if kind == "rare words":
            words = np.minimum(rng.geometric(0.6, words.shape) - 1, TOKENS - 1)
        elif kind == "sorted":
            words = np.sort(words.ravel()).reshape(words.shape)
        elif kind == "one word first":
            words[: min(FIRST, n // 2)] = 1
        return f"words {kind}", torch.from_numpy(words)
    kind, make = INPUTS[int(rng.integers(len(INPUTS)))]
    values = make(rng, n, int(np.prod(network.shape)))
    return kind, torch.from_numpy(values.reshape(n, *network.shape)).float()


def _flat(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _mean_loss(problem: Problem) -> Tensor:
    """L without weight decay, summed over batches and divided once."""
    batches = [problem.data] if isinstance(problem.data, tuple) else list(problem.data)
    parts = [problem.loss_function(problem.model, b) for b in batches]
    return sum(p[0] for p in parts) / sum(float(p[1]) for p in parts)


def _train(problem: Problem, steps: int) -> None:
    optimiser = torch.optim.Adam(_flat(problem.model), lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        _mean_loss(problem).backward()
        optimiser.step()


def _interpolate(problem: Problem) -> None:
    optimiser = torch.optim.LBFGS(_flat(problem.model), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _mean_loss(problem)
        loss.backward()
        return loss

    with suppress(RuntimeError):  # a step that overflows: the point is where it has come to
        optimiser.step(closure)


def _place(rng: np.random.Generator, problem: Problem) -> str:
    """Move the parameters to a point of a random kind; returns the kind."""
    kinds = ("as made", "scaled", "saturated", "zero", "last layer zero", "equal units", "trained", "interpolating")
    kind = str(rng.choice(kinds, p=[0.15, 0.15, 0.12, 0.06, 0.06, 0.06, 0.2, 0.2]))
    parameters = _flat(problem.model)
    factor = {"scaled": _spread(rng, 0.1, 3), "saturated": _spread(rng, 4, 30), "zero": 0.0}.get(kind)
    with torch.no_grad():
        if factor is not None:
            for p in parameters:
                p.mul_(factor)
        elif kind == "last layer zero":
            parameters[-1].zero_()
            if len(parameters) > 1:
                parameters[-2].zero_()
        elif kind == "equal units":
            for p in parameters:
                p.copy_(p[:1].expand_as(p).clone())
    if kind == "trained":
        _train(problem, int(rng.integers(10, 80)))
    elif kind == "interpolating":
        _interpolate(problem)
    return kind


def _batched(rng: np.random.Generator, x: Tensor, y: Tensor) -> tuple[str, Any]:
    """The data as a pair, as a list of batches of uneven sizes, or as a loader with a short last batch."""
    way = str(rng.choice(["pair", "uneven", "loader"], p=[0.55, 0.3, 0.15]))
    if way == "pair" or len(x) < 4:
        return "pair", (x, y)
    if way == "loader":
        dataset = torch.utils.data.TensorDataset(x, y)
        return way, torch.utils.data.DataLoader(dataset, batch_size=int(rng.integers(3, len(x))), shuffle=False)
    cuts = np.unique(rng.integers(1, len(x), int(rng.integers(1, 7))))
    return way, list(zip(torch.tensor_split(x, cuts.tolist()), torch.tensor_split(y, cuts.tolist()), strict=True))


def _settings(rng: np.random.Generator, problem: Problem, named: bool, n: int) -> dict[str, Any]:
    names = [name for name, p in problem.model.named_parameters() if p.requires_grad]
    found: dict[str, Any] = {
        "top": int(rng.integers(0, 6)), "bottom": int(rng.integers(0, 6)),
        "exact": [False, None, True][int(rng.choice(3, p=[0.7, 0.1, 0.2]))],
        "probes": int(rng.integers(3, 9)), "steps": int(rng.integers(8, 50)),
        "seed": int(rng.integers(1000)), "tau": float(rng.choice([1e-6, 1e-6, 1e-4, 1e-8])),
        "strategy": str(rng.choice(["auto", "kept", "recompute", "linearize"], p=[0.45, 0.37, 0.13, 0.05])),
        "density": bool(rng.random() < 0.85), "by_layer": bool(rng.random() < 0.1),
    }  # fmt: skip
    if named and rng.random() < 0.25:
        found["operator"] = str(rng.choice(["ggn", "residual"]))
    if rng.random() < 0.1:
        found["batch_size"] = int(rng.integers(1, n + 1))
    if rng.random() < 0.08:
        found["params"] = (str(rng.choice(names)),)
    elif n >= 60 and rng.random() < 0.3:
        found |= {"samples": int(rng.integers(30, n // 2 + 1)), "by_layer": False, "density": False, "steps": 12}
    if rng.random() < 0.05:
        found["precision"] = "float64"
    return found


def _attempt(rng: np.random.Generator) -> tuple[dict[str, str], Problem, dict[str, Any]] | None:
    """One draw, or None where it is too large or its loss is not a number."""
    loss: Loss = LOSSES[int(rng.integers(len(LOSSES)))]
    architecture, make = MAKERS[int(rng.integers(len(MAKERS)))]
    outputs = int(rng.integers(loss.least, 5))
    network = make(rng, outputs)
    if sum(p.numel() for p in _flat(network.model)) > MOST_PARAMETERS:
        return None
    n = int(_spread(rng, 2, 300))
    data, x = _inputs(rng, network, n)
    target, y = loss.targets(rng, x, outputs)
    batches, together = _batched(rng, x, y)
    decay = _spread(rng, 1e-6, 1.0) if rng.random() < 0.25 else 0.0
    problem = Problem(network.model.eval(), together, loss.loss, decay)
    point = _place(rng, problem)
    if not torch.isfinite(torch.cat([p.detach().flatten() for p in _flat(network.model)])).all():
        return None
    if not torch.isfinite(_mean_loss(problem)):
        return None
    double = rng.random() < 0.4
    if double:
        _to_double(network.model)
        problem = Problem(network.model, _data_to_double(together), loss.loss, decay)
    settings = _settings(rng, problem, isinstance(loss.loss, str), n)
    if loss.name == "pairwise":  # not a sum over samples: cut otherwise, it is another loss
        for name in ("batch_size", "samples"):
            settings.pop(name, None)
    way = "samples" if "samples" in settings else {False: "iterative", None: "auto", True: "dense"}[settings["exact"]]
    kinds = {
        "network": architecture, "loss": loss.name, "data": data, "targets": target, "point": point,
        "batches": batches, "type": "float64" if double else "float32", "operator": settings.get("operator", "hessian"),
        "way": way,
    }  # fmt: skip
    return kinds, problem, settings


def _to_double(model: nn.Module) -> None:
    """All entries, with digits beyond float32's: a float64 point that came from float32 would hide roundings."""
    model.double()
    with torch.no_grad():
        for p in _flat(model):
            p.mul_(1 + 1e-9 * torch.rand_like(p))


def _data_to_double(data: Any) -> Any:
    def moved(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    if isinstance(data, torch.utils.data.DataLoader):
        dataset = torch.utils.data.TensorDataset(*(moved(t) for t in data.dataset.tensors))
        return torch.utils.data.DataLoader(dataset, batch_size=data.batch_size, shuffle=False)
    if isinstance(data, tuple):
        return tuple(moved(t) for t in data)
    return [tuple(moved(t) for t in batch) for batch in data]


def draw(seed: int, index: int) -> Drawn:
    """Problem `index` of the seed."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    for _ in range(1000):
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**31)))
            try:
                found = _attempt(rng)
            except ValueError:  # a normalisation over one number, of the only sample of a batch
                continue
        if found is not None:
            kinds, problem, settings = found
            return Drawn(seed, index, kinds, problem, settings)
    raise AssertionError(f"seed {seed} problem {index}: a thousand draws had no finite loss")
