"""Several processes that share the data: the numbers of one process, the same on all, and an error when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from landscape.errors import UsageError
from landscape.problem.distributed import ALONE, Ranks
from landscape.results.store import read_result

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "digits"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = ["--no-exact", "--precision", "float64", "--probes", "3", "--steps", "20", "--top", "3", "--bottom", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("lengths", [[13], [5, 1, 8], [20, 3]])
def test_shards_are_a_partition_of_the_samples(size: int, lengths: list[int]) -> None:
    rows = torch.arange(sum(lengths))
    batches = list(rows.split(lengths))
    parts = [torch.cat(Ranks(rank, size).shard(batches, cuttable=True)) for rank in range(size)]
    assert torch.equal(torch.cat(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_whole_batches_are_shared_where_they_must_not_be_cut() -> None:
    batches = [torch.zeros(n) for n in (3, 1, 4, 1, 5)]
    parts = [Ranks(rank, 2).shard(batches, cuttable=False) for rank in range(2)]
    assert [len(b) for part in parts for b in part] == [3, 1, 4, 1, 5]
    with pytest.raises(UsageError, match="6 processes cannot share 5 batches"):
        Ranks(0, 6).shard(batches, cuttable=False)
    with pytest.raises(UsageError, match="3 processes cannot share 2 samples"):
        Ranks(0, 3).shard([torch.zeros(2)], cuttable=True)


def test_alone_nothing_is_communicated() -> None:
    batches = [torch.zeros(3)]
    assert ALONE.shard(batches, True) is batches
    assert (ALONE.total(2.0), ALONE.largest(3.0), ALONE.smallest(4.0), ALONE.first("a")) == (2.0, 3.0, 4.0, "a")


SCRIPT = """
import hashlib, json, sys
import torch
from torch import nn
from landscape import Problem
from landscape.spectra.run import run_spectrum
from landscape.problem.distributed import joined
from landscape.spectra.settings import SpectrumSettings
torch.manual_seed(0)
x, y = torch.randn(103, 6).double(), torch.randint(0, 3, (103,))
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
data = list(zip(x.split(40), y.split(40)))
kind = sys.argv[1]
with joined() as ranks:
    settings = SpectrumSettings(operator=kind, top=4, bottom=3, exact=False, probes=4, steps=15, by_layer=True,
                                rtol=1e-8, tau=1e-10)
    loss = "cross_entropy"
    if sys.argv[2] == "custom":
        loss = lambda m, b: (nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"), len(b[1]))
    r = run_spectrum(Problem(model, data, loss, weight_decay=0.01), settings, ranks=ranks)
    # single nodes may move by more where the Krylov space is nearly exhausted; the moments of their rule do not
    moments = [(r.weight * r.node**k).sum() for k in (1, 2, 3)]
    parts = [r.top_value, r.bottom_value, [r.loss, r.trace, r.gradient_norm], r.layer_top]
    if kind != "ggn":  # whose multiple smallest eigenvalue leaves it to rounding which vectors the probes avoid
        parts.append(moments)
    numbers = [float(v) for part in parts for v in part]
    with open(sys.argv[3] + f"/{ranks.rank}of{ranks.size}.json", "w") as file:
        json.dump({"samples": r.samples, "numbers": numbers}, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss"), [("residual", "builtin"), ("ggn", "custom")])
def test_two_processes_are_one(tmp_path: Path, kind: str, loss: str) -> None:
    """103 samples in batches of 40, 40 and 23: uneven shards; float64, to 1e-12, and bitwise the same on both."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for command in ([sys.executable], TORCHRUN):
        subprocess.run([*command, script, kind, loss, tmp_path], env=ENVIRONMENT, timeout=120, check=True)
    alone, *ranks = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0of1", "0of2", "1of2"))
    assert ranks[0]["numbers"] == ranks[1]["numbers"]
    assert ranks[0]["samples"] == alone["samples"] == 103
    expected = np.array(alone["numbers"])
    np.testing.assert_allclose(ranks[0]["numbers"], expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
def test_the_command_under_torchrun_writes_and_prints_once(tmp_path: Path) -> None:
    checkpoint = SHIPPED / "width=8/seed=0/final.pt"
    command = ["-m", "landscape", "spectrum", str(checkpoint), *SETTINGS, "--json"]
    one = subprocess.run(
        [sys.executable, *command, "-o", tmp_path / "one"], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    two = subprocess.run(
        [*TORCHRUN, *command, "-o", tmp_path / "two"], capture_output=True, text=True, env=ENVIRONMENT, timeout=200
    )
    assert two.returncode == 0, two.stderr
    (said,) = two.stdout.splitlines()
    found, expected = (read_result(json.loads(s)["result"]) for s in (said, one.stdout))
    for name in ("top_value", "bottom_value", "trace", "loss"):
        a, b = found.arrays[name].values, expected.arrays[name].values
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * float(np.max(np.abs(b))))
    again = subprocess.run(
        [*TORCHRUN, *command, "-o", tmp_path / "two"], capture_output=True, text=True, env=ENVIRONMENT, timeout=200
    )
    assert again.returncode == 0
    assert "done already" in again.stderr


@pytest.mark.slow
def test_a_dead_process_ends_the_others_with_an_error(tmp_path: Path) -> None:
    checkpoint = SHIPPED / "width=64/seed=0/final.pt"
    command = ["-m", "landscape", "spectrum", checkpoint, *SETTINGS, "--steps", "2000", "-o", tmp_path / "out"]
    # two processes without torchrun's own supervisor, which would end the survivor before it can say anything
    common = {**ENVIRONMENT, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common["MASTER_PORT"] = str(29500 + os.getpid() % 1000)
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while psutil.Process(processes[1].pid).cpu_times().user < 8 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(processes[1].pid, signal.SIGKILL)
        _, stderr = processes[0].communicate(timeout=90)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 6, stderr
    assert "has lost the others" in stderr
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").rglob("*.h5"))
