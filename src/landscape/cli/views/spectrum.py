"""What `landscape spectrum` shows: one JSON object a line, or tables for people at 80 columns."""

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
from landscape.results.fields import Spectrum

# How tables give eigenvalues from dense Hessians.
BRACKETS = "0.123(4): ± 0.004; no brackets: ± 1e-7 of it; [a, b]: between."
# Said where a few samples make an estimate over all data.
NOT_ENOUGH = "not enough samples to say: a few of them weigh too much"
# Pairs shown on a terminal; the file and the JSON have all of them.
MOST_ROWS = 10


def spectrum_json(shown: Shown[Spectrum]) -> dict[str, Any]:
    """The JSON object of `docs/cli.md`; NaN and Inf are None."""
    r, p = shown.result, shown.provenance
    by_tau = [_negative(r, i) for i in range(len(r.tau))]
    report: dict[str, Any] = {
        "checkpoint": p.checkpoint,
        "sha256": p.sha256,
        "coordinates": dict(p.coordinates),
        "parameters": r.parameters,
        "samples": r.samples,
        "operator": r.operator,
        "loss": r.loss,
        "gradient_norm": r.gradient_norm,
        "top": _pairs(r.top_value, r.top_residual, r.top_converged, r.top_complete),
        "bottom": _pairs(r.bottom_value, r.bottom_residual, r.bottom_converged, r.bottom_complete),
        "trace": {"value": r.trace, "low": r.trace_low, "high": r.trace_high},
        "negative": {
            **by_tau[0],
            "excluded": {"below": r.excluded_below, "probability": r.excluded_probability},
        },
        "negative_by_tau": {f"{tau:g}": one for tau, one in zip(r.tau, by_tau, strict=True)},
        "exact": bool(r.exact),
        "product_error": r.product_error,
        "products": p.products,
        "strategy": r.strategy,
        "plan": dict(p.plan),
        "dtype": p.dtype,
        "device": p.device,
        "seconds": p.seconds,
        "notes": list(p.notes),
        "result": str(shown.path),
    }
    if r.layer is not None:
        report["layers"] = _layers(r)
    if r.data_samples is not None:
        report["sampling"] = _sampling(r)
    cleaned = plain(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _pairs(
    values: np.ndarray, residuals: np.ndarray, converged: np.ndarray, complete: np.ndarray | None
) -> list[dict[str, Any]]:
    """`complete` is null of results that do not say it."""
    said = [None] * len(values) if complete is None else [bool(c) for c in complete]
    rows = zip(values, residuals, converged, said, strict=True)
    return [{"value": float(v), "residual": float(r), "converged": bool(c), "complete": s} for v, r, c, s in rows]


def _negative(r: Spectrum, i: int) -> dict[str, Any]:
    exact = None if r.negative_count_exact is None else float(r.negative_count_exact[i])
    count = {
        "low": int(r.negative_count_low[i]),
        "high": int(r.negative_count_high[i]),
        "exact": None if exact is None or math.isnan(exact) else int(exact),
    }
    mass = {k: float(v[i]) for k, v in _masses(r).items()}
    return {"tau": float(r.tau_absolute[i]), "count": count, "mass": mass}


def _masses(r: Spectrum) -> dict[str, np.ndarray]:
    return {"value": r.negative_mass, "low": r.negative_mass_low, "high": r.negative_mass_high}


def _layers(r: Spectrum) -> list[dict[str, Any]]:
    assert r.layer is not None
    columns = {
        "parameters": r.layer_parameters,
        "top": r.layer_top,
        "top_residual": r.layer_top_residual,
        "bottom": r.layer_bottom,
        "bottom_residual": r.layer_bottom_residual,
        "trace": r.layer_trace,
        "trace_low": r.layer_trace_low,
        "trace_high": r.layer_trace_high,
    }
    rows = range(len(r.layer))
    return [{"layer": str(r.layer[i]), **{k: v[i].item() for k, v in columns.items() if v is not None}} for i in rows]


def _sampling(r: Spectrum) -> dict[str, Any]:
    return {
        "data_samples": r.data_samples,
        **{
            name: {
                "low": getattr(r, f"sampling_{name}_low"),
                "high": getattr(r, f"sampling_{name}_high"),
                "needed": getattr(r, f"sampling_{name}_needed"),
            }
            for name in ("top", "bottom", "trace")
        },
    }


def print_json(shown: Shown[Spectrum]) -> None:
    """One object on one line of stdout."""
    sys.stdout.write(json.dumps(spectrum_json(shown), allow_nan=False) + "\n")
    sys.stdout.flush()


def concise(value: float, error: float) -> str:
    """A value with its uncertainty in the last digits, 3.3617(2); '~' where the error is as large as the value."""
    if not math.isfinite(value):
        return "-"
    if not math.isfinite(error):
        return f"{value:.3g}(?)"
    if error <= 0 or (value != 0 and error < 1e-7 * abs(value)):
        return f"{value:.6g}"
    if error >= abs(value):
        return f"{value:.2g}±{error:.1g}"
    digits = min(6, max(0, math.floor(math.log10(abs(value))) - math.floor(math.log10(error))))
    exponent = math.floor(math.log10(abs(value)))
    step = 10.0 ** (exponent - digits)
    last = max(1, math.ceil(error / step - 1e-9))
    if -4 <= exponent < 5:
        return f"{value:.{max(0, digits - exponent)}f}({last if exponent <= digits else math.ceil(error)})"
    mantissa, _, power = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}({last})e{int(power)}"


