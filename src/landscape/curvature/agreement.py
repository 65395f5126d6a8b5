"""Whether a way of taking products is right: held to double backward, and both to differences, on a few samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from landscape.curvature.products import builder_of, ggn_slope
from landscape.errors import LandscapeError, NumericalError, ProblemError
from landscape.problem.batches import length_of, split, take
from landscape.problem.graph import fixed_rows, gradients
from landscape.problem.last_places import LastPlaces
from landscape.problem.objective import Objective
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic

# Samples that are compared, from at most this many batches.
SAMPLES, PLACES = 64, 8
# Where samples are large: one in WIDE of those whose gradient fits, since ways in float64 take several times as much.
WIDE, FEWEST = 4, 4
# Batches on which ways are compared: tracing one costs up to a second.
COMPARED = 2
# Two right ways differ by rounding; wrong ones by 1e-3 and more. In float64, where a network may still cast inside.
SAME = 1e-5
# The share by which the sum over a batch and over its pieces may differ, in float64.
SEPARATE = 1e-10
# In units of eps, in the arithmetic of the products themselves.
SAME_ULPS = 1e4
# Steps of the differences relative to ‖θ‖: the first two for smooth losses, smaller ones between kinks, larger ones
# where something computes in less than float64.
STEPS = (1e-5, 1e-7, 1e-8, 1e-3, 1e-2)
# A difference confirms what it meets within this share; it contradicts only what it misses by far more than its own
# doubts: the two sides of the point (which kinks at the point part), two steps, and what one last place of θ changes.
CONFIRMED, PARTED, DOUBT = 1e-3, 1e-3, 1e-2
# What a difference may be off by in units of eps · size / step.
ROUNDING = 100.0
FAILURES = (RuntimeError, NotImplementedError, TypeError, AttributeError, AssertionError, LandscapeError)

# Double backward, anew for every vector.
PLAIN = ("recompute", "reverse", False)
# step -> the difference quotients above and below the point
Sides = Callable[[float], tuple[Tensor, Tensor]]


class RefusedError(Exception):
    """A way whose products are wrong: slower ones are taken, and the reason is told."""


def few(objective: Objective, places: int = PLACES) -> Objective:
    """The sums over a few samples from everywhere in the data, still divided by the count of all; no weight decay."""
    batches = objective.batches
    if not objective.cuttable:
        return objective.sampled(_smallest(batches))
    fitting = SAMPLES if objective.at_once is None else max(FEWEST, objective.at_once // WIDE)
    return objective.sampled(spread(batches, min(SAMPLES, fitting), places))


def spread(batches: Sequence[Batch], samples: int, most: int) -> list[Batch]:
    """About `samples` samples at equal distances, from at most `most` batches."""
    places = [batches[i] for i in torch.linspace(0, len(batches) - 1, min(most, len(batches))).long().tolist()]
    each = -(-samples // len(places))
    picked = []
    for batch in places:
        n = length_of(batch)
        picked.append(batch if n <= each else take(batch, torch.linspace(0, n - 1, each).long()))
    return picked


def _smallest(batches: Sequence[Batch]) -> list[Batch]:
    """A batch that must stay whole: the smallest that is more than half as long as the longest."""
    longest = max(length_of(b) for b in batches)
    return [min((b for b in batches if 2 * length_of(b) > longest or not longest), key=length_of)]


def in_float64(objective: Objective) -> Objective:
    """A copy in float64, whatever arithmetic products are in; a copy in its own where the model runs in no other."""
    strict = objective.strict()
    try:
        wide = strict.in_dtype(torch.float64)
        wide.value_and_gradient()
        return wide
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return strict.in_dtype(strict.dtype)


def require_separable(objective: Objective, size: int, option: str = "--batch-size") -> None:
    """The sum of a batch is that of its pieces of `size` samples: value, count and gradient, in float64.

    Of long batches the first two pieces are looked at, or `SAMPLES`, so that memory does not grow with the data.
    `option`: of the command, which would cut batches.

    Raises:
        ProblemError: samples see each other, as in contrastive losses.
    """
    wide = in_float64(objective.sampled([take(b, slice(0, max(2 * size, SAMPLES))) for b in objective.batches]))
    allowed = SEPARATE if wide.dtype == torch.float64 else SAME_ULPS * float(torch.finfo(wide.dtype).eps)

    def sums(pieces: Sequence[Batch]) -> tuple[Tensor, list[float]]:
        total, counted, lengths = torch.zeros(wide.layout.total + 1, dtype=wide.dtype, device=wide.device), 0.0, 0.0
        for piece in pieces:
            value, count = wide.batch_sum(piece)
            parts = [value.detach().reshape(1), *(g.flatten() for g in gradients(value, wide.parameters))]
            part = torch.cat([t.to(total) for t in parts])
            total, counted, lengths = total + part, counted + count, lengths + float(part.norm())
        return total, [counted, lengths]

    def off(pieces: Sequence[Batch], batch: Batch) -> tuple[float, float]:
        (whole, (count, size_of_it)), (added, (counted, size_of_them)) = sums([batch]), sums(pieces)
        scale = max(size_of_it, size_of_them)
        apart = abs(count - counted) / max(abs(count), abs(counted), 1e-300)
        return max(float((whole - added).norm()) / (scale or 1.0), apart), scale

    for batch in wide.batches:
        pieces = list(split(batch, size))
        if len(pieces) == 1:
            continue
        try:
            with strict_arithmetic():
                gap, scale = off(pieces, batch)
                if gap > allowed:  # a network may cast inside: what other last places change is no coupling
                    plain, moved = sums([batch])[0], 0.0
                    for seed in range(4):
                        with suppress(RuntimeError, NotImplementedError), LastPlaces(seed):
                            moved = max(moved, float((sums([batch])[0] - plain).norm()))
                    gap -= ROUNDING * moved / scale
            reason = f"differs from that of its pieces of {size} by {gap:.0e}" if gap > allowed else ""
        except Exception as error:  # of the user's code, on fewer samples
            if is_out_of_memory(error):
                raise
            reason = f"cannot be had in pieces of {size} ({' '.join(str(error).split())[:120]})"
        if reason:
            raise ProblemError(
                f"the loss of a batch of {length_of(batch)} samples {reason}: its samples see each other",
                f"leave {option} out: then batches stay as your data makes them",
            )


@contextmanager
def filled_memory() -> Iterator[None]:
    """Inside, memory that nothing has written holds NaN: a way that reads it (forward derivatives of circular padding
    and of slices of fresh tensors, torch 2.13) is else as right or wrong as what was there before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # The public function imports PyTorch's compiler first, which takes two seconds.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that have no deterministic algorithm
            yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])


