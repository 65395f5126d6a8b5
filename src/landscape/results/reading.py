"""Fields of a stored result as plain numbers, whatever analysis it is of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from landscape.results.fields import Array, Provenance


class HasArrays(Protocol):
    """Anything with the labelled arrays of a result."""

    @property
    def arrays(self) -> Mapping[str, Array]: ...


class StoredLike(HasArrays, Protocol):
    """A stored result, as `landscape.results.store.read_result` gives it."""

    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def provenance(self) -> Provenance: ...


def values(result: HasArrays, name: str) -> np.ndarray | None:
    """The numbers of a field, or None where it was not computed."""
    array = result.arrays.get(name)
    return None if array is None else np.asarray(array.values)


def scalar(result: HasArrays, name: str, index: int = 0) -> float:
    """A field as one float (the entry `index` of an axis); NaN where it is absent."""
    array = values(result, name)
    if array is None or array.size <= index:
        return math.nan
    return float(np.atleast_1d(array)[index])