def bracketed(value: float, low: float, high: float) -> str:
    """A value in the middle of a narrow interval, as 3.3617(2); else the interval itself."""
    above, below = high - value, value - low
    error = max(above, below)
    if (
        not math.isfinite(value)
        or error < 1e-7 * abs(value)
        or (error < abs(value) and min(above, below) > 0.5 * error)
    ):
        return concise(value, error)
    return f"[{low:.3g}, {high:.3g}]"


def _count(r: Spectrum, i: int) -> str:
    low, high = int(r.negative_count_low[i]), int(r.negative_count_high[i])
    return str(low) if low == high else f"{low}..{high}"


def _mass(r: Spectrum, i: int) -> str:
    low, high = float(r.negative_mass_low[i]), float(r.negative_mass_high[i])
    if math.isnan(float(r.negative_mass[i])):
        return "not estimated"
    return f"{100 * r.negative_mass[i]:.3g} % [{100 * low:.3g}, {100 * high:.3g}]"


def warn(shown: Shown[Spectrum]) -> None:
    """A `warning:` line for everything that the user should not overlook."""
    result, label, asked_for = shown.result, shown.provenance.checkpoint, shown.provenance.settings
    ends = (
        ("largest", result.top_converged, asked_for["top"]),
        ("smallest", result.bottom_converged, asked_for["bottom"]),
    )
    for end, converged, asked in ends:
        missing = int((~converged.astype(bool)).sum())
        if len(converged) < min(asked, result.parameters):
            print_warning(
                f"{label}: {len(converged)} of the {asked} {end} eigenvalues were seen before the products were spent; "
                "raise --max-products"
            )
        if missing:
            print_warning(
                f"{label}: {missing} of the {len(converged)} {end} eigenvalues have not converged; "
                "raise --max-products or --rtol, or use --precision float64"
            )
    for note in result.spent.notes if result.spent else ():
        print_warning(f"{label}: {note}")


def print_one(shown: Shown[Spectrum]) -> None:
    """All there is to say about one checkpoint."""
    r, p = shown.result, shown.provenance
    how = "exact (dense float64)" if r.exact else f"{p.products} products, {r.strategy}, {p.dtype}"
    stdout.print(p.checkpoint, soft_wrap=True)
    stdout.print(f"  {r.operator}, {r.parameters:,} parameters, {r.samples:,} samples")
    stdout.print(f"  {how}, {p.seconds:.1f} s on {p.device}")
    if not r.exact:
        stdout.print(f"  plan: {_plan(dict(p.plan))}", soft_wrap=True)
    stdout.print(f"  loss {r.loss:.6g}   |gradient| {r.gradient_norm:.3g}")
    stdout.print(_pair_table(r))
    half = (r.trace_high - r.trace_low) / 2
    ends = f"[{r.trace_low:.5g}, {r.trace_high:.5g}]" if math.isfinite(half) else NOT_ENOUGH
    stdout.print(f"  trace      {concise(r.trace, half)}   {ends}")
    for i, tau in enumerate(r.tau):
        stdout.print(
            f"  below -{r.tau_absolute[i]:.2g} (tau {tau:g}): {_count(r, i)} eigenvalues, mass {_mass(r, i)}",
            soft_wrap=True,
        )
    if not r.exact:
        stdout.print(f"  {_excluded(r)}")
    if r.layer is not None:
        stdout.print(_layer_table(r))
    if r.data_samples is not None:
        stdout.print(_sampling_text(r))
    _print_histogram(r)
    stdout.print(f"  written to {shown.path}", soft_wrap=True)


