"""Hessian spectra of trained PyTorch checkpoints, every number with its bound.

Importing this package imports nothing heavy; names below are loaded on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from landscape.analyses import ANALYSES

__version__ = "0.1.0"

_HOMES = {
    **{row.name: row.function for row in ANALYSES.values() if row.function is not None},
    "Problem": "landscape.problem.problem:Problem",
    "hessian": "landscape.curvature.linear:hessian",
    "ggn": "landscape.curvature.linear:ggn",
    "residual": "landscape.curvature.linear:residual",
    "read_checkpoint": "landscape.checkpoints.checkpoint:read_checkpoint",
    "load_problem": "landscape.checkpoints.load:load_problem",
    "read_result": "landscape.results.store:read_result",
    "write_result": "landscape.results.store:write_result",
}
__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from landscape.checkpoints.checkpoint import read_checkpoint as read_checkpoint
    from landscape.checkpoints.load import load_problem as load_problem
    from landscape.curvature.linear import ggn as ggn
    from landscape.curvature.linear import hessian as hessian
    from landscape.curvature.linear import residual as residual
    from landscape.points.descend import descend as descend
    from landscape.points.escape import escape as escape
    from landscape.problem.problem import Problem as Problem
    from landscape.results.store import read_result as read_result
    from landscape.results.store import write_result as write_result
    from landscape.slices.run import slice as slice
    from landscape.spectra.run import spectrum as spectrum
    from landscape.widening.run import widen as widen


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
