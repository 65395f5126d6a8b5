"""Built-in data sets, one file each with the same names: `Settings`, `load`.

A new data set is one new file and one line in `DATA`. None of them touches the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from landscape.data import digits, mnist1d, teacher
from landscape.data.labels import Dataset
from landscape.settings import choose

DATA: dict[str, ModuleType] = {"digits": digits, "mnist1d": mnist1d, "teacher": teacher}

__all__ = ["DATA", "Dataset", "load_data"]


def load_data(name: str, settings: Mapping[str, Any]) -> Dataset:
    """A built-in data set in memory, the same in every call with the same settings.

    Raises:
        ProblemError: an unknown name, setting or value; the hint lists what exists.
    """
    dataset: Dataset = choose(DATA, name, "built-in data set").load(settings)
    return dataset
