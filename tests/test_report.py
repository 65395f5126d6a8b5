"""`landscape report`: one page from result files alone, complete in itself, in HTML and in Markdown."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import commands
from landscape.claims.escape_dimensions.decide import CLAIM, Evidence, decide, draw
from landscape.claims.result import Read, checked
from landscape.report.check import section, summary
from landscape.report.document import Cell, Document, Heading, Paragraph, Table
from landscape.report.html import as_html
from landscape.report.markdown import as_markdown, pictures
from landscape.report.page import make_page
from landscape.results.fields import Spent
from landscape.results.store import read_result, write_result
from samples import sample_provenance
from slices_made import plane
from test_claim_escapes import escaping

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWEEP_TEXT = '[sweep]\nwidth = [4, 5]\nseed = "0..59"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A claim decided on a synthetic sweep, and a slice."""
    out = tmp_path_factory.mktemp("results")
    evidence = Evidence([escaping(np.random.default_rng(0))])
    read = [Read("teacher, tanh", 300, SWEEP_TEXT)]
    made = checked(CLAIM, decide(evidence), draw(evidence), read, Spent(0, 12.0, "float64", "cpu", {"notes": ()}))
    settings = {"claim": CLAIM.name, "scale": "small", "seed": 0, "runs": ["runs/a b"], "budget": {"minima": 10}}
    write_result(out / "escape-dimensions.check.h5", made, sample_provenance(command="check", settings=settings))
    write_result(out / "width=8" / "final.slice.h5", plane(), sample_provenance(command="slice"))
    return out


