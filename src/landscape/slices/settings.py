"""The options of `slice`, checked; the words for ranges and grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from landscape.errors import UsageError
from landscape.runtime.arithmetic import resolve_dtype
from landscape.runtime.memory import parse_bytes
from landscape.settings import in_words
from landscape.slices.directions.direction import parse_directions
from landscape.slices.metrics import METRICS

# Half-widths that floating point can do something with; cells that a file can hold.
SHORTEST, LONGEST, MOST_CELLS = 1e-12, 1e12, 10**7
LINE, PLANE = (51,), (41, 41)
BATCHNORM = ("fixed", "recalibrate")


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


@dataclass(frozen=True)
class SliceSettings:
    """All options of `slice`; the command line and the library share these names and defaults.

    Attributes:
        dirs: directions in words, see `direction.parse_directions`.
        span: half-widths of the axes, (s,) or (sx, sy); None: what suits the directions.
        points: cells along the axes, (n,) for a line, (nx, ny) for a plane; None: 51, or 41 by 41.
        repeat: random planes. metrics: besides the loss. batchnorm: fixed | recalibrate.
        samples: a random subset of the data. seed: of random choices. device: "auto", "cpu", "cuda".
        precision: "auto" (the checkpoint's own, at least float32), "float32" or "float64".
        batch_size: samples a forward pass; None: by timing. memory: limit in bytes for the whole process.
    """

    dirs: str = "random"
    span: tuple[float, ...] | None = in_words(None, lambda text: numbers(text, "--span", float), (1.0, 0.5))
    points: tuple[int, ...] | None = in_words(None, lambda text: numbers(text, "--points", int), (41, 41))
    repeat: int = 1
    metrics: tuple[str, ...] = in_words((), lambda text: metrics_of([text]), ("accuracy",))
    batchnorm: str = "fixed"
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    memory: int | None = in_words(None, parse_bytes, "6GB")

    def __post_init__(self) -> None:
        for name in ("span", "points", "metrics"):  # one number, or one word, is as good as a tuple of one
            value = getattr(self, name)
            if isinstance(value, int | float | str):
                object.__setattr__(self, name, (value,))
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
        for name, least in (("repeat", 1), ("seed", 0), ("samples", 1), ("batch_size", 1), ("memory", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(f"there is no metric {metric!r}", f"choose from {', '.join(METRICS[1:])}")
        if self.batchnorm not in BATCHNORM:
            raise UsageError(f"--batchnorm {self.batchnorm!r} does not exist", "choose eval, batch or recalibrate")
        if self.precision not in ("auto", "float32", "float64"):
            raise UsageError(f"there is no precision {self.precision!r} here", "choose auto, float32 or float64")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        values = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @property
    def measured(self) -> tuple[str, ...]:
        """All metrics, the loss first, in the order of `METRICS`."""
        return tuple(m for m in METRICS if m == "loss" or m in self.metrics)

    @property
    def axes(self) -> int | None:
        """1 for a line, 2 for a plane; None where the directions decide."""
        return None if self.points is None else len(self.points)

    def dtype(self, own: torch.dtype) -> torch.dtype:
        """The arithmetic of the cells, for a checkpoint's own."""
        return resolve_dtype(self.precision, own)


def _joined(values: tuple[float, ...]) -> str:
    return "x".join(f"{v:g}" for v in values)
