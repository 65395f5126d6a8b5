"""`landscape spectrum` as a user runs it: real processes, real checkpoints, the promised fields and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from commands import run as landscape
from landscape.cli.views.spectrum import bracketed
from landscape.results.store import read_result
from landscape.spectra.settings import SpectrumSettings

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "checkpoints" / "digits"
FAST = ("--steps", "10", "--probes", "3", "--top", "3", "--bottom", "3")

PROBLEM = """
import torch
from torch import nn
from landscape import Problem

def problem(width: int = 4, noisy: bool = False, shuffle: bool = False, empty: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(53, 6, generator=generator)
    y = torch.randint(0, 3, (53,), generator=generator)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    if noisy:
        model.append(Noise())
    data = (x[:0], y[:0]) if empty else (x, y)
    if shuffle:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20, shuffle=True)
    return Problem(model, data, "cross_entropy")

class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with problem.py and bare state_dicts of three widths."""
    (tmp_path / "problem.py").write_text(PROBLEM)
    for width in (2, 4, 8):
        torch.manual_seed(width)
        model = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))
        (tmp_path / f"width={width}").mkdir()
        torch.save(model.state_dict(), tmp_path / f"width={width}" / "final.pt")
    return tmp_path


def fields(line: str) -> dict:
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_has_the_promised_fields_and_the_file_agrees(tmp_path: Path) -> None:
    done = landscape("spectrum", SHIPPED / "width=4/seed=0/final.pt", "--json", "-o", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = fields(line)
    promised = (
        "checkpoint sha256 parameters samples operator loss gradient_norm top bottom trace negative "
        "negative_by_tau products strategy seconds result"
    )
    assert set(promised.split()) <= set(found)
    assert len(found["top"]) == len(found["bottom"]) == 10
    assert set(found["top"][0]) == {"value", "residual", "converged", "complete"}
    values = [pair["value"] for pair in found["top"]]
    assert values == sorted(values, reverse=True)
    assert set(found["negative_by_tau"]) == {"1e-06", "0.0001", "0.01"}
    count = found["negative"]["count"]
    assert count["low"] == count["high"] == count["exact"]
    stored = read_result(found["result"])
    assert stored.arrays["top_value"].values.tolist() == values
    assert stored.provenance.status == "complete"
    assert stored.provenance.sha256 == found["sha256"]
    with xarray.open_dataset(found["result"], group="spectrum", engine="h5netcdf") as opened:
        assert opened["top_value"].dims == ("top",)
        assert opened["top_value"].attrs["units"]


def test_dense_and_iterative_agree_within_their_bounds(tmp_path: Path) -> None:
    checkpoint = SHIPPED / "width=8/seed=0/final.pt"
    exact = fields(landscape("spectrum", checkpoint, "--exact", "--json", "-o", tmp_path / "a", cwd=tmp_path).stdout)
    loose = fields(landscape("spectrum", checkpoint, "--no-exact", "--json", "-o", tmp_path / "b", cwd=tmp_path).stdout)
    assert exact["exact"]
    assert not loose["exact"]
    for end in ("top", "bottom"):
        for one, other in zip(exact[end], loose[end], strict=True):
            assert abs(one["value"] - other["value"]) <= one["residual"] + other["residual"]
    for tau, truth in exact["negative_by_tau"].items():
        bracket = loose["negative_by_tau"][tau]["count"]
        assert bracket["low"] <= truth["count"]["exact"] <= bracket["high"]
    assert loose["bottom"][0]["value"] >= loose["negative"]["excluded"]["below"]


def test_a_users_own_checkpoints_of_three_widths(foreign: Path) -> None:
    """Bare state_dicts and one problem file: the width comes from the path; the second run does nothing."""
    command = ("spectrum", "width=*/final.pt", "--problem", "problem.py:problem", *FAST)
    first = landscape(*command, cwd=foreign)
    assert first.returncode == 0, first.stderr
    places = sorted((foreign / "landscape-results").rglob("*.h5"))
    assert [p.relative_to(foreign / "landscape-results").as_posix() for p in places] == [
        f"width={w}/final.spectrum.h5" for w in (2, 4, 8)
    ]
    assert max(map(len, first.stdout.splitlines())) <= 80
    stamps = [p.stat().st_mtime_ns for p in places]
    places[1].unlink()
    again = landscape(*command, "--json", cwd=foreign)
    assert again.returncode == 0, again.stderr
    assert [fields(line)["coordinates"]["width"] for line in again.stdout.splitlines()] == [2, 4, 8]
    assert [p.stat().st_mtime_ns == s for p, s in zip(places, stamps, strict=True)] == [True, False, True]


def test_other_settings_do_not_overwrite_a_result_unasked(foreign: Path) -> None:
    command = ("spectrum", "width=2/final.pt", "--problem", "problem.py:problem", *FAST)
    assert landscape(*command, cwd=foreign).returncode == 0
    (place,) = (foreign / "landscape-results").rglob("*.h5")
    before = place.read_bytes()
    other = landscape(*command, "--operator", "ggn", cwd=foreign)
    assert other.returncode == 5
    assert "hint:" in other.stderr
    assert 'operator was "hessian", is "ggn"' in other.stderr
    assert place.read_bytes() == before
    elsewhere = landscape("spectrum", "width=4/final.pt", *command[2:], cwd=foreign)
    assert elsewhere.returncode == 5
    assert "that of width=2/final.pt" in elsewhere.stderr
    assert landscape(*command, "--operator", "ggn", "--force", cwd=foreign).returncode == 0
    assert read_result(place).attributes["operator"] == "ggn"


def test_too_few_products_for_the_pairs_asked_for_are_said(foreign: Path) -> None:
    done = landscape(
        *("spectrum", "width=8/final.pt", "--problem", "problem.py:problem", "--no-exact", "--max-products", "4"),
        cwd=foreign,
    )
    assert done.returncode == 0, done.stderr
    assert "smallest eigenvalues were seen before the products were spent" in done.stderr


def test_one_failure_does_not_stop_the_rest(foreign: Path) -> None:
    (foreign / "width=4" / "final.pt").write_bytes(b"")
    for extra in ((), ("--workers", "2")):
        done = landscape(
            *("spectrum", "width=*/final.pt", "--problem", "problem.py:problem", "--json", *FAST, *extra),
            *("-o", f"out{len(extra)}"),
            cwd=foreign,
        )
        assert done.returncode == 6, done.stderr
        found = [fields(line) for line in done.stdout.splitlines()]
        assert sorted(one["checkpoint"] for one in found) == [f"width={w}/final.pt" for w in (2, 4, 8)]
        (failed,) = [one for one in found if "error" in one]
        assert (failed["checkpoint"], failed["exit_code"]) == ("width=4/final.pt", 3)
        assert failed["hint"]
        assert "width=4" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(list((foreign / f"out{len(extra)}").rglob("*.h5"))) == 2


def test_workers_give_what_one_process_gives(foreign: Path) -> None:
    command = ("spectrum", "width=*/final.pt", "--problem", "problem.py:problem", "--no-exact", "--json", *FAST)
    alone = landscape(*command, "-o", "alone", cwd=foreign)
    together = landscape(*command, "-o", "together", "--workers", "2", cwd=foreign)
    assert together.returncode == 0, together.stderr
    for one, other in zip(alone.stdout.splitlines(), together.stdout.splitlines(), strict=True):
        a, b = fields(one), fields(other)
        assert a["checkpoint"] == b["checkpoint"]
        np.testing.assert_allclose(
            [p["value"] for p in a["top"]],
            [p["value"] for p in b["top"]],
            atol=max(p["residual"] for p in a["top"] + b["top"]),
        )


BAD = {
    "no problem": (("width=4/final.pt",), 3, "--problem"),
    "missing file": (("nowhere.pt", "--problem", "problem.py:problem"), 2, "nowhere.pt"),
    "missing function": (("width=4/final.pt", "--problem", "problem.py:porblem"), 2, "problem"),
    "wrong width": (("width=4/final.pt", "--problem", "problem.py:problem", "--set", "width=16"), 3, "16"),
    "unknown setting": (("width=4/final.pt", "--problem", "problem.py:problem", "--set", "widht=16"), 2, "width"),
    "shuffling loader": (("width=4/final.pt", "--problem", "problem.py:problem", "--set", "shuffle=True"), 3, "random"),
    "noisy model": (("width=4/final.pt", "--problem", "problem.py:problem", "--set", "noisy=True"), 3, "twice"),
    "empty data": (("width=4/final.pt", "--problem", "problem.py:problem", "--set", "empty=True"), 3, "empty"),
    "unknown operator": (("width=4/final.pt", "--problem", "problem.py:problem", "--operator", "fisher"), 2, "ggn"),
    "no such parameters": (
        ("width=4/final.pt", "--problem", "problem.py:problem", "--params", "encoder.*"),
        2,
        "0.weight",
    ),
    "too few probes": (("width=4/final.pt", "--problem", "problem.py:problem", "--probes", "1"), 2, "probes"),
    "memory in words": (("width=4/final.pt", "--problem", "problem.py:problem", "--memory", "lots"), 2, "6GB"),
    "no CUDA": (("width=4/final.pt", "--problem", "problem.py:problem", "--device", "cuda"), 2, "--device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(foreign: Path, case: str) -> None:
    arguments, code, word = BAD[case]
    if case == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = landscape("spectrum", *arguments, *(() if case == "too few probes" else FAST[:2]), cwd=foreign)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error:") == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(foreign.rglob("*.h5"))


def test_weights_that_diverged_are_reported_as_numerical(foreign: Path) -> None:
    """Huge but finite weights: the loss overflows; exit code 4, and what is known is written as failed."""
    state = torch.load(foreign / "width=4" / "final.pt")
    state["2.weight"].fill_(3e38)
    torch.save(state, foreign / "width=4" / "final.pt")
    done = landscape("spectrum", "width=4/final.pt", "--problem", "problem.py:problem", *FAST, cwd=foreign)
    assert done.returncode == 4, done.stderr
    (place,) = foreign.rglob("*.h5")
    assert read_result(place).provenance.status == "failed"


def test_a_full_disk_leaves_nothing_half_written(foreign: Path) -> None:
    """Writing fails with the system's own error (file size limit); exit code 5 and no file."""
    command = f"ulimit -f 0; trap '' XFSZ; {sys.executable} -m landscape spectrum width=4/final.pt"
    done = subprocess.run(
        ["bash", "-c", f"{command} --problem problem.py:problem {' '.join(FAST)}"],
        cwd=foreign,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 5, done.stderr
    assert "error:" in done.stderr
    assert not [p for p in foreign.rglob("*.h5*") if p.stat().st_size]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_finished_work_whole(tmp_path: Path, signum: signal.Signals) -> None:
    for width in (4, 8, 64, 128):
        folder = tmp_path / f"width={width}"
        folder.mkdir()
        shutil.copy(SHIPPED / f"width={width}/seed=0/final.pt", folder)
    command = [sys.executable, "-m", "landscape", "spectrum", "width=*/final.pt", "--steps", "400"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.h5"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in stderr
    for place in tmp_path.rglob("*.h5"):
        assert read_result(place).provenance.status == "complete"
    assert not list(tmp_path.rglob(".*.tmp"))


def test_by_layer_vectors_and_samples_reach_the_file(tmp_path: Path) -> None:
    checkpoint = SHIPPED / "width=4/seed=0/final.pt"
    done = landscape(
        *("spectrum", checkpoint, "--by-layer", "--vectors", "--samples", "400", "--json", "-o", tmp_path / "out"),
        *("--params", "0.*", "--params", "2.weight"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = fields(done.stdout)
    assert [layer["layer"] for layer in found["layers"]] == ["0", "2"]
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    # Cauchy: no diagonal block reaches beyond the whole
    assert max(layer["top"] - layer["top_residual"] for layer in found["layers"]) <= found["top"][0]["value"]
    assert found["sampling"]["data_samples"] == 1438
    assert found["sampling"]["top"]["low"] < found["top"][0]["value"] < found["sampling"]["top"]["high"]
    vectors = read_result(found["result"]).arrays["top_vector"].values
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-8)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (3.3617, 3.3615, 3.3619, "3.3617(2)"),
        (2.0, 2.0, 2.0, "2"),
        (-2.0, -4.5, -2.0, "[-4.5, -2]"),
        (5.0, 1.0, 5.0, "[1, 5]"),
        (0.1, -0.2, 0.4, "[-0.2, 0.4]"),
        (0.001, -np.inf, 0.0011, "[-inf, 0.0011]"),
        (np.nan, np.nan, np.nan, "-"),
    ],
)
def test_intervals_are_written_as_brackets_only_around_their_middle(
    value: float, low: float, high: float, text: str
) -> None:
    assert bracketed(value, low, high) == text


def test_help_is_fast_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['landscape', '--help']\n"
        "from landscape.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'h5py', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_settings_have_one_default(tmp_path: Path) -> None:
    """The command's defaults are the library's."""
    import inspect

    from landscape.cli.spectrum import spectrum

    signature = inspect.signature(spectrum).parameters
    for name, value in SpectrumSettings().as_dict().items():
        if name in signature and name != "params":
            assert signature[name].default == value, name
