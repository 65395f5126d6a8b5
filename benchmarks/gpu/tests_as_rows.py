"""A pytest plugin: every test's outcome as a row of `make gpu`, written when it is known."""

from __future__ import annotations

import json
import os

import pytest

_PLACE = os.environ.get("GPU_ROWS", "")
_IN_A_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One row a test, and one for a set-up or a tear-down that failed."""
    if not (report.when == "call" or report.failed or (report.skipped and report.when == "setup")):
        return
    _write(report.nodeid, report.outcome, report.duration, report.longreprtext if report.failed else "")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that does not import is a failed test."""
    if report.failed:
        _write(report.nodeid, "failed", 0.0, report.longreprtext)


def _write(test: str, outcome: str, seconds: float, why: str) -> None:
    if not _PLACE or _IN_A_WORKER:
        return
    row = {"row": "test", "case": test, "who": "ours", "outcome": outcome, "seconds": [seconds]}
    if outcome == "failed":
        row |= {"failed": True, "why": why[-600:]}
    with open(_PLACE, "a") as file:
        file.write(json.dumps(row) + "\n")
