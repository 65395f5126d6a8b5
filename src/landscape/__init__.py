"""Hessian spectra of trained PyTorch checkpoints, every number with its bound.

Importing this package imports nothing heavy; names below are loaded on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Problem": "landscape.problem",
    "descend": "landscape.analyses.descend",
    "escape": "landscape.analyses.escape",
    "widen": "landscape.analyses.widen",
    "slice": "landscape.analyses.slice",
    "spectrum": "landscape.analyses.spectrum",
    "read_checkpoint": "landscape.checkpoint",
    "load_problem": "landscape.loading",
    "read_result": "landscape.store",
    "write_result": "landscape.store",
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
    from landscape.analyses.descend import descend
    from landscape.analyses.escape import escape
    from landscape.analyses.slice import slice
    from landscape.analyses.spectrum import spectrum
    from landscape.analyses.widen import widen
    from landscape.checkpoint import read_checkpoint
    from landscape.loading import load_problem
    from landscape.problem import Problem
    from landscape.store import read_result, write_result


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
