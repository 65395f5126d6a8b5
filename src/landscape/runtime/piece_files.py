"""The file in which a long analysis keeps what it has, beside its result; gone when that is written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from landscape.runtime.files import remove_stale, write_bytes
from landscape.runtime.pieces import KeptPieces


def kept_pieces(path: Path, identity: str) -> KeptPieces:
    """The pieces of the analysis `identity` in `path`; none if the file is of another one, or damaged."""

    remove_stale(path)

    def save(pieces: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": identity, "pieces": pieces}, buffer)
        write_bytes(path, buffer.getbuffer())

    return KeptPieces(_read(path, identity), save)


def discard(path: Path) -> None:
    """Remove the file, and what a killed process left of it."""
    path.unlink(missing_ok=True)
    remove_stale(path)


def _read(path: Path, identity: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return {}
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # a damaged file is as good as none, and makes PyTorch raise many things
        return {}
    same = isinstance(found, dict) and found.get("identity") == identity
    return dict(found["pieces"]) if same else {}
