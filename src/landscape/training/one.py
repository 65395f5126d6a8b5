"""Training of sweeps: one run into its checkpoints, the same bytes whenever it is repeated.

A run is a function of its `Run` alone: weights from its seed, minibatches from a generator of its own, no
global random numbers. So a killed run starts again from scratch rather than from its last checkpoint, which
holds neither the optimiser's nor the generator's state, and ends in the file that an uninterrupted one writes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import write_checkpoint
from landscape.data import Dataset, load_data
from landscape.errors import NumericalError, ProblemError
from landscape.models import build_model, learning_rate_scale
from landscape.problem.problem import LOSSES
from landscape.runtime.files import locked, remove_stale
from landscape.runtime.memory import usable_bytes
from landscape.training.run_files import FINAL, MEASURED, clear, file_name, finished, header_of
from landscape.training.sweep import Run, Training

# Copies of every weight while it is trained: itself, its gradient, adam's two averages, what is being written.
COPIES = 5
# Called after every step with (steps done, loss of the minibatch).
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        run: what was trained.
        path: its final checkpoint.
        parameters: number of weights.
        steps_done: optimiser steps.
        train_loss: mean loss over the training set, in eval mode, without weight decay.
        train_accuracy, test_accuracy: fractions; None for regression, and where there is no test set.
        skipped: whether it was found finished.
        seconds: spent on it now.
        verdict: of its certificate; None without one.
    """

    run: Run
    path: Path
    parameters: int
    steps_done: int
    train_loss: float
    train_accuracy: float | None
    test_accuracy: float | None
    skipped: bool
    seconds: float
    verdict: str | None = None


def train_run(run: Run, out: Path, progress: OnStep | None = None, force: bool = False) -> Trained:
    """Train one run and write its checkpoints `OUT/width=8/seed=0/{initial,step=100,final}.pt`.

    The final one is written last, so where it exists the run is done and is skipped, unless checkpoints asked
    for are missing. Whole files only, and one process at a time.

    Args:
        run: from `sweep.plan`.
        out: folder of the sweep.
        progress: called after every step.
        force: train anew, overwriting whatever checkpoints are in the run's folder.

    Raises:
        NumericalError: the loss became NaN or infinite; there is no final checkpoint then.
        StorageError: the run's folder holds checkpoints of different settings, or cannot be written.
    """
    folder = out / run.folder
    start = time.perf_counter()
    with locked(folder / FINAL):
        if force:
            clear(folder)
        measured = finished(run, folder)
        skipped = measured is not None
        if measured is None:
            measured = _train(run, folder, progress)
    values = {name: measured[name] for name in MEASURED}
    return Trained(run, folder / FINAL, **values, skipped=skipped, seconds=time.perf_counter() - start)


def parameters_of(run: Run) -> int:
    """Number of weights of a run's network; allocates nothing.

    Raises:
        ProblemError: training as many would not fit into memory.
    """
    try:
        with torch.device("meta"):
            model = build_model(run.model, dataclasses.asdict(run.model_settings))
    except (RuntimeError, TypeError) as error:  # PyTorch's for sizes beyond 64 bits
        raise ProblemError(f"{run.label}: no tensor can be so large", "lower the width") from error
    parameters = sum(p.numel() for p in model.parameters())
    needed = parameters * COPIES * getattr(torch, run.training.dtype).itemsize
    if needed > usable_bytes(torch.device("cpu")):
        raise ProblemError(
            f"{run.label}: training {parameters} weights takes about {needed / 1e9:.0f} GB, more than is free",
            "lower the width",
        )
    return parameters


def _train(run: Run, folder: Path, progress: OnStep | None) -> dict[str, Any]:
    """Train and write; what was measured at the end."""
    how = schedule_of(run)
    dtype: torch.dtype = getattr(torch, how.dtype)
    data = in_dtype(load_data(run.data, dataclasses.asdict(run.data_settings)), dtype)
    seed = int(run.coordinates["seed"])
    model = build_model(run.model, dataclasses.asdict(run.model_settings), seed).to(dtype)
    for step, loss in _steps(model, data.train, how, seed):
        check_finite(loss, step, how)
        if progress and step:
            progress(step, loss)
        if step in how.save:
            write_run_file(run, folder / file_name(step), model, measure(model, data, how, step))
    measured = measure(model, data, how, step)
    write_run_file(run, folder / FINAL, model, measured)
    return measured


