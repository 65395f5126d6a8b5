"""docs/benchmarks.md and the table in the terminal."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.memory import MemoryRow
from benchmarks.rows import Row
from benchmarks.timing import Timed, ratio

PEERS = {
    "PyHessian": "PyHessian",
    "hessian-eigenthings": "hessian-eigenthings",
    "curvlinops": "curvlinops-for-pytorch",
    "loss-landscapes": "loss-landscapes",
    "Landscaper": "landscaper",
}
INTRODUCTION = """# Benchmarks

Written by `make bench`, which makes an environment of its own with the peers in it (`benchmarks/requirements.txt`).

- All tools run in one process, in turn, with the same number of threads; seconds are medians over the repetitions,
  construction, planning and error measurement included. Every repetition has its own random start.
- True errors are against float64 eigenvalues from our Lanczos run to 1e-10; ARPACK on central differences of the
  gradient, which shares no code with it, agrees to the number given below. A tool counts as correct in a row only if
  its worst error over all repetitions meets the row's accuracy.
- Peers run at the chunk size where their product is fastest, on all data, and at the cheapest setting (steps,
  tolerance, basis) whose *true* error is within the accuracy for every repetition: a tuning that nobody can do
  without knowing the truth. "Ours, tuned" gets the same favour; "ours, default" does not, and certifies its residuals.
- The ratio is seconds of the best correct peer over ours: above 1, we are faster.
"""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu() -> str:
    return f"- {torch.cuda.get_device_name()}\n" if torch.cuda.is_available() else ""


def machine(load_before: float) -> str:
    """Where and with what this was measured."""
    versions = ", ".join(f"{name} {version(package)}" for name, package in PEERS.items())
    load = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    return (
        f"{_gpu()}- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; {_cpu()}; {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; load {load}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}, this project {version('torch-landscape')}; "
        f"{versions}\n"
    )


def _number(x: float, digits: int = 3) -> str:
    return "–" if math.isnan(x) else f"{x:.{digits}g}"


def _setting(row: Timed) -> str:
    shown = {k: v for k, v in row.setting.items() if k not in ("k", "which", "ends", "probes", "chunk")}
    text = ", ".join(f"{k} {v:g}" for k, v in shown.items())
    chunk = f"chunk {row.setting['chunk']}" if "chunk" in row.setting else ""
    return ", ".join(t for t in (text, chunk) if t)


def race_table(row: Row) -> str:
    """One table: seconds, spread, true error, verdict and ratio of every tool."""
    lines = [f"### {row.title}", "", f"Accuracy asked: {row.accuracy}.", ""]
    lines += ["| tool | seconds | fastest … slowest | true error | setting | verdict |", "|---|---|---|---|---|---|"]
    for tool in row.tools:
        span = f"{min(tool.seconds):.3g} … {max(tool.seconds):.3g}" if len(tool.seconds) > 1 else "–"
        if tool.who.startswith("ours"):
            value, peer = ratio(tool, row.tools)
            verdict = f"**{value:.2f}×** against {peer}" if peer else "no peer is correct"
            verdict = verdict if tool.correct else f"not correct: {tool.reason}"
        else:
            verdict = "correct" if tool.correct else f"not correct: {tool.reason}"
        cells = [tool.who, _number(tool.median), span, _number(tool.error, 2), _setting(tool), verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def product_table(row: Row) -> str:
    """Products in units of gradients at our chunk size; two are the floor: 6 units of work against 3."""
    unit = row.tools[0].median
    lines = [f"### {row.title}", "", f"The floor, two gradients: {_number(2e3 * unit)} ms.", ""]
    lines += ["| | milliseconds | gradients | relative error | setting |", "|---|---|---|---|---|"]
    for tool in row.tools:
        cells = [tool.who, _number(1e3 * tool.median), f"{tool.median / unit:.2f}", _number(tool.error, 2)]
        note = _setting(tool) if tool.correct else tool.reason or f"{_setting(tool)}: wrong"
        lines.append(f"| {' | '.join([*cells, note])} |")
    return "\n".join([*lines, ""])


def slice_table(name: str, parameters: int, points: int, rows: Sequence[Timed]) -> str:
    """One plane of points: seconds, and how far the cell at the centre is from the loss."""
    lines = [f"### plane of {points} × {points} points, {name} ({parameters:,} parameters)", ""]
    lines += ["Directions, self-check and choice of chunks included; peers at their best chunk, told to them.", ""]
    lines += [
        "| tool | seconds | fastest … slowest | error at the centre | setting | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for tool in rows:
        if tool.who.startswith("ours"):
            value, peer = ratio(tool, rows)
            verdict = f"**{value:.2f}×** against {peer}" if peer else "no peer is correct"
        else:
            verdict = "correct" if tool.correct else "not correct: the checkpoint is not on its grid"
        span = f"{min(tool.seconds):.3g} … {max(tool.seconds):.3g}"
        cells = [tool.who, _number(tool.median), span, _number(tool.error, 2), _setting(tool), verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """Peak memory with and without a limit."""
    lines = ["### Memory", "", "`spectrum(..., top=5, bottom=5, density=False)` in a process of its own, float32.", ""]
    lines += [
        "| limit | peak resident set | parameters | products | basis held | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.limit or 'none'} | {row.error} | | | | |")
            continue
        held = "" if row.limit is None else (" (holds)" if row.peak * 1e9 <= _bytes(row.limit) else " (**exceeded**)")
        cells = [row.limit or "none", f"{row.peak:.2f} GB{held}", f"{row.parameters:,}", str(row.products), row.basis]
        lines.append(f"| {' | '.join([*cells, _number(row.seconds)])} |")
    return "\n".join([*lines, ""])


def _bytes(limit: str) -> int:
    from landscape.settings import parse_bytes

    return parse_bytes(limit)


def write(path: Path, parts: Sequence[str]) -> None:
    path.write_text("\n".join([INTRODUCTION, *parts]).rstrip() + "\n")
