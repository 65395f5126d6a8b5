"""`landscape train`: checkpoints of many widths and seeds from a sweep file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as common
from landscape.cli.progress import stage_progress
from landscape.cli.terminal import flush, plain, print_error, print_note, stdout
from landscape.errors import BatchError, NumericalError

if TYPE_CHECKING:
    from landscape.training import Trained

# A step with minibatches of 64 on two cores: 0.3 ms with one thread and 0.3 to 30 ms with two for 3,000 weights,
# 0.7 and 0.6 ms for 85,000, 1.5 and 1.1 ms for 300,000.
ONE_THREAD_BELOW = 200_000


def train(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="What to train; see docs/cli.md.")],
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
) -> None:
    """Checkpoints of many widths and seeds: OUT/width=8/seed=0/{initial,step=100,final}.pt.

    Repeated, the same command trains only the runs that are missing. A killed run starts again from scratch and
    ends in the same file.
    """
    from landscape.interrupts import Interrupted, interruptible

    try:
        with interruptible():
            _train_all(sweep, out, force, quiet, as_json)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; repeat the command to go on", quiet)
        flush()
        raise typer.Exit(interrupted.exit_code) from None


def _train_all(sweep: Path, out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    import torch

    from landscape.run_files import check_out
    from landscape.sweep import plan, read_sweep
    from landscape.training import parameters_of, train_run

    runs = plan(read_sweep(sweep))
    if not force:
        check_out(runs, out)
    sizes = [parameters_of(run) for run in runs]
    done: list[Trained] = []
    failed: list[NumericalError] = []
    cores = torch.get_num_threads()
    all_steps = sum(run.training.steps for run in runs)
    with stage_progress("train", quiet) as report:
        before = 0  # steps of the runs that are over, at most: one that stops at its target spends fewer
        for number, (run, parameters) in enumerate(zip(runs, sizes, strict=True), start=1):
            label = f"run {number} of {len(runs)}, {run.label}"

            def show(step: int, loss: float, label: str = label, before: int = before) -> None:
                report(f"{label}, loss {loss:.4g}", before + step, all_steps)

            torch.set_num_threads(1 if parameters < ONE_THREAD_BELOW else cores)
            try:
                trained = train_run(run, out, show, force)
            except NumericalError as error:
                failed.append(error)
                print_error(NumericalError(f"{run.label}: {error.message}", error.hint))
            else:
                done.append(trained)
                if as_json:
                    print(json.dumps(plain(_row(trained)), allow_nan=False), flush=True)
            before += run.training.steps
    if not as_json and done:
        _print_table(done)
    flush()
    if failed:
        _fail(failed, len(runs))


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
        "skipped": trained.skipped,
        "seconds": round(trained.seconds, 3),
    }


def _print_table(done: list[Trained]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in (*done[0].run.coordinates, "parameters", "steps", "train loss", "train acc.", "test acc."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint", overflow="fold", no_wrap=not stdout.is_terminal)
    for trained in done:
        test = trained.test_accuracy
        table.add_row(
            *(str(value) for value in trained.run.coordinates.values()),
            str(trained.parameters),
            str(trained.steps_done),
            f"{trained.train_loss:.4g}",
            f"{trained.train_accuracy:.4f}",
            "-" if test is None else f"{test:.4f}",
            str(trained.path) + (" (was there)" if trained.skipped else ""),
        )
    # Rich takes a pipe for a terminal of 80 columns, where paths would be cut.
    wide = stdout if stdout.is_terminal else Console(width=1000, highlight=False, markup=False)
    wide.print(table)
