"""All options of the spectrum analysis: names, defaults and limits, stated once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from landscape.curvature.plan import OPERATORS
from landscape.errors import UsageError
from landscape.runtime.memory import parse_bytes
from landscape.settings import in_words

# Cheaper arithmetic for products.
LOWERED = ("tf32", "bf16")
# Further probes of the trace, usually.
TRACE_PRODUCTS = 64
# Of the second look for copies, where no density does its work.
LOOK_PRODUCTS = 20
# Called as (stage, done, total).


def names_of(params: Sequence[str]) -> tuple[str, ...]:
    """Patterns of one or several comma-separated --params options."""
    return tuple(p.strip() for text in params for p in text.split(",") if p.strip())


@dataclass(frozen=True)
class SpectrumSettings:
    """All options of `spectrum`; the command line and the library share these names and defaults.

    Attributes:
        operator: "hessian", "ggn" (Gauss–Newton) or "residual" (hessian − ggn).
        top, bottom: eigenpairs wanted at each end.
        rtol: a pair is converged when its residual is at most max(rtol |λ|, τ).
        tau: floor, relative to max |λ|, below which an eigenvalue counts as zero.
        density: whether to estimate the spectral density and the negative part's upper bounds.
        density_width: standard deviation in λ of a Gaussian to smooth the density with, as papers draw it; None: cells
            as fine as is resolved.
        probes, steps: of the stochastic Lanczos quadrature.
        max_products: limit for everything but the dense solution, the layers and the sampling error.
        exact: True forces the dense float64 solution, False forbids it, None decides by measured cost.
        params: glob patterns of parameters to restrict the operator to.
        by_layer: also λ_max, λ_min and trace of every layer's diagonal block.
        vectors: keep the eigenvectors.
        samples: size of a random subset of the data; None: all.
        seed: of every random choice.
        device: "auto", "cpu" or "cuda". precision: "auto", "float32", "float64", or for cheaper products "tf32" or
            "bf16", whose measured error enters every bound.
        batch_size: samples a chunk; block: vectors a launch; None: by timing. strategy: see `CurvatureOperator`.
        memory: limit in bytes for the whole process.
    """

    operator: str = "hessian"
    top: int = 10
    bottom: int = 10
    rtol: float = 1e-3
    tau: float = 1e-6
    density: bool = True
    density_width: float | None = None
    probes: int = 8
    steps: int = 80
    max_products: int | None = None
    exact: bool | None = None
    params: tuple[str, ...] = in_words((), lambda text: names_of([text]), ("encoder.*",))
    by_layer: bool = False
    vectors: bool = False
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    block: int | None = None
    strategy: str = "auto"
    memory: int | None = in_words(None, parse_bytes, "6GB")

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise UsageError(f"there is no operator {self.operator!r}", f"choose one of {', '.join(OPERATORS)}")
        for name, least in (("top", 0), ("bottom", 0), ("probes", 3), ("steps", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("max_products", "samples", "batch_size", "block", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.density_width is not None and not (self.density and 0 < self.density_width < math.inf):
            raise UsageError(
                f"--density-width is {self.density_width}"
                + ("; it must be a positive number" if self.density else ", but --no-density asks for none"),
                "give the standard deviation in units of the eigenvalues, such as --density-width 0.01",
            )
        for name in ("rtol", "tau"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.precision not in ("auto", "float32", "float64", *LOWERED):
            raise UsageError(f"there is no precision {self.precision!r}", "choose auto, float32, float64, tf32 or bf16")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for identities and files."""
        plain = {**asdict(self), "params": list(self.params)}
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
