"""Certificates of critical points: what was measured at a point, and the verdict that follows from it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

# Stationary: max |∇L| <= STATIONARY · max(1, |L|).
STATIONARY = 1e-8
# Eigenvalues within this share of max |λ| are zero, unless the caller says otherwise.
TAU = 1e-6
TAUS = (1e-8, 1e-6, 1e-4)
# Gradient-flat (Frye et al. 2021): ‖H∇L‖ / (‖H‖ ‖∇L‖) below this while the gradient is well above rounding.
FLAT = 1e-3
ABOVE_ROUNDING = 1e3
# A channel: over the second half of a descent ‖θ‖ still grows by this share (ten times it where no neurons merge),
# while the loss creeps: it loses less than that share of itself.
GROWING = 0.02
CREEPING, CREEPING_ALONE = 0.3, 0.1

VERDICTS = (
    "minimum",
    "saddle",
    "degenerate",
    "channel",
    "gradient-flat",
    "not stationary",
    "unresolved",
    "failed",
)


@dataclass(frozen=True)
class Interval:
    """A number with the interval it lies in; exact bounds for dense spectra, 99.9 % for Lanczos."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SecondHalf:
    """What a descent did in the second half of its iterations: shares of ‖θ‖ gained and of L lost; NaN: too short."""

    norm_growth: float = math.nan
    loss_drop: float = math.nan


@dataclass(frozen=True)
class Pair:
    """The two neurons of a layer that are nearest to merging while their output weights oppose each other.

    Attributes:
        layer: whose neurons. first, second: their numbers.
        distance: ‖w₁ − w₂‖ / (‖w₁‖ + ‖w₂‖) of the input weights, biases included.
        opposition: (‖a₁‖ + ‖a₂‖) / ‖a₁ + a₂‖ of the output weights; 1 for parallel ones.
    """

    layer: str
    first: int
    second: int
    distance: float
    opposition: float