def products(objective: Objective, operator: str, way: tuple[str, str, bool], rows: Tensor) -> Tensor:
    """Products of rows [b, n] with the mean of the objective, in a way (strategy, mode, batched)."""
    width = len(rows) if way[2] else 1
    sums: list[Tensor] = [torch.zeros_like(some) for some in torch.split(rows, width)]
    with strict_arithmetic(objective.arithmetic == "tf32"):
        for batch in objective.batches:
            product = builder_of(operator, *way)(objective, batch)
            for total, some in zip(sums, torch.split(rows, width), strict=True):
                parts = product(objective.layout.unflatten(some))
                total += torch.cat([p.reshape(len(some), -1) for p in parts], dim=1)
    return torch.cat(sums).div_(objective.count)


def unit(n: int, seed: int, like: Tensor) -> Tensor:
    """A random unit vector [n], the same on every device."""
    drawn = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=0).to(like)


class Differences:
    """Difference quotients of a small objective along a direction [n] that leaves rows alone that backward drops.

    Attributes:
        direction, another: unit vectors, zero where a padding row of an embedding would move.
        size: ‖θ‖, or 1; steps are relative to it.
    """

    def __init__(self, objective: Objective, seed: int) -> None:
        self.objective = objective
        self.start = objective.point()
        self.size = float(self.start.norm()) or 1.0
        direction = unit(objective.layout.total, seed, self.start)
        with strict_arithmetic():
            for batch in objective.batches:
                parts = objective.layout.unflatten(direction)
                for index, row in fixed_rows(objective.batch_sum(batch)[0], objective.parameters):
                    parts[index][row] = 0
        self.direction = torch.nn.functional.normalize(direction, dim=0)
        further = unit(objective.layout.total, seed + 1, self.start)
        self.another = torch.nn.functional.normalize(torch.where(direction == 0, 0, further), dim=0)

    def at(self, step: float, function: Callable[[], Tensor]) -> Tensor:
        """A function of the objective at θ + step · direction; θ comes back."""
        return self._moved(self.start + step * self.direction, function)

    def noise(self, function: Callable[[], Tensor]) -> float:
        """How much one last place of every parameter, or of every result on the way, changes a function."""
        eps = torch.finfo(self.start.dtype).eps
        ends = [self._moved(self.start * (1 + s * eps * self.direction.sign()), function) for s in (1, -1)]
        wobbles = [float((ends[0] - ends[1]).norm())]
        for seed in range(2):
            with suppress(RuntimeError, NotImplementedError), LastPlaces(seed):  # torch.func in a loss may not bear it
                wobbles.append(float((function() - (ends[0] + ends[1]) / 2).norm()))
        return max(wobbles)

    def beside(self, function: Callable[[], Tensor]) -> Tensor:
        """A function of the objective where every parameter is off by a last place."""
        return self._moved(self.start * (1 + torch.finfo(self.start.dtype).eps * self.direction.sign()), function)

    def sides(self, function: Callable[[], Tensor], centre: Tensor) -> Sides:
        def both(step: float) -> tuple[Tensor, Tensor]:
            return (self.at(step, function) - centre) / step, (centre - self.at(-step, function)) / step

        return both

    def _moved(self, point: Tensor, function: Callable[[], Tensor]) -> Tensor:
        try:
            _set(self.objective, point)
            return function()
        finally:
            _set(self.objective, self.start)


