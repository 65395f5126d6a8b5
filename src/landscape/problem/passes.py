"""How many samples one pass over a network may take, so that memory does not grow with the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.problem.batches import length_of, split, take, tensors_of
from landscape.problem.problem import Batch, LossFunction
from landscape.runtime.arithmetic import is_out_of_memory
from landscape.runtime.memory import count_saved, release_cached, usable_bytes

# What the graph of one gradient may hold: more than suits a cache, far less than a machine has.
PASS_BYTES = {"cpu": 2**28, "cuda": 2**32}
# The share of a user's limit that it may hold: a product in float64 takes several times as much.
LIMIT_SHARE = 1 / 24
# Tensors as large as the largest that is seen are alive at once beside a graph.
LIVE = 4


def samples_at_once(
    model: nn.Module, loss: LossFunction, batches: Sequence[Batch], memory: int | None = None
) -> int | None:
    """Samples whose gradient fits into one pass; None: all of the longest batch's do.

    Args:
        model: on the device of the batches. memory: bytes that the process may use, if the user has said so.
    """
    longest = max(batches, key=length_of)
    samples = length_of(longest)
    if samples < 2:
        return None
    device = tensors_of(longest)[0].device
    try:
        each = bytes_of_a_sample(model, loss, longest)
    except (RuntimeError, MemoryError) as error:  # of two samples
        if not is_out_of_memory(error):
            raise
        release_cached(device)
        return 1
    if not each:  # the model fails, which is said elsewhere
        return None
    room = float(PASS_BYTES.get(device.type, 2**28))
    if memory is not None:
        room = min(room, LIMIT_SHARE * usable_bytes(device, memory))
    each = bytes_of_a_sample(model, loss, longest)
    fitting = max(1, int(room / each))
    return None if fitting >= samples else fitting


def bytes_of_a_sample(model: nn.Module, loss: LossFunction, batch: Batch) -> int:
    """What the graph of a gradient keeps for a sample, and what passes have alive beside it; from one sample and two,
    since some of it is of no sample. 0 where the model fails, which is said elsewhere."""
    kept, largest = [], []
    for samples in (1, 2):
        try:
            saved, most = _held(model, loss, take(batch, slice(0, samples)))
        except Exception as error:  # the user's code
            if is_out_of_memory(error):
                raise
            return 0
        kept.append(saved)
        largest.append(most)
    more = (kept[1] - kept[0]) + LIVE * (largest[1] - largest[0])
    return more if more > 0 else kept[0]  # `vmap` shows modules one sample, however many there are


def _held(model: nn.Module, loss: LossFunction, batch: Batch) -> tuple[int, int]:
    """Bytes that a graph keeps, and those of the largest tensor that it keeps or a module puts out."""
    largest = in_all = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest, in_all
        if isinstance(output, Tensor):
            size = output.numel() * output.element_size()
            largest = max(largest, size)
            in_all += 0 if any(True for _ in module.children()) else size

    handles = [m.register_forward_hook(note) for m in model.modules()]
    ignored = (*model.parameters(), *tensors_of(batch))
    try:
        with torch.enable_grad(), count_saved(ignored) as saved, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of statistics over a single sample, say
            loss(model, batch)
        return saved.total, max(largest, saved.largest)
    except RuntimeError as error:  # torch.func in a loss refuses what counts
        if is_out_of_memory(error):
            raise
        largest = in_all = 0
        with torch.enable_grad():
            loss(model, batch)
        return 2 * in_all, largest
    finally:
        for handle in handles:
            handle.remove()


def in_portions(work: Callable[[Batch], None], batch: Batch, cuttable: bool) -> None:
    """`work` on a batch; where the GPU's memory runs out and the batch may be cut, on its halves one after the other.

    Nothing is to be noted by `work` before all that takes memory is done.
    """
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        samples = length_of(part)
        try:
            work(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not cuttable or samples < 2:
                raise
        release_cached(tensors_of(part)[0].device)  # here, where the traceback has let go of what it held
        waiting += reversed(list(split(part, (samples + 1) // 2)))
