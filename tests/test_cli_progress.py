"""Progress for people who look at a log: plain lines with the time that is left."""

from __future__ import annotations

import time

import pytest

from landscape.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_with_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage_progress("final.pt", quiet=False) as report:
        for clock[0], done in ((1.0, 5), (29.0, 90), (31.0, 100), (50.0, 200), (62.0, 700), (63.0, 740)):
            report("density", done, 740)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "final.pt: density, 100 of 740, about 3 min left",
        "final.pt: density, 700 of 740, about 4 s left",
    ]


@pytest.mark.parametrize(("done", "total"), [(0, 10), (10, 10), (12, 10), (5, 0)])
def test_nothing_is_foretold_without_a_pace_or_a_rest(done: int, total: int) -> None:
    assert progress._left(100.0, done, total) == ""


def test_quiet_is_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stage_progress("final.pt", quiet=True) as report:
        clock[0] = 1000.0
        report("density", 1, 2)
    assert capsys.readouterr().err == ""
