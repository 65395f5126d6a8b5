"""`landscape info`: what is in a checkpoint, a result file or a folder of them."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from landscape.checkpoints.find import expand
from landscape.cli import options as common
from landscape.cli.terminal import plain, print_warning
from landscape.cli.views.info import (
    describe_checkpoint,
    describe_result,
    print_checkpoint,
    print_folder,
    print_result,
    size,
)
from landscape.errors import BatchError, CheckpointError, LandscapeError, StorageError, UsageError
from landscape.export.table import AXES, SUFFIXES, natural, result_files, tidy

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

EXAMPLES = (
    "landscape info landscape-results",
    "landscape info 'landscape-results/**/*.h5' --csv",
)

WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".pt2", ".bin", ".th", ".t7", ".tar")
T = TypeVar("T")


def info(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Checkpoints, result files, folders, or quoted globs of them."),
    ],
    as_csv: Annotated[
        bool, typer.Option("--csv", help="One table of all results on stdout: a row per result file and analysis.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per file on stdout.")] = False,
    allow_global: common.AllowGlobal = None,
    key: common.Key = None,
) -> None:
    """Show what is in a checkpoint, a result file or a folder; with --csv, all results of a sweep as one table."""
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other", "choose one of them")
    places = [Path(found) for path in paths for found in _expanded(path)]
    try:
        if as_csv:
            _print_csv(places)
        else:
            _show_all(places, as_json, partial(describe_checkpoint, reading=(tuple(allow_global or ()), key)))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _expanded(path: str) -> list[str]:
    """A quoted glob as its matches, in natural order; anything else as it is."""
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True), key=natural)
    if not found:
        raise UsageError(f"nothing matches {path}", "check the pattern; ** stands for any number of folders")
    return found


def _is_checkpoint_folder(path: Path) -> bool:
    if not path.is_dir() or (path / ".metadata").is_file():
        return path.is_dir()
    if not any(p.suffix in (".safetensors", ".bin") for p in path.iterdir()):
        return False  # without loading PyTorch
    from landscape.checkpoints.folders import is_checkpoint_folder

    return is_checkpoint_folder(path) or (path / "model.safetensors").exists()


def _is_result(path: Path) -> bool:
    """By content, not by name; a damaged file counts as a result if it is called like one."""
    if path.suffix in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return False


class _Failures:
    """Files that could not be read: one `warning:` line each, and an error at the end."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone  # a single file that the user named: its error is the command's error
        self.seen = 0
        self.failed = 0

    def guard(self, work: Callable[[Path], T], path: Path) -> T | None:
        """The value of `work(path)`, or None after a warning."""
        self.seen += 1
        try:
            return work(path)
        except LandscapeError as error:
            if self.alone:
                raise
            self.failed += 1
            print_warning(error.message)
            return None

    def finish(self) -> None:
        """Raise BatchError if anything failed."""
        if self.failed:
            raise BatchError(
                f"{self.failed} of {self.seen} files could not be read", "the warnings above say which, and why"
            )


def _show_all(places: list[Path], as_json: bool, checkpoint: Callable[[Path], dict[str, Any]]) -> None:
    failures = _Failures(alone=len(places) == 1 and not places[0].is_dir())
    for place in places:
        if not place.exists():
            failures.guard(_missing, place)
        elif place.is_dir() and not _is_checkpoint_folder(place):
            _show_folder(place, failures, as_json)
        else:
            describe, show = (describe_result, print_result) if _is_result(place) else (checkpoint, print_checkpoint)
            found = failures.guard(describe, place)
            if found is not None:
                _print_json(found) if as_json else show(found)
    failures.finish()


def _missing(path: Path) -> None:
    raise UsageError(f"no such file or folder: {path}", "check the path; quote globs so that the shell leaves them")


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(plain(found), allow_nan=False, ensure_ascii=False))


def _show_folder(folder: Path, failures: _Failures, as_json: bool) -> None:
    results = result_files(folder)
    checkpoints = _checkpoints(folder)
    if not results and not checkpoints:
        raise UsageError(f"{folder} holds neither results nor checkpoints", "name the folder that was given to --out")
    if as_json:
        for path in results:
            found = failures.guard(describe_result, path)
            if found is not None:
                _print_json(found)
        for path in checkpoints:
            _print_json({"path": str(path), "kind": "checkpoint", "bytes": size(path)})
    else:
        rows = list(_read_all(results, failures))
        print_folder(folder, tidy(rows)[1], checkpoints)


def _checkpoints(folder: Path) -> list[Path]:
    """What in a folder is a checkpoint; PyTorch is loaded only if something may be."""
    if not any(p.suffix in WEIGHTS and not p.name.startswith(".") for p in folder.rglob("*")):
        return []
    try:
        return [p for p in expand([str(folder)]) if not p.name.startswith(".")]
    except CheckpointError:
        return []


def _read_all(files: list[Path], failures: _Failures) -> Iterator[tuple[str, Any]]:
    """(path, stored result) of every group that can be read."""
    from landscape.cli.result_files import groups_of

    def groups(path: Path) -> list[tuple[str, Any]]:
        return [(str(path), stored) for stored in groups_of(path, AXES).values()]

    for path in files:
        yield from failures.guard(groups, path) or []


def _print_csv(places: list[Path]) -> None:
    failures = _Failures(alone=len(places) == 1 and not places[0].is_dir())
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += result_files(place)
        elif not place.exists():
            failures.guard(_missing, place)
        elif _is_result(place):
            files.append(place)
        else:
            failures.guard(_no_result, place)
    if not files and not failures.failed:
        named = ", ".join(map(str, places))
        raise UsageError(f"no results in {named}", "name the folder that was given to --out")
    columns, rows = tidy(list(_read_all(list(dict.fromkeys(files)), failures)))
    if rows:
        writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    failures.finish()


def _no_result(path: Path) -> None:
    raise StorageError(f"{path} is not a result file", "--csv is for results: landscape spectrum makes one")
