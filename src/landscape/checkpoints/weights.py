"""The weights in a foreign checkpoint: found among the usual keys, and checked to be dense, real and finite."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints.unpickle import (
    RESAVE,
    NumpyArray,
    conversion,
    distributed,
    is_network,
    network_state,
    plain_value,
)
from landscape.errors import CheckpointError

# Keys under which training scripts put the weights, the likeliest first.
CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "checkpoint"),
    *("model_state", "state", "model_weights", "model_dict"),
)
# Keys under which they put the settings of the run.
SETTINGS = ("config", "args", "hparams", "hyper_parameters", "cfg", "model_args")
COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_DEEPEST, _MOST = 6, 200
_Path = tuple[str, ...]
_Sets = dict[_Path, Mapping[str, Any]]
_Seen = dict[int, tuple[Mapping[Any, Any], list[_Path]]]  # by identity: a mapping, and where it is met again


@dataclass(frozen=True)
class Found:
    """What an unpickled file holds.

    Attributes:
        kind: state_dict or lightning. state: the chosen weights. notes: sentences about them.
        others: keys of the sets that were passed over.
        config: the settings of the run beside the weights, in plain types, and under which key they are.
    """

    kind: str
    state: Mapping[str, Any]
    notes: tuple[str, ...]
    others: tuple[str, ...] = ()
    config: tuple[str, dict[str, Any]] | None = None


def find_weights(path: Path, loaded: Any, key: str | None = None) -> Found:
    """The weights in an unpickled file: those of `key`, or of the likeliest place.

    Args:
        path: for messages. loaded: from `load_pickled`.
        key: names a set of weights by its keys, dotted (`state.model`), or the tensors of a set whose names begin so;
            several joined by commas are one set, each under its own name.

    Raises:
        CheckpointError: no weights, or several sets of them and no saying which.
    """
    if is_network(loaded):
        state = select(path, network_state(loaded), key)
        return Found("state_dict", state, ("the weights are those of a pickled model, none of whose code was run",))
    if not isinstance(loaded, Mapping):
        raise CheckpointError(*_unnamed(path, loaded))
    sets, twins = _sets_and_twins(loaded)
    if not sets:
        raise CheckpointError(*_no_weights(path, loaded))
    kind = "lightning" if "pytorch-lightning_version" in loaded else "state_dict"
    config = _settings(loaded)
    if key is not None:
        state = _keyed(path, loaded, sets | twins, key)
        return Found(kind, state, (f"the weights are those of --key {key}",), (), config)
    chosen = _likeliest(sets)
    if chosen is None:
        raise CheckpointError(*_several(path, sets))
    others = tuple(".".join(place) for place in sets if place[: len(chosen)] != chosen)
    state = sets[chosen] if chosen in sets else _joined(sets, chosen)
    own = {id(taken) for place, taken in sets.items() if place[: len(chosen)] == chosen}
    others += tuple(".".join(place) for place, twin in twins.items() if id(twin) not in own)
    notes: tuple[str, ...] = ()
    if others:
        named = ", ".join(repr(other) for other in others[:6]) + (" and more" if len(others) > 6 else "")
        notes = (f"the weights are those under {'.'.join(chosen)!r}; passed over: {named} (--key takes them)",)
    elif chosen not in ((), ("state_dict",)):
        notes = (f"the weights are those under {'.'.join(chosen)!r}",)
    return Found(kind, state, notes, others, config)


def select(path: Path, state: Mapping[str, Any], key: str | None) -> Mapping[str, Any]:
    """The tensors whose names begin with `key.`, without that; all of them without a key. Raises CheckpointError."""
    return state if key is None else _keyed(path, state, {(): state}, key)


# ---- sets of weights ------------------------------------------------------------------------------------------------


def weight_sets(loaded: Mapping[Any, Any]) -> _Sets:
    """Every mapping in a file that holds weights, by the keys that lead to it; optimizers and settings are left out."""
    return _sets_and_twins(loaded)[0]


def _sets_and_twins(loaded: Mapping[Any, Any]) -> tuple[_Sets, _Sets]:
    """`weight_sets`, and where else in the file the same mappings are: of one saved as last and best, the second."""
    found: _Sets = {}
    seen: _Seen = {}
    _walk(loaded, (), found, seen)
    homes = [sorted((place, *seen[id(state)][1]), key=_rank) for place, state in found.items()]
    states = list(found.values())
    found = {places[0]: state for places, state in zip(homes, states, strict=True)}
    twins = {place: state for places, state in zip(homes, states, strict=True) for place in places[1:]}
    if not found:  # nothing but scalars: a network of such, perhaps
        places: _Sets = {}
        places[()] = loaded
        for key in CONTAINERS:
            if isinstance(loaded.get(key), Mapping):
                places[(key,)] = loaded[key]
        for place, inner in places.items():
            if any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_quantized) for v in inner.values()):
                return {place: inner}, {}
    return found, twins


def _walk(value: Mapping[Any, Any], place: _Path, found: _Sets, seen: _Seen) -> None:
    if "param_groups" in value or len(place) > _DEEPEST or len(found) > _MOST:
        return
    if id(value) in seen:  # once: a few bytes may name the same mapping again and again
        seen[id(value)][1].append(place)
        return
    seen[id(value)] = value, []
    below: _Sets = {}
    for key, inner in value.items():
        if isinstance(key, str) and key not in SETTINGS:
            inner = network_state(inner) if is_network(inner) else inner
            listed = inner if isinstance(inner, list | tuple) and len(inner) <= 16 else ()
            named = [((*place, key), inner), *(((*place, key, str(n)), item) for n, item in enumerate(listed))]
            for name, item in named:
                if isinstance(item, Mapping):
                    _walk(item, name, below, seen)
    own = sum(_is_weight(v) for k, v in value.items() if isinstance(k, str))
    # A curve of losses beside several networks is no network; nor is a layer's extra state one beside its weights.
    if own > sum(sum(map(_is_weight, inner.values())) for inner in below.values()):
        found[place] = value
    else:
        found |= below


def _is_weight(value: object) -> bool:
    """Whether it is an array of numbers that could be learnt."""
    if isinstance(value, NumpyArray):
        with contextlib.suppress(AttributeError, IndexError, TypeError):
            return len(value.state[1]) > 0 and value.state[2].args[0].startswith("f")
        return False
    floats = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex() or value.is_quantized)
    return floats and value.dim() > 0  # type: ignore[attr-defined]


def _likeliest(sets: _Sets) -> _Path | None:
    """The place of the weights; a usual key that holds several sets stands for all of them; None if there is none."""
    if len(sets) == 1:
        return next(iter(sets))
    usual = {place[:n] for place in sets for n in range(len(place) + 1) if all(k in CONTAINERS for k in place[:n])}
    ranked = sorted(usual - {()} | (usual & set(sets)), key=_rank)
    return next((p for p in ranked if p in sets), ranked[0] if ranked else None)


def _rank(place: _Path) -> tuple[bool, int, list[int]]:
    """Smaller for likelier places of the weights; equal for all that are unusual."""
    if not all(key in CONTAINERS for key in place):
        return True, 0, []
    return False, len(place), [CONTAINERS.index(key) for key in place]


def _joined(sets: _Sets, place: _Path) -> dict[str, Any]:
    """All sets below a place as one, named by what leads to them from there."""
    below = {p[len(place) :]: s for p, s in sets.items() if p[: len(place)] == place}
    return {".".join((*p, name)): value for p, s in below.items() for name, value in s.items() if isinstance(name, str)}


def _keyed(path: Path, loaded: Mapping[Any, Any], sets: _Sets, key: str) -> Mapping[str, Any]:
    if "," in key:
        parts = [part for part in key.split(",") if part]
        return {f"{p}.{n}": v for p in parts for n, v in _keyed(path, loaded, sets, p).items()}
    named = {".".join(place): state for place, state in sets.items()}
    ends = [name for name in named if name.endswith(f".{key}")]
    if key in named or len(ends) == 1:
        return named[key if key in named else ends[0]]
    joined = {n.removeprefix(f"{key}."): s for n, s in named.items() if n.startswith(f"{key}.")}
    if joined:
        return {f"{p}.{n}": v for p, s in joined.items() for n, v in s.items()}
    likeliest = _likeliest(sets)
    inside = [(key, state) for state in ((sets[likeliest],) if likeliest in sets else sets.values())]
    inside += [(key.removeprefix(f"{name}."), state) for name, state in named.items() if key.startswith(f"{name}.")]
    for start, state in inside:
        if chosen := {n[len(start) + 1 :]: v for n, v in state.items() if str(n).startswith(f"{start}.")}:
            return chosen
    if isinstance(loaded.get(key), Mapping) and any(isinstance(v, Tensor) for v in loaded[key].values()):
        return loaded[key]  # type: ignore[no-any-return]
    known = [name for name in named if name] or sorted({str(n).partition(".")[0] for n in sets[()] if "." in str(n)})
    raise CheckpointError(
        f"{path} has no set of weights {key!r}, and no names that begin with {key}.",
        f"it has --key {', --key '.join(known[:12])}" if known else "leave --key out: it holds one set only",
    )


def _settings(loaded: Mapping[Any, Any]) -> tuple[str, dict[str, Any]] | None:
    for key in SETTINGS:
        value = plain_value(loaded[key]) if key in loaded else None
        if isinstance(value, dict) and value:
            return key, value
    return None


# ---- errors ---------------------------------------------------------------------------------------------------------


def _several(path: Path, sets: _Sets) -> tuple[str, str]:
    names = [".".join(place) for place in sets]
    return (
        f"{path} holds several sets of weights, none under a usual name: {', '.join(map(repr, names[:12]))}",
        f"name one with --key {names[0]}, or parts of one network with --key {','.join(names[:2])}",
    )


def _unnamed(path: Path, loaded: Any) -> tuple[str, str]:
    read = "torch.load(sys.argv[1])"
    model = "__import__('problem').problem().model"
    if isinstance(loaded, Tensor) and loaded.dim() == 1 and loaded.is_floating_point():
        weights = (
            f"(lambda m: (torch.nn.utils.vector_to_parameters({read}, m.parameters()), m.state_dict())[1])({model})"
        )
        return (
            f"{path} holds a Tensor, not named weights; a vector of all parameters, perhaps",
            f"with your problem.py, name them: {conversion(path, weights)}",
        )
    if isinstance(loaded, list | tuple) and any(isinstance(v, Tensor) for v in loaded):
        weights = f"dict(zip([n for n, p in {model}.named_parameters()], {read}))"
        return (
            f"{path} holds a {type(loaded).__name__}, not named weights; the parameters in order, perhaps",
            f"with your problem.py, name them: {conversion(path, weights)}",
        )
    what = f"a {type(loaded).__name__}" if isinstance(loaded, Tensor | list | tuple) else "a single object"
    return f"{path} holds {what}, not named weights", RESAVE


def _no_weights(path: Path, loaded: Mapping[Any, Any]) -> tuple[str, str]:
    keys = ", ".join(repr(key) for key in list(loaded)[:8]) or "nothing"
    if "param_groups" in loaded or any(isinstance(v, Mapping) and "param_groups" in v for v in loaded.values()):
        return f"{path} holds an optimizer's state and no weights (top-level keys: {keys})", RESAVE
    return f"{path} holds no weights (top-level keys: {keys})", RESAVE


def is_mask_or_finite(tensor: Tensor) -> bool:
    """Whether −inf is all that is not finite in it, and not all of it: a causal mask is such a constant."""
    lowest = tensor == -torch.inf
    return bool((lowest | torch.isfinite(tensor)).all()) and not (tensor.numel() > 0 and bool(lowest.all()))


def require_finite(path: Path | str, broken: Sequence[str]) -> None:
    """Nothing of a checkpoint is broken. Raises CheckpointError."""
    if broken:
        raise CheckpointError(
            f"{path} has NaN or Inf in {', '.join(broken[:8])}"
            + (f" and {len(broken) - 8} more tensors" if len(broken) > 8 else "")
            + ": training diverged, usually",
            "take an earlier checkpoint of this run",
        )


# ---- tensors --------------------------------------------------------------------------------------------------------


def checked_weights(path: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors, dense and finite, in memory of our own; notes on the rest. Raises CheckpointError."""
    state = with_versions({}, raw)
    left_out: list[str] = []
    for name, value in raw.items():
        tensor = value.tensor() if isinstance(value, NumpyArray) else value
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            left_out.append(str(name))
            continue
        if name.endswith(COUNTER) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            continue  # a half-precision batch counter counts to 65,504 only, and evaluation needs none
        _check_kind(path, name, tensor)
        # A copy: the file stays mapped otherwise, and a training run that overwrites it would kill this process.
        state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not state:
        raise CheckpointError(f"{path} holds no tensors", RESAVE)
    require_finite(path, [name for name, t in state.items() if t.is_floating_point() and not is_mask_or_finite(t)])
    notes = []
    if left_out:
        shown = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        notes.append(f"left out, because they are no tensors: {shown}")
    half = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.dtype in _HALF})
    if half:
        notes.append(f"the weights are stored in {' and '.join(half)} and used in float32")
    return state, tuple(notes)


def with_versions(state: Mapping[str, Tensor], source: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """The tensors with what the source says of its modules' versions, for the hooks that read them."""
    made = OrderedDict(state)
    if isinstance(versions := getattr(source, "_metadata", None), Mapping):
        made._metadata = dict(versions)  # type: ignore[attr-defined]
    return made


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
    if type(tensor).__name__ == "DTensor":
        raise CheckpointError(*distributed(path))
    if reason:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {reason}; only dense real float16, bfloat16, float32 and float64 weights "
            "can be analysed",
            "save the float weights that it was made from",
        )
