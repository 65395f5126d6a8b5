"""Corners of piecewise linear functions: activations that lie on one, and what the loss does on their sides.

Where an input of ReLU is exactly 0, autograd takes the derivative of one side and the Hessian holds there only: both
read 0 for a neuron of zero weights. What the loss does is seen from points beside θ: one-sided first and second
derivatives along random directions, the steepest of what is found there, and the lowest of the Hessians of the sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from landscape.points.certificate import Kinks

# An input within this many units in the last place of the largest one is at the corner.
ULPS = 8.0
# Random directions, and how far along them the sides are looked at, relative to ‖θ‖; a second time nearer.
DIRECTIONS, REACH, NEARER = 8, 1e-6, 8.0
# Differences of gradients that are this many times their rounding are none.
REAL = 100.0
# Times that the lowest direction of a side is followed to the side where it lies.
FOLLOWED = 2
# Numbers of the Hessians of all sides together.
MOST_NUMBERS = 8_000_000

# Products whose terms are as large as their factors together; with `add` in front, one more term comes first.
PRODUCTS = ("mm", "mv", "bmm", "dot", "addmm", "addmv", "baddbmm", "convolution")
# A rule: function, arguments, keywords and result of a call -> how many of its inputs are at a corner.
Rule = Callable[[Any, Any, Any, Any], "Tensor | None"]
# The size of the terms of the sum that is the input of the rule at work; None where it is no sum.
_TERMS: ContextVar[Tensor | None] = ContextVar("terms", default=None)
# Points [m, P] -> L [m] and ∇L [m, P] there; -> ∇²L there [m, P, P].
Around = Callable[[Tensor], tuple[Tensor, Tensor]]
Hessians = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sides:
    """A loss around a point: θ [P], ∇L and rounding of its entries there, V [P, k] -> ∇²L V, and functions of points.

    Attributes:
        largest: max |eigenvalue| of ∇²L. value: L(θ). around: L and ∇L at points. hessians: None where they are too
            large. lowest: unit eigenvector, if known.
    """

    theta: Tensor
    gradient: Tensor
    noise: float
    product: Callable[[Tensor], Tensor]
    largest: float
    value: float
    around: Around
    hessians: Hessians | None = None
    lowest: Tensor | None = None

    def gradients(self, points: Tensor) -> Tensor:
        """∇L at points."""
        return self.around(points)[1]


def piecewise(evaluate: Callable[[], object]) -> bool:
    """Whether a piecewise linear function takes part in what `evaluate` computes."""
    scan = _Scan()
    with scan:
        evaluate()
    return scan.met


def corners(model: nn.Module, evaluate: Callable[[], object]) -> Counter[str]:
    """Activations at a corner, by function and module, in what `evaluate` computes with the model."""
    scan = _Scan()
    with scan, _within(model, scan):
        evaluate()
    return scan.found


def unseen(jumps: bool) -> Counter[str]:
    """What is counted where no operator shows a corner, and ∇L jumps all the same."""
    return Counter({"within the last digits of θ": 1} if jumps else {})


def examine(found: Counter[str], sides: Sides) -> Kinks | None:
    """What the loss does around activations at corners; None if it is as smooth there as its Hessian says.

    Inputs that are zero whatever θ is (padding, samples of zeros) are at a corner and bend nothing.
    """
    if not found:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(DIRECTIONS, len(sides.theta), generator=generator, dtype=torch.float64).to(sides.theta)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    reach = REACH * (float(sides.theta.norm()) or 1.0)
    images = sides.product(drawn.T).T
    far, near = (_bend(sides, drawn, images, length) for length in (reach, reach / NEARER))
    fall = _fall(sides, torch.cat([drawn, -drawn]), reach)
    # Smooth losses bend in proportion to the distance, corners at once.
    floor = REAL * sides.noise * math.sqrt(len(sides.theta)) * NEARER / reach
    if not (fall or bool(((near > far / 2) & (near > floor)).any())):
        return None
    slope, curvature, largest = _lowest(sides, drawn, reach)
    slope = min(slope, -fall / reach)
    named = ", ".join(f"{name}: {count:,}" for name, count in found.most_common(3))
    return Kinks(sum(found.values()), named + (", …" if len(found) > 3 else ""), slope, curvature, largest)


def _bend(sides: Sides, directions: Tensor, images: Tensor, length: float) -> Tensor:
    """‖(∇L(θ + t d) − ∇L)/t − ∇²L d‖ of unit directions d [k, P], with ∇²L d for images."""
    moved = (sides.gradients(sides.theta + length * directions) - sides.gradient) / length
    bent: Tensor = (moved - images).norm(dim=1)
    return bent


def _fall(sides: Sides, directions: Tensor, reach: float) -> float:
    """How far L falls at once beside θ, along unit directions d [k, P]; 0.0 if it does not.

    A step falls as far nearer by, a slope does not.
    """
    far, near = (sides.around(sides.theta + length * directions)[0] for length in (reach, reach / NEARER))
    shaken = sides.around((sides.theta + reach * directions) * (1 + torch.finfo(sides.theta.dtype).eps))[0]
    noise = torch.maximum((shaken - far).abs(), torch.finfo(far.dtype).eps * far.abs())
    falls = sides.value - near
    real = (falls > REAL * noise) & (falls > (sides.value - far) / 2)
    return float(torch.where(real, falls, 0.0).max())


def _lowest(sides: Sides, drawn: Tensor, reach: float) -> tuple[float, float, float]:
    """The lowest one-sided slope, the lowest one-sided curvature without one, and the largest second derivative."""
    steepest = -sides.gradients(sides.theta + reach * drawn)
    candidates = [drawn, -drawn, steepest / steepest.norm(dim=1, keepdim=True).clamp(min=1e-300)]
    if sides.lowest is not None:
        candidates += [sides.lowest.unsqueeze(0), -sides.lowest.unsqueeze(0)]
    slope, curved, largest = math.inf, math.inf, sides.largest
    seeds = drawn
    for turn in range(FOLLOWED + 1):
        if sides.hessians is not None:
            size = max(1, min(len(seeds), MOST_NUMBERS // len(sides.theta) ** 2))
            matrices = sides.hessians(sides.theta + reach * seeds[:size])
            values, vectors = torch.linalg.eigh(torch.nan_to_num(matrices))
            largest = max(largest, float(values.abs().max()))
            candidates += [vectors[:, :, 0], -vectors[:, :, 0]]
        tried = torch.cat(candidates)
        first, second = _one_sided(sides, tried, reach)
        flat = first.abs() <= _blur(sides, largest, reach)
        slope = min(slope, float(torch.where(flat, 0.0, first).min()))
        second = torch.where(flat, second, math.inf)
        curved = min(curved, float(second.min()))
        seeds, candidates = tried[second.argsort()[:DIRECTIONS]], []
        if sides.hessians is None or turn == FOLLOWED:
            break
    return slope, (curved if math.isfinite(curved) else math.nan), largest


def _blur(sides: Sides, largest: float, reach: float) -> float:
    """Slopes up to here are none: rounding, and what a curvature makes of one over a thousandth of the reach."""
    return REAL * sides.noise + 1e-3 * largest * reach


def _one_sided(sides: Sides, directions: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """First and second derivative of t ↦ L(θ + t d) at 0+, of unit directions d [k, P]."""
    whole, half = (
        (sides.gradients(sides.theta + length * directions) * directions).sum(1) for length in (reach, reach / 2)
    )
    return 2 * half - whole, 2 * (whole - half) / reach


@contextmanager
def _within(model: nn.Module, scan: _Scan) -> Iterator[None]:
    """Tell the scan which module is at work."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, inputs: Any, name: str = name) -> None:
            scan.modules.append(name)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            scan.modules.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Scan(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts inputs at the corners of the piecewise linear functions that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.modules: list[str] = []
        self.met = False
        self.terms: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        rule = RULES.get(name)
        floating = bool(args) and isinstance(args[0], Tensor) and not _whole(args[0]) and args[0].numel()
        if floating:
            self._remember(func, name, args, out)
        found = self._judged(rule, func, args, kwargs or {}, out) if rule is not None and floating else None
        if found is not None:
            self.met = True
            at = int(found)
            if at:
                self.found[f"{name} in {self.modules[-1]}" if self.modules and self.modules[-1] else name] += at
        return out

    def _judged(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
        token = _TERMS.set(self.terms.get(args[0]))
        try:
            return rule(func, args, kwargs, out)
        finally:
            _TERMS.reset(token)

    def _remember(self, func: Any, name: str, args: Any, out: Any) -> None:
        """How large the terms are that sums are made of: where they cancel, that is what rounding is a share of."""
        if not isinstance(out, Tensor) or not out.numel():
            return
        if func.is_view or name in ("sum", "mean"):
            known = self.terms.get(args[0])
            if not func.is_view or known is not None:
                self.terms[out] = self._size(args[0])
        elif name in ("add", "sub", "rsub"):
            self.terms[out] = torch.maximum(self._size(args[0]), self._size(args[1]).to(args[0].device))
        elif name in PRODUCTS:
            tensors = [a for a in args if isinstance(a, Tensor) and a.numel()]
            tensors = tensors[1:] + tensors[:1] if name.startswith("add") else tensors
            size = self._size(tensors[0]) * self._size(tensors[1])
            self.terms[out] = torch.maximum(size, self._size(tensors[2])) if len(tensors) > 2 else size

    def _size(self, x: Any) -> Tensor:
        """The rounding of the terms of x, or of x where it is no sum."""
        known: Tensor | None = self.terms.get(x) if isinstance(x, Tensor) else None
        x = torch.as_tensor(x).detach()
        return known if known is not None else x.abs().amax() if x.numel() else x.new_zeros(())


def _whole(x: Tensor) -> bool:
    """Integers and booleans."""
    return not (x.is_floating_point() or x.is_complex())


def _near(x: Tensor, corner: Any, *terms: Tensor) -> Tensor:
    """Entries of x at the corner, within the rounding of x, and of terms whose difference it is."""
    close: Tensor = (x - corner).abs() <= _slack(x, torch.as_tensor(corner, dtype=x.dtype, device=x.device), *terms)
    return close.sum()


def _slack(x: Tensor, *terms: Tensor) -> Tensor:
    """How far rounding may have moved entries of x, and of terms whose difference it is."""
    known = _TERMS.get()
    largest = x.detach().abs().amax()
    for t in terms if known is None else (*terms, known):
        largest = torch.maximum(largest, t.detach().abs().amax().to(largest))
    slack: Tensor = ULPS * torch.finfo(x.dtype).eps * largest
    return slack


def _at(*corners: float) -> Callable[..., Tensor]:
    """Corners at fixed inputs."""
    return lambda func, args, kwargs, out: sum(_near(args[0].detach(), c) for c in corners)  # type: ignore[return-value]


def _given(default: tuple[float, ...] = (), signs: tuple[float, ...] = (1.0,)) -> Callable[..., Tensor]:
    """Corners at the arguments behind the input, or at their defaults."""

    def rule(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
        x = args[0].detach()
        limits = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, int | float | Tensor)]
        limits = limits or list(default)
        total = torch.zeros((), dtype=torch.long, device=x.device)
        for limit in limits:
            corner = limit.detach().to(x) if isinstance(limit, Tensor) else float(limit)
            total = total + sum(_near(x, s * corner) for s in signs)
        return total

    return rule


def _largest(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Ties for an extreme value: whatever else is as large, along the axes or in the window."""
    x = args[0].detach()
    if len(args) > 1 and isinstance(args[1], Tensor):
        return _near(x, args[1].detach())
    values = (out[0] if isinstance(out, tuple | list) else out).detach()
    axes = args[1] if len(args) > 1 else kwargs.get("dim", ())
    axes = [axes] if isinstance(axes, int) else list(axes) or list(range(x.dim()))
    keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    if not keep:
        for axis in sorted(a % x.dim() for a in axes):
            values = values.unsqueeze(axis)
    slack = _slack(x)
    as_large: Tensor = ((x - values).abs() <= slack).sum(axes)
    return (as_large > 1).sum()


def _pooled(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Windows whose largest value comes twice: they are as large without it."""
    x, (values, index) = args[0].detach(), out
    axes = 3 if "3d" in func.overloadpacket.__name__ else 2
    flat = x.flatten(-axes).clone()
    flat.scatter_(-1, index.flatten(-axes), -math.inf)
    again = func(flat.reshape(x.shape), *args[1:], **kwargs)[0]
    slack = _slack(x)
    twice: Tensor = (values.detach() - again).abs() <= slack
    return twice.sum()


def _bounded(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Residuals where a robust loss changes from a parabola to a line."""
    width = float(args[3] if len(args) > 3 else kwargs.get("delta", kwargs.get("beta", 1.0)))
    return _near((args[0] - args[1]).detach().abs(), width, args[0], args[1])


def _argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """An argument of an operator by its name; None where it has none, or it is left out."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
    return None


def _tied(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Neighbours in the order of an axis that could as well be the other way round."""
    x, dim = args[0].detach(), _argument(func, args, kwargs, "dim")
    x, dim = (x.flatten(), 0) if dim is None or not x.dim() else (x, dim)
    slack = _slack(x)
    close: Tensor = x.sort(dim).values.diff(dim=dim) <= slack
    return close.sum()


def _stepping(offset: float = 0.0) -> Callable[..., Tensor | None]:
    """Quotients (by 1, if by nothing) that are whole numbers and this offset."""

    def rule(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
        x, by = args[0].detach(), _argument(func, args, kwargs, "other")
        if func.overloadpacket.__name__.startswith("div") and not _argument(func, args, kwargs, "rounding_mode"):
            return None
        x = (x if by is None else x / by) - offset
        return _near(x, x.detach().round())

    return rule


def _truncated(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
    """Numbers that become integers, where the integer changes."""
    x = args[0].detach()
    return _near(x, x.round()) if _whole(out) else None


def _between(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Numbers at a boundary of bins."""
    bounds = _argument(func, args, kwargs, "boundaries")
    bounds, x = (args[0], args[1]) if bounds is None else (bounds, args[0])
    x = torch.as_tensor(x).detach()
    if bounds.dim() == 1:
        return _near(x.unsqueeze(-1), bounds.to(x))
    return _near(x.unsqueeze(-1), bounds.to(x).unsqueeze(-2))


def _vanished(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Norms and distances of zero; sums of absolute values with a zero in them, and ties for the largest one."""
    order = _argument(func, args, kwargs, "ord") or _argument(func, args, kwargs, "p")
    x = (args[0] - args[1] if func.overloadpacket.__name__ == "dist" else args[0]).detach()
    zero: Tensor = (out.detach() == 0).sum()
    if order is None or 1 < abs(float(order)) < math.inf:
        return zero
    if abs(float(order)) <= 1:
        return _near(x, 0.0)
    axes = _argument(func, args, kwargs, "dim")
    keep = bool(_argument(func, args, kwargs, "keepdim"))
    return torch.maximum(zero, _largest(func, (x.abs(), () if axes is None else axes, keep), {}, out))


def _apart(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Distances of zero, and coordinates in common where a distance is the sum of their differences."""
    if len(args) < 3 or args[2] != 1:
        zero: Tensor = (out.detach() == 0).sum()
        return zero
    coordinates = zip(args[0].detach().unbind(-1), args[1].detach().unbind(-1), strict=True)
    return sum(_near(a.unsqueeze(-1), b.unsqueeze(-2)) for a, b in coordinates)  # type: ignore[return-value]


def _extremes(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Ties for the smallest and for the largest value."""
    axis, keep = kwargs.get("dim"), kwargs.get("keepdim", False)
    where = () if axis is None else axis
    return _largest(func, (args[0], where, keep), {}, out[0]) + _largest(func, (args[0], where, keep), {}, out[1])


def _by_margin(func: Any, args: Any, kwargs: Any, out: Any) -> Tensor:
    """Outputs below that of the label by exactly the margin."""
    x, y = args[0].detach(), args[1]
    behind = x.gather(-1, y.unsqueeze(-1)) - x
    return _near(behind, float(_argument(func, args, kwargs, "margin")), x)


# Piecewise linear functions, steps and choices, and those whose second derivative jumps, by their name in ATen. A rule
# says None where nothing bends.
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("relu", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "abs", "elu", "celu", "selu", "sgn", "sign"),
        _at(0.0),
    ),
    **dict.fromkeys(("hardsigmoid", "hardswish"), _at(-3.0, 3.0)),
    "threshold": lambda func, args, kwargs, out: _near(args[0].detach(), float(args[1])),
    "hardtanh": _given((-1.0, 1.0)),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin"), _given()),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _given()),
    **dict.fromkeys(("heaviside", "signbit", "angle"), _at(0.0)),
    "copysign": lambda func, args, kwargs, out: _near(torch.as_tensor(args[1]).detach(), 0.0),
    **dict.fromkeys(("floor", "ceil", "trunc", "frac", "fmod", "remainder", "floor_divide", "div"), _stepping()),
    "round": _stepping(0.5),
    "_to_copy": _truncated,
    **dict.fromkeys(("bucketize", "searchsorted"), _between),
    **dict.fromkeys(
        ("sort", "topk", "kthvalue", "median", "nanmedian", "mode", "argmax", "argmin", "cummax", "cummin"), _tied
    ),
    **dict.fromkeys(("softshrink", "hardshrink"), _given((0.5,), (-1.0, 1.0))),
    **dict.fromkeys(("max", "min", "amax", "amin"), _largest),
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"), _pooled
    ),
    **dict.fromkeys(("huber_loss", "smooth_l1_loss"), _bounded),
    **dict.fromkeys(("linalg_vector_norm", "norm", "dist"), _vanished),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _apart),
    "aminmax": _extremes,
    "multi_margin_loss": _by_margin,
}
