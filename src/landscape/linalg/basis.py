"""An orthonormal basis that grows by blocks of rows: kept in slabs, so that growing never copies, and offloaded
to pinned host memory where the device has no room for more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SLAB_ELEMENTS = 2**22


def norms_of(rows: Tensor) -> Tensor:
    """Norms [b] of rows [b, n], in float64."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def gram_of(rows: Tensor) -> Tensor:
    """W Wᵀ [b, b] of rows W [b, n], accumulated in float64 without a float64 copy of them."""
    if rows.shape[0] == 1:
        return norms_of(rows).square().unsqueeze(0)
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device)
    width = max(1024, SLAB_ELEMENTS // rows.shape[0])
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width].double()
        total += part @ part.T
    return total


class Basis:
    """Orthonormal rows Q [m, n] in the operator's dtype.

    Args:
        like: [n], of the rows' dtype and on the device where they are used.
        limit: most rows that will be held.
        on_device: how many of them the device holds; further ones live in (pinned) host memory and visit.
        deflate: [n, k] orthonormal columns, to which all rows are orthogonal too.

    Attributes:
        rows: m.
    """

    def __init__(self, like: Tensor, limit: int, on_device: int | None = None, deflate: Tensor | None = None) -> None:
        self.like, self.limit, self.deflate = like, limit, deflate
        self.on_device = limit if on_device is None else on_device
        self.rows = 0
        self._slabs: list[Tensor] = []

    def append(self, block: Tensor) -> None:
        """Add rows [b, n]."""
        added = 0
        while added < block.shape[0]:
            held = sum(slab.shape[0] for slab in self._slabs)
            if self.rows == held:
                self._slabs.append(self._new_slab(held))
            first, slab = self._used()[-1] if self.rows < held else (held, self._slabs[-1])
            if first + slab.shape[0] == self.rows:  # the last slab in use is full, the next one is still there
                first, slab = self._all()[len(self._used())]
            count = min(block.shape[0] - added, first + slab.shape[0] - self.rows)
            slab[self.rows - first : self.rows - first + count].copy_(block[added : added + count])
            self.rows, added = self.rows + count, added + count

    def remove(self, w: Tensor) -> Tensor:
        """Take the components along Q (and `deflate`) out of rows w [b, n], in place; those along Q, float64 [m, b]."""
        if self.deflate is not None:
            w.addmm_(w @ self.deflate, self.deflate.T, alpha=-1)
        if not self.rows:
            return w.new_zeros((0, w.shape[0]), dtype=torch.float64)
        found = torch.cat([self._here(slab) @ w.T for _, slab in self._parts()])
        for first, slab in self._parts():
            w.addmm_(found[first : first + slab.shape[0]].T, self._here(slab), alpha=-1)
        return found.double()

    def orthogonalise(self, w: Tensor, recent: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """`remove` twice, and more often near a breakdown.

        Args:
            w: rows [b, n], changed in place.
            recent: how many of the last rows take the first pass, where it is known that, but for rounding, w has
                components along no others; 0: all.

        Returns:
            The coefficients [m, b] in float64, the norms before [b], and the Gram matrix [b, b] of what is left.
        """
        total = self._remove_recent(w, recent) if recent else self.remove(w)
        again = self.remove(w)
        taken = [part.square().sum(dim=0) for part in (total, again)]
        total = total + again
        host = torch.cat([torch.stack(taken), gram_of(w)]).cpu().numpy()  # the only synchronisation
        gram = host[2:]
        left = np.maximum(np.diag(gram), 0.0)
        middle = left + host[1]  # squares of norms, by Pythagoras
        before = np.sqrt(middle + host[0])
        for _ in range(2):
            if not np.any(left < 0.25 * middle):  # near a breakdown even the second pass takes much away
                break
            total = total + self.remove(w)
            gram = gram_of(w).cpu().numpy()
            middle, left = left, np.maximum(np.diag(gram), 0.0)
        return total, before, gram

    def _remove_recent(self, w: Tensor, count: int) -> Tensor:
        rows = self._recent(count)
        found = rows @ w.T
        w.addmm_(found.T, rows, alpha=-1)
        total = w.new_zeros((self.rows, w.shape[0]), dtype=torch.float64)
        total[self.rows - rows.shape[0] :] = found
        return total

    def _recent(self, count: int) -> Tensor:
        """The last rows [count, n]."""
        rows: list[Tensor] = []
        for _, slab in reversed(list(self._parts())):
            missing = count - sum(r.shape[0] for r in rows)
            if missing <= 0:
                break
            rows.insert(0, self._here(slab[max(0, slab.shape[0] - missing) :]))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def rotate(self, rotation: np.ndarray) -> None:
        """Replace Q by rotation @ Q, for float64 [k, m] with k <= m; no second copy of the basis is ever held."""
        turn = torch.from_numpy(np.ascontiguousarray(rotation)).to(self.like.device)
        for columns, rows in self._columns():
            new = turn @ rows
            for first, slab in self._used():
                part = new[first : first + slab.shape[0]]
                slab[: part.shape[0], columns] = part.to(slab.device, slab.dtype)
        self.rows = turn.shape[0]

    def combine(self, weights: np.ndarray) -> Tensor:
        """Unit vectors Qᵀ s for columns s of float64 [m, k]: [n, k], each column contiguous."""
        out = self.like.new_zeros(weights.shape[1], len(self.like))
        s = torch.from_numpy(np.ascontiguousarray(weights.T)).to(out.device, out.dtype)
        for first, slab in self._parts():
            out.addmm_(s[:, first : first + slab.shape[0]], self._here(slab))
        for row in out:
            row.div_(torch.linalg.vector_norm(row, dtype=torch.float64).to(row.dtype))
        return out.T

    def project(self, x: Tensor) -> Tensor:
        """Q x for columns x [n, b], accumulated in float64: [m, b]."""
        total = torch.zeros(self.rows, x.shape[1], dtype=torch.float64, device=self.like.device)
        for columns, rows in self._columns():
            total += rows @ x[columns].double()
        return total

    def matrix(self) -> Tensor:
        """A copy of Q [m, n]."""
        return torch.cat([self._here(slab) for _, slab in self._parts()])

    def _new_slab(self, held: int) -> Tensor:
        rows = min(max(16, min(256, SLAB_ELEMENTS // len(self.like))), self.limit - held)
        if held < self.on_device:
            return self.like.new_empty(min(rows, self.on_device - held), len(self.like))
        return torch.empty(rows, len(self.like), dtype=self.like.dtype, pin_memory=self.like.is_cuda)

    def _here(self, slab: Tensor) -> Tensor:
        return slab.to(self.like.device, non_blocking=True)

    def _all(self) -> list[tuple[int, Tensor]]:
        firsts = itertools.accumulate((slab.shape[0] for slab in self._slabs), initial=0)
        return list(zip(firsts, self._slabs, strict=False))

    def _used(self) -> list[tuple[int, Tensor]]:
        """The slabs in use, each with the number of its first row."""
        return [(first, slab) for first, slab in self._all() if first < self.rows]

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        """The rows in use, slab by slab."""
        return ((first, slab[: self.rows - first]) for first, slab in self._used())

    def _columns(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in float64, some columns at a time."""
        width = max(1024, SLAB_ELEMENTS // max(1, self.rows))
        for start in range(0, len(self.like), width):
            columns = slice(start, start + width)
            parts = [slab[: self.rows - first, columns] for first, slab in self._used()]
            yield columns, torch.cat([self._here(p).double() for p in parts])
