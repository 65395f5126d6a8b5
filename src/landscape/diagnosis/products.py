"""Checks that need products: symmetry, linearity, strategies, float32, flat directions, cost."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from landscape.curvature.agreement import Referee
from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.planner import timed
from landscape.curvature.products import ggn_linearized, hessian_linearized, hessian_reverse
from landscape.diagnosis.differences import check_differences
from landscape.diagnosis.findings import Finding, Visit, listed, short
from landscape.diagnosis.layers import culprits
from landscape.diagnosis.ways import NAMES, WAYS, random_direction, set_point, uncut_operator
from landscape.errors import LandscapeError, ProblemError
from landscape.problem.batches import length_of
from landscape.problem.objective import Objective
from landscape.problem.operations import narrowed, singular_operations

# Products that differ in rounding only may differ by this many times what one last place of θ changes.
ROUNDING = 50.0
POWER_STEPS = 12


def check_products(visit: Visit, objective: Objective, seed: int) -> None:
    """All that needs products: differences, symmetry, linearity, strategies, float32, flat directions, cost."""
    generator = torch.Generator().manual_seed(seed)
    try:
        operator = uncut_operator(objective)
    except LandscapeError as error:
        text = f"{error.message}; {culprits(objective, hessian_reverse)}"
        visit.findings.append(Finding("second derivative", "fault", text))
        with visit.check("gradient"):
            check_differences(visit, objective, None, generator, 1.0)
        return
    u, v = (random_direction(objective, generator) for _ in range(2))
    top = v
    for _ in range(POWER_STEPS):
        top = torch.nn.functional.normalize(operator(top), dim=0)
    vectors = torch.stack([u, v, top], dim=1)
    products = operator(vectors)
    if not bool(torch.isfinite(products).all()):
        where = listed(singular_operations(objective)) or "no single operation is to blame"
        text = f"it is NaN or Inf, so this loss has no Hessian here: {where}; add a small number inside roots and norms"
        visit.findings.append(Finding("second derivative", "fault", text))
        return
    scale = float(products.norm(dim=0).max()) or 1.0
    eps = _epsilon(visit, objective)
    wobbled = objective.in_dtype(objective.dtype)
    set_point(wobbled, objective.point() * (1 + eps * u.sign()))
    noise = float((uncut_operator(wobbled)(vectors) - products).norm(dim=0).max()) / scale
    allowed = ROUNDING * (noise + eps)
    for name, slope in (("gradient", True), ("central differences", False)):
        with visit.check(name):
            check_differences(visit, objective, None if slope else operator, generator, scale, eps)
    with visit.check("symmetry"):
        gap = float((u @ products[:, 1] - v @ products[:, 0]).abs()) / scale
        visit.held("symmetry", gap, allowed, "u·Hv = v·Hu", "u·Hv differs from v·Hu")
        other = operator(2 * u - 3 * top)
        gap = float((other - 2 * products[:, 0] + 3 * products[:, 2]).norm()) / scale
        visit.held("linearity", gap, allowed, "H(2u - 3w) = 2Hu - 3Hw", "H(2u - 3w) is not 2Hu - 3Hw")
    with visit.check("hessian"):
        worst = _compare_ways(visit, objective, "hessian", vectors, products, scale, allowed)
        visit.error_float64 = max(noise, worst)
    with visit.check("ggn"):
        _gauss_newton(visit, objective, vectors, allowed)
    with visit.check("float32"):
        _single(visit, objective, vectors, products, scale)
    with visit.check("flat directions"):
        _flat(visit, objective, products)
    _cost(visit, objective, operator, u)


def _cost(visit: Visit, objective: Objective, operator: CurvatureOperator, u: Tensor) -> None:
    plan, drawn = operator.plan, sum(length_of(b) for b in objective.batches)
    cost = {
        "gradient_seconds": timed(objective.value_and_gradient, objective.device),
        "product_seconds": timed(lambda: operator(u), objective.device),
    }
    text = (
        f"on {drawn} samples a gradient takes {cost['gradient_seconds']:.2g} s, "
        f"a product {cost['product_seconds']:.2g} s, "
        f"and a kept chunk of {plan.chunk} {plan.bytes_per_chunk / 1e6:.2g} MB ({plan.strategy}, {objective.dtype})"
    )
    more = {"bytes_per_chunk": plan.bytes_per_chunk, "chunk": plan.chunk, "samples": drawn}
    visit.findings.append(Finding("cost", "ok", text.replace("torch.", ""), cost | more))


def _epsilon(visit: Visit, objective: Objective) -> float:
    """The unit roundoff that products can be held to: of the narrowest arithmetic inside."""
    narrowest, where = narrowed(objective)
    if where:
        name = str(narrowest).removeprefix("torch.")
        text = f"computed in {name} whatever is given, in {listed(where)}: no product is better than its rounding"
        visit.findings.append(Finding("arithmetic", "care", text, {"layers": where}))
    return float(torch.finfo(narrowest).eps)


def _compare_ways(
    visit: Visit, objective: Objective, kind: str, vectors: Tensor, products: Tensor, scale: float, allowed: float
) -> float:
    """Every way of taking a product against the reference; returns the largest deviation, relative to `scale`."""
    off: dict[str, float] = {}
    failed: dict[str, str] = {}
    refused: dict[str, str] = {}
    referee = Referee(objective, kind)
    for name, way in WAYS[kind].items():
        try:
            off[name] = float((way(objective, vectors) - products).norm(dim=0).max()) / scale
        except Exception as error:
            failed[name] = short(error)
            continue
        if not off[name] <= allowed and (objection := referee.ruling(NAMES[name])):
            refused[name] = objection
            del off[name]
    worst = max(off.values(), default=float("nan"))
    wrong = [f"{n} by {d:.0e}" for n, d in off.items() if not d <= allowed]
    bad = f"of the ways to take a product some are wrong ({', '.join(wrong)}): choose another --strategy"
    visit.held(kind, worst, allowed, f"{len(off)} ways to take a product agree", bad)
    if refused:
        text = (
            f"wrong for this model, and refused by every command: {', '.join(refused)} ({next(iter(refused.values()))})"
        )
        visit.findings.append(Finding(f"{kind} ways refused", "care" if off else "fault", text, {"refused": refused}))
    if failed:
        builder = hessian_reverse if "kept" in failed else hessian_linearized
        where = culprits(objective, builder if kind == "hessian" else ggn_linearized)
        text = f"not possible here: {', '.join(failed)} ({next(iter(failed.values()))}); {where}; the others are used"
        visit.findings.append(Finding(f"{kind} ways", "care" if off else "fault", text, {"failed": failed}))
    return worst


def _gauss_newton(visit: Visit, objective: Objective, vectors: Tensor, allowed: float) -> None:
    try:
        products = uncut_operator(objective, "ggn")(vectors)
    except ProblemError as error:
        visit.findings.append(Finding("ggn", "care", error.message))
        return
    scale = float(products.norm(dim=0).max()) or 1.0
    _compare_ways(visit, objective, "ggn", vectors, products, scale, allowed)
    lowest = float((vectors * products).sum(dim=0).min()) / scale
    good, bad = "v·Gv >= 0", "v·Gv < 0: the loss is not convex in the outputs"
    visit.held("ggn sign", max(0.0, -lowest), allowed, good, bad)
    if visit.findings[-1].verdict == "fault" and not objective.cuttable:  # only our own losses are known to be convex
        visit.findings[-1] = dataclasses.replace(visit.findings[-1], verdict="care")


def _single(visit: Visit, objective: Objective, vectors: Tensor, products: Tensor, scale: float) -> None:
    rounded = uncut_operator(objective.in_dtype(torch.float32))(vectors.float()).to(products.dtype)
    error = float((rounded - products).norm(dim=0).max())
    visit.error_float32 = error / scale
    text = (
        f"a product is off by {error / scale:.1e} of max |λ| = {scale:.3g}: "
        f"float32 cannot resolve eigenvalues below {error:.1e}"
    )
    numbers = {"deviation": error / scale, "allowed": 1e-3, "largest": scale, "floor": error}
    visit.findings.append(Finding("float32", "ok" if error <= 1e-3 * scale else "care", text, numbers))


def _flat(visit: Visit, objective: Objective, products: Tensor) -> None:
    """Parameters with zero gradient and zero Hessian rows on this data."""
    dead = (products == 0).all(dim=1) & (objective.value_and_gradient()[1] == 0)
    parts = zip(objective.names, objective.layout.unflatten(dead), strict=True)
    whole = [name for name, part in parts if bool(part.all())]
    count = int(dead.sum())
    text = f"{count:,} of {len(dead):,} parameters have no effect here: as many zero eigenvalues"
    text += f"; all of {listed(whole)}" if whole else ""
    verdict = "care" if count else "ok"
    visit.findings.append(Finding("flat directions", verdict, text if count else "every parameter has an effect"))
    visit.findings[-1].numbers.update({"dead": count, "tensors": whole})
