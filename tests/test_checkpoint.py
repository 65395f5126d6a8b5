"""Checkpoints of all kinds: read as the tensors that were saved, written with equal bytes, loaded into models."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from landscape.errors import CheckpointError, StorageError

HEADER = {
    "format": 1,
    "model": "mlp",
    "model_settings": {"width": 5},
    "data": "digits",
    "data_settings": {},
    "loss": "cross_entropy",
    "coordinates": {"width": 5, "seed": 3},
}


def net(width: int = 5, seed: int = 0) -> nn.Sequential:
    """A small network with a buffer of each kind."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


class Tied(nn.Module):
    """A network with one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


def in_memory(state: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint("memory.pt", "0", "state_dict", dict(state), {}, {})


# ---- kinds --------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Any] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda s: {"model_state_dict": s, "best": torch.tensor(0.5)},
    "deepspeed": lambda s: {"module": s, "dp_world_size": 1},
    "nested": lambda s: {"checkpoint": {"model": s}, "args": argparse.Namespace(lr=0.1)},
    "lightning": lambda s: {"pytorch-lightning_version": "2.4.0", "state_dict": s, "hyper_parameters": {"w": 1}},
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_the_usual_layouts(tmp_path: Path, layout: str, new_format: bool) -> None:
    state = net().state_dict()
    path = tmp_path / "width=5" / "c.pt"
    path.parent.mkdir()
    torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=new_format)
    found = read_checkpoint(path)
    assert_same(found.state, state)
    assert found.kind == ("lightning" if layout == "lightning" else "state_dict")
    assert found.header == {}
    assert found.coordinates["width"] == 5
    assert len(found.sha256) == 64


def test_optimizer_moments_are_not_weights(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(6, 4)).sum().backward()
    optimizer.step()
    torch.save({"epoch": 1, "optimizer": optimizer.state_dict(), "model": model.state_dict()}, tmp_path / "c.pt")
    assert_same(read_checkpoint(tmp_path / "c.pt").state, model.state_dict())
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match="optimizer's state and no weights"):
        read_checkpoint(tmp_path / "o.pt")


def test_reads_safetensors_by_content(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in net().state_dict().items()}
    for name in ("c.safetensors", "c.pt"):
        save_file(state, tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert found.kind == "safetensors"
        assert_same(dict(sorted(found.state.items())), dict(sorted(state.items())))
    torch.save(state, tmp_path / "pickle.safetensors")
    assert read_checkpoint(tmp_path / "pickle.safetensors").kind == "state_dict"


def test_safetensors_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "c.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match="needs the package safetensors") as caught:
        read_checkpoint(tmp_path / "c.safetensors")
    assert "pip install" in (caught.value.hint or "")


def test_reads_hugging_face_folders(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_checkpoint(folder)
    assert set(found.state) == {"a", "b"}
    before = found.sha256
    save_file({"b": torch.ones(3)}, folder / "model-2.safetensors")
    assert read_checkpoint(folder).sha256 != before
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="not a Hugging Face one"):
        read_checkpoint(tmp_path)


def test_inert_objects_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    extras = {
        "accuracy": np.float64(0.5),
        "history": np.arange(3.0),
        "args": argparse.Namespace(a=pathlib.Path("x")),
        "when": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "table": collections.defaultdict(list, {"a": [1]}),
        "recent": collections.deque([1, 2], maxlen=4),
        "version": torch.__version__,
        "size": torch.Size([2]),
        "frozen": frozenset([1]),
    }
    for new_format in (True, False):
        torch.save(
            {"state_dict": net().state_dict(), **extras}, tmp_path / "c.pt", _use_new_zipfile_serialization=new_format
        )
        assert_same(read_checkpoint(tmp_path / "c.pt").state, net().state_dict())


def test_numpy_weights_become_tensors(tmp_path: Path) -> None:
    wanted = {"f": np.arange(6.0).reshape(2, 3), "t": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    wanted |= {"i": np.arange(3), "b": np.array([True, False])}
    torch.save(wanted, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt").state
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


class Config:
    """Stands for a user's own class."""

    def __init__(self) -> None:
        self.width = 3


