"""`landscape escape`: what kind of point a checkpoint is, and the way out along negative curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from landscape.cli import options as common

if TYPE_CHECKING:
    from landscape.cli.jobs import Job
    from landscape.points.results import Escaped
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress


def escape(
    checkpoints: common.Checkpoints,
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    descend: Annotated[
        bool, typer.Option("--descend", help="First go to the critical point of the checkpoint's own basin.")
    ] = False,
    certify_only: Annotated[
        bool, typer.Option("--certify-only", help="Name the point and its direction; follow nothing.")
    ] = False,
    controls: Annotated[int, typer.Option("--controls", help="Random kicks of the same length to compare with.")] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Iterations of each descent, at most.")] = 1000,
    tau: Annotated[
        float, typer.Option("--tau", help="Floor, relative to max |eigenvalue|, below which a value counts as zero.")
    ] = 1e-6,
    max_products: Annotated[
        int, typer.Option("--max-products", help="Curvature products for the lowest eigenvalue of a large network.")
    ] = 500,
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
    batchnorm: common.BatchNorm = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    memory: common.Memory = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
) -> None:
    """Is this a minimum? If not, walk out along negative curvature, on both sides, and see where that leads.

    Writes NAME.escape.h5 and, where something was followed, the lowest point reached as NAME.escape.pt with its
    certificate. A checkpoint that is not stationary is analysed all the same, and says so.
    """
    from landscape.checkpoints.source import Source
    from landscape.cli.loop import Command, run_command
    from landscape.cli.views.escape import print_json, print_many, print_one, warn
    from landscape.points.escape import EscapeSettings, run_escape
    from landscape.points.results import Escaped
    from landscape.runtime.memory import parse_bytes

    settings = EscapeSettings(
        descend=descend,
        certify_only=certify_only,
        controls=controls,
        steps=steps,
        tau=tau,
        samples=samples,
        seed=seed,
        device=device,
        precision=precision,
        memory=None if memory is None else parse_bytes(memory),
        max_products=max_products,
    )

    def compute(job: Job, report: Progress, pieces: Pieces) -> Escaped:
        return run_escape(job.problem, settings, report, pieces)

    def there(job: Job) -> bool:
        return certify_only or job.place.with_suffix(".pt").exists() or not _was_followed(job)

    command = Command("escape", Escaped, compute, print_json, print_one, print_many, _write, there, warn)
    source = Source(problem, common.parse_sets(sets), data, loss, tuple(allow_global or ()), key, batchnorm)
    run_command(command, checkpoints, source, settings.as_dict(), out, force=force, quiet=quiet, as_json=as_json)


def _was_followed(job: Job) -> bool:
    from landscape.results.store import read_result

    return bool(read_result(job.place, "escape").attributes["followed"])


def _write(job: Job, result: Escaped) -> None:
    """The lowest point reached, as a checkpoint."""
    from landscape.cli.points import write_point

    if result.followed:
        how = {"command": "escape", "verdict": result.verdict, "loss_before": result.loss}
        write_point(job, job.place.with_suffix(".pt"), result.point, result.spent, result.certificate, how)
