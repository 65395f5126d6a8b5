"""What a spectrum promises, held against dense truth: one `Check` for every bound of every number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dense_truth import Truth
from landscape.curvature.operator import CurvatureOperator
from landscape.problem.objective import build_objective
from landscape.results.fields import Spectrum
from random_problems import Drawn

# Rates at which a bound may be missed; "certain" never.
CERTAIN, LIKELY, EXCLUDED = 0.0, 0.05, 1e-3


class Check(NamedTuple):
    """One bound: its name, the rate at which it may fail, whether it did, its width, and what was found."""

    name: str
    rate: float
    missed: bool
    width: float
    detail: str = ""


def _relative(width: float, scale: float) -> float:
    return width / scale if scale > 0 else 0.0


def eigenvalue_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """Residuals of both ends, and the ranks up to which the list says that it is complete."""
    checks = []
    for end, values, residuals, complete, right in (
        ("top", r.top_value, r.top_residual, r.top_complete, truth.eigenvalues[::-1]),
        ("bottom", r.bottom_value, r.bottom_residual, r.bottom_complete, truth.eigenvalues),
    ):
        if not len(values):
            continue
        distance = np.abs(truth.eigenvalues[None, :] - values[:, None]).min(axis=1)
        beyond = distance - residuals - truth.error
        worst = int(np.argmax(beyond))
        detail = f"{values[worst]:.17g} +- {residuals[worst]:.3g}, nearest true one {distance[worst]:.3g} away"
        checks.append(
            Check(
                f"{end} residual",
                CERTAIN,
                bool(beyond.max() > 0),
                _relative(float(residuals.max()), truth.scale),
                detail,
            )
        )
        sure = int(complete.sum())
        if sure:
            off = (np.abs(right[: len(values)] - values) - residuals - truth.error)[:sure]
            detail = f"{values.tolist()}, true {right[: len(values)].tolist()}, {residuals.tolist()}, {sure} complete"
            checks.append(Check(f"{end} ranks", EXCLUDED, bool(off.max() > 0), 0.0, detail))
    return checks


def trace_check(r: Spectrum, truth: Truth) -> Check:
    """The trace of n eigenvalues, each off by the truth's own error at most."""
    right, slack = float(truth.eigenvalues.sum()), truth.error * len(truth.eigenvalues) ** 0.5
    missed = not r.trace_low - slack <= right <= r.trace_high + slack
    width = _relative(r.trace_high - r.trace_low, float(np.abs(truth.eigenvalues).sum()))
    return Check("trace", LIKELY, missed, width, f"[{r.trace_low:.17g}, {r.trace_high:.17g}], true {right:.17g}")


def negative_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """Counts and masses at each floor; an eigenvalue within the truth's error of a floor may stand on either side."""
    checks, n, values = [], len(truth.eigenvalues), truth.eigenvalues
    total = float(np.abs(values).sum())
    for i, tau in enumerate(r.tau_absolute):
        fewest, most = int((values < -tau - truth.error).sum()), int((values < -tau + truth.error).sum())
        low, high = int(r.negative_count_low[i]), int(r.negative_count_high[i])
        said = f"[{low}, {high}] below -{tau:.3g}, true {fewest}" + (f" to {most}" if most > fewest else "")
        checks.append(Check("count, low end", CERTAIN, low > most, 0.0, said))
        checks.append(Check(f"count, high end, floor {i + 1}", LIKELY, high < fewest, (high - low) / n, said))
        if r.negative_count_exact is not None and np.isfinite(r.negative_count_exact[i]):
            exact = int(r.negative_count_exact[i])
            checks.append(Check("exact count", CERTAIN, not fewest <= exact <= most, 0.0, f"{exact}, {said}"))
        if total > 0:
            near = np.abs(values + tau) <= truth.error + r.product_error
            slack = float(np.abs(values[near]).sum()) / total + truth.error * n / total
            mass, lowest, highest = (
                -float(values[values < -tau].sum()) / total,
                r.negative_mass_low[i],
                r.negative_mass_high[i],
            )
            missed = not lowest - slack <= mass <= highest + slack
            said = f"[{lowest:.9g}, {highest:.9g}] below -{tau:.3g}, true {mass:.9g}"
            checks.append(Check(f"mass, floor {i + 1}", LIKELY, missed, float(highest - lowest), said))
    return checks


