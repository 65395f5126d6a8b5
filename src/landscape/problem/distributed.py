"""The processes of one `torchrun`: each holds a shard of the data; sums are reduced, decisions agreed.

All of them run the same analysis and see the same numbers: every product is summed over the processes, and whatever
depends on time or on the memory of one of them is decided together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from landscape.errors import RanksError, UsageError
from landscape.problem.batches import length_of, take
from landscape.problem.problem import Batch

T = TypeVar("T")
# A process that the others have waited for so long (seconds) counts as dead.
TIMEOUT = 600.0


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size`; a single process is `ALONE`, and nothing is communicated.

    Raises (all methods):
        RanksError: another process is gone, or has not answered in time.
    """

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor, in place; the same bits everywhere."""
        if self.size > 1:
            with _readable(self):
                dist.all_reduce(tensor)
        return tensor

    def total(self, number: float) -> float:
        """The sum of everybody's number."""
        return number if self.size == 1 else float(self.sum(self._tensor(number)))

    def largest(self, number: float) -> float:
        """The largest of everybody's number."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def smallest(self, number: float) -> float:
        """The smallest of everybody's number."""
        return self._reduced(number, dist.ReduceOp.MIN)

    def first(self, value: T) -> T:
        """The value of the first process: for decisions that depend on time."""
        if self.size == 1:
            return value
        box = [value]
        with _readable(self):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def shard(self, batches: list[Batch], cuttable: bool) -> list[Batch]:
        """This process's part of the data: consecutive samples, or whole batches that must not be cut.

        Raises:
            UsageError: there are fewer samples (batches) than processes.
        """
        if self.size == 1:
            return batches
        units = sum(length_of(b) for b in batches) if cuttable else len(batches)
        if units < self.size:
            what = "samples" if cuttable else "batches"
            raise UsageError(
                f"{self.size} processes cannot share {units} {what}",
                "start fewer processes" + ("" if cuttable else ", or make more, smaller batches"),
            )
        start, stop = units * self.rank // self.size, units * (self.rank + 1) // self.size
        if not cuttable:
            return batches[start:stop]
        parts, offset = [], 0
        for batch in batches:
            first, last = max(start - offset, 0), min(stop - offset, length_of(batch))
            if first < last:
                parts.append(take(batch, slice(first, last)))
            offset += length_of(batch)
        return parts

    def _reduced(self, number: float, how: dist.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return number
        tensor = self._tensor(number)
        with _readable(self):
            dist.all_reduce(tensor, op=how)
        return float(tensor)

    def _tensor(self, number: float) -> Tensor:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return torch.tensor(number, dtype=torch.float64, device=device)


ALONE = Ranks()


def in_torchrun() -> bool:
    """Whether `torchrun` has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """The processes of this `torchrun`, connected: NCCL where each has a GPU of its own, else gloo; or `ALONE`.

    Raises:
        RanksError: the others cannot be reached.
    """
    if not in_torchrun():
        yield ALONE
        return
    local, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ["WORLD_SIZE"])
    ranks = Ranks(int(os.environ["RANK"]), size)
    own_gpu = torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= torch.cuda.device_count()
    with _readable(ranks):
        if own_gpu:
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if own_gpu else "gloo", timeout=timedelta(seconds=timeout))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _readable(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise RanksError(
            f"process {ranks.rank} of {ranks.size} has lost the others ({first_line}); one of them has failed, was "
            "killed, or ran out of memory",
            "look for its own error above; nothing was written for this checkpoint, repeat the command",
        ) from error
