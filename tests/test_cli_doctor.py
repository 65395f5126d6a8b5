"""`landscape doctor`: lines, JSON, verdict and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from landscape.cli.app import app
from landscape.cli.doctor import verdict
from landscape.diagnosis.run import Diagnosis, Finding
from landscape.errors import BatchError, CheckpointError

SHIPPED = Path(__file__).parent.parent / "checkpoints"
PROBLEM = """
import torch
from torch.nn import functional as F
from landscape import Problem

def problem(mean: bool = False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    inputs, targets = torch.randn(12, 4), torch.arange(12) % 3

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="mean" if mean else "sum"), len(batch[1])

    return Problem(model, [(inputs, targets)], loss)
"""


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    (tmp_path / "problem.py").write_text(PROBLEM)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    return [str(tmp_path / "a.pt"), "--problem", f"{tmp_path / 'problem.py'}:problem", "--quiet"]


def test_a_shipped_checkpoint_passes_readably() -> None:
    code, out = run(str(SHIPPED / "digits/width=8/seed=0/final.pt"), "--samples", "64")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert all(line[:7].strip() in ("ok", "care", "") for line in lines[:-1])
    assert lines[-1].startswith("Products of this model can be trusted to ")
    assert "(float64)" in lines[-1]
    assert "(float32)." in lines[-1]


def test_json_one_object_a_checkpoint(own: list[str]) -> None:
    paths = [own[0], str(Path(own[0]).with_name("b.pt"))]
    shutil.copy(*paths)
    code, out = run(*paths, *own[1:], "--json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [o["checkpoint"] for o in objects] == paths
    for one in objects:
        assert one["verdict"] in ("ok", "care")
        assert {"name", "verdict", "text", "numbers"} == set(one["findings"][0])
        assert one["error_float64"] < 1e-12


def test_a_fault_is_exit_code_3(own: list[str]) -> None:
    code, out = run(*own)
    assert code == 0
    assert "FAULT" not in out
    code, out = run(*own, "--set", "mean=True")
    assert code == 3
    assert "FAULT  sums: the loss returns a mean" in out
    assert out.splitlines()[-1] == "Do not trust this model's products: sums."


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        run(str(bad))
    with pytest.raises(BatchError):
        run(str(bad), str(SHIPPED / "digits/width=4/seed=0/final.pt"), "--samples", "16")


def test_json_has_a_line_for_an_unreadable_one(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    found = json.loads(CliRunner().invoke(app, ["doctor", str(bad), "--json"]).stdout)
    assert (found["checkpoint"], found["exit_code"]) == (str(bad), 3)
    assert "bad.pt" in found["error"]


def test_verdicts() -> None:
    fine = Diagnosis([Finding("a", "ok", "")], 3e-15, 2e-7)
    assert verdict(fine) == "Products of this model can be trusted to 3e-15 (float64), 2e-07 (float32)."
    assert fine.verdict == "ok"
    assert Diagnosis([Finding("a", "care", ""), Finding("b", "ok", "")]).verdict == "care"
    assert "a, b" in verdict(Diagnosis([Finding("a", "fault", ""), Finding("b", "fault", "")]))