def _steps(model: nn.Module, train: tuple[Tensor, Tensor], how: Training, seed: int) -> Iterator[tuple[int, float]]:
    """Train; yields (steps done, loss of the last minibatch), first (0, 0.0), until done or at the target."""
    inputs, targets = train
    loss_of = LOSSES[how.loss]
    optimiser = optimiser_of(model.parameters(), how)
    batches = minibatches(len(inputs), how.batch_size, shuffler(seed))
    yield 0, 0.0
    for step in range(1, how.steps + 1):
        rows, epoch_ends = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(how, step)
        model.train()
        total, count = loss_of(model, (inputs[rows], targets[rows]))
        loss = total / count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield step, loss.item()
        if epoch_ends and how.target_loss is not None and _evaluate(model, train, how)[0] <= how.target_loss:
            return


def schedule_of(run: Run) -> Training:
    """How to train, with the learning rate that the network's parametrisation asks for."""
    how, scale = run.training, learning_rate_scale(run.model, run.model_settings)
    return how if scale == 1 else dataclasses.replace(how, learning_rate=scale * how.learning_rate)


def minibatches(samples: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor | slice, bool]]:
    """Minibatches for ever, as (rows, whether they end an epoch); the last one of an epoch may be short."""
    if size >= samples:
        while True:
            yield slice(None), True
    while True:
        chunks = torch.split(torch.randperm(samples, generator=generator), size)
        for i, rows in enumerate(chunks, start=1):
            yield rows, i == len(chunks)


def shuffler(seed: int) -> torch.Generator:
    """The generator of minibatches; its seed is mixed, or it would repeat the numbers that made the weights."""
    mixed = np.random.SeedSequence([seed, 1]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def optimiser_of(parameters: Iterable[Tensor], how: Training) -> torch.optim.Optimizer:
    """The first-order optimiser of a run."""
    if how.optimiser == "adam":
        return torch.optim.Adam(parameters, how.learning_rate, weight_decay=how.weight_decay)
    return torch.optim.SGD(parameters, how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay)


def learning_rate_at(how: Training, step: int) -> float:
    """The rates of step 1 … steps; the cosine's zero would come one step after the last."""
    if how.schedule == "constant":
        return how.learning_rate
    return how.learning_rate * (1 + math.cos(math.pi * (step - 1) / how.steps)) / 2


def _evaluate(model: nn.Module, pair: tuple[Tensor, Tensor], how: Training) -> tuple[float, float | None]:
    """Mean loss and accuracy (None for regression) in eval mode, which is what the analyses see."""
    model.eval()
    inputs, targets = pair
    with torch.no_grad():
        total, count = LOSSES[how.loss](model, pair)
        if targets.dim() > 1 and targets.shape[1] == 1:
            return float(total / count), None
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        accuracy = (model(inputs).argmax(1) == labels).double().mean()
    return float(total / count), float(accuracy)


def measure(model: nn.Module, data: Dataset, how: Training, step: int) -> dict[str, Any]:
    """The entries `MEASURED` of a header."""
    train_loss, train_accuracy = _evaluate(model, data.train, how)
    check_finite(train_loss, step, how)
    test_accuracy = _evaluate(model, data.test, how)[1] if len(data.test[0]) else None
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps_done": step,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
    }


def check_finite(loss: float, step: int, how: Training) -> None:
    """Raises NumericalError for a training that diverged."""
    if not math.isfinite(loss):
        raise NumericalError(
            f"training diverged: the loss is {loss} at step {step}",
            f"lower learning_rate, now {how.learning_rate}",
        )


def in_dtype(data: Dataset, dtype: torch.dtype) -> Dataset:
    """The data with its inputs (and numbers to be learnt) in a dtype."""
    (x, y), (x_test, y_test) = data.train, data.test
    return dataclasses.replace(data, train=(x.to(dtype), y), test=(x_test.to(dtype), y_test))


def write_run_file(
    run: Run,
    path: Path,
    model: nn.Module,
    measured: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
) -> None:
    """A checkpoint of a run, in its `save_dtype`."""
    dtype: torch.dtype = getattr(torch, run.training.save_dtype)
    state = {
        name: value.detach().to(dtype) if value.is_floating_point() else value.detach()
        for name, value in model.state_dict().items()
    }
    remove_stale(path)
    write_checkpoint(path, state, header_of(run, measured, certificate))
