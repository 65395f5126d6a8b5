"""Frozen results of analyses: every field declares its axes, its unit and a sentence of text.

A result is a frozen dataclass whose fields are made with `field_of`; the store, the figures, the table of
`landscape info` and `docs/format.md` are all driven by these declarations, so a new field is one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    "zero_tau": ("floor relative to max |eigenvalue|", "zero_tau"),
    "symmetry": ("named symmetry of the network", "symmetry"),
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


def field_of(long_name: str, *dims: str, units: str = NONE, optional: bool = False) -> Any:
    """Declare a result field with its text, axes and unit; `optional` ones default to None and may be absent."""
    metadata = {"dims": dims, "units": units, "long_name": long_name}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


@dataclass(frozen=True)
class Result:
    """Base of all results: only the translation into labelled arrays lives here."""

    group: ClassVar[str]

    @classmethod
    def declared(cls) -> dict[str, Mapping[str, Any]]:
        """Field name -> its declared dims, units and long_name."""
        return {f.name: f.metadata for f in dataclasses.fields(cls) if "dims" in f.metadata}

    def arrays(self) -> dict[str, Array]:
        """The fields that are present, as labelled arrays."""
        out: dict[str, Array] = {}
        for name, meta in self.declared().items():
            value = getattr(self, name)
            if value is not None:
                out[name] = Array(np.asarray(value), meta["dims"], meta["units"], meta["long_name"])
        return out

    def attributes(self) -> dict[str, str | bool | int]:
        """The fields that describe the result rather than measure something."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if "dims" not in f.metadata}
        return {name: value for name, value in values.items() if isinstance(value, str | bool | int)}


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


@dataclass(frozen=True, kw_only=True)
class Descended(Result):
    """A descent from a checkpoint to a critical point, its trajectory, and the certificate of where it ended."""

    group: ClassVar[str] = "descend"

    to: str
    method: str
    verdict: str
    reason: str
    stopped: str
    exact: bool
    full_data: bool

    parameters: int = field_of("number of trainable parameters")
    samples: int = field_of("number of samples (the loss's total count)")
    steps: int = field_of("iterations taken")
    loss_before: float = field_of("loss at the checkpoint", units=LOSS)
    loss: float = field_of("loss where the descent ended", units=LOSS)
    loss_floor: float = field_of("a squared error below this cannot be told from 0", units=LOSS)
    gradient_inf: float = field_of("largest entry of the gradient, absolute", units=SLOPE)
    gradient_norm: float = field_of("Euclidean norm of the gradient", units=SLOPE)
    gradient_rounding: float = field_of("rounding error of the gradient, estimated", units=SLOPE)
    newton_decrement: float = field_of("square root of gradient' |H|^+ gradient; NaN: not dense", units="loss^(1/2)")
    flatness: float = field_of("|H gradient| / (|H| |gradient|); NaN: the gradient is rounding")
    lambda_min: float = field_of("lowest eigenvalue", units=CURVATURE)
    lambda_min_low: float = field_of("lower end of its interval", units=CURVATURE)
    lambda_min_high: float = field_of("upper end of its interval", units=CURVATURE)
    lambda_min_beyond: float = field_of("lowest eigenvalue beyond the tangents of named symmetries", units=CURVATURE)
    lambda_min_beyond_low: float = field_of("lower end of its interval", units=CURVATURE)
    lambda_min_beyond_high: float = field_of("upper end of its interval", units=CURVATURE)
    lambda_max: float = field_of("largest |eigenvalue|", units=CURVATURE)
    negative: int = field_of("eigenvalues below -tau lambda_max; a lower bound unless exact")
    tau_relative: float = field_of("floor of the verdict, relative to lambda_max")
    parameter_norm: float = field_of("Euclidean norm of the parameters")
    norm_growth: float = field_of("share that this norm gained in the second half of the descent; NaN: too short")
    loss_drop: float = field_of("share of the loss lost in that half; NaN: too short")
    zero_tau: np.ndarray = field_of("floors at which zeros are counted", "zero_tau")
    zeros: np.ndarray = field_of("eigenvalues within the floor of zero; -1: not dense", "zero_tau")
    symmetry: np.ndarray = field_of("symmetries with zero modes here", "symmetry")
    symmetry_modes: np.ndarray = field_of("zero eigenvalues that the symmetry explains", "symmetry")
    pair_distance: float = field_of("distance of the two neurons nearest to merging; NaN: none near")
    pair_opposition: float = field_of("how far their output weights cancel, 1: not at all; NaN: none near")
    gradient_pull: float | None = field_of(
        "root mean square of the gradients of up to 16 parts of the data", units=SLOPE, optional=True
    )
    kinks: int | None = field_of("activations at a kink, over all samples; 0: none", optional=True)

    path_loss: np.ndarray = field_of("loss along the descent", "iteration", units=LOSS)
    path_gradient_inf: np.ndarray = field_of(
        "largest entry of the gradient along the descent", "iteration", units=SLOPE
    )
    path_norm: np.ndarray = field_of("norm of the parameters along the descent", "iteration")
    kept: np.ndarray | None = field_of("iterations whose parameters are kept", "kept", optional=True)
    path_point: np.ndarray | None = field_of("parameters at these iterations", "kept", "parameter", optional=True)
    point: np.ndarray = field_of("parameters where the descent ended", "parameter")
    tensor: np.ndarray = field_of("name of the parameter tensor", "tensor")
    tensor_size: np.ndarray = field_of("its number of entries in the flat vector", "tensor")

    certificate: Mapping[str, Any] = field(default_factory=dict)
    spent: Spent | None = None
