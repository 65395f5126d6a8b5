"""SIGINT, SIGTERM and SIGHUP as one exception, held back while a file is being written."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a closed terminal
# A scheduler may signal both us and our parent, which forwards it: the second copy must not cut the clean-up.
GRACE_SECONDS = 1.0
# Python swallows what is raised in a destructor or a weakref callback; the signal is then sent again after this.
AGAIN_SECONDS = 0.01


class Interrupted(BaseException):
    """The user or the scheduler asked us to stop; not an `Exception`, so that nothing swallows it.

    Attributes:
        signum: one of `SIGNALS`.
        exit_code: 128 + signum, what shells and schedulers expect: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class _State:
    """What the signal handler knows; one per process, since handlers are."""

    depth = 0  # how many `deferred` blocks we are in
    pending: int | None = None  # signal that arrived inside one
    raised_at = float("-inf")
    swallowed: int | None = None  # signal whose exception Python dropped
    again: threading.Timer | None = None  # will send it once more


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if time.monotonic() - _State.raised_at < GRACE_SECONDS:
        return
    if _State.depth:
        _State.pending = signum
        return
    _State.raised_at, _State.swallowed = time.monotonic(), None
    raise Interrupted(signum)


def _resending(others: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A `sys.unraisablehook` that loses no interruption; everything else goes to `others`."""

    def hook(unraisable: Any) -> None:
        interruption = unraisable.exc_value
        if not isinstance(interruption, Interrupted):
            others(unraisable)
            return
        _forget()
        main = threading.main_thread().ident
        assert main is not None
        _State.swallowed = interruption.signum
        _State.again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, interruption.signum))
        _State.again.daemon = True
        _State.again.start()

    return hook


def _forget() -> None:
    """Listen again at once, and take back what is about to be sent."""
    if _State.again is not None:
        _State.again.cancel()
        _State.again.join()
    _State.raised_at, _State.pending, _State.swallowed, _State.again = float("-inf"), None, None, None


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, `SIGNALS` raise `Interrupted`; the previous handlers come back afterwards.

    May be nested. Outside the main thread, where Python allows no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    outermost = all(handler is not _on_signal for handler in before.values())
    hook_before = sys.unraisablehook
    sys.unraisablehook = _resending(hook_before)
    for signum, handler in before.items():
        # None: set by C code; SIG_IGN: nohup and background jobs of a script mean it.
        if handler is not None and handler != signal.SIG_IGN:
            signal.signal(signum, _on_signal)
    try:
        yield
        if outermost and _State.swallowed is not None:
            raise Interrupted(_State.swallowed)
    finally:
        if outermost:
            _State.raised_at = time.monotonic()  # a signal that is on its way finds nothing more to do
            _forget()
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)
        sys.unraisablehook = hook_before


@contextmanager
def deferred() -> Iterator[None]:
    """Hold `Interrupted` back until the end of the block; use for short work that must be whole.

    Only holds signals that `interruptible` has taken over; without it, Python's own rules stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if _State.depth == 0 and _State.pending is not None:
            signum, _State.pending = _State.pending, None
            _State.raised_at = time.monotonic()
            raise Interrupted(signum)
