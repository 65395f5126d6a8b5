"""Result files: what is written comes back, other tools read it, and only results are overwritten."""

from __future__ import annotations

import random
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from landscape.errors import StorageError, UsageError
from landscape.results import store
from landscape.results.fields import AXES, Result, Spectrum, field_of
from landscape.results.store import (
    FORMAT,
    is_result_file,
    list_groups,
    locked,
    read_result,
    restore,
    stored_identity,
    write_result,
)
from samples import assert_same_result, same, sample_provenance, sample_spectrum


@dataclass(frozen=True)
class Other(Result):
    """A second analysis, for files with two groups."""

    group: ClassVar[str] = "other"
    sharp: bool
    value: np.ndarray = field_of("a value", "top", units="loss")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pairs": 0},
        {"pairs": 1, "loss": float("nan"), "excluded_below": float("-inf")},
        {"grid": None, "density": None, "density_low": None, "density_high": None, "kernel_width": None},
        {"layer": np.array(["Größe", "", "b" * 500]), "tensor": np.array([], dtype=str)},
        {"top_vector": np.random.default_rng(0).normal(size=(3, 40)), "data_samples": 5000},
        {"top_value": np.array([3.0, 2.0, 1.0], dtype=np.float32)},
    ],
)
def test_round_trip(tmp_path: Path, overrides: dict[str, Any]) -> None:
    if "layer" in overrides:
        overrides |= {n: np.zeros(3) for n in Spectrum.declared() if n.startswith("layer_")}
        overrides |= {"tensor_size": np.array([], dtype=np.int64)}
    result, provenance = sample_spectrum(**overrides), sample_provenance()
    path = tmp_path / "new" / "folder" / "a.spectrum.h5"
    write_result(path, result, provenance)
    stored = read_result(path)
    assert stored.group == "spectrum"
    assert stored.provenance == provenance
    assert stored.attributes == {"operator": "hessian", "strategy": "kept", "exact": True}
    assert set(stored.arrays) == set(result.arrays())
    for name, array in result.arrays().items():
        got = stored.arrays[name]
        assert (got.dims, got.units, got.long_name) == (array.dims, array.units, array.long_name)
        assert got.values.dtype == array.values.dtype or array.values.dtype.kind == "U", name
        assert same(got.values, array.values), name
    assert_same_result(restore(stored, Spectrum), result)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_provenance_of_awkward_values(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    provenance = sample_provenance(
        checkpoint="läufe/ü.pt", header={"big": "x" * 200_000, "nested": {"a": [1, None]}}, notes=("ä", "b")
    )
    write_result(path, sample_spectrum(), provenance)
    assert read_result(path).provenance == provenance
    write_result(path, sample_spectrum(), sample_provenance(settings={"tau": float("nan"), "at": (1, 2)}))
    assert read_result(path).provenance.settings == {"tau": None, "at": [1, 2]}


def test_only_the_axes_that_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(top_vector=np.zeros((3, 40))), sample_provenance())
    arrays = read_result(path, axes=("top", "tau")).arrays
    assert {d for a in arrays.values() for d in a.dims} == {"top", "tau"}
    assert "top_vector" not in arrays
    assert float(arrays["loss"].values) == 0.123


def test_two_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, [sample_spectrum(), Other(False, np.array([1.0]))], sample_provenance())
    assert list_groups(path) == ["spectrum", "other"]
    assert restore(read_result(path, "other"), Other).sharp is False
    with pytest.raises(UsageError, match="holds 2 results"):
        read_result(path)
    with pytest.raises(UsageError, match="no result called slice"):
        read_result(path, "slice")
    with pytest.raises(StorageError, match="lacks"):
        restore(read_result(path, "other"), Spectrum)
    with pytest.raises(ValueError, match="one result per group"):
        write_result(path, [sample_spectrum(), sample_spectrum()], sample_provenance())
    with pytest.raises(ValueError, match="one result per group"):
        write_result(path, [], sample_provenance())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"top_residual": np.zeros(2)}, "along top"),
        ({"top_value": np.zeros((3, 3))}, "declares the axes"),
        ({"top_value": np.zeros(3, dtype=np.complex128)}, "dtype complex128"),
    ],
)
def test_inconsistent_results_are_bugs(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        write_result(tmp_path / "a.h5", sample_spectrum(**overrides), sample_provenance())
    assert list(tmp_path.iterdir()) == []


def test_axes_that_have_a_coordinate_are_named_like_it() -> None:
    assert all(coordinate in (None, axis) for axis, (_, coordinate) in AXES.items())


def test_a_file_that_another_library_has_open_is_read(tmp_path: Path) -> None:
    """In a notebook xarray keeps it open, with locks."""
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance())
    with h5py.File(path, "r", locking=True):
        assert list_groups(path) == ["spectrum"]
        assert read_result(path, "spectrum").arrays


