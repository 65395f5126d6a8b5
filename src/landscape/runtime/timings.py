"""What timing has chosen on this machine, kept between commands (as FFTW keeps its wisdom): the same command then
chooses the same, and gives the same bits. Losing the file costs a second of timing."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from landscape.errors import StorageError
from landscape.runtime.files import write_bytes
from landscape.runtime.pieces import KeptPieces

# Entries that are kept; the oldest go first.
MOST = 500


def wisdom_path() -> Path:
    """In the user's cache folder (XDG_CACHE_HOME)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "torch-landscape" / "timings.json"


def kept_wisdom() -> KeptPieces:
    """What is known; what is put is added to the file, which nothing depends on."""
    path = wisdom_path()

    def save(pieces: dict[str, Any]) -> None:
        merged = {**_read(path), **pieces}
        newest = dict(list(merged.items())[-MOST:])
        with suppress(StorageError):  # a home that cannot be written to is no reason to stop
            write_bytes(path, json.dumps(newest).encode())

    return KeptPieces(_read(path), save)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
