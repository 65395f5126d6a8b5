"""`landscape export`: values come back exactly, holes stay holes, other programs' rules are kept, errors are clear."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landscape.cli.app import main
from landscape.errors import StorageError, UsageError
from landscape.export.formats import FORMATS, to_csv, to_li, to_npz, to_vtp
from landscape.export.li_format import read_surface
from landscape.figures.slice_planes import draw_slices
from landscape.results.fields import Result
from landscape.results.store import plain_arrays_bytes, read_plain_arrays, read_result, write_result
from landscape.slices.result import Sliced
from landscape.slices.stored import grid_of, triangles
from samples import same, sample_provenance, sample_spectrum
from slices_made import bowl, line, metrics, plane, planes, stored, trajectory, valley, with_holes

Run = Callable[..., tuple[int, str, str]]

ANY_FLOAT = st.floats(width=64, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@st.composite
def slices(draw: st.DrawFn) -> Sliced:
    """Grids of any shape with any numbers in them."""
    ny, nx = draw(st.tuples(st.integers(2, 5), st.integers(2, 5)))
    cells = hnp.arrays(np.float64, (ny, nx), elements=ANY_FLOAT)
    done = draw(hnp.arrays(np.bool_, (ny, nx)))
    return plane(nx, ny, loss=draw(cells), done=done, accuracy=draw(cells), lambda_min=draw(cells))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`landscape ARGUMENTS` in this process and an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["landscape", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            sys.exit(main())  # type: ignore[func-returns-value]
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call


def write(path: str | Path, result: Result, **coordinates: Any) -> Path:
    command = result.group
    write_result(path, result, sample_provenance(command=command, coordinates=coordinates, checkpoint=str(path)))
    return Path(path)


# --- csv and npz ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(slices())
def test_csv_holds_every_cell_exactly(made: Sliced) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(stored(made))[0].decode())))
    assert list(rows[0]) == ["x", "y", "done", "loss", "accuracy", "lambda_min"]
    x, y = np.meshgrid(made.x, made.y)
    for name, field in (("x", x), ("y", y), ("loss", made.loss), ("accuracy", made.accuracy)):
        assert same(np.array([float(row[name]) for row in rows]), np.ravel(field))
    assert [row["done"] for row in rows] == [str(int(d)) for d in made.done.ravel()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(slices())
def test_npz_holds_every_array_and_what_it_means(made: Sliced) -> None:
    data = to_npz(stored(made, width=8))[0]
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        for name, array in made.arrays().items():
            assert same(found[name], array.values), name
            assert found[name].dtype.kind == array.values.dtype.kind
        told = json.loads(str(found["attributes"]))
    assert told["group"] == "slice"
    assert told["line"] is False
    assert told["fields"]["loss"] == {
        "dims": ["y", "x"],
        "units": "loss",
        "long_name": made.declared()["loss"]["long_name"],
    }
    assert told["provenance"]["coordinates"] == {"width": 8}
    assert to_npz(stored(made, width=8))[0] == data


def test_csv_of_a_line_and_of_all_metrics() -> None:
    made = line(5, **metrics(line(5)))
    rows = list(csv.DictReader(io.StringIO(to_csv(stored(made))[0].decode())))
    assert [float(row["x"]) for row in rows] == made.x.tolist()
    assert set(metrics(made)) < set(rows[0])
    extra = planes(plane(4, 3))
    assert "plane_loss" not in to_csv(stored(plane(4, 3, **extra)))[0].decode().splitlines()[0]


# --- Li et al. ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(2, 5), st.data())
def test_li_reads_back_equal(n: int, data: st.DataObject) -> None:
    losses = ANY_FLOAT.filter(lambda v: v != -1)
    loss = data.draw(hnp.arrays(np.float64, (n, n), elements=losses))
    done = data.draw(hnp.arrays(np.bool_, (n, n)))
    share = data.draw(hnp.arrays(np.float64, (n, n), elements=st.floats(0, 1, allow_subnormal=False)))
    made = plane(n, n, loss=loss, done=done, accuracy=share)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "surface.h5"
        path.write_bytes(to_li(stored(made))[0])
        found = read_surface(path).arrays
    assert same(found["done"].values, done)
    assert same(found["loss"].values[done], loss[done])
    assert np.isnan(found["loss"].values[~done]).all()
    assert same(found["x"].values, made.x)
    if done.any():
        np.testing.assert_allclose(found["accuracy"].values[done], share[done], rtol=1e-15)


def test_li_is_what_their_plots_expect(tmp_path: Path) -> None:
    made = with_holes(17, 17, accuracy=np.full((17, 17), 0.25))
    path = tmp_path / "surface.h5"
    path.write_bytes(to_li(stored(made))[0])
    with h5py.File(path) as file:
        assert set(file) == {"xcoordinates", "ycoordinates", "train_loss", "train_acc"}
        loss, accuracy = file["train_loss"][:], file["train_acc"][:]
        assert (loss[~made.done] == -1).all()
        assert (accuracy[~made.done] == -1).all()
        assert (accuracy[made.done] == 25).all()
        row, column = 9, 2  # [i, j] is x[j], y[i]
        assert loss[row, column] == bowl(file["xcoordinates"][column], file["ycoordinates"][row])


def test_li_of_a_line_and_without_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "line.h5"
    path.write_bytes(to_li(stored(line(7)))[0])
    found = read_plain_arrays(path)
    assert set(found) == {"xcoordinates", "train_loss", "train_acc"}  # their plot of a line reads all three
    assert found["train_loss"].shape == (7,)
    assert (found["train_acc"] == -1).all()
    back = read_surface(path)
    assert back.attributes["line"] is True
    assert "accuracy" not in back.arrays
    assert same(back.arrays["loss"].values, line(7).loss)


def test_li_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(UsageError, match="21 x 17 points"):
        to_li(stored(plane(21, 17)))
    loss = plane(3, 3).loss
    loss[1, 1] = -1
    with pytest.raises(UsageError, match="exactly -1"):
        to_li(stored(plane(3, 3, loss=loss)))


def theirs(nx: int, ny: int) -> dict[str, np.ndarray]:
    """What their program writes: an array [nx, ny] filled in the order of meshgrid(x, y)."""
    x, y = np.linspace(-1, 1, nx), np.linspace(-0.5, 0.7, ny)
    loss = np.full((nx, ny), -1.0)
    loss.ravel()[:] = bowl(*(field.ravel() for field in np.meshgrid(x, y)))
    return {"xcoordinates": x, "ycoordinates": y, "train_loss": loss, "train_acc": 100 - 10 * loss}


@pytest.mark.parametrize(("nx", "ny"), [(9, 9), (11, 6)])
def test_surfaces_of_theirs_are_read_and_drawn(run: Run, nx: int, ny: int) -> None:
    arrays = theirs(nx, ny)
    arrays["train_loss"].ravel()[3:5] = -1, np.nan
    Path("width=8").mkdir()
    name = "width=8/model_300.t7_[-1.0,1.0,51].h5"
    Path(name).write_bytes(plain_arrays_bytes(arrays))
    found = read_surface(name)
    x, y = np.meshgrid(arrays["xcoordinates"], arrays["ycoordinates"])
    done = found.arrays["done"].values
    assert np.argwhere(~done).tolist() == [[0, 3]]
    known = np.isfinite(found.arrays["loss"].values)
    assert known.sum() == nx * ny - 2
    np.testing.assert_array_equal(found.arrays["loss"].values[known], bowl(x, y)[known])
    assert found.provenance.coordinates == {"width": 8}
    assert draw_slices([found]).axes
    assert run("plot", name)[:2] == (0, "width=8/model_300.t7_[-1.0,1.0,51].png\n")
    assert run("plot", name, "--html")[:2] == (0, "width=8/model_300.t7_[-1.0,1.0,51].html\n")
    for kind in ("csv", "npz", "vtp"):
        assert run("export", name, "--format", kind)[0] == 0
    rows = list(csv.DictReader(Path("width=8/model_300.t7_[-1.0,1.0,51].csv").read_text().splitlines()))
    assert float(rows[0]["accuracy"]) == pytest.approx(1 - 0.1 * bowl(x, y)[0, 0])


def test_files_that_are_nobodys_surface_are_refused(run: Run) -> None:
    Path("other.h5").write_bytes(plain_arrays_bytes({"weights": np.ones(3)}))
    Path("bent.h5").write_bytes(plain_arrays_bytes(theirs(4, 4) | {"train_loss": np.ones(5)}))
    for name, words in (("other.h5", "neither a landscape result nor a surface"), ("bent.h5", "do not fit together")):
        with pytest.raises(StorageError, match=words):
            read_surface(name)
        for command in (["plot", name], ["export", name, "--format", "csv"]):
            code, out, err = run(*command)
            assert (code, out) == (5, "")
            assert words in err


# --- ParaView -------------------------------------------------------------------------------------------------


def parsed(data: bytes) -> tuple[ElementTree.Element, dict[str, np.ndarray]]:
    root = ElementTree.fromstring(data.decode())
    found = {}
    for array in root.iter("DataArray"):
        values = np.array((array.text or "").split(), dtype=float if array.get("type") == "Float64" else int)
        found[str(array.get("Name"))] = values.reshape(-1, int(array.get("NumberOfComponents", "1"))).squeeze()
    (piece,) = root.iter("Piece")
    return piece, found


@pytest.mark.parametrize("made", [plane(7, 5), with_holes(), plane(9, 9, (2.0, 0.5), valley)])
def test_vtp_is_a_whole_surface(made: Sliced) -> None:
    data, notes = to_vtp(stored(made))
    assert notes == []
    piece, found = parsed(data)
    there = np.isfinite(grid_of(stored(made)).loss)
    points, faces = int(piece.get("NumberOfPoints", 0)), int(piece.get("NumberOfPolys", 0))
    assert points == there.sum() == len(found["points"]) == len(found["loss"])
    assert faces == len(triangles(there))
    assert found["offsets"].tolist() == list(range(3, 3 * faces + 1, 3))
    assert found["connectivity"].size == 3 * faces
    assert 0 <= found["connectivity"].min() <= found["connectivity"].max() == points - 1
    x, y = np.meshgrid(made.x, made.y)
    assert found["loss"].tolist() == made.loss[there].tolist()
    assert found["x"].tolist() == x[there].tolist()
    assert found["y"].tolist() == y[there].tolist()
    np.testing.assert_array_equal(found["log10_loss"], np.log10(made.loss[there]))
    span = np.ptp(found["points"], axis=0)
    assert span[2] == pytest.approx(max(span[0], span[1]) / 2)
    shown = found["log10_loss"] if made.loss[there].max() > 30 * made.loss[there].min() else found["loss"]
    assert np.corrcoef(found["points"][:, 2], shown)[0, 1] == pytest.approx(1)


def test_vtp_leaves_out_what_its_text_cannot_say() -> None:
    field = np.ones((5, 7))
    field[2, 2] = np.nan
    data, notes = to_vtp(stored(plane(7, 5, gradient_norm=field, lambda_max=np.ones((5, 7)))))
    assert notes == ["gradient_norm is left out: VTK's text format has no NaN or Inf"]
    assert set(parsed(data)[1]) == {"loss", "x", "y", "log10_loss", "lambda_max", "points", "connectivity", "offsets"}
    assert b"nan" not in data
    with pytest.raises(UsageError, match="a line has no surface"):
        to_vtp(stored(line()))
    with pytest.raises(UsageError, match="no cell has a finite loss"):
        to_vtp(stored(plane(3, 3, loss=np.full((3, 3), np.nan))))


def test_vtp_is_to_scale() -> None:
    _, found = parsed(to_vtp(stored(plane(5, 5, direction_norm=np.array([2.0, 6.0]))))[0])
    np.testing.assert_allclose(found["points"][:, 1], 3 * found["y"])


# --- the command ----------------------------------------------------------------------------------------------


def test_every_format_goes_beside_its_result_and_prints_its_path(run: Run) -> None:
    path = write("out/width=8/final.slice.h5", plane(5, 5, **trajectory()), width=8)
    for kind, made in FORMATS.items():
        target = f"out/width=8/final.slice{made.suffix}"
        assert run("export", path, "--format", kind) == (0, f"{target}\n", "")
        assert Path(target).read_bytes() == made.convert(read_result(path))[0]


def test_the_format_is_told_by_the_name_of_the_file(run: Run) -> None:
    path = write("final.slice.h5", plane(5, 5))
    for name, start in (("a.csv", b"x,y,done,loss"), ("a.npz", b"PK"), ("a.vtp", b"<?xml"), ("deep/a.h5", b"\x89HDF")):
        assert run("export", path, "-o", name) == (0, f"{name}\n", "")
        assert Path(name).read_bytes().startswith(start)


def test_several_results_are_mirrored_below_a_folder(run: Run) -> None:
    for width in (2, 4):
        write(f"out/width={width}/final.slice.h5", plane(3, 3), width=width)
    code, out, _ = run("export", "out", "--format", "csv", "-o", "tables")
    assert (code, out) == (0, "tables/width=2/final.slice.csv\ntables/width=4/final.slice.csv\n")
    assert run("export", "out/*/*.slice.h5", "--format", "npz")[0] == 0
    assert len(list(Path("out").rglob("*.npz"))) == 2
    code, _, err = run("export", "out", "-o", "one.csv")
    assert code == 2
    assert "2 results were named" in err


def test_all_kinds_of_results_of_a_folder_become_archives(run: Run) -> None:
    write("out/width=2/final.slice.h5", plane(3, 3))
    write_result(Path("out/width=2/final.spectrum.h5"), sample_spectrum(), sample_provenance())
    code, out, _ = run("export", "out", "--format", "npz")
    assert (code, sorted(out.split())) == (0, [f"out/width=2/final.{kind}.npz" for kind in ("slice", "spectrum")])
    code, out, _ = run("export", "out", "--format", "csv")
    assert (code, out) == (0, "out/width=2/final.slice.csv\n")


def test_an_existing_file_is_left_alone_unless_forced(run: Run) -> None:
    path = write("final.slice.h5", plane(3, 3))
    Path("final.slice.csv").write_text("mine")
    code, out, err = run("export", path, "--format", "csv")
    assert (code, out) == (5, "")
    assert "--force" in err
    assert Path("final.slice.csv").read_text() == "mine"
    assert run("export", path, "--format", "csv", "--force")[0] == 0
    assert Path("final.slice.csv").read_text().startswith("x,y")
    Path("folder.csv").mkdir()
    assert run("export", path, "--format", "csv", "-o", "folder.csv")[:2] == (0, "folder.csv/final.slice.csv\n")


def test_npz_takes_every_analysis_and_the_others_say_what_to_do(run: Run) -> None:
    path = write("final.spectrum.h5", sample_spectrum())
    assert run("export", path, "--format", "npz")[:2] == (0, "final.spectrum.npz\n")
    with np.load("final.spectrum.npz") as found:
        assert same(found["top_value"], sample_spectrum().top_value)
    for kind, hint in (("csv", "landscape info final.spectrum.h5 --csv"), ("li", "npz"), ("vtp", "npz")):
        code, out, err = run("export", path, "--format", kind)
        assert (code, out) == (2, "")
        assert "a result of `landscape spectrum`" in err
        assert hint in err


def test_wrong_inputs_are_explained(run: Run) -> None:
    write("wide.slice.h5", plane(5, 3))
    Path("text.h5").write_text("no HDF5 in here")
    Path("cut.slice.h5").write_bytes(Path("wide.slice.h5").read_bytes()[:900])
    Path("final.pt").write_bytes(b"PK")
    Path("empty").mkdir()
    for arguments, code, words in [
        (["wide.slice.h5", "--format", "li"], 2, "wide.slice.h5: the grid has 5 x 3 points"),
        (["wide.slice.h5"], 2, "which format?"),
        (["wide.slice.h5", "-o", "x.txt"], 2, "which format?"),
        (["wide.slice.h5", "--format", "html"], 2, "no such format"),
        (["missing.h5", "--format", "csv"], 2, "missing.h5 does not exist"),
        (["text.h5", "--format", "csv"], 5, "not a landscape result"),
        (["cut.slice.h5", "--format", "csv"], 5, "cut.slice.h5 is damaged"),
        (["final.pt", "--format", "csv"], 2, "looks like a checkpoint"),
        (["empty", "--format", "csv"], 2, "holds no slices"),
        (["nothing*.h5", "--format", "csv"], 2, "No file matches"),
    ]:
        found, out, err = run("export", *arguments)
        assert (found, out) == (code, ""), arguments
        assert words in err
        assert err.startswith("error: ")
        assert "hint: " in err
        assert "Traceback" not in err
    assert not [p for p in Path().iterdir() if p.suffix in (".csv", ".tmp", ".html")]


def test_notes_are_warnings(run: Run) -> None:
    path = write("final.slice.h5", plane(3, 3, accuracy=np.full((3, 3), np.nan)))
    code, _, err = run("export", path, "--format", "vtp")
    assert code == 0
    assert "warning: final.slice.h5: accuracy is left out" in err


def test_exports_beside_results_are_not_taken_for_results(run: Run) -> None:
    path = write("out/final.slice.h5", plane(3, 3))
    assert run("export", path, "--format", "li")[0] == 0
    code, out, _ = run("info", "out", "--csv")
    assert code == 0
    assert out.count("\n") == 2
    assert run("plot", "out")[:2] == (0, "out/final.slice.png\n")
