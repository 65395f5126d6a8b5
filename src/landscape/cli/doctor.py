"""`landscape doctor`: is this problem one whose curvature can be trusted? A line per check, a verdict at the end."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as common
from landscape.cli.terminal import flush, plain, print_error, print_json_error, print_note
from landscape.errors import BatchError, LandscapeError, ProblemError

if TYPE_CHECKING:
    from landscape.diagnosis.run import Diagnosis

EXAMPLES = (
    "landscape doctor net.pt --problem problem.py:problem",
    "landscape doctor net.pt --problem problem.py:problem --samples 64 --json",
)

WIDTH = 80
MARKS = {"ok": "ok", "care": "care", "fault": "FAULT"}


def doctor(
    checkpoints: common.Checkpoints,
    problem: common.ProblemOption = None,
    sets: common.SetOption = None,
    data: common.DataOption = None,
    loss: common.LossOption = None,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
    batchnorm: common.BatchNorm = None,
    device: common.Device = "auto",
    samples: Annotated[int, typer.Option("--samples", help="Samples the checks use at most.")] = 256,
    seed: common.Seed = 0,
    as_json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Check a problem: is its loss a fixed smooth sum, are its products right, what needs care.

    Each line says what was measured and what it was held to. Exit code 3 if anything is a FAULT.
    """
    from landscape.checkpoints.find import expand

    paths = expand(checkpoints, None if quiet else print_note)
    arguments = (problem, common.parse_sets(sets), data, loss, batchnorm)
    faulty, failures = 0, list[LandscapeError]()
    try:
        for path in paths:
            try:
                diagnosis = _diagnose(
                    str(path), arguments, (tuple(allow_global or ()), key), device, seed, samples, quiet
                )
            except LandscapeError as error:
                if as_json:
                    print_json_error(str(path), error)
                if len(paths) == 1:
                    raise
                error.message = f"{path}: {error.message}"
                print_error(error)
                failures.append(error)
                continue
            faulty += diagnosis.verdict == "fault"
            if as_json:
                print(json.dumps(_object(str(path), diagnosis), ensure_ascii=False))
            else:
                _show(str(path), diagnosis, headed=len(paths) > 1)
            flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if len(paths) > 1 and failures:
        raise BatchError(f"{len(failures)} of {len(paths)} checkpoints could not be read, {faulty} have faults")
    if faulty:
        raise typer.Exit(ProblemError.exit_code)


def _diagnose(
    path: str,
    arguments: tuple[str | None, dict[str, str], str | None, str | None, str | None],
    reading: tuple[tuple[str, ...], str | None],
    device: str,
    seed: int,
    samples: int,
    quiet: bool,
) -> Diagnosis:
    from landscape.checkpoints.checkpoint import read_checkpoint
    from landscape.checkpoints.load import load_problem
    from landscape.diagnosis.findings import said
    from landscape.diagnosis.run import Diagnosis, Finding
    from landscape.diagnosis.run import doctor as examine

    found = read_checkpoint(path, *reading)
    try:
        loaded = load_problem(found, *arguments)
    except ProblemError as error:
        return Diagnosis([Finding("problem", "fault", said(error))])
    for note in loaded.notes:
        print_note(f"note: {note}", quiet)
    return examine(loaded.problem, device=device, seed=seed, samples=samples)


def _object(path: str, diagnosis: Diagnosis) -> dict[str, Any]:
    findings = [
        {"name": f.name, "verdict": f.verdict, "text": f.text, "numbers": plain(f.numbers)} for f in diagnosis.findings
    ]
    errors = plain({"error_float64": diagnosis.error_float64, "error_float32": diagnosis.error_float32})
    return {"checkpoint": path, "verdict": diagnosis.verdict, "findings": findings, **errors}


def _show(path: str, diagnosis: Diagnosis, headed: bool) -> None:
    if headed:
        print(path)
    indent = " " * 7
    for finding in diagnosis.findings:
        text = f"{finding.name}: {finding.text}"
        for number, line in enumerate(textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False)):
            print(f"{indent if number else MARKS[finding.verdict].ljust(len(indent))}{line}")
    print(verdict(diagnosis))


def verdict(diagnosis: Diagnosis) -> str:
    """The last line: what products of this model are worth, relative to max |λ|."""
    faults = [f.name for f in diagnosis.findings if f.verdict == "fault"]
    if faults:
        return f"Do not trust this model's products: {', '.join(dict.fromkeys(faults))}."
    errors = {"float64": diagnosis.error_float64, "float32": diagnosis.error_float32}
    known = ", ".join(f"{error:.0e} ({name})" for name, error in errors.items() if error == error)
    return f"Products of this model can be trusted to {known}."
