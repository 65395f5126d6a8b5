"""Checkpoints: any PyTorch checkpoint file -> plain tensors, never code; and our own format written."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.atomic import write_bytes
from landscape.errors import CheckpointError
from landscape.fitting import load_into
from landscape.identity import file_sha256
from landscape.unpickling import RESAVE, load_pickled
from landscape.weights import checked_weights, find_weights

__all__ = ["FORMAT", "Checkpoint", "load_into", "read_checkpoint", "write_checkpoint"]

FORMAT = 1  # of the header in our own checkpoints

_AGAIN = "copy or download the file again, or save it again"
_HEADER_TYPES: dict[str, type] = {
    "format": int,
    "model": str,
    "model_settings": dict,
    "data": str,
    "data_settings": dict,
    "loss": str,
    "coordinates": dict,
    "training": dict,
    "problem": str,
    "certificate": dict,
    "descent": dict,
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What is in a checkpoint file.

    Attributes:
        path: as the caller wrote it.
        sha256: of the file's bytes, hexadecimal (of a folder: of its weight files').
        kind: landscape | state_dict | lightning | safetensors | export.
        state: name -> tensor, dense, finite and on the CPU; parameters and buffers.
        header: our own header, plain types only; {} for foreign files.
        coordinates: width, seed, step … within a sweep, from the header or the path.
        notes: sentences the user should see.
        module: the network itself, for `torch.export` files only.
    """

    path: str
    sha256: str
    kind: str
    state: dict[str, Tensor]
    header: dict[str, Any]
    coordinates: dict[str, Any]
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None


@dataclass(frozen=True)
class _Content:
    """What a reader of one file format found, before the checks that are common to all."""

    kind: str
    state: Mapping[str, Any]
    header: dict[str, Any]
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None


def read_checkpoint(path: str | Path, allow_globals: Sequence[str] = ()) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Accepted, told apart by content and not by name: our own files, a bare state_dict, one nested under a usual
    key, Lightning's, all as written by `torch.save` (the old format too); safetensors; `torch.export` programs; a
    Hugging Face folder with `model.safetensors`.

    Args:
        path: the file or folder.
        allow_globals: full names of classes in the file whose objects may be skipped; they are never imported.

    Raises:
        CheckpointError: what is wrong with the file, and what to do.
    """
    from landscape.coordinates import coordinates_of

    place = Path(path)
    before = _stamp(place)
    if place.is_dir():
        sha256, content = _read_folder(place)
    else:
        sha256, content = _sha256(place), _read_file(place, allow_globals)
    if _stamp(place) != before:
        raise CheckpointError(
            f"{path} changed while it was read; a training run is still writing it, perhaps", "try again"
        )
    state, notes = checked_weights(place, content.state)
    return Checkpoint(
        path=str(path),
        sha256=sha256,
        kind=content.kind,
        state=state,
        header=content.header,
        coordinates=dict(coordinates_of(str(path), content.header)),
        notes=(*content.notes, *notes),
        module=content.module,
    )


def write_checkpoint(
    path: str | Path, model_or_state: nn.Module | Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write our own format, whole or not at all; equal content gives equal bytes.

    Args:
        path: folders are made as needed; an older file of that name is replaced in one step.
        model_or_state: the network, or its tensors by name.
        header: plain types only, in any order; `format` is added.

    Raises:
        CheckpointError: the header holds something else than plain types.
        StorageError: the file cannot be written.
    """
    named = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    state = {
        sys.intern(str(name)): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
        if isinstance(tensor, Tensor)
    }
    full = {"format": FORMAT, **header}
    _check_header(Path(path), full)
    # Written to memory first: a file's name would enter the archive, and with it the bytes and the hash.
    buffer = io.BytesIO()
    torch.save({"landscape": _canonical(full), "state_dict": state}, buffer)
    write_bytes(path, buffer.getvalue())


def _canonical(value: Any) -> Any:
    """A fresh copy with sorted keys and shared strings, so that pickle's memory of objects cannot alter the bytes."""
    if isinstance(value, Mapping):
        return {sys.intern(str(key)): _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return sys.intern(str(value)) if isinstance(value, str) else value


# ---- one file, by its first bytes ---------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size, time and inode of a file; the errors that any access to it would meet."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}", _siblings(path)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not (path.is_file() or path.is_dir()):
        raise CheckpointError(f"{path} is neither a file nor a folder", "give a checkpoint file")
    return status.st_size, status.st_mtime_ns, status.st_ino


def _siblings(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"there is no folder {parent} either; check the path"
    names = sorted(p.name for p in parent.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".pt2"))
    return f"{parent} has {', '.join(names[:5])}" if names else "check the path"


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        hint = "check its permissions (ls -l)" if isinstance(error, PermissionError) else None
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}", hint) from error


def _read_file(path: Path, allow_globals: Sequence[str]) -> _Content:
    """The right reader for a file, chosen by its first bytes. Raises CheckpointError."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes): it was never written, or the disk was full", _AGAIN)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path, allow_globals)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return _unpack(path, load_pickled(path, allow_globals))
    raise CheckpointError(*_foreign(path, start))


def _foreign(path: Path, start: bytes) -> tuple[str, str]:
    """What a file that is no checkpoint seems to be, and what to do."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the checkpoint itself", "run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            f"{path} is a web page: the download gave an error page or a preview",
            "download the raw file again",
        )
    if start.startswith(b"\x89HDF"):
        return (
            f"{path} is an HDF5 file (a result of ours, or Keras weights), not a PyTorch checkpoint",
            "look into results with `landscape info`",
        )
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return f"{path} is compressed", "unpack it first (gunzip, xz -d, zstd -d)"
    if start[257:262] == b"ustar":
        return (
            f"{path} is a tar archive; torch before 0.1.10 wrote such checkpoints, and they cannot be read safely",
            "unpack it, or load it with an old torch and save its state_dict again",
        )
    return f"{path} is not a PyTorch checkpoint, or its beginning is damaged", _AGAIN