def _set(objective: Objective, point: Tensor) -> None:
    with torch.no_grad():
        for parameter, values in zip(objective.parameters, objective.layout.unflatten(point), strict=True):
            parameter.copy_(values)


def contradicted(claim: Tensor, sides: Sides, size: float, scale: float, noise: Callable[[], float]) -> bool | None:
    """Whether difference quotients contradict a derivative: False, they confirm it; None, they cannot say.

    A kink at the point parts the two sides, a kink nearby parts two steps: neither is a contradiction.

    Args:
        claim: the derivative. sides: quotients at a step. size: ‖θ‖. scale: of the function itself, for its rounding.
        noise: what one last place of θ changes; asked for only when in doubt.
    """
    eps = float(torch.finfo(claim.dtype).eps)
    tried: list[tuple[float, Tensor, float, float]] = []
    for step in (s * size for s in STEPS if s >= 1e4 * eps):
        try:
            up, down = sides(step)
        except NumericalError:  # the loss overflows there
            continue
        estimate = (up + down) / 2
        gap, length = float((claim - estimate).norm()), max(float(claim.norm()), float(estimate.norm()))
        if gap <= CONFIRMED * length + ROUNDING * eps * scale / step:
            return False
        tried.append((step, estimate, gap, float((up - down).norm())))
    wobble = noise()
    sure = []
    for step, estimate, gap, parted in sorted(tried, key=lambda t: t[0]):
        if wobble / step <= DOUBT * gap and parted <= PARTED * gap + 10 * wobble / step:
            sure.append((estimate, gap))
    if len(sure) < 2:
        return None
    (first, gap), (second, _) = sure[:2]
    return True if float((first - second).norm()) <= DOUBT * gap else None


