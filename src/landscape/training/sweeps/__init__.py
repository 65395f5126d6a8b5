"""Ready-made sweep files of the package, by name."""

from __future__ import annotations

from pathlib import Path

from landscape.errors import UsageError
from landscape.settings import suggestion

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the ready-made sweeps."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def sweep_file(given: Path) -> Path:
    """The file that the user means: one of their own, or a ready-made sweep by name.

    Raises:
        UsageError: neither exists.
    """
    if given.exists() or given.suffix or len(given.parts) > 1:
        return given
    if given.name in names():
        return FOLDER / f"{given.name}.toml"
    raise UsageError(f"there is no sweep file and no ready-made sweep {str(given)!r}", suggestion(str(given), names()))
