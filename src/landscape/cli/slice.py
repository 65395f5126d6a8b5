"""`landscape slice`: loss surfaces on a line or in a plane, resumable, over several processes."""

from __future__ import annotations

from typing import Annotated

import typer

from landscape.cli import options as common
from landscape.cli.terminal import print_note


def slice(
    checkpoints: common.Checkpoints,
    dirs: Annotated[
        str,
        typer.Option(
            "--dirs",
            metavar="KIND[:OPTION=VALUE,...]",
            help="random, hessian, gradient, pca, between:to=CKPT or file:path=FILE; two are joined with +.",
        ),
    ] = "random",
    span: Annotated[
        str | None,
        typer.Option(
            "--span", metavar="S|SXxSY", help="Half-width of the axes; what suits the directions if left out."
        ),
    ] = None,
    points: Annotated[
        str | None, typer.Option("--points", metavar="N|NXxNY", help="51 for a line, 41x41 for a plane.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", help="Random planes, for quantiles.")] = 1,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="accuracy, gradient_norm, lambda_max or lambda_min at every cell; repeatable."),
    ] = None,
    batchnorm: Annotated[
        str | None,
        typer.Option(
            "--batchnorm",
            help="eval: the checkpoint's statistics, the default; batch: those of each whole batch; recalibrate: "
            "estimated anew at every cell.",
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
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    batch_size: common.BatchSize = None,
    memory: common.Memory = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    workers: Annotated[int, typer.Option("--workers", help="Processes that share the cells of a surface.")] = 1,
    out: common.Out = common.DEFAULT_OUT,
    as_json: common.Json = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
    share: Annotated[str | None, typer.Option("--share", hidden=True)] = None,
    result_path: common.ResultPath = None,
) -> None:
    """The loss on a line or in a plane through a checkpoint, checked against its gradient and Hessian.

    Writes NAME.slice.h5, every few seconds while it runs: interrupted or killed, the same command goes on.
    """
    from landscape.checkpoints.beside import find_inputs
    from landscape.checkpoints.find import expand
    from landscape.checkpoints.source import Source
    from landscape.cli.slicing import Request, run_share, run_slices
    from landscape.errors import UsageError
    from landscape.problem.batchnorm import BATCHNORM
    from landscape.runtime.memory import parse_bytes
    from landscape.slices.settings import SliceSettings, metrics_of, numbers

    settings = SliceSettings(
        dirs=dirs,
        span=numbers(span, "--span", float),
        points=numbers(points, "--points", int),
        repeat=repeat,
        metrics=metrics_of(metric or ()),
        batchnorm="fixed" if batchnorm in (None, *BATCHNORM) else batchnorm,
        samples=samples,
        seed=seed,
        device=device,
        precision=precision,
        batch_size=batch_size,
        memory=None if memory is None else parse_bytes(memory),
    )
    statistics = batchnorm if batchnorm in BATCHNORM else None
    source = Source(problem, common.parse_sets(sets), data, loss, tuple(allow_global or ()), key, statistics)
    if workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    leader = expand(checkpoints)[0] if shared else None
    inputs = find_inputs(dirs, trajectory or [], None if quiet else print_note)
    request = Request(settings, source, inputs, out, leader, workers, force, quiet, as_json)
    if share is not None and result_path is not None:
        run_share(request, checkpoints[0], result_path, share)
    else:
        run_slices(request, checkpoints)
