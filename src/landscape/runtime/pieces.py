"""What a long analysis keeps while it runs, so that an interrupted one goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

# Saving may take this share of the time, and happens at most so often.
SHARE, SECONDS = 0.05, 5.0


class Pieces:
    """Named pieces of plain types and tensors; this one forgets them. `cli.remembering` keeps them in a file."""

    def get(self, name: str) -> Any | None:
        """The piece that an interrupted run has kept, None if it got not so far."""
        return None

    def put(self, name: str, value: Any) -> None:
        """Put a piece aside, in place of an older one of this name."""

    def due(self) -> bool:
        """Whether enough time has passed since the last piece for one that is not the last of its kind."""
        return False


class KeptPieces(Pieces):
    """Pieces handed, all of them, to `save` whenever one is put."""

    def __init__(self, found: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> None:
        self._found, self._save = dict(found), save
        self._saved, self._took = time.monotonic(), 0.0

    def get(self, name: str) -> Any | None:
        return self._found.get(name)

    @property
    def everything(self) -> Mapping[str, Any]:
        """All pieces by their names."""
        return self._found

    def take(self, others: Mapping[str, Any]) -> None:
        """Add pieces that other processes have kept."""
        new = {name: value for name, value in others.items() if name not in self._found}
        if new:
            self._found.update(new)
            self._keep()

    def put(self, name: str, value: Any) -> None:
        self._found[name] = value
        self._keep()

    def _keep(self) -> None:
        start = time.monotonic()
        self._save(self._found)
        self._saved = time.monotonic()
        self._took = self._saved - start

    def due(self) -> bool:
        return time.monotonic() - self._saved > max(SECONDS, self._took / SHARE)


FORGETFUL = Pieces()