def _plan(plan: dict[str, Any]) -> str:
    """How products were taken, and what that was expected to cost."""
    text = f"chunks of {plan['chunk']} samples, {plan['block']} vectors a launch"
    if plan.get("kept_chunks", 0) < plan["chunks"] and plan["strategy"] != "recompute":
        text += f", {plan['kept_chunks']} of {plan['chunks']} graphs kept"
    predicted, actual = plan.get("predicted_seconds"), plan.get("actual_seconds")
    return text if predicted is None or actual is None else f"{text}; {predicted:.2g} s foreseen, {actual:.2g} s taken"


def _excluded(r: Spectrum) -> str:
    if math.isnan(r.excluded_below):
        return "nothing excluded: too few Lanczos steps for this many parameters"
    return f"excluded: one below {r.excluded_below:.3g} was missed with probability <= {r.excluded_probability:g}"


def _print_histogram(r: Spectrum) -> None:
    from landscape.cli.views.histogram import histogram_lines  # which waits for torch

    for line in histogram_lines(r.arrays(), columns=min(72, max(40, stdout.width - 4))):
        stdout.print(f"  {line}")


def _pair_table(r: Spectrum) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=True)
    for title in ("#", "largest", "residual", "smallest", "residual"):
        table.add_column(title, justify="right", no_wrap=True)

    def cells(values: np.ndarray, residuals: np.ndarray, converged: np.ndarray, i: int) -> tuple[str, str]:
        if i >= len(values):
            return "", ""
        mark = "" if converged[i] else " not converged"
        return f"{values[i]:.6g}", f"{residuals[i]:.1e}{mark}"

    rows = min(MOST_ROWS, max(len(r.top_value), len(r.bottom_value)))
    for i in range(rows):
        table.add_row(
            str(i + 1),
            *cells(r.top_value, r.top_residual, r.top_converged, i),
            *cells(r.bottom_value, r.bottom_residual, r.bottom_converged, i),
        )
    return table


def _layer_table(r: Spectrum) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for title in ("parameters", "largest", "smallest", "trace"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in _layers(r):
        half = (row["trace_high"] - row["trace_low"]) / 2
        table.add_row(
            row["layer"],
            f"{row['parameters']:,}",
            concise(row["top"], row["top_residual"]),
            concise(row["bottom"], row["bottom_residual"]),
            concise(row["trace"], half),
        )
    return table


def _sampling_text(r: Spectrum) -> str:
    lines = [f"  over all {r.data_samples:,} samples (95 %), and samples for a half-width of 10 %:"]
    for name, title in (("top", "largest"), ("bottom", "smallest"), ("trace", "trace")):
        low, high, needed = (getattr(r, f"sampling_{name}_{k}") for k in ("low", "high", "needed"))
        said = f"[{low:.4g}, {high:.4g}]   {needed:,}" if needed is not None else NOT_ENOUGH
        lines.append(f"    {title:9} {said}")
    return "\n".join(lines)


def print_many(shown: list[Shown[Spectrum]]) -> None:
    """One row per checkpoint."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("checkpoint", overflow="fold", min_width=10)
    for title in ("P", "loss", "largest", "smallest", "trace", "negative"):
        table.add_column(title, justify="right", no_wrap=True)
    for one, name in zip(shown, short_names([s.provenance.checkpoint for s in shown]), strict=True):
        r = one.result
        half = (r.trace_high - r.trace_low) / 2
        table.add_row(
            name,
            f"{r.parameters}",
            f"{r.loss:.3g}",
            concise(float(r.top_value[0]), float(r.top_residual[0])) if len(r.top_value) else "-",
            concise(float(r.bottom_value[0]), float(r.bottom_residual[0])) if len(r.bottom_value) else "-",
            concise(r.trace, half),
            _count(r, 0),
        )
    stdout.print(table)
    tau = shown[0].result.tau[0]
    stdout.print("(n): residual, or half of the 95 % interval, in the last digit; none: exact.")
    stdout.print(f"negative: eigenvalues below -{tau:g} max |eigenvalue|; a..b is a bracket.")
    stdout.print(f"{len(shown)} result files, the first is {shown[0].path}", soft_wrap=True)