def _read_zip(path: Path, allow_globals: Sequence[str]) -> _Content:
    """A zip file: `torch.save`, `torch.export`, or what cannot be used. Raises CheckpointError."""
    from landscape.exported import read_exported

    note = _check_zip(path)
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] or name for name in archive.namelist()}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive: it holds code, and second derivatives cannot go through TorchScript",
            f"{RESAVE}, and pass --problem problem.py:problem with a function that builds the model",
        )
    if "serialized_exported_program.json" in names:
        raise CheckpointError(
            f"{path} is a torch.export file of torch before 2.8", "export and save it again with a newer torch"
        )
    if "archive_format" in names:
        module = read_exported(path)
        return _Content("export", module.state_dict(), {}, note, module)
    if "data.pkl" not in names:
        npz = all(name.endswith(".npy") for name in names)
        raise CheckpointError(
            f"{path} is a {'NumPy .npz' if npz else 'zip'} archive, not a checkpoint",
            "data files are passed with --data" if npz else "unpack it, and give the checkpoint inside",
        )
    content = _unpack(path, load_pickled(path, allow_globals))
    return _Content(content.kind, content.state, content.header, (*note, *content.notes))


def _check_zip(path: Path) -> tuple[str, ...]:
    """Find cut files and flipped bits by the archive's checksums; a note where it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > max(path.stat().st_size, 1):
                raise CheckpointError(f"{path} is a compressed archive; torch writes plain ones", "unpack it first")
            if entries and all(entry.CRC == 0 for entry in entries if entry.file_size):
                return ("the file was saved without checksums, so damage to it cannot be noticed",)
            broken = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({error}); an interrupted copy or a full disk, usually", _AGAIN
        ) from error
    if broken:
        raise CheckpointError(f"{path} is damaged: the checksum of {broken!r} inside is wrong", _AGAIN)
    return ()


def _safetensors_open() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise CheckpointError(
            "reading .safetensors needs the package safetensors", "pip install 'torch-landscape[safetensors]'"
        ) from None
    opener: Callable[..., Any] = safe_open
    return opener


def _read_safetensors(path: Path) -> _Content:
    opener = _safetensors_open()
    try:
        with opener(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error})", _AGAIN) from error
    # save_model drops all but one of the tensors that share memory and records {dropped: kept}.
    state |= {name: state[kept] for name, kept in metadata.items() if kept in state and name not in state}
    return _Content("safetensors", state, {})


def _read_folder(path: Path) -> tuple[str, _Content]:
    """A Hugging Face folder: one safetensors file, or shards named by an index. Raises CheckpointError."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    elif index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(f"{index} is not an index of shards ({error})", _AGAIN) from error
        if any(not isinstance(name, str) or Path(name).name != name for name in shards):
            raise CheckpointError(f"{index} names files outside its folder", _AGAIN)
    elif (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path} is a distributed checkpoint",
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt",
        )
    else:
        raise CheckpointError(
            f"{path} is a folder, and not a Hugging Face one (it has no model.safetensors)",
            f"give files: '{path}/**/*.pt'",
        )
    state: dict[str, Any] = {}
    digest = hashlib.sha256()
    for name in shards:
        _stamp(path / name)
        digest.update(f"{name} {_sha256(path / name)}\n".encode())
        state |= _read_safetensors(path / name).state
    return digest.hexdigest(), _Content("safetensors", state, {})


def _unpack(path: Path, loaded: Any) -> _Content:
    """Our own file or somebody else's weights in what `torch.save` wrote. Raises CheckpointError."""
    if isinstance(loaded, dict) and isinstance(loaded.get("landscape"), Mapping) and "state_dict" in loaded:
        header = dict(loaded["landscape"])
        _check_header(path, header)
        if not isinstance(loaded["state_dict"], dict):
            raise CheckpointError(f"{path}: its state_dict is not a dictionary of tensors", _AGAIN)
        return _Content("landscape", loaded["state_dict"], header)
    kind, state, notes = find_weights(path, loaded)
    return _Content(kind, state, {}, notes)


def _check_header(path: Path, header: Mapping[Any, Any]) -> None:
    """Our header must be of a known format and of plain types. Raises CheckpointError."""
    version = header.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer landscape (format {version}, this one reads {FORMAT})",
            "pip install --upgrade torch-landscape",
        )
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(f"{path}: its landscape header has no format number this version knows", _AGAIN)
    for key, kind in _HEADER_TYPES.items():
        if key in header and type(header[key]) is not kind:
            what = type(header[key]).__name__
            raise CheckpointError(f"{path}: {key!r} in its landscape header is a {what}, not a {kind.__name__}")
    if not _is_plain(header, 0):
        raise CheckpointError(
            f"{path}: its landscape header holds more than plain types",
            "only None, booleans, numbers, text, lists and dictionaries with text keys belong there",
        )


def _is_plain(value: object, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth < 8 and all(type(k) is str and _is_plain(v, depth + 1) for k, v in value.items())
    if type(value) in (list, tuple):
        return depth < 8 and all(_is_plain(item, depth + 1) for item in value)  # type: ignore[attr-defined]
    return value is None or type(value) in (bool, int, float, str)
