"""`landscape train`: checkpoints of many widths and seeds from a sweep file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as common
from landscape.cli.progress import stage_progress
from landscape.cli.terminal import flush, plain, print_error, print_note, stdout
from landscape.errors import BatchError, NumericalError

if TYPE_CHECKING:
    from rich.table import Table

    from landscape.training.one import Trained
    from landscape.training.sweep import Run

EXAMPLES = (
    "landscape train four-neuron --out runs",
    "landscape train sweep.toml --set sweep.seed=0..19 --device cuda",
)

# A step with minibatches of 64 on two cores: 0.3 ms with one thread and 0.3 to 30 ms with two for 3,000 weights,
# 0.7 and 0.6 ms for 85,000, 1.5 and 1.1 ms for 300,000.
ONE_THREAD_BELOW = 200_000
# Beyond this many certified runs the table has a row a width.
MOST_ROWS = 40


@common.options_of()
def train(
    sweep: Annotated[
        Path,
        typer.Argument(metavar="SWEEP.toml", help="What to train (see docs/sweeps.md), or the name of a ready one."),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TABLE.KEY=VALUE",
            help="Instead of what the file says, such as sweep.seed=0..19; repeatable.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Where stacks are trained: cpu, cuda or auto. One by one is on the CPU.")
    ] = "cpu",
    *,
    output: common.Output,
) -> None:
    """Checkpoints of many widths and seeds: OUT/width=8/seed=0/{initial,step=100,final}.pt.

    Repeated, the same command trains only the runs that are missing. A killed run starts again from scratch and
    ends in the same file.
    """
    train_all(sweep, common.parse_sets(sets), device, output)


def train_all(sweep: Path, changes: dict[str, str], device: str, output: common.Output) -> None:
    """`train`, for a worker process too: the sweep with some of its keys changed."""
    from landscape.runtime.interrupts import Interrupted, interruptible

    try:
        with interruptible():
            _train_all(sweep, changes, device, output)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; repeat the command to go on", output.quiet)
        flush()
        raise typer.Exit(interrupted.exit_code) from None


def _train_all(sweep: Path, changes: dict[str, str], device: str, output: common.Output) -> None:
    from landscape.runtime.arithmetic import resolve_device
    from landscape.training.one import parameters_of
    from landscape.training.run_files import check_out
    from landscape.training.stacks import groups
    from landscape.training.sweep import plan, read_sweep
    from landscape.training.sweeps import sweep_file

    device = str(resolve_device(device))
    runs = plan(read_sweep(sweep_file(sweep), changes))
    if not output.force:
        check_out(runs, output.out)
    sizes = {run.label: parameters_of(run) for run in runs}
    done: list[Trained] = []
    failed: list[NumericalError] = []
    work = list(groups(runs, device))
    all_steps = sum(_steps_of(group[0]) for group in work)
    with stage_progress("train", output.quiet) as report:
        before = 0  # steps of the groups that are over, at most: one that stops early spends fewer
        for number, group in enumerate(work, start=1):
            label = f"{number} of {len(work)}, {_label(group)}"

            def show(stage: str, step: int, label: str = label, before: int = before) -> None:
                report(f"{label}, {stage}", before + step, all_steps)

            for one in _train_group(group, sizes[group[0].label], output.out, show, output.force, device):
                if isinstance(one, NumericalError):
                    failed.append(one)
                    print_error(one)
                else:
                    done.append(one)
                    if output.as_json:
                        print(json.dumps(plain(_row(one)), allow_nan=False), flush=True)
            before += _steps_of(group[0])
    if not output.as_json and done:
        _print_table(done)
    flush()
    if failed:
        _fail(failed, len(runs))


def _steps_of(run: Run) -> int:
    how = run.training
    return how.steps + (how.finish_steps if how.finish != "none" else 0)


def _label(group: list[Run]) -> str:
    if len(group) == 1:
        return group[0].label
    first = group[0].coordinates
    shared = [f"{k}={v}" for k, v in first.items() if all(run.coordinates[k] == v for run in group)]
    alike = all(run.data_settings == group[0].data_settings for run in group)
    return " ".join([*shared, f"{len(group)} {'seeds' if alike else 'networks'}"])


def _train_group(
    group: list[Run], parameters: int, out: Path, show: Callable[[str, int], None], force: bool, device: str
) -> list[Trained | NumericalError]:
    import torch

    from landscape.training.one import train_run
    from landscape.training.stacks import train_stack

    cores = torch.get_num_threads()
    together = group[0].training.together
    torch.set_num_threads(1 if parameters < ONE_THREAD_BELOW and not together else cores)
    try:
        if together:
            return train_stack(group, out, show, force, device)
        run = group[0]
        try:
            return [train_run(run, out, lambda step, loss: show(f"loss {loss:.4g}", step), force)]
        except NumericalError as error:
            return [NumericalError(f"{run.label}: {error.message}", error.hint)]
    finally:
        torch.set_num_threads(cores)


def _fail(failed: list[NumericalError], runs: int) -> None:
    """All of several alike, or the only one: its own exit code; otherwise that of a batch."""
    message = f"{len(failed)} of {runs} runs diverged and have no final checkpoint"
    if len(failed) == runs:
        raise NumericalError(message, "lower learning_rate in the sweep file")
    raise BatchError(message, "lower learning_rate in the sweep file, or leave these runs out")


def _row(trained: Trained) -> dict[str, Any]:
    return {
        "checkpoint": str(trained.path),
        "coordinates": dict(trained.run.coordinates),
        "parameters": trained.parameters,
        "steps": trained.steps_done,
        "train_loss": trained.train_loss,
        "train_accuracy": trained.train_accuracy,
        "test_accuracy": trained.test_accuracy,
        "verdict": trained.verdict,
        "skipped": trained.skipped,
        "seconds": round(trained.seconds, 3),
    }


def _print_table(done: list[Trained]) -> None:
    from rich.console import Console
    from rich.table import Table

    certified = any(trained.verdict for trained in done)
    accurate = any(trained.train_accuracy is not None for trained in done)
    columns = [*done[0].run.coordinates, "parameters", "steps", "train loss"]
    columns += ["train acc.", "test acc."] if accurate else []
    columns += ["verdict"] if certified else []
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint", overflow="fold", no_wrap=not stdout.is_terminal)
    shown = done if len(done) <= MOST_ROWS or not certified else []
    for trained in shown:
        accuracies = [_share(trained.train_accuracy), _share(trained.test_accuracy)] if accurate else []
        table.add_row(
            *(str(value) for value in trained.run.coordinates.values()),
            str(trained.parameters),
            str(trained.steps_done),
            f"{trained.train_loss:.4g}",
            *accuracies,
            *([trained.verdict or "-"] if certified else []),
            str(trained.path) + (" (was there)" if trained.skipped else ""),
        )
    # Rich takes a pipe for a terminal of 80 columns, where paths would be cut.
    wide = stdout if stdout.is_terminal else Console(width=1000, highlight=False, markup=False)
    wide.print(table if shown else _summary(done))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _summary(done: list[Trained]) -> Table:
    """Many certified runs: one row a width (and whatever else is varied), with its verdicts."""
    from rich.table import Table

    groups: dict[tuple[str, ...], list[Trained]] = {}
    names = [name for name in done[0].run.coordinates if name != "seed"]
    for trained in done:
        key = tuple(str(trained.run.coordinates[name]) for name in names)
        groups.setdefault(key, []).append(trained)
    table = Table(box=None, pad_edge=False)
    for name in (*names, "parameters", "runs", "lowest loss", "median", "below 1e-10"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdicts", overflow="fold")
    for key, runs in groups.items():
        losses = sorted(r.train_loss for r in runs)
        verdicts = Counter(r.verdict or "-" for r in runs)
        table.add_row(
            *key,
            str(runs[0].parameters),
            str(len(runs)),
            f"{losses[0]:.2g}",
            f"{losses[len(losses) // 2]:.2g}",
            str(sum(loss < 1e-10 for loss in losses)),
            ", ".join(f"{count} {name}" for name, count in verdicts.most_common()),
        )
    return table