class Options(dict[str, Any]):
    """Stands for the dictionaries with attributes of configuration libraries."""


@pytest.mark.parametrize("thing", [Config(), Options(a=1)], ids=["object", "dict"])
def test_own_classes_are_named_and_can_be_skipped(tmp_path: Path, thing: object) -> None:
    torch.save({"state_dict": net().state_dict(), "config": thing}, tmp_path / "c.pt")
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    with pytest.raises(CheckpointError, match=name) as caught:
        read_checkpoint(tmp_path / "c.pt")
    assert f"--allow-global {name}" in (caught.value.hint or "")
    assert_same(read_checkpoint(tmp_path / "c.pt", [name]).state, net().state_dict())


class Block(nn.Module):
    """Stands for a network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net(seed=3)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("passing", torch.ones(1), persistent=False)
        self.loss = nn.CrossEntropyLoss()


def test_whole_models_are_read_without_running_them(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt")
    assert_same(found.state, net().state_dict())
    assert "pickled model" in found.notes[0]
    torch.save({"net": Block(), "epoch": 3}, tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match="whole pickled model, with classes of yours") as caught:
        read_checkpoint(tmp_path / "own.pt")
    assert f"--allow-global {__name__}.Block" in (caught.value.hint or "")
    assert_same(read_checkpoint(tmp_path / "own.pt", [f"{__name__}.Block"]).state, Block().state_dict())
    torch.save(net(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"format before torch 1\.6"):
        read_checkpoint(tmp_path / "old.pt")


def test_saved_without_checksums_is_noted(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net().state_dict(), tmp_path / "c.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert "without checksums" in read_checkpoint(tmp_path / "c.pt").notes[0]


# ---- our own format -----------------------------------------------------------------------------------------------


def test_own_format_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    model = net()
    write_checkpoint(tmp_path / "new" / "a.pt", model, HEADER)
    text = "".join(["m", "lp"])  # an equal string that is another object
    shuffled = {k: (text if k == "model" else v) for k, v in reversed(HEADER.items())}
    write_checkpoint(tmp_path / "b.pt", {k: v.clone() for k, v in model.state_dict().items()}, shuffled)
    first, second = read_checkpoint(tmp_path / "new" / "a.pt"), read_checkpoint(tmp_path / "b.pt")
    assert first.sha256 == second.sha256
    assert first.kind == "landscape"
    assert first.header == HEADER
    assert first.coordinates == {"width": 5, "seed": 3}
    assert_same(first.state, model.state_dict())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.pt"]
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)  # by anybody, with plain torch
    assert loaded["landscape"] == HEADER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "newer landscape"),
        ({"format": "1"}, "no format number"),
        ({"model": 3}, "'model' in its landscape header is a int"),
        ({"training": {"f": {1: 2}}}, "more than plain types"),
    ],
)
def test_bad_headers_are_explained(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.save({"landscape": HEADER | change, "state_dict": net().state_dict()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(tmp_path / "w.pt", net(), HEADER | change)


def test_a_folder_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "c.pt").mkdir()
    with pytest.raises(StorageError):
        write_checkpoint(tmp_path / "c.pt", net(), HEADER)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(training=st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_any_plain_header_comes_back(tmp_path: Path, training: dict[str, Any]) -> None:
    path = tmp_path / "c.pt"
    try:
        write_checkpoint(path, {"a": torch.ones(1)}, {"training": training})
    except CheckpointError:  # UTF-16 surrogates and the like
        return
    found = read_checkpoint(path)
    assert found.header == {"format": 1, "training": training}
    write_checkpoint(path, found.state, found.header)
    assert read_checkpoint(path).sha256 == found.sha256


def test_notes_come_with_the_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1), "epoch": 3}}, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt")
    assert found.notes == (
        "the weights are those under 'model'",
        "left out, because they are no tensors: epoch",
    )
    assert replace(found, notes=()).state is found.state
