"""All options of `descend` and `escape`: names, defaults and limits, stated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from landscape.errors import UsageError
from landscape.settings import (
    CONTROLS,
    DESCENT,
    DEVICE,
    FLOOR,
    MEMORY,
    SEED,
    SHARE,
    SUBSET,
    Interval,
    check_options,
    documented,
    option,
    parse_bytes,
    plain_options,
)

# Floor of the verdicts, relative to the largest |eigenvalue|.
TAU = 1e-6
Target = Literal["minimum", "critical"]
Method = Literal["auto", "newton", "flow", "lbfgs", "newton-krylov", "newton-mr"]
Precision = Literal["auto", "float64", "float32"]


@documented
@dataclass(frozen=True)
class DescendSettings:
    """All options of `descend`; the command line and the library share these names and defaults.

    Method "auto": Levenberg–Marquardt while it gains, then saddle-free Newton, in stacks; beyond 1,000 parameters
    L-BFGS, then Newton–Krylov (or Newton-MR to a critical point). "newton": without Levenberg–Marquardt. "flow":
    gradient flow. "lbfgs", "newton-krylov", "newton-mr": matrix-free. Precision "auto": float64, or the model's own
    where it runs in no other.
    """

    to: Target = option("minimum", "A minimum (saddles are left), or critical: whatever index is nearest.")
    method: Method = option("auto", "Stacked dense steps (newton, flow), or matrix-free ones.")
    steps: int = option(1000, "Iterations, at most; 0 certifies the checkpoint as it is.", least=0)
    gradient: float = option(
        1e-13, "Aim: max |gradient|, as a share of what parts of the data pull.", inside=Interval(0, 1, "()")
    )
    tau: float = option(TAU, FLOOR, inside=SHARE)
    samples: int | None = option(None, SUBSET, least=1)
    seed: int = option(0, SEED, least=0)
    device: str = option("auto", DEVICE)
    precision: Precision = option("auto", "Arithmetic of the descent.")
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")
    max_products: int = option(500, "Curvature products for the certificate of a large network.", least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.method == "newton-mr" and self.to == "minimum":
            raise UsageError("newton-mr ends at critical points of any index", "add --to critical")
        if self.to == "critical" and self.method in ("lbfgs", "newton-krylov", "flow"):
            raise UsageError(f"{self.method} goes to minima", "use --method auto or newton-mr with --to critical")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return plain_options(self)


@documented
@dataclass(frozen=True)
class EscapeSettings:
    """All options of `escape`; the command line and the library share these names and defaults.

    Precision "auto": float64, or the model's own where it runs in no other.
    """

    descend: bool = option(False, "First go to the critical point of the checkpoint's own basin.")
    certify_only: bool = option(False, "Name the point and its direction; follow nothing.")
    controls: int = option(0, CONTROLS, least=0)
    steps: int = option(1000, DESCENT, least=1)
    tau: float = option(TAU, FLOOR, inside=SHARE)
    samples: int | None = option(None, SUBSET, least=1)
    seed: int = option(0, SEED, least=0)
    device: str = option("auto", DEVICE)
    precision: Precision = option("auto", "Arithmetic of the descents.")
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")
    max_products: int = option(500, "Curvature products for the lowest eigenvalue of a large network.", least=1)

    def __post_init__(self) -> None:
        check_options(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        return plain_options(self)