def test_xarray_reads_a_labelled_data_set(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of xarray and its backends are not ours
        import xarray

        data = xarray.open_dataset(path, group="spectrum", engine="h5netcdf").load()
    assert data.top_value.dims == ("top",)
    assert list(data.layer.values) == ["hidden", "head"]
    assert float(data.layer_top.sel(layer="head")) == 2.2
    assert float(data.negative_mass.sel(tau=1e-4)) > 0
    assert data.density.dims == ("grid",)
    assert float(data.grid[0]) < 0
    assert data.node.dims == ("probe", "step")
    assert data.top_converged.dtype == bool
    assert data.top_value.attrs["units"] == "loss / parameter^2"
    assert data.attrs["operator"] == "hessian"
    assert data.attrs["sha256"] == "ab" * 32


def test_file_is_plain_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(top_vector=np.zeros((3, 40))), sample_provenance())
    with h5py.File(path, "r") as file:
        assert file.attrs["landscape_format"] == FORMAT
        group = file["spectrum"]
        assert all({"units", "long_name"} <= set(d.attrs) for d in group.values())
        assert all(len(axis) == 1 for d in group.values() if d.attrs.get("CLASS") is None for axis in d.dims)
        assert group["top_vector"].compression == "gzip"
        assert group["top_vector"].shuffle
        assert group["top_vector"].fletcher32
        assert group["loss"].dtype == np.float64
        assert group["top_converged"].dtype == np.uint8


def test_ncdump_reads_it(tmp_path: Path) -> None:
    ncdump = shutil.which("ncdump")
    if ncdump is None:
        pytest.skip("ncdump is not installed")
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance())
    header = subprocess.run([ncdump, "-h", str(path)], capture_output=True, text=True, check=True).stdout
    assert "double top_value(top)" in header


# ---- what is in the way -------------------------------------------------------------------------------------


def test_overwrites_results_only(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance(identity="1"))
    write_result(path, sample_spectrum(), sample_provenance(identity="2"))
    assert stored_identity(path, "spectrum") == ("2", "complete")
    assert stored_identity(path, "slice") is None
    assert stored_identity(tmp_path / "none.h5", "spectrum") is None
    foreign = tmp_path / "thesis.txt"
    foreign.write_text("four years of work")
    with pytest.raises(StorageError, match="not a landscape result") as caught:
        write_result(foreign, sample_spectrum(), sample_provenance())
    assert "--force" in (caught.value.hint or "")
    assert foreign.read_text() == "four years of work"
    write_result(foreign, sample_spectrum(), sample_provenance(), force=True)
    assert is_result_file(foreign)


def test_folder_is_never_replaced(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(StorageError, match="is a folder"):
            write_result(tmp_path, sample_spectrum(), sample_provenance(), force=force)


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.h5", tmp_path / "file" / "b" / "a.h5"):
        with pytest.raises(StorageError, match="is a file, not a folder"):
            write_result(path, sample_spectrum(), sample_provenance())
        with pytest.raises(StorageError, match="is a file, not a folder"), locked(path):
            pass


def damaged_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.h5"
    write_result(good, sample_spectrum(), sample_provenance())
    data = good.read_bytes()
    contents = {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2], "header": data[:512]}
    for name, content in contents.items():
        (folder / f"{name}.h5").write_bytes(content)
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["spectrum/x"] = np.zeros(3)
    shutil.copy(good, folder / "bare.h5")
    with h5py.File(folder / "bare.h5", "r+") as file:
        del file["spectrum"].attrs["identity"]
        del file["spectrum"].attrs["settings"]
    return {p.stem: p for p in folder.glob("*.h5") if p != good}


def test_damaged_files_are_told_clearly(tmp_path: Path) -> None:
    for name, path in damaged_files(tmp_path).items():
        for use in (lambda p: read_result(p, "spectrum"), lambda p: stored_identity(p, "spectrum")):
            with pytest.raises(StorageError, match="not a landscape result") as caught:
                use(path)
            assert caught.value.hint, name
            assert "\n" not in caught.value.message
    for path in (tmp_path / "missing.h5", tmp_path):
        with pytest.raises(StorageError, match="cannot read"):
            read_result(path)
        assert not is_result_file(path)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance())
    with h5py.File(path, "r+") as file:
        file.attrs["landscape_format"] = FORMAT + 1
    with pytest.raises(StorageError, match=f"format version {FORMAT + 1}"):
        read_result(path)
    assert is_result_file(path)


def test_flipped_bytes_never_give_a_traceback_or_a_wrong_array(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance())
    data, wanted = path.read_bytes(), sample_spectrum().arrays()["density"].values
    rng = random.Random(0)
    for _ in range(60):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            arrays = read_result(path, "spectrum").arrays
        except (StorageError, UsageError):
            continue
        if "density" in arrays and arrays["density"].values.shape == wanted.shape:
            assert same(arrays["density"].values, wanted)  # its checksum guards it


def test_only_the_store_imports_h5py() -> None:
    source = Path(store.__file__).parent
    users = [p.name for p in source.rglob("*.py") if "import h5py" in p.read_text()]
    assert users == ["store.py"]
