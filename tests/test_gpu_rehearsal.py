"""`make gpu` rehearsed on the CPU: every phase, resuming, the budget, the page, and what a bare machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import page, run  # noqa: E402


def gpu(*words: object, code: int = 0) -> str:
    """What `make gpu` prints."""
    command = [sys.executable, "-m", "benchmarks.gpu.run", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole rehearsal; peers are there or not."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu("--device", "cpu", "--size", "tiny", "--out", folder)
    return folder / "gpu.json"


def test_every_phase_is_done(rehearsal: Path) -> None:
    found = json.loads(rehearsal.read_text())
    assert {name: phase["status"] for name, phase in found["phases"].items()} == dict.fromkeys(run.LIMITS, "done")
    for name, phase in found["phases"].items():
        ours = [row for row in phase["rows"] if row["who"].startswith("ours")]
        assert ours, name
        assert [row for row in ours if row.get("failed") or "why" in row] == [], name
    errors = [r["error"] for r in found["phases"]["products"]["rows"] if r["who"].startswith("ours")]
    assert max(errors) < 1e-5
    assert {r["outcome"] for r in found["phases"]["tests"]["rows"]} == {"passed"}
    assert found["seconds"] > 0
    assert found["machine"]["versions"]["torch"]
    assert {p.name for p in rehearsal.parent.iterdir()} == {"gpu.json", "gpu.log"}


def test_done_phases_are_not_repeated_and_the_page_refuses_rehearsals(rehearsal: Path) -> None:
    before = json.loads(rehearsal.read_text())["phases"]
    told = gpu("--device", "cpu", "--size", "tiny", "--out", rehearsal.parent, "--resume", rehearsal)
    assert told.count("\n") == 1
    assert json.loads(rehearsal.read_text())["phases"] == before
    assert "--device cpu --size tiny" in gpu("--size", "full", "--device", "cpu", "--resume", rehearsal, code=2)
    assert page.main([str(rehearsal)]) == 2


def test_the_page_shows_every_row(rehearsal: Path) -> None:
    result = json.loads(rehearsal.read_text())
    text = page.page([result])
    for row in (r for phase in result["phases"].values() for r in phase["rows"] if r["row"] != "test"):
        assert row["case"] in text
    assert "not measured" in text
    assert "Tests marked `gpu`: 4 passed" in text


def test_a_budget_that_is_spent_leaves_phases_out(tmp_path: Path) -> None:
    told = gpu(
        "--device", "cpu", "--size", "tiny", "--out", tmp_path, "--budget", 1, "--phases", "slices,memory", code=1
    )
    assert "slices: left out" in told
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {p["status"] for p in found["phases"].values()} == {"left out"}


def test_a_phase_over_its_time_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off in the middle: the rows measured so far are in the file, and a later run replaces them by key."""
    script = (
        "import sys, time; sys.stdin.readline(); open(sys.argv[1], 'a').write('{\"row\": 1}\\n{\"ro'); time.sleep(60)"
    )
    rows = tmp_path / "rows"
    phase = object.__new__(run.Phase)
    phase.name, phase.rows = "slow", rows
    phase.process = subprocess.Popen(
        [sys.executable, "-c", script, str(rows)], stdin=subprocess.PIPE, start_new_session=True
    )
    states = list(run.watched(phase, 3.0))
    assert states[-1]["status"] == "cut off"
    assert states[-1]["rows"] == [{"row": 1}]
    assert phase.process.poll() is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--phases", "products,speed"], "there is no phase 'speed'"),
        (["--device", "cpu", "--resume", "nowhere.json"], "no result of `make gpu`"),
    ],
)
def test_bad_words_are_one_error(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in gpu(*words, "--out", tmp_path, code=2)


def test_without_a_gpu_the_hint_is_the_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "make gpu DEVICE=cpu SIZE=tiny" in gpu("--out", tmp_path, code=2)


def test_only_what_is_missing_and_fits_is_unpacked(tmp_path: Path) -> None:
    wheels, folder = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    names = [
        "one-1.0-py3-none-any", "two_parts-2.0-cp312-cp312-manylinux_2_28_x86_64",
        "three-1-cp39-abi3-manylinux_2_28_x86_64",
        "old-1-cp38-cp38-manylinux_2_28_x86_64", "other-1-cp312-cp312-win_amd64", "there-1-py3-none-any",
    ]  # fmt: skip
    for name in names:
        with zipfile.ZipFile(wheels / f"{name}.whl", "w") as archive:
            archive.writestr(f"{name.split('-')[0]}.py", "")
    done = run.unpack(wheels, folder, ["there"], "cp312")
    assert done == ["one 1.0", "three 1", "two_parts 2.0"]
    assert {p.name for p in folder.iterdir()} == {"one.py", "three.py", "two_parts.py"}


def row(row: str, case: str, who: str, **values: Any) -> dict[str, Any]:
    return {"row": row, "case": case, "who": who, **values}


def test_the_bar_takes_the_later_row_and_says_what_is_only_a_bound() -> None:
    def result(started: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        devices = [{"name": "A card", "memory": 8 * 2**30, "capability": "9.0"}]
        machine = {
            "devices": devices,
            "cpu": "a CPU",
            "cores": 4,
            "driver": "1",
            "python": "3",
            "versions": {"torch": "2"},
        }
        phases = {"spectrum": {"status": "done", "seconds": 1.0, "rows": rows}}
        return {"started": started, "machine": machine, "size": "full", "phases": phases}

    told = {"reference": "float64", "reference_error": 1e-6, "memory": 1, "error": 1e-5, "right": True}
    first = [row("spectrum", "ResNet18 k=8", "ours", seconds=[9.0], **told)]
    later = [
        row("spectrum", "ResNet18 k=8", "ours", seconds=[1.0, 2.0, 9.0], **told),
        row("spectrum", "ResNet18 k=8", "hessian-eigenthings", at_least=30.0, why="no time"),
    ]
    text = page.page([result("2027", later), result("2026", first)])
    assert "| ≥ 5× | ≥ 15× | reached |" in text
    assert "| ResNet18" not in text.split("### whole spectrum")[1]
    assert "≥ 30" in text
    assert page.page([]).count("not measured") == len(page.AIMS)
