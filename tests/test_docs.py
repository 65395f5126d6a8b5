"""Documentation that fails the build when it is stale: help pages, and every command and snippet of the README."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import commands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_cli_page_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "tools" / "cli_page.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text()
    assert page.rendered(text) == text, "run python tools/cli_page.py"
    assert text.count("<!-- help:") == 12


def test_fences_of_the_pages_are_closed() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, page.name
        assert not any(fences[1::2]), f"{page.name}: a fence opens inside another one"


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_readme_commands_and_snippets_run(tmp_path: Path) -> None:
    """In an empty folder, in order, as a newcomer would."""
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    problem, make, library = snippets
    assert len(problem.strip().splitlines()) <= 16
    (tmp_path / "problem.py").write_text(problem)
    (tmp_path / "make_checkpoints.py").write_text(make)
    (tmp_path / "library.py").write_text(library)
    for block in (*blocks, "python library.py"):
        done = commands.typed(block, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "landscape-results").rglob("*.spectrum.h5"))) == 3
    assert len(list((tmp_path / "students").rglob("final.pt"))) == 20
    assert len(list((tmp_path / "landscape-results").rglob("*.descend.pt"))) == 1
    assert (tmp_path / "landscape-results" / "spectra.png").stat().st_size > 10_000
    assert (tmp_path / "spectra.csv").read_text().count("\n") == 4
    rows = {row["width"]: row for row in csv.DictReader((tmp_path / "spectra.csv").read_text().splitlines())}
    first = float(done.stdout.split()[0])  # of the library, about the same checkpoint
    assert first == pytest.approx(float(rows["16"]["top_0"]), rel=1e-5)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_makefile_runs_what_the_readme_promises() -> None:
    for target, expected in (("demo", "landscape spectrum"), ("test", "pytest")):
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert expected in shown


def test_the_results_page_is_made_from_its_result_files(tmp_path: Path) -> None:
    """`docs/results/report.md` and its figures are what `landscape report` writes of the files beside them."""
    folder = ROOT / "docs" / "results"
    made = tmp_path / "docs" / "results"
    shutil.copytree(folder, made, ignore=shutil.ignore_patterns("report*"))
    title = ("--title", "Claims decided on two cores")
    done = commands.run("report", "docs/results", "--format", "markdown", *title, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (made / "report.md").read_text() == (folder / "report.md").read_text(), "make results-page"
    figures = sorted(p.name for p in (folder / "report-figures").iterdir())
    assert sorted(p.name for p in (made / "report-figures").iterdir()) == figures
    for figure in (made / "report-figures").iterdir():
        assert figure.read_bytes() == (folder / "report-figures" / figure.name).read_bytes(), figure.name
