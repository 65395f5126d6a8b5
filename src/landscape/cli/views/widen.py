"""What `landscape widen` shows: one JSON object a line, or tables for people at 80 columns."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from landscape.checkpoints.find import short_names
from landscape.cli.loop import Shown
from landscape.cli.terminal import plain, print_warning, stdout
from landscape.cli.views.spectrum import concise
from landscape.widening.result import Widened


def widen_json(shown: Shown[Widened]) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN and Inf are None."""
    r, p, c = shown.result, shown.provenance, shown.result.certificate
    report = {
        "checkpoint": p.checkpoint,
        "sha256": p.sha256,
        "coordinates": dict(p.coordinates),
        "layer": r.layer,
        "next": r.following,
        "parameters": r.parameters,
        "samples": r.samples,
        "full_data": c.full_data,
        "loss": r.loss,
        "point": {"verdict": r.point_verdict, "gradient_inf": c.gradient_inf, "critical": bool(r.critical)},
        "narrow": {
            "negative": c.negative,
            "zero": int(r.narrow_zero),
            "lambda_min": asdict(c.lambda_min),
            "lambda_max": c.lambda_max,
        },
        "reason": r.reason or None,
        "splits": [_split(r, i) for i in range(len(r.split))],
        "seconds": p.seconds,
        "device": p.device,
        "notes": list(p.notes),
        "result": str(shown.path),
    }
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _split(r: Widened, i: int) -> dict[str, Any]:
    predicted = None
    if r.predicted_negative is not None and r.predicted_zero is not None:
        predicted = {"negative": int(r.predicted_negative[i]), "zero": int(r.predicted_zero[i])}
    found: dict[str, Any] = {
        "neuron": int(r.neuron[i]),
        "mu": [float(s) for s in r.share[i] if not math.isnan(s)],
        "predicted": predicted,
        "measured": {"negative": int(r.measured_negative[i]), "zero": int(r.measured_zero[i])},
        "lambda_min": float(r.lambda_min[i]),
        "lambda_error": float(r.lambda_error[i]),
        "lambda_bound": float(r.lambda_bound[i]),
        "inner_eigenvalues": [float(x) for x in r.inner_eigenvalue[i]],
        "gradient_inf": float(r.wide_gradient_inf[i]),
        "escape": None,
    }
    if r.escape_loss is not None and r.escape_verdict is not None and not math.isnan(r.escape_loss[i]):
        assert r.side_loss is not None
        assert r.side_verdict is not None
        sides = zip(r.side_loss[i], r.side_verdict[i], strict=True)
        found["escape"] = {
            "verdict": str(r.escape_verdict[i]),
            "loss": float(r.escape_loss[i]),
            "sides": [{"loss": float(x), "verdict": str(v)} for x, v in sides],
        }
        if r.control_loss is not None and r.narrow_control_loss is not None:
            found["escape"]["controls"] = {
                "wide": [float(x) for x in r.control_loss[i]],
                "narrow": [float(x) for x in r.narrow_control_loss[i]],
            }
    return found


def print_json(shown: Shown[Widened]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(widen_json(shown), allow_nan=False) + "\n")
    sys.stdout.flush()


def warn(shown: Shown[Widened]) -> None:
    """A `warning:` line where theory says nothing, or is contradicted by what was measured."""
    r, label = shown.result, shown.provenance.checkpoint
    for note in r.spent.notes if r.spent else ():
        print_warning(f"{label}: {note}")
    if not r.certificate.full_data:
        print_warning(f"{label}: counts and losses are for the {r.samples} samples used, not for all data")
    if r.reason:
        print_warning(f"{label}: {r.reason}; `landscape descend` goes to a critical point first")
    elif mismatched(r):
        print_warning(
            f"{label}: {mismatched(r)} of {len(r.split)} splits have another inertia than foretold; eigenvalues near "
            "--tau, or a point that is not converged, may be why"
        )


def mismatched(r: Widened) -> int:
    """Splits whose inertia is not the one foretold."""
    if r.predicted_negative is None or r.predicted_zero is None:
        return 0
    return int(np.sum((r.predicted_negative != r.measured_negative) | (r.predicted_zero != r.measured_zero)))


