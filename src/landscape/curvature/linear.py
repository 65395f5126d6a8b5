"""Curvature of a problem as a linear operator: `hessian(problem) @ v`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.operator import CurvatureOperator
from landscape.curvature.plan import Operator, Strategy
from landscape.curvature.product_error import product_error
from landscape.curvature.trust import trusted
from landscape.errors import UsageError
from landscape.problem.objective import build_objective
from landscape.problem.parameters import trainable
from landscape.problem.problem import Problem, at_point
from landscape.runtime.arithmetic import resolve_device, resolve_dtype
from landscape.settings import (
    DEVICE,
    MEMORY,
    SEED,
    check_options,
    documented,
    keyword_settings,
    names_of,
    option,
    parse_bytes,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@documented
@dataclass(frozen=True)
class CurvatureSettings:
    """All options of `hessian`, `ggn` and `residual`, as `spectrum` has them."""

    params: tuple[str, ...] = option(
        (),
        "Only these parameters, such as 'encoder.*'.",
        words=lambda text: names_of([text]), example=("encoder.*",), metavar="GLOB", many=True,
    )  # fmt: skip
    device: str = option("auto", DEVICE)
    precision: Literal["auto", "float32", "float64"] = option("auto", "Arithmetic of the products.")
    strategy: Strategy = option("auto", "How products are taken; chosen by timing if left out.")
    batch_size: int | None = option(None, "Samples a chunk; chosen by timing if left out.", least=1)
    block: int | None = option(None, "Vectors a launch; chosen by timing if left out.", least=1)
    memory: int | None = option(None, MEMORY, least=1, words=parse_bytes, example="6GB", metavar="6GB")
    seed: int = option(0, SEED, least=0)

    def __post_init__(self) -> None:
        check_options(self)


class Curvature:
    """A symmetric operator [n, n] over the flat parameters of a problem, which never holds its matrix.

    `operator @ v` takes a vector [n] or columns [n, b], of PyTorch or NumPy, and gives the same kind back, in the
    operator's dtype. Products are held to differences of gradients before the first one is given.

    Attributes:
        shape: (n, n). dtype, device: of the products. names, sizes: of the parameter tensors along n, in order.
        notes: what to know of this model; tuple of sentences.
    """

    def __init__(self, problem: Problem, kind: Operator, settings: CurvatureSettings) -> None:
        own = next(iter(trainable(problem.model).values())).dtype
        objective = build_objective(
            problem,
            params=settings.params,
            device=resolve_device(settings.device),
            dtype=resolve_dtype(settings.precision, own),
            memory=settings.memory,
        )
        objective, doubts = trusted(objective, kind, settings.seed)
        self._kind, self._seed = kind, settings.seed
        self._product = CurvatureOperator(
            objective,
            kind,
            strategy=settings.strategy,
            batch_size=settings.batch_size,
            block=settings.block,
            memory=settings.memory,
        )
        self.shape = (objective.layout.total, objective.layout.total)
        self.dtype, self.device = objective.dtype, objective.device
        self.names, self.sizes = objective.layout.names, objective.layout.sizes
        self.notes = (*doubts, *self._product.plan.notes)

    def __repr__(self) -> str:
        n, dtype = self.shape[0], str(self.dtype).removeprefix("torch.")
        return f"<{self._kind} {n} x {n}, {dtype} on {self.device}, {self._product.plan.strategy}>"

    def __matmul__(self, vectors: Tensor | np.ndarray) -> Any:
        """The product with a vector [n] or columns [n, b].

        Raises:
            UsageError: of another length, or neither of PyTorch nor of NumPy.
        """
        if not isinstance(vectors, Tensor | np.ndarray) or vectors.ndim not in (1, 2):
            what = f"{vectors.ndim} axes" if isinstance(vectors, Tensor | np.ndarray) else type(vectors).__name__
            raise UsageError(
                f"the operator is applied to {what}", "give a vector [n], or columns [n, b], of PyTorch or NumPy"
            )
        if vectors.shape[0] != self.shape[1]:
            raise UsageError(
                f"the vector has length {vectors.shape[0]}, and the operator {self.shape[1]} parameters",
                "flatten the tensors in the order of `.names`, whose lengths are `.sizes`",
            )
        given = torch.as_tensor(vectors).to(device=self.device, dtype=self.dtype)
        found = self._product(given.detach())
        return found.cpu().numpy() if isinstance(vectors, np.ndarray) else found.to(vectors.device)

    @cached_property
    def error(self) -> float:
        """Norm of the error of a product with a unit vector, measured, with the margin that `spectrum` has."""
        chunk = max(self._product.plan.chunk, 1)
        return product_error(self._product.objective, self._kind, self._seed, chunk, self._product.uncounted)

    def dense(self) -> Tensor:
        """The matrix [n, n], symmetrised, in the operator's dtype and on its device."""
        n, width = self.shape[0], max(self._product.plan.block, 64)
        columns = []
        for start in range(0, n, width):
            unit = torch.zeros(n, min(width, n - start), dtype=self.dtype, device=self.device)
            unit[torch.arange(start, start + unit.shape[1]), torch.arange(unit.shape[1])] = 1
            columns.append(self._product(unit))
        matrix = torch.cat(columns, dim=1)
        return (matrix + matrix.T) / 2

    def to_scipy(self) -> LinearOperator:
        """The same as a `scipy.sparse.linalg.LinearOperator`, for `eigsh`, `cg` and others."""
        from scipy.sparse.linalg import LinearOperator

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return LinearOperator(self.shape, matvec=self._flat, rmatvec=self._flat, matmat=self.__matmul__, dtype=dtype)

    def _flat(self, vector: np.ndarray) -> np.ndarray:
        found: np.ndarray = self @ np.asarray(vector).reshape(-1)
        return found


def hessian(problem: Problem, point: Tensor | Mapping[str, Tensor] | None = None, **settings: Any) -> Curvature:
    """The Hessian of the problem's loss, averaged over its samples, weight decay included.

    For a linear model and mse it is 2 I ⊗ XᵀX / n:

    >>> import torch
    >>> from landscape import Problem, hessian
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> H = hessian(Problem(torch.nn.Linear(1, 1, bias=False), (x, y), "mse"))
    >>> H.shape
    (1, 1)
    >>> H @ torch.ones(1)
    tensor([5.])

    Args:
        problem: model, data and loss; nothing of it is changed.
        point: θ as a flat vector over all trainable parameters, or a state_dict; None: the model as it is.
        settings: see `CurvatureSettings`.

    Raises:
        ProblemError: the model, data or loss cannot be analysed, or its derivatives are wrong. UsageError: a setting
            makes no sense.
    """
    return _made(problem, point, "hessian", settings)


def ggn(problem: Problem, point: Tensor | Mapping[str, Tensor] | None = None, **settings: Any) -> Curvature:
    """As `hessian`, the generalised Gauss–Newton operator Jᵀ H_L J (Schraudolph 2002), weight decay included."""
    return _made(problem, point, "ggn", settings)


def residual(problem: Problem, point: Tensor | Mapping[str, Tensor] | None = None, **settings: Any) -> Curvature:
    """As `hessian`, what the Gauss–Newton operator leaves of it: Σ ∂L/∂f_k ∇²f_k."""
    return _made(problem, point, "residual", settings)


def _made(problem: Problem, point: Any, kind: Operator, settings: Mapping[str, Any]) -> Curvature:
    return Curvature(at_point(problem, point), kind, keyword_settings(CurvatureSettings, settings, kind))
