"""Memory that runs out is one error of one checkpoint, and nothing of it stays."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import run as landscape
from landscape.cli.terminal import bare, within_memory
from landscape.errors import LandscapeError, ProblemError

PROBLEM = """
import torch
from torch import nn
from landscape import Problem

class Large(nn.Module):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
        return x

def problem(width: int = 4) -> Problem:
    parts = [nn.Linear(3, width), nn.Linear(width, 1)]
    data = torch.ones(1, 3), torch.ones(1, 1)
    return Problem(nn.Sequential(*parts, *([Large()] if width == 4 else [])), data, "mse")
"""


@pytest.mark.parametrize("command", ["spectrum", "slice"])
def test_other_checkpoints_go_on(tmp_path: Path, command: str) -> None:
    (tmp_path / "problem.py").write_text(PROBLEM)
    for width in (4, 2):
        (tmp_path / f"width={width}").mkdir()
        model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))
        torch.save(model.state_dict(), tmp_path / f"width={width}" / "final.pt")
    few = {"slice": ["--points", "3"]}.get(command, [])
    ran = landscape(command, "width=4", "width=2", "--problem", "problem.py:problem", "--json", *few, cwd=tmp_path)
    assert ran.returncode == 6, ran.stderr
    assert "memory has run out: CUDA out of memory" in ran.stderr
    assert "Traceback" not in ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line.get("exit_code") for line in lines] == [3, None]
    assert "--samples" in lines[0]["hint"]


class Held:
    """What a frame holds: tensors of a GPU, say."""


def test_the_error_holds_nothing() -> None:
    there: list[Any] = []

    def work(kind: type[Exception], words: str) -> None:
        held = Held()
        there.append(weakref.ref(held))
        raise kind(words)

    gc.disable()  # a frame that is only part of a circle would be gone with the next collection
    try:
        kept: list[LandscapeError] = []
        for kind in (torch.OutOfMemoryError, MemoryError, ProblemError):
            try:
                within_memory(work, kind, "CUDA out of memory")
            except LandscapeError as caught:
                kept.append(bare(caught))
        assert [type(e) for e in kept] == [ProblemError] * 3
        assert [reference() for reference in there] == [None] * 3
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="shape"):
        within_memory(work, RuntimeError, "shape mismatch")
