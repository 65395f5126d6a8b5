"""The options of `slice`, checked; the words for ranges and grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from landscape.errors import UsageError
from landscape.settings import (
    DEVICE,
    MEMORY,
    SEED,
    SUBSET,
    check_options,
    documented,
    option,
    parse_bytes,
    plain_options,
)
from landscape.slices.direction_words import parse_directions

# Half-widths that floating point can do something with; cells that a file can hold.
SHORTEST, LONGEST, MOST_CELLS = 1e-12, 1e12, 10**7
LINE, PLANE = (51,), (41, 41)
# Every metric of a cell, and those that are eigenvalues.
METRICS = ("loss", "accuracy", "gradient_norm", "lambda_max", "lambda_min")
CURVED = ("lambda_max", "lambda_min")


def numbers(text: str | None, option: str, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    """ "41x21" as (41, 21). Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.lower().split("x"))
    except ValueError as error:
        example = "51 or 41x41" if kind is int else "1 or 1x0.5"
        raise UsageError(
            f"{option} {text!r} is not a number, or two joined with x", f"such as {option} {example}"
        ) from error


def metrics_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, one or several with commas each, in the letters of the command line or of results."""
    return tuple(m.strip().replace("-", "_") for text in texts for m in text.split(",") if m.strip())


@documented
@dataclass(frozen=True)
class SliceSettings:
    """All options of `slice`; the command line and the library share these names and defaults.

    `span` and `points` have one number a line's axis, or two for a plane; precision "auto" is the checkpoint's own, at
    least float32. See `direction_words.parse_directions` for the words of `dirs`.
    """

    dirs: str = option(
        "random",
        "random, hessian, gradient, pca, between:to=CKPT or file:path=FILE; two are joined with +.",
        metavar="KIND[:OPTION=VALUE,...]",
    )
    span: tuple[float, ...] | None = option(
        None,
        "Half-width of the axes; what suits the directions if left out.",
        words=lambda text: numbers(text, "--span", float), example=(1.0, 0.5), metavar="S|SXxSY",
    )  # fmt: skip
    points: tuple[int, ...] | None = option(
        None,
        "51 for a line, 41x41 for a plane.",
        words=lambda text: numbers(text, "--points", int), example=(41, 41), metavar="N|NXxNY",
    )  # fmt: skip
    repeat: int = option(1, "Random planes, for quantiles.", least=1)
    metrics: tuple[str, ...] = option(
        (),
        "accuracy, gradient_norm, lambda_max or lambda_min at every cell; repeatable.",
        flag="metric", words=lambda text: metrics_of([text]), example=("accuracy",), many=True,
    )  # fmt: skip
    batchnorm: Literal["fixed", "recalibrate"] = option(
        "fixed", "BatchNorm's statistics at every cell: the checkpoint's, or estimated anew."
    )
    samples: int | None = option(None, SUBSET, least=1)
    seed: int = option(0, SEED, least=0)
    device: str = option("auto", DEVICE)
    precision: Literal["auto", "float32", "float64"] = option("auto", "Arithmetic of the cells.")
    batch_size: int | None = option(None, "Samples a forward pass; chosen by timing if left out.", least=1)
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")

    def __post_init__(self) -> None:
        for name in ("span", "points", "metrics"):  # one number, or one word, is as good as a tuple of one
            value = getattr(self, name)
            if isinstance(value, int | float | str):
                object.__setattr__(self, name, (value,))
        check_options(self)
        specs = parse_directions(self.dirs)
        if self.span is not None and not (
            len(self.span) in (1, 2) and all(SHORTEST <= s <= LONGEST for s in self.span)
        ):
            raise UsageError(
                f"--span {_joined(self.span)} must be above 0 (from {SHORTEST:g} to {LONGEST:g})",
                "such as --span 1, or --span 1x0.5",
            )
        if self.points is not None and not (len(self.points) in (1, 2) and all(n >= 2 for n in self.points)):
            raise UsageError(
                f"--points {_joined(self.points)} is no grid; every axis needs at least 2 points",
                "such as --points 51 for a line, --points 41x41 for a plane",
            )
        if self.points is not None and math.prod(self.points) * max(1, self.repeat) > MOST_CELLS:
            raise UsageError(
                f"--points {_joined(self.points)} are more than {MOST_CELLS:,} cells", "such as --points 41x41"
            )
        if self.span is not None and self.points is not None and len(self.span) > len(self.points):
            raise UsageError("--span has two axes, and --points one", "such as --span 1 --points 51")
        if self.repeat > 1 and "random" not in [s.kind for s in specs]:
            raise UsageError(
                f"--repeat draws several random planes, and --dirs {self.dirs} are always the same",
                "leave it out, or choose --dirs random",
            )
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(f"there is no metric {metric!r}", f"choose from {', '.join(METRICS[1:])}")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return plain_options(self)

    @property
    def measured(self) -> tuple[str, ...]:
        """All metrics, the loss first, in the order of `METRICS`."""
        return tuple(m for m in METRICS if m == "loss" or m in self.metrics)

    @property
    def axes(self) -> int | None:
        """1 for a line, 2 for a plane; None where the directions decide."""
        return None if self.points is None else len(self.points)


def _joined(values: tuple[float, ...]) -> str:
    return "x".join(f"{v:g}" for v in values)
