"""Frozen results of analyses: every field declares its axes, its unit and a sentence of text.

A result is a frozen dataclass whose fields are made with `field_of`; the store, the figures, the table of
`landscape info` and `docs/format.md` are all driven by these declarations, so a new field is one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

# Units are those of the loss per sample (nats for cross-entropy); parameters are dimensionless.
LOSS = "loss"
CURVATURE = "loss / parameter^2"
SLOPE = "loss / parameter"
NONE = "1"

# Every axis a result may have: its long name, and the field that holds its coordinate (None: 0, 1, 2 …).
AXES: dict[str, tuple[str, str | None]] = {
    "top": ("rank from the largest eigenvalue, 0 first", None),
    "bottom": ("rank from the smallest eigenvalue, 0 first", None),
    "tau": ("floor relative to max |eigenvalue|", "tau"),
    "grid": ("position on the eigenvalue axis", "grid"),
    "probe": ("random probe", None),
    "step": ("Lanczos step of a probe", None),
    "taken": ("eigenvalue taken out before the probes, ascending", None),
    "eigenvalue": ("rank among all eigenvalues, ascending", None),
    "parameter": ("index in the flat parameter vector", None),
    "layer": ("layer, in the order of the model", "layer"),
    "tensor": ("parameter tensor, in the order of the model", "tensor"),
    "iteration": ("iteration of the descent, 0 at the checkpoint", None),
    "kept": ("iteration whose parameters are kept", "kept"),
    "offset": ("place on a line through the point", None),
    "side": ("side of the direction: +, -", "side"),
    "control": ("random kick of the same length", None),
    "split": ("neuron and shares of its output weights", "split"),
    "copy": ("copy of the neuron", None),
    "x": ("multiple of the first direction", "x"),
    "y": ("multiple of the second direction", "y"),
    "plane": ("random plane", None),
    "quantile": ("share of the planes below", "quantile"),
    "direction": ("direction of the slice", "direction"),
    "mark": ("another checkpoint, projected into the slice", "mark"),
    "part": ("test of a claim", "part"),
    "need": ("thing that a claim needs", "need"),
    "population": ("problem that a claim was decided on", "population"),
    "excluded": ("run that was left out", "excluded"),
    "settle": ("command that would settle what is undetermined", "settle"),
    "point": ("point of a curve of the claim's figure", None),
    "inner": ("rank among the inner Hessian's eigenvalues, ascending", None),
}


@dataclass(frozen=True)
class Array:
    """A labelled array: the common currency of results, files and figures.

    Attributes:
        values: float64, float32, int64, bool or str array of shape given by `dims`.
        dims: names of the axes, each a key of `AXES`; () for a scalar.
        units: unit in plain text, "1" where there is none.
        long_name: one sentence on what the numbers are.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    units: str
    long_name: str


def field_of(
    long_name: str, *dims: str, units: str = NONE, optional: bool = False, default: Any = dataclasses.MISSING
) -> Any:
    """Declare a result field with its text, axes and unit; `optional` ones default to None and may be absent."""
    metadata = {"dims": dims, "units": units, "long_name": long_name, "optional": optional}
    return field(default=None if optional else default, metadata=metadata)


@dataclass(frozen=True)
class Interval:
    """A number and the ends between which it lies, or arrays of them."""

    value: Any
    low: Any
    high: Any


def interval_of(long_name: str, *dims: str, units: str = NONE) -> Any:
    """Declare a field that is an `Interval`; in files a group of `value`, `low` and `high`."""
    return field(metadata={"interval": {"dims": dims, "units": units, "long_name": long_name}})


