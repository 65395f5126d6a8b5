"""How wrong one product is: measured on what contributes, and carried into every residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.agreement import FAILURES, PLAIN, SAME, SAME_ULPS, asymmetry
from landscape.curvature.blame import FORWARD
from landscape.curvature.products import builder_of
from landscape.errors import NumericalError, ProblemError
from landscape.linalg.probes import sphere
from landscape.problem.batches import length_of, rechunk
from landscape.problem.last_places import LastPlaces, TransformedError
from landscape.problem.objective import Objective
from landscape.problem.operations import narrowed
from landscape.problem.problem import Batch
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.runtime.memory import release_cached

# All data in at most this many blocks of at least this many samples; the error is measured on some of them: on those
# that contribute most, and on others drawn by what they contribute.
BLOCKS, SAMPLES = 16, 64
LARGEST, DRAWN = 2, 4
# Products that turn a vector towards the largest eigenvectors.
TURNS = 2
# The error of most arithmetic is nearly a linear map of the vector, whose largest direction is chased, while it grows.
CHASES = 4
# Vectors up to this length have this many neighbours, off by this much, whose errors are measured beside theirs.
SHORT, NEIGHBOURS, NEAR = 2_000, 6, 1e-3
# The first vectors that are tried: a random one, and those turned towards either end.
ENDS = 3
# What float64 loses of a random vector, relative to what float32 does: usually eps over eps, 2e-9.
NEGLIGIBLE = 1e-6
# Vectors differ among themselves; four times the largest error seen covers them (tests/test_noise.py). A repetition
# with other last places shows the size of rounding, not its most.
SAFETY = 4.0
# In units of eps · ‖Hv‖: the least that is claimed of arithmetic that is compared with itself only.
FLOAT64_ULPS = 64.0
FALLBACK_ULPS = 256.0

Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Block:
    """Consecutive batches, and what they contribute to the whole: ½ by the size of their product, ½ evenly."""

    first: int
    last: int
    weight: float = 0.0


def product_error(
    objective: Objective, operator: str, seed: int, chunk: int = SAMPLES, way: Way | None = None
) -> float:
    """Error norm of the product of a unit vector, absolute: the largest seen on a few vectors, with a margin.

    The vectors are a random one, since rounding grows with curvature two that products turn towards the largest
    eigenvectors of either sign, and some turned towards the largest error. The error of the whole is at most the sum
    of its blocks' errors: of those that are measured as it is, of the others as it is largest per contribution. Truth
    is float64; float64 itself, and models that do not run in it, are compared with repetitions whose operations are
    off by a last place.

    Args:
        chunk: samples whose graph fits into memory.
        way: products of columns V[n, b] as the job takes them, all data; what they differ from double backward by
            counts, where rounding does not explain it.

    Raises:
        ProblemError: the products are not symmetric beyond this error.
    """
    repeat = objective.dtype == torch.float64
    if objective.at_once is not None:  # in float64 a product takes several times as much as a gradient in float32
        chunk = min(chunk, max(1, objective.at_once // 4))
    while True:
        try:
            return _product_error(objective, operator, seed, max(chunk, 1), repeat, way)
        except FAILURES as error:
            if not is_out_of_memory(error) or (repeat and (chunk <= 1 or not objective.cuttable)):
                raise
        release_cached(objective.device)
        if objective.cuttable and chunk > 1:
            chunk //= 2
        else:  # no memory for float64
            repeat = True


def _product_error(objective: Objective, operator: str, seed: int, chunk: int, repeat: bool, way: Way | None) -> float:
    cut = rechunk(objective.batches, chunk) if objective.cuttable else objective.batches
    whole, generator = objective.sampled(cut), torch.Generator().manual_seed(seed)
    x = sphere(whole.layout.total, 1, generator=generator, dtype=whole.dtype, device=whole.device).T
    blocks = _blocks(cut)
    images = [_product(whole, operator, range(b.first, b.last), x) for b in blocks]
    sizes = [float(i.norm()) for i in images]
    total = sum(sizes) or 1.0
    blocks = [_Block(b.first, b.last, 0.5 * s / total + 0.5 / len(blocks)) for b, s in zip(blocks, sizes, strict=True)]
    decay = objective.weight_decay if operator != "residual" else 0.0
    image = torch.stack(images).sum(0) + decay * x
    chosen = _chosen([b.weight for b in blocks], seed)
    measured = _Measured(whole, operator, [blocks[i] for i in chosen], seed, repeat)
    rest = sum(b.weight for i, b in enumerate(blocks) if i not in chosen)
    scale = float(image.norm())
    tried = measured.tried(x, image / scale) if scale > 0 else x
    errors = measured.errors(tried, rest)
    scale = max(scale, measured.size)
    worst = measured.worst(tried, int(np.argmax(errors)))
    for _ in range(CHASES):
        if worst is None:
            break
        more = measured.errors(worst, rest)
        errors = np.concatenate([errors, more])
        if more[0] <= errors[:-1].max():
            break
        worst = measured.worst(worst)
    # The factor, the product and the sum of decay · v are rounded, each by half of eps.
    accumulated = float(torch.finfo(whole.dtype).eps) * (sum(sizes) + 1.5 * decay)
    seen = float(errors.max())
    error = SAFETY * (seen + measured.lost_in_float64(tried, rest, seen)) + accumulated + measured.floor(scale)
    if not error < float("inf"):
        raise NumericalError(
            "products that differ in rounding only differ without bound: something in the model overflows",
            "`landscape doctor` looks for the layer",
        )
    measured.require_symmetric(tried, error, decay)
    error = float(objective.ranks.total(error))
    if way is not None:
        error += _unexplained(objective, whole, operator, way, tried[:ENDS], torch.stack(images).sum(0), error)
    return error


def _unexplained(
    objective: Objective, whole: Objective, operator: str, way: Way, rows: Tensor, image: Tensor, error: float
) -> float:
    """What products of another way differ by where rounding does not explain it: constants in less precision, such as
    those that torch 2.13's `linearize` makes of complex numbers. `image`: of rows[:1], this process's share."""
    decay = objective.weight_decay if operator != "residual" else 0.0

    def off(rows: Tensor, share: Tensor) -> float:
        plain = objective.ranks.sum(share.clone()) + decay * rows
        return float((way(rows.T).T.double() - plain.double()).norm(dim=1).max())

    if off(rows[:1], image) <= error:
        return 0.0
    return SAFETY * off(rows, _product(whole, operator, range(len(whole.batches)), rows))


def _blocks(batches: Sequence[Batch]) -> list[_Block]:
    """Neighbouring batches together: at most `BLOCKS` of about equal length, `SAMPLES` samples at least."""
    lengths = np.array([max(length_of(b), 1) for b in batches])
    ends = np.cumsum(lengths)
    size = max(SAMPLES, -(-int(ends[-1]) // BLOCKS))
    owner = np.minimum((ends - 1) // size, BLOCKS - 1)
    firsts = np.flatnonzero(np.r_[True, np.diff(owner) > 0])
    return [_Block(int(a), int(b)) for a, b in zip(firsts, np.r_[firsts[1:], len(batches)], strict=True)]


def _chosen(weights: Sequence[float], seed: int) -> list[int]:
    """The blocks that contribute most, and others drawn by what they contribute; all where they are few."""
    if len(weights) <= LARGEST + DRAWN:
        return list(range(len(weights)))
    order = np.argsort(weights)[::-1]
    share = np.array([weights[i] for i in order[LARGEST:]])
    rng = np.random.default_rng(seed)
    drawn = rng.choice(order[LARGEST:], DRAWN, replace=False, p=share / share.sum())
    return sorted(int(i) for i in (*order[:LARGEST], *drawn))


def _product(
    objective: Objective, operator: str, places: Sequence[int], rows: Tensor, inside: LastPlaces | None = None
) -> Tensor:
    """Products of rows [b, n] with some of the batches, divided by the count of all, in the way that is trusted.

    `torch.func` does not bear another dispatch mode (torch 2.13 crashes): forward products are never inside of one.
    """
    way = FORWARD if "reverse" in objective.refused else PLAIN
    total = torch.zeros_like(rows)
    with strict_arithmetic(objective.arithmetic == "tf32"):
        for place in places:
            batch = objective.batches[place]
            try:
                with inside if inside is not None and way == PLAIN else nullcontext():
                    product = builder_of(operator, *way)(objective, batch)
                    parts = product(objective.layout.unflatten(rows))
            except FAILURES as error:  # there is a graph, but it cannot be differentiated again
                if is_out_of_memory(error) or way == FORWARD or isinstance(error, TransformedError):
                    raise
                way = FORWARD
                product = builder_of(operator, *way)(objective, batch)
                parts = product(objective.layout.unflatten(rows))
            total += torch.cat([p.reshape(len(rows), -1) for p in parts], dim=1)
    return total.div_(objective.count)


class _Measured:
    """Products of chosen blocks in the arithmetic of the job, beside better or repeated ones."""

    def __init__(self, whole: Objective, operator: str, blocks: Sequence[_Block], seed: int, repeat: bool) -> None:
        self._operator, self._blocks = operator, blocks
        places = [p for b in blocks for p in range(b.first, b.last)]
        self._own = whole.sampled([whole.batches[p] for p in places])
        self._spans = np.cumsum([0, *(b.last - b.first for b in blocks)])
        self._seed = seed
        self._truth, self._repeated = self._other(repeat)
        self._seen: dict[int, tuple[Tensor, list[Tensor], list[Tensor]]] = {}
        self.size, self._bears = 0.0, True

    def floor(self, scale: float) -> float:
        """The least error that is claimed, for products of this size."""
        if not self._repeated:
            return 0.0
        dtype = self._own.dtype
        ulps = FLOAT64_ULPS if dtype == torch.float64 else FALLBACK_ULPS
        return ulps * float(torch.finfo(dtype).eps) * scale

    def errors(self, rows: Tensor, rest: float) -> np.ndarray:
        """For each row [b, n] the sum of the blocks' errors, with that of the blocks not measured, whose weights sum to
        `rest`."""
        own, other = self._pair(rows)
        self.size = max(self.size, float(torch.stack(own).sum(0).norm(dim=1).max()))
        return self._whole([(a.double() - b.double()).norm(dim=1) for a, b in zip(own, other, strict=True)], rest)

    def _whole(self, errors: list[Tensor], rest: float) -> np.ndarray:
        """The errors of all blocks, from those [b] of each measured one."""
        off = torch.stack(errors)
        weight = torch.tensor([[b.weight] for b in self._blocks], device=off.device)
        return (off.sum(0) + rest * (off / weight).amax(0)).cpu().numpy()

    def lost_in_float64(self, rows: Tensor, rest: float, seen: float) -> float:
        """The error of float64 itself where it is what others are compared with, beside an error that was seen so: both
        lose the 1 − p of a probability that is saturated, so that their difference does not show it."""
        if self._repeated:
            return 0.0
        nudged, rows, right = _nudged(self._truth, self._seed), rows[:ENDS], self._pair(rows)[1]

        def lost(place: int, few: Tensor) -> Tensor:
            again = self._repetition(nudged, self._each()[place], few.to(nudged.dtype))
            off: Tensor = (right[place][: len(few)] - again).norm(dim=1)
            return off

        heaviest = int(np.argmax([b.weight for b in self._blocks]))
        if float(lost(heaviest, rows[:1])) <= NEGLIGIBLE * seen * self._blocks[heaviest].weight:
            return 0.0
        return float(self._whole([lost(place, rows) for place in range(len(self._blocks))], rest).max())

    def tried(self, x: Tensor, image: Tensor) -> Tensor:
        """A random row x, and rows that products have turned towards the largest eigenvectors, from x's image on: v and
        Hv/‖Hv‖ added and subtracted, which parts positive from negative eigenvalues, whose errors may cancel in v.

        Of short ones others too, close by and random: of the few roundings that make up their errors all may be small
        by chance.
        """
        before = vector = image
        for _ in range(TURNS):
            image = torch.stack([_product(self._own, self._operator, span, vector) for span in self._each()]).sum(0)
            length = float(image.norm())
            if not length > 0:
                break
            before, vector = vector, image / length
        rows = [x, *(end / end.norm() for end in (vector - before, vector + before) if float(end.norm()) > 0)]
        if x.numel() <= SHORT:
            noise = torch.Generator().manual_seed(self._seed)
            others = torch.randn(NEIGHBOURS, x.numel(), generator=noise).to(x)
            for end in rows[1:]:
                near = 1 + NEAR * torch.randn(NEIGHBOURS, x.numel(), generator=noise).to(x)
                rows.append(end * near / (end * near).norm(dim=1, keepdim=True))
            rows.append(others / others.norm(dim=1, keepdim=True))
        return torch.cat(rows)

    def worst(self, rows: Tensor, row: int = 0) -> Tensor | None:
        """The direction [1, n] into which the error sends a row: where the error is largest, often."""
        own, other = self._pair(rows)
        off = (torch.stack(own)[:, row : row + 1].double() - torch.stack(other)[:, row : row + 1].double()).sum(0)
        length = float(off.norm())
        return (off / length).to(rows.dtype) if length > 0 else None

    def require_symmetric(self, rows: Tensor, error: float, decay: float) -> None:
        """x·Hy = y·Hx over the measured blocks, up to the errors of both, beside the weight decay that H has too."""
        images = torch.stack(self._pair(rows)[0]).sum(0)
        rows, images = rows[[0, min(2, len(rows) - 1)]], images[[0, min(2, len(rows) - 1)]]
        gap, scale = asymmetry(rows, images), max(float(images.norm(dim=1).max()), decay)
        eps = float(torch.finfo(rows.dtype).eps)
        same = SAME if rows.dtype == torch.float64 else SAME_ULPS * eps
        if gap > 4 * error + same * scale:
            raise ProblemError(
                f"the products are not symmetric: x·Hy and y·Hx differ by {gap / scale:.0e} of a product, and rounding "
                f"explains {error / scale:.0e} of it",
                "`landscape doctor` looks for the layer; --strategy kept and --precision float64 tell more",
            )

    def _pair(self, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        key = id(rows)
        if key not in self._seen:
            own = [_product(self._own, self._operator, span, rows) for span in self._each()]
            there = rows.to(self._truth.dtype)
            other = [self._product_there(span, there) for span in self._each()]
            self._seen[key] = (rows, own, other)  # the rows too, so that no others get their id
        return self._seen[key][1:]

    def _product_there(self, span: range, rows: Tensor) -> Tensor:
        """A product in better arithmetic, or a repetition."""
        if self._repeated:
            return self._repetition(self._truth, span, rows)
        return _product(self._truth, self._operator, span, rows)

    def _repetition(self, nudged: Objective, span: range, rows: Tensor) -> Tensor:
        """With other last places: inside of `torch.func` those of the parameters only."""
        if self._bears:
            try:
                return _product(nudged, self._operator, span, rows, LastPlaces(self._seed))
            except TransformedError:
                self._bears = False
        return _product(nudged, self._operator, span, rows)

    def _each(self) -> list[range]:
        return [range(int(a), int(b)) for a, b in zip(self._spans[:-1], self._spans[1:], strict=True)]

    def _other(self, repeat: bool) -> tuple[Objective, bool]:
        """What to compare with, and whether it is only a repetition."""
        strict = self._own.strict()
        if repeat:
            return _nudged(strict, self._seed), True
        try:
            wide = strict.in_dtype(torch.float64)
            start: Callable[[], object] = wide.value_and_gradient
            start()
            if narrowed(wide)[1]:  # it rounds inside as the job does: their difference would not show it
                return _nudged(strict, self._seed), True
            return wide, False
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            return _nudged(strict, self._seed), True


def _nudged(objective: Objective, seed: int) -> Objective:
    """A copy whose parameters are off by a last place."""
    made = objective.in_dtype(objective.dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters:
            signs = torch.randint(2, parameter.shape, generator=generator).to(parameter) * 2 - 1
            parameter.mul_(1 + float(torch.finfo(parameter.dtype).eps) * signs)
    return made
