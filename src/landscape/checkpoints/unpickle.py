"""Files written by `torch.save`, read without running anything that they contain.

`torch.load(weights_only=True)` does the reading. Objects that are no weights (a NumPy score, an argparse.Namespace,
a configuration, what the user allows by name) are read as stand-ins: their classes are neither imported nor called, so
allowing a name never runs code either. Of a whole pickled network the stand-ins keep the tensors.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import shlex
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import CheckpointError

RESAVE = "save the weights alone, torch.save(model.state_dict(), 'weights.pt'), where the file was made"


class Skipped:
    """Stands in for an object that is not needed: takes any arguments and any state, and does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **_kwargs: Any) -> Skipped:
        """A stand-in that remembers what it is built from, and makes nothing of it."""
        made = object.__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: Any) -> None:
        """Nothing: pickles that make an object with `__new__` alone never come here."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class NumpyDtype(Skipped):
    """A NumPy dtype as pickled: args[0] is its code such as "f8", state[1] its byte order."""


class NumpyArray(Skipped):
    """A NumPy array as pickled: state is (version, shape, dtype, is_fortran, bytes)."""

    def tensor(self) -> Tensor | None:
        """The array as a tensor; None for anything but booleans, integers and floats."""
        try:
            _, shape, dtype, fortran, data = self.state
            code, order = dtype.args[0], dtype.state[1]
            if not isinstance(data, bytes) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
                return None
            array = np.frombuffer(data, np.dtype(code).newbyteorder(order)).astype(np.dtype(code))
            return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C").copy())
        except (AttributeError, IndexError, TypeError, ValueError):
            return None


class NumpyScalar(Skipped):
    """A NumPy number as pickled: args are its dtype and its bytes."""


class PlainDict:
    """What dictionaries with extras (defaultdict) are read as: an empty one, which is then filled."""

    def __new__(cls, *_args: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # exact types only are filled
        """An empty dictionary; an ordered one may be given attributes as well."""
        return OrderedDict()


class PlainList:
    """What lists with extras (deque) are read as: an empty list, which is then filled."""

    def __new__(cls, *_args: Any) -> list[Any]:  # type: ignore[misc]  # the unpickler fills exact lists only
        """An empty list."""
        return []


# Standard types that hold no code, as they are named in pickles by various Python and NumPy versions.
_INERT = {
    *(f"numpy.{m}.numeric._frombuffer" for m in ("core", "_core")),
    "numpy.ndarray",
    *(f"numpy.dtypes.{n}DType" for n in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool", "Str")),
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"pathlib{m}.{n}Path" for m in ("", "._local") for n in ("", "Posix", "Windows", "Pure")),
    *(f"pathlib{m}.Pure{n}Path" for m in ("", "._local") for n in ("Posix", "Windows")),
    *(f"datetime.{n}" for n in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{n}" for n in ("list", "dict", "tuple", "frozenset", "int", "float", "bool", "str", "bytes")),
    *(f"builtins.{n}" for n in ("range", "slice", "object", "Ellipsis", "NotImplemented")),
    "copyreg._reconstructor",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "uuid.SafeUUID",
    "torch.torch_version.TorchVersion",
}
# Configurations, losses, schedules and networks: of libraries, common in checkpoints, and never needed as objects.
_HARMLESS = re.compile(
    r"omegaconf\..+|typing\.\w+|easydict\.EasyDict|addict(\.addict)?\.Dict|(yacs|fvcore|detectron2)\..*CfgNode"
    r"|ml_collections\..+|munch\.Munch|box\..*Box|(mmengine|mmcv)\..*ConfigDict|functools\.partial|enum\.\w+"
    r"|transformers\.(training_args|trainer_utils|trainer_pt_utils|integrations|configuration_utils|models\..+\.configuration_).*"
    r"|(lightning|pytorch_lightning|lightning_fabric)\..*(AttributeDict|Enum|Type|Metric|Stage)|torch\._C\.Generator"
    r"|torch\.nn\.(?!parameter\.)(?!Parameter$).+|torch\._C\._nn\.\w+"
    r"|torch\.optim\.(lr_scheduler|swa_utils|\w+)\.\w+|torch\.utils\.data\.(dataset|sampler)\.\w+"
)
_SPECIAL: dict[str, Any] = {
    "numpy.dtype": NumpyDtype,
    **{f"numpy.{m}.multiarray.scalar": NumpyScalar for m in ("core", "_core")},
    **{f"numpy.{m}.multiarray._reconstruct": NumpyArray for m in ("core", "_core")},
    "collections.defaultdict": PlainDict,
    "collections.deque": PlainList,
    **{
        f"{m}.AttributeDict": PlainDict
        for m in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        )
    },
}
# What the weights-only reader knows itself, for files whose names only we can list (the old format).
_KNOWN_TO_TORCH = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
}
# Modules and functions that no honest checkpoint needs.
_ALARMING = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "pickle", "ctypes", "code"),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__")),
}


# Begins every file of the format before torch 1.6; a pickle without it was not written by torch.save.
_MAGIC = 0x1950A86A20F9469CFC6C
# A few bytes may name the same object again and again, or within itself.
_MOST, _DEEPEST = 100_000, 24
_NAME = re.compile(r"[\w.<>]{1,160}")


def load_pickled(path: Path, allow_globals: Sequence[str]) -> Any:
    """The object in a `torch.save` file (zip or the format before torch 1.6), tensors on the CPU, nothing run.

    Raises:
        CheckpointError: names in the file that are not allowed (all of them listed), a plain pickle, a damaged file.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch decides, not by what a zip reader may find at the end
    names = _unsafe_globals(path) if zipped else _legacy_globals(path)
    allowed = {name for names in allow_globals for name in names.split(",")}
    unknown = [n for n in names if not (n in _INERT or n in _SPECIAL or n in allowed or _HARMLESS.fullmatch(n))]
    if unknown:
        if any(name.startswith("torch.distributed.") and name.endswith(".DTensor") for name in unknown):
            raise CheckpointError(*distributed(path))
        raise _refusal(path, zipped, names, unknown)
    return _stood_in(path, zipped, names)


