"""`make gpu`: every phase of the GPU measurements in one call, each in a process of its own with a time limit.

Standard library only, since it starts on a bare machine: it looks for a Python that has torch, unpacks what is missing
there from the folder that `make gpu-wheels` filled, and runs the phases in the order of their worth. Rows are on disk
as soon as they are measured, so that a run that is cut off loses the row it was at.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
# Phases in the order of their worth, with their limits in seconds on a GPU and in a rehearsal, which takes what it
# takes.
LIMITS: dict[str, tuple[int, int]] = {
    "tests": (100, 150),
    "products": (75, 150),
    "spectrum": (75, 150),
    "slices": (25, 100),
    "certified": (40, 100),
    "check": (135, 100),
    "memory": (35, 100),
}
# A phase gets at least so many seconds, or is left out.
LEAST = 3.0
WRITE_SECONDS = 2.0
# Of a phase that is over its time: it may write what it has.
GRACE_SECONDS = 5.0
PROBE = """
import importlib.metadata as m, json, sys, sysconfig
import torch
there = torch.cuda.is_available()
print(json.dumps({
    "python": sys.version.split()[0], "tag": f"cp{sys.version_info[0]}{sys.version_info[1]}",
    "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    "devices": [
        {"name": p.name, "memory": p.total_memory, "capability": f"{p.major}.{p.minor}"}
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count() if there else 0))
    ],
    "installed": sorted({(d.metadata["Name"] or "").lower().replace("_", "-") for d in m.distributions()}),
}))
"""


class StopError(Exception):
    """What ends the command with one line and a hint."""


@dataclass(frozen=True)
class Machine:
    """Where the phases run.

    Attributes:
        python: an interpreter that has torch. path: PYTHONPATH of the phases. found: what the probe said.
    """

    python: str
    path: str
    found: dict[str, Any]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: words that make no sense.
    """
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: a rehearsal, nothing measured")
    parser.add_argument("--phases", default=",".join(LIMITS), help="comma-separated, in the order wanted")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds for everything")
    parser.add_argument("--resume", type=Path, help="go on with this result file: phases that are done are kept")
    parser.add_argument("--wheels", type=Path, default=ROOT / "gpu-wheels", help="what `make gpu-wheels` filled")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "gpu-results"))
    asked = parser.parse_args(words)
    asked.phases = [p for p in asked.phases.split(",") if p]
    unknown = [p for p in asked.phases if p not in LIMITS]
    if unknown:
        parser.error(f"there is no phase {unknown[0]!r}; there are {', '.join(LIMITS)}")
    return asked


# ---- the machine ----------------------------------------------------------------------------------------------------


def find_machine(wheels: Path, folder: Path) -> Machine:
    """A Python with torch, and the modules that it lacks, unpacked into `folder`.

    Raises:
        StopError: no Python here has torch.
    """
    candidates = [sys.executable, *(str(ROOT / e / "bin" / "python") for e in (".venv", ".bench-env")), "python3"]
    for python in dict.fromkeys(candidates):
        if shutil.which(python) is None:
            continue
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
            missing = unpack(wheels, folder, found["installed"], found["tag"])
            found["unpacked"] = missing
            path = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), str(folder)])
            return Machine(python, path, found)
    raise StopError("no Python here has torch\nhint: `make .venv/.installed` installs one for the CPU")


def unpack(wheels: Path, folder: Path, installed: Sequence[str], tag: str) -> list[str]:
    """Unpack the wheels of distributions that are not installed and fit this interpreter; their names."""
    done = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version, *_, interpreter, _, system = wheel.stem.split("-")
        fits = interpreter.startswith("py") or tag in interpreter.split(".") or "abi3" in wheel.stem
        fits = fits and (system == "any" or platform.machine() in system)
        if fits and re.sub(r"[-_.]+", "-", name).lower() not in installed:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            done.append(f"{name} {version}")
    return done


