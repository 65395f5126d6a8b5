"""Folders as checkpoints (Hugging Face, PEFT), and what in a folder of a run is a checkpoint."""

from __future__ import annotations

import json
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from landscape.checkpoints.unpickle import glimpse, is_network
from landscape.checkpoints.weights import weight_sets
from landscape.errors import CheckpointError

# What transformers, diffusers and accelerate call weights, the preferred first.
NAMES = ("model", "pytorch_model", "diffusion_pytorch_model")
ENDINGS = (".safetensors", ".bin")
# What a folder is searched for.
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pt2", ".bin", ".th", ".t7", ".tar")
# A file with one of these names that is nothing we know is somebody else's data, and no damaged checkpoint.
_VAGUE = (".bin", ".tar", ".th", ".t7")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{3,6})-of-(?P<count>\d{3,6})(?P<ending>\.\w+)")
# What trainers write beside weights; a glance would tell as well, but these are read by name.
_BESIDE = {
    r"training_args\.(bin|pt)": "training arguments",
    r"optimizer(_\d+)?\.(pt|pth|bin|safetensors)|.*optim_states\.pt": "an optimizer's state",
    r"(lr_)?scheduler(_\d+)?\.(pt|pth|bin)": "a schedule",
    r"(rng_state|random_states)\w*\.(pt|pth|pkl)": "states of random generators",
    r"(scaler|sampler|dataloader)(_\d+)?\.(pt|pth|bin)": "a trainer's state",
}
_STORAGES = (b"FloatStorage", b"DoubleStorage", b"HalfStorage", b"BFloat16Storage")
_LARGEST_GLANCE = 1 << 26  # of files in the format before torch 1.6, which have to be read whole
_AGAIN = "copy or download the folder again, or save it again"


@dataclass(frozen=True)
class WeightFiles:
    """The files of a folder that hold a network together; of a PEFT adapter, also its settings."""

    files: tuple[Path, ...]
    adapter: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def weight_files(path: Path) -> WeightFiles:
    """The weight files of a folder, or those that an index file names.

    Raises:
        CheckpointError: there are none, or not all; a distributed checkpoint, with the command that joins it.
    """
    if path.is_file():
        return WeightFiles(_indexed(path))
    if found := _whole(path) or _sharded(path):
        return WeightFiles(found)
    if adapters := [file for ending in ENDINGS if (file := path / f"adapter_model{ending}").is_file()]:
        config = _adapter_config(path)
        return WeightFiles((adapters[0],), config, (f"the tensors are those of a PEFT adapter ({_described(config)})",))
    if is_distributed(path):
        joined = path.with_name(f"{path.name}.pt")
        convert = f"dcp_to_torch {shlex.quote(str(path))} {shlex.quote(str(joined))}"
        raise CheckpointError(
            f"{path} is a distributed checkpoint, in pieces that only its own unpickler can put together",
            f"if you know who made it: python -m torch.distributed.checkpoint.format_utils {convert}",
        )
    if (path / "zero_to_fp32.py").is_file() or list(path.glob("*zero_pp_rank_*")):
        raise CheckpointError(
            f"{path} is a DeepSpeed checkpoint",
            "name its weights, the file mp_rank_00_model_states.pt; or, of ZeRO stage 3, join them first: "
            f"cd {shlex.quote(str(path))} && python zero_to_fp32.py . weights.pt",
        )
    inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    raise CheckpointError(
        f"{path} is a folder, and not a Hugging Face one (it has no model.safetensors)",
        f"name a file in it: {', '.join(inside[:5])}" if inside else f"give files: '{path}/**/*.pt'",
    )


