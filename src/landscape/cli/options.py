"""The options that analyses share, stated once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...", help="Checkpoints, globs ('runs/**/final.pt') or folders of them.", show_default=False
    ),
]
ProblemOption = Annotated[
    str | None,
    typer.Option(
        "--problem", metavar="FILE.py:FUNCTION", help="Function that returns the Problem (model, data, loss)."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Argument of the problem function; repeatable.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="FILE.npz", help="Arrays inputs and targets, for exported programs.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", help="cross_entropy, mse or bce, for exported programs and with --data.")
]
AllowGlobal = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global", metavar="NAME,...", help="Classes that a checkpoint may contain, skipped unread; repeatable."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY", help="Which weights of a file with several sets: state_dict_ema, state.model."
    ),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        "--batchnorm",
        help="BatchNorm's statistics: eval (running ones, the default) or batch (of each whole batch, as in training).",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, float32, float64, tf32 or bf16.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Samples a chunk; chosen by timing if left out.", show_default=False)
]
Block = Annotated[
    int | None, typer.Option("--block", help="Vectors a launch; chosen by timing if left out.", show_default=False)
]
Samples = Annotated[
    int | None, typer.Option("--samples", help="Use a random subset of the data, with its sampling error.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the result files.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per checkpoint on stdout, one a line.")]
Force = Annotated[bool, typer.Option("--force", help="Compute again, and overwrite other results in --out.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress; warnings and errors stay.")]
Workers = Annotated[int, typer.Option("--workers", help="Checkpoints analysed at the same time, a process each.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="6GB", help="Limit for the process; without it, a share of what is free."),
]
ResultPath = Annotated[Path | None, typer.Option("--result-path", hidden=True)]
DEFAULT_OUT = Path("landscape-results")


def parse_sets(pairs: list[str] | None) -> dict[str, str]:
    """--set KEY=VALUE options as a mapping.

    Raises:
        UsageError: a pair without "=", or a key given twice.
    """
    from landscape.errors import UsageError

    found: dict[str, str] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not KEY=VALUE", "write it like --set width=64")
        if key in found:
            raise UsageError(f"--set {key} is given twice", "keep one of them")
        found[key] = value
    return found
