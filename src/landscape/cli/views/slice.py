"""What `landscape slice` shows: one JSON object a line, or tables for people at 80 columns."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from landscape.checkpoints.find import short_names
from landscape.cli.loop import Shown
from landscape.cli.terminal import plain, print_warning, stdout
from landscape.slices.result import Sliced

METRICS = ("accuracy", "gradient_norm", "lambda_max", "lambda_min")


def slice_json(shown: Shown[Sliced]) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN and Inf are None."""
    r, p = shown.result, shown.provenance
    report = {
        "checkpoint": p.checkpoint,
        "sha256": p.sha256,
        "coordinates": dict(p.coordinates),
        "parameters": r.parameters,
        "samples": r.samples,
        "directions": r.directions,
        "axes": [_axis(r, i) for i in range(len(r.direction))],
        "cosine": r.cosine,
        "shape": [len(r.y), len(r.x)],
        "planes": 1 if r.plane_loss is None else len(r.plane_loss),
        "loss": {"centre": r.loss_centre, "min": _least(r.loss), "max": _most(r.loss)},
        "not_finite": int((~np.isfinite(r.loss) & r.done).sum()),
        "metrics": {name: {"min": _least(v), "max": _most(v)} for name, v in _metrics(r)},
        "self_check": {
            "centre_error": abs(r.loss_centre - r.loss_reference),
            "slope_error": r.slope_error,
            "curvature_error": r.curvature_error,
            "slope_tolerance": float(r.slope_tolerance.max()),
            "curvature_tolerance": float(r.curvature_tolerance.max()),
            "faults": r.faults,
        },
        "marks": _marks(r),
        "barrier": None if r.barrier is None else {"low": r.barrier, "at": r.barrier_at},
        "batchnorm": r.batchnorm,
        "strategy": r.strategy,
        "chunk": p.plan.get("chunk"),
        "dtype": p.dtype,
        "device": p.device,
        "seconds": p.seconds,
        "notes": list(p.notes),
        "result": str(shown.path),
    }
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _axis(r: Sliced, i: int) -> dict[str, Any]:
    axis = (r.x, r.y)[i]
    return {
        "direction": str(r.direction[i]),
        "norm": float(r.direction_norm[i]),
        "low": float(axis[0]),
        "high": float(axis[-1]),
        "slope": float(r.slope[i]),
        "curvature": float(r.curvature[i]),
        "variance_explained": None if r.variance_explained is None else float(r.variance_explained[i]),
    }


def _marks(r: Sliced) -> list[dict[str, Any]]:
    if r.mark is None:
        return []
    columns = (r.mark, r.mark_x, r.mark_y, r.mark_distance, r.mark_loss, r.mark_surface_loss)
    names = ("checkpoint", "x", "y", "distance", "loss", "surface_loss")
    rows = zip(*(c for c in columns if c is not None), strict=True)
    return [{n: str(v) if n == "checkpoint" else float(v) for n, v in zip(names, row, strict=True)} for row in rows]


def _metrics(r: Sliced) -> list[tuple[str, np.ndarray]]:
    found = ((name, getattr(r, name)) for name in METRICS)
    return [(name, values) for name, values in found if values is not None]


