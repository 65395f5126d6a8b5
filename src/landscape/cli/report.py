"""`landscape report`: all results of a folder as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscape.cli import options as common
from landscape.cli.plot import refuse_foreign
from landscape.cli.terminal import print_note, print_warning
from landscape.errors import LandscapeError, UsageError

if TYPE_CHECKING:
    from landscape.report.document import Document
    from landscape.results.store import StoredResult

EXAMPLES = (
    "landscape report landscape-results",
    "landscape report landscape-results --format markdown --out report.md",
)

FORMATS = {"html": ".html", "markdown": ".md"}


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of result files.")],
    form: Annotated[
        str, typer.Option("--format", metavar="html|markdown", help="html: one file with everything inside it.")
    ] = "html",
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page. Default: the folder.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The page. Default: report.html, or .md, in DIR.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a page that is not of landscape.")] = False,
    quiet: common.Quiet = False,
) -> None:
    """One page from all results of a folder: claim by claim statement, verdict, figure, every part with its interval,
    how it was measured and how to repeat it; then spectra, descents, escapes and slices.

    Everything in it comes from the result files; nothing is loaded from a network. Prints the path of the page.
    """
    from landscape.report.html import as_html
    from landscape.report.markdown import as_markdown, pictures

    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", f"choose {' or '.join(FORMATS)}")
    target = _target(folder, form, out)
    found = _results(folder, quiet)
    document = _page(title or f"Results in {_name(folder)}", found)
    if form == "html":
        _write(target, as_html(document), {}, force)
    else:
        beside = f"{target.stem}-figures"
        _write(
            target, as_markdown(document, beside), {f"{beside}/{k}": v for k, v in pictures(document).items()}, force
        )
    typer.echo(target)


def _target(folder: Path, form: str, out: Path | None) -> Path:
    suffix = FORMATS[form]
    if out is None:
        return folder / f"report{suffix}"
    if out.is_dir():
        return out / f"report{suffix}"
    if out.suffix.lower() != suffix:
        raise UsageError(f"--out {out} is no {form} file", f"such as {out.with_suffix(suffix)}, or another --format")
    return out


def _name(folder: Path) -> str:
    return folder.resolve().name or "landscape"


def _results(folder: Path, quiet: bool) -> dict[str, list[tuple[Path, StoredResult]]]:
    """All result files below the folder, by analysis; unreadable ones are named and left out."""
    from landscape.analyses import ANALYSES
    from landscape.cli.result_files import read_stored, results_below

    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}", "name a folder of result files, such as landscape-results")
    found: dict[str, list[tuple[Path, StoredResult]]] = {}
    broken = 0
    for kind in ANALYSES:
        for path in results_below(folder, kind):
            try:
                result = read_stored(path, "reports are made")
                found.setdefault(result.group, []).append((path, result))
            except LandscapeError as error:
                broken += 1
                print_warning(f"{path} is left out: {error.message}")
    if not any(found.values()):
        raise UsageError(
            f"the folder {folder} holds no {'readable ' if broken else ''}results",
            f"make some first: landscape check RUNS --out {folder}",
        )
    print_note(", ".join(f"{len(v)} {k}" for k, v in found.items() if v), quiet)
    return found


def _page(title: str, found: dict[str, list[tuple[Path, StoredResult]]]) -> Document:
    from landscape.report.page import make_page

    return make_page(title, found)


def _write(target: Path, text: str, beside: dict[str, bytes], force: bool) -> None:
    """The page, after what it links; a file of somebody else's is left alone."""
    from landscape.runtime.files import remove_stale, write_bytes

    for path in (target, *(target.parent / name for name in beside)):
        refuse_foreign(path, force)
    remove_stale(target)
    for name, data in beside.items():
        write_bytes(target.parent / name, data)
    write_bytes(target, text.encode())
