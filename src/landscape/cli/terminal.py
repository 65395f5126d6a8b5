"""What reaches the terminal: data on stdout; progress, `warning:`, `error:` and `hint:` lines on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from rich.console import Console

from landscape.errors import BatchError, LandscapeError, ProblemError
from landscape.runtime.files import storage_error
from landscape.runtime.interrupts import Interrupted, interruptible

P = ParamSpec("P")
T = TypeVar("T")

stdout = Console(highlight=False, soft_wrap=False, markup=False)
stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def print_error(error: LandscapeError) -> None:
    """`error:` and, where there is one, `hint:`; both on stderr."""
    stderr.print(f"error: {error.message}")
    if error.hint:
        stderr.print(f"hint: {error.hint}")


def print_warning(message: str) -> None:
    """A `warning:` line; never silenced."""
    stderr.print(f"warning: {message}")


def print_json_error(checkpoint: str, error: LandscapeError) -> None:
    """With --json: the object of a checkpoint that failed, so that there is a line for every one."""
    found = {"checkpoint": checkpoint, "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def print_note(message: str, quiet: bool = False) -> None:
    """A plain line of progress for people; silenced by --quiet."""
    if not quiet:
        stderr.print(message)


def within_memory(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns.

    Raises:
        ProblemError: memory has run out, here or on a GPU. It holds nothing of the frames that wanted too much.
    """
    try:
        return work(*args, **kwargs)
    except (RuntimeError, MemoryError) as error:
        from landscape.runtime.arithmetic import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ProblemError(f"memory has run out: {said[:160]}", "take fewer samples (--samples 1000), or --device cpu")


def within_errors(work: Callable[[], object]) -> None:
    """Do the work of a process; an error becomes one message and an exit code, that of `docs/cli.md`."""
    try:
        with interruptible():
            work()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except LandscapeError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `landscape ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has nowhere to go
        full = storage_error(error, "the output")
        print_error(full)
        sys.exit(full.exit_code)


def bare(error: LandscapeError) -> LandscapeError:
    """The error without the frames that it came through: kept to the end of a batch, they would keep their tensors."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def raise_failures(failures: Sequence[LandscapeError], count: int) -> None:
    """At the end of a command about `count` checkpoints whose errors are printed already, but for an only one's.

    Raises:
        LandscapeError: the only checkpoint's own. BatchError: of several.
    """
    if failures and count == 1:
        raise failures[0]
    if failures:
        others = "" if len(failures) == count else "; the results of the others are written"
        raise BatchError(
            f"{len(failures)} of {count} checkpoints failed{others}",
            "mend what is named above, then repeat the command: it does only what is missing",
        )


def plain(value: Any) -> Any:
    """JSON-ready copy: NaN and Inf become None, NumPy scalars and arrays become Python's."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flush() -> None:
    """Push out what was printed, so that a pipe sees whole lines before we exit."""
    sys.stdout.flush()