def part_of(kind: Callable[[], type[Any]], optional: bool = False) -> Any:
    """Declare a field that is itself a frozen dataclass of declared fields; in files a group of their own.

    Args:
        kind: gives the class. optional: the field defaults to None, and the group may be absent.
    """
    metadata = {"part": kind, "optional": optional}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def declared_fields(kind: type[Any], before: str = "", optional: bool = False) -> dict[str, Mapping[str, Any]]:
    """Name -> dims, units, long_name and whether it may be absent, of a class and its parts: "lambda_min.low"."""
    found: dict[str, Mapping[str, Any]] = {}
    for f in dataclasses.fields(kind):
        told, name = f.metadata, before + f.name
        if "dims" in told:
            found[name] = {**told, "optional": told["optional"] or optional}
        elif "interval" in told:
            inner = {**told["interval"], "optional": optional}
            ends = {"low": "lower end of its interval", "high": "upper end of its interval"}
            found[f"{name}.value"] = inner
            found |= {f"{name}.{end}": {**inner, "long_name": text} for end, text in ends.items()}
        elif "part" in told:
            found |= declared_fields(told["part"](), f"{name}.", optional or told["optional"])
    return found


def described_fields(made: Any, before: str = "") -> dict[str, Any]:
    """Name -> what describes a result and its parts rather than measure something; mappings of parts only."""
    kinds = (str, bool, int, Mapping) if before else (str, bool, int)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(made):
        value, name = getattr(made, f.name), before + f.name
        if "part" in f.metadata:
            found |= described_fields(value, f"{name}.") if value is not None else {}
        elif not {"dims", "interval"} & set(f.metadata) and isinstance(value, kinds):
            found[name] = value
    return found


@dataclass(frozen=True)
class Result:
    """Base of all results: only the translation into labelled arrays lives here."""

    group: ClassVar[str]

    @classmethod
    def declared(cls) -> dict[str, Mapping[str, Any]]:
        """Field name -> its declared dims, units, long_name, and whether it may be absent; parts by "part.name"."""
        return declared_fields(cls)

    def arrays(self) -> dict[str, Array]:
        """The fields that are present, as labelled arrays."""
        out: dict[str, Array] = {}
        for name, meta in self.declared().items():
            value: Any = self
            for step in name.split("."):
                value = None if value is None else getattr(value, step)
            if value is not None:
                out[name] = Array(np.asarray(value), meta["dims"], meta["units"], meta["long_name"])
        return out

    def attributes(self) -> dict[str, Any]:
        """The fields that describe the result rather than measure something; parts by "part.name"."""
        return described_fields(self)


