"""The self-check: gradient, products and symmetry held to differences before certificates; and who needs none."""

from __future__ import annotations

from torch import nn

from landscape.curvature.agreement import FAILURES, few, in_float64
from landscape.curvature.blame import Truth, blamed, examined
from landscape.curvature.products import require_differentiable
from landscape.errors import ProblemError
from landscape.problem.objective import Objective
from landscape.problem.problem import LossFunction, Problem
from landscape.problem.user_loss import CalledLoss
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic

ROUGH = "the self-check could not confirm the products: differences are too rough (kinks, or a loss that is not smooth)"
WRONG_SLOPE = (
    "make its backward the derivative of its forward: take out hooks that replace gradients, straight-through "
    "surrogates and detach()"
)
WRONG_PRODUCT = (
    "write what it computes in plain tensor operations (weight_norm: g * v / v.norm(dim=1, keepdim=True)); "
    "`landscape doctor` shows every check"
)
# Modules whose stacks are tested with this package: no need to try them.
SURE = (
    *(nn.Sequential, nn.Linear, nn.Identity, nn.Flatten, nn.Conv1d, nn.Conv2d),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.ReLU, nn.LeakyReLU),
)


def trusted(objective: Objective, operator: str, seed: int) -> tuple[Objective, list[str]]:
    """The objective, without the mode of differentiation that is wrong for its model, and what the user should know.

    On 64 samples from everywhere in the data, in float64 where the model runs in it: a few gradients and products.

    Raises:
        ProblemError: the gradient is not that of the loss, or no mode has right products; names the module.
    """
    try:
        small = in_float64(few(objective))
        with strict_arithmetic():
            require_differentiable(small.batch_sum(small.batches[0])[0])
        truth = examined(small, operator, seed)
        if not truth.fine:  # a network that sits on many kinks may look so along one direction
            again = examined(small, operator, seed + 1)
            truth = truth if _state(again) == _state(truth) else Truth(rough=True)
    except FAILURES as error:
        if not is_out_of_memory(error):
            raise
        objective.ranks.largest(0.0)
        return objective, ["the self-check was left out: its float64 copy does not fit into memory"]
    # Processes that share the data go the same way, whoever has seen it.
    state = int(objective.ranks.largest(float(_state(truth))))
    if state == 3:
        what = truth.slope or "another process has seen it"
        raise ProblemError(
            f"autograd's gradient is not the derivative of this loss{blamed(small, operator, seed)}: {what}",
            WRONG_SLOPE,
        )
    if state == 2:
        what = truth.reverse or truth.forward or "another process has seen it"
        raise ProblemError(
            f"autograd's Hessian is not that of this loss{blamed(small, operator, seed)}: {what}",
            WRONG_PRODUCT,
        )
    if state == 1:
        why = truth.reverse or "products are wrong on another process's data"
        note = f"refused: double backward: {why}; products are taken in forward mode, which differences confirm"
        return objective.refusing({"reverse": why}), [note]
    return objective, [ROUGH] if truth.rough else []


def certifiable(problem: Problem, objective: Objective, seed: int) -> tuple[str, ...]:
    """That certificates may be made of double backward: `trusted`, where the network or its loss are not ones that this
    package is tested on. What the user should know.

    Raises:
        ProblemError: as `trusted`; or forward mode alone is right.
    """
    if isinstance(problem.loss, str) and is_sure(objective.model, objective.loss):
        return ()
    held, doubts = trusted(objective, "hessian", seed)
    if why := held.refused.get("reverse"):
        raise ProblemError(
            f"double backward, of which certificates are made, is wrong for this model: {why}",
            "landscape spectrum takes its products in forward mode, which differences confirm",
        )
    return tuple(doubts)


def _state(truth: Truth) -> int:
    """0: all is well; 1: forward mode only; 2: no mode is right; 3: not even the gradient is."""
    if truth.slope:
        return 3
    if truth.reverse is None:  # planning says why, if forward mode is not possible either
        return 2 if truth.forward else 0
    if truth.reverse:
        return 1 if truth.forward == "" and not truth.rough else 2
    return 0


def is_sure(model: nn.Module, loss: LossFunction) -> bool:
    """Whether a network under a built-in loss is made of nothing but what this package tests everything on."""
    as_it_is = not (isinstance(loss, CalledLoss) and (loss.recorded or loss.within))
    return as_it_is and all(map(_sure, model.modules()))


def _sure(module: nn.Module) -> bool:
    """Whether a module, without hooks, is one whose stacks are known."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return False
    return type(module) in SURE or type(module).__module__.startswith("landscape.models.")