def print_one(shown: Shown[Widened]) -> None:
    """All there is to say about one checkpoint."""
    r, p, c = shown.result, shown.provenance, shown.result.certificate
    stdout.print(p.checkpoint, soft_wrap=True)
    where = f"{r.point_verdict} at loss {r.loss:.9g}, max |gradient| {c.gradient_inf:.1e}"
    stdout.print(f"  {where}, {r.parameters:,} parameters")
    lowest = f"{c.lambda_min.value:.4g} [{c.lambda_min.low:.4g}, {c.lambda_min.high:.4g}]"
    stdout.print(f"  {c.negative} negative and {r.narrow_zero} zero eigenvalues; lowest {lowest}")
    stdout.print(f"  neurons of {r.layer!r}, read by {r.following!r}, split")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("neuron: shares", overflow="fold", min_width=15)
    for title in ("negative", "zero", "lowest eig."):
        table.add_column(title, justify="right", no_wrap=True)
    if r.followed:
        table.add_column("way out", no_wrap=True)
        table.add_column("loss", justify="right", no_wrap=True)
    for i in range(len(r.split)):
        table.add_row(*_row(r, i))
    stdout.print(table)
    stdout.print("  negative, zero: eigenvalues foretold / found")
    if not r.reason:
        right = len(r.split) - mismatched(r)
        stdout.print(f"  inertia as foretold in {right} of {len(r.split)} splits (a theorem: a check of this program)")
    if r.control_loss is not None and r.narrow_control_loss is not None and np.isfinite(r.control_loss).any():
        wide, narrow = (float(np.nanmedian(x)) for x in (r.control_loss, r.narrow_control_loss))
        stdout.print(f"  random kicks as long, median loss: {wide:.4g} in the wide network, {narrow:.4g} narrow")
    stdout.print(f"  written to {shown.path}", soft_wrap=True)


def _row(r: Widened, i: int) -> list[str]:
    def foretold(counts: np.ndarray | None) -> str:
        return "-" if counts is None else str(counts[i])

    row = [
        str(r.split[i]),
        f"{foretold(r.predicted_negative)} / {r.measured_negative[i]}",
        f"{foretold(r.predicted_zero)} / {r.measured_zero[i]}",
        _lowest(r, i),
    ]
    if r.followed and r.escape_loss is not None and r.escape_verdict is not None:
        loss = float(r.escape_loss[i])
        row += ["none", "-"] if math.isnan(loss) else [str(r.escape_verdict[i]), f"{loss:.4g}"]
    return row


def _lowest(r: Widened, i: int) -> str:
    """The lowest eigenvalue of a split with its error in the last digit; 0 within that error."""
    value, error = float(r.lambda_min[i]), float(r.lambda_error[i])
    return concise(value, error) if abs(value) > error else "0"


def print_many(shown: list[Shown[Widened]]) -> None:
    """One row per checkpoint: splits that open a way down, and those as foretold; λ_min is 0 within its error."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("checkpoint", overflow="fold", min_width=10)
    table.add_column("point", no_wrap=True)
    for title in ("loss", "open, as foretold", "λ_min", "loss after"):
        table.add_column(title, justify="right", no_wrap=True)
    for one, name in zip(shown, short_names([s.provenance.checkpoint for s in shown]), strict=True):
        r = one.result
        total, opened = len(r.split), int((r.measured_negative > r.certificate.negative).sum())
        right = "-" if r.reason else f"{total - mismatched(r)}"
        after = "-"
        if r.escape_loss is not None and np.isfinite(r.escape_loss).any():
            after = f"{np.nanmin(r.escape_loss):.3g}"
        least = _lowest(r, int(r.lambda_min.argmin()))
        cells = (f"{r.loss:.4g}", f"{opened}, {right} of {total}", least, after)
        table.add_row(name, r.point_verdict, *cells)
    stdout.print(table)
    stdout.print("λ_min: 0.123(4): ± 0.004; no brackets: ± 1e-7 of it; 0: within its error.")
    stdout.print(f"{len(shown)} result files, the first is {shown[0].path}", soft_wrap=True)
