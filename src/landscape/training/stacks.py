"""Training of all networks of a width as one stack: first order on minibatches, or down to certified points.

A member's minibatches come from its own seed, and no sum runs over members; but the last bit of a matrix product
depends on where a member lies in memory. So a stack whose files are missing in part is trained anew as a whole, and
only what is missing is written: the same bytes as if it had never been interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.data import Dataset, load_data
from landscape.errors import NumericalError, ProblemError
from landscape.models import build_model
from landscape.points.certificate import Certificate, SecondHalf
from landscape.points.certify import certify_stack
from landscape.points.descent import Trajectory, Way, descend_stack, flow_stack
from landscape.problem.problem import Problem
from landscape.runtime.files import locked
from landscape.stack.build import build_stack, most_members
from landscape.stack.stack import Stack
from landscape.training.one import (
    Trained,
    in_dtype,
    learning_rate_at,
    measure,
    minibatches,
    optimiser_of,
    parameters_of,
    schedule_of,
    shuffler,
    write_run_file,
)
from landscape.training.run_files import FINAL, MEASURED, clear, file_name, finished
from landscape.training.sweep import Run, Training

# Members of a stack, at most: what is lost when the command is killed. On a GPU hundreds take as long as one.
MOST = {"cpu": 128, "cuda": 512}
# What may differ within a stack: where θ starts, and the targets of a random teacher.
REPLICATES = ("seed", "teacher_seed")
# Called with (stage, steps done).
OnStage = Callable[[str, int], None]


def groups(runs: Sequence[Run], device: str = "cpu") -> Iterator[list[Run]]:
    """Runs that go together, in the order of the sweep: seeds and teachers of equal settings, or one alone."""
    most, group = 0, list[Run]()
    for run in runs:
        if group and (not run.training.together or len(group) == most or not _alike(group[0], run)):
            yield group
            group = []
        if not group:
            most = _most(run, device)
        group.append(run)
    if group:
        yield group


def _most(run: Run, device: str) -> int:
    """Members of a stack of such runs, at most."""
    return most_members(MOST, device, parameters_of(run) if run.training.certified else 1)


def _alike(a: Run, b: Run) -> bool:
    """Whether two runs differ in replicates only."""
    return _told(a) == _told(b)


def _told(run: Run) -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """All of a run but its replicates."""
    places = {k: v for k, v in run.coordinates.items() if k not in REPLICATES}
    data = {k: v for k, v in dataclasses.asdict(run.data_settings).items() if k not in REPLICATES}
    return dataclasses.replace(run, coordinates={}, data_settings=None), places, data


def train_stack(
    runs: Sequence[Run], out: Path, progress: OnStage | None = None, force: bool = False, device: str = "cpu"
) -> list[Trained | NumericalError]:
    """Train the seeds of one width, in the order given; if all are finished, nothing is done.

    Args:
        device: of the stack; what is written lies on the CPU.

    Returns:
        What became of each: a divergence is that member's own affair.

    Raises:
        StorageError: as `train_run`. ProblemError: the network cannot be stacked.
    """
    start = time.perf_counter()
    results: dict[int, Trained | NumericalError] = {}
    with ExitStack() as held:
        for i, run in enumerate(runs):
            folder = out / run.folder
            held.enter_context(locked(folder / FINAL))
            if force:
                clear(folder)
            measured = finished(run, folder)
            if measured is not None:
                values = {name: measured[name] for name in MEASURED}
                verdict = measured.get("verdict")
                results[i] = Trained(run, folder / FINAL, **values, skipped=True, seconds=0.0, verdict=verdict)
        if len(results) < len(runs):
            made = _Stacked(runs, out, progress, frozenset(results), device).train()
            share = (time.perf_counter() - start) / len(runs)
            for i, one in enumerate(made):
                fresh = dataclasses.replace(one, seconds=share) if isinstance(one, Trained) else one
                results.setdefault(i, fresh)
    return [results[i] for i in range(len(runs))]


class _Stacked:
    """One stack while it is trained."""

    def __init__(
        self, runs: Sequence[Run], out: Path, progress: OnStage | None, there: frozenset[int], device: str
    ) -> None:
        self.runs, self.out, self.progress = runs, out, progress
        self.there = there  # members whose files are not to be written again
        self.how: Training = schedule_of(runs[0])
        dtype: torch.dtype = getattr(torch, self.how.dtype)
        self.data = _data_of(runs, dtype)
        self.models = [
            build_model(r.model, dataclasses.asdict(r.model_settings), int(r.coordinates["seed"])).to(dtype)
            for r in runs
        ]
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in self.models[0].modules()):
            raise ProblemError(
                f"{runs[0].label}: batch statistics and dropout of training mode cannot be stacked",
                "leave stacked and the second-order optimisers out, or write batch_norm = false",
            )
        pairs = zip(self.models, self.data, strict=True)
        problems = [Problem(model, data.train, self.how.loss, self.how.weight_decay) for model, data in pairs]
        self.stack, self.theta = build_stack(problems, device=device, dtype=dtype)
        self.steps = [0] * len(runs)
        self.errors: dict[int, NumericalError] = {}
        self.halves = [SecondHalf()] * len(runs)

    def train(self) -> list[Trained | NumericalError]:
        if 0 in self.how.save:
            for i in range(len(self.runs)):
                self._save(i, self.theta[i], 0)
        if self.how.second_order:
            target = self.how.target_loss or 0.0
            gauss_newton = self.how.optimiser == "levenberg_marquardt"
            way = Way("minimum", self.how.steps, gauss_newton=gauss_newton, target=target, save=self.how.save)
            self._descend(way, flow=self.how.optimiser == "flow")
        else:
            self._first_order()
        if self.how.finish != "none":
            self._descend(Way(self.how.finish, self.how.finish_steps), flow=False)
        certificates: dict[int, Certificate] = {}
        alive = self._alive()
        if self.how.certified and alive:
            rows = self._numbers(alive)
            halves = [self.halves[i] for i in alive]
            made = certify_stack(self.stack, self.theta[rows], rows, halves=halves)
            certificates = dict(zip(alive, made, strict=True))
        return [self.errors.get(i) or self._finish(i, certificates.get(i)) for i in range(len(self.runs))]

    def _alive(self) -> list[int]:
        return [i for i in range(len(self.runs)) if i not in self.errors]

    def _numbers(self, members: list[int]) -> Tensor:
        return torch.tensor(members, device=self.theta.device)

    def _tell(self, stage: str, steps: int) -> None:
        if self.progress is not None:
            self.progress(stage, steps)

    def _descend(self, way: Way, flow: bool) -> None:
        alive = self._alive()
        if not alive:
            return
        rows = self._numbers(alive)
        done = max(self.steps)
        part = self.stack.of(rows)
        way = dataclasses.replace(way, keep_points=False)

        def tell(stage: str, members: int, total: int) -> None:
            self._tell(f"{stage}, {members} of {total} there", done)

        ended, paths = (flow_stack if flow else descend_stack)(part, self.theta[rows], way, tell)
        self.theta[rows] = ended.theta
        for k, i in enumerate(alive):
            self._note(i, paths[k])
            if not math.isfinite(float(ended.value[k])):
                self.errors[i] = self._diverged(i, self.steps[i])

    def _note(self, i: int, path: Trajectory) -> None:
        for step, theta in path.saved.items():
            if step:
                self._save(i, theta, step)
        self.steps[i] += len(path.loss) - 1
        self.halves[i] = path.second_half

    def _first_order(self) -> None:
        how, (inputs, targets) = self.how, self.data[0].train
        if self.stack.own:
            targets = torch.stack([data.train[1] for data in self.data])
        inputs, targets = inputs.to(self.theta.device), targets.to(self.theta.device)
        alive = list(range(len(self.runs)))
        batches = [minibatches(len(inputs), how.batch_size, shuffler(int(r.coordinates["seed"]))) for r in self.runs]
        leaf = self.theta.clone().requires_grad_()
        optimiser = optimiser_of([leaf], how)
        for step in range(1, how.steps + 1):
            drawn = [next(batches[i]) for i in alive]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(how, step)
            rows, epoch_ends = [d[0] for d in drawn], drawn[0][1]
            losses = _losses(self.stack, leaf, alive, inputs, targets, rows)
            optimiser.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen = losses.detach().cpu()  # a GPU is waited for once a step
            lost = ~torch.isfinite(seen)
            done = lost.clone()
            if epoch_ends and how.target_loss is not None:
                penalty = 0.5 * how.weight_decay * leaf.detach().square().sum(1)
                below = self.stack.values(leaf.detach(), self._numbers(alive)) - penalty <= how.target_loss
                done |= below.cpu()
            for k, (i, is_lost) in enumerate(zip(alive, lost.tolist(), strict=True)):
                self.steps[i] = step
                if is_lost:
                    self.errors[i] = self._diverged(i, step)
                elif step in how.save:
                    self._save(i, leaf[k].detach(), step)
            if bool(done.any()) or step == how.steps:
                self.theta[self._numbers(alive)] = leaf.detach()
                keep = (~done).nonzero().squeeze(1)
                alive = [alive[k] for k in keep.tolist()]
                if not alive:
                    return
                leaf, optimiser = _fewer(leaf, optimiser, keep.to(leaf.device), how)
            self._tell(f"loss {float(seen.median()):.4g} (median)", step)

    def _diverged(self, i: int, step: int) -> NumericalError:
        return NumericalError(
            f"{self.runs[i].label}: training diverged: the loss is not finite at step {step}",
            f"lower learning_rate, now {self.how.learning_rate}",
        )

    def _at(self, i: int, theta: Tensor) -> nn.Module:
        """The member's network with weights θ, on the CPU."""
        model = self.models[i]
        nn.utils.vector_to_parameters(theta.to("cpu", self.theta.dtype), model.parameters())
        return model

    def _save(self, i: int, theta: Tensor, step: int) -> None:
        if i in self.there:
            return
        run, model = self.runs[i], self._at(i, theta)
        measured = measure(model, self.data[i], self.how, step)
        write_run_file(run, self.out / run.folder / file_name(step), model, measured)

    def _finish(self, i: int, certificate: Certificate | None) -> Trained | NumericalError:
        from landscape.results.identity import plain

        run, model = self.runs[i], self._at(i, self.theta[i])
        try:
            measured = measure(model, self.data[i], self.how, self.steps[i])
        except NumericalError:
            return self._diverged(i, self.steps[i])
        found: Mapping[str, Any] | None = None if certificate is None else plain(certificate.as_dict())
        path = self.out / run.folder / FINAL
        if i not in self.there:
            write_run_file(run, path, model, measured, found)
        verdict = None if certificate is None else certificate.verdict
        values = {name: measured[name] for name in MEASURED}
        return Trained(run, path, **values, skipped=False, seconds=0.0, verdict=verdict)


