"""`landscape plot`: results to a figure. Finds the files, refuses to overwrite what is not ours, prints the path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.analyses import ANALYSES
from landscape.cli.result_files import find_results, read_stored
from landscape.cli.terminal import print_warning
from landscape.errors import StorageError, UsageError

if TYPE_CHECKING:
    from landscape.results.store import StoredResult

EXAMPLES = (
    "landscape plot landscape-results --by width",
    "landscape plot landscape-results/net.slice.h5 --html",
)

DEFAULT = Path("landscape-results") / "spectra.png"
PAGE = ".html"


def plot(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT",
            help=f"Files that {', '.join(ANALYSES)} wrote, or surfaces of Li et al. (.h5); globs (also **), or folders "
            "of them.",
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
    html: Annotated[
        bool, typer.Option("--html", help="One slice as an interactive page, complete in one .html file.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Where to write the figure; .png, .svg, .pdf (or .html) chooses the format. Default: a .png beside a "
            f"single result, else {DEFAULT}.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not a figure of landscape.")] = False,
) -> None:
    """Draw spectra: one in detail, or several as density, both ends and negative part against width. Or descents:
    loss, gradient and norm along the way, and verdicts against width. Or one escape, or one widening. Or slices:
    contours and surface of one, several on one scale, lines in one panel.

    Prints the path of the figure. The same results give the same bytes.
    """
    from landscape.figures.style import check_format

    as_page = html or (out is not None and out.suffix.lower() == PAGE)
    paths = find_results(results, ("slice",) if as_page else None)
    if out is not None and not out.is_dir():
        _check_suffix(out) if as_page else check_format(out.suffix)
    found = _whole(paths)
    kinds = sorted({result.group for result in found})
    if len(kinds) > 1:
        raise UsageError(
            f"these are results of different analyses ({', '.join(kinds)}), which share no figure",
            hint="name the files of one: " + " or ".join(ANALYSES[kind].pattern for kind in kinds),
        )
    if as_page:
        _check_page(found)
    target = choose_target(paths, kinds[0], out, PAGE if as_page else ".png")
    refuse_foreign(target, force)
    _write(target, _page(found[0]) if as_page else _rendered(found, by, target))
    typer.echo(target)


def _whole(paths: list[Path]) -> list[StoredResult]:
    """The results; without those of checkpoints that failed, which have next to no numbers.

    Raises:
        UsageError: all of them failed.
    """
    found = []
    for path in paths:
        stored = read_stored(path, "figures are drawn")
        if stored.provenance.status == "failed":
            print_warning(f"{path} is what a failed command left behind; it is not drawn")
        else:
            found.append(stored)
    if not found:
        raise UsageError("there is nothing to draw", "repeat the command that failed: it says what is wrong")
    return found


def _check_suffix(out: Path) -> None:
    """A page is no image."""
    if out.suffix.lower() != PAGE:
        raise UsageError(f"--html writes a page, and --out {out} is not one.", hint=f"such as {out.with_suffix(PAGE)}")


def _check_page(found: list[StoredResult]) -> None:
    """Pages show one slice."""
    if found[0].group != "slice":
        raise UsageError(
            f"--html shows slices, and this is a result of `landscape {found[0].group}`",
            hint="leave --html out: its figure is a .png, .svg or .pdf",
        )
    if len(found) > 1:
        raise UsageError(f"a page shows one slice, and {len(found)} were named", hint="name one file")


def _page(result: StoredResult) -> bytes:
    from landscape.figures.slice_page import draw_page

    return draw_page(result)


def _rendered(found: list[StoredResult], by: str | None, target: Path) -> bytes:
    """The figure as bytes; what its readers must know goes to stderr."""
    from landscape.figures.choice import draw
    from landscape.figures.style import render

    figure, notes = draw(found, by)
    for note in notes:
        print_warning(note)
    return render(figure, target.suffix)


def _write(target: Path, data: bytes) -> None:
    from landscape.runtime.files import remove_stale, write_bytes

    remove_stale(target)
    write_bytes(target, data)


def choose_target(paths: list[Path], kind: str, out: Path | None, suffix: str) -> Path:
    """The file to write: `out`, inside it if it is a folder, or the default."""
    several = DEFAULT.with_name(f"{ANALYSES[kind].plural}.png")
    default = paths[0].with_suffix(suffix) if len(paths) == 1 else several
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
            f"{target} exists and is not a figure that landscape wrote, nor a page; it was left alone.",
            hint="choose another name with --out, or repeat with --force to overwrite it",
        )
