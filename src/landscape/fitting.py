"""A checkpoint's tensors into a model: names matched, shapes compared, all or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError

if TYPE_CHECKING:
    from landscape.checkpoint import Checkpoint

# What wrappers put in front of names: DataParallel and DDP, torch.compile, Lightning modules.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 8


def load_into(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Put the checkpoint's tensors into the model, buffers included; the model is unchanged if this fails.

    Names are taken as they are, else without wrappers' prefixes. The model takes the checkpoint's floating-point
    type, at least float32. Tied weights may be stored once or several times.

    Returns:
        Notes for the user: prefixes stripped, types changed, counters missing.

    Raises:
        CheckpointError: missing or unexpected names, other shapes (listed, with the likely cause), tied weights
            that differ in the file, a model without memory (meta device, lazy modules).
    """
    targets = _targets(model)
    match = _best_match(checkpoint.state, targets)
    _check_names(checkpoint, match, targets)
    pairs = [(name, targets[name], checkpoint.state[source]) for name, source in match.sources.items()]
    _check_shapes(checkpoint, pairs)
    _check_types(checkpoint, pairs)
    _check_ties(checkpoint, pairs)
    # Everything is prepared before the first tensor of the model changes.
    dtype = _floating_dtype(t for _, _, t in pairs)
    old = {t.dtype for t in targets.values() if t.is_floating_point()}
    tied: dict[tuple[int, ...], Tensor] = {}
    prepared = []
    for _, t, source in pairs:
        value = source.to(t.device, dtype if t.is_floating_point() else t.dtype, copy=True)
        prepared.append((t, tied.setdefault(_memory(t), value)))
    # Buffers that are not saved follow the type of the rest, or the network would mix types.
    loaded = {id(t) for t, _ in prepared}
    prepared += [
        (t, t.detach().to(dtype))
        for t in (*model.parameters(), *model.buffers())
        if t.is_floating_point() and t.dtype != dtype and id(t) not in loaded
    ]
    for target, value in prepared:
        target.data = value
    notes = list(match.notes)
    if old - {dtype}:
        shown = " and ".join(sorted(str(d).removeprefix("torch.") for d in old))
        notes.append(f"the model was {shown} and is now {str(dtype).removeprefix('torch.')}, as the checkpoint")
    return tuple(notes)


@dataclass(frozen=True)
class _Match:
    """Which tensor of the checkpoint goes into which of the model."""

    sources: dict[str, str]  # name in the model -> name in the checkpoint
    missing: list[str]
    unexpected: list[str]
    notes: tuple[str, ...]


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers of a model by name, ties under each of their names."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise CheckpointError(
                f"the model's tensor {name!r} has no memory yet (a lazy module, or the meta device)",
                "call the model once on a sample, and build it on the CPU, before you return it",
            )
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    identities = {id(tensor) for tensor in own.values()}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        tensor = own.get(name, value)
        if not isinstance(tensor, Tensor) or name.endswith("_extra_state"):
            continue
        if id(tensor) not in identities:
            raise CheckpointError(
                f"the model's state_dict has {name!r}, which is none of its parameters and buffers (a hook made it), "
                "so weights cannot be put there",
                "return the plain network, without quantization or sharding around it",
            )
        found[name] = tensor
    return found


# ---- names --------------------------------------------------------------------------------------------------------


