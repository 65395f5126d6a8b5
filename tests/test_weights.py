"""Which weights of a file: those of usual keys or of --key, and nothing passed over unsaid; names in one line."""

from __future__ import annotations

import pickle
import random
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.errors import CheckpointError


def state(number: int = 0) -> dict[str, Tensor]:
    return {"0.weight": torch.full((2, 3), float(number)), "0.bias": torch.full((2,), float(number))}


def number_of(found: dict[str, Tensor]) -> float:
    assert list(found) == list(state())
    return float(found["0.bias"][0])


def test_the_usual_key_wins_and_what_is_passed_over_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": state(1), "state_dict_ema": state(2), "curve": torch.ones(9), "epoch": 3}, path)
    found = read_checkpoint(path)
    assert number_of(found.state) == 1
    assert found.others == ("state_dict_ema",)
    assert found.notes == (
        "the weights are those under 'state_dict'; passed over: 'state_dict_ema' (--key takes them)",
    )
    assert number_of(read_checkpoint(path, key="state_dict_ema").state) == 2
    with pytest.raises(CheckpointError, match="no set of weights 'ema'") as caught:
        read_checkpoint(path, key="ema")
    assert "--key state_dict_ema" in (caught.value.hint or "")


def test_no_set_that_is_there_twice_is_passed_over_unsaid(tmp_path: Path) -> None:
    """Files of several sets under random names, some the same object: every other one is named, and --key takes it."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    path = tmp_path / "c.pt"
    for _ in range(20):
        objects = [state(number) for number in range(1, 4)]
        names = rng.sample(["swa_state_dict", "best_state_dict", "ema", "last", "average"], rng.randrange(2, 6))
        file = {"state_dict": objects[0], **{name: rng.choice(objects) for name in names}}
        torch.save(dict(rng.sample(list(file.items()), len(file))), path)
        found = read_checkpoint(path)
        assert number_of(found.state) == 1, seed
        assert set(found.others) == {name for name in names if file[name] is not objects[0]}, seed
        for name in found.others:
            assert f"'{name}'" in found.notes[0], seed
        for name in names:
            assert number_of(read_checkpoint(path, key=name).state) == float(file[name]["0.bias"][0]), seed
    same = state(1)
    torch.save({"first": same, "second": same}, path)
    assert number_of(read_checkpoint(path).state) == 1


def test_parts_of_one_network_and_names_that_begin_alike(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"encoder": state(1), "decoder": state(2), "optimizer": {"state": {}, "param_groups": []}}, path)
    with pytest.raises(CheckpointError, match="several sets of weights, none under a usual name: 'encoder', 'decoder'"):
        read_checkpoint(path)
    joined = read_checkpoint(path, key="encoder,decoder").state
    assert list(joined) == ["encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias"]
    torch.save({"model": {"encoder": state(1), "decoder": state(2)}}, path)
    assert read_checkpoint(path).state.keys() == joined.keys()
    assert number_of(read_checkpoint(path, key="model.decoder").state) == 2
    torch.save({f"{p}.{k}": v for p, s in (("a.b", state(1)), ("c", state(2))) for k, v in s.items()}, path)
    assert number_of(read_checkpoint(path, key="a.b").state) == 1
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, key="b")
    assert caught.value.hint == "it has --key a, --key c"


BESIDE: list[Any] = [
    {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}},
    {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}]},
    {"hyper_parameters": {"class_weights": torch.ones(3), "width": 4}},
    {"rng_state": torch.zeros(16, dtype=torch.uint8)},
    {"best": torch.tensor(0.5), "callbacks": {"stop": {"best_score": torch.tensor(0.1)}}},
    {"losses": torch.rand(30), "accuracies": np.random.default_rng(0).random(30)},
    {"criterion": nn.CrossEntropyLoss(weight=torch.ones(3))},
    {"scaler": {"scale": 65536.0, "_growth_tracker": 0}},
]


def test_one_set_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """Random nestings of one set of weights, with what training scripts keep beside it on every level."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    words = ["state_dict", "model", "ema", "net", "payload", "trainer", "G", "my.net"]
    for _ in range(25):
        keys = [rng.choice(words) for _ in range(rng.randrange(4))]
        loaded: dict[str, Any] = dict(state(7))
        for key in reversed(keys):
            loaded = {**rng.choice(BESIDE), key: loaded, **rng.choice(BESIDE)}
        torch.save(loaded, tmp_path / "c.pt")
        for key in (None, ".".join(keys) or None):
            found = read_checkpoint(tmp_path / "c.pt", key=key)
            assert number_of(found.state) == 7, f"seed {seed}: {keys}, --key {key}"
            assert found.others == (), f"seed {seed}: {keys}"


