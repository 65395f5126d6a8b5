"""The errors a user can meet: each says what happened, and its hint says what to type next."""

from __future__ import annotations

from typing import Any


class LandscapeError(Exception):
    """Base of all errors that are not bugs.

    Args:
        message: what happened and, in the same sentence or the next, its usual cause.
        hint: what to do or type next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LandscapeError):
    """The command line or the arguments of a call make no sense."""

    exit_code = 2


class CheckpointError(LandscapeError):
    """A checkpoint file cannot be read, or does not fit the model."""

    exit_code = 3


class ProblemError(LandscapeError):
    """The model, data or loss cannot be analysed."""

    exit_code = 3


class NarrowError(ProblemError):
    """The model or loss runs in its own arithmetic and not in float64."""


class NumericalError(LandscapeError):
    """NaN or Inf where a number was needed; `partial` is the result as far as it got, if any."""

    exit_code = 4
    partial: Any = None


class StorageError(LandscapeError):
    """A file cannot be written: disk full, no permission, something else in its place."""

    exit_code = 5


class BatchError(LandscapeError):
    """Some checkpoints of a batch failed; the others are done."""

    exit_code = 6


class RanksError(LandscapeError):
    """Another process of the same `torchrun` is gone."""

    exit_code = 6
