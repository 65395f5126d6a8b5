"""Hessian spectra of trained PyTorch checkpoints, every number with its bound.

Importing this package imports nothing heavy; names below are loaded on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Problem": "landscape.problem.problem",
    "descend": "landscape.points.descend",
    "escape": "landscape.points.escape",
    "widen": "landscape.widening.run",
    "slice": "landscape.slices.run",
    "spectrum": "landscape.spectra.run",
    "read_checkpoint": "landscape.checkpoints.checkpoint",
    "load_problem": "landscape.checkpoints.load",
    "read_result": "landscape.results.store",
    "write_result": "landscape.results.store",
}
__all__ = [
    "Problem",
    "__version__",
    "descend",
    "escape",
    "load_problem",
    "read_checkpoint",
    "read_result",
    "slice",
    "spectrum",
    "widen",
    "write_result",
]

if TYPE_CHECKING:
    from landscape.checkpoints.checkpoint import read_checkpoint
    from landscape.checkpoints.load import load_problem
    from landscape.points.descend import descend
    from landscape.points.escape import escape
    from landscape.problem.problem import Problem
    from landscape.results.store import read_result, write_result
    from landscape.slices.run import slice
    from landscape.spectra.run import spectrum
    from landscape.widening.run import widen


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