class Referee:
    """Objections to ways of taking products with one objective and operator; each is looked for once.

    Attributes:
        reverse: why double backward itself is not to be used; empty if it may be.
    """

    def __init__(self, objective: Objective, operator: str) -> None:
        self._whole, self._operator = objective, operator
        self._found: dict[tuple[str, str, bool], str] = {}
        self.reverse = objective.refused.get("reverse", "")

    def objection(self, strategy: str, mode: str, batched: bool) -> str:
        """Why a way is not to be used; empty if nothing is known against it. Float64 products are held to rounding by
        `require`, and only looked into when they differ."""
        if mode == "reverse" and not batched:
            return self.reverse
        return "" if self._whole.dtype == torch.float64 and not self.reverse else self.ruling((strategy, mode, batched))

    def ruling(self, way: tuple[str, str, bool]) -> str:
        """As `objection`, looked into in any arithmetic."""
        if way not in self._found:
            self._found[way] = self._compared(in_float64(few(self._whole, COMPARED)), way)
        return self._found[way]

    def expected(self, batch: Batch, rows: Tensor) -> Tensor | None:
        """The double-backward product of the sum of rows [b, n] with one batch, for `require`; None: there is none."""
        if self.reverse or self._whole.arithmetic != "strict":
            return None
        try:
            return products(self._whole.sampled([batch]), self._operator, PLAIN, rows.sum(0, keepdim=True))[0]
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            return None

    def require(self, way: tuple[str, str, bool], images: Sequence[Tensor], expected: Tensor | None) -> None:
        """The products of random rows, in the arithmetic of the job, add up to what was expected of their sum.

        Raises:
            RefusedError: they do not, and that is not double backward's fault.
        """
        if expected is None:
            return
        found = torch.cat([t.reshape(t.shape[0], -1) for t in images], dim=1) / self._whole.count
        off, scale = float((found.sum(0) - expected).norm()), float(found.norm())
        if off <= SAME_ULPS * float(torch.finfo(found.dtype).eps) * max(scale, float(expected.norm())):
            return
        objection = self.ruling(way)
        if objection or (found.dtype != torch.float64 and not self.reverse):
            raise RefusedError(
                objection or f"it differs from double backward by {off / max(scale, 1e-300):.0e} of a product"
            )

    def _compared(self, small: Objective, way: tuple[str, str, bool]) -> str:
        x = unit(small.layout.total, 0, small.point())
        try:
            first = products(small, self._operator, PLAIN, x[None])
            pair = torch.cat([x[None], torch.nn.functional.normalize(first, dim=1)])
            truth = torch.cat([first, products(small, self._operator, PLAIN, pair[1:])])
        except FAILURES as error:  # the model cannot be differentiated twice in reverse mode
            if is_out_of_memory(error):
                raise
            return self._alone(small, way, x)
        with filled_memory():
            found = products(small, self._operator, way, pair)
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(truth).all()):
            return "it differs from double backward: not finite, or read from memory that nothing has written"
        eps = float(torch.finfo(small.dtype).eps)
        same = SAME if small.dtype == torch.float64 else SAME_ULPS * eps
        slope = float(small.value_and_gradient()[1].norm()) / (float(small.point().norm()) or 1.0)
        scale = max(float(truth.norm(dim=1).max()), float(found.norm(dim=1).max()), SAME * slope)
        off = float((found - truth).norm(dim=1).max()) / (scale or 1.0)
        if off <= same:
            return ""
        said = f"it differs from double backward by {off:.0e} of a product"
        lopsided, wrong = (asymmetry(pair, m) / scale for m in (found, truth))
        if lopsided > same >= wrong:
            return f"{said}, and is not symmetric"
        if small.dtype == torch.float64:
            differences = Differences(small, 1)
            claims = [products(small, self._operator, w, differences.direction[None])[0] for w in (way, PLAIN)]
            guilty, other = (product_contradicted(differences, self._operator, claim) for claim in claims)
            if other and guilty is False:
                self.reverse = f"it differs from {way[0]} by {off:.0e} of a product, and differences of gradients too"
                return ""
            if guilty:
                return f"{said}, and from differences of gradients"
        return said

    def _alone(self, small: Objective, way: tuple[str, str, bool], x: Tensor) -> str:
        differences = Differences(small, 1)
        claim = products(small, self._operator, way, torch.stack([differences.direction, x]))[0]
        return (
            "differences of gradients contradict it" if product_contradicted(differences, self._operator, claim) else ""
        )


def product_contradicted(differences: Differences, operator: str, claim: Tensor) -> bool | None:
    """Whether differences of gradients contradict the product [n] with their direction; None: they cannot say."""
    moving = differences.objective
    parts: list[tuple[float, Callable[[], Tensor]]] = []
    if operator != "ggn":
        parts.append((1.0, lambda: moving.value_and_gradient()[1]))
    if operator != "hessian":
        curved = ggn_slope(moving.in_dtype(moving.dtype), moving)
        parts.append((1.0 if operator == "ggn" else -1.0, curved))

    def slope() -> Tensor:
        with strict_arithmetic():
            return torch.stack([sign * part() for sign, part in parts]).sum(0)

    centre = slope()
    scale = float(moving.value_and_gradient()[1].norm())
    return contradicted(
        claim, differences.sides(slope, centre), differences.size, scale, lambda: differences.noise(slope)
    )


def asymmetry(pair: Tensor, images: Tensor) -> float:
    """|x·Hy − y·Hx| of the rows x, y [2, n] and their products."""
    pair, images = pair.double(), images.double()
    return abs(float(pair[0] @ images[1]) - float(pair[1] @ images[0]))