def exclusion_check(r: Spectrum, truth: Truth) -> list[Check]:
    if np.isnan(r.excluded_below):
        return []
    lowest = float(truth.eigenvalues[0])
    missed = lowest < r.excluded_below - truth.error
    return [Check("exclusion", EXCLUDED, missed, 0.0, f"nothing below {r.excluded_below:.9g}, lowest {lowest:.9g}")]


def dense_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """All eigenvalues of a dense solution, ascending, within the largest bound that was given."""
    if r.eigenvalues is None:
        return []
    bound = float(max(r.product_error, r.top_residual.max(initial=0.0), r.bottom_residual.max(initial=0.0)))
    off = float(np.abs(np.sort(r.eigenvalues) - truth.eigenvalues).max())
    return [
        Check(
            "all eigenvalues",
            CERTAIN,
            off > bound + truth.error,
            _relative(bound, truth.scale),
            f"off {off:.3g}, bound {bound:.3g}",
        )
    ]


def quadrature_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """Nodes lie between the true ends (or at 0, where deflation puts what it takes); weights hold what is left."""
    if r.node is None or r.weight is None:
        return []
    eps = float(np.finfo(np.float32 if r.product_error > 1e-10 * truth.scale else np.float64).eps)
    slack = 2 * r.product_error + truth.error + 16 * eps * truth.scale
    held = r.weight > 1e-12
    ends = min(truth.eigenvalues[0], 0.0) - slack, max(truth.eigenvalues[-1], 0.0) + slack
    nodes = r.node[held]
    outside = bool(nodes.size and (nodes.min() < ends[0] or nodes.max() > ends[1]))
    said = f"nodes {nodes.min():.9g} to {nodes.max():.9g}, ends {ends[0]:.9g} and {ends[1]:.9g}" if nodes.size else ""
    taken: np.ndarray | None = getattr(r, "deflated_value", None)
    listed = sum(int(np.sum(d)) for d in (r.deflated, r.deflated_bottom) if d is not None)
    exact = listed if taken is None else len(taken)
    sums, left = r.weight.sum(axis=1), 1 - exact / len(truth.eigenvalues)
    off = float(np.abs(sums - left).max())
    return [
        Check("nodes within the ends", CERTAIN, outside, 0.0, said),
        Check(
            "weights sum to the rest",
            CERTAIN,
            off > 1e-4,
            0.0,
            f"sums {sums.min():.9g} to {sums.max():.9g}, rest {left:.9g}",
        ),
    ]


def deflated_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """Eigenvalues taken out before the probes, each within its residual of a true one."""
    values, residuals = getattr(r, "deflated_value", None), getattr(r, "deflated_residual", None)
    if values is None or residuals is None or not len(values):
        return []
    off = np.abs(truth.eigenvalues[None, :] - values[:, None]).min(axis=1)
    worst = int(np.argmax(off - residuals))
    said = f"{values[worst]:.17g} +- {residuals[worst]:.3g}, nearest true one {off[worst]:.3g} away"
    return [Check("deflated residual", CERTAIN, bool((off > residuals + truth.error).any()), 0.0, said)]


