"""Certificates of critical points: what was measured at a point, and the verdict that follows from it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from landscape.points.settings import TAU
from landscape.results.fields import CURVATURE, LOSS, SLOPE, Interval, field_of, interval_of, part_of

# Stationary: ‖∇L‖ <= STATIONARY · what parts of the data pull, each by itself; or max |∇L| within this many times its
# rounding.
STATIONARY, ROUNDING = 1e-8, 10.0
# Further floors at which zeros are counted.
TAUS = (1e-8, 1e-6, 1e-4)
# Gradient-flat (Frye et al. 2021): ‖H∇L‖ / (‖H‖ ‖∇L‖) below this while the gradient is well above rounding.
FLAT = 1e-3
ABOVE_ROUNDING = 1e3
# A channel: over the second half of a descent ‖θ‖ still grows by this share (ten times it where no neurons merge),
# while the loss creeps: it loses less than that share of itself.
GROWING = 0.02
CREEPING, CREEPING_ALONE = 0.3, 0.1
# Losses of probabilities: hard labels are met at infinity only. Along L = exp(−t) the squared Newton decrement is L,
# t^−p has p/(p + 1) of it, a minimum of value 0 twice as much and one of another value nothing. Below the first number
# of nats, or below the second where a descent lost half of the loss in its second half, such a ratio tells.
VANISHING = ("cross_entropy", "bce")
RATIO, SMALL, FALLING = (0.5, 1.6), (1e-6, 1e-2), 0.5
# Units in the last place, by dtype.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23}
# Below this many nats, or units in the last place of its probabilities, such a loss has nowhere else to go.
NOTHING, NOTHING_ULPS = 1e-9, 1e3
# One-sided slopes and curvatures at kinks are below zero by more than this share of the largest ones.
ONE_SIDED = 1e-4

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
    first: int = field_of("number of the one neuron")
    second: int = field_of("number of the other")
    distance: float = field_of("distance of their input weights, relative to the sum of their norms")
    opposition: float = field_of("how far their output weights cancel, 1: not at all")


@dataclass(frozen=True)
class Kinks:
    """Corners of piecewise linear functions at the point, which the Hessian does not see.

    Attributes:
        count: activations at a corner, over all samples. where: the functions and their modules.
        slope: lowest one-sided derivative of L that was found, along unit directions.
        curvature: lowest one-sided second derivative among directions without a slope; NaN: there was none.
        largest: of the second derivatives met, absolute.
    """

    count: int
    where: str
    slope: float = field_of("lowest one-sided derivative of the loss found, along unit directions", units=SLOPE)
    curvature: float = field_of("lowest one-sided second derivative without a slope; NaN: none", units=CURVATURE)
    largest: float = field_of("largest |second derivative| met", units=CURVATURE)


@dataclass(frozen=True)
class Certificate:
    """What is known about a point, measured in `dtype` over the data.

    Attributes:
        dtype: arithmetic. full_data: whether all samples entered. parameters: P.
        loss: L. loss_floor: below this a squared error cannot be told from 0; 0.0 for other losses.
        vanishing: whether the loss is one of probabilities, whose infimum 0 is met at infinity only.
        gradient_inf, gradient_norm: max |∇L| and ‖∇L‖. gradient_rounding: rounding error of max |∇L|, estimated.
        gradient_pull: what parts of the data pull, ‖·‖, see `gradient_scale.part_gradients`; NaN: it was not measured.
        newton_decrement: √(∇Lᵀ |H|⁺ ∇L) over the eigenvalues beyond τ and beyond their error; NaN where H
            is not dense.
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
        kinks: see `Kinks`; None where the loss has two derivatives.
        exact: dense spectrum (True) or Lanczos with an exclusion bound (False).
        products: curvature products spent. products_needed: for one search, to settle an unresolved case; None
            otherwise, and where no number of them is known to.
    """

    dtype: str
    full_data: bool
    parameters: int = field_of("number of trainable parameters")
    loss: float = field_of("loss at the point", units=LOSS)
    loss_floor: float = field_of("a squared error below this cannot be told from 0", units=LOSS)
    gradient_inf: float = field_of("largest entry of the gradient, absolute", units=SLOPE)
    gradient_norm: float = field_of("Euclidean norm of the gradient", units=SLOPE)
    gradient_rounding: float = field_of("rounding error of the gradient, estimated", units=SLOPE)
    newton_decrement: float = field_of("square root of gradient' |H|^+ gradient; NaN: not dense", units="loss^(1/2)")
    lambda_min: Interval = interval_of("lowest eigenvalue", units=CURVATURE)
    lambda_min_beyond: Interval = interval_of(
        "lowest eigenvalue beyond the tangents of named symmetries", units=CURVATURE
    )
    lambda_max: float = field_of("largest |eigenvalue|", units=CURVATURE)
    negative: int = field_of("eigenvalues below -tau lambda_max; a lower bound unless exact")
    zeros: Mapping[str, int] = field(default_factory=dict)
    symmetries: Mapping[str, int] = field(default_factory=dict)
    tau: float = field_of("floor of the verdict, relative to lambda_max", default=TAU)
    parameter_norm: float = field_of("Euclidean norm of the parameters", default=math.nan)
    norm_growth: float = field_of(
        "share that this norm gained in the second half of the descent; NaN: none or too short", default=math.nan
    )
    loss_drop: float = field_of("share of the loss lost in that half; NaN: none or too short", default=math.nan)
    flatness: float = field_of("|H gradient| / (|H| |gradient|); NaN: the gradient is rounding", default=math.nan)
    pair: Pair | None = part_of(lambda: Pair, optional=True)
    gradient_pull: float = field_of(
        "root mean square of the gradients of up to 16 parts of the data; NaN: not measured",
        units=SLOPE,
        default=math.nan,
    )
    vanishing: bool = False
    kinks: Kinks | None = part_of(lambda: Kinks, optional=True)
    exact: bool = True
    products: int = field_of("curvature products spent", default=0)
    products_needed: int | None = field_of("products that would settle an unresolved case", optional=True)

    @property
    def stationary(self) -> bool:
        """Whether the gradient is nothing beside the pull of the data, or nothing but rounding.

        Certificates from before the pull was measured have max |∇L| <= 1e-8 max(1, |L|) for it.
        """
        if math.isnan(self.gradient_pull):
            return self.gradient_inf <= STATIONARY * max(1.0, abs(self.loss))
        small = self.gradient_norm <= STATIONARY * self.gradient_pull
        return small or self.gradient_inf <= ROUNDING * self.gradient_rounding

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
    if found.get("kinks") is not None:
        corner: dict[str, Any] = {k: math.nan if v is None else v for k, v in found["kinks"].items()}
        found["kinks"] = Kinks(**corner)
    numbers = ("newton_decrement", "parameter_norm", "norm_growth", "loss_drop", "flatness", "gradient_pull")
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
    if c.kinks is not None and (c.stationary or c.kinks.slope >= -ONE_SIDED * c.gradient_pull):
        return _cornered(c, c.kinks)
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
    more = f"; max_products={c.products_needed} would tell" if c.products_needed else ""
    return "unresolved", (
        f"an eigenvalue down to {low:.3g} is not excluded after {c.products:,} products{more}"
        if math.isfinite(low)
        else f"nothing is excluded after {c.products:,} products{more}"
    )


def _channel(c: Certificate) -> str:
    """Why the parameters are taken to run to infinity; empty if they are not."""
    if c.vanishing and (vanishes := _vanishes(c)):
        return vanishes
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


def _vanishes(c: Certificate) -> str:
    """Why a loss of probabilities is taken to fall to 0, which it does at infinity only; empty if it is not."""
    if c.loss <= max(NOTHING, NOTHING_ULPS * EPS[c.dtype]):
        return f"the loss {c.loss:.1e} of probabilities is next to 0, which is met at infinity only"
    ratio = c.newton_decrement**2 / c.loss
    falls = c.loss < SMALL[0] or (c.loss < SMALL[1] and c.loss_drop > FALLING)
    if falls and RATIO[0] <= ratio <= RATIO[1]:
        return (
            f"the loss {c.loss:.1e} falls to 0 at infinity: the squared Newton decrement is {ratio:.2g} of it, "
            "where a minimum has next to nothing"
        )
    return ""


def _cornered(c: Certificate, kinks: Kinks) -> tuple[str, str]:
    """The verdict where second derivatives are one-sided."""
    what = f"{kinks.count:,} activations are at a kink ({kinks.where})"
    if kinks.slope < -ONE_SIDED * c.gradient_pull:
        return "not stationary", f"{what}, on one side of which the loss falls with slope {-kinks.slope:.2g}"
    if kinks.curvature < -ONE_SIDED * kinks.largest:
        return "saddle", f"{what}, on one side of which the curvature is {kinks.curvature:.3g}"
    return "degenerate", f"{what}: the Hessian holds on one side only, and cannot tell a minimum from a saddle"


def _moving(c: Certificate) -> tuple[str, str]:
    if math.isnan(c.gradient_pull):
        size = f"max |gradient| is {c.gradient_inf:.1e}, above {STATIONARY * max(1.0, abs(c.loss)):.0e}"
    else:
        share = c.gradient_norm / c.gradient_pull if c.gradient_pull else math.inf
        size = f"the gradient is {share:.1e} of what parts of the data pull, above {STATIONARY:.0e}"
    if c.flatness < FLAT and c.gradient_inf > ABOVE_ROUNDING * c.gradient_rounding and c.kinks is None:
        return (
            "gradient-flat",
            f"{size}, but H maps it to {c.flatness:.0e} of what it could be: no way further down ‖∇L‖",
        )
    return "not stationary", size
