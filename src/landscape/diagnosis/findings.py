"""What a diagnosis is made of: findings with verdicts, and the visit that collects them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.problem.objective import Objective


@dataclass(frozen=True)
class Finding:
    """One check: its name, "ok" | "care" | "fault", plain words, and the numbers with what they were held to."""

    name: str
    verdict: str
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """All findings; errors are of one product relative to max |λ|, NaN where they could not be measured."""

    findings: list[Finding]
    error_float64: float = float("nan")
    error_float32: float = float("nan")

    @property
    def verdict(self) -> str:
        """The worst of the findings' verdicts."""
        return max((f.verdict for f in self.findings), key=("ok", "care", "fault").index, default="ok")


class Visit:
    """What is known so far; a check that raises becomes a fault, and the visit goes on."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.objective: Objective | None = None
        self.kinks = self.additive = False
        self.error_float64 = self.error_float32 = float("nan")

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        try:
            yield
        except LandscapeError as error:
            self.findings.append(Finding(name, "fault", said(error)))
        except Exception as error:  # the user's code may raise anything
            self.findings.append(Finding(name, "fault", f"{type(error).__name__}: {short(error)}"))

    def held(self, name: str, deviation: float, allowed: float, good: str, bad: str) -> None:
        """A finding that compares a deviation with what it was held to; NaN is a fault."""
        fine = deviation <= allowed
        numbers = {"deviation": deviation, "allowed": allowed}
        text = f"{good if fine else bad}: off by {deviation:.1e}, allowed {allowed:.1e}"
        self.findings.append(Finding(name, "ok" if fine else "fault", text, numbers))


def said(error: LandscapeError) -> str:
    """Message and hint of an error, but for the hint to ask the doctor, who is saying it."""
    hint = f"; {error.hint}" if error.hint and "landscape doctor" not in error.hint else ""
    return f"{error.message}{hint}"


def short(error: BaseException) -> str:
    """The message of any exception on one short line."""
    return " ".join(str(error).split())[:160]


def listed(names: Sequence[str]) -> str:
    """ "a, b, c and 4 more"."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def raw_bytes(tensor: Tensor) -> bytes:
    """What a tensor of any dtype holds, to be compared or hashed."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