def glimpse(path: Path) -> Any:
    """The object in a file, its tensors without their numbers where that is possible; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped and _unpacked(path) > path.stat().st_size:
            return None  # not torch's, which are not compressed
        names = _unsafe_globals(path) if zipped else _legacy_globals(path)
        return None if _alarm(path, names) else _stood_in(path, zipped, names, "meta" if zipped else "cpu")
    except (CheckpointError, OSError, zipfile.BadZipFile):
        return None


def _unpacked(path: Path) -> int:
    """Bytes of what is in an archive."""
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _stood_in(path: Path, zipped: bool, names: Sequence[str], device: str = "cpu") -> Any:
    """The file with a stand-in for each of these names. Raises CheckpointError."""
    kinds: dict[str, type] = {}
    while True:
        stand_ins = [(_SPECIAL.get(name) or _named(name, kinds.get(name, Skipped)), name) for name in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            warnings.simplefilter("ignore")
            try:
                return _load(path, zipped, device)
            except Exception as error:  # a damaged file can end in almost any type
                # Whether a name is an object, a dictionary or a list shows only when it is filled.
                filled = re.search(r"Can only (SETITEM|append|extend).*<class 'skipped\.([\w.<>]+)'>", str(error))
                if filled is None or filled[2] not in names or filled[2] in kinds:
                    raise _unreadable(path, error) from error
                kinds[filled[2]] = PlainDict if filled[1] == "SETITEM" else PlainList


def _named(name: str, kind: type) -> type:
    """A stand-in that errors call by the name that it stands for."""
    return type(name.rpartition(".")[2], (kind,), {"__module__": "skipped", "__qualname__": name})


def _load(path: Path, zipped: bool, device: str) -> Any:
    if zipped and path.suffix != ".safetensors":
        return torch.load(path, map_location=device, weights_only=True, mmap=True)
    with path.open("rb") as file:  # torch.load goes by a .safetensors name, whatever is inside
        return torch.load(file, map_location=device, weights_only=True)


# ---- what was skipped -----------------------------------------------------------------------------------------------


def is_network(value: object) -> bool:
    """Whether a stand-in is that of a pickled network; losses with weights of their own are none."""
    named = type(value).__qualname__
    return (
        isinstance(value, Skipped)
        and isinstance(value.state, Mapping)
        and isinstance(value.state.get("_parameters"), Mapping)
        and isinstance(value.state.get("_modules"), Mapping)
        and not named.startswith("torch.nn.modules.loss.")
    )


def network_state(value: Skipped, prefix: str = "", spent: list[int] | None = None) -> dict[str, Any]:
    """The tensors of a pickled network by the names that its state_dict would give them, without its hooks."""
    found: dict[str, Any] = {}
    spent = [0] if spent is None else spent
    passing = value.state.get("_non_persistent_buffers_set", ())
    for name, tensor in value.state["_parameters"].items():
        found |= {f"{prefix}{name}": tensor} if tensor is not None else {}
    for name, tensor in (value.state.get("_buffers") or {}).items():
        found |= {f"{prefix}{name}": tensor} if tensor is not None and name not in passing else {}
    for name, inner in value.state["_modules"].items():
        spent[0] += 1
        if is_network(inner) and spent[0] < _MOST and prefix.count(".") < _DEEPEST:
            found |= network_state(inner, f"{prefix}{name}.", spent)
    return found


def plain_value(value: Any, depth: int = 0, spent: list[int] | None = None) -> Any:
    """What was unpickled as numbers, texts, lists and dictionaries; `Skipped` itself for what is none of these."""
    spent = [0] if spent is None else spent
    spent[0] += 1
    if depth > _DEEPEST or spent[0] > _MOST:
        return Skipped
    if isinstance(value, NumpyScalar):
        number = NumpyArray()
        number.state = (1, (), *value.args[:1], False, *value.args[1:])
        tensor = number.tensor()
        return Skipped if tensor is None else tensor.item()
    if isinstance(value, Skipped):
        return _plain_object(value, depth, spent)
    if isinstance(value, Mapping):
        pairs = ((k, plain_value(v, depth + 1, spent)) for k, v in value.items())
        return {str(k): v for k, v in pairs if v is not Skipped}
    if isinstance(value, list | tuple | set | frozenset):
        return [v for v in (plain_value(item, depth + 1, spent) for item in value) if v is not Skipped]
    return value if value is None or isinstance(value, bool | int | float | str) else Skipped


def _plain_object(value: Skipped, depth: int, spent: list[int]) -> Any:
    """The fields of a namespace or of a configuration; an enumeration's value; a path as text."""
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if isinstance(state, Mapping):
        for inner in ("_content", "_val", "_fields"):  # OmegaConf's containers and nodes, ml_collections
            if inner in state:
                return plain_value(state[inner], depth + 1, spent)
        return plain_value({k: v for k, v in state.items() if not str(k).startswith("_")}, depth + 1, spent)
    if "Path" in type(value).__qualname__ and all(isinstance(part, str) for part in value.args):
        return "/".join(value.args).replace("//", "/", 1)
    return plain_value(value.args[0], depth + 1, spent) if len(value.args) == 1 else Skipped


