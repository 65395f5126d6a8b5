"""Checkpoints: any PyTorch checkpoint file -> plain tensors, never code; and our own format written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shlex
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoints.fit import load_into
from landscape.checkpoints.folders import is_shard, weight_files
from landscape.checkpoints.unpickle import conversion, load_pickled
from landscape.checkpoints.weights import checked_weights, find_weights, select
from landscape.errors import CheckpointError
from landscape.results.identity import file_sha256
from landscape.runtime.files import write_bytes

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
        kind: landscape | state_dict | lightning | safetensors | export | numpy | adapter.
        state: name -> tensor, dense, finite and on the CPU; parameters and buffers.
        header: our own header, plain types only; {} for foreign files.
        coordinates: width, seed, step … within a sweep, from the header or the path.
        notes: sentences the user should see.
        module: the network itself, for `torch.export` files only.
        key: which set of weights of the file was asked for, if any. others: the sets that were passed over.
        config: settings of the run beside the weights in the file, plain, and under which key; None if there are none.
        adapter: settings of a PEFT adapter, whose tensors `state` holds; None for whole networks.
    """

    path: str
    sha256: str
    kind: str
    state: dict[str, Tensor]
    header: dict[str, Any]
    coordinates: dict[str, Any]
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None
    key: str | None = None
    others: tuple[str, ...] = ()
    config: tuple[str, dict[str, Any]] | None = None
    adapter: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Content:
    """What a reader of one file format found, before the checks that are common to all."""

    kind: str
    state: Mapping[str, Any]
    header: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None
    others: tuple[str, ...] = ()
    config: tuple[str, dict[str, Any]] | None = None
    adapter: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Wish:
    """What the user said about reading."""

    allow_globals: Sequence[str] = ()
    key: str | None = None


def read_checkpoint(path: str | Path, allow_globals: Sequence[str] = (), key: str | None = None) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Accepted, told apart by content and not by name: our own files, a bare state_dict, one nested under any key, a
    whole pickled model, Lightning's, all as written by `torch.save` (the old format too); safetensors; arrays in
    `.npz`; `torch.export` programs; a Hugging Face folder with safetensors or `.bin` files, in shards or not; a folder
    with a PEFT adapter.

    Args:
        path: the file or folder.
        allow_globals: full names of classes in the file whose objects may be skipped; they are never imported.
        key: which of several sets of weights: its key in the file (`state_dict_ema`, `state.model`), or how the names
            of its tensors begin (`ema_model`).

    Raises:
        CheckpointError: what is wrong with the file, and what to do.
    """
    from landscape.checkpoints.coordinates import coordinates_of

    place, wish = Path(path), _Wish(allow_globals, key)
    before = _stamp(place)
    if place.is_dir() or place.name.endswith(".index.json"):
        sha256, content = _read_folder(place, wish)
    elif place.stem == "adapter_model" and (place.parent / "adapter_config.json").is_file():
        sha256, content = _read_folder(place.parent, wish)
    else:
        sha256, content = _sha256(place), _read_file(place, wish)
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
        key=key,
        others=content.others,
        config=content.config,
        adapter=content.adapter,
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


def _read_file(path: Path, wish: _Wish) -> _Content:
    """The right reader for a file, chosen by its first bytes. Raises CheckpointError."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes): it was never written, or the disk was full", _AGAIN)
    if is_shard(path):
        raise CheckpointError(
            f"{path} is one of several files (shards) that hold a network together", f"name their folder: {path.parent}"
        )
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path, wish)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _Content("safetensors", select(path, _safetensors(path), wish.key))
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return _unpack(path, load_pickled(path, wish.allow_globals), wish)
    raise CheckpointError(*_foreign(path, start))


def _foreign(path: Path, start: bytes) -> tuple[str, str]:
    """What a file that is no checkpoint seems to be, and what to do."""
    text = start.lstrip().lower()
    quoted = shlex.quote(str(path))
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
        tool = {b"\x1f": "gunzip", b"B": "bunzip2", b"\xfd": "xz -d", b"\x28": "zstd -d"}[start[:1]]
        if ".tar" in path.suffixes or path.suffix == ".tgz":
            tool = f"tar -xf {quoted}"
            return f"{path} is a compressed tar archive", f"unpack it, and name the checkpoint inside: {tool}"
        return f"{path} is compressed", f"unpack it first: {tool} < {quoted} > {shlex.quote(path.stem + '.unpacked')}"
    if start[257:262] == b"ustar":
        return _foreign_tar(path)
    if start.startswith(b"GGUF"):
        return (
            f"{path} is a GGUF file, quantised for inference",
            "take the float weights that it was made from (.safetensors or .bin)",
        )
    return f"{path} is not a PyTorch checkpoint, or its beginning is damaged", _AGAIN


def _foreign_tar(path: Path) -> tuple[str, str]:
    with contextlib.suppress(Exception), tarfile.open(path) as archive:
        names = archive.getnames()
        if not {"storages", "pickle", "tensors"} & {Path(name).name for name in names}:
            unpack = f"unpack it, and name the checkpoint inside: tar -xf {shlex.quote(str(path))}"
            return f"{path} is a tar archive ({', '.join(names[:5])})", unpack
    return (
        f"{path} is a tar archive; torch before 0.1.10 wrote such checkpoints, and they cannot be read safely",
        "load it with an old torch and save its state_dict again",
    )


