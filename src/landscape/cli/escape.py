"""`landscape escape`: what kind of point a checkpoint is, and the way out along negative curvature."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.points.settings import EscapeSettings

if TYPE_CHECKING:
    from landscape.cli.jobs import Job
    from landscape.points.results import Escaped
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress

EXAMPLES = (
    "landscape escape net.descend.pt --problem problem.py:problem --controls 8",
    "landscape escape net.pt --problem problem.py:problem --descend",
)


@common.options_of(EscapeSettings)
def escape(checkpoints: common.Checkpoints, source: Source, settings: EscapeSettings, output: common.Output) -> None:
    """Is this a minimum? If not, walk out along negative curvature, on both sides, and see where that leads.

    Writes NAME.escape.h5 and, where something was followed, the lowest point reached as NAME.escape.pt with its
    certificate. A checkpoint that is not stationary is analysed all the same, and says so.
    """
    from landscape.cli.loop import Command, run_command

    command = Command(
        "escape",
        settings.as_dict(),
        partial(compute, settings),
        beside=write_end,
        there=partial(_is_there, settings.certify_only),
    )
    run_command(command, checkpoints, source, output)


def compute(settings: EscapeSettings, job: Job, report: Progress, pieces: Pieces) -> Escaped:
    """The way out of one checkpoint."""
    from landscape.points.escape import run_escape

    return run_escape(job.problem, settings, report, pieces)


def _is_there(certify_only: bool, job: Job) -> bool:
    return certify_only or job.place.with_suffix(".pt").exists() or not _was_followed(job)


def _was_followed(job: Job) -> bool:
    from landscape.results.store import read_result

    return bool(read_result(job.place, "escape").attributes["followed"])


def write_end(job: Job, result: Escaped) -> None:
    """The lowest point reached, as a checkpoint."""
    from landscape.cli.points import write_point

    if result.followed:
        how = {"command": "escape", "verdict": result.verdict, "loss_before": result.loss}
        reached = (result.end or result.certificate).as_dict()
        write_point(job, job.place.with_suffix(".pt"), result.point, result.spent, reached, how)
