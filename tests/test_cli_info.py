"""`landscape info`: files, folders, the tidy table; one bad file never hides the others."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from landscape.cli.info import info
from landscape.cli.views import info as describe
from landscape.errors import BatchError, CheckpointError, LandscapeError, StorageError, UsageError
from landscape.results.fields import Result, field_of
from landscape.results.store import write_result
from samples import sample_provenance, sample_spectrum


@dataclass(frozen=True)
class Other(Result):
    """A second analysis in the same file."""

    group: ClassVar[str] = "other"
    value: float = field_of("a value")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Results of three checkpoints that differ in what they hold."""
    for width, pairs in ((64, 3), (8, 1), (16, 0)):
        how = sample_provenance(
            coordinates={"width": width, "seed": 3} | ({"loss": "mse"} if width == 8 else {}),
            checkpoint=f"runs/width={width}/final.pt",
            status="complete" if width != 16 else "interrupted",
        )
        result = sample_spectrum(pairs=pairs, loss=float("nan") if width == 16 else width / 10)
        write_result(tmp_path / f"width={width}" / "final.spectrum.h5", result, how)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *paths: Path | str, **options: bool) -> str:
    info([str(p) for p in paths], options.get("as_csv", False), options.get("as_json", False))
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_tidy_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, sweep, as_csv=True)
    rows = table(text)
    columns = text.splitlines()[0].split(",")
    assert [row["width"] for row in rows] == ["8", "16", "64"]
    assert columns[:7] == ["checkpoint", "coordinate_loss", "seed", "width", "status", "operator", "exact"]
    assert columns[-8:] == ["products", "seconds", "dtype", "device", "strategy", "sha256", "group", "result"]
    assert [row["status"] for row in rows] == ["complete", "interrupted", "complete"]
    spectrum = sample_spectrum()
    assert float(rows[2]["top_2"]) == spectrum.top_value[2]
    assert float(rows[2]["top_2_residual"]) == 1e-5
    assert (rows[2]["bottom_1_converged"], rows[2]["bottom_2_converged"]) == ("True", "False")
    assert rows[0]["top_1"] == rows[1]["top_0"] == ""  # missing is empty
    assert rows[1]["loss"] == "nan"  # NaN is a value
    assert (rows[0]["loss"], rows[0]["coordinate_loss"], rows[1]["coordinate_loss"]) == ("0.8", "mse", "")
    assert int(rows[0]["negative_count_exact@1e-06"]) == spectrum.negative_count_exact[0]  # type: ignore[index]
    assert {"tau_absolute@0.0001", "negative_mass_high@0.01"} <= set(columns)
    at = [columns.index(c) for c in ("top_0", "top_0_residual", "top_1", "top_2_converged", "bottom_0")]
    assert at == sorted(at)
    assert [Path(row["result"]).parent.name for row in rows] == ["width=8", "width=16", "width=64"]
    assert not any("eigenvalues" in c or "density" in c for c in columns)