def density_checks(r: Spectrum, truth: Truth, rng: np.random.Generator) -> list[Check]:
    """The density in cells: their integral, that they end where the spectrum does, and any run of them."""
    if r.grid is None or r.density is None or r.density_low is None or r.density_high is None:
        return []
    if r.kernel_width is not None or len(r.grid) < 2:
        return []
    n, values = len(truth.eigenvalues), truth.eigenvalues
    left, right = r.grid[0::2], r.grid[1::2]
    density, low, high = (d[0::2] * (right - left) for d in (r.density, r.density_low, r.density_high))
    whole = float(density.sum())
    checks = [Check("density integrates to 1", CERTAIN, not abs(whole - 1) < 1e-9, 0.0, f"{whole:.12g}")]
    beyond = max(float(left[0] - values[0]), float(values[-1] - right[-1]))
    said = f"eigenvalues from {values[0]:.17g} to {values[-1]:.17g}, cells from {left[0]:.17g} to {right[-1]:.17g}"
    # An end that has not converged is a residual away from some eigenvalue, which need not be the last.
    sure = bool(r.bottom_converged[:1].all() and r.top_converged[:1].all()) and len(r.bottom_value) and len(r.top_value)
    if len(left) == 1 and float(left[0]) == -float(right[0]):  # nothing but zeros: a cell of any width would do
        sure = 0
    if sure:
        checks.append(Check("cells reach both ends", LIKELY, beyond > truth.error, 0.0, said))
        # The list itself may lack the last one, which is a check of its own.
        widest = max(
            min(float(r.bottom_value[0] - r.bottom_residual[0]), float(values[0])) - float(left[0]),
            float(right[-1]) - max(float(r.top_value[0] + r.top_residual[0]), float(values[-1])),
        )
        slack = 1e-9 * max(abs(float(left[0])), abs(float(right[-1])))
        lacks_first = values[0] < r.bottom_value[0] - r.bottom_residual[0]
        if lacks_first or values[-1] > r.top_value[0] + r.top_residual[0]:  # the probes show it, as products err
            slack += float(r.product_error)
        checks.append(Check("no density beyond the ends", CERTAIN, widest > slack, 0.0, said))
    i, j = sorted(rng.integers(0, len(left), 2).tolist())
    a, b = float(left[i]), float(right[j])
    inner = float(((values > a + truth.error) & (values <= b - truth.error)).sum()) / n
    outer = float(((values > a - truth.error) & (values <= b + truth.error)).sum()) / n
    least, most = float(low[i : j + 1].sum()), float(high[i : j + 1].sum())
    missed = most < inner - 1e-9 or least > outer + 1e-9
    said = f"[{least:.6g}, {most:.6g}] in [{a:.6g}, {b:.6g}], true between {inner:.6g} and {outer:.6g}"
    return [*checks, Check("density over an interval", LIKELY, missed, most - least, said)]


def layer_checks(r: Spectrum, truth: Truth, rng: np.random.Generator) -> list[Check]:
    """Blocks of whole layers: parameters named `layer.*`. One trace a problem, since they are not independent."""
    if r.layer is None:
        return []
    checks, drawn = [], int(rng.integers(len(r.layer)))
    for i, layer in enumerate(r.layer):
        owned = sum(
            size for name, size in zip(truth.names, truth.sizes, strict=True) if name.rpartition(".")[0] == layer
        )
        if owned != int(r.layer_parameters[i]):
            continue
        values = truth.block(str(layer))
        for end, value, residual in (
            ("top", r.layer_top[i], r.layer_top_residual[i]), ("bottom", r.layer_bottom[i], r.layer_bottom_residual[i]),
        ):  # fmt: skip
            off = float(np.abs(values - value).min())
            said = f"{layer}: {value:.17g} +- {residual:.3g}, nearest true one {off:.3g} away"
            checks.append(
                Check(
                    f"layer {end} residual",
                    CERTAIN,
                    off > residual + truth.error,
                    _relative(float(residual), truth.scale),
                    said,
                )
            )
        if i != drawn:
            continue
        slack, right = truth.error * len(values) ** 0.5, float(values.sum())
        said = f"{layer}: [{r.layer_trace_low[i]:.17g}, {r.layer_trace_high[i]:.17g}], true {right:.17g}"
        missed = not r.layer_trace_low[i] - slack <= right <= r.layer_trace_high[i] + slack
        checks.append(
            Check(
                "layer trace",
                LIKELY,
                missed,
                _relative(float(r.layer_trace_high[i] - r.layer_trace_low[i]), float(np.abs(values).sum())),
                said,
            )
        )
    return checks


