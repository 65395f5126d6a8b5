"""`landscape spectrum`: both ends of the Hessian spectrum, its density, trace and negative part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.spectra.settings import SpectrumSettings

if TYPE_CHECKING:
    from landscape.cli.jobs import Job
    from landscape.results.fields import Spectrum
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress

EXAMPLES = (
    "landscape spectrum 'runs/**/final.pt' --problem problem.py:problem",
    "landscape spectrum net.pt --problem problem.py:problem --operator ggn --top 20",
)


@common.options_of(SpectrumSettings)
def spectrum(
    checkpoints: common.Checkpoints,
    source: Source,
    settings: SpectrumSettings,
    *,
    workers: common.Workers = 1,
    output: common.Output,
) -> None:
    """Both ends of the Hessian spectrum, its density, trace and negative part, every number with its bound.

    Values are printed with their uncertainty: 3.3617(2) means 3.3617 +- 0.0002. Results go to one HDF5 file per
    checkpoint below --out; the same command again does only what is missing.
    """
    from landscape.cli.loop import Command, run_command

    workers = common.required_workers(workers)
    command = Command("spectrum", settings.as_dict(), partial(compute, settings), shared=True)
    run_command(command, checkpoints, source, output, workers)


def compute(settings: SpectrumSettings, job: Job, report: Progress, pieces: Pieces) -> Spectrum:
    """The spectrum of one checkpoint, whose data the processes of a `torchrun` may share."""
    from landscape.problem.distributed import ALONE
    from landscape.spectra.run import run_spectrum

    return run_spectrum(job.problem, settings, report, job.ranks or ALONE)
