"""Identity of a result: one hash over everything that affects the answer."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "h5py")


def plain(value: Any, *, name_non_finite: bool = False) -> Any:
    """Copy of `value` in JSON's own types: tuples and sets as lists, NumPy as Python, anything else as text.

    NaN and Inf have no place in JSON: they become None or, with `name_non_finite`, "nan", "inf" and "-inf".
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v, name_non_finite=name_non_finite) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [plain(v, name_non_finite=name_non_finite) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), name_non_finite=name_non_finite)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if name_non_finite else None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def identity(parts: Mapping[str, Any]) -> str:
    """sha256, hexadecimal, of `parts` as canonical JSON: independent of the order of keys, not of types.

    1, 1.0, True and "1" differ; a tuple and a list of the same items do not.
    """
    text = json.dumps(
        plain(parts, name_non_finite=True),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_sha256(path: str | PathLike[str]) -> str:
    """sha256, hexadecimal, of a file's bytes. Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, landscape and what computes for it; read from metadata, so nothing is imported."""
    found = {"python": platform.python_version()}
    for package, distribution in (("landscape", "torch-landscape"), *((p, p) for p in PACKAGES)):
        try:
            found[package] = version(distribution)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
