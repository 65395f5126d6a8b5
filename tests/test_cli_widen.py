"""`landscape widen` and `landscape escape` as users meet them, and the page that walks through both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from commands import run, typed
from landscape.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from landscape.checkpoints.load import load_problem
from landscape.models import build_model
from landscape.results.store import list_groups
from test_descend import MODEL, TEACHER

PAGE = Path(__file__).parents[1] / "docs" / "widening.md"


@pytest.fixture(scope="module")
def critical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certified point, its start, and the same in half precision."""
    folder = tmp_path_factory.mktemp("critical")
    header = {"model": "mlp", "model_settings": MODEL, "data": "teacher", "data_settings": TEACHER, "loss": "mse"}
    header["coordinates"] = {"width": 3, "seed": 0}  # type: ignore[assignment]
    model = build_model("mlp", MODEL, 1).double()
    write_checkpoint(folder / "start.pt", model, header)
    write_checkpoint(folder / "half.pt", {k: v.half() for k, v in model.state_dict().items()}, header)
    done = run("descend", "start.pt", "-o", ".", "--json", cwd=folder)
    assert json.loads(done.stdout)["verdict"] in ("minimum", "degenerate"), done.stdout + done.stderr
    return folder


def test_widen_prints_writes_and_repeats(critical: Path) -> None:
    done = run("widen", "start.descend.pt", "--layer", "0", "--json", "--follow", "--controls", "1", cwd=critical)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [s["neuron"] for s in report["splits"]] == [j for j in range(3) for _ in range(4)]
    for split in report["splits"]:
        assert sum(split["mu"]) == pytest.approx(1)
        assert split["predicted"] == split["measured"]
        assert split["lambda_min"] <= split["lambda_bound"] + split["lambda_error"]
        assert (split["escape"] is not None) == (split["measured"]["negative"] > 0)
    again = run("widen", "start.descend.pt", "--layer", "0", "--json", "--follow", "--controls", "1", cwd=critical)
    assert json.loads(again.stdout) == report
    assert "done already" in again.stderr
    table = run("widen", "start.descend.pt", "--layer", "0", "--follow", "--controls", "1", cwd=critical).stdout
    assert max(map(len, table.splitlines())) <= 80
    assert "as foretold in 12 of 12" in table
    assert list_groups(critical / report["result"]) == ["widen"]


@pytest.mark.parametrize(
    ("options", "width"),
    [
        (("--to", "7"), 7),
        (("--to", "6", "--how", "duplicate"), 6),
        (("--to", "5", "--how", "fresh"), 5),
        (("--split", "1", "--mu", "0.5"), 4),
        (("--split", "1", "--mu", ".2,.3,.5"), 5),
        (("--split", "0", "--mu", "0.5", "--split", "2", "--mu", "1.5"), 5),
    ],
)
def test_widened_checkpoints_compute_the_same(options: tuple[str, ...], width: int, critical: Path) -> None:
    out = "-".join(options)
    done = run("widen", "start.descend.pt", "--layer", "0", "--write", *options, "-o", out, cwd=critical)
    assert done.returncode == 0, done.stderr
    before = load_problem(critical / "start.descend.pt").problem
    wide = load_problem(critical / out / "start.descend.widen.pt")
    x = before.data[0]  # type: ignore[index]
    assert torch.allclose(wide.problem.model(x), before.model(x), atol=1e-12)
    assert wide.checkpoint.header["model_settings"]["width"] == width
    assert wide.checkpoint.coordinates["width"] == width


def test_escape_goes_on_from_what_widen_wrote(critical: Path) -> None:
    splits = json.loads(run("widen", "start.descend.pt", "--layer", "0", "--json", "-o", "all", cwd=critical).stdout)[
        "splits"
    ]
    opened = next(s for s in splits if s["measured"]["negative"])
    chosen = ("--split", str(opened["neuron"]), "--mu", str(opened["mu"][0]))
    run("widen", "start.descend.pt", "--layer", "0", *chosen, "--write", "-o", "w", cwd=critical)
    done = run("escape", "w/start.descend.widen.pt", "--json", "--controls", "2", "-o", "w", cwd=critical)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["certificate"]["zeros"]) == {"1e-08", "1e-06", "0.0001"}
    assert len(report["path"]) == 2
    assert len(report["controls"]) == 2
    assert report["verdict"] == "escaped"
    assert report["loss"]["after"] < report["loss"]["before"]
    assert "certificate" in read_checkpoint(critical / report["written"]).header
    again = run("escape", "w/start.descend.widen.pt", "--json", "--controls", "2", "-o", "w", cwd=critical)
    assert json.loads(again.stdout) == report
    table = run("escape", "w/start.descend.widen.pt", "--controls", "2", "-o", "w", cwd=critical).stdout
    wide = [line for line in table.splitlines() if len(line) > 80 and not line.startswith("  " + report["verdict"])]
    assert not wide
    assert run("plot", report["result"], cwd=critical).returncode == 0
    both = run("escape", "start.pt", "start.descend.pt", "-o", "both", "--steps", "30", cwd=critical)
    assert both.returncode == 0, both.stderr
    assert "verdicts:" in both.stdout
    assert "--descend" in both.stderr


