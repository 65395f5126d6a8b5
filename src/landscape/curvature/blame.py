"""Whether autograd tells the truth about a loss, and which module is to blame where it does not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.agreement import (
    FAILURES,
    PLAIN,
    SAME,
    SAME_ULPS,
    Differences,
    contradicted,
    product_contradicted,
    products,
)
from landscape.problem.batches import tensors_of
from landscape.problem.copies import copied
from landscape.problem.last_places import LastPlaces
from landscape.problem.objective import Objective
from landscape.problem.parameters import layout_of, trainable
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic

FORWARD = ("recompute", "forward", False)
# Products in float64 whose asymmetry, relative to their size, is below this are symmetric; above it, up to this many
# times what other last places change is rounding.
SYMMETRIC, MARGIN = 1e-11, 30.0
# What is asked of modules alone: they are tried one by one, so the first few that fail are enough.
MOST = 3


@dataclass(frozen=True)
class Truth:
    """What differences and symmetry say of a loss on a few samples.

    Attributes:
        slope: why the gradient is not that of the loss; empty if nothing says so.
        reverse, forward: why products in these modes are wrong; empty if nothing says so, None: they cannot be taken.
        rough: whether kinks or rounding left something undecided.
    """

    slope: str = ""
    reverse: str | None = ""
    forward: str | None = ""
    rough: bool = False

    @property
    def fine(self) -> bool:
        return not (self.slope or self.reverse)


def examined(objective: Objective, operator: str, seed: int) -> Truth:
    """Gradient and products of a small objective against differences; forward mode only where reverse mode fails."""
    differences = Differences(objective, seed)
    value, gradient = objective.value_and_gradient()
    along = (gradient @ differences.direction).reshape(1)
    centre = along.new_tensor([value])

    def loss() -> Tensor:
        return along.new_tensor([objective.value()])

    sides = differences.sides(loss, centre)
    wrong = contradicted(along, sides, differences.size, abs(value), lambda: differences.noise(loss))
    if wrong:
        up, down = sides(1e-5 * differences.size)
        measured = float((up + down) / 2)
        return Truth(slope=f"along a random direction it is {float(along):.4g}, and differences say {measured:.4g}")
    reverse, rough = _of_products(differences, operator, PLAIN)
    forward: str | None = ""
    if reverse or reverse is None:
        forward, rough = _of_products(differences, operator, FORWARD)
    return Truth("", reverse, forward, rough or wrong is None)


def _of_products(differences: Differences, operator: str, way: tuple[str, str, bool]) -> tuple[str | None, bool]:
    """What is wrong with products in a way (None: it cannot take them), and whether differences cannot say."""
    objective, x = differences.objective, differences.direction[None]
    try:
        first = products(objective, operator, way, x)
        pair = torch.cat([x, torch.nn.functional.normalize(first, dim=1), differences.another[None]])
        images = torch.cat([first, products(objective, operator, way, pair[1:])])
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return None, False
    gap, scale = lopsided(pair, images), float(images.norm(dim=1).max())
    slope = float(objective.value_and_gradient()[1].norm()) / differences.size
    unit = max(scale, SAME * slope)
    # A small part of H that is wrong beside large eigenvalues that are right shows in more places than rounding only.
    if gap > SYMMETRIC * unit and gap > _explained(differences, operator, way, pair, images, unit):
        return f"u·Hv and v·Hu differ by {gap / scale:.0e} of a product", False
    wrong = product_contradicted(differences, operator, first[0])
    return ("they are not the derivative of the gradient, as differences show" if wrong else ""), wrong is None


def lopsided(rows: Tensor, images: Tensor) -> float:
    """The largest |x·Hy − y·Hx| of rows x, y [b, n] and their products."""
    table = rows.double() @ images.double().T
    return float((table - table.T).abs().max())


def _explained(
    differences: Differences, operator: str, way: tuple[str, str, bool], pair: Tensor, images: Tensor, unit: float
) -> float:
    """The asymmetry that rounding explains: that of products repeated with other last places, with a margin."""
    objective, eps = differences.objective, float(torch.finfo(images.dtype).eps)
    if images.dtype != torch.float64:
        return SAME_ULPS * eps * unit
    try:
        if way == PLAIN:
            with LastPlaces(0):
                again = products(objective, operator, way, pair)
        else:  # `torch.func` bears no other mode around it
            again = differences.beside(lambda: products(objective, operator, way, pair))
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return SAME * unit
    return MARGIN * float((again - images).norm()) + SYMMETRIC * unit


class _Alone(nn.Module):
    """A module as a function of its parameters and of its floating-point inputs."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.kwargs = module, kwargs
        self.fixed = [None if _is_float(a) else a for a in args]
        self.given = nn.ParameterList([a.detach().clone() for a in args if _is_float(a)])

    def forward(self) -> Any:
        given = iter(self.given)
        return self.module(*(next(given) if a is None else a for a in self.fixed), **self.kwargs)


def _is_float(thing: Any) -> bool:
    return isinstance(thing, Tensor) and thing.is_floating_point()


def _waves(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """A smooth scalar of whatever a module returns."""
    return torch.stack([t.sin().sum() for t in tensors_of(model()) if t.is_floating_point()]).sum(), 1


def blamed(objective: Objective, operator: str, seed: int) -> str:
    """ " because of 'name' (Class)": the innermost modules that fail `examined` alone; else that there is none."""
    caught: dict[str, tuple[nn.Module, Any, Any]] = {}

    def catch(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.setdefault(name, (module, args, kwargs))

    modules = [(n, m) for n, m in objective.model.named_modules() if n]
    handles = [m.register_forward_pre_hook(partial(catch, n), with_kwargs=True) for n, m in modules]
    with strict_arithmetic(), torch.no_grad():
        objective.batch_sum(objective.batches[0])
    for handle in handles:
        handle.remove()
    guilty: list[str] = []
    for name in sorted(caught, key=lambda n: -n.count(".")):
        if len(guilty) < MOST and not any(g.startswith(f"{name}.") for g in guilty) and _fails(objective, caught[name]):
            guilty.append(name)
    if not guilty:
        return ", and no module shows it alone: look at the loss and at the model's own forward"
    words = [f"{name!r} ({type(caught[name][0]).__name__})" for name in guilty]
    return f" because of {', '.join(words)}"


def _fails(objective: Objective, found: tuple[nn.Module, Any, Any]) -> bool:
    module, args, kwargs = found
    try:
        alone = _Alone(copied(module).requires_grad_(), args, kwargs).eval()
        leaves = trainable(alone)
        lone = dataclasses.replace(
            objective, model=alone, loss=_waves, batches=[()], names=tuple(leaves), layout=layout_of(leaves), count=1.0
        )
        return bool(leaves) and not examined(lone, "hessian", 0).fine
    except Exception:  # a module that cannot stand alone proves nothing
        return False
