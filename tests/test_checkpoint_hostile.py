"""Hostile, damaged and mistaken files: nothing in them runs, and each gives one clear error."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoints.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from landscape.errors import CheckpointError


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


ATTACKS: dict[str, Callable[[str], Calls]] = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(builtins.eval, f"open({mark!r}, 'w').close()"),
    "exec": lambda mark: Calls(builtins.exec, f"open({mark!r}, 'w').close()"),
    "open": lambda mark: Calls(builtins.open, mark, "w"),
    "subprocess": lambda mark: Calls(subprocess.call, ["touch", mark]),
    "getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "pickle in pickle": lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {mark}"))),
    "torch.load": lambda mark: Calls(torch.load, mark),
    "numpy": lambda mark: Calls(np.load, mark, None, True),
    "path": lambda mark: Calls(Path.touch, Path(mark)),
}
PLACES: dict[str, Callable[[Calls], Any]] = {
    "alone": lambda evil: evil,
    "nested": lambda evil: {"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"a": [{"b": (evil,)}]}},
    "as weights": lambda evil: {"w": evil},
    "as header": lambda evil: {"landscape": {"format": 1, "model": evil}, "state_dict": {"w": torch.ones(2)}},
}


def plain_pickle(thing: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": lambda thing, path: torch.save(thing, path, _use_new_zipfile_serialization=False),
    "zip, protocol 4": lambda thing, path: torch.save(thing, path, pickle_protocol=4),
    "plain": plain_pickle,
    "plain, protocol 0": lambda thing, path: path.write_bytes(b"\x80\x02" + pickle.dumps(thing, 0)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_pickle_runs(tmp_path: Path, attack: str, writer: str) -> None:
    mark = tmp_path / "mark"
    for place in PLACES.values():
        for name in ("c.pt", "c.ckpt", "c.safetensors", "c.pt2"):
            WRITERS[writer](place(ATTACKS[attack](str(mark))), tmp_path / name)
            with pytest.raises(CheckpointError) as caught:
                read_checkpoint(tmp_path / name)
            assert not mark.exists()
            assert "\x1b" not in caught.value.message
            assert len(caught.value.message) < 600


@pytest.mark.parametrize("attack", ["os.system", "eval", "subprocess", "pickle in pickle"])
def test_the_attacks_are_real(tmp_path: Path, attack: str) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(ATTACKS[attack](str(mark))))
    assert mark.exists()


def test_allowing_a_name_does_not_run_it_either(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = ATTACKS["eval"](str(mark))
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": evil}, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt", ["builtins.eval"])
    assert list(found.state) == ["w"]
    assert not mark.exists()


def test_a_pickle_with_a_zip_behind_it_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(ATTACKS["os.system"](str(mark)), 2) + buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "c.pt")
    assert not mark.exists()


# ---- helpers: an exported program, and archives with another content -------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "c.pt2"
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    sample = torch.randn(3, 2)
    torch.export.save(torch.export.export(model, (sample,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    return path


def rewritten(source: Path, target: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, edit(entry.filename, old.read(entry)))
    return target


# ---- mistaken files -----------------------------------------------------------------------------------------------


def tar_of(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


def write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, inputs=np.ones((2, 3)), targets=np.ones(2))


MISTAKES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is empty", "again"),
    "lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "LFS",
        "git lfs pull",
    ),
    "html": (lambda p: p.write_text("\n<!DOCTYPE html><html>404</html>"), "web page", "download"),
    "text": (lambda p: p.write_text("epoch,loss\n1,2\n"), "not a PyTorch checkpoint", "again"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5", "landscape info"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(100)), "compressed", "gunzip"),
    "tar": (tar_of, "tar archive", "state_dict"),
    "npz": (write_npz, "NumPy", "--data"),
    "tensor": (lambda p: torch.save(torch.ones(2), p), "not named weights", "state_dict"),
    "list": (lambda p: torch.save([torch.ones(2)], p), "a list, not named", "named_parameters"),
    "number": (lambda p: torch.save(3, p), "not named weights", "state_dict"),
    "no weights": (lambda p: torch.save({"epoch": 3}, p), "no weights .*'epoch'", "state_dict"),
    "gan": (lambda p: torch.save({"g": {"w": torch.ones(1)}, "d": {"w": torch.ones(1)}}, p), "'g', 'd'", "--key g,d"),
    "nan": (lambda p: torch.save({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, p), "Inf in b:", "earlier"),
    "inf": (lambda p: torch.save({"a": torch.tensor(torch.inf)}, p), "NaN or Inf in a", "earlier"),
    "complex": (lambda p: torch.save({"a": torch.ones(2, dtype=torch.complex64)}, p), "'a' is complex", "float"),
    "sparse": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "'a' is sparse", "float"),
    "meta": (lambda p: torch.save({"a": torch.ones(2, device="meta")}, p), "without data", "float"),
    "float8": (lambda p: torch.save({"a": torch.ones(2).to(torch.float8_e5m2)}, p), "float8", "float"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistaken_files_are_recognised(tmp_path: Path, mistake: str) -> None:
    make, message, hint = MISTAKES[mistake]
    make(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "c.pt")
    assert caught.value.exit_code == 3
    assert hint in (caught.value.hint or "")


def test_missing_files_folders_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "final.pt")
    with pytest.raises(CheckpointError, match="there is no file") as caught:
        read_checkpoint(tmp_path / "fnal.pt")
    assert "final.pt" in (caught.value.hint or "")
    with pytest.raises(CheckpointError, match="there is no file"):
        read_checkpoint(tmp_path / "none" / "x.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        read_checkpoint(tmp_path / "pipe")
    (tmp_path / ".metadata").write_bytes(b"")
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        read_checkpoint(tmp_path)

    def refuse(*_args: Any, **_kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("landscape.checkpoints.checkpoint.file_sha256", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_checkpoint(tmp_path / "final.pt")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    torch.save({"w": torch.ones(1)}, path)
    from landscape.checkpoints import checkpoint

    honest = checkpoint.file_sha256

    def meanwhile(place: Path) -> str:
        found = honest(place)
        torch.save({"w": torch.zeros(100)}, path)
        return found

    monkeypatch.setattr("landscape.checkpoints.checkpoint.file_sha256", meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read_checkpoint(path)


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    found = read_checkpoint(path)
    path.write_bytes(b"")  # a training run that overwrites it in place: a mapped file would kill us here
    assert torch.equal(found.state["w"], torch.arange(1000.0))


def test_compressed_archives_cannot_fill_the_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(tmp_path / "c.pt")


class Node(nn.Module):
    """A network that may hold itself."""


def test_objects_within_themselves_and_named_again_and_again_end(tmp_path: Path) -> None:
    """A few bytes that would unfold to 10^20 objects, or for ever."""
    laughs: Any = ["ha"]
    modules: Any = Node()
    mappings: Any = {"w": torch.ones(2)}
    for _ in range(20):
        laughs = [laughs] * 10
        outer, modules = modules, Node()
        for name in "abcdefgh":
            modules._modules[name] = outer
        mappings = dict.fromkeys("abcdefgh", mappings)
    circle = Node()
    circle._modules["again"] = circle
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    state = {"w": torch.ones(2)}
    for number, extra in enumerate(
        [{"config": laughs}, {"net": modules}, {"x": mappings}, {"net": circle}, {"config": ring}]
    ):
        torch.save({"state_dict": state, **extra}, tmp_path / f"{number}.pt")
        assert list(read_checkpoint(tmp_path / f"{number}.pt", [f"{__name__}.Node"]).state) == ["w"]


# ---- damage -------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one kind of damage: flipped bits, a cut, a hole, a repeated or overwritten stretch."""
    place = rng.randrange(len(data))
    length = rng.choice([1, 2, 8, 64, 1000])
    kind = rng.randrange(6)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place + length :]
    if kind == 3:
        return data[:place] + data[place : place + length] + data[place:]
    if kind == 4:
        return data[:place] + rng.randbytes(length) + data[place + length :]
    header = rng.randrange(min(len(data), 600))  # the structure at the beginning, most of all
    return data[:header] + rng.randbytes(1) + data[header + 1 :]


