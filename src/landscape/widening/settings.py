"""All options of the analysis `widen`: names, defaults and limits, stated once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from landscape.errors import UsageError
from landscape.runtime.memory import parse_bytes
from landscape.settings import in_words
from landscape.widening.networks import shares_of

# Shares that are tried when none are given: inside (0, 1), where n_neg(B) is added, and outside, where n_pos(B) is.
SHARES = ((-0.7, 1.7), (0.3, 0.7), (0.5, 0.5), (1.8, -0.8))


def neurons_of(text: str) -> tuple[int, ...]:
    """ "0,3" as (0, 3).

    Raises:
        UsageError: not numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--split {text!r} is not a number, or several with commas", "such as neurons=(0, 3)"
        ) from error


@dataclass(frozen=True)
class WidenSettings:
    """All options of the analysis `widen`; the command line and the library share these names and defaults.

    Attributes:
        layer: linear or convolution layer whose neurons are split. following: the one that reads it, if the model's
            graph does not say.
        neurons: which, from 0; () for all. shares: of each split; the default is two inside and two outside [0, 1].
        follow: step along the lowest eigenvector of every split that opens a way out, and descend.
        controls: random kicks of the same length, to both sides, in the wide network and in the narrow one.
        smooth: β of the softplus that replaces ReLU; None: ReLU is refused.
        tau: floor of the counts, relative to max |eigenvalue|. steps: iterations of each descent, at most.
        samples, seed, device, memory: as elsewhere.
    """

    layer: str = ""
    following: str | None = None
    neurons: tuple[int, ...] = in_words((), neurons_of, (0, 3))
    shares: tuple[tuple[float, ...], ...] = in_words(SHARES, lambda text: (shares_of(text),), ((0.5, 0.5),))
    follow: bool = False
    controls: int = 0
    smooth: float | None = None
    tau: float = 1e-8
    steps: int = 1000
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    memory: int | None = in_words(None, parse_bytes, "6GB")

    def __post_init__(self) -> None:
        if not self.layer:
            raise UsageError("no layer is named", "say whose neurons to split: --layer NAME")
        for name, least in (("controls", 0), ("steps", 1), ("samples", 1), ("memory", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} is {value}; it must be at least {least}")
        if not 0 < self.tau < 1:
            raise UsageError("--tau must lie in (0, 1)")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return {**asdict(self), "neurons": list(self.neurons), "shares": [list(s) for s in self.shares]}
