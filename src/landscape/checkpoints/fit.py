"""A checkpoint's tensors into a model: names matched, shapes compared, all or nothing."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from landscape.checkpoints.weights import COUNTER, require_finite
from landscape.errors import CheckpointError
from landscape.problem.batchnorm import RUNNING
from landscape.problem.parameters import without_memory

if TYPE_CHECKING:
    from landscape.checkpoints.checkpoint import Checkpoint

# What wrappers put in front of names: DataParallel and DDP, torch.compile, FSDP, Lightning and other modules.
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "net.", "network.", "backbone.")
# What wrappers of parts put anywhere into names.
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_INNER = "._orig_mod."
# Counters of averaging wrappers, which are none of a network's tensors: SWA and EMA of torch, timm, ema_pytorch.
COUNTERS = ("n_averaged", "num_averaged", "num_updates", "decay", "initted", "step", "steps", "global_step", "epoch")
# Losses and metrics that a training module keeps beside its network.
_BESIDE = re.compile(
    r"((train|val|valid|validation|test)_)?(criteri(on|a)(_\w+)?|loss(es)?(_(fn|func|function|module))?|metrics?|acc(uracy)?)\..+"
)
_SHOWN = 8
_TRIED = 24  # combinations of prefixes


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor] | None = None,
    unused: Collection[str] = (),
) -> tuple[str, ...]:
    """Put the checkpoint's tensors into the model, buffers included; the model is unchanged if this fails.

    Names are taken as they are, else without (or with) wrappers' prefixes, and then go through the model's own
    `load_state_dict`, whose hooks may rename and convert. The model takes the checkpoint's floating-point type, at
    least float32. Tied weights may be stored once or several times.

    Args:
        model: takes the tensors.
        checkpoint: from `read_checkpoint`.
        state: instead of the checkpoint's own tensors: what a problem function left of them.
        unused: names in the model of what will not be looked at, and may be missing.

    Returns:
        Notes for the user: prefixes stripped, types changed, what was left aside or missing.

    Raises:
        CheckpointError: missing or unexpected names, other shapes (listed, with the likely cause), tied weights
            that differ in the file, a model without memory (meta device, lazy modules).
    """
    state = checkpoint.state if state is None else state
    targets = _targets(model)
    match = _best_match(state, targets, unused)
    if _misses(match):
        match = _through_hooks(model, state, targets, match, unused)
    _check_names(checkpoint, state, match, targets)
    pairs = [(name, targets[name], state[source]) for name, source in match.sources.items() if name in targets]
    _check_types(checkpoint, pairs)
    parameters = [(name, source) for name, t, source in pairs if isinstance(t, nn.Parameter)]
    require_finite(checkpoint.path, [n for n, s in parameters if not bool(torch.isfinite(s).all())])
    _check_ties(checkpoint, pairs)
    dtype = _floating_dtype(state[source] for source in match.sources.values())
    old = {t.dtype for t in targets.values() if t.is_floating_point()}
    try:
        with _restored_on_failure(model):
            missing, unread = _load(model, _given(state, match), dtype)
            lost = [name for name in missing if name in match.sources]
            if lost or unread:
                raise _RefusedError(RuntimeError(f"it leaves out {_listed([*lost, *unread])}"))
    except _RefusedError as refused:
        _check_shapes(checkpoint, pairs)
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model, says its own load_state_dict: {refused.reason}",
            "build the model that was saved",
        ) from refused
    notes = list(match.notes)
    if old - {dtype}:
        shown = " and ".join(sorted(str(d).removeprefix("torch.") for d in old))
        notes.append(f"the model was {shown} and is now {str(dtype).removeprefix('torch.')}, as the checkpoint")
    return tuple(notes)


@dataclass(frozen=True)
class _Match:
    """Which tensor of the checkpoint goes under which name to the model."""

    sources: dict[str, str]  # name in the model, or for its hooks -> name in the checkpoint
    missing: list[str]
    unexpected: list[str]
    notes: tuple[str, ...]


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers of a model by name, ties under each of their names."""
    if (empty := without_memory(model)) is not None:
        raise CheckpointError(*empty)
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


