"""What `landscape descend` shows: one JSON object a line, or tables for people at 80 columns."""

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
from landscape.points.certificate import Certificate
from landscape.points.results import Descended
from landscape.results.fields import Interval


def descend_json(shown: Shown[Descended]) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN and Inf are None."""
    r, p = shown.result, shown.provenance
    report = {
        "checkpoint": p.checkpoint,
        "sha256": p.sha256,
        "coordinates": dict(p.coordinates),
        "parameters": r.parameters,
        "samples": r.samples,
        "to": r.to,
        "method": r.method,
        "verdict": r.verdict,
        "reason": r.reason,
        "certificate": certificate_json(r.certificate),
        "loss": {"before": r.loss_before, "after": r.loss},
        "steps": r.steps,
        "stopped": r.stopped,
        "products": p.products,
        "device": p.device,
        "seconds": p.seconds,
        "notes": list(p.notes),
        "written": str(shown.path.with_suffix(".pt")),
        "result": str(shown.path),
    }
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def print_json(shown: Shown[Descended]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(descend_json(shown), allow_nan=False) + "\n")
    sys.stdout.flush()


def warn(shown: Shown[Descended]) -> None:
    """A `warning:` line for a point that is no answer to what was asked."""
    r = shown.result
    label = shown.provenance.checkpoint
    for note in r.spent.notes if r.spent else ():
        print_warning(f"{label}: {note}")
    if r.verdict in ("not stationary", "unresolved"):
        more = "raise --steps" if r.stopped in ("steps", "slow") else "see the reason in the table or the JSON"
        more = "raise --max-products" if r.verdict == "unresolved" else more
        print_warning(f"{label}: {r.verdict} ({r.reason}); {more}")
    if not r.certificate.full_data:
        print_warning(f"{label}: certified for the {r.samples} samples used, not for all data")


def print_one(shown: Shown[Descended]) -> None:
    """All there is to say about one checkpoint."""
    r, p = shown.result, shown.provenance
    stdout.print(p.checkpoint, soft_wrap=True)
    stdout.print(f"  {r.verdict}: {r.reason}", soft_wrap=True)
    stdout.print(f"  {r.parameters:,} parameters, {r.samples:,} samples, {p.dtype} on {p.device}")
    stdout.print(f"  {r.steps} iterations of {r.method} ({r.stopped}), {p.seconds:.1f} s")
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(r):
        table.add_row(name, text)
    stdout.print(table)
    stdout.print(f"  written to {shown.path.with_suffix('.pt')}", soft_wrap=True)
    stdout.print(f"  and {shown.path}", soft_wrap=True)


def _rows(r: Descended) -> list[tuple[str, str]]:
    c = r.certificate
    named = ", ".join(f"{k} {name}" for name, k in c.symmetries.items())
    rows = [
        ("loss", f"{r.loss_before:.9g} -> {r.loss:.9g}"),
        ("max |gradient|", f"{c.gradient_inf:.2e} (rounding {c.gradient_rounding:.0e})"),
        ("lowest eigenvalue", _interval(c.lambda_min)),
        ("largest |eigenvalue|", f"{c.lambda_max:.6g}"),
        ("negative eigenvalues", f"{c.negative}{'' if c.exact else ' or more'} below -{c.tau:g} of that"),
        ("zero eigenvalues", ", ".join(f"{k} at {tau}" for tau, k in c.zeros.items()) or "not counted (Lanczos)"),
        ("explained by symmetry", named or "none"),
        ("norm of parameters", f"{c.parameter_norm:.4g}{_growth(c)}"),
    ]
    if named:
        rows.insert(3, ("  beyond symmetries", _interval(c.lambda_min_beyond)))
    pulled = c.gradient_pull > 0
    if pulled:
        rows.insert(2, ("|gradient| / data's pull", f"{c.gradient_norm / c.gradient_pull:.1e} (stationary: 1e-08)"))
    if c.kinks is not None:
        rows.append(("activations at a kink", f"{c.kinks.count:,}"))
    if math.isfinite(c.newton_decrement):
        rows.insert(3 if pulled else 2, ("Newton decrement", f"{c.newton_decrement:.2e}"))
    if c.pair is not None:
        rows.append(("merging neurons", f"distance {c.pair.distance:.2g}, opposition {c.pair.opposition:.3g}"))
    return rows


def _interval(found: Interval) -> str:
    return f"{found.value:.6g}  [{found.low:.6g}, {found.high:.6g}]"


def _growth(c: Certificate) -> str:
    grown = math.isfinite(c.norm_growth) and c.norm_growth > 0.005
    return f", {100 * c.norm_growth:.0f} % gained in the second half" if grown else ""


def print_many(shown: list[Shown[Descended]]) -> None:
    """One row per checkpoint, and how often each verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("checkpoint", overflow="fold", min_width=10)
    table.add_column("verdict", no_wrap=True)
    for title in ("loss", "max |g|", "lowest", "largest", "steps"):
        table.add_column(title, justify="right", no_wrap=True)
    for one, name in zip(shown, short_names([s.provenance.checkpoint for s in shown]), strict=True):
        r = one.result
        c = r.certificate
        beyond = c.lambda_min_beyond
        lowest = bracketed(beyond.value, beyond.low, beyond.high)
        numbers = (f"{r.loss:.4g}", f"{c.gradient_inf:.0e}", lowest, f"{c.lambda_max:.3g}")
        table.add_row(name, r.verdict, *numbers, str(r.steps))
    stdout.print(table)
    counts = Counter(one.result.verdict for one in shown)
    stdout.print("verdicts: " + ", ".join(f"{k} {name}" for name, k in counts.most_common()), soft_wrap=True)
    stdout.print("lowest: of the eigenvalues beyond the zero modes of named symmetries.")
    stdout.print(f"eigenvalues {BRACKETS}")
    stdout.print(f"{len(shown)} checkpoints written, the first is {shown[0].path.with_suffix('.pt')}", soft_wrap=True)
