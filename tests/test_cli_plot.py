"""`landscape plot`: which files it finds, where it writes, what it refuses, and how it says so."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.cli.app import main
from landscape.cli.plot import find_results
from landscape.points.descend import descend
from landscape.results.fields import Result, field_of
from landscape.results.store import write_result
from samples import sample_provenance, sample_spectrum
from slices_made import bowl, line, plane
from surfaces import quadratic, surface


@dataclasses.dataclass(frozen=True)
class Other(Result):
    """A result of another command."""

    group = "other"

    loss: float = field_of("loss")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two widths with two seeds in `out`, with that folder's parent as the working directory."""
    monkeypatch.chdir(tmp_path)
    for width in (8, 64):
        for seed in (0, 1):
            place = sample_provenance(coordinates={"width": width, "seed": seed}, checkpoint=f"{width}/{seed}.pt")
            folder = tmp_path / "out" / f"width={width}" / f"seed={seed}"
            write_result(folder / "final.spectrum.h5", sample_spectrum(loss=0.1 * width + seed), place)
    return tmp_path / "out"


def one(sweep: Path) -> Path:
    return sweep / "width=8" / "seed=0" / "final.spectrum.h5"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`landscape plot ARGUMENTS` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["landscape", "plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            sys.exit(main())  # type: ignore[func-returns-value]
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


def test_one_result_goes_beside_it(sweep: Path, run: Run) -> None:
    code, out, err = run(one(sweep))
    target = one(sweep).with_suffix(".png")
    assert (code, out, err) == (0, f"{target}\n", "")
    assert target.read_bytes().startswith(b"\x89PNG")
    assert not [p for p in target.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments", [["out"], ["out/**/*.spectrum.h5"], ["out/width=*"], ["out/width=8", "out/*64/*"], ["out", "out/*"]]
)
def test_folders_and_globs(sweep: Path, arguments: list[str]) -> None:
    found = [path.resolve() for path in find_results(arguments)]
    assert sorted(found) == sorted(sweep.rglob("*.h5"))


@pytest.mark.parametrize("named", ["here", "here/**/*.spectrum.h5", "here/width=*"])
def test_numbers_in_paths_are_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    for width in (128, 2, 16):
        (tmp_path / "here" / f"width={width}").mkdir(parents=True)
        (tmp_path / "here" / f"width={width}" / "final.spectrum.h5").touch()
    assert [path.parent.name for path in find_results([named])] == ["width=2", "width=16", "width=128"]


def test_several_results_have_a_default_place(sweep: Path, run: Run) -> None:
    assert run("out")[:2] == (0, f"{Path('landscape-results') / 'spectra.png'}\n")
    assert Path("landscape-results/spectra.png").is_file()


def test_a_file_named_twice_counts_once(sweep: Path) -> None:
    path = one(sweep)
    assert find_results([str(path), os.path.relpath(path), "out/width=8/**/seed=0/*.h5"]) == [path]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_repetition_replaces_our_own_figure_by_the_same_bytes(sweep: Path, run: Run, suffix: str) -> None:
    target = Path(f"new/folder/figure.{suffix}")
    assert run(one(sweep), "-o", target)[0] == 0
    first = target.read_bytes()
    assert run(one(sweep), "-o", target)[0] == 0
    assert target.read_bytes() == first
    code, out, err = run(one(sweep), "-o", "new/folder")
    assert (code, out) == (0, "new/folder/final.spectrum.png\n"), err


def test_a_foreign_file_is_left_alone_unless_forced(sweep: Path, run: Run) -> None:
    target = Path("holiday.png")
    target.write_bytes(b"\x89PNG not ours")
    code, out, err = run(one(sweep), "-o", target)
    assert (code, out) == (5, "")
    assert "not a figure that landscape wrote" in err
    assert "--force" in err
    assert target.read_bytes() == b"\x89PNG not ours"
    assert run(one(sweep), "-o", target, "--force")[0] == 0
    assert target.stat().st_size > 1000


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.h5"])
def test_unknown_formats_are_refused(sweep: Path, run: Run, name: str) -> None:
    code, _, err = run("out", "-o", name)
    assert code == 2
    assert ".png, .svg, .pdf" in err
    assert not Path(name).exists()


def test_by_chooses_the_coordinate(sweep: Path, run: Run) -> None:
    assert run("out", "--by", "seed", "-o", "a.svg")[0] == 0
    assert "against seed" in Path("a.svg").read_text()  # glyphs are paths, their text is in comments
    for names in (["out"], [one(sweep)]):
        code, _, err = run(*names, "--by", "depth")
        assert code == 2
        assert "no coordinate 'depth'" in err
        assert "width" in err


def test_wrong_inputs_are_explained(sweep: Path, run: Run) -> None:
    write_result("other.other.h5", Other(loss=1.0), sample_provenance())
    write_result("ggn.spectrum.h5", sample_spectrum(operator="ggn"), sample_provenance())
    Path("empty").mkdir()
    Path("final.pt").write_bytes(b"PK")
    Path("text.h5").write_text("no HDF5 in here")
    for arguments, code, words in [
        (["other.other.h5"], 2, "no result called spectrum"),
        (["missing.h5"], 2, "missing.h5 does not exist"),
        (["nothing*.h5"], 2, "No file matches"),
        (["empty"], 2, "holds no spectra"),
        (["final.pt"], 2, "landscape spectrum final.pt"),
        (["text.h5"], 5, "not a landscape result"),
        (["out", "ggn.spectrum.h5"], 2, "different operators (ggn, hessian)"),
    ]:
        found, out, err = run(*arguments)
        assert (found, out) == (code, ""), arguments
        assert words in err
        assert err.startswith("error: ")
        assert "hint: " in err
        assert "Traceback" not in err
    assert not Path("landscape-results").exists()


def test_an_unwritable_place_is_an_error_of_the_disk(sweep: Path, run: Run) -> None:
    Path("file").write_text("")
    code, _, err = run(one(sweep), "-o", "file/figure.png")
    assert code == 5
    assert err.startswith("error: cannot write file/figure.png")


def test_what_readers_must_know_is_a_warning(sweep: Path, run: Run) -> None:
    names = ("grid", "density", "density_low", "density_high", "kernel_width", "node", "weight", "eigenvalues")
    bare = sample_spectrum(exact=False, samples=5, **dict.fromkeys(names))
    write_result("bare.spectrum.h5", bare, sample_provenance(coordinates={"width": 16}, status="interrupted"))
    code, out, err = run("bare.spectrum.h5")
    assert (code, out) == (0, "bare.spectrum.png\n")
    assert "warning: 1 of 1 results hold no density" in err
    code, _, err = run("out", "bare.spectrum.h5")
    assert code == 0
    assert "warning: 1 of 5 results are of unfinished runs" in err
    assert "numbers of samples" in err


def test_a_sweep_with_a_diverged_member_is_drawn(sweep: Path, run: Run) -> None:
    nan = np.full(3, np.nan)
    bad = sample_spectrum(top_value=nan, bottom_value=nan, eigenvalues=None, density=np.full(200, np.nan), loss=np.nan)
    write_result("out/bad.spectrum.h5", bad, sample_provenance(coordinates={"width": 128, "seed": 0}))
    assert run("out")[0] == 0


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, landscape.cli.plot; print({'torch', 'matplotlib', 'numpy', 'h5py'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@pytest.fixture
def descents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real descents of two widths."""
    monkeypatch.chdir(tmp_path)
    for width in (2, 3):
        for seed in (0, 1):
            place = sample_provenance(command="descend", coordinates={"width": width, "seed": seed})
            start = torch.full((width,), 1.0 + seed, dtype=torch.float64)
            found = descend(surface(quadratic(torch.linspace(1, 2, width, dtype=torch.float64)), start))
            folder = tmp_path / "out" / f"width={width}" / f"seed={seed}"
            write_result(folder / "final.descend.h5", found, place)
    return tmp_path / "out"


def test_descents_are_drawn_where_there_are_no_spectra(descents: Path, run: Run) -> None:
    assert run(descents) == (0, "landscape-results/descents.png\n", "")
    single = descents / "width=2" / "seed=0" / "final.descend.h5"
    assert run(single)[:2] == (0, f"{single.with_suffix('.png')}\n")
    assert single.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_different_analyses_share_no_figure(descents: Path, run: Run) -> None:
    other = descents / "a.spectrum.h5"
    write_result(other, sample_spectrum(), sample_provenance())
    code, out, err = run(other, descents / "width=2" / "seed=0" / "final.descend.h5")
    assert (code, out) == (2, "")
    assert "different analyses" in err
    assert run(descents, "-o", "x.png")[0] == 0  # of the folder, the spectra


def test_what_failed_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    for width in (2, 4, 8):
        status = "failed" if width == 4 else "complete"
        place = sample_provenance(status=status, coordinates={"width": width})
        write_result(Path(f"out/width={width}/final.spectrum.h5"), sample_spectrum(), place)
    code, out, err = run("out")
    assert (code, out) == (0, "landscape-results/spectra.png\n")
    assert "warning: out/width=4/final.spectrum.h5" in err
    both = Path("landscape-results/spectra.png").read_bytes()
    run("out/width=2", "out/width=8", "-o", "two.png")
    assert Path("two.png").read_bytes() == both
    code, out, err = run("out/width=4")
    assert (code, out) == (2, "")
    assert "nothing to draw" in err


@pytest.fixture
def slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Planes of two widths, and of one width a line."""
    monkeypatch.chdir(tmp_path)
    for width in (2, 4):
        made = plane(7, 5, surface=lambda x, y, w=width: w * bowl(x, y))  # type: ignore[misc]
        place = sample_provenance(command="slice", coordinates={"width": width})
        write_result(tmp_path / "out" / f"width={width}" / "final.slice.h5", made, place)
    write_result(tmp_path / "line.slice.h5", line(), sample_provenance(command="slice"))
    return tmp_path / "out"


def test_slices_are_drawn_one_or_several(slices: Path, run: Run) -> None:
    single = slices / "width=2" / "final.slice.h5"
    assert run(single) == (0, f"{single.with_suffix('.png')}\n", "")
    assert run(slices) == (0, "landscape-results/slices.png\n", "")
    assert run("line.slice.h5", "-o", "line.svg")[0] == 0
    code, out, err = run(slices, "line.slice.h5")
    assert (code, out) == (2, "")
    assert "1 of 3 slices are lines" in err


def test_what_differs_between_slices_is_a_warning(slices: Path, run: Run) -> None:
    place = sample_provenance(command="slice", coordinates={"width": 8}, status="interrupted")
    write_result("part.slice.h5", plane(7, 5, samples=50), place)
    code, _, err = run(slices, "part.slice.h5")
    assert code == 0
    assert "warning: results of different numbers of samples are drawn together" in err
    assert "warning: 1 of 3 results are of unfinished runs" in err
    assert "pooled" not in err


def test_a_page_of_one_slice(slices: Path, run: Run) -> None:
    single = slices / "width=2" / "final.slice.h5"
    page = single.with_suffix(".html")
    assert run(single, "--html") == (0, f"{page}\n", "")
    first = page.read_bytes()
    assert run(single, "--html")[0] == 0
    assert page.read_bytes() == first
    assert run("line.slice.h5", "-o", "deep/line.html")[:2] == (0, "deep/line.html\n")
    write_result("final.spectrum.h5", sample_spectrum(), sample_provenance())
    Path("mine.html").write_text("<!DOCTYPE html><html></html>")
    for arguments, code, words in [
        ([slices, "--html"], 2, "a page shows one slice, and 2 were named"),
        (["final.spectrum.h5", "--html"], 2, "a result of `landscape spectrum`"),
        ([single, "--html", "-o", "figure.png"], 2, "such as figure.html"),
        ([single, "--html", "-o", "mine.html"], 5, "not a figure that landscape wrote"),
    ]:
        found, out, err = run(*arguments)
        assert (found, out) == (code, ""), arguments
        assert words in err
        assert "hint: " in err
    assert run(single, "-o", "mine.html", "--force")[0] == 0
