"""Files written by `torch.save`, read without running anything that they contain.

`torch.load(weights_only=True)` does the reading. Objects that are no weights (a NumPy score, an argparse.Namespace,
a path, what the user allows by name) are read as stand-ins: their classes are neither imported nor called, so allowing
a name never runs code either.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import CheckpointError

RESAVE = "save the weights alone, torch.save(model.state_dict(), 'weights.pt'), where the file was made"


class Skipped:
    """Stands in for an object that is not needed: takes any arguments and any state, and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Skipped:
        """An empty stand-in, whatever it is built from."""
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

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


class PlainDict:
    """What dictionaries with extras (defaultdict) are read as: an empty dict, which is then filled."""

    def __new__(cls, *_args: Any) -> dict[Any, Any]:  # type: ignore[misc]  # the unpickler fills exact dicts only
        """An empty dictionary."""
        return {}


class PlainList:
    """What lists with extras (deque) are read as: an empty list, which is then filled."""

    def __new__(cls, *_args: Any) -> list[Any]:  # type: ignore[misc]  # the unpickler fills exact lists only
        """An empty list."""
        return []


# Standard types that hold no code, as they are named in pickles by various Python and NumPy versions.
_INERT = {
    *(f"numpy.{m}.multiarray.scalar" for m in ("core", "_core")),
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
_SPECIAL: dict[str, Any] = {
    "numpy.dtype": NumpyDtype,
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


def load_pickled(path: Path, allow_globals: Sequence[str]) -> Any:
    """The object in a `torch.save` file (zip or the format before torch 1.6), tensors on the CPU, nothing run.

    Raises:
        CheckpointError: names in the file that are not allowed (listed), a whole pickled model, a damaged file.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch decides, not by what a zip reader may find at the end
    standard: dict[str, Any] = dict.fromkeys(_INERT, Skipped) | _SPECIAL
    allowed = [name for name in allow_globals if name not in standard]
    failure: Exception = EOFError()
    # Whether an allowed name is an object, a dictionary or a list shows only when it is filled.
    for kind in (Skipped, PlainDict, PlainList) if allowed else (Skipped,):
        stand_ins = standard | dict.fromkeys(allowed, kind)
        pairs: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        with warnings.catch_warnings(), torch.serialization.safe_globals(pairs):
            warnings.simplefilter("ignore")
            unknown = _unsafe_globals(path) if zipped else _legacy_globals(path, stand_ins)
            if unknown:
                raise _refusal(path, unknown)
            try:
                return _load(path, zipped)
            except Exception as error:  # a damaged file can end in almost any type
                failure = error
    raise _unreadable(path, failure) from failure


def _load(path: Path, zipped: bool) -> Any:
    if zipped and path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:  # torch.load goes by a .safetensors name, whatever is inside
        return torch.load(file, map_location="cpu", weights_only=True)


def _unsafe_globals(path: Path) -> list[str]:
    """Names in a zip checkpoint that are not allowed; reads the pickle's opcodes and runs nothing."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:
        raise _unreadable(path, error) from error


def _legacy_globals(path: Path, allowed: Iterable[str]) -> list[str]:
    """The same for the old format, which is a row of pickles followed by raw data."""
    names: set[str] = set()
    with path.open("rb") as file:
        try:
            for _ in range(4):  # magic number, protocol, system, the object
                for opcode, argument, _position in pickletools.genops(file):
                    if opcode.name in ("GLOBAL", "INST"):
                        names.add(str(argument).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        names.add("a name built at run time")
        except Exception:
            # Not a row of pickles after all; the loader says so in better words, but nothing found is forgotten.
            pass
    known = {name.replace("__builtin__.", "builtins.") for name in names} - set(allowed) - _KNOWN_TO_TORCH
    return sorted(name for name in known if not name.startswith("torch.") or name.startswith("torch.nn.modules."))


def _refusal(path: Path, unknown: Sequence[str]) -> CheckpointError:
    shown = ", ".join(unknown[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
    if any(name.startswith("torch.nn.modules.") for name in unknown):
        return CheckpointError(
            f"{path} holds a whole pickled model, which can only be read by running code from the file "
            f"(it needs {shown})",
            f"{RESAVE}, and pass --problem problem.py:problem with a function that builds the model",
        )
    alarming = [name for name in unknown if name in _ALARMING or name.partition(".")[0] in _ALARMING]
    if alarming:
        return CheckpointError(
            f"{path} would call {alarming[0]} if it were unpickled, as malicious files do; nothing was run",
            "do not open this file by other means unless you know who made it and why",
        )
    allow = " ".join(f"--allow-global {name}" for name in unknown[:6])
    return CheckpointError(
        f"{path} contains more than weights, and unpickling it would call {shown}; nothing was run",
        f"{RESAVE}, or, to read the weights and skip these objects unread, add {allow}",
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
    if "legacy .tar format" in text:
        return CheckpointError(
            f"{path} is in the tar format of torch before 0.1.10, which cannot be read safely",
            "load it with an old torch and save its state_dict again",
        )
    if re.search(r"Unsupported operand|pickle protocol|magic number", text):
        return CheckpointError(
            f"{path} is a pickle, but not one that torch.save writes by default (plain pickle.dump, joblib, or "
            "another pickle protocol), so it cannot be read without running code from it",
            RESAVE,
        )
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    first = text.splitlines()[0][:160] if text else ""
    return CheckpointError(
        f"{path} cannot be read as a checkpoint: it is damaged, cut short, or not a checkpoint at all "
        f"({type(error).__name__}: {first})",
        "copy or download the file again, or save it again",
    )