def describe(machine: Machine) -> dict[str, Any]:
    """Card, driver, versions: what a figure means nothing without."""
    driver = ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip().split("\n")[0]
    return {
        "devices": machine.found["devices"],
        "driver": driver,
        "python": machine.found["python"],
        "versions": machine.found["versions"],
        "unpacked": machine.found["unpacked"],
        "cores": os.cpu_count(),
        "cpu": _cpu(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# ---- phases ---------------------------------------------------------------------------------------------------------


class Phase:
    """One phase's process: started ahead of its time, so that its imports cost none, and told to go by a line."""

    def __init__(self, name: str, machine: Machine, asked: argparse.Namespace, rows: Path, log: IO[bytes]) -> None:
        self.name, self.rows = name, rows
        rows.unlink(missing_ok=True)
        command = [machine.python, "-W", "ignore", "-m", "benchmarks.gpu.phases", name]
        command += ["--device", asked.device, "--size", asked.size, "--rows", str(rows)]
        environment = {**os.environ, "PYTHONPATH": machine.path, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
        if asked.device == "cpu":  # threads of processes side by side wait for one another
            environment.setdefault("OMP_NUM_THREADS", "1")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
        )

    def go(self, seconds: float) -> None:
        """Begin; the phase knows how many seconds it has."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died on its imports: its exit code tells
            self.process.stdin.write(f"{seconds}\n".encode())
            self.process.stdin.close()

    def stop(self) -> None:
        """End it and all that it started."""
        for signum, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)

    def measured(self) -> list[dict[str, Any]]:
        """The rows so far; the last may be half a line."""
        if not self.rows.exists():
            return []
        lines = self.rows.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]


def run_phases(machine: Machine, asked: argparse.Namespace, begin: float) -> dict[str, Any]:
    """All phases that are asked for and not done; the result file is written every few seconds."""
    place = asked.resume or asked.out / "gpu.json"
    result = resumed(asked) or {
        "format": FORMAT,
        "started": _now(),
        "device": asked.device,
        "size": asked.size,
        "machine": describe(machine),
        "phases": {},
    }
    todo = [p for p in asked.phases if result["phases"].get(p, {}).get("status") != "done"]
    with (place.with_suffix(".log")).open("ab") as log:
        make = lambda name: Phase(name, machine, asked, asked.out / f".{name}.rows", log)  # noqa: E731
        following = make(todo[0]) if todo else None
        for i, name in enumerate(todo):
            phase, following = following, make(todo[i + 1]) if i + 1 < len(todo) else None
            assert phase is not None
            limit = min(LIMITS[name][asked.size == "tiny"], asked.budget - GRACE_SECONDS - (time.monotonic() - begin))
            before = {_key(r): r for r in result["phases"].get(name, {}).get("rows", [])}
            if limit < LEAST:
                phase.stop()
                kept = result["phases"].get(name, {"rows": []})
                result["phases"][name] = {**kept, "status": "left out", "why": "the budget is spent"}
            else:
                for state in watched(phase, limit):
                    rows = {**before, **{_key(r): r for r in state.pop("rows")}}
                    result["phases"][name] = {**state, "rows": list(rows.values())}
                    write(place, {**result, "finished": _now()})
            phase.rows.unlink(missing_ok=True)
            print(line_of(name, result["phases"][name]), flush=True)
    result["finished"], result["seconds"] = _now(), round(time.monotonic() - begin, 1)
    write(place, result)
    print(f"wrote {place} and {place.with_suffix('.log')} after {result['seconds']:.0f} s")
    return result


def watched(phase: Phase, limit: float) -> Any:
    """States of the phase, the last of them final: status done | failed | cut off."""
    start = time.monotonic()
    phase.go(limit)
    state: dict[str, Any] = {}

    def now(status: str) -> dict[str, Any]:
        seconds = round(time.monotonic() - start, 1)
        return {"status": status, "seconds": seconds, "limit": round(limit, 1), "rows": phase.measured()}

    while time.monotonic() - start < limit:
        try:
            code = phase.process.wait(min(WRITE_SECONDS, max(0.05, start + limit - time.monotonic())))
        except subprocess.TimeoutExpired:
            yield now("running")
            continue
        phase.stop()  # what it started and left behind
        state = now("done" if code == 0 else "failed")
        yield state if code == 0 else {**state, "why": f"exit code {code}; see the log"}
        return
    phase.stop()
    yield now("cut off")


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in ("row", "case", "who"))


def resumed(asked: argparse.Namespace) -> dict[str, Any] | None:
    """What --resume names.

    Raises:
        StopError: it is no result of this command, or of another device or size.
    """
    if asked.resume is None:
        return None
    try:
        result = json.loads(asked.resume.read_text())
        same = (result["format"], result["device"], result["size"]) == (FORMAT, asked.device, asked.size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StopError(f"{asked.resume} is no result of `make gpu` ({error})\nhint: leave --resume out") from None
    if not same:
        told = f"--device {result['device']} --size {result['size']}"
        raise StopError(f"{asked.resume} was measured with {told}\nhint: say the same, or leave --resume out")
    return dict(result)


def line_of(name: str, phase: dict[str, Any]) -> str:
    """One phase on the terminal."""
    failed = sum(1 for r in phase["rows"] if r.get("failed"))
    said = f"{name}: {phase['status']}, {len(phase['rows'])} rows"
    said += f", {phase['seconds']:.0f} s" if "seconds" in phase else ""
    said += f", {failed} failed" if failed else ""
    return f"{said} ({phase['why']})" if "why" in phase else said


def write(place: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, place)


def _now() -> str:
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M UTC}"  # noqa: UP017  Python 3.10 may start this


def main(words: Sequence[str] | None = None) -> int:
    """0: every phase was done and no test failed."""
    begin = time.monotonic()
    asked = arguments(words)
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="landscape-gpu-") as folder:
            machine = find_machine(asked.wheels, Path(folder))
            if asked.device == "cuda" and not machine.found["devices"]:
                raise StopError(
                    f"torch {machine.found['versions']['torch']} sees no CUDA device\n"
                    "hint: `make gpu DEVICE=cpu SIZE=tiny` rehearses every phase without one"
                )
            result = run_phases(machine, asked, begin)
    except StopError as stop:
        print(f"error: {stop}", file=sys.stderr)
        return 2
    phases = result["phases"].values()
    fine = all(p["status"] == "done" and not any(r.get("failed") for r in p["rows"]) for p in phases)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
