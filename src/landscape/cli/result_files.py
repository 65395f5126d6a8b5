"""Which stored results a command is about: files, globs and folders, read with one clear error each."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.analyses import ANALYSES
from landscape.checkpoints.find import SUFFIXES, natural
from landscape.errors import UsageError

if TYPE_CHECKING:
    from landscape.results.store import StoredResult

# All that is shown of a slice; the directions themselves may be as large as networks.
SHOWN = ("x", "y", "plane", "quantile", "direction", "mark", "tensor")


def find_results(names: list[str], kinds: Sequence[str] | None = None, mixed: bool = False) -> list[Path]:
    """Files named by paths, globs and folders, each once, in the order named.

    In folders, those of the first of `kinds` (all analyses) that is there; of all of them if they may be `mixed`.
    """
    paths: dict[Path, Path] = {}
    for name in names:
        for path in _expand(name, tuple(kinds or ANALYSES), mixed):
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _expand(name: str, kinds: Sequence[str], mixed: bool) -> list[Path]:
    path = Path(name)
    pattern = ANALYSES[kinds[0]].pattern
    if not path.exists() and glob.has_magic(name):
        matches = sorted((Path(match) for match in glob.glob(name, recursive=True)), key=natural)
        files = [match for match in matches if match.is_file()]
        files = files or _below(matches, kinds, mixed)
        if not files:
            raise UsageError(
                f"No file matches {name!r}.",
                hint=f"result files end in {pattern[1:]}; quote a recursive pattern: 'landscape-results/**/{pattern}'",
            )
        return files
    if path.is_dir():
        files = _below([path], kinds, mixed)
        if not files:
            raise UsageError(
                f"The folder {name} holds no {ANALYSES[kinds[0]].plural} (no {pattern} in it or below).",
                hint=f"make some first: landscape {kinds[0]} CHECKPOINT... --out {name}",
            )
        return files
    if not path.exists():
        raise UsageError(f"{name} does not exist", "check the path; `landscape info FOLDER` lists what is in a folder")
    return [path]


def _below(folders: list[Path], kinds: Sequence[str], mixed: bool) -> list[Path]:
    """Results in folders: of the first kind of which there is one, or of all kinds."""
    found: list[Path] = []
    for kind in kinds:
        found += [file for folder in folders for file in results_below(folder, kind)]
        if found and not mixed:
            return found
    return found


def results_below(folder: Path, kind: str) -> list[Path]:
    """Results of an analysis in a folder and below it; surfaces of Li et al. count as slices."""
    found = sorted(folder.rglob(ANALYSES[kind].pattern), key=natural)
    if kind == "slice":
        from landscape.export.li_format import surfaces_below

        found += [path for path in surfaces_below(folder) if path not in found]
    return found


def groups_of(path: Path, axes: Sequence[str] | None = None) -> dict[str, StoredResult]:
    """Every result in a file by its analysis, or a surface of Li et al. as a slice. Raises StorageError."""
    from landscape.export.li_format import read_surface
    from landscape.results.store import is_result_file, list_groups, read_result

    if not is_result_file(path):
        return {"slice": read_surface(path)}
    return {name: read_result(path, name, axes=axes) for name in list_groups(path)}


def read_stored(path: Path, purpose: str, whole: bool = False) -> StoredResult:
    """The result in a file, or a surface of Li et al. as a slice.

    Args:
        path: what was named. purpose: what is made of results, for the error about a checkpoint.
        whole: with the large arrays that no figure shows.
    """
    from landscape.export.li_format import read_surface
    from landscape.results.store import is_result_file, list_groups, read_result

    if path.suffix in SUFFIXES:
        raise UsageError(
            f"{path} looks like a checkpoint; {purpose} from results.", hint=f"first: landscape spectrum {path}"
        )
    if not is_result_file(path):
        return read_surface(path)
    groups = list_groups(path)
    group = next((kind for kind in ANALYSES if kind in groups), "spectrum")
    return read_result(path, group, axes=SHOWN if group == "slice" and not whole else None)
