"""The tidy table of many results: one row per file and group, one column per quantity; missing is empty."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.results.store import StoredResult

AXES = ("top", "bottom", "tau")  # the axes that become columns; longer arrays are for xarray
LAST = ("products", "seconds", "dtype", "device", "strategy", "sha256", "group", "result")
SUFFIXES = (".h5", ".hdf5")

# Where a column stands: its section, then numbers or names within that.
Place = tuple[Any, ...]


def natural(path: str | Path) -> list[tuple[int, int | str]]:
    """Sort key in which width=8 comes before width=64."""
    return [(0, int(s)) if s.isdecimal() else (1, s) for s in re.split(r"(\d+)", str(path)) if s]


def result_files(folder: Path) -> list[Path]:
    """All files below `folder` that should be results, by name; locks and temporaries are hidden files."""
    from landscape.export.li_format import EXPORTED

    files = [p for p in folder.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith(".")]
    files = [p for p in files if not p.name.endswith(EXPORTED)]
    return sorted((p for p in files if p.is_file()), key=natural)


def tidy(results: Iterable[tuple[str, StoredResult]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns, and a row for each (path, result): checkpoint, coordinates, status, numbers, how, where.

    Eigenvalue k is `top_k` with `top_k_residual` and `top_k_converged`, what depends on the floor tau is
    `negative_count_low@1e-06`. A coordinate with the name of another column is called `coordinate_NAME`.
    """
    places: dict[str, Place] = {}
    rows: list[dict[str, Any]] = []
    for path, stored in results:
        row: dict[str, Any] = {}
        for place, name, value in _cells(path, stored):
            row[name] = value
            places.setdefault(name, place if len(place) > 1 else (*place, len(places)))
        rows.append(row)
    coordinates = {
        name: f"coordinate_{name}" if name in places else name
        for _, stored in results
        for name in stored.provenance.coordinates
    }
    places |= {column: (1, name) for name, column in coordinates.items()}
    for row, (_, stored) in zip(rows, results, strict=True):
        row |= {coordinates[name]: value for name, value in stored.provenance.coordinates.items()}
    return sorted(places, key=places.__getitem__), rows


def _cells(path: str, stored: StoredResult) -> Iterator[tuple[Place, str, Any]]:
    """(place, column, value) of all but the coordinates; a place of one number is completed in order of arrival."""
    how = stored.provenance
    yield (0,), "checkpoint", how.checkpoint
    yield (2,), "status", how.status
    last = {"products": how.products, "seconds": how.seconds, "dtype": how.dtype, "device": how.device}
    last |= {"sha256": how.sha256, "group": stored.group, "result": path}
    for name, value in stored.attributes.items():
        if name in LAST:
            last[name] = value
        else:
            yield (3,), name, value
    taus = stored.arrays["tau"].values.tolist() if "tau" in stored.arrays else []
    for name, array in stored.arrays.items():
        end = array.dims[0] if len(array.dims) == 1 else ""
        if not array.dims:
            yield (3,), name, array.values.item()
        elif end in ("top", "bottom") and name.startswith(f"{end}_"):
            kind = name.removeprefix(f"{end}_")
            for k, value in enumerate(array.values.tolist()):
                column = f"{end}_{k}" if kind == "value" else f"{end}_{k}_{kind}"
                yield (4, end != "top", k, kind != "value", kind != "residual", kind), column, value
        elif end == "tau" and name != "tau":
            for tau, value in zip(taus, array.values.tolist(), strict=True):
                yield (5, name, tau), f"{name}@{tau!r}", value
    for name, value in last.items():
        yield (6, LAST.index(name)), name, value
