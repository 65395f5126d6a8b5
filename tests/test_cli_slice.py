"""`landscape slice` as users meet it: output, resumption after kill -9, workers, mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import commands
from landscape.checkpoints.checkpoint import write_checkpoint
from landscape.models import build_model
from landscape.results.store import list_groups, read_result

DIGITS = {"inputs": 64, "outputs": 10, "width": 6, "activation": "tanh"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small checkpoints: three steps of one run, another seed, another width."""
    folder = tmp_path_factory.mktemp("runs")
    header: dict[str, Any] = {"model": "mlp", "data": "digits", "loss": "cross_entropy"}
    for name, width, seed in (("a", 6, 0), ("b", 6, 1), ("c", 6, 2), ("wide", 9, 0)):
        chosen = DIGITS | {"width": width}
        header |= {"model_settings": chosen, "coordinates": {"width": width, "seed": seed}}
        write_checkpoint(folder / f"{name}.pt", build_model("mlp", chosen, seed), header)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "landscape", *arguments]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments, cwd=cwd, XDG_CACHE_HOME=str(cwd / "cache"))


def surface(path: Path) -> np.ndarray:
    return read_result(path, "slice").arrays["loss"].values


def test_a_slice_prints_writes_and_repeats(runs: Path) -> None:
    options = ("slice", "a.pt", "--points", "7x5", "--metric", "accuracy", "-o", "first")
    done = run(*options, "--json", cwd=runs)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["shape"] == [5, 7]
    assert report["loss"]["min"] <= report["loss"]["centre"] <= report["loss"]["max"]
    check = report["self_check"]
    assert check["slope_error"] <= check["slope_tolerance"]
    assert check["curvature_error"] <= check["curvature_tolerance"]
    assert check["faults"] == []
    assert list_groups(runs / report["result"]) == ["slice"]
    stored = read_result(runs / report["result"], "slice")
    assert stored.arrays["loss"].dims == ("y", "x")
    assert stored.provenance.status == "complete"
    assert not list((runs / "first").glob(".*"))
    again = run(*options, "--json", cwd=runs)
    assert json.loads(again.stdout) == report
    assert "done already" in again.stderr
    table = run(*options, cwd=runs).stdout
    assert max(map(len, table.splitlines())) <= 80
    assert "self-check: passed" in table
    other = run(*options[:3], "5x5", *options[4:], cwd=runs)
    assert other.returncode == 5
    assert "--force" in other.stderr
    info = run("info", report["result"], cwd=runs)
    assert info.returncode == 0, info.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_time_it_ends_in_the_same_bits(workers: int, runs: Path) -> None:
    options = ("slice", "a.pt", "--points", "45x37", "--repeat", "2", "--json")
    whole = run(*options, "-o", "whole", "--force", cwd=runs)
    assert whole.returncode == 0, whole.stderr
    out = f"killed-{workers}"
    place = runs / out / "a.slice.h5"
    aside = place.with_name(f".{place.name}.pieces")
    again = (*options, "-o", out, "--workers", str(workers))
    sizes = []
    for pause in (0.0, 0.05, 0.4):
        process = subprocess.Popen(
            command(*again), cwd=runs, env=environment(runs), stdout=-3, stderr=-3, start_new_session=True
        )
        until = time.monotonic() + 60
        while not aside.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["pkill", "-9", "-f", str(place)], check=False)  # workers have groups of their own
        sizes.append(aside.stat().st_size if aside.exists() else 0)
    done = run(*again, cwd=runs)
    assert done.returncode == 0, done.stderr
    assert any(sizes)
    assert surface(place).tobytes() == surface(runs / "whole" / "a.slice.h5").tobytes()
    assert not list(place.parent.glob(".*"))