@dataclass(frozen=True)
class Certificate:
    """What is known about a point, measured in `dtype` over the data.

    Attributes:
        dtype: arithmetic. full_data: whether all samples entered. parameters: P.
        loss: L. loss_floor: below this a squared error cannot be told from 0; 0.0 for other losses.
        gradient_inf, gradient_norm: max |∇L| and ‖∇L‖. gradient_rounding: rounding error of max |∇L|, estimated.
        newton_decrement: √(∇Lᵀ |H|⁺ ∇L) over the eigenvalues beyond τ; NaN where H is not dense.
        lambda_min: lowest eigenvalue of H.
        lambda_min_beyond: the lowest one after projecting out the tangents of named symmetries.
        lambda_max: max |eigenvalue|.
        negative: eigenvalues below −τ max |λ|; a lower bound where `exact` is False.
        zeros: τ -> number of eigenvalues within τ max |λ| of zero; {} where H is not dense.
        symmetries: name -> zero eigenvalues that it explains at this point.
        tau: relative floor used in the verdict.
        parameter_norm: ‖θ‖. norm_growth: its share gained over the second half of the descent; NaN: none was made.
        loss_drop: share of the loss lost over that half.
        flatness: ‖H∇L‖ / (‖H‖ ‖∇L‖); NaN where the gradient is rounding.
        pair: see `Pair`; None where no two neurons are near.
        exact: dense spectrum (True) or Lanczos with an exclusion bound (False).
        products: curvature products spent. products_needed: in all, to settle an unresolved case; None otherwise.
    """

    dtype: str
    full_data: bool
    parameters: int
    loss: float
    loss_floor: float
    gradient_inf: float
    gradient_norm: float
    gradient_rounding: float
    newton_decrement: float
    lambda_min: Interval
    lambda_min_beyond: Interval
    lambda_max: float
    negative: int
    zeros: Mapping[str, int] = field(default_factory=dict)
    symmetries: Mapping[str, int] = field(default_factory=dict)
    tau: float = TAU
    parameter_norm: float = math.nan
    norm_growth: float = math.nan
    loss_drop: float = math.nan
    flatness: float = math.nan
    pair: Pair | None = None
    exact: bool = True
    products: int = 0
    products_needed: int | None = None

    @property
    def stationary(self) -> bool:
        """max |∇L| <= 1e-8 max(1, |L|)."""
        return self.gradient_inf <= STATIONARY * max(1.0, abs(self.loss))

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return decide(self)[0]

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return decide(self)[1]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, verdict and reason included."""
        return {**asdict(self), "verdict": self.verdict, "reason": self.reason}

    def after(self, descent: SecondHalf) -> Certificate:
        """The same, as the end of a descent."""
        return replace(self, norm_growth=descent.norm_growth, loss_drop=descent.loss_drop)


def from_dict(values: Mapping[str, Any]) -> Certificate:
    """A certificate from `as_dict`; the verdict is made anew."""
    known = {f.name for f in fields(Certificate)}
    found: dict[str, Any] = {k: v for k, v in values.items() if k in known}
    for name in ("lambda_min", "lambda_min_beyond"):
        found[name] = Interval(**{k: math.nan if v is None else v for k, v in found[name].items()})
    found["pair"] = None if found.get("pair") is None else Pair(**found["pair"])
    numbers = ("newton_decrement", "parameter_norm", "norm_growth", "loss_drop", "flatness")
    found |= {name: math.nan for name in numbers if found.get(name) is None}
    return Certificate(**found)


def decide(c: Certificate) -> tuple[str, str]:
    """The verdict and its reason, from the certificate alone."""
    if not (math.isfinite(c.loss) and math.isfinite(c.gradient_inf) and math.isfinite(c.lambda_max)):
        return "failed", "the loss, its gradient or its Hessian is NaN or infinite"
    if c.loss_floor > 0 and c.loss <= c.loss_floor:
        return "minimum", f"the loss {c.loss:.1e} cannot be told from 0, the lowest value of a squared error"
    channel = _channel(c)
    if channel:
        return "channel", channel
    if not c.stationary:
        return _moving(c)
    floor = c.tau * c.lambda_max
    low, high = c.lambda_min.low, c.lambda_min.high
    if high < -floor:
        return "saddle", f"the lowest eigenvalue is {c.lambda_min.value:.3g}, below -{floor:.1g}"
    if c.lambda_min_beyond.low > floor:
        named = sum(c.symmetries.values())
        beyond = f" beyond {named} zero modes of named symmetries" if named else ""
        return "minimum", f"the lowest eigenvalue{beyond} is {c.lambda_min_beyond.value:.3g}, above {floor:.1g}"
    if c.exact or c.lambda_min.low > -floor:
        return "degenerate", (
            f"the lowest eigenvalue {c.lambda_min_beyond.value:.1g} is within {floor:.1g} of zero: "
            "second order cannot tell a minimum from a saddle"
        )
    more = f"; about {c.products_needed:,} products would tell" if c.products_needed else ""
    return "unresolved", (
        f"an eigenvalue down to {low:.3g} is not excluded after {c.products:,} products{more}"
        if math.isfinite(low)
        else f"nothing is excluded after {c.products:,} products{more}"
    )


def _channel(c: Certificate) -> str:
    """Why the parameters are taken to run to infinity; empty if they are not."""
    certain = c.stationary and (c.pair is None or c.lambda_min_beyond.low > c.tau * c.lambda_max)
    if not c.norm_growth > GROWING or certain:
        return ""
    if c.pair is not None and c.loss_drop < CREEPING:
        return (
            f"the norm grows (by {100 * c.norm_growth:.0f} % in the second half of the descent) while neurons "
            f"{c.pair.first} and {c.pair.second} of {c.pair.layer} merge and their output weights oppose"
        )
    if c.norm_growth > 10 * GROWING and c.loss_drop < CREEPING_ALONE:
        return f"the norm still grows, by {100 * c.norm_growth:.0f} % in the second half of the descent"
    return ""


def _moving(c: Certificate) -> tuple[str, str]:
    size = f"max |gradient| is {c.gradient_inf:.1e}, above {STATIONARY * max(1.0, abs(c.loss)):.0e}"
    if c.flatness < FLAT and c.gradient_inf > ABOVE_ROUNDING * c.gradient_rounding:
        return (
            "gradient-flat",
            f"{size}, but H maps it to {c.flatness:.0e} of what it could be: no way further down ‖∇L‖",
        )
    return "not stationary", size
