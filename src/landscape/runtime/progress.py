"""How work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

# (stage, done, total), called now and then.
Progress = Callable[[str, int, int], None]