def test_interrupted_it_says_so_and_keeps_what_it_has(runs: Path) -> None:
    options = ("slice", "a.pt", "--points", "61x61", "--repeat", "2", "--json", "-o", "stopped")
    process = subprocess.Popen(
        command(*options), cwd=runs, env=environment(runs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    place = runs / "stopped" / "a.slice.h5"
    aside = place.with_name(f".{place.name}.pieces")
    while not aside.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in said
    assert "repeat the command" in said
    stored = read_result(place, "slice")
    assert stored.provenance.status == "interrupted"
    done = stored.arrays["done"].values
    assert not done.all()
    assert np.isnan(stored.arrays["loss"].values[~done]).all()
    assert run("plot", str(place), cwd=runs).returncode == 0
    assert run("info", str(place), cwd=runs).returncode == 0


def test_one_plane_for_several_and_a_trajectory_in_it(runs: Path) -> None:
    done = run("slice", "a.pt", "b.pt", "--common", "--points", "5x5", "-o", "common", cwd=runs)
    assert done.returncode == 0, done.stderr
    first, second = (read_result(runs / "common" / f"{n}.slice.h5", "slice") for n in "ab")
    np.testing.assert_array_equal(first.arrays["direction_vector"].values, second.arrays["direction_vector"].values)
    np.testing.assert_array_equal(first.arrays["x"].values, second.arrays["x"].values)
    (runs / "common" / "b.slice.h5").unlink()
    again = run("slice", "a.pt", "b.pt", "--common", "--points", "5x5", "-o", "common", cwd=runs)
    assert again.returncode == 0, again.stderr
    made = read_result(runs / "common" / "b.slice.h5", "slice").arrays
    assert made["loss"].values.tobytes() == second.arrays["loss"].values.tobytes()
    planes = ("slice", "a.pt", "b.pt", "--common", "--repeat", "3", "--points", "3x3", "--batch-size", "500")
    assert run(*planes, "-o", "one", cwd=runs).returncode == 0
    assert run(*planes, "-o", "two", "--workers", "2", cwd=runs).returncode == 0
    alone = ("slice", "b.pt", *planes[4:], "-o", "alone")
    assert run(*alone, cwd=runs).returncode == 0
    one, two, own = (
        read_result(runs / f / "b.slice.h5", "slice").arrays["plane_loss"].values for f in ("one", "two", "alone")
    )
    assert one.tobytes() == two.tobytes()
    assert not any(np.array_equal(a, b) for a, b in zip(one, own, strict=True))
    path = ("--trajectory", "a.pt", "--trajectory", "b.pt", "--trajectory", "c.pt")
    done = run("slice", "c.pt", "--dirs", "pca", *path, "--points", "5x4", "--json", "-o", "pca", cwd=runs)
    report = json.loads(done.stdout)
    assert [m["checkpoint"] for m in report["marks"]] == ["a.pt", "b.pt"]
    assert sum(a["variance_explained"] for a in report["axes"]) == pytest.approx(1, abs=1e-4)
    assert max(m["distance"] for m in report["marks"]) < 1e-3
    table = run("slice", "c.pt", "--dirs", "pca", *path, "--points", "5x4", "-o", "pca", cwd=runs).stdout
    assert max(map(len, table.splitlines())) <= 80


def test_a_spectrums_eigenvectors_are_used(runs: Path) -> None:
    assert run("spectrum", "b.pt", "--vectors", "--no-density", "-o", "both", cwd=runs).returncode == 0
    done = run("slice", "b.pt", "--dirs", "hessian:top=2", "--points", "3x3", "--json", "-o", "both", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert any("stored spectrum" in note for note in json.loads(done.stdout)["notes"])
    vectors = read_result(runs / "both" / "b.spectrum.h5", "spectrum").arrays["top_vector"].values[:2]
    used = read_result(runs / "both" / "b.slice.h5", "slice").arrays["direction_vector"].values
    np.testing.assert_allclose(used, vectors, atol=1e-6)
    from_file = ("--dirs", "file:path=both/b.slice.h5")
    done = run("slice", "b.pt", *from_file, "--points", "3x3", "--span", "0.1", "--json", "-o", "again", cwd=runs)
    assert done.returncode == 0, done.stderr


def test_a_barrier_between_two_checkpoints(runs: Path) -> None:
    done = run("slice", "a.pt", "--dirs", "between:to=b.pt", "--points", "9", "--json", "-o", "line", cwd=runs)
    report = json.loads(done.stdout)
    assert report["shape"] == [1, 9]
    assert report["barrier"]["low"] >= 0
    assert report["marks"][0]["loss"] == pytest.approx(report["marks"][0]["surface_loss"], rel=1e-4)


@pytest.mark.slow
def test_the_page_on_slices_is_true(tmp_path: Path) -> None:
    """Its commands, in order, beside the shipped checkpoints, and what it says came out."""
    root = Path(__file__).parents[1]
    (tmp_path / "checkpoints").symlink_to(root / "checkpoints")
    for block in re.findall(r"```sh\n(.*?)```", (root / "docs" / "slices.md").read_text(), re.DOTALL):
        done = commands.typed(block, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    narrow, wide = (
        read_result(tmp_path / f"slices/width={w}/seed=0/final.slice.h5", "slice").arrays["loss"].values
        for w in (8, 128)
    )
    assert narrow.max() == pytest.approx(10.6, abs=0.05)
    assert wide.max() == pytest.approx(1.1, abs=0.1)
    low = read_result(tmp_path / "lines/width=8/seed=0/final.slice.h5", "slice").arrays["loss_quantile"].values[0]
    high = read_result(tmp_path / "lines/width=128/seed=0/final.slice.h5", "slice").arrays["loss_quantile"].values[-1]
    apart = np.abs(np.linspace(-1, 1, 51)) > 0.15
    assert (low[0] > high[0])[apart].all()
    explained = read_result(tmp_path / "path/final.slice.h5", "slice").arrays["variance_explained"].values
    np.testing.assert_allclose(explained, [0.965, 0.035], atol=6e-4)
    barrier = read_result(tmp_path / "line/final.slice.h5", "slice").arrays["barrier"].values
    assert float(barrier) == pytest.approx(1.6, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a.pt", "--span", "0"), 2, "--span 0 must be above 0"),
        (("a.pt", "--points", "1"), 2, "at least 2 points"),
        (("a.pt", "--points", "5y5"), 2, "such as --points 51"),
        (("a.pt", "--dirs", "sideways"), 2, "random, hessian, gradient"),
        (("a.pt", "--dirs", "between"), 2, "between:to=other.pt"),
        (("a.pt", "--dirs", "between:to=nowhere.pt"), 2, "does not exist"),
        (("a.pt", "--dirs", "between:to=a.pt"), 2, "same parameters"),
        (("a.pt", "--dirs", "between:to=wide.pt"), 2, "another architecture"),
        (("a.pt", "--dirs", "pca"), 2, "--trajectory"),
        (("a.pt", "--dirs", "file:path=nothing.pt"), 2, "no file"),
        (("a.pt", "--dirs", "file:path=zero.pt"), 2, "length zero"),
        (("a.pt", "--dirs", "file:path=foreign.pt"), 2, "no parameter of this model"),
        (("a.pt", "wide.pt", "--common"), 6, "another architecture"),
        (("a.pt", "--workers", "0"), 2, "--workers is 0"),
        (("a.pt", "--metric", "sharpness"), 2, "gradient_norm"),
        (("missing.pt",), 2, "does not exist"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], code: int, words: str, runs: Path) -> None:
    torch.save({"0.weight": torch.zeros(6, 64)}, runs / "zero.pt")
    torch.save({"9.weight": torch.zeros(6, 64)}, runs / "foreign.pt")
    if "zero.pt" in arguments[-1]:
        names = list(build_model("mlp", DIGITS, 0).state_dict())
        torch.save({names[0]: torch.zeros(6, 64)}, runs / "zero.pt")
    few = () if "--points" in arguments else ("--points", "3")
    done = run("slice", *arguments, *few, "-o", "never", cwd=runs)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
