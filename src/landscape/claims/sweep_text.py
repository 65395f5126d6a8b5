"""From trained runs back to a sweep file that trains such runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from landscape.claims.runs import SweptRun
from landscape.errors import ProblemError
from landscape.settings import written
from landscape.training.run_files import run_of
from landscape.training.sweep import DERIVED, is_seed


def as_sweep(runs: Sequence[SweptRun]) -> str:
    """A sweep file (docs/sweeps.md) that trains runs like these, which differ in their coordinates only, again; "" for
    networks that `landscape train` did not make."""
    try:
        first = run_of(runs[0].header)
    except ProblemError:
        return ""
    varied = {key: sorted({r.coordinates[key] for r in runs if key in r.coordinates}) for key in first.coordinates}
    if len(teachers := {r.teacher for r in runs}) > 1:  # two sweeps of one each have it among their data's settings
        varied["teacher_seed"] = sorted(teachers)
    model = {k: v for k, v in written(first.model_settings).items() if k not in DERIVED}
    saved = {"save": [0] if any(r.start is not None for r in runs) else []}
    tables: dict[str, Mapping[str, Any]] = {
        "sweep": varied,
        "model": {"name": first.model, **model},
        "data": {"name": first.data, **written(first.data_settings)},
        "training": {**written(first.training), **saved},
    }
    return "\n".join(
        _table(name, {k: v for k, v in table.items() if name == "sweep" or k not in varied})
        for name, table in tables.items()
    )


def _table(name: str, values: Mapping[str, Any]) -> str:
    """A table of TOML; there is no None in it."""
    lines = [f"{k} = {_toml(v, k)}" for k, v in values.items() if v is not None]
    return "\n".join([f"[{name}]", *lines, ""])


def _toml(value: Any, key: str) -> str:
    if isinstance(value, list | tuple):
        if is_seed(key) and len(value) > 2 and list(value) == list(range(value[0], value[-1] + 1)):
            return f'"{value[0]}..{value[-1]}"'
        return "[" + ", ".join(_toml(v, "") for v in value) + "]"
    return json.dumps(value)
