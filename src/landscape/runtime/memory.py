"""How much memory there is, and how much a graph keeps."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

# The part of free memory that an analysis may take unasked.
DEFAULT_SHARE = 0.6
# The part of what a user's limit leaves that kept graphs may take.
LIMIT_KEPT = 0.3
# How many workers of ours share each GPU, said by the process that starts them.
SHARERS = "LANDSCAPE_WORKERS_PER_GPU"


def usable_bytes(device: torch.device, limit: int | None = None) -> int:
    """Bytes that may be allocated from now on: of the user's limit for the whole process, or a share of what is free.

    On the CPU the limit counts everything the process already holds (its resident set). Workers on one GPU take no
    more than their part of it unasked.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        if limit is not None:
            return max(0, limit - held)
        # What other workers on this GPU have not taken yet is theirs all the same.
        room = min(free + torch.cuda.memory_reserved(device), total / sharers_of_gpu()) - held
        return int(DEFAULT_SHARE * max(0.0, room))
    if limit is not None:
        return max(0, limit - int(psutil.Process().memory_info().rss))
    return int(DEFAULT_SHARE * psutil.virtual_memory().available)


def sharers_of_gpu() -> int:
    """How many workers share this process's GPU; 1 for a process that is none."""
    said = os.environ.get(SHARERS, "")
    return max(1, int(said)) if said.isdecimal() else 1


def keep_budget(device: torch.device, reserve: int, limit: int | None = None) -> float:
    """Bytes for kept graphs: what is usable, less what else will be needed, at least a tenth; of a user's limit a part,
    since passes over chunks that are not kept, and what an allocator does not give back, need the rest."""
    usable = usable_bytes(device, limit)
    return max(0.1 * usable, (usable if limit is None else LIMIT_KEPT * usable) - reserve)


def allocated(device: torch.device) -> int:
    """Bytes in live tensors on a CUDA device; 0 on the CPU, which does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


# mallopt's names for: what is mapped on its own, what is given back, what is fetched at a time.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD = -3, -1, -2


def keep_heap() -> None:
    """Have the C library keep freed memory for the next tensor, where it can (glibc), for the rest of the process.

    By default it hands memory back after every product, and the next one pays a page fault for each 4 KiB: up to
    half of the time of a small convolutional network. Tensors above 32 MiB are mapped on their own all the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for name, value in ((_M_MMAP_THRESHOLD, 32 * 2**20), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 16 * 2**20)):
        mallopt(name, value)


def release_cached(device: torch.device) -> None:
    """Give back what dropped graphs held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait for a CUDA device; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SavedBytes:
    """Bytes kept alive by autograd graphs built inside `count_saved`, each storage once, and the largest storage."""

    def __init__(self) -> None:
        self.total = self.largest = 0


@contextmanager
def count_saved(ignore: tuple[Tensor, ...] = ()) -> Iterator[SavedBytes]:
    """Count what graphs built inside save for backward, without the tensors (parameters, data) to be ignored."""
    counter = SavedBytes()
    seen = {t.untyped_storage().data_ptr() for t in ignore if t.layout == torch.strided}
    kept: list[Tensor] = []  # alive until the end: a freed storage's address could be given out again

    def pack(tensor: Tensor) -> Tensor:
        try:
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
        except RuntimeError:  # sparse, or of `torch.func`, whose tensors stand for others
            return tensor
        if place not in seen:
            seen.add(place)
            kept.append(tensor)
            counter.total += storage.nbytes()
            counter.largest = max(counter.largest, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield counter
