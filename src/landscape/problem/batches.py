"""Batches of data: reading them in twice the same, cutting, joining, moving and fingerprinting them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import ProblemError
from landscape.problem.copies import moved
from landscape.problem.problem import Batch, Problem, is_pair

# What has attributes, none of which belongs to a batch.
NO_BATCH = (int, float, str, bytes, type(None), type, types.ModuleType, types.FunctionType, nn.Module)


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a nested batch (tuples, lists, mappings, dataclasses, attributes of objects).

    An object of which no tensor changes is not copied.
    """
    return _mapped(batch, function, {})


def _mapped(batch: Batch, function: Callable[[Tensor], Tensor], known: dict[int, tuple[Any, Any]]) -> Batch:
    """`map_tensors`, given the objects met so far and what became of them: attributes lead back, or to many places."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, NO_BATCH):
        return batch

    def inside(value: Any) -> Any:
        return _mapped(value, function, known)

    if isinstance(batch, Mapping):
        mapped = {k: inside(v) for k, v in batch.items()}
        if type(batch) is dict:
            return mapped
        clone: Any = copy.copy(batch)  # such as transformers.BatchEncoding: keeps attribute access
        clone.update(mapped)
        return clone
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(inside(v) for v in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(inside(v) for v in batch)
    if id(batch) not in known:
        known[id(batch)] = batch, batch
        known[id(batch)] = batch, _mapped_object(batch, function, inside)
    return known[id(batch)][1]


def _mapped_object(batch: Any, function: Callable[[Tensor], Tensor], inside: Callable[[Any], Any]) -> Any:
    """A shallow copy of an object with the tensors of its attributes mapped; itself where none changes."""
    if (
        dataclasses.is_dataclass(batch)
        and not isinstance(batch, type)
        and all(f.init for f in dataclasses.fields(batch))
    ):
        return dataclasses.replace(batch, **{f.name: inside(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
    if callable(getattr(batch, "apply", None)) and hasattr(batch, "stores"):  # PyTorch Geometric's, whose parts know it
        return copy.copy(batch).apply(lambda v: function(v) if isinstance(v, Tensor) else v)
    slots = [name for kind in type(batch).__mro__ for name in _slots(kind)]
    values = getattr(batch, "__dict__", {}) | {n: getattr(batch, n) for n in slots if hasattr(batch, n)}
    mapped = {name: inside(value) for name, value in values.items()}
    changed = {name: value for name, value in mapped.items() if not _same(value, values[name])}
    if not changed:
        return batch
    clone = copy.copy(batch)
    for name, value in changed.items():
        object.__setattr__(clone, name, value)  # also of what calls itself frozen
    return clone


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [n for n in ([slots] if isinstance(slots, str) else slots) if n not in ("__dict__", "__weakref__")]


def _same(one: Any, other: Any) -> bool:
    """Whether mapping has left a value as it was: containers are made anew, what they hold is not."""
    if type(one) is type(other) and isinstance(one, tuple | list) and len(one) == len(other):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    return one is other


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a nested batch, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def length_of(batch: Batch) -> int:
    """Number of samples: the common first dimension of the batch's tensors; 0 where there is none."""
    lengths = {t.shape[0] for t in tensors_of(batch) if t.dim() > 0}
    return lengths.pop() if len(lengths) == 1 else 0