def report(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("report", *arguments, cwd=cwd)


class Texts(HTMLParser):
    """Text of a page, its tags, and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.loaded = "", [], []  # type: tuple[str, list[str], list[str]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Texts:
    reader = Texts()
    reader.feed(page)
    return reader


def words_of_the_claim(path: Path) -> list[str]:
    """What a reader must find."""
    result = read_result(path, "check")
    names = ("part", "part_statistic", "part_note", "need", "population")
    found = [str(v) for name in names for v in result.arrays[name].values]
    return [
        *found,
        *(str(result.attributes[k]) for k in ("claim", "verdict", "statement", "source", "says_not", "how")),
    ]


def test_the_page_says_all_and_needs_nothing_but_itself(folder: Path) -> None:
    done = report(str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    seen = parsed(page)
    text = " ".join(seen.text.split())
    for words in words_of_the_claim(folder / "escape-dimensions.check.h5"):
        for piece in words.split(": ")[-1:]:
            assert " ".join(piece.split()) in text, piece
    assert "landscape train teacher-tanh.toml --out runs/teacher-tanh" in text
    assert "landscape check runs/teacher-tanh --claim escape-dimensions --scale small --seed 0" in text
    assert SWEEP_TEXT.splitlines()[1] in text
    assert "minima 10" in text
    assert "Slices (1)" in text
    assert set(seen.tags) & {"script", "link", "iframe", "object"} == set()
    assert all(v.startswith(("#", "data:image/svg+xml;base64,")) for v in seen.loaded), seen.loaded
    assert seen.tags.count("img") == 2
    assert {v[1:] for v in seen.loaded if v.startswith("#")} <= set(re.findall(r'id="([^"]+)"', page))
    again = report(str(folder), "-o", str(folder / "two.html"), cwd=folder)
    assert again.returncode == 0
    assert (folder / "two.html").read_text() == page.replace("two.html", "report.html")


def test_one_claim_decided_twice_has_two_sections(folder: Path, tmp_path: Path) -> None:
    """Each with its own name and figure; in Markdown, links that survive spaces; nobody's file is overwritten."""
    name = "escape-dimensions.check.h5"
    for sub in ("a b", "c"):
        (tmp_path / sub).mkdir()
        shutil.copy(folder / name, tmp_path / sub / name)
    found = [(p, read_result(p, "check")) for p in sorted(tmp_path.rglob("*.check.h5"))]
    document = make_page("t", {"check": found})
    assert list(pictures(document)) == ["escape-dimensions.svg", "escape-dimensions-2.svg"]
    text = as_markdown(document, "my page-figures")
    assert "](my%20page-figures/escape-dimensions-2.svg)" in text
    assert text.count('<a id="claim-escape-dimensions-2">') == 1
    own = tmp_path / "report-figures" / "escape-dimensions.svg"
    own.parent.mkdir()
    own.write_text("<svg/>")
    refused = report(".", "--format", "markdown", cwd=tmp_path)
    assert refused.returncode == 5
    assert own.read_text() == "<svg/>"
    assert not (tmp_path / "report.md").exists()


def test_results_are_what_is_in_them_and_not_what_they_are_called(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "width=8" / "final.slice.h5", tmp_path / "x.check.h5")
    done = report(".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 slice" in done.stderr


def test_everything_comes_from_the_files(folder: Path, tmp_path: Path) -> None:
    """What is changed in a file is changed on the page, and nothing of the program's own claim shows through."""
    path = tmp_path / "escape-dimensions.check.h5"
    shutil.copy(folder / path.name, path)
    with h5py.File(path, "r+") as file:
        group = file["check"]
        for name in ("statement", "source", "says_not", "how", "verdict"):
            group.attrs[name] = f"another {name}"
    (section_text,) = [as_html(Document("t", tuple(section(path, read_result(path, "check"), "x"))))]
    for name in ("statement", "source", "says_not", "how", "verdict"):
        assert f"another {name}" in section_text
    for words in (CLAIM.statement, CLAIM.source, CLAIM.says_not, CLAIM.how):
        assert words[:40] not in parsed(section_text).text


def test_markdown_links_figures_beside_it(folder: Path, tmp_path: Path) -> None:
    done = report(
        str(folder), "--format", "markdown", "-o", str(tmp_path / "page.md"), "--title", "Two | claims", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# Two \\| claims\n")
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) == 2
    for link in links:
        assert (tmp_path / link).read_bytes().startswith(b"<?xml")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block
    second = report(str(folder), "--format", "markdown", "-o", str(tmp_path / "page.md"), cwd=folder)
    assert second.returncode == 0, second.stderr  # our own page is replaced


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_any_text_survives(text: str) -> None:
    document = Document(text, (Heading(text), Paragraph(text, text), Table((text, "b"), [[Cell(text), Cell(text)]])))
    assert parsed(as_html(document)).text.count(text) >= 7
    row = as_markdown(document, "x").splitlines()[-1]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


def test_old_results_without_the_new_fields_are_shown(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "escape-dimensions.check.h5"
    shutil.copy(folder / path.name, path)
    with h5py.File(path, "r+") as file:
        del file["check"].attrs["how"]
        for name in ("need", "population", "population_runs", "population_sweep"):
            del file["check"][name]
    done = report(str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "landscape check 'runs/a b'" in parsed((tmp_path / "report.html").read_text()).text


def test_a_broken_file_is_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    (tmp_path / "r" / "bad.check.h5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    done = report("r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad.check.h5 is left out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "does not exist"),
        (("empty",), "holds no results"),
        (("file",), "is a file"),
        (("results", "--format", "pdf"), "html or markdown"),
        (("results", "-o", "page.pdf"), "page.html"),
        (("results", "-o", "mine.html"), "left alone"),
        (("results", "--format", "markdown", "-o", "mine.md"), "left alone"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("file", "mine.html", "mine.md"):
        (tmp_path / name).write_text("mine")
    shutil.copytree(folder, tmp_path / "results")
    before = sorted(tmp_path.rglob("*"))
    done = report(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine.html").read_text() == "mine"


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_without_network_shows_the_page(folder: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    assert report(str(folder), "-o", str(page), cwd=folder).returncode == 0
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    offline = ("--host-resolver-rules=MAP * 0.0.0.0", "--disable-background-networking")
    command = [BROWSER, *flags, *offline, f"--user-data-dir={tmp_path / 'p'}", "--window-size=1000,1600"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ERR_" not in done.stderr
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert (np.abs(pixels - np.array([0, 0x73, 0x4D]) / 255).max(2) < 0.02).sum() > 500  # the verdict's colour
    figure = pixels[500:, :].reshape(-1, 3)
    assert (np.ptp(figure, axis=1) > 0.2).sum() > 300  # curves in colour, below the words


def test_the_summary_names_claims_and_counts(folder: Path) -> None:
    path = folder / "escape-dimensions.check.h5"
    result = read_result(path, "check")
    table = summary([(path, result)])
    row: list[Any] = [c.text for c in table.rows[0]]
    assert row[:2] == ["escape-dimensions", "supported"]
    assert row[3:] == ["300", "60"]
    assert json.dumps(row)