# ---- names, without running anything --------------------------------------------------------------------------------


def _unsafe_globals(path: Path) -> list[str]:
    """Names in a zip checkpoint that torch does not know; reads the pickle's opcodes and runs nothing."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:
        names: set[str] = set()
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            names, _ = _pickled_names(io.BytesIO(archive.read(pickled)), 1)
        raise _alarm(path, sorted(names)) or _unreadable(path, error) from error


def _legacy_globals(path: Path) -> list[str]:
    """The same for the old format, which is a row of pickles followed by raw data. Raises CheckpointError."""
    with path.open("rb") as file:
        names, values = _pickled_names(file, 1)
        if _MAGIC not in values[:3]:
            raise _plain_pickle(path, names)
        names |= _pickled_names(file, 3)[0]  # protocol, system, the object
    known = {name.replace("__builtin__.", "builtins.") for name in names} - _KNOWN_TO_TORCH
    return sorted(n for n in known if not n.startswith("torch.") or n in _INERT or _HARMLESS.fullmatch(n))


def _pickled_names(file: IO[bytes], count: int) -> tuple[set[str], list[Any]]:
    """Names in the next pickles of a file, and the numbers and texts in them; as far as they are pickles."""
    names: set[str] = set()
    values: list[Any] = []
    with contextlib.suppress(Exception):  # not a row of pickles after all; the loader says so in better words
        for _ in range(count):
            memo: dict[int, Any] = {}
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(str(v) for v in values[-2:]))
                elif opcode.name == "MEMOIZE" or "PUT" in opcode.name:
                    memo[len(memo) if argument is None else argument] = values[-1] if values else None
                elif "GET" in opcode.name:
                    values.append(memo.get(argument or 0))
                elif isinstance(argument, str | int):
                    values.append(argument)
    return names, values


# ---- errors ---------------------------------------------------------------------------------------------------------


def conversion(path: Path, weights: str) -> str:
    """A command that writes the weights in a file alone; `weights` is Python for them, with the path in sys.argv[1]."""
    target = path.with_name(f"{path.stem}.weights.pt")
    code = f"import sys, torch; torch.save({weights}, sys.argv[2])"
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(target))}'


def _alarm(path: Path, names: Sequence[str]) -> CheckpointError | None:
    """For names of which none belongs into an honest checkpoint."""
    for name in names:
        if name in _ALARMING or name.partition(".")[0] in _ALARMING or not _NAME.fullmatch(name):
            shown = name if _NAME.fullmatch(name) else repr(name)[:80]
            return CheckpointError(
                f"{path} would call {shown} if it were unpickled, as malicious files do; nothing was run",
                "do not open this file by other means unless you know who made it and why",
            )
    return None


def _refusal(path: Path, zipped: bool, names: Sequence[str], unknown: Sequence[str]) -> CheckpointError:
    if alarm := _alarm(path, unknown):
        return alarm
    shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more names" if len(unknown) > 4 else "")
    allow = f"add --allow-global {','.join(unknown)}"
    try:
        loaded = _stood_in(path, zipped, names)
    except CheckpointError:
        loaded = torch.empty(0)  # nothing is known about it then
    if is_network(loaded) or (isinstance(loaded, Mapping) and any(is_network(v) for v in loaded.values())):
        return CheckpointError(
            f"{path} holds a whole pickled model, with classes of yours: {shown}; nothing was run",
            f"to read its tensors, and run nothing, {allow}; --problem names the function that builds the model",
        )
    if not _has_tensors(loaded):
        return CheckpointError(f"{path} holds no weights, but objects of {shown}; nothing was run", RESAVE)
    return CheckpointError(
        f"{path} contains more than weights, and unpickling it would call {shown}; nothing was run",
        f"to read the weights and skip these objects unread, {allow}",
    )


def _has_tensors(value: Any) -> bool:
    waiting: list[Any] = [value]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        found = waiting.pop()
        if isinstance(found, Tensor | NumpyArray):
            return True
        if id(found) not in seen and isinstance(found, Mapping | list | tuple):
            seen.add(id(found))
            waiting += found.values() if isinstance(found, Mapping) else found
    return False


def _plain_pickle(path: Path, names: set[str]) -> CheckpointError:
    if alarm := _alarm(path, sorted(names)):
        return alarm
    load = "__import__('pickle').loads(__import__('pathlib').Path(sys.argv[1]).read_bytes())"
    if any(name.startswith("joblib.") for name in names):
        load = "__import__('joblib').load(sys.argv[1])"
    if any(name.startswith("skorch.") for name in names):
        load += ".module_"
    network = any(name.startswith("torch.nn.modules.") for name in names)
    return CheckpointError(
        f"{path} is a plain pickle (pickle.dump, joblib), not what torch.save writes, so it cannot be read without "
        "running code from it",
        "if you know who made it: " + conversion(path, f"{load}.state_dict()" if network else load),
    )


def distributed(path: Path) -> tuple[str, str]:
    """What to say of tensors that are pieces of larger ones."""
    return (
        f"{path} holds DTensors, the pieces that one process of a distributed run had",
        "save whole tensors there: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))",
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Torch's many errors in one sentence each, the long advice of its own left out."""
    text = str(error)
    blocked = re.search(r"GLOBAL (\S+) whose module", text)
    unsupported = re.search(r"Unsupported global: GLOBAL (\S+)", text)
    if blocked or unsupported:
        name = (blocked or unsupported).group(1)  # type: ignore[union-attr]
        return CheckpointError(
            f"{path} asks for {name} to be called while it is read; nothing was run",
            "do not open this file by other means unless you know where it comes from",
        )
    if "DTensor" in text:
        return CheckpointError(*distributed(path))
    if "legacy .tar format" in text:
        return CheckpointError(
            f"{path} is in the tar format of torch before 0.1.10, which cannot be read safely",
            "load it with an old torch and save its state_dict again",
        )
    convert = "torch.load(sys.argv[1], map_location='cpu', weights_only=False)"
    if "Only persistent_load of storage" in text:
        return CheckpointError(
            f"{path} holds a whole pickled model in the format before torch 1.6, which names its source code",
            "where its classes can be imported, and if you know who made it: "
            + conversion(path, f"{convert}.state_dict()"),
        )
    if re.search(r"Unsupported operand|pickle protocol|magic number", text):
        return CheckpointError(
            f"{path} was not pickled as torch.save does by default (another pickle protocol), so it cannot be read "
            "without running code from it",
            "if you know who made it: " + conversion(path, convert),
        )
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    first = text.splitlines()[0][:160] if text else ""
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is damaged, cut short, or not a checkpoint at all "
        f"({type(error).__name__}: {first})",
        "copy or download the file again, or save it again",
    )
