"""`landscape export`: results in the formats of other programs. Prints the paths of the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.cli.result_files import find_results, read_stored
from landscape.cli.terminal import print_warning
from landscape.errors import LandscapeError, StorageError, UsageError

if TYPE_CHECKING:
    from landscape.export.formats import Format
    from landscape.results.store import StoredResult

EXAMPLES = (
    "landscape export landscape-results/net.slice.h5 --format vtp",
    "landscape export landscape-results --format npz --out arrays",
)

FORMATS = ("li", "csv", "npz", "vtp")
ANY = "npz"  # takes results of every analysis
BY_SUFFIX = {".h5": "li", ".csv": "csv", ".npz": "npz", ".vtp": "vtp"}


def export(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT",
            help="Files that slice wrote (for npz, any command), or surfaces of Li et al. (.h5); globs, or folders "
            "of them.",
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="csv: a row a cell; npz: all arrays, for NumPy; vtp: a surface for ParaView; li: HDF5 as Li et al. "
            "2018 write it. Default: by the suffix of --out.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="File to write, or folder for one file per result. Default: beside each result."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Convert slices for ParaView, spreadsheets, NumPy or the tools of Li et al.; for npz, any result.

    Prints the paths of the files, one a line.
    """
    from landscape.export.formats import FORMATS as MADE
    from landscape.runtime.files import remove_stale, write_bytes

    name = _chosen(kind, out)
    every = MADE[name].every
    paths = find_results(results, None if every else ("slice",), mixed=every)
    targets = _targets(paths, out, MADE[name].suffix)
    for target in targets:
        _refuse(target, force)
    for path, target in zip(paths, targets, strict=True):
        data = _converted(path, name, MADE[name])
        remove_stale(target)
        write_bytes(target, data)
        typer.echo(target)


def _chosen(kind: str | None, out: Path | None) -> str:
    """The format that was named, or that the suffix of --out tells."""
    if kind is None:
        kind = None if out is None else BY_SUFFIX.get(out.suffix.lower())
        if kind is None:
            raise UsageError(
                "which format?", f"add --format {'|'.join(FORMATS)}, or an --out that ends in .csv, .npz, .vtp or .h5"
            )
    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: there is no such format", f"choose from {', '.join(FORMATS)}")
    return kind


def _targets(paths: list[Path], out: Path | None, suffix: str) -> list[Path]:
    """One file per result: beside it, or below the folder `out` with its path mirrored from their common parent."""
    if out is not None and len(paths) == 1 and out.suffix and not out.is_dir():
        return [out]
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, and {len(paths)} results need a folder", "name a folder")
    if out is not None and len(paths) > 1 and out.suffix.lower() in BY_SUFFIX:
        raise UsageError(f"--out {out} is one file, and {len(paths)} results were named", "name a folder")
    if out is None:
        targets = [path.with_suffix(suffix) for path in paths]
    else:
        absolute = [Path(os.path.abspath(path)) for path in paths]
        parent = Path(os.path.commonpath([path.parent for path in absolute]))
        targets = [out / path.relative_to(parent).with_suffix(suffix) for path in absolute]
    if len(set(targets)) < len(targets):
        raise UsageError("two of these results would be written to one file", "export them one by one, with --out")
    return targets


def _refuse(target: Path, force: bool) -> None:
    if target.is_dir():
        raise StorageError(f"cannot write {target}: it is a folder", "choose another --out")
    if target.exists() and not force:
        raise StorageError(
            f"{target} exists; it was left alone", "choose another name with --out, or repeat with --force to overwrite"
        )


def _converted(path: Path, name: str, made: Format) -> bytes:
    """One result in the format; its notes go to stderr, its errors name the file."""
    stored = read_stored(path, "exports are made", whole=made.every)
    _check_kind(path, stored, name, made)
    try:
        data, notes = made.convert(stored)
    except LandscapeError as error:
        raise type(error)(f"{path}: {error.message}", error.hint) from error
    for note in notes:
        print_warning(f"{path}: {note}")
    return data


def _check_kind(path: Path, stored: StoredResult, name: str, made: Format) -> None:
    if stored.group == "slice" or made.every:
        return
    other = f"landscape info {path} --csv" if name == "csv" else f"--format {ANY} takes any result"
    raise UsageError(f"{path} is a result of `landscape {stored.group}`; {name} holds slices", other)