def _data_of(runs: Sequence[Run], dtype: torch.dtype) -> list[Dataset]:
    """The data of every run; the same object for runs with the same."""
    made: dict[str, Dataset] = {}
    for run in runs:
        settings = dataclasses.asdict(run.data_settings)
        if repr(settings) not in made:
            made[repr(settings)] = in_dtype(load_data(run.data, settings), dtype)
    return [made[repr(dataclasses.asdict(run.data_settings))] for run in runs]


def _losses(
    stack: Stack, leaf: Tensor, alive: list[int], inputs: Tensor, targets: Tensor, rows: list[Tensor | slice]
) -> Tensor:
    """Mean losses of every member's own minibatch [A], with their graph; targets [N, ...], or own ones [S, N, ...]."""
    members = torch.tensor(alive, device=leaf.device)
    others = {name: t[members] for name, t in stack.others.items()}
    mine = targets[members] if stack.own else targets
    if isinstance(rows[0], slice):
        totals = stack.minibatch_sums(leaf, others, inputs, mine, shared=True)
        return totals / len(inputs)
    index = torch.stack([r for r in rows if isinstance(r, Tensor)]).to(leaf.device)
    drawn = mine[torch.arange(len(mine), device=mine.device).unsqueeze(1), index] if stack.own else mine[index]
    return stack.minibatch_sums(leaf, others, inputs[index], drawn, shared=False) / index.shape[1]


def _fewer(
    leaf: Tensor, optimiser: torch.optim.Optimizer, keep: Tensor, how: Training
) -> tuple[Tensor, torch.optim.Optimizer]:
    """The members `keep` only, with the optimiser's memory of them."""
    kept = leaf.detach()[keep].clone().requires_grad_()
    fresh = optimiser_of([kept], how)
    for name, value in optimiser.state[leaf].items():
        rows = isinstance(value, Tensor) and value.shape == leaf.shape
        fresh.state[kept][name] = value[keep].clone() if rows else value
    return kept, fresh