def is_distributed(path: Path) -> bool:
    """Whether a folder was written by torch.distributed.checkpoint."""
    return (path / ".metadata").is_file() and any(path.glob("*.distcp"))


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is one checkpoint as a whole, and not a place where checkpoints lie."""
    if not path.is_dir():
        return False
    settings = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
    single = any((path / f"{name}{ending}").is_file() for name in (*NAMES, "adapter_model") for ending in ENDINGS)
    return (settings and single) or is_distributed(path) or bool(_sharded(path))


def is_shard(path: Path) -> bool:
    """Whether a file is a part of a network, and the others lie beside it."""
    match = _SHARD.fullmatch(path.name)
    return match is not None and int(match["count"]) > 1


def _whole(path: Path) -> tuple[Path, ...]:
    files = (path / f"{name}{ending}" for ending in ENDINGS for name in NAMES)
    return next(((file,) for file in files if file.is_file()), ())


def _sharded(path: Path) -> tuple[Path, ...]:
    """The shards of a folder: those that its index names, or all of the same name and count. Raises CheckpointError."""
    indices = sorted(path.glob("*.index.json"), key=lambda p: (".safetensors" not in p.name, p.name))
    indices = [index for index in indices if index.name.split(".")[-3] in ("safetensors", "bin")]
    if indices:
        return _indexed(indices[0])
    groups: dict[tuple[str, int], dict[int, Path]] = {}
    for file in sorted(path.glob("*-of-*")):
        if (match := _SHARD.fullmatch(file.name)) and match["ending"] in ENDINGS and is_shard(file):
            groups.setdefault((match["ending"], int(match["count"])), {})[int(match["number"])] = file
    for (ending, count), shards in sorted(groups.items(), key=lambda item: item[0][0] != ENDINGS[0]):
        if missing := sorted(set(range(1, count + 1)) - set(shards)):
            raise CheckpointError(f"{path} lacks number {missing[0]} of its {count} shards ({ending})", _AGAIN)
        return tuple(shards[number] for number in sorted(shards))
    return ()


def _indexed(index: Path) -> tuple[Path, ...]:
    """The shards that an index file names. Raises CheckpointError."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error})", _AGAIN) from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside its folder", _AGAIN)
    return tuple(index.parent / name for name in names)


def _adapter_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "adapter_config.json").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} holds an adapter without its adapter_config.json ({error})", _AGAIN) from error
    return config if isinstance(config, dict) else {}


def _described(config: Mapping[str, Any]) -> str:
    rank = f" of rank {config['r']}" if isinstance(config.get("r"), int) else ""
    return f"{config.get('peft_type', 'of unknown kind')}{rank}"


# ---- what is a checkpoint -------------------------------------------------------------------------------------------


def not_weights(path: Path) -> str | None:
    """What a file is that is no checkpoint, such as "an optimizer's state"; None for what is one, or may be.

    A damaged file is a checkpoint until it is read: nobody wants it passed over.
    """
    for pattern, what in _BESIDE.items():
        if re.fullmatch(pattern, path.name):
            return what
    if is_shard(path):
        return "a part of a network"
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None
    if start.startswith(b"PK\x03\x04") and _surely_weights(path):
        return None
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and path.stat().st_size < _LARGEST_GLANCE):
        return _glance(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return None
    known = path.suffix in SUFFIXES and path.suffix not in _VAGUE
    return None if known or start[:1] == b"\x80" else "no checkpoint"


def _surely_weights(path: Path) -> bool:
    """Whether the pickle in an archive is a dictionary with arrays of floats and no optimizer: a sweep has thousands of
    such files, and to look closer takes as long as to read them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            pickled = archive.read(entry) if entry.file_size <= path.stat().st_size else b""
    except Exception:
        return False
    mapping = pickled[2:3] == b"}" or pickled[2:14] == b"ccollections"
    return mapping and b"param_groups" not in pickled and any(kind in pickled for kind in _STORAGES)


def _glance(path: Path) -> str | None:
    """The same from what is pickled in a file, its tensors left unread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = glimpse(path)
    if loaded is None or is_network(loaded):
        return None
    if isinstance(loaded, Mapping):
        if weight_sets(loaded) or "landscape" in loaded:
            return None
        optimizer = "param_groups" in loaded or any(
            isinstance(v, Mapping) and "param_groups" in v for v in loaded.values()
        )
        return "an optimizer's state" if optimizer else "no weights"
    if isinstance(loaded, torch.Tensor | list | tuple):
        return f"a {type(loaded).__name__} without names"
    return "an object without weights"
