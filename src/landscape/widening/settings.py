"""All options of the analysis `widen`: names, defaults and limits, stated once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from landscape.errors import UsageError

# Shares that are tried when none are given: inside (0, 1), where n_neg(B) is added, and outside, where n_pos(B) is.
SHARES = ((-0.7, 1.7), (0.3, 0.7), (0.5, 0.5), (1.8, -0.8))


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
    neurons: tuple[int, ...] = ()
    shares: tuple[tuple[float, ...], ...] = SHARES
    follow: bool = False
    controls: int = 0
    smooth: float | None = None
    tau: float = 1e-8
    steps: int = 1000
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    memory: int | None = None

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