def test_an_escape_of_a_large_network_resumes_after_kill(critical: Path) -> None:
    settings = MODEL | {"width": 400}
    header = {"model": "mlp", "model_settings": settings, "data": "teacher", "data_settings": TEACHER, "loss": "mse"}
    write_checkpoint(critical / "large.pt", build_model("mlp", settings, 1).double(), header)
    command = ("escape", "large.pt", "--json", "--steps", "8", "--max-products", "30", "-o", "large")
    aside, place = critical / "large" / ".large.escape.h5.pieces", critical / "large" / "large.escape.h5"
    arguments = [sys.executable, "-m", "landscape", *command]
    with subprocess.Popen(arguments, cwd=critical, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not aside.exists() and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
    before = aside.read_bytes()
    assert not place.exists()
    done = run(*command, cwd=critical)
    assert done.returncode == 0, done.stderr
    assert not aside.exists()
    report = json.loads(done.stdout)
    assert report["loss"]["after"] < report["loss"]["before"]
    place.unlink()
    aside.write_bytes(before[: len(before) // 2])  # damaged: as good as none
    again = json.loads(run(*command, cwd=critical).stdout)
    assert again["loss"] == pytest.approx(report["loss"], rel=1e-6)


def test_part_of_the_data_is_said_to_be_one(critical: Path) -> None:
    done = run("widen", "start.descend.pt", "--layer", "0", "--samples", "20", "--json", "-o", "part", cwd=critical)
    assert "for the 20 samples used" in done.stderr
    assert json.loads(done.stdout)["full_data"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("widen", "start.pt"), 2, "--layer"),
        (("widen", "start.pt", "--layer", "9"), 2, "no layer '9'"),
        (("widen", "start.pt", "--layer", "1"), 2, "linear and convolution"),
        (("widen", "start.pt", "--layer", "2"), 2, "--next"),
        (("widen", "start.pt", "--layer", "0", "--mu", "0"), 2, "share of 0"),
        (("widen", "start.pt", "--layer", "0", "--mu", "1"), 2, "share of 0"),
        (("widen", "start.pt", "--layer", "0", "--mu", ".3,.3"), 2, "not to 1"),
        (("widen", "start.pt", "--layer", "0", "--mu", "half"), 2, "not a number"),
        (("widen", "start.pt", "--layer", "0", "--split", "3"), 2, "3 neurons"),
        (("widen", "start.pt", "--layer", "0", "--to", "3", "--write"), 2, "larger width"),
        (("widen", "start.pt", "--layer", "0", "--to", "5"), 2, "--write"),
        (("widen", "start.pt", "--layer", "0", "--write"), 2, "--to 8"),
        (("widen", "start.pt", "--layer", "0", "--to", "5", "--how", "duplicate", "--write"), 2, "--to 6"),
        (("widen", "half.pt", "--layer", "0"), 3, "float16"),
        (("escape", "start.pt", "--controls", "-1"), 2, "at least 0"),
        (("escape", "missing.pt"), 2, "does not exist"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], code: int, words: str, critical: Path) -> None:
    done = run(*arguments, "-o", "never", cwd=critical)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((critical / "never").rglob("*.h5"))


@pytest.mark.slow
def test_the_page_on_widening_is_true(tmp_path: Path) -> None:
    """Its commands, in order, in an empty folder, and what it says came out."""
    text = PAGE.read_text()
    (sweep,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "stuck.toml").write_text(sweep)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        done = typed(block, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads(run("escape", "stuck/width=4/seed=8/final.pt", "--json", "-o", "escape", cwd=tmp_path).stdout)
    assert first["verdict"] == "minimum"
    assert first["loss"]["before"] == pytest.approx(0.0078, abs=5e-5)
    assert first["certificate"]["lambda_min"]["low"] > 0
    command = ("widen", "stuck/width=4/seed=8/final.pt", "--layer", "0", "--follow", "--controls", "2", "--json")
    splits = json.loads(run(*command, "-o", "widen", cwd=tmp_path).stdout)["splits"]
    assert sum(s["predicted"] == s["measured"] for s in splits) == len(splits) == 16
    ends = {(s["neuron"], s["mu"][0]): s["escape"] for s in splits if s["escape"]}
    assert {j for (j, _), e in ends.items() if e["verdict"] == "channel"} == {0, 1, 2}
    assert {k for k, e in ends.items() if e["loss"] < 1e-10} == {(3, 0.3), (3, 0.5)}
    last = json.loads(run("escape", "wide/final.widen.pt", "--json", "-o", "wide", cwd=tmp_path).stdout)
    assert (last["verdict"], last["end"]["verdict"]) == ("escaped", "minimum")
    assert last["loss"]["after"] < 1e-20