@dataclass(frozen=True)
class Spent:
    """What an analysis spent and chose; the command copies it into the file's provenance.

    Attributes:
        products: curvature products over all data. seconds: wall time.
        dtype, device: of the products. plan: the operator's choices, plain types.
        notes: sentences for the user (fall-backs, limits that were hit).
    """

    products: int
    seconds: float
    dtype: str
    device: str
    plan: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """How a result came about; stored with every group (attributes of the same names).

    Attributes:
        command: the subcommand, such as "spectrum".
        identity: hash of checkpoint, problem file, data, --set and settings; equal means nothing to do.
        status: running | complete | interrupted | failed.
        settings: all options of the analysis, after defaults.
        checkpoint: path as the user wrote it.
        sha256: of the checkpoint file, hexadecimal.
        header: the checkpoint's own `landscape` header, {} for foreign files.
        coordinates: width, seed, step … of the checkpoint within its sweep.
        data_fingerprint: sha256 over the data that was used.
        versions: of python, torch, numpy, scipy and landscape.
        device, dtype: where and in which arithmetic the products ran.
        seed: of every random choice.
        products: curvature products spent, over all data each.
        seconds: wall time.
        plan: what the operator chose (strategy, chunk, block, why), plain types.
        notes: sentences the user was shown (fall-backs, stripped prefixes …).
    """

    command: str
    identity: str
    status: str
    settings: Mapping[str, Any]
    checkpoint: str
    sha256: str
    header: Mapping[str, Any]
    coordinates: Mapping[str, Any]
    data_fingerprint: str
    versions: Mapping[str, str]
    device: str
    dtype: str
    seed: int
    products: int
    seconds: float
    plan: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spectrum(Result):
    """Spectrum of a curvature operator at one point; intervals are 95 %.

    `top` descends, `bottom` ascends. Absent optional fields were not asked for (`--no-density`, no `--vectors`,
    not dense …). Eigenvalues are of the loss averaged over samples, weight decay included.
    """

    group: ClassVar[str] = "spectrum"

    operator: str
    strategy: str
    exact: bool

    parameters: int = field_of("number of parameters the operator acts on")
    samples: int = field_of("number of samples (the loss's total count)")
    loss: float = field_of("loss at the checkpoint", units=LOSS)
    gradient_norm: float = field_of("Euclidean norm of the gradient", units=SLOPE)
    product_error: float = field_of("error of one product against float64, included in every residual", units=CURVATURE)

    top_value: np.ndarray = field_of("largest eigenvalues, descending", "top", units=CURVATURE)
    top_residual: np.ndarray = field_of("distance within which a true eigenvalue lies", "top", units=CURVATURE)
    top_converged: np.ndarray = field_of("residual <= max(rtol |value|, tau)", "top")
    bottom_value: np.ndarray = field_of("smallest eigenvalues, ascending", "bottom", units=CURVATURE)
    bottom_residual: np.ndarray = field_of("distance within which a true eigenvalue lies", "bottom", units=CURVATURE)
    bottom_converged: np.ndarray = field_of("residual <= max(rtol |value|, tau)", "bottom")
    top_complete: np.ndarray | None = field_of(
        "True: up to this rank no larger eigenvalue is missing from the list (99.9 %)", "top", optional=True
    )
    bottom_complete: np.ndarray | None = field_of(
        "True: up to this rank no smaller eigenvalue is missing from the list (99.9 %)", "bottom", optional=True
    )

    trace: float = field_of("trace of the operator", units=CURVATURE)
    trace_low: float = field_of("lower end of the trace's interval", units=CURVATURE)
    trace_high: float = field_of("upper end of the trace's interval", units=CURVATURE)

    tau: np.ndarray = field_of("floor relative to max |eigenvalue|", "tau")
    tau_absolute: np.ndarray = field_of("floor, absolute", "tau", units=CURVATURE)
    negative_count_low: np.ndarray = field_of("certified number of eigenvalues below -tau", "tau")
    negative_count_high: np.ndarray = field_of("upper bound of that number", "tau")
    negative_count_exact: np.ndarray | None = field_of(
        "exact number of eigenvalues below -tau (dense)", "tau", optional=True
    )
    negative_mass: np.ndarray = field_of("sum of |eigenvalues| below -tau over the sum of all", "tau")
    negative_mass_low: np.ndarray = field_of("lower end of the mass's interval", "tau")
    negative_mass_high: np.ndarray = field_of("upper end of the mass's interval", "tau")
    excluded_below: float = field_of(
        "an eigenvalue below this was missed with at most excluded_probability; NaN: nothing excluded",
        units=CURVATURE,
    )
    excluded_probability: float = field_of("see excluded_below; 0 for a dense spectrum")

    grid: np.ndarray | None = field_of(
        "positions at which the density is given: edges of cells, inner ones twice",
        "grid",
        units=CURVATURE,
        optional=True,
    )
    density: np.ndarray | None = field_of(
        "spectral density, integral 1 over all eigenvalues", "grid", units="1 / curvature", optional=True
    )
    density_low: np.ndarray | None = field_of(
        "lower end of the density's interval, which holds for the integral over any cells",
        "grid",
        units="1 / curvature",
        optional=True,
    )
    density_high: np.ndarray | None = field_of(
        "upper end of the density's interval, which holds for the integral over any cells",
        "grid",
        units="1 / curvature",
        optional=True,
    )
    kernel_width: np.ndarray | None = field_of(
        "standard deviation of the Gaussian the density is smoothed with; absent: counted in cells",
        "grid",
        units=CURVATURE,
        optional=True,
    )
    node: np.ndarray | None = field_of(
        "quadrature nodes (Ritz values) of the deflated operator",
        "probe",
        "step",
        units=CURVATURE,
        optional=True,
    )
    weight: np.ndarray | None = field_of(
        "quadrature weights; each probe's sum to the fraction of eigenvalues not deflated",
        "probe",
        "step",
        optional=True,
    )
    node_low: np.ndarray | None = field_of(
        "half of a node's weight is spread down to this", "probe", "step", units=CURVATURE, optional=True
    )
    node_high: np.ndarray | None = field_of(
        "half of a node's weight is spread up to this", "probe", "step", units=CURVATURE, optional=True
    )
    node_residual: np.ndarray | None = field_of(
        "distance within which the deflated operator has one", "probe", "step", units=CURVATURE, optional=True
    )
    deflated: np.ndarray | None = field_of(
        "True: this eigenvalue entered the density exactly, not through the probes", "top", optional=True
    )
    deflated_bottom: np.ndarray | None = field_of(
        "True: this eigenvalue entered the density exactly, not through the probes", "bottom", optional=True
    )
    deflated_value: np.ndarray | None = field_of(
        "all eigenvalues taken out before the probes, ascending", "taken", units=CURVATURE, optional=True
    )
    deflated_residual: np.ndarray | None = field_of(
        "distance within which a true eigenvalue lies", "taken", units=CURVATURE, optional=True
    )
    eigenvalues: np.ndarray | None = field_of(
        "all eigenvalues, ascending (dense)", "eigenvalue", units=CURVATURE, optional=True
    )

    top_vector: np.ndarray | None = field_of("unit eigenvectors", "top", "parameter", optional=True)
    bottom_vector: np.ndarray | None = field_of("unit eigenvectors", "bottom", "parameter", optional=True)
    tensor: np.ndarray | None = field_of("name of the parameter tensor", "tensor", optional=True)
    tensor_size: np.ndarray | None = field_of("its number of entries in the flat vector", "tensor", optional=True)

    layer: np.ndarray | None = field_of("name of the layer", "layer", optional=True)
    layer_parameters: np.ndarray | None = field_of("parameters of the layer", "layer", optional=True)
    layer_top: np.ndarray | None = field_of(
        "largest eigenvalue of the layer's diagonal block", "layer", units=CURVATURE, optional=True
    )
    layer_top_residual: np.ndarray | None = field_of(
        "distance within which a true one lies", "layer", units=CURVATURE, optional=True
    )
    layer_bottom: np.ndarray | None = field_of(
        "smallest eigenvalue of the layer's diagonal block", "layer", units=CURVATURE, optional=True
    )
    layer_bottom_residual: np.ndarray | None = field_of(
        "distance within which a true one lies", "layer", units=CURVATURE, optional=True
    )
    layer_trace: np.ndarray | None = field_of(
        "trace of the layer's diagonal block", "layer", units=CURVATURE, optional=True
    )
    layer_trace_low: np.ndarray | None = field_of("lower end of its interval", "layer", units=CURVATURE, optional=True)
    layer_trace_high: np.ndarray | None = field_of("upper end of its interval", "layer", units=CURVATURE, optional=True)

    # With --samples: what the same quantities would be over all the data.
    data_samples: int | None = field_of("samples in the whole data set", optional=True)
    sampling_top_low: float | None = field_of(
        "lower end for the largest eigenvalue over all data", units=CURVATURE, optional=True
    )
    sampling_top_high: float | None = field_of(
        "upper end for the largest eigenvalue over all data", units=CURVATURE, optional=True
    )
    sampling_top_needed: int | None = field_of(
        "samples for a half-width of 10 % of the largest eigenvalue; absent: too few samples to say", optional=True
    )
    sampling_bottom_low: float | None = field_of(
        "lower end for the smallest eigenvalue over all data", units=CURVATURE, optional=True
    )
    sampling_bottom_high: float | None = field_of(
        "upper end for the smallest eigenvalue over all data", units=CURVATURE, optional=True
    )
    sampling_bottom_needed: int | None = field_of(
        "samples for a half-width of 10 % of the smallest eigenvalue; absent: too few samples to say", optional=True
    )
    sampling_trace_low: float | None = field_of("lower end for the trace over all data", units=CURVATURE, optional=True)
    sampling_trace_high: float | None = field_of(
        "upper end for the trace over all data", units=CURVATURE, optional=True
    )
    sampling_trace_needed: int | None = field_of(
        "samples for a half-width of 10 % of the trace; absent: too few samples to say", optional=True
    )

    spent: Spent | None = None
