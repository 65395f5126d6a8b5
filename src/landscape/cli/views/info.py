"""What `landscape info` knows about a file, as plain mappings, and how it looks on a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from landscape.cli.terminal import stdout

if TYPE_CHECKING:
    from landscape.results.fields import Array
    from landscape.results.store import StoredResult

# Wide enough that a pipe gets every row on one line; a terminal has its own width.
PIPE_WIDTH = 4096


def describe_checkpoint(path: Path, reading: tuple[tuple[str, ...], str | None] = ((), None)) -> dict[str, Any]:
    """Kind, sha256, header, coordinates, tensors by dtype and non-finite entries. Raises CheckpointError."""
    import torch

    from landscape.checkpoints.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path, *reading)
    dtypes: dict[str, dict[str, int]] = {}
    not_finite: dict[str, int] = {}
    for name, tensor in checkpoint.state.items():
        count = dtypes.setdefault(str(tensor.dtype).removeprefix("torch."), {"tensors": 0, "entries": 0})
        count["tensors"] += 1
        count["entries"] += tensor.numel()
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum())):
            not_finite[name] = bad
    return {
        "path": str(path),
        "kind": checkpoint.kind,
        "sha256": checkpoint.sha256,
        "coordinates": dict(checkpoint.coordinates),
        "tensors": len(checkpoint.state),
        "entries": sum(count["entries"] for count in dtypes.values()),
        "dtypes": dtypes,
        "not_finite": not_finite,
        "header": dict(checkpoint.header),
        "notes": list(checkpoint.notes),
    }


def describe_result(path: Path) -> dict[str, Any]:
    """Provenance, headline numbers and every array of every group. Raises StorageError."""
    from landscape.cli.result_files import groups_of

    groups = {}
    for name, stored in groups_of(path).items():
        groups[name] = {
            "provenance": asdict(stored.provenance),
            "attributes": stored.attributes,
            "headline": headline(stored),
            "arrays": {key: describe_array(array) for key, array in stored.arrays.items()},
        }
    return {"path": str(path), "kind": "result", "groups": groups}


def describe_array(array: Array) -> dict[str, Any]:
    """Axes, shape, dtype, unit and text; `value` of a scalar, `min` and `max` of numbers that are not NaN."""
    import numpy as np

    values = array.values
    kind = {"b": "bool", "U": "str"}.get(values.dtype.kind, str(values.dtype))
    found: dict[str, Any] = {"dims": list(array.dims), "shape": list(values.shape), "dtype": kind}
    found |= {"units": array.units, "long_name": array.long_name}
    if not array.dims:
        found["value"] = values.item()
    elif kind == "bool":
        found["true"] = int(values.sum())
    elif kind != "str":
        numbers = values[~np.isnan(values)]
        found |= {"min": numbers.min().item(), "max": numbers.max().item()} if numbers.size else {}
        found["nan"] = int(values.size - numbers.size)
    return found


def headline(stored: StoredResult) -> dict[str, Any]:
    """The few numbers that a reader looks for first, with what bounds them; {} for a group without any."""
    arrays = stored.arrays
    found: dict[str, Any] = {}
    for name in ("loss", "loss_centre", "gradient_norm"):
        if name in arrays and not arrays[name].dims:
            found[name] = arrays[name].values.item()
    for end in ("top", "bottom"):
        if f"{end}_value" in arrays and arrays[f"{end}_value"].values.size:
            parts = ("value", "residual", "converged")
            found[end] = {p: arrays[f"{end}_{p}"].values[0].item() for p in parts if f"{end}_{p}" in arrays}
    if {"trace", "trace_low", "trace_high"} <= set(arrays):
        low, high = (arrays[f"trace_{side}"].values.item() for side in ("low", "high"))
        found["trace"] = {"value": arrays["trace"].values.item(), "low": low, "high": high}
    if {"tau_absolute", "negative_count_low", "negative_count_high"} <= set(arrays):
        names = {"tau": "tau_absolute", "low": "negative_count_low", "high": "negative_count_high"}
        if arrays["tau_absolute"].values.size:
            names |= {"exact": "negative_count_exact"} if "negative_count_exact" in arrays else {}
            found["negative"] = {key: arrays[name].values[0].item() for key, name in names.items()}
    return found


def print_checkpoint(found: Mapping[str, Any]) -> None:
    """The description of a checkpoint, for people."""
    rows = {"kind": found["kind"], "sha256": found["sha256"], "coordinates": pairs(found["coordinates"])}
    rows |= {"tensors": f"{found['tensors']}, with {found['entries']:,} entries (parameters and buffers)"}
    rows["dtypes"] = ", ".join(f"{d}: {c['tensors']} with {c['entries']:,}" for d, c in found["dtypes"].items())
    bad = found["not_finite"]
    rows["NaN or Inf"] = ", ".join(f"{n} in {name}" for name, n in bad.items()) or "none"
    header = {key: value for key, value in found["header"].items() if key != "coordinates"}
    if isinstance(certificate := header.pop("certificate", None), Mapping):
        rows["certificate"] = f"{certificate.get('verdict')}: {certificate.get('reason')} (--json has all of it)"
    rows |= {f"header: {key}": short(value) for key, value in header.items()}
    print_title(found["path"])
    print_pairs(rows | {f"note {n + 1}": note for n, note in enumerate(found["notes"])})


def print_result(found: Mapping[str, Any]) -> None:
    """The description of a result file, for people."""
    print_title(found["path"])
    for group, result in found["groups"].items():
        how = result["provenance"]
        rows = {"analysis": f"{group} ({pairs(result['attributes'])})", "status": how["status"]}
        rows |= {"checkpoint": how["checkpoint"], "sha256": how["sha256"], "coordinates": pairs(how["coordinates"])}
        rows |= {"settings": pairs(how["settings"]), "computed": f"{how['dtype']} on {how['device']}"}
        rows |= {"spent": f"{how['products']} products, {how['seconds']:.3g} s", "seed": str(how["seed"])}
        rows |= {"data": how["data_fingerprint"], "versions": pairs(how["versions"]), "plan": pairs(how["plan"])}
        rows |= {f"note {n + 1}": note for n, note in enumerate(how["notes"])}
        print_pairs(rows)
        print_pairs(headline_text(result["headline"]))
        arrays = [_array_row(name, array) for name, array in result["arrays"].items()]
        print_table(("array", "axes", "value or min", "max", "units"), arrays, right=(2, 3), whole=(0, 2, 3, 4))


def _array_row(name: str, array: Mapping[str, Any]) -> tuple[str, ...]:
    axes = " x ".join(f"{d} {n}" for d, n in zip(array["dims"], array["shape"], strict=True))
    if "value" in array:
        low, high = number(array["value"]), ""
    elif "true" in array:
        low, high = f"{array['true']} true", ""
    else:
        low, high = number(array.get("min")), number(array.get("max"))
    nan = f", {array['nan']} NaN" if array.get("nan") else ""
    return name, axes + nan, low, high, "" if array["units"] == "1" else array["units"].replace(" / ", "/")


def headline_text(found: Mapping[str, Any]) -> dict[str, str]:
    """The headline as label -> text, each number with its bound."""
    rows: dict[str, str] = {}
    for name, label in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        if name in found:
            rows[label] = number(found[name])
    for end, label in (("top", "largest eigenvalue"), ("bottom", "smallest eigenvalue")):
        if end in found:
            unsure = "" if found[end].get("converged", True) else ", not converged"
            rows[label] = f"{number(found[end]['value'])} ± {found[end].get('residual', math.nan):.1e}{unsure}"
    if "trace" in found:
        low, high = number(found["trace"]["low"]), number(found["trace"]["high"])
        rows["trace"] = f"{number(found['trace']['value'])} [{low}, {high}]"
    if "negative" in found:
        low, high = number(found["negative"]["low"]), number(found["negative"]["high"])
        count = number(found["negative"].get("exact")) or f"{low} to {high}"
        rows["negative eigenvalues"] = f"{count} below {number(-found['negative']['tau'])}"
    return rows


def print_folder(folder: Path, rows: Sequence[Mapping[str, Any]], checkpoints: Sequence[Path]) -> None:
    """The results and checkpoints of a folder, one line each, for people."""
    if rows:
        print_title(f"results in {folder}: {len(rows)}")
        lines = [
            (
                _below(folder, row["result"]),
                row["group"] if row["status"] == "complete" else f"{row['group']}, {row['status']}",
                *_found(row),
            )
            for row in rows
        ]
        print_table(("result", "analysis", "largest, or verdict", "smallest"), lines, right=(2, 3))
    if checkpoints:
        print_title(f"checkpoints in {folder}: {len(checkpoints)}")
        sizes = [(_below(folder, p), f"{size(p) / 1000:,.1f} kB") for p in checkpoints]
        print_table(("checkpoint", "size"), sizes, right=(1,))


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir() if p.is_file())


def _found(row: Mapping[str, Any]) -> tuple[str, str]:
    """Both ends of a spectrum with their residuals, or the verdict of anything else."""
    if "top_0" not in row:
        return str(row.get("verdict", "")), ""
    return _bounded(row, "top_0"), _bounded(row, "bottom_0")


def _bounded(row: Mapping[str, Any], name: str) -> str:
    """An eigenvalue with its residual; "?" where it has not converged (all digits: --json, --csv)."""
    if row.get(name) is None:
        return ""
    unsure = "" if row.get(f"{name}_converged", True) else " ?"
    return f"{row[name]:.5g} ± {row.get(f'{name}_residual', math.nan):.0e}{unsure}"


def _below(folder: Path, path: str | Path) -> str:
    return str(Path(path).relative_to(folder))


def number(value: Any) -> str:
    """A number in six digits, "" for what is missing, text as it is."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Any]) -> str:
    """`a=1, b=2`, without what is None or empty."""
    return ", ".join(f"{k}={short(v)}" for k, v in values.items() if v is not None and v != {})