# ---- names ----------------------------------------------------------------------------------------------------------


class One:
    """Of the user's own."""

    def __init__(self) -> None:
        self.a = 1


class Two(dict[str, Any]):
    """Of the user's own, filled as a dictionary, with attributes."""


class Three(list[Any]):
    """Of the user's own, filled as a list."""


def things() -> dict[str, Any]:
    two = Two(b=2)
    two.c = 3  # type: ignore[attr-defined]
    return {"one": One(), "two": two, "three": Three([1])}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_refusal_lists_all_names_as_one_line_to_copy(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "c.pt"
    torch.save({"model": state(1), **things()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    option = (caught.value.hint or "").rpartition("--allow-global ")[2]
    assert option.split(",") == [f"{__name__}.{name}" for name in ("One", "Three", "Two")]
    found = read_checkpoint(path, [option])
    assert number_of(found.state) == 1
    assert number_of(read_checkpoint(path, option.split(",")).state) == 1


def test_common_classes_need_no_allowance(tmp_path: Path) -> None:
    import argparse
    import functools

    schedule = object.__new__(torch.optim.lr_scheduler.StepLR)
    schedule.__dict__ |= {"step_size": 3, "base_lrs": [0.1]}
    extras = {
        "criterion": nn.CrossEntropyLoss(weight=torch.ones(3)),
        "loss": nn.BCEWithLogitsLoss(),
        "args": argparse.Namespace(width=4, path=Path("/data/x"), rate=np.float64(0.5), more=[np.int64(3)]),
        "act": nn.ReLU,
        "scheduler": schedule,
        "partial": functools.partial(nn.functional.relu, inplace=True),
        "generator": torch.Generator(),
    }
    for name, extra in extras.items():
        torch.save({"model": state(1), name: extra}, tmp_path / "c.pt")
        assert number_of(read_checkpoint(tmp_path / "c.pt").state) == 1, name
    torch.save({"model": state(1), "args": extras["args"]}, tmp_path / "c.pt")
    config = read_checkpoint(tmp_path / "c.pt").config
    assert config == ("args", {"width": 4, "path": "/data/x", "rate": 0.5, "more": [3]})


# ---- lines that work when copied ------------------------------------------------------------------------------------

PROBLEM = """
import torch
from landscape import Problem
def problem():
    return Problem(torch.nn.Sequential(torch.nn.Linear(3, 2)), (torch.ones(4, 3), torch.ones(4, 2)), "mse")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, by torch itself
def test_conversions_work_when_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of the commands that refusals name; each gives the weights that were saved."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (tmp_path / "problem.py").write_text(PROBLEM)
    network = nn.Sequential(nn.Linear(3, 2))
    files = {
        "plain": lambda p: p.write_bytes(pickle.dumps(network.state_dict())),
        "script": lambda p: torch.jit.trace(network, torch.ones(1, 3)).save(p),
        "old whole": lambda p: torch.save(network, p, _use_new_zipfile_serialization=False),
        "vector": lambda p: torch.save(nn.utils.parameters_to_vector(network.parameters()).detach(), p),
        "list": lambda p: torch.save([t.detach() for t in network.parameters()], p),
        "protocol 4": lambda p: torch.save(network.state_dict(), p, pickle_protocol=4),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, write in files.items():
        path = folder / f"{name}.pt"
        write(path)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        code, *arguments = shlex.split((caught.value.hint or "").partition("python -c")[2])
        assert arguments == [str(path), str(folder / f"{name}.weights.pt")], (caught.value.message, caught.value.hint)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        exec(code, {})
        found = read_checkpoint(arguments[1]).state
        assert all(torch.equal(found[k], v) for k, v in network.state_dict().items()), name
