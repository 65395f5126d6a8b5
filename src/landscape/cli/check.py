"""`landscape check`: published claims, decided by tests that were declared before any data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.cli.terminal import flush, print_note
from landscape.errors import BatchError, UsageError

if TYPE_CHECKING:
    from landscape.cli.checking import Request

EXAMPLES = (
    "landscape check --claim escape-dimensions --run",
    "landscape check runs --claim negative-eigenvalues --scale medium",
)

CLAIMS = ("escape-dimensions", "negative-eigenvalues")
# Ready-made sweeps that decide a claim, by its name; the longest first.
SWEEPS: dict[str, tuple[str, ...]] = {
    "escape-dimensions": (
        "random-softplus", "digits-tanh", "four-neuron-adam", "four-neuron", "four-neuron-sigmoid", "random-erf",
    ),
    "negative-eigenvalues": ("digits-tanh", "four-neuron", "random-erf"),
}  # fmt: skip
# Seeds of each width of a sweep, by scale: those of digits cost as much as fifty others; of random teachers there are
# several, with this many each.
SEEDS = {"small": 30, "medium": 60, "full": 500}
SEEDS_OF = {
    "digits": {"small": 5, "medium": 10, "full": 60},
    "random": {"small": 8, "medium": 20, "full": 60},
}
# The small scale leaves out what takes longest: the widest networks.
LESS_OF = {("random", "small"): {"sweep.width": "[5, 6, 8, 10]"}}


@common.options_of(without=("batchnorm",))
def check(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUNS...", help="Folders of sweeps, checkpoints or globs.", show_default=False),
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", help="escape-dimensions or negative-eigenvalues; repeatable. Default: all."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Train the sweeps that decide the claim, into OUT/runs.")] = False,
    scale: Annotated[
        Literal["small", "medium", "full"],
        typer.Option(
            "--scale", help="small: at most 20 minutes on two cores; medium: an hour; full: every protocol whole."
        ),
    ] = "small",
    seed: common.Seed = 0,
    device: common.Device = "auto",
    workers: Annotated[
        int, typer.Option("--workers", help="Experiments at a time, a process each; 0: one a core, or a GPU.")
    ] = 0,
    *,
    source: Source,
    output: common.Output,
) -> None:
    """Decide published claims on a sweep: every part with its statistic, interval and number of seeds.

    Writes CLAIM.check.h5. Interrupted, the same command goes on after the last experiment that was finished.
    """
    from landscape.checkpoints.find import check_out
    from landscape.cli.checking import Request, decide
    from landscape.cli.views.check import print_json, print_one
    from landscape.runtime.interrupts import Interrupted, interruptible
    from landscape.runtime.memory import keep_heap

    names = _checked(claim or list(CLAIMS))
    if not (runs or run):
        raise UsageError("no runs are named", "name a folder of checkpoints, or let --run train them")
    for option, value in (("seed", seed), ("workers", workers)):
        if value < 0:
            raise UsageError(f"--{option} is {value}; it must be at least 0")
    check_out(output.out)
    keep_heap()
    try:
        with interruptible():
            for name in names:
                request = Request(name, scale, seed, source, output.out, device, workers, output.force, output.quiet)
                folders = [*(runs or []), *(_trained(request) if run else [])]
                result, provenance, place = decide(request, folders)
                (print_json if output.as_json else print_one)(result, provenance, place)
    except Interrupted as interrupted:
        print_note(f"{interrupted}; finished experiments are kept, repeat the command to go on")
        flush()
        raise typer.Exit(interrupted.exit_code) from None
    flush()


def _checked(names: list[str]) -> list[str]:
    from landscape.settings import suggestion

    for name in names:
        if name not in CLAIMS:
            raise UsageError(f"there is no claim {name!r}", suggestion(name, CLAIMS))
    return list(dict.fromkeys(names))


def _trained(request: Request) -> list[str]:
    """The claim's own sweeps, trained by `landscape train`, which does only what is missing."""
    import torch

    from landscape.cli.train import train_all
    from landscape.cli.worker import task_of
    from landscape.runtime.arithmetic import resolve_device
    from landscape.runtime.workers import Outcome, run_batch, visible_gpus

    folders = {name: request.out / "runs" / name for name in SWEEPS[request.claim]}
    tasks = []
    for name, folder in folders.items():
        kind = name.partition("-")[0]
        changes = {"sweep.seed": f"0..{SEEDS_OF.get(kind, SEEDS)[request.scale] - 1}"}
        changes |= LESS_OF.get((kind, request.scale), {})
        output = common.Output(folder, True, False, request.quiet)
        tasks.append(task_of(name, train_all, Path(name), changes, request.device, output))
    on_cpu = resolve_device(request.device).type == "cpu"  # a GPU is planned for as a whole
    workers = request.workers or (torch.get_num_threads() if on_cpu else max(1, len(visible_gpus(request.device))))

    def on_done(outcome: Outcome) -> None:
        print_note(f"{outcome.task.label}: trained", request.quiet)

    outcomes = run_batch(tasks, workers, on_done, device=request.device)
    failed = [o.task.label for o in outcomes if not o.ok and o.exit_code != 6]  # 6: single runs that diverged
    if failed:
        raise BatchError(f"the training of {', '.join(failed)} failed", "see the messages above")
    return [str(folder) for folder in folders.values()]
