"""`landscape widen`: split a layer's neurons, compare theory with the wide Hessian, follow what opens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.errors import UsageError
from landscape.widening.settings import SHARES, WidenSettings

if TYPE_CHECKING:
    from torch import nn

    from landscape.cli.jobs import Job
    from landscape.runtime.pieces import Pieces
    from landscape.runtime.progress import Progress
    from landscape.widening.result import Widened

EXAMPLES = (
    "landscape widen net.descend.pt --problem problem.py:problem --layer 0 --follow",
    "landscape widen net.pt --problem problem.py:problem --layer 0 --write --to 16",
)


@dataclass(frozen=True)
class Made:
    """The checkpoint that --write makes: its width, or None for the splits named; and how."""

    to: int | None
    how: str


@common.options_of(WidenSettings, without=("batchnorm",))
def widen(
    checkpoints: common.Checkpoints,
    source: Source,
    settings: WidenSettings,
    *,
    to: Annotated[
        int | None, typer.Option("--to", help="Width of the checkpoint that --write makes.", show_default=False)
    ] = None,
    how: Annotated[
        Literal["split", "fresh", "duplicate"],
        typer.Option("--how", help="--to by split (in equal shares, in turn), fresh (zero output) or duplicate (all)."),
    ] = "split",
    write: Annotated[bool, typer.Option("--write", help="Write the widened checkpoint NAME.widen.pt.")] = False,
    output: common.Output,
) -> None:
    """Function-preserving widening: which splits of a neuron open a way out of this point, and where it leads.

    For every neuron and share: the negative and zero eigenvalues that second order foretells for the wide network,
    those it has, and the lowest one. In float64.
    """
    from landscape.cli.loop import Command, run_command

    chosen = settings.neurons and settings.shares is not SHARES and len(settings.neurons) == len(settings.shares)
    if write and to is None and not chosen:
        raise UsageError(
            "--write needs to know what to write",
            "give the width, --to 8, or the splits to make: --split 0 --mu 0.5, as many of each",
        )
    if to is not None and not write:
        raise UsageError("--to is the width of the checkpoint that --write makes", "add --write")
    made = Made(to, how) if write else None
    command = Command(
        "widen",
        {**settings.as_dict(), "write": [to, how] if write else None},
        partial(compute, settings),
        beside=partial(_beside, settings, made),
        there=partial(_is_there, made),
    )
    run_command(command, checkpoints, source, output)


def compute(settings: WidenSettings, job: Job, report: Progress, pieces: Pieces) -> Widened:
    """The splits of one checkpoint."""
    from landscape.widening.run import run_widen

    _refuse_half(job)
    return run_widen(job.problem, settings, report)


def _beside(settings: WidenSettings, made: Made | None, job: Job, result: Widened) -> None:
    if made is not None:
        _write(job, settings, made.to, made.how)


def _is_there(made: Made | None, job: Job) -> bool:
    return made is None or _target(job).exists()


def _refuse_half(job: Job) -> None:
    """Weights of 8 to 11 bits are no critical point of anything. Raises CheckpointError."""
    import torch

    from landscape.errors import CheckpointError

    kinds = {t.dtype for t in job.loaded.checkpoint.state.values()} & {torch.float16, torch.bfloat16}
    if kinds:
        raise CheckpointError(
            f"{job.path} holds {str(next(iter(kinds))).removeprefix('torch.')} weights, rounded so coarsely that no "
            "split point of them is critical",
            "go to a critical point in float64 first: landscape descend",
        )


def _target(job: Job) -> Path:
    return job.place.with_suffix(".pt")


def _write(job: Job, settings: WidenSettings, to: int | None, how: str) -> None:
    """The widened network as a checkpoint in float64; our own header says its widths."""
    import torch

    from landscape.checkpoints.checkpoint import write_checkpoint
    from landscape.problem.copies import moved_model
    from landscape.widening.networks import Split, find_hidden, require_smooth, widened, width_of
    from landscape.widening.run import narrow_problem, require_preserved

    narrow = narrow_problem(job.problem, settings.smooth).model
    model = moved_model(narrow, torch.device("cpu"), torch.float64)
    hidden = find_hidden(model, settings.layer, settings.following)
    if to is None:
        require_smooth(model, hidden)
        splits = [Split(j, s) for j, s in zip(settings.neurons, settings.shares, strict=True)]
        made = widened(model, hidden, splits)
        what: dict[str, Any] = {"splits": [[s.neuron, list(s.shares)] for s in splits]}
    else:
        made = widened_to(model, settings.layer, settings.following, to, how, settings.seed)
        what = {"to": to, "how": how}
    require_preserved(job.problem, model, made)
    found = job.loaded.checkpoint
    own = {} if settings.smooth is not None else dict(found.header)  # a header has no word for softplus(β)
    header = _header(own, settings.layer, width_of(made, settings.layer), dict(found.coordinates))
    descent = {"from": found.sha256, "command": "widen", "layer": settings.layer, **what}
    write_checkpoint(_target(job), made, header | {"descent": descent})


def widened_to(model: nn.Module, layer: str, following: str | None, to: int, how: str, seed: int) -> nn.Module:
    """The model with `to` neurons in a layer, its function unchanged.

    Raises:
        UsageError: a smaller width, or one that --how cannot make.
    """
    import torch

    from landscape.widening.networks import Split, find_hidden, widened, width_of, with_fresh

    hidden = find_hidden(model, layer, following)
    width = width_of(model, layer)
    if to <= width:
        raise UsageError(f"--to {to}: {layer!r} has {width} neurons already", "widening needs a larger width")
    if how == "fresh":
        return with_fresh(model, hidden, to - width, torch.Generator().manual_seed(seed))
    copies = [1 + (to - width) // width + (j < (to - width) % width) for j in range(width)]
    if how == "duplicate" and to % width:
        raise UsageError(
            f"--how duplicate multiplies the {width} neurons, and {to} is no multiple", f"try --to {2 * width}"
        )
    splits = [Split(j, (1 / k,) * k) for j, k in enumerate(copies) if k > 1]
    return widened(model, hidden, splits)


def _header(header: dict[str, Any], layer: str, width: int, coordinates: dict[str, Any]) -> dict[str, Any]:
    """Our own header with the new width; a bare one where the family cannot say it."""
    settings = dict(header.get("model_settings", {}))
    bare = {"coordinates": {**coordinates, "width": width}}
    scaled = settings.get("parametrisation", "default") != "default"  # its factors follow from the width
    if header.get("model") != "mlp" or not layer.isdigit() or scaled:
        return bare
    depth, place = int(settings.get("depth", 1)), int(layer) // 2
    widths = list(settings.get("widths") or [settings["width"]] * depth)
    if place >= depth:
        return bare
    widths[place] = width
    settings |= {"width": max(widths)} if len(set(widths)) == 1 else {"widths": widths}
    kept = {k: v for k, v in header.items() if k not in ("certificate", "descent", "training")}
    return {**kept, "model_settings": settings, **bare}