def _read_zip(path: Path, wish: _Wish) -> _Content:
    """A zip file: `torch.save`, `torch.export`, or what cannot be used. Raises CheckpointError."""
    from landscape.checkpoints.exported import read_exported

    names = _zip_names(path)
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive: it holds code, and second derivatives cannot go through TorchScript",
            "take its weights out, and pass --problem with a function that builds the model: "
            + conversion(path, "torch.jit.load(sys.argv[1], map_location='cpu').state_dict()"),
        )
    if "serialized_exported_program.json" in names:
        raise CheckpointError(
            f"{path} is a torch.export file of torch before 2.8", "export and save it again with a newer torch"
        )
    if names and all(name.endswith(".npy") for name in names):
        return _read_arrays(path, names, wish)
    if "data.pkl" not in names and "archive_format" not in names:
        inside = [n for n in _zip_names(path, whole=True) if n.endswith((".pth", ".pt", ".ckpt", ".h5", ".bin"))]
        raise CheckpointError(
            f"{path} is a zip archive, not a checkpoint" + (f"; it holds {', '.join(inside[:5])}" if inside else ""),
            "unpack it, and give the checkpoint inside: "
            f"python -m zipfile -e {shlex.quote(str(path))} {shlex.quote(path.stem)}",
        )
    note = _check_zip(path)
    if "archive_format" in names:
        module = read_exported(path)
        return _Content("export", module.state_dict(), {}, note, module)
    content = _unpack(path, load_pickled(path, wish.allow_globals), wish)
    return replace(content, notes=(*note, *content.notes))


def _zip_names(path: Path, whole: bool = False) -> set[str]:
    """Names in an archive, without the folder that torch puts around them. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name if whole else name.partition("/")[2] or name for name in archive.namelist()}
    except Exception as error:
        raise _cut_short(path, error) from error


def _cut_short(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut short or damaged ({error}); an interrupted copy or a full disk, usually", _AGAIN
    )


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
        raise _cut_short(path, error) from error
    if broken:
        raise CheckpointError(f"{path} is damaged: the checksum of {broken!r} inside is wrong", _AGAIN)
    return ()


def _read_arrays(path: Path, names: set[str], wish: _Wish) -> _Content:
    """The arrays of an .npz file as weights; a data set, with inputs and targets, is none. Raises CheckpointError."""
    if {"inputs.npy", "targets.npy"} <= names:
        raise CheckpointError(
            f"{path} is a NumPy .npz archive with inputs and targets, not a checkpoint", "data files go with --data"
        )
    _check_zip_size(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as arrays of numbers ({error})", _AGAIN) from error
    return _Content("numpy", select(path, state, wish.key))


def _check_zip_size(path: Path) -> None:
    """No archive of a few bytes may fill the memory. Raises CheckpointError."""
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > 20 * path.stat().st_size + (1 << 20):
        raise CheckpointError(
            f"{path} would be {total / 1e6:.0f} MB when unpacked, {total / path.stat().st_size:.0f} times its size",
            "weights do not compress so well; save them again with numpy.savez",
        )


def _safetensors_open() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise CheckpointError(
            "reading .safetensors needs the package safetensors", "pip install 'torch-landscape[safetensors]'"
        ) from None
    opener: Callable[..., Any] = safe_open
    return opener


def _safetensors(path: Path) -> dict[str, Tensor]:
    opener = _safetensors_open()
    try:
        with opener(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error})", _AGAIN) from error
    # save_model drops all but one of the tensors that share memory and records {dropped: kept}.
    return state | {name: state[kept] for name, kept in metadata.items() if kept in state and name not in state}


def _read_folder(path: Path, wish: _Wish) -> tuple[str, _Content]:
    """A folder of one weight file, or of shards: Hugging Face's, or a PEFT adapter. Raises CheckpointError."""
    folder = weight_files(path)
    state: dict[str, Any] = {}
    digest = hashlib.sha256()
    for place in folder.files:
        _stamp(place)
        digest.update(f"{place.name} {_sha256(place)}\n".encode())
        if place.suffix == ".safetensors":
            state |= _safetensors(place)
        else:
            _check_zip(place) if zipfile.is_zipfile(place) else None
            state |= find_weights(place, load_pickled(place, wish.allow_globals)).state
    kind = "adapter" if folder.adapter else "safetensors" if folder.files[0].suffix == ".safetensors" else "state_dict"
    return digest.hexdigest(), _Content(kind, select(path, state, wish.key), adapter=folder.adapter, notes=folder.notes)


def _unpack(path: Path, loaded: Any, wish: _Wish) -> _Content:
    """Our own file or somebody else's weights in what `torch.save` wrote. Raises CheckpointError."""
    if isinstance(loaded, dict) and isinstance(loaded.get("landscape"), Mapping) and "state_dict" in loaded:
        header = dict(loaded["landscape"])
        _check_header(path, header)
        if not isinstance(loaded["state_dict"], dict):
            raise CheckpointError(f"{path}: its state_dict is not a dictionary of tensors", _AGAIN)
        return _Content("landscape", select(path, loaded["state_dict"], wish.key), header)
    found = find_weights(path, loaded, wish.key)
    return _Content(found.kind, found.state, {}, found.notes, others=found.others, config=found.config)


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
