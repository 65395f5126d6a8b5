"""From trained runs back to a sweep file that trains such runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from landscape.data import DATA
from landscape.evidence.runs import SweptRun
from landscape.models import MODELS
from landscape.sweep import DERIVED, Training


def as_sweep(runs: Sequence[SweptRun]) -> str:
    """A sweep file (docs/cli.md) that trains runs like these again; "" for networks of one's own."""
    header = runs[0].header
    training = header.get("training")
    if header.get("model") not in MODELS or header.get("data") not in DATA or not isinstance(training, Mapping):
        return ""
    varied = {k: sorted({r.coordinates[k] for r in runs if k in r.coordinates}) for k in runs[0].coordinates}
    varied = {k: v for k, v in varied.items() if k != "step" and v}
    model = {k: v for k, v in header["model_settings"].items() if k not in DERIVED}
    names = [f.name for f in fields(Training)]
    how = {"loss": header["loss"], **{k: v for k, v in training.items() if k in names}}
    how |= {"weight_decay": header["weight_decay"]} if header.get("weight_decay") else {}
    how |= {"save": [0]} if any(r.start is not None for r in runs) else {"save": []}
    tables = {
        "sweep": varied,
        "model": {"name": header["model"], **model},
        "data": {"name": header["data"], **header.get("data_settings", {})},
        "training": how,
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
        if key == "seed" and len(value) > 2 and list(value) == list(range(value[0], value[-1] + 1)):
            return f'"{value[0]}..{value[-1]}"'
        return "[" + ", ".join(_toml(v, "") for v in value) + "]"
    return json.dumps(value)