def sampling_checks(r: Spectrum, truth: Truth) -> list[Check]:
    """Intervals for what the same number would be over all the data, whose spectrum the truth is."""
    checks = []
    for name, low, high, right in (
        ("top", r.sampling_top_low, r.sampling_top_high, truth.eigenvalues[-1]),
        ("bottom", r.sampling_bottom_low, r.sampling_bottom_high, truth.eigenvalues[0]),
        ("trace", r.sampling_trace_low, r.sampling_trace_high, truth.eigenvalues.sum()),
    ):
        if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
            continue  # nothing was said
        slack = truth.error * len(truth.eigenvalues) ** 0.5 + 1e-6 * truth.scale
        said = f"[{low:.9g}, {high:.9g}], true {right:.9g}"
        checks.append(
            Check(
                f"sampling, {name}",
                LIKELY,
                not low - slack <= right <= high + slack,
                _relative(float(high - low), truth.scale),
                said,
            )
        )
    return checks


def product_checks(drawn: Drawn, r: Spectrum, truth: Truth, rng: np.random.Generator) -> list[Check]:
    """One product of random vectors and of the eigenvectors at both ends, in the arithmetic of the run."""
    options = {k: drawn.settings[k] for k in ("operator", "strategy", "batch_size") if k in drawn.settings}
    if r.eigenvalues is not None:
        return []
    dtype = torch.float64 if drawn.settings.get("precision") == "float64" else None
    objective = build_objective(drawn.problem, params=drawn.settings.get("params", ()), dtype=dtype)
    operator = CurvatureOperator(objective, **options)
    order = [list(truth.names).index(name) for name in objective.names]
    starts = np.concatenate([[0], np.cumsum(truth.sizes)])
    at = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in order])
    matrix = truth.matrix[np.ix_(at, at)]
    _, vectors = np.linalg.eigh(matrix)
    noise = rng.normal(size=(len(at), 3))
    tried = np.concatenate([noise / np.linalg.norm(noise, axis=0), vectors[:, :1], vectors[:, -1:]], axis=1)
    block: Tensor = torch.from_numpy(tried).to(objective.dtype)
    off = np.linalg.norm(operator(block).double().numpy() - matrix @ block.double().numpy(), axis=0)
    width = _relative(float(r.product_error), truth.scale)
    return [
        Check(
            f"product error, {name}",
            CERTAIN,
            worst > r.product_error + truth.error,
            width,
            f"{r.product_error:.3g}, seen {worst:.3g}",
        )
        for name, worst in (("random vectors", float(off[:3].max())), ("both ends", float(off[3:].max())))
    ]


def checks(drawn: Drawn, r: Spectrum, truth: Truth) -> list[Check]:
    """Everything that one result promises."""
    if drawn.settings.get("samples") and r.data_samples is not None:
        return sampling_checks(r, truth)
    rng = np.random.default_rng([drawn.seed, drawn.index, 1])
    slack = 1e-3 * abs(truth.loss) + 1e-6
    found: list[Any] = [
        Check("loss", CERTAIN, abs(r.loss - truth.loss) > slack, 0.0, f"{r.loss:.9g}, true {truth.loss:.9g}"),
        *eigenvalue_checks(r, truth), trace_check(r, truth), *negative_checks(r, truth), *exclusion_check(r, truth),
        *dense_checks(r, truth), *quadrature_checks(r, truth), *deflated_checks(r, truth),
        *density_checks(r, truth, rng),
        *layer_checks(r, truth, rng), *product_checks(drawn, r, truth, rng),
    ]  # fmt: skip
    return found
