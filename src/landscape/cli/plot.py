"""`landscape plot`: results to a figure. Finds the files, refuses to overwrite what is not ours, prints the path."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.cli.targets import SUFFIXES
from landscape.cli.terminal import print_warning
from landscape.errors import StorageError, UsageError

if TYPE_CHECKING:
    from landscape.store import StoredResult

PATTERN = "*.spectrum.h5"
# What a folder or glob is searched for, in this order, and what several of them are called together.
PATTERNS = {"spectrum": PATTERN, "descend": "*.descend.h5", "escape": "*.escape.h5", "widen": "*.widen.h5"}
SINGLE = ("escape", "widen")  # one checkpoint a figure
NAMES = {"spectrum": "spectra.png", "descend": "descents.png"}
DEFAULT = Path("landscape-results") / "spectra.png"


def plot(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT",
            help="Files that spectrum, descend, escape or widen wrote, globs (also **), or folders of them.",
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COORDINATE",
            help="What several results are ordered by: width, step, seed, any coordinate of the sweep, parameters or "
            "checkpoint. Default: the first of these that varies.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Where to write the figure; .png, .svg or .pdf chooses the format. Default: a .png beside a single "
            f"result, else {DEFAULT}.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a figure of landscape.")] = False,
) -> None:
    """Draw spectra: one in detail, or several as density, both ends and negative part against width. Or descents:
    loss, gradient and norm along the way, and verdicts against width. Or one escape, or one widening.

    Prints the path of the figure. The same results give the same bytes.
    """
    from landscape.figures.style import check_format

    paths = find_results(results)
    target = choose_target(paths, out)
    check_format(target.suffix)
    refuse_foreign(target, force)
    found = [_read(path) for path in paths]
    kinds = sorted({result.group for result in found})
    if len(kinds) > 1:
        raise UsageError(
            f"these are results of different analyses ({', '.join(kinds)}), which share no figure",
            hint="name the files of one: " + " or ".join(PATTERNS[kind] for kind in kinds),
        )
    typer.echo(_draw(found, by, target))


def _draw(found: list[StoredResult], by: str | None, target: Path) -> Path:
    """Draw, render and write; what readers of the figure must know goes to stderr."""
    from landscape.atomic import remove_stale, write_bytes
    from landscape.figures.descents import draw_descents
    from landscape.figures.series import caveats
    from landscape.figures.spectrum import draw_spectrum
    from landscape.figures.style import render
    from landscape.figures.ways import draw_escape, draw_widen
    from landscape.figures.width import draw_spectra

    if found[0].group in SINGLE:
        if len(found) > 1:
            raise UsageError(
                f"a figure shows one result of `landscape {found[0].group}`, and {len(found)} were named",
                hint="name one file",
            )
        figure = (draw_escape if found[0].group == "escape" else draw_widen)(found[0])
    elif found[0].group == "descend":
        figure = draw_descents(found, by)
    else:
        for note in caveats(found, by):
            print_warning(note)
        figure = draw_spectrum(found[0]) if len(found) == 1 else draw_spectra(found, by)
    data = render(figure, target.suffix)
    remove_stale(target)
    write_bytes(target, data)
    return target


def find_results(names: list[str]) -> list[Path]:
    """Files named by paths, globs and folders, each once, in the order named."""
    paths: dict[Path, Path] = {}
    for name in names:
        for path in _expand(name):
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _expand(name: str) -> list[Path]:
    path = Path(name)
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        files = [match for match in matches if match.is_file()]
        files = files or _below(matches)
        if not files:
            raise UsageError(
                f"No file matches {name!r}.",
                hint=f"result files end in .spectrum.h5; quote a recursive pattern: 'landscape-results/**/{PATTERN}'",
            )
        return files
    if path.is_dir():
        files = _below([path])
        if not files:
            raise UsageError(
                f"The folder {name} holds no spectra (no {PATTERN} in it or below).",
                hint=f"make some first: landscape spectrum CHECKPOINT... --out {name}",
            )
        return files
    return [path]


def _below(folders: list[Path]) -> list[Path]:
    """Results in folders: the spectra or, where there is none, the descents."""
    for pattern in PATTERNS.values():
        files = [file for folder in folders for file in sorted(folder.rglob(pattern))]
        if files:
            return files
    return []


def _read(path: Path) -> StoredResult:
    from landscape.store import list_groups, read_result

    if path.suffix in SUFFIXES:
        raise UsageError(
            f"{path} looks like a checkpoint; figures are drawn from results.",
            hint=f"first: landscape spectrum {path}",
        )
    groups = list_groups(path)
    return read_result(path, group=next((g for g in PATTERNS if g in groups), "spectrum"))


def choose_target(paths: list[Path], out: Path | None) -> Path:
    """The file to write: `out`, inside it if it is a folder, or the default."""
    kind = "descend" if paths[0].name.endswith(".descend.h5") else "spectrum"
    default = paths[0].with_suffix(".png") if len(paths) == 1 else DEFAULT.with_name(NAMES[kind])
    if out is None:
        return default
    return out / default.name if out.is_dir() else out


def refuse_foreign(target: Path, force: bool) -> None:
    """Leave alone what `landscape plot` did not write."""
    from landscape.figures.style import is_ours

    if force or not target.is_file():
        return
    try:
        data = target.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {target}, which exists: {error.strerror}", "choose another --out") from error
    if not is_ours(data, target.suffix):
        raise StorageError(
            f"{target} exists and is not a figure that landscape wrote; it was left alone.",
            hint="choose another name with --out, or repeat with --force to overwrite it",
        )