def same(found: Checkpoint, wanted: Checkpoint) -> bool:
    return found.state.keys() == wanted.state.keys() and all(
        torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items()
    )


def sources(folder: Path, exported: Path) -> dict[str, Path]:
    state = {f"layer{i}.weight": torch.randn(5, 4) for i in range(4)} | {"steps": torch.tensor(3)}
    write_checkpoint(folder / "own.pt", state, {"model": "mlp", "coordinates": {"width": 4}})
    torch.save({"state_dict": state, "best": np.float64(1.0), "epoch": 3}, folder / "zip.pt")
    torch.save({"model": state}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "st.safetensors")
    return {path.stem: path for path in folder.iterdir()} | {"export": exported}


@pytest.mark.parametrize("kind", ["own", "zip", "legacy", "st", "export"])
def test_damage_gives_an_error_or_the_right_weights(tmp_path: Path, exported: Path, kind: str) -> None:
    """Where the format has checksums (zip), what loads at all is what was saved; the others have none."""
    source = sources(tmp_path, exported)[kind]
    data, wanted = source.read_bytes(), read_checkpoint(source)
    rng = random.Random(kind)
    target = tmp_path / f"damaged{source.suffix}"
    refused = longest = 0
    for trial in range(350):
        target.write_bytes(mutated(data, rng))
        try:
            found = read_checkpoint(target)
        except CheckpointError as error:
            refused += 1
            longest = max(longest, len(error.message))
        else:
            if kind in ("own", "zip", "export"):
                assert same(found, wanted), trial
            assert all(bool(torch.isfinite(t).all()) for t in found.state.values())
    assert refused > 100
    assert longest < 700


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data.pkl", "model.json", "legacy", "safetensors"])
def test_damage_with_right_checksums_gives_an_error(tmp_path: Path, exported: Path, kind: str) -> None:
    """Somebody who edits the inside of an archive makes the checksums right again."""
    paths = sources(tmp_path, exported)
    rng = random.Random(1)
    for _ in range(400):
        target = tmp_path / "edited"
        if kind in ("data.pkl", "model.json"):
            source = paths["zip" if kind == "data.pkl" else "export"]
            rewritten(source, target, lambda name, data: mutated(data, rng) if name.endswith(kind) else data)
        elif kind == "legacy":
            target.write_bytes(mutated(paths["legacy"].read_bytes()[:1500], rng) + paths["legacy"].read_bytes()[1500:])
        else:
            data = paths["st"].read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            header = mutated(data[8 : 8 + size], rng)
            target.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
        try:
            found = read_checkpoint(target)
        except CheckpointError:
            continue
        assert all(bool(torch.isfinite(t).all()) for t in found.state.values())
        if found.module is not None:
            with contextlib.suppress(Exception):  # any ordinary error will do
                found.module(torch.ones(2, 2))
