"""Results in other formats: tidy text, NumPy archives, ParaView surfaces, the HDF5 of Li et al.; each as bytes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from landscape.errors import UsageError
from landscape.export.li_format import surface_bytes
from landscape.results.identity import plain
from landscape.results.store import StoredResult
from landscape.slices.stored import METRICS, grid_of, is_wide, masked, triangles

HEIGHT = 0.5  # of an exported surface, in widths: losses and coordinates have no common unit


@dataclass(frozen=True)
class Format:
    """How a format is called and made.

    Attributes:
        suffix: of its files. convert: a stored result as bytes and sentences for the user. every: takes any result,
            not slices alone.
    """

    suffix: str
    convert: Callable[[StoredResult], tuple[bytes, list[str]]]
    every: bool = False


def to_csv(stored: StoredResult) -> tuple[bytes, list[str]]:
    """A row per cell: x, y, done and every field on the axes (y, x), in as many digits as tell float64 apart."""
    x, y = np.meshgrid(stored.arrays["x"].values, stored.arrays["y"].values)
    columns = {"x": x, "y": y, "done": stored.arrays["done"].values}
    columns |= {name: a.values for name, a in stored.arrays.items() if a.dims == ("y", "x") and name != "done"}
    cells = zip(*(map(_text, field.ravel().tolist()) for field in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(row) for row in cells)]
    return ("\n".join(lines) + "\n").encode(), []


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value)


def to_npz(stored: StoredResult) -> tuple[bytes, list[str]]:
    """Every field by its name, and `attributes`: JSON of the rest, with the axes, unit and text of each field."""
    fields = {name: {"dims": a.dims, "units": a.units, "long_name": a.long_name} for name, a in stored.arrays.items()}
    described = {
        "group": stored.group,
        **stored.attributes,
        "provenance": asdict(stored.provenance),
        "fields": fields,
    }
    text = json.dumps(plain(described), ensure_ascii=False, allow_nan=False)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: array.values for name, array in stored.arrays.items()}
    np.savez_compressed(buffer, **arrays, attributes=np.array(text))
    return buffer.getvalue(), []


def to_li(stored: StoredResult) -> tuple[bytes, list[str]]:
    """As Li et al. store surfaces; see `surface_files`."""
    return surface_bytes(stored), []


def to_vtp(stored: StoredResult) -> tuple[bytes, list[str]]:
    """VTK PolyData in ASCII: a triangulated surface without its holes, and every metric on its points.

    Raises UsageError for a line, and where no cell has a finite loss.
    """
    grid = grid_of(stored)
    if grid.line:
        raise UsageError("a line has no surface for ParaView", "export csv or npz")
    there = np.isfinite(grid.loss)
    if not there.any():
        raise UsageError("no cell has a finite loss, so there is no surface", "export csv or npz")
    number = np.cumsum(there.ravel()) - 1
    faces = number[triangles(there)]
    x, y = (field[there] for field in np.meshgrid(grid.x, grid.y))
    loss = grid.loss[there]
    fields = {"loss": loss, "x": x, "y": y}
    if (loss > 0).all():
        fields["log10_loss"] = np.log10(loss)
    left_out = []
    for name in METRICS:
        if name in stored.arrays:
            values = masked(stored.arrays[name].values, ~grid.missing)[there]
            if np.isfinite(values).all():
                fields[name] = values
            else:
                left_out.append(name)
    points = np.stack([*_to_scale(stored, x, y), _heights(loss, x, y, stored)], axis=1)
    notes = [f"{name} is left out: VTK's text format has no NaN or Inf" for name in left_out]
    return _poly_data(points, faces, fields).encode(), notes


def _to_scale(stored: StoredResult, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x as it is; y times the ratio of the directions' lengths, so that distances agree."""
    norms = stored.arrays["direction_norm"].values if "direction_norm" in stored.arrays else np.ones(2)
    ratio = float(norms[1] / norms[0])
    return x, y * (ratio if math.isfinite(ratio) and ratio > 0 else 1.0)


def _heights(loss: np.ndarray, x: np.ndarray, y: np.ndarray, stored: StoredResult) -> np.ndarray:
    """`HEIGHT` times the width, from 0: the loss or, where figures show it by decades, its logarithm."""
    shown = np.log10(loss) if is_wide(loss) and (loss > 0).all() else loss
    across, up = _to_scale(stored, x, y)
    width = max(float(np.ptp(across)), float(np.ptp(up))) or 1.0
    return np.asarray((shown - shown.min()) * (HEIGHT * width / (float(np.ptp(shown)) or 1.0)))


def _poly_data(points: np.ndarray, faces: np.ndarray, fields: dict[str, np.ndarray]) -> str:
    counts = f'NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="0" NumberOfStrips="0"'
    data = "\n".join(_data_array(name, values) for name, values in fields.items())
    offsets = 3 * np.arange(1, len(faces) + 1)
    return f"""<?xml version="1.0"?>
<VTKFile type="PolyData" version="0.1" byte_order="LittleEndian">
<PolyData>
<Piece {counts} NumberOfPolys="{len(faces)}">
<PointData Scalars="loss">
{data}
</PointData>
<Points>
{_data_array("points", points)}
</Points>
<Polys>
{_data_array("connectivity", faces)}
{_data_array("offsets", offsets)}
</Polys>
</Piece>
</PolyData>
</VTKFile>
"""


def _data_array(name: str, values: np.ndarray) -> str:
    """A row of the array per line, floats in full precision."""
    kind = "Int64" if values.dtype.kind == "i" else "Float64"
    parts = values.shape[1] if values.ndim == 2 and kind == "Float64" else 1
    rows = values.reshape(len(values), -1).tolist()
    lines = "\n".join(" ".join(map(repr, row)) for row in rows)
    size = f' NumberOfComponents="{parts}"' if parts > 1 else ""
    return f'<DataArray type="{kind}" Name="{name}"{size} format="ascii">\n{lines}\n</DataArray>'


FORMATS = {
    "li": Format(".li.h5", to_li),
    "csv": Format(".csv", to_csv),
    "npz": Format(".npz", to_npz, every=True),
    "vtp": Format(".vtp", to_vtp),
}
