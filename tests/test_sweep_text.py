"""Trained runs back to a sweep file: every ready-made sweep comes back as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from landscape.claims.runs import SweptRun
from landscape.claims.sweep_text import as_sweep
from landscape.problem.problem import Problem
from landscape.training.run_files import MEASURED, header_of
from landscape.training.sweep import Run, plan, read_sweep
from landscape.training.sweeps import names, sweep_file


def unused() -> Problem:
    raise AssertionError("no network is needed")


def swept(run: Run) -> SweptRun:
    """As `landscape check` reads it from disk."""
    measured = dict.fromkeys(MEASURED, 1)
    return SweptRun(run.label, run.coordinates, header_of(run, measured), 0.1, None, unused, unused)


@pytest.mark.parametrize("name", names())
def test_a_sweep_comes_back(name: str, tmp_path: Path) -> None:
    runs = plan(read_sweep(sweep_file(Path(name))))
    (tmp_path / "again.toml").write_text(as_sweep([swept(r) for r in runs]))
    again = plan(read_sweep(tmp_path / "again.toml"))
    assert sorted(r.label for r in again) == sorted(r.label for r in runs)
    assert {r.label: r.setting() for r in again} == {r.label: r.setting() for r in runs}
    assert again[0].training.save == (0,)


def test_other_networks_give_none() -> None:
    run = plan(read_sweep(sweep_file(Path("four-neuron"))))[0]
    foreign = dataclasses.replace(swept(run), header={"model": "mine", "training": {}})
    assert as_sweep([foreign]) == ""
    assert as_sweep([dataclasses.replace(foreign, header={})]) == ""