def short(value: Any) -> str:
    """Text of a header's or settings' value."""
    return f"({pairs(value)})" if isinstance(value, Mapping) else str(value)


def print_title(text: str) -> None:
    """A line that stands above tables; never wrapped, so that paths can be copied."""
    stdout.print(text, style="bold", soft_wrap=True)


def print_pairs(rows: Mapping[str, str]) -> None:
    """Two columns without lines: label and text; empty texts are left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows.items():
        if text:
            table.add_row(label, text)
    _print(table)
    stdout.print()


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), whole: Sequence[int] = ()
) -> None:
    """A table with a header; columns `right` hold numbers, cells of columns `whole` stay on one line.

    Without lines, and as wide as it needs to be, where stdout is no terminal.
    """
    lines = box.SIMPLE_HEAD if stdout.is_terminal else None
    table = Table(box=lines, pad_edge=False, padding=(0, 2, 0, 0) if lines is None else (0, 1, 0, 0))
    for position, name in enumerate(head):
        table.add_column(
            name, justify="right" if position in right else "left", overflow="fold", no_wrap=position in whole
        )
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    if stdout.is_terminal:
        stdout.print(table)
        return
    wide = Console(file=io.StringIO(), width=PIPE_WIDTH, highlight=False, markup=False)
    wide.print(table)
    for line in wide.file.getvalue().splitlines():  # type: ignore[attr-defined]
        stdout.print(line.rstrip(), soft_wrap=True)