def take(batch: Batch, index: slice | Tensor) -> Batch:
    """The samples of a batch at `index`; tensors without a sample axis are kept."""

    def some(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            return tensor[index]
        at = torch.arange(len(tensor), device=tensor.device)[index]  # sparse ones know no slices
        whole = len(at) == len(tensor) and bool((at[1:] > at[:-1]).all())
        return tensor if whole else torch.index_select(_coordinates(tensor), 0, at)

    return map_tensors(batch, lambda t: some(t) if t.dim() > 0 else t)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most `size` samples, the last one ragged."""
    total = length_of(batch)
    if total == 0 or total <= size:
        yield batch
        return
    for start in range(0, total, size):
        yield take(batch, slice(start, min(start + size, total)))


def even_size(total: int, size: int) -> int:
    """Chunk size near `size` that cuts `total` evenly, so that no small remainder wastes a launch."""
    pieces = max(1, round(total / size))
    return -(-total // pieces)


def share_of(batches: Sequence[Batch], batch: Batch) -> float:
    """The part of all data that a batch holds."""
    lengths = [length_of(b) for b in batches]
    return length_of(batch) / sum(lengths) if min(lengths) else 1.0 / len(lengths)


def move(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """To a device; floating-point tensors also to `dtype`, complex ones to its precision, integers and booleans as they
    are.

    Tensors made in inference mode are copied: they could not enter a graph.
    """

    def there(tensor: Tensor) -> Tensor:
        found = moved(tensor, device, dtype)
        return found.clone() if found.is_inference() else found

    return map_tensors(batch, there)


def read_batches(problem: Problem) -> list[Batch]:
    """All batches of the problem's data, after checking that a second pass gives the same ones.

    Raises:
        ProblemError: no data, inputs and targets of different length, NaN in the data, two passes that differ,
            targets that its loss cannot have.
    """
    data = problem.data
    if is_pair(data):
        inputs, targets = data
        if inputs.shape[0] != targets.shape[0]:
            raise ProblemError(
                f"there are {inputs.shape[0]} inputs but {targets.shape[0]} targets",
                "pair each input with a target",
            )
        batches: list[Batch] = [(inputs, targets)] if inputs.shape[0] else []
    else:
        with torch.random.fork_rng(devices=[]):  # every pass over a DataLoader draws from the caller's generator
            batches = list(data)
            _require_tensors(batches)
            if not isinstance(data, list | tuple) and fingerprint(batches) != fingerprint(list(data)):
                raise ProblemError(
                    "two passes over the data differ (a shuffling sampler or random augmentation, usually), "
                    "so there is no fixed loss to differentiate",
                    "fix the order, switch augmentation off, or pass a list of batches",
                )
    if not batches:
        raise ProblemError("the data set is empty", "check the path and the filters of your data loading")
    for batch in batches:
        for tensor in tensors_of(batch):
            # −inf is what a mask forbids; where it is none, the loss is not finite either.
            held = values_of(tensor)
            if held.is_floating_point() and not bool((torch.isfinite(held) | (held == -torch.inf)).all()):
                raise ProblemError("the data contains NaN or Inf", "clean the data set, or mask these samples")
    if problem.loss == "bce":
        _check_binary(batches)
    return batches


def _require_tensors(batches: Sequence[Batch]) -> None:
    """Every batch holds a tensor: what is moved to the arithmetic and the device of the model, cut and fingerprinted.

    Raises:
        ProblemError: names the first that holds none, and what to write.
    """
    for batch in batches:
        if tensors_of(batch):
            continue
        if all(isinstance(b, np.ndarray) for b in batches):
            raise ProblemError(
                "the data are NumPy arrays", "give a tuple (torch.from_numpy(inputs), torch.from_numpy(targets))"
            )
        parts = list(batch.values()) if isinstance(batch, Mapping) else batch
        kinds = {type(v) for v in parts} if isinstance(parts, tuple | list) else {type(parts)}
        if any(issubclass(kind, np.ndarray) for kind in kinds):
            raise ProblemError(
                "the batches hold NumPy arrays, which do not follow the model into its arithmetic",
                "make tensors of them: data = [torch.utils.data.default_convert(batch) for batch in data]",
            )
        raise ProblemError(
            f"a batch of the data holds no tensor: it is {_said(batch)}",
            "put what the loss reads into the batches: data = [(inputs, targets), ...] of tensors; dicts, and objects "
            "with tensors as attributes, will do as well",
        )


def _said(batch: Batch) -> str:
    text = repr(batch) if isinstance(batch, int | float | str | None | tuple | list | dict) else ""
    return text if 0 < len(text) <= 40 else f"a {type(batch).__name__}"


def _check_binary(batches: Sequence[Batch]) -> None:
    """Outside of [0, 1] binary cross-entropy is defined, but has no lower bound."""
    for batch in batches:
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
        if not isinstance(targets, Tensor) or not targets.numel():
            continue
        least, most = float(targets.min()), float(targets.max())
        if least < 0 or most > 1:
            raise ProblemError(
                f"loss 'bce' wants targets from 0 to 1; these lie between {least:g} and {most:g}",
                "map them: (targets + 1) / 2 makes 0 and 1 of -1 and 1",
            )


def _coordinates(tensor: Tensor) -> Tensor:
    """A sparse tensor by the places of its entries."""
    found: Tensor = tensor.to_sparse_coo()  # type: ignore[no-untyped-call]
    return found


def values_of(tensor: Tensor) -> Tensor:
    """The numbers that a tensor holds: of a sparse one those that are stored."""
    if tensor.layout == torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()


def rechunk(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Batches cut to at most `size` samples; ones that are already smaller are not joined."""
    return [piece for batch in batches for piece in split(batch, size)]


def subset(batches: Sequence[Batch], samples: int, seed: int, skip: int = 0) -> list[Batch]:
    """A random subset of `samples` samples, in random order, the batch boundaries kept as an upper limit; or, with
    `skip`, of those that a subset of `skip` samples with this seed leaves out.

    Raises:
        ProblemError: the batches have no common sample axis, so they cannot be cut.
    """
    lengths = [length_of(b) for b in batches]
    if min(lengths) == 0:
        raise ProblemError(
            "these batches have no common first (sample) dimension, so no subset can be drawn",
            "draw the subset in your problem function, and leave --samples out",
        )
    total = sum(lengths)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[skip : skip + samples]
    if len(batches) == 1:
        return [take(batches[0], order)]
    offsets = np.cumsum([0, *lengths])
    owner = np.searchsorted(offsets, order.numpy(), side="right") - 1
    local = order.numpy() - offsets[owner]
    picked = []
    for index, batch in enumerate(batches):
        rows = local[owner == index]
        if len(rows):
            picked.append(take(batch, torch.from_numpy(rows)))
    return picked


class Chosen(NamedTuple):
    """The batches to use, the size of the whole if they are a subset of it, and some of the samples left out."""

    batches: list[Batch]
    population: int | None
    others: list[Batch]


def chosen(problem: Problem, samples: int | None, seed: int, others: int = 0) -> Chosen:
    """The problem's batches, or a random subset of `samples` samples, and at most `others` samples beside them."""
    batches = read_batches(problem)
    total = sum(length_of(b) for b in batches)
    if samples is None or not total or samples >= total:
        return Chosen(batches, None, [])
    beside = subset(batches, others, seed, samples) if others else []
    return Chosen(subset(batches, samples, seed), total, beside)


def fingerprint(batches: Sequence[Batch]) -> str:
    """sha256 over shapes, dtypes and bytes of all tensors, and the text of everything else."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in tensors_of(batch):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
            if tensor.layout != torch.strided:
                tensor = _coordinates(tensor.detach()).coalesce()
                digest.update(tensor.indices().cpu().numpy().tobytes())
                tensor = tensor.values()
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        if not tensors_of(batch):
            digest.update(repr(batch).encode())
    return digest.hexdigest()
