"""`landscape descend`: from checkpoints to certified critical points of their own basins."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.points.settings import DescendSettings

if TYPE_CHECKING:
    from landscape.cli.jobs import Job
    from landscape.cli.loop import Finished
    from landscape.points.results import Descended
    from landscape.runtime.progress import Progress

EXAMPLES = (
    "landscape descend 'runs/width=4/*/final.pt' --problem problem.py:problem",
    "landscape descend net.pt --problem problem.py:problem --to critical",
)

# Checkpoints that are loaded and locked at a time, so that those of equal shapes go together.
PORTION = 256


@common.options_of(DescendSettings)
def descend(checkpoints: common.Checkpoints, source: Source, settings: DescendSettings, output: common.Output) -> None:
    """Descend to a critical point or minimum of each checkpoint's own basin, and certify it.

    Writes, per checkpoint, the trajectory (NAME.descend.h5) and the point reached as a checkpoint in float64 with
    its certificate in the header (NAME.descend.pt). Checkpoints of equal architecture descend together.
    """
    from landscape.cli.loop import Command, run_command

    command = Command(
        "descend",
        settings.as_dict(),
        together=partial(compute, settings),
        portion=PORTION,
        beside=write_end,
        there=_is_there,
    )
    run_command(command, checkpoints, source, output)


def compute(settings: DescendSettings, jobs: list[Job], report: Progress, finished: Finished) -> None:
    """The descents of a portion of checkpoints."""
    from landscape.points.descend import run_descents

    run_descents([job.problem for job in jobs], settings, report, finished)


def _is_there(job: Job) -> bool:
    return job.place.with_suffix(".pt").exists()


def write_end(job: Job, result: Descended) -> None:
    """The point reached, as a checkpoint beside the result: width=8/final.descend.pt."""
    from landscape.cli.points import write_point

    how = {"to": result.to, "method": result.method, "steps": result.steps}
    write_point(job, job.place.with_suffix(".pt"), result.point, result.spent, result.certificate.as_dict(), how)