def test_tidy_table_of_files_and_groups(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep / "width=8" / "final.spectrum.h5"
    write_result(path, [sample_spectrum(), Other(2.5)], sample_provenance())
    rows = table(run(capsys, path, as_csv=True))
    assert [(row["group"], row["value"]) for row in rows] == [("spectrum", ""), ("other", "2.5")]
    assert len(table(run(capsys, sweep, path, as_csv=True))) == 4  # once, though named twice
    assert len(table(run(capsys, str(sweep / "width=*" / "*.h5"), as_csv=True))) == 4


def test_one_bad_file_hides_no_other(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "cut.h5").write_bytes((sweep / "width=8" / "final.spectrum.h5").read_bytes()[:3000])
    (sweep / ".a.h5.123.tmp").write_text("half")
    for options, count in (({"as_csv": True}, 4), ({"as_json": True}, 3), ({}, 5)):
        with pytest.raises(BatchError, match="1 of 4 files") as caught:
            run(capsys, sweep, **options)
        assert caught.value.exit_code == 6
        said = capsys.readouterr()
        assert len(said.out.strip().splitlines()) == count
        assert len(said.err.strip().splitlines()) == 1
        assert said.err.startswith("warning: ")
        assert "cut.h5 is damaged" in said.err
    with pytest.raises(BatchError, match="2 of 3 files"):
        run(capsys, sweep / "cut.h5", sweep / "none.pt", sweep / "width=8" / "final.spectrum.h5")


def test_result_file_as_json(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep / "width=64" / "final.spectrum.h5"
    found = json.loads(run(capsys, path, as_json=True))
    group = found["groups"]["spectrum"]
    assert (found["kind"], found["path"]) == ("result", str(path))
    assert group["provenance"]["coordinates"] == {"width": 64, "seed": 3}
    assert group["attributes"]["exact"] is True
    assert group["arrays"]["node"]["dims"] == ["probe", "step"]
    assert group["arrays"]["node"]["shape"] == [4, 10]
    assert group["arrays"]["loss"]["value"] == 6.4
    assert group["arrays"]["top_converged"]["true"] == 2
    eigenvalues = sample_spectrum().eigenvalues
    assert eigenvalues is not None
    assert group["arrays"]["eigenvalues"]["min"] == eigenvalues[0]
    assert group["headline"]["top"] == {"value": eigenvalues[-1], "residual": 1e-5, "converged": True}
    assert group["headline"]["negative"]["high"] - group["headline"]["negative"]["low"] == 2
    empty = json.loads(run(capsys, sweep / "width=16" / "final.spectrum.h5", as_json=True))["groups"]["spectrum"]
    assert empty["arrays"]["loss"]["value"] is None
    assert "top" not in empty["headline"]


def test_result_file_for_people(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for width in (64, 16):
        text = run(capsys, sweep / f"width={width}" / "final.spectrum.h5")
        assert "\x1b" not in text
        assert "─" not in text
        assert f"width={width}, seed=3" in text
        assert "213 products" in text
        assert "probe 4 x step 10" in text
    assert "not converged" not in text
    text = run(capsys, sweep / "width=8" / "final.spectrum.h5")
    assert "largest eigenvalue" in text
    assert "3.5 ± 1.0e-05" in text


def test_terminal_of_80_columns(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(describe, "stdout", Console(file=out, width=80, force_terminal=True, color_system=None))
    found = describe.describe_result(sweep / "width=64" / "final.spectrum.h5")
    describe.print_result(found)
    lines = out.getvalue().splitlines()[1:]  # the first is the path, never wrapped
    assert max(map(len, lines)) <= 80
    assert any("negative_count_high" in line for line in lines)  # names are not folded
    assert any("loss/parameter^2" in line for line in lines)


def save(path: Path, **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3, dtype=torch.float64), **extra}, path)
    return path


def test_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "width=64" / "seed=3.pt", steps=torch.tensor(7))
    found = json.loads(run(capsys, path, as_json=True))
    assert (found["tensors"], found["entries"]) == (3, 10)
    assert found["dtypes"]["float32"] == {"tensors": 1, "entries": 6}
    assert found["coordinates"]["width"] == 64
    assert len(found["sha256"]) == 64
    text = run(capsys, path)
    assert "10 entries" in text
    assert "NaN or Inf" in text


def test_folder_for_people(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(sweep / "width=8" / "final.pt")
    text = run(capsys, sweep)
    assert f"results in {sweep}: 3\n" in text
    assert f"checkpoints in {sweep}: 1\n" in text
    assert text.index("width=8/final.spectrum.h5") < text.index("width=64/final.spectrum.h5")
    row = next(line for line in text.splitlines() if "width=64/final.spectrum.h5" in line)
    assert row.count("±") == 2
    lines = run(capsys, sweep, as_json=True).splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["result"] * 3 + ["checkpoint"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("option", [[], ["--csv"], ["--json"]])
def test_a_full_disk_behind_a_redirection_is_one_error(option: list[str], sweep: Path) -> None:
    command = [sys.executable, "-m", "landscape", "info", str(sweep), *option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (lambda d: d / "none.pt", {}, UsageError, "no such file"),
        (lambda d: d / "*.pt", {}, UsageError, "nothing matches"),
        (lambda d: d, {}, UsageError, "neither results nor checkpoints"),
        (lambda d: d, {"as_csv": True}, UsageError, "no results in"),
        (lambda d: d, {"as_csv": True, "as_json": True}, UsageError, "exclude each other"),
        (lambda d: d / "text.h5", {}, StorageError, "not a landscape result"),
        (lambda d: d / "text.h5", {"as_csv": True}, StorageError, "not a landscape result"),
        (lambda d: d / "text.pt", {"as_csv": True}, StorageError, "not a result file"),
        (lambda d: d / "text.pt", {}, CheckpointError, "text.pt"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Any,
    options: dict[str, bool],
    error: type[LandscapeError],
    words: str,
) -> None:
    path = make(tmp_path)
    if path.stem == "text":
        path.write_text("not a checkpoint, not a result")
    with pytest.raises(error, match=words) as caught:
        run(capsys, path, **options)
    assert caught.value.hint


def test_pipe_that_closes_early(sweep: Path) -> None:
    script = sweep / "script.py"
    script.write_text(f"from landscape.cli.info import info\ninfo([{str(sweep)!r}] * 400, False, True)\n")
    command = f"{sys.executable} {script} | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (len(done.stdout), done.stderr) == (10, "")


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, landscape.cli.info; print([m for m in ('torch', 'numpy', 'h5py') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "ImportError" in said.stderr and "landscape.cli" in said.stderr:
        pytest.skip("another command is not importable")
    assert said.stdout == "[]\n", said.stderr


def test_arrays_with_nothing_but_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(top_value=np.full(3, np.nan)), sample_provenance())
    array = json.loads(run(capsys, path, as_json=True))["groups"]["spectrum"]["arrays"]["top_value"]
    assert array["nan"] == 3
    assert "min" not in array
    assert "top 3, 3 NaN" in run(capsys, path)
