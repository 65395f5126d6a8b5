"""Which problem checkpoints belong to, in the words of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """The options of a command that say which problem a checkpoint belongs to, as `load_problem` takes them."""

    problem: str | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
    loss: str | None = None
    allow_globals: tuple[str, ...] = ()
    key: str | None = None
    batchnorm: str | None = None
