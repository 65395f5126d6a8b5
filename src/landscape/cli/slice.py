"""`landscape slice`: loss surfaces on a line or in a plane, resumable, over several processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import typer

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.cli.terminal import print_note
from landscape.slices.settings import SliceSettings

EXAMPLES = (
    "landscape slice net.pt --problem problem.py:problem --dirs random:norm=filter",
    "landscape slice a.pt --problem problem.py:problem --dirs between:to=b.pt",
)


@common.options_of(SliceSettings, without=("batchnorm",))
def slice(
    checkpoints: common.Checkpoints,
    source: Source,
    settings: SliceSettings,
    *,
    batchnorm: Annotated[
        Literal["eval", "batch", "fixed", "recalibrate"] | None,
        typer.Option(
            "--batchnorm",
            help="eval (or fixed): the checkpoint's statistics, the default; batch: those of each whole batch; "
            "recalibrate: estimated anew at every cell.",
            show_default=False,
        ),
    ] = None,
    trajectory: Annotated[
        list[str] | None,
        typer.Option(
            "--trajectory", metavar="CKPT", help="Checkpoints to project into the slice; for pca; repeatable."
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--common", help="The first checkpoint's directions and ranges for all of them.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes that share the cells of a surface.")] = 1,
    output: common.Output,
) -> None:
    """The loss on a line or in a plane through a checkpoint, checked against its gradient and Hessian.

    Writes NAME.slice.h5, every few seconds while it runs: interrupted or killed, the same command goes on.
    """
    from landscape.checkpoints.beside import find_inputs
    from landscape.checkpoints.find import expand
    from landscape.cli.slicing import Request, run_slices

    if batchnorm == "eval" or batchnorm == "batch":
        source = replace(source, batchnorm=batchnorm)
    elif batchnorm is not None:
        settings = replace(settings, batchnorm=batchnorm)
    workers = common.required_workers(workers)
    leader = expand(checkpoints)[0] if shared else None
    inputs = find_inputs(settings.dirs, trajectory or [], None if output.quiet else print_note)
    run_slices(Request(settings, source, inputs, output, leader, workers), checkpoints)
