"""All options of the spectrum analysis: names, defaults and limits, stated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from landscape.curvature.plan import Operator, Strategy
from landscape.errors import UsageError
from landscape.settings import (
    DEVICE,
    FLOOR,
    MEMORY,
    SEED,
    SHARE,
    SUBSET,
    check_options,
    documented,
    names_of,
    option,
    parse_bytes,
    plain_options,
)

# Cheaper arithmetic for products.
LOWERED = ("tf32", "bf16")
# Further probes of the trace, usually.
TRACE_PRODUCTS = 64
# Products of the second look for copies, where no density does its work.
LOOK_PRODUCTS = 20


@documented
@dataclass(frozen=True)
class SpectrumSettings:
    """All options of `spectrum`; the command line and the library share these names and defaults.

    `max_products` does not count the dense solution, the layers and the sampling error. What cheaper arithmetic (tf32,
    bf16) loses is measured, and enters every bound.
    """

    operator: Operator = option("hessian", "Gauss-Newton (ggn), or what it leaves of the Hessian (residual).")
    top: int = option(10, "Largest eigenpairs.", least=0)
    bottom: int = option(10, "Smallest (most negative) eigenpairs.", least=0)
    rtol: float = option(1e-3, "Converged: residual <= max(rtol |value|, tau).", inside=SHARE)
    tau: float = option(1e-6, FLOOR, inside=SHARE)
    density: bool = option(True, "Spectral density and negative mass.")
    density_width: float | None = option(
        None, "Smooth the density with a Gaussian of this standard deviation; else cells as fine as is resolved."
    )
    probes: int = option(8, "Random probes of the density (at least 3).", least=3)
    steps: int = option(80, "Lanczos steps of each probe.", least=2)
    max_products: int | None = option(None, "Limit on curvature products.", least=1)
    exact: bool | None = option(None, "Force or forbid the dense float64 solution; else by its measured cost.")
    params: tuple[str, ...] = option(
        (),
        "Only these parameters, such as 'encoder.*'; repeatable.",
        words=lambda text: names_of([text]), example=("encoder.*",), metavar="GLOB", many=True,
    )  # fmt: skip
    by_layer: bool = option(False, "Extremes and trace of every layer's block.")
    vectors: bool = option(False, "Keep the eigenvectors in the result file.")
    samples: int | None = option(None, SUBSET, least=1)
    seed: int = option(0, SEED, least=0)
    device: str = option("auto", DEVICE)
    precision: Literal["auto", "float32", "float64", "tf32", "bf16"] = option("auto", "Arithmetic of the products.")
    batch_size: int | None = option(None, "Samples a chunk; chosen by timing if left out.", least=1)
    block: int | None = option(None, "Vectors a launch; chosen by timing if left out.", least=1)
    strategy: Strategy = option("auto", "How products are taken; chosen by timing if left out.")
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")

    def __post_init__(self) -> None:
        check_options(self)
        if self.density_width is not None and not (self.density and 0 < self.density_width < math.inf):
            raise UsageError(
                f"--density-width is {self.density_width}"
                + ("; it must be a positive number" if self.density else ", but --no-density asks for none"),
                "give the standard deviation in units of the eigenvalues, such as --density-width 0.01",
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        plain = plain_options(self)
        if self.density_width is None:  # so that results of before this option are the same results
            del plain["density_width"]
        return plain

    @property
    def extreme_products(self) -> int:
        """Products that the eigenpairs will take, roughly."""
        return 4 * (self.top + self.bottom) + 20

    @property
    def iterative_products(self) -> int:
        """Products that an iterative solution will take, roughly; decides what planning is worth."""
        guess = (
            self.extreme_products
            + TRACE_PRODUCTS
            + (self.probes * self.steps if self.density else self.probes + LOOK_PRODUCTS)
        )
        return guess if self.max_products is None else min(guess, self.max_products)
