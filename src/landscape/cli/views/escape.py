"""What `landscape escape` shows: one JSON object a line, or tables for people at 80 columns."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from landscape.checkpoints.find import short_names
from landscape.cli.loop import Shown
from landscape.cli.terminal import plain, print_warning, stdout
from landscape.cli.views.certificate import certificate_json
from landscape.cli.views.spectrum import BRACKETS, bracketed
from landscape.points.results import Escaped


def escape_json(shown: Shown[Escaped]) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN and Inf are None."""
    r, p = shown.result, shown.provenance
    report = {
        "checkpoint": p.checkpoint,
        "sha256": p.sha256,
        "coordinates": dict(p.coordinates),
        "parameters": r.parameters,
        "samples": r.samples,
        "verdict": r.verdict,
        "reason": r.reason,
        "certificate": certificate_json(r.certificate),
        "direction": {
            "value": r.direction_value,
            "residual": r.direction_residual,
            "gradient_overlap": r.gradient_overlap,
        },
        "loss": {"before": r.loss, "after": r.loss_after},
        "gradient_gain": r.gradient_gain,
        "path": [_side(r, i) for i in range(len(r.side))],
        "end": {"verdict": r.end_verdict} if r.followed else None,
        "controls": None if r.control_loss is None else _controls(r),
        "products": p.products,
        "device": p.device,
        "seconds": p.seconds,
        "notes": list(p.notes),
        "written": str(shown.path.with_suffix(".pt")) if r.followed else None,
        "result": str(shown.path),
    }
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _side(r: Escaped, i: int) -> dict[str, Any]:
    return {
        "side": str(r.side[i]),
        "step": float(r.side_step[i]),
        "gain": float(r.side_gain[i]),
        "loss": float(r.side_loss[i]),
        "verdict": str(r.side_verdict[i]) or None,
        "lambda_min": {
            "value": float(r.side_lambda_min.value[i]),
            "low": float(r.side_lambda_min.low[i]),
            "high": float(r.side_lambda_min.high[i]),
        },
        "gradient_inf": float(r.side_gradient_inf[i]),
        "parameter_norm": float(r.side_norm[i]),
    }


def _controls(r: Escaped) -> list[dict[str, Any]]:
    assert r.control_loss is not None
    assert r.control_verdict is not None
    return [{"loss": float(x), "verdict": str(v)} for x, v in zip(r.control_loss, r.control_verdict, strict=True)]


def print_json(shown: Shown[Escaped]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(escape_json(shown), allow_nan=False) + "\n")
    sys.stdout.flush()


def warn(shown: Shown[Escaped]) -> None:
    """A `warning:` line for what the user should not overlook."""
    r, label = shown.result, shown.provenance.checkpoint
    for note in r.spent.notes if r.spent else ():
        print_warning(f"{label}: {note}")
    if r.verdict == "not stationary":
        print_warning(f"{label}: not a critical point ({r.reason}); --descend goes to one first")
    if r.verdict == "unresolved":
        print_warning(f"{label}: unresolved ({r.reason}); raise --max-products")
    if not r.certificate.full_data:
        print_warning(f"{label}: for the {r.samples} samples used, not for all data")


def print_one(shown: Shown[Escaped]) -> None:
    """All there is to say about one checkpoint."""
    r, p = shown.result, shown.provenance
    stdout.print(p.checkpoint, soft_wrap=True)
    stdout.print(f"  {r.verdict}: {r.reason}", soft_wrap=True)
    stdout.print(f"  {r.parameters:,} parameters, {r.samples:,} samples, {p.dtype} on {p.device}, {p.seconds:.1f} s")
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(r):
        table.add_row(*row)
    stdout.print(table)
    stdout.print(_side_table(r))
    if r.control_loss is not None:
        losses = sorted(float(x) for x in r.control_loss)
        words = f"{losses[0]:.5g} lowest, {losses[len(losses) // 2]:.5g} median"
        stdout.print(f"  {len(losses)} random kicks as long: loss {words}")
    if r.followed:
        stdout.print(f"  written to {shown.path.with_suffix('.pt')}", soft_wrap=True)
    stdout.print(f"  {'and' if r.followed else 'written to'} {shown.path}", soft_wrap=True)


def _rows(r: Escaped) -> list[tuple[str, str]]:
    c, lowest = r.certificate, r.certificate.lambda_min
    overlap = "" if math.isnan(r.gradient_overlap) else f", {100 * r.gradient_overlap:.2g} % of the gradient"
    rows = [
        ("loss", f"{r.loss:.9g} -> {r.loss_after:.9g}"),
        ("max |gradient|", f"{c.gradient_inf:.2e} (rounding {c.gradient_rounding:.0e})"),
        ("lowest eigenvalue", f"{lowest.value:.6g}  [{lowest.low:.6g}, {lowest.high:.6g}]"),
        ("largest |eigenvalue|", f"{c.lambda_max:.6g}"),
        ("direction", f"curvature {r.direction_value:.6g}, residual {r.direction_residual:.1e}{overlap}"),
    ]
    if not math.isnan(r.gradient_gain):
        gain = float(r.side_gain.max())
        rows.append(("best step gains", f"{gain:.4g}; a gradient step as long {r.gradient_gain:.4g}"))
    return rows


def _side_table(r: Escaped) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("side", no_wrap=True, min_width=4)
    for title in ("step", "gain", "reached", "lowest", "norm"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    for i in range(len(r.side)):
        numbers = (r.side_step[i], r.side_gain[i], r.side_loss[i], r.side_norm[i])
        step, gain, reached, norm = ("-" if math.isnan(x) else f"{x:.3g}" for x in numbers)
        ends = r.side_lambda_min
        lowest = bracketed(ends.value[i], ends.low[i], ends.high[i])
        table.add_row(str(r.side[i]), step, gain, reached, lowest, norm, str(r.side_verdict[i]))
    return table


def print_many(shown: list[Shown[Escaped]]) -> None:
    """One row per checkpoint."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("checkpoint", overflow="fold", min_width=10)
    table.add_column("verdict", no_wrap=True)
    for title in ("loss", "after", "max |g|", "lowest"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for one, name in zip(shown, short_names([s.provenance.checkpoint for s in shown]), strict=True):
        r = one.result
        c = r.certificate
        lowest = bracketed(c.lambda_min.value, c.lambda_min.low, c.lambda_min.high)
        numbers = (f"{r.loss:.4g}", f"{r.loss_after:.4g}", f"{c.gradient_inf:.0e}", lowest)
        table.add_row(name, r.verdict, *numbers, r.end_verdict or "-")
    stdout.print(table)
    counts = Counter(one.result.verdict for one in shown)
    stdout.print(f"eigenvalues {BRACKETS}")
    stdout.print("verdicts: " + ", ".join(f"{k} {name}" for name, k in counts.most_common()), soft_wrap=True)
    stdout.print(f"{len(shown)} result files, the first is {shown[0].path}", soft_wrap=True)