def _compiled(name: str) -> str:
    """A name without what torch.compile inserts, at any depth."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _renamings(names: Iterable[str]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """(prefixes stripped, new name -> name) for every combination of prefixes that applies, fewest first."""
    start = {name: name for name in names}
    found: list[tuple[tuple[str, ...], dict[str, str]]] = [((), start)]
    seen = {frozenset(start)}
    for stripped, current in found:  # grows while it is walked: breadth first
        if len(stripped) == 6:
            break
        for prefix in (*PREFIXES, "._orig_mod."):
            if prefix.startswith("."):
                renamed = {_compiled(new): name for new, name in current.items()}
            else:
                renamed = {new.removeprefix(prefix): name for new, name in current.items()}
            if len(renamed) == len(current) and frozenset(renamed) not in seen:
                seen.add(frozenset(renamed))
                found.append(((*stripped, prefix), renamed))
    return found


def _best_match(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> _Match:
    """The renaming under which most names agree; the first, so the fewest prefixes, of equal ones."""
    wanted = {_compiled(name): name for name in targets}
    if len(wanted) < len(targets):
        wanted = {name: name for name in targets}
    known = [name for name in state if not name.endswith("_extra_state")]
    best: _Match | None = None
    for stripped, renamed in _renamings(known):
        by_model = renamed if set(renamed) & set(targets) else {wanted.get(n, n): s for n, s in renamed.items()}
        sources = {name: by_model[name] for name in targets if name in by_model}
        missing = [name for name in targets if name not in by_model]
        unexpected = [source for name, source in by_model.items() if name not in targets]
        notes = (f"prefix {' and '.join(dict.fromkeys(stripped))} stripped from names",) if stripped else ()
        match = _forgive(_Match(sources, missing, unexpected, notes), targets)
        if best is None or _misses(match) < _misses(best):
            best = match
        if not _misses(best):
            break
    assert best is not None  # the first renaming changes nothing and always exists
    return best


def _misses(match: _Match) -> int:
    return len(match.missing) + len(match.unexpected)


def _forgive(match: _Match, targets: Mapping[str, Tensor]) -> _Match:
    """Take off the missing names that do no harm: ties stored under another name, and batch counters."""
    present = {_memory(targets[name]) for name in match.sources}
    missing = [name for name in match.missing if _memory(targets[name]) not in present]
    counters = [name for name in missing if name.split(".")[-1] == "num_batches_tracked"]
    notes = match.notes
    if counters:
        missing = [name for name in missing if name not in counters]
        notes = (*notes, f"{len(counters)} batch counters are missing, which evaluation does not need")
    return _Match(match.sources, missing, match.unexpected, notes)


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tensors that are tied; an empty tensor is tied to nothing."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _check_names(checkpoint: Checkpoint, match: _Match, targets: Mapping[str, Tensor]) -> None:
    if not _misses(match):
        return
    parts = []
    if match.missing:
        parts.append(f"missing: {_listed(match.missing)}")
    if match.unexpected:
        parts.append(f"unexpected: {_listed(match.unexpected)}")
    if not match.sources:
        cause = "no name agrees: it is another architecture, or its layers have other names"
    elif match.missing and match.unexpected:
        cause = "some layers have other names, or another depth"
    elif match.missing:
        cause = "the model has layers that the checkpoint lacks: a deeper model, or a part of a checkpoint"
    else:
        cause = "the checkpoint has layers that the model lacks: a deeper network, or more than the network was saved"
    raise CheckpointError(
        f"{checkpoint.path} does not fit the model ({len(match.sources)} of {len(targets)} tensors found): {cause}; "
        + "; ".join(parts),
        "build the model that was saved; a problem function may take the tensors as its argument `state_dict` "
        "and rename or drop some",
    )


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


# ---- shapes, types, ties ------------------------------------------------------------------------------------------

_Pairs = list[tuple[str, Tensor, Tensor]]


def _check_shapes(checkpoint: Checkpoint, pairs: _Pairs) -> None:
    wrong = [(name, t.shape, source.shape) for name, t, source in pairs if t.shape != source.shape]
    if not wrong:
        return
    listed = [f"{name} is {tuple(theirs)}, the model's {tuple(ours)}" for name, ours, theirs in wrong]
    changes: Counter[tuple[int, int]] = Counter()
    for _, ours, theirs in wrong:
        if len(ours) == len(theirs):
            changes.update({(a, b) for a, b in zip(theirs, ours, strict=True) if a != b})
    cause, hint = "", "build the model with the shapes of the checkpoint"
    if changes:
        (theirs_wide, ours_wide), count = changes.most_common(1)[0]
        if 2 * count > len(wrong):
            cause = f": the checkpoint has width {theirs_wide} where the model has {ours_wide}"
            hint = (
                f"build the model that wide: let the problem function take `width`, which is filled from the "
                f"checkpoint's path or by --set width={theirs_wide}"
            )
    raise CheckpointError(
        f"{checkpoint.path} does not fit the model, {len(wrong)} shapes differ{cause}; " + _listed(listed), hint
    )


def _check_types(checkpoint: Checkpoint, pairs: _Pairs) -> None:
    wrong = [
        f"{name} ({str(source.dtype).removeprefix('torch.')}, the model's {str(t.dtype).removeprefix('torch.')})"
        for name, t, source in pairs
        if t.is_floating_point() != source.is_floating_point() or t.is_complex()
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model, numbers of another kind: {_listed(wrong)}",
            "build the model that was saved (an integer checkpoint of a float model is a quantized one)",
        )


def _check_ties(checkpoint: Checkpoint, pairs: _Pairs) -> None:
    first: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    for name, target, source in pairs:
        other, value = first.setdefault(_memory(target), (name, source))
        if value is not source and not torch.equal(value, source):
            raise CheckpointError(
                f"{checkpoint.path}: the model ties {other} and {name}, but they differ in the checkpoint",
                "build the model without this tie, as it was when it was saved",
            )


def _floating_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The widest floating-point type among the tensors, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
