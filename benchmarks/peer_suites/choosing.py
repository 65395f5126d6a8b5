"""pytest plugin: leaves out the tests that a suite's plugin names as not ours to pass."""

from __future__ import annotations

import importlib
import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect by parts of names, and say how many for which reason."""
    reasons: dict[str, str] = importlib.import_module(f"benchmarks.peer_suites.{os.environ['PEER_SUITE']}").NOT_OURS
    kept, left = [], []
    for item in items:
        (left if any(part in item.nodeid.rpartition("/")[2] for part in reasons) else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_configure(config: pytest.Config) -> None:
    """Marks that peers declare in their own settings, which are not read."""
    for mark in ("slow", "gpu", "transformers", "transformer_lens", "curvlinops", "montecarlo", "order"):
        config.addinivalue_line("markers", f"{mark}: of a peer")