def _least(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else math.nan


def _most(values: np.ndarray) -> float:
    """The largest finite value; how many are not finite is said beside it."""
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else math.nan


def print_json(shown: Shown[Sliced]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(slice_json(shown), allow_nan=False) + "\n")
    sys.stdout.flush()


def warn(shown: Shown[Sliced]) -> None:
    """A `warning:` line for what the user should not overlook."""
    r, label = shown.result, shown.provenance.checkpoint
    for fault in r.faults:
        print_warning(f"{label}: the surface fails its self-check: {fault}")
    for note in r.spent.notes if r.spent else ():
        print_warning(f"{label}: {note}")
    holes = int((~np.isfinite(r.loss) & r.done).sum())
    if holes:
        print_warning(f"{label}: the loss is not finite in {holes} of {r.loss.size} cells")


def print_one(shown: Shown[Sliced]) -> None:
    """All there is to say about one checkpoint."""
    r, p = shown.result, shown.provenance
    stdout.print(p.checkpoint, soft_wrap=True)
    size = " x ".join(str(n) for n in ((len(r.x),) if r.line else (len(r.x), len(r.y))))
    planes = "" if r.plane_loss is None else f" in {len(r.plane_loss)} planes"
    how = f"{p.dtype} on {p.device}, {p.seconds:.1f} s"
    stdout.print(f"  {size} points{planes}, {r.parameters:,} parameters, {r.samples:,} samples, {how}")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("axis", overflow="fold", min_width=24)
    for title in ("from", "to", "length", "slope", "curvature"):
        table.add_column(title, justify="right", no_wrap=True)
    for i in range(len(r.direction)):
        axis = (r.x, r.y)[i]
        numbers = (axis[0], axis[-1], r.direction_norm[i], r.slope[i], r.curvature[i])
        table.add_row(f"{'xy'[i]}: {r.direction[i]}", *(f"{x:.4g}" for x in numbers))
    stdout.print(table)
    stdout.print(f"  loss {r.loss_centre:.6g} at the centre, {_least(r.loss):.6g} to {_most(r.loss):.6g} on the slice")
    for name, values in _metrics(r):
        stdout.print(f"  {name.replace('_', ' ')} {_least(values):.6g} to {_most(values):.6g}{_residual(r, name)}")
    stdout.print(f"  self-check: {_check(r)}")
    if not r.line:
        angle = math.degrees(math.acos(max(-1.0, min(1.0, r.cosine))))
        stdout.print(f"  the directions stand at {angle:.5g} degrees")
    if r.barrier is not None:
        stdout.print(f"  barrier at least {r.barrier:.4g}, at x = {r.barrier_at:.3g}")
    if r.mark is not None:
        stdout.print(_mark_table(r))
    stdout.print(f"  written to {shown.path}", soft_wrap=True)


def _residual(r: Sliced, name: str) -> str:
    residual = getattr(r, f"{name}_residual", None)
    return "" if residual is None else f" (each ± {_most(residual):.1g} at most)"


def _check(r: Sliced) -> str:
    if r.faults:
        return "FAILED, see the warnings"
    curved = f"curvature {r.curvature_error:.0e}"
    if not np.isfinite(r.curvature_tolerance).all():
        curved = "curvature not comparable (the network has kinks)"
    return f"passed; centre off by {abs(r.loss_centre - r.loss_reference):.0e}, slope {r.slope_error:.0e}, {curved}"


def _mark_table(r: Sliced) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("checkpoint", overflow="fold", min_width=10)
    for title in ("x", "y", "distance", "loss", "of surface"):
        table.add_column(title, justify="right", no_wrap=True)
    for mark in _marks(r):
        numbers = (mark[n] for n in ("x", "y", "distance", "loss", "surface_loss"))
        table.add_row(mark["checkpoint"], *(f"{x:.4g}" for x in numbers))
    return table


def print_many(shown: list[Shown[Sliced]]) -> None:
    """One row per checkpoint."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("checkpoint", overflow="fold", min_width=10)
    for title in ("centre", "lowest", "highest", "curvature", "self-check"):
        table.add_column(title, justify="right", no_wrap=True)
    for one, name in zip(shown, short_names([s.provenance.checkpoint for s in shown]), strict=True):
        r = one.result
        curved = " ".join(f"{k:.3g}" for k in r.curvature)
        cells = (f"{r.loss_centre:.4g}", f"{_least(r.loss):.4g}", f"{_most(r.loss):.4g}", curved)
        table.add_row(name, *cells, "failed" if r.faults else "passed")
    stdout.print(table)
    stdout.print(f"{len(shown)} result files, the first is {shown[0].path}", soft_wrap=True)
