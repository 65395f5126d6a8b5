"""Shared by all tests: devices, and the signals that tests send to real processes."""

from __future__ import annotations

import signal

import pytest
import torch

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that is there; CUDA is skipped, with the reason, where it is not."""
    return str(request.param)


def pytest_configure(config: pytest.Config) -> None:
    """Undo SIG_IGN, which a script's background jobs and nohup bequeath: tests of signals would wait for ever."""
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, handler)
