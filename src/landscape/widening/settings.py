"""All options of the analysis `widen`: names, defaults and limits, stated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from landscape.errors import UsageError
from landscape.settings import (
    CONTROLS,
    DESCENT,
    DEVICE,
    FLOOR,
    MEMORY,
    SEED,
    SUBSET,
    Interval,
    check_options,
    documented,
    option,
    parse_bytes,
    plain_options,
)

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


def shares_of(text: str) -> tuple[float, ...]:
    """ "0.3" as (0.3, 0.7), ".3,.3,.4" as three shares.

    Raises:
        UsageError: not numbers.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--mu {text!r} is not a number, or several with commas", "such as --mu 0.5") from error
    return (values[0], 1 - values[0]) if len(values) == 1 else values


@documented
@dataclass(frozen=True)
class WidenSettings:
    """All options of the analysis `widen`; the command line and the library share these names and defaults.

    The default shares are two inside and two outside [0, 1]. In float64.
    """

    layer: str = option("", "Linear or convolution layer whose neurons are split.")
    following: str | None = option(
        None, "The layer that reads it, where the model's graph does not say.", flag="next", metavar="LAYER"
    )
    neurons: tuple[int, ...] = option(
        (),
        "Neuron to split, from 0; repeatable. Default: every one.",
        flag="split", words=neurons_of, example=(0, 3), metavar="NEURON", many=True,
    )  # fmt: skip
    shares: tuple[tuple[float, ...], ...] = option(
        SHARES,
        "Share of the first copy, or of all: .3,.3,.4; repeatable. Default: -.7 .3 .5 1.8.",
        flag="mu", words=lambda text: (shares_of(text),), example=((0.5, 0.5),), metavar="SHARE", many=True,
    )  # fmt: skip
    follow: bool = option(False, "Follow the ways out that open, and say where they end.")
    controls: int = option(0, CONTROLS, least=0)
    smooth: float | None = option(None, "softplus(BETA) in place of ReLU.", metavar="BETA")
    tau: float = option(1e-8, FLOOR, inside=Interval(0, 1, "()"))
    steps: int = option(1000, DESCENT, least=1)
    samples: int | None = option(None, SUBSET, least=1)
    seed: int = option(0, SEED, least=0)
    device: str = option("auto", DEVICE)
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")

    def __post_init__(self) -> None:
        if not self.layer:
            raise UsageError("no layer is named", "say whose neurons to split: --layer NAME")
        check_options(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return plain_options(self)
