"""How a certificate is shown: the same JSON for every analysis that makes one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from landscape.points.certificate import TAUS, Certificate


def certificate_json(c: Certificate) -> dict[str, Any]:
    """The object `certificate` of `docs/cli.md`."""
    return {
        "verdict": c.verdict,
        "reason": c.reason,
        "dtype": c.dtype,
        "full_data": c.full_data,
        "exact": c.exact,
        "gradient_inf": c.gradient_inf,
        "gradient_rounding": c.gradient_rounding,
        "gradient_pull": c.gradient_pull,
        "newton_decrement": c.newton_decrement,
        "flatness": c.flatness,
        "lambda_min": asdict(c.lambda_min),
        "lambda_min_beyond_symmetries": asdict(c.lambda_min_beyond),
        "lambda_max": c.lambda_max,
        "tau": c.tau,
        "negative": c.negative,
        "zeros": {f"{tau:g}": c.zeros.get(f"{tau:g}") for tau in TAUS},
        "symmetries": dict(c.symmetries),
        "parameter_norm": c.parameter_norm,
        "norm_growth": c.norm_growth,
        "loss_drop": c.loss_drop,
        "kinks": 0 if c.kinks is None else c.kinks.count,
        "pair": None if c.pair is None else {"distance": c.pair.distance, "opposition": c.pair.opposition},
    }
