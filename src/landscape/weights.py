"""The weights in a foreign checkpoint: found among the usual keys, and checked to be dense, real and finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError
from landscape.unpickling import RESAVE, NumpyArray

# Keys under which training scripts put the weights, the likeliest first.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "checkpoint")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)


def find_weights(path: Path, loaded: Any) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
    """Kind, weights and notes from an unpickled foreign file.

    Raises:
        CheckpointError: no weights, or several sets of them and no saying which.
    """
    if not isinstance(loaded, dict):
        what = f"a {type(loaded).__name__}" if isinstance(loaded, Tensor | list | tuple) else "a single object"
        raise CheckpointError(f"{path} holds {what}, not named weights", RESAVE)
    kind = "lightning" if "pytorch-lightning_version" in loaded else "state_dict"
    for depth in range(3):
        found = [key for key in CONTAINERS if _is_state(loaded.get(key))]
        if found:
            notes = () if depth == 0 and found[0] == "state_dict" else (f"the weights are those under {found[0]!r}",)
            return kind, loaded[found[0]], notes
        inner = [loaded[key] for key in CONTAINERS if isinstance(loaded.get(key), dict)]
        if _is_state(loaded) or not inner:
            break
        loaded = inner[0]
    if _is_state(loaded):
        return kind, loaded, ()
    raise CheckpointError(*_no_weights(path, loaded))


def _no_weights(path: Path, loaded: dict[Any, Any]) -> tuple[str, str]:
    keys = ", ".join(repr(key) for key in list(loaded)[:8]) or "nothing"
    groups = [key for key, value in loaded.items() if _is_state(value)]
    if groups:
        return (
            f"{path} holds several sets of weights or none under a usual name: {', '.join(map(repr, groups[:8]))}",
            f"save the one you mean: torch.save(torch.load(path)[{groups[0]!r}], 'weights.pt')",
        )
    if "param_groups" in loaded or any(isinstance(v, dict) and "param_groups" in v for v in loaded.values()):
        return f"{path} holds an optimizer's state and no weights (top-level keys: {keys})", RESAVE
    return f"{path} holds no weights (top-level keys: {keys})", RESAVE


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor | NumpyArray) for v in value.values())


def checked_weights(path: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors, dense and finite, in memory of our own; notes on the rest. Raises CheckpointError."""
    state: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, value in raw.items():
        tensor = value.tensor() if isinstance(value, NumpyArray) else value
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            left_out.append(str(name))
            continue
        _check_kind(path, name, tensor)
        # A copy: the file stays mapped otherwise, and a training run that overwrites it would kill this process.
        state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not state:
        raise CheckpointError(f"{path} holds no tensors", RESAVE)
    broken = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(
            f"{path} has NaN or Inf in {', '.join(broken[:8])}"
            + (f" and {len(broken) - 8} more tensors" if len(broken) > 8 else "")
            + ": training diverged, usually",
            "take an earlier checkpoint of this run",
        )
    notes = []
    if left_out:
        shown = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        notes.append(f"left out, because they are no tensors: {shown}")
    half = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.dtype in _HALF})
    if half:
        notes.append(f"the weights are stored in {' and '.join(half)} and used in float32")
    return state, tuple(notes)


def _check_kind(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse what has no Hessian with respect to real, dense entries. Raises CheckpointError."""
    reason = None
    if type(tensor) not in (Tensor, nn.Parameter):
        reason = f"of the special class {type(tensor).__name__}"
    elif tensor.is_quantized:
        reason = "quantized"
    elif tensor.layout != torch.strided or tensor.is_nested:
        reason = "sparse or nested"
    elif tensor.is_complex():
        reason = "complex"
    elif tensor.device.type != "cpu":
        reason = f"without data (device {tensor.device})"
    elif tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        reason = f"of type {tensor.dtype}"
    if reason:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {reason}; only dense real float16, bfloat16, float32 and float64 weights "
            "can be analysed",
            "save the float weights that it was made from",
        )