# ---- through the model's own load_state_dict ------------------------------------------------------------------------


class _RefusedError(Exception):
    """The model's own load_state_dict raised."""

    def __init__(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        self.reason = text.partition("in loading state_dict for ")[2].partition(": ")[2][:400] or text[:400]
        super().__init__(self.reason)


@contextlib.contextmanager
def _restored_on_failure(model: nn.Module, always: bool = False) -> Iterator[None]:
    """The model's tensors as they were, under the names they had, if the block fails (or in any case)."""
    registered = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    done = False
    try:
        yield
        done = not always
    finally:
        if not done:
            for module, parameters, buffers in registered:
                module._parameters.clear()
                module._parameters.update(parameters)
                module._buffers.clear()
                module._buffers.update(buffers)
            for tensor, data in kept:
                tensor.data = data


def _load(model: nn.Module, given: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[list[str], list[str]]:
    """Names that are missing and unexpected after the hooks; the tensors are in the model then, in memory of its own.

    Raises:
        _RefusedError: a shape does not fit, or the model's own code fails.
    """
    own: dict[tuple[int, ...], Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        fresh = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        tensor.data = own.setdefault(_memory(tensor), fresh)
    try:
        found = model.load_state_dict(given, strict=False)
        if found is None:  # an override that is as strict as it likes
            model.load_state_dict(given)
    except Exception as error:
        raise _RefusedError(error) from error
    for tensor in (*model.parameters(), *model.buffers()):  # those that a hook put there
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
    return (list(found.missing_keys), list(found.unexpected_keys)) if found is not None else ([], [])


def _given(state: Mapping[str, Tensor], match: _Match) -> OrderedDict[str, Tensor]:
    given = OrderedDict((name, state[source]) for name, source in match.sources.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None and all(name == source for name, source in match.sources.items()):
        given._metadata = metadata  # type: ignore[attr-defined]  # versions of modules, for their hooks
    return given


def _through_hooks(
    model: nn.Module, state: Mapping[str, Tensor], targets: Mapping[str, Tensor], best: _Match, unused: Collection[str]
) -> _Match:
    """The names as they are once the model's hooks have seen them, if they fit better; the model stays as it was."""
    if not any(m._load_state_dict_pre_hooks or _overrides(m) for m in model.modules()):
        return best
    for stripped, renamed in _renamings(state, targets):
        trial = _Match(dict(renamed), [], [], _said(stripped))
        try:
            with _restored_on_failure(model, always=True):
                missing, unexpected = _load(model, _given(state, trial), torch.float32)
        except _RefusedError:
            continue
        gone = [name for name in renamed if name not in unexpected]
        kept = {name: renamed[name] for name in gone}
        missing = [name for name in missing if not name.endswith("_extra_state")]
        unexpected = [renamed[name] for name in unexpected if not name.endswith("_extra_state")]
        notes = (*trial.notes, "some names are converted by the model's own load_state_dict")
        match = _forgive(_Match(kept, missing, unexpected, notes), state, targets, unused)
        best = match if _misses(match) < _misses(best) else best
        if not _misses(best):
            break
    return best


def _overrides(module: nn.Module) -> bool:
    """Whether a module has its own way to load."""
    kind = type(module)
    return (
        kind._load_from_state_dict is not nn.Module._load_from_state_dict
        and not kind.__module__.startswith("torch.nn.modules.")
    ) or kind.load_state_dict is not nn.Module.load_state_dict


# ---- names --------------------------------------------------------------------------------------------------------


def _unwrapped(name: str) -> str:
    """A name without what wrappers of parts insert, at any depth."""
    return ".".join(part for part in name.split(".") if part not in INSIDE)


def _renamings(names: Iterable[str], targets: Iterable[str]) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """(what was done, new name -> name) for the combinations of prefixes that apply, fewest first."""
    start = {name: name for name in names}
    found: list[tuple[tuple[str, ...], dict[str, str]]] = [((), start)]
    seen = {frozenset(start)}
    for done, current in found:  # grows while it is walked: breadth first
        yield done, current
        if len(done) == 6 or len(found) > _TRIED:
            continue
        for step, renamed in _steps(current, targets):
            if len(renamed) == len(current) and frozenset(renamed) not in seen:
                seen.add(frozenset(renamed))
                found.append(((*done, step), renamed))


def _steps(current: Mapping[str, str], targets: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each of the prefixes that may be taken off or put on next."""
    common = _common(current)
    for prefix in dict.fromkeys((*PREFIXES, *([common] if common else []))):
        yield prefix, {new.removeprefix(prefix): name for new, name in current.items()}
    yield _INNER, {_unwrapped(new): name for new, name in current.items()}
    if (wanted := _common(targets)) and wanted != common:
        yield f"+{wanted}", {wanted + new: name for new, name in current.items()}


def _common(names: Iterable[str]) -> str:
    """The first part that all names have, with its dot; "" if there is none."""
    first = {name.partition(".")[0] if "." in name else "" for name in names}
    return f"{first.pop()}." if len(first) == 1 and "" not in first else ""


def _said(done: Sequence[str]) -> tuple[str, ...]:
    off = [step.strip(".") + "." if step.startswith(".") else step for step in done if not step.startswith("+")]
    on = [step[1:] for step in done if step.startswith("+")]
    notes = [f"prefix {' and '.join(dict.fromkeys(off))} stripped from names"] if off else []
    return (*notes, *([f"prefix {' and '.join(on)} put before names"] if on else []))


def _best_match(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], unused: Collection[str]) -> _Match:
    """The renaming under which most names agree; the first, so the fewest prefixes, of equal ones."""
    wanted = {_unwrapped(name): name for name in targets}
    if len(wanted) < len(targets):
        wanted = {name: name for name in targets}
    known = [name for name in state if not name.endswith("_extra_state")]
    best: _Match | None = None
    for done, renamed in _renamings(known, targets):
        by_model = renamed if set(renamed) & set(targets) else {wanted.get(n, n): s for n, s in renamed.items()}
        sources = {name: by_model[name] for name in targets if name in by_model}
        missing = [name for name in targets if name not in by_model]
        unexpected = [source for name, source in by_model.items() if name not in targets]
        match = _forgive(_Match(sources, missing, unexpected, _said(done)), state, targets, unused)
        # A part that merely all names have in common explains a whole fit, never a part of one.
        usual = all(step in PREFIXES or step == _INNER for step in done)
        if best is None or not _misses(match) or (usual and _misses(match) < _misses(best)):
            best = match
        if not _misses(best):
            break
    assert best is not None  # the first renaming changes nothing and always exists
    return best


def _misses(match: _Match) -> int:
    return len(match.missing) + len(match.unexpected)


def _forgive(
    match: _Match, state: Mapping[str, Tensor], targets: Mapping[str, Tensor], unused: Collection[str]
) -> _Match:
    """Take off what does no harm: what is unused, ties stored under another name, counters, losses and metrics beside
    the network."""
    present = {_memory(targets[name]) for name in match.sources if name in targets}
    missing = [name for name in match.missing if name not in targets or _memory(targets[name]) not in present]
    notes = match.notes
    if absent := [name for name in missing if name in unused]:
        missing = [name for name in missing if name not in unused]
        notes = (*notes, f"{len(absent)} running statistics are missing, which statistics of each batch do not need")
    counters = [name for name in missing if name.split(".")[-1] == COUNTER]
    if counters:
        missing = [name for name in missing if name not in counters]
        notes = (*notes, f"{len(counters)} batch counters are missing, which evaluation does not need")
    if missing:
        return _Match(match.sources, missing, match.unexpected, notes)
    aside = [name for name in match.unexpected if _is_counter(name, state) or _BESIDE.fullmatch(name)]
    if beside := [name for name in aside if _BESIDE.fullmatch(name)]:
        notes = (*notes, f"left aside, because the problem has its own loss: {_listed(beside)}")
    if single := [name for name in aside if name not in beside]:
        notes = (*notes, f"left aside, because they are counters of training: {_listed(single)}")
    return _Match(match.sources, [], [name for name in match.unexpected if name not in aside], notes)


def _is_counter(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether an averaging wrapper counts there; a network's own scalar of such a name is learnt, and not whole."""
    place, _, last = name.rpartition(".")
    if state[name].numel() != 1 or last not in COUNTERS or "." in place:
        return False
    beside = f"{place}.num_updates" if place else "num_updates"
    return bool(state[name] == state[name].round()) or (last == "decay" and beside in state)


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tensors that are tied; an empty tensor is tied to nothing."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _check_names(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], match: _Match, targets: Mapping[str, Tensor]
) -> None:
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
    elif _statistics_only(match):
        cause = "it has no running statistics of BatchNorm"
    elif match.missing:
        cause = "the model has layers that the checkpoint lacks: a deeper model, or a part of a checkpoint"
    else:
        cause = "the checkpoint has layers that the model lacks: a deeper network, or more than the network was saved"
    raise CheckpointError(
        f"{checkpoint.path} does not fit the model ({len(match.sources)} of {len(targets)} tensors found): {cause}; "
        + "; ".join(parts),
        _way_out(checkpoint, state, match, targets),
    )


def _statistics_only(match: _Match) -> bool:
    return (
        bool(match.missing) and all(name.split(".")[-1] in RUNNING for name in match.missing) and not match.unexpected
    )


def _way_out(checkpoint: Checkpoint, state: Mapping[str, Tensor], match: _Match, targets: Mapping[str, Tensor]) -> str:
    """What to type next, each of which works: another key, or a problem function that edits the tensors."""
    homes = _homes(state, targets)
    if homes:
        key = f"{checkpoint.key}.{homes[0]}" if checkpoint.key else homes[0]
        return f"the whole model is there below {' and '.join(f'{home}.' for home in homes)}: add --key {key}"
    ways = []
    if _statistics_only(match):
        ways.append("normalise by the statistics of each batch, as in training, with --batchnorm batch")
    if checkpoint.others:
        ways.append(f"take another set of the file with --key {checkpoint.others[0]}")
    if match.unexpected and not match.missing:
        ways.append(
            "build the model that was saved, or drop what is not the network's: a problem function that takes "
            f"`state_dict` may edit it, del state_dict[{match.unexpected[0]!r}], and what it leaves is loaded"
        )
    elif match.unexpected:
        alike = ((m, u) for m in match.missing for u in match.unexpected if _alike(targets.get(m), state[u]))
        new, old = next(alike, (match.missing[0], match.unexpected[0]))
        ways.append(
            "build the model that was saved, or rename its tensors: a problem function that takes `state_dict` may "
            f"edit it, state_dict[{new!r}] = state_dict.pop({old!r}), and what it leaves is loaded"
        )
    else:
        ways.append(
            "build the model that was saved, or add what is missing: a problem function that takes `state_dict` may "
            f"edit it, state_dict[{match.missing[0]!r}] = …, and what it leaves is loaded"
        )
    return "; or ".join(ways)


def _alike(target: Tensor | None, source: Tensor) -> bool:
    return target is not None and target.shape == source.shape


def _homes(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Prefixes below which the file has every tensor of the model, in its shape."""
    needed = [name for name in targets if name.split(".")[-1] != COUNTER]
    if not needed:
        return []
    ends = [name.removesuffix(f".{needed[0]}") for name in state if name.endswith(f".{needed[0]}")]

    def whole(home: str) -> bool:
        names = [f"{home}.{name}" for name in needed]
        return all(n in state and state[n].shape == targets[m].shape for n, m in zip(names, needed, strict=True))

    return [home for home in ends if whole(home)]


def _listed(items: Sequence[str]) -> str:
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
        if (t.is_floating_point() != source.is_floating_point() and not _whole_numbers(t, source)) or t.is_complex()
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model, numbers of another kind: {_listed(wrong)}",
            "build the model that was saved (an integer checkpoint of a float model is a quantized one)",
        )


def _whole_numbers(target: Tensor, source: Tensor) -> bool:
    """Whether floats are the integers that the model has there: a buffer halved along with the weights."""
    return not target.is_floating_point() and bool((source == source.round()).all())


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
