"""pytest plugin: curvlinops' tests of Hessian, Gauss–Newton and their submatrices, run on ours.

Their base class keeps its formats of vectors and its checks of inputs; what multiplies is ours. Their tests of trace
estimators take matrices that are not symmetric, which ours are not for.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape.curvature.operator import CurvatureOperator
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem

FILES = ("test/test_hessian.py", "test/test_ggn.py", "test/test_submatrix.py")
NOT_OURS = {
    "mc_expectation": "Monte Carlo approximations of the Gauss–Newton matrix",
    "EFLinearOperator": "the empirical Fisher is no curvature of the loss",
}


class _Functional(nn.Module):
    """A function of parameters by name as a module; names may hold dots."""

    def __init__(self, function: Any, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.function, self.keys = function, list(params)
        self.values = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in params.values())

    def forward(self, x: Any) -> Tensor:
        return self.function(dict(zip(self.keys, self.values, strict=True)), x)


def _model(function: Any, params: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """A module that holds the parameters, and their names in it, in the order of `params`."""
    if not isinstance(function, nn.Module):
        return _Functional(function, params), [f"values.{i}" for i in range(len(params))]
    model = copy.deepcopy(function)
    named = dict(model.named_parameters())
    for name, p in named.items():
        if name in params:
            p.data = params[name].detach().clone()
        p.requires_grad_(name in params)
    return model, list(params)


class _Ours:
    """`_matmat` by our operator; everything else is inherited from theirs."""

    KIND = "hessian"

    def __init__(self, model_func: Any, loss_func: Any, params: dict[str, Tensor], data: Any, **options: Any) -> None:
        self._given = (model_func, loss_func, params)
        self._made: CurvatureOperator | None = None
        super().__init__(model_func, loss_func, params, data, **options)  # type: ignore[call-arg]

    def _operator(self) -> CurvatureOperator:
        if self._made is None:
            model_func, loss_func, params = self._given
            model, names = _model(model_func, params)
            batches = list(self._loop_over_data(desc="ours"))  # type: ignore[attr-defined]
            factors = [float(self._get_normalization_factor(*b)) for b in batches]  # type: ignore[attr-defined]

            def loss(m: nn.Module, batch: Any) -> tuple[Tensor, int]:
                x, y, factor = batch
                return loss_func(m(x), y) * factor * len(batches), 1

            data = [(x, y, factor) for (x, y), factor in zip(batches, factors, strict=True)]
            objective = build_objective(Problem(model, data, loss))
            self._made = CurvatureOperator(objective, operator=self.KIND)
            self._order = [names.index(name) for name in objective.names]
        return self._made

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        operator = self._operator()
        flat = torch.cat([M[i].flatten(0, -2) for i in self._order])
        product = operator(flat.contiguous())
        parts = product.split([M[i].shape[:-1].numel() for i in self._order])
        result: list[Any] = [None] * len(M)
        for i, part in zip(self._order, parts, strict=True):
            result[i] = part.reshape(M[i].shape)
        return result


def pytest_configure(config: pytest.Config) -> None:
    """Replace theirs before their tests are imported."""
    import curvlinops as theirs
    import curvlinops.ggn
    import curvlinops.hessian

    class HessianLinearOperator(_Ours, theirs.HessianLinearOperator):  # type: ignore[misc]
        KIND = "hessian"

    class GGNLinearOperator(_Ours, theirs.GGNLinearOperator):  # type: ignore[misc]
        KIND = "ggn"

    theirs.HessianLinearOperator = curvlinops.hessian.HessianLinearOperator = HessianLinearOperator
    theirs.GGNLinearOperator = curvlinops.ggn.GGNLinearOperator = GGNLinearOperator
