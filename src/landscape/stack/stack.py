"""S networks of one shape as one stack Θ[S, P]: values, gradients, Jacobians and Hessians of all at once.

Every method takes Θ[A, P] of some of the members and `rows` [A], their numbers, so that an optimiser can drop the
members that have finished. Members and samples are taken in chunks that suit the cache and the memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import ProblemError, UsageError
from landscape.problem.batches import length_of, rechunk
from landscape.problem.losses import curved
from landscape.problem.parameters import Layout, trainable
from landscape.problem.problem import Batch, LossFunction
from landscape.problem.user_loss import outputs_of
from landscape.runtime.arithmetic import is_out_of_memory, strict_arithmetic
from landscape.runtime.memory import release_cached, usable_bytes

# What one launch should touch on a CPU, so that it stays in the cache; on a GPU, of the free memory.
CACHE_BYTES = 2**21
# Jacobians of one member at a time.
PIECE_BYTES = 2**23
DEVICE_SHARE = 0.25
# Columns a launch of one network's Hessian; sums of them in two ways differ by this many units of eps.
BLOCK, SAME_ULPS = 32, 1e4
# Live tensors of an activation's size while a gradient, and while a forward-over-reverse product is taken.
LIVE = {"value": 4, "gradient": 8, "product": 24}


@dataclass(frozen=True, eq=False)
class Stack:
    """The objectives L_s(θ_s) of S networks of one architecture over the same inputs.

    Attributes:
        model: their architecture, in eval mode, on the device, in `dtype`; its own numbers are never read.
        loss: `loss(model, batch) -> (sum, count)`; loss_name: of a built-in one, None for a callable.
        batches: the data, shared by all. Where every member has targets of its own, (inputs, name) with the targets
            [S, n, ...] under that name in `others`.
        layout: order and shapes of a member's trainable parameters.
        others: buffers, frozen parameters and own targets by name, [S, ...] each.
        count: Σ counts over all batches.
        weight_decay: coefficient of ½‖θ‖².
        members: S.
        unit_bytes: size of the largest activation of one member and one sample, for choosing chunks.
        limit: bytes the whole process may use; None: a share of what is free.
        own: names of own targets.
        alone: why members go one at a time, as plain networks: what `torch.func.vmap` cannot do with them; empty: they
            are stacked. Their numbers then do pass through `model`.
    """

    model: nn.Module
    loss: LossFunction
    loss_name: str | None
    batches: list[Batch]
    layout: Layout
    others: dict[str, Tensor]
    count: float
    weight_decay: float
    members: int
    unit_bytes: int
    limit: int | None = None
    own: tuple[str, ...] = ()
    alone: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(trainable(self.model).values())).dtype

    @property
    def parameters(self) -> int:
        """P, the length of a member's θ."""
        return self.layout.total

    def values(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """L_s(θ_s) [A]."""

        def chunk(part: Tensor, others: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return self._over_batches(lambda batch: self._totals(part, others, batch))

        return self._chunked(theta, rows, "value", chunk) / self.count + self._penalty(theta)

    def values_and_gradients(self, theta: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L_s [A] and ∇L_s [A, P]."""

        def chunk(part: Tensor, others: dict[str, Tensor]) -> Tensor:
            def one(batch: Batch) -> Tensor:
                if self.alone:
                    return self._each(part, others, lambda mine: self._value_and_slope(batch, mine))
                leaf = part.detach().requires_grad_()
                totals = torch.func.vmap(self._total(batch))(leaf, others)
                slopes = torch.autograd.grad(totals.sum(), leaf, materialize_grads=True)[0]
                return torch.cat([totals.detach().unsqueeze(1), slopes], dim=1)

            return self._over_batches(one)

        found = self._chunked(theta, rows, "gradient", chunk) / self.count
        return found[:, 0] + self._penalty(theta), found[:, 1:] + self.weight_decay * theta

    def hessians(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """∇²L_s [A, P, P], made symmetric."""
        return self.hessians_measured(theta, rows)[0]

    def hessians_measured(self, theta: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """∇²L_s [A, P, P], and the Frobenius norms of what making them symmetric removed [A].

        On a CPU by double backward through a kept graph, column by column for all members of a chunk; on a GPU by
        `vmap(jvp(grad))`, many columns a launch.
        """
        columns = self._columns_forward if self.device.type == "cuda" else self._columns_kept
        columns = self._columns_alone if self.alone else columns

        def chunk(part: Tensor, others: dict[str, Tensor]) -> Tensor:
            return self._over_batches(lambda batch: columns(batch, part, others))

        found = self._chunked(theta, rows, "product", chunk) / self.count
        asymmetry = ((found - found.mT) / 2).flatten(1).norm(dim=1)
        found = (found + found.mT) / 2
        if self.weight_decay:
            found.diagonal(dim1=1, dim2=2).add_(self.weight_decay)
        return found, asymmetry

    def jacobians(self, theta: Tensor, batch: Batch, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs [A, n, O] and their Jacobians [A, n, O, P] on one batch `(inputs, targets)` of n samples."""

        def chunk(part: Tensor, others: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return self._jacobian(part, others, batch[0])

        pairs = [chunk(*piece) for piece in self._pieces(theta, rows, max(1, len(theta)))]
        return torch.cat([z for z, _ in pairs]), torch.cat([j for _, j in pairs])

    def gauss_newton(self, theta: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """L_s [A], ∇L_s [A, P] and the Gauss–Newton matrices Jᵀ ∇²ℓ J / count [A, P, P] of a built-in loss."""
        if not self.least_squares_like:
            raise ProblemError("Gauss–Newton steps need one of the built-in losses and (inputs, targets) data")
        p = self.parameters

        # Samples a piece: of one member, so that sums do not depend on how many members there are.
        each = self.unit_bytes + 24 * p * self.outputs
        samples = max(1, int(PIECE_BYTES // each))

        def chunk(part: Tensor, others: dict[str, Tensor]) -> Tensor:
            out = part.new_zeros(len(part), 1 + p + p * p)
            for inputs, targets in self._samples(others, samples):
                outputs, jacobian = self._jacobian(part, others, inputs)
                total, slope, root = curved(self.loss_name, outputs, targets)
                j = jacobian.flatten(1, 2)
                out[:, 0] += total
                out[:, 1 : 1 + p] += (slope.flatten(1).unsqueeze(1) @ j).squeeze(1)
                scaled = (root @ jacobian).flatten(1, 2) if root is not None else j
                weight = 2.0 if root is None else 1.0
                out[:, 1 + p :] += weight * (scaled.mT @ scaled).flatten(1)
            return out

        members = max(1, int(self._room() // (min(samples, self._longest) * each)))
        found = self._chunked(theta, rows, "gradient", chunk, members) / self.count
        matrix = found[:, 1 + p :].reshape(-1, p, p)
        if self.weight_decay:
            matrix.diagonal(dim1=1, dim2=2).add_(self.weight_decay)
        gradient = found[:, 1 : 1 + p] + self.weight_decay * theta
        return found[:, 0] + self._penalty(theta), gradient, matrix

    def saturation(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """How large entries of H are before they cancel [A]: ‖∂z/∂θ‖²_F / count for the losses of probabilities,
        whose 1 − p is off by eps however small it is; 0 for other losses. Estimated by random signs."""
        if self.loss_name not in ("cross_entropy", "bce") or not self._rows_of_outputs:
            return theta.new_zeros(len(theta))
        generator = torch.Generator().manual_seed(0)

        def signs(batch: Batch) -> Tensor:
            shape = (len(batch[0]), *self._outputs(batch[0][:1]).shape[1:])
            drawn = torch.randint(2, shape, generator=generator)
            return (2 * drawn - 1).to(device=self.device, dtype=self.dtype)

        drawn = [(batch, signs(batch)) for batch in self.batches]

        def chunk(part: Tensor, others: dict[str, Tensor]) -> Tensor:
            total = part.new_zeros(part.shape)
            for batch, sign in drawn:
                if self.alone:

                    def drawn_slope(_: object, inputs: Tensor = batch[0], sign: Tensor = sign) -> Tensor:
                        return _slope((sign * self._outputs(inputs)).sum(), self._leaves)

                    total += self._each(part, others, drawn_slope)
                    continue
                leaf = part.detach().requires_grad_()

                def along(flat: Tensor, mine: dict[str, Tensor], batch: Batch = batch, sign: Tensor = sign) -> Tensor:
                    z: Tensor = self._outputs(batch[0], self.named(flat, mine))
                    return (sign * z).sum()

                sums = torch.func.vmap(along)(leaf, others).sum()
                total += torch.autograd.grad(sums, leaf, materialize_grads=True)[0]
            return total.square().sum(1)

        return self._chunked(theta, rows, "gradient", chunk) / self.count

    def sums(self, leaf: Tensor, others: dict[str, Tensor], batch: Batch) -> Tensor:
        """Loss sums [A] on one of the batches with their graph to `leaf` Θ[A, P]; others: of these members.

        Raises:
            ProblemError: these networks go one at a time.
        """
        if self.alone:
            raise ProblemError(f"these networks cannot be stacked: {self.alone}", "train them one by one")
        found: Tensor = torch.func.vmap(self._total(batch))(leaf, others)
        return found

    def derivatives(self, theta: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """On the first batch, of the first members: loss sums [A], their slopes [A, P], and the second derivatives of
        these along a direction [P], in the way that `hessians` goes."""
        batch, others = self.batches[0], {name: t[: len(theta)] for name, t in self.others.items()}

        def one(mine: dict[str, Tensor]) -> Tensor:
            total = self._sum(batch, mine)
            slope = _slope(total, self._leaves, create_graph=True)
            turned = _slope(slope @ direction, self._leaves)
            return torch.cat([total.detach().reshape(1), slope.detach(), turned])

        if self.alone:
            found = self._each(theta, others, one)
            return found[:, 0], found[:, 1 : 1 + self.parameters], found[:, 1 + self.parameters :]
        leaf = theta.detach().requires_grad_()
        totals = self.sums(leaf, others, batch)
        slopes = torch.autograd.grad(totals.sum(), leaf, create_graph=True, materialize_grads=True)[0]
        if self.device.type == "cuda":
            slope = torch.func.grad(lambda x: self.sums(x, others, batch).sum())
            turned = torch.func.jvp(slope, (theta,), (direction.expand_as(theta),))[1]
        else:
            turned = torch.zeros_like(theta)
            if slopes.requires_grad:
                turned = torch.autograd.grad((slopes @ direction).sum(), leaf, materialize_grads=True)[0]
        return totals.detach(), slopes.detach(), turned

    def member_sum(self, flat: Tensor, row: int, batch: Batch) -> Tensor:
        """The loss sum of θ [P] of member `row` on one of the batches, without `vmap`."""
        others = {name: t[row] for name, t in self.others.items()}
        if self.alone:
            self._load(flat, others)
            return self._sum(batch, others)
        return self._total(batch)(flat, others)

    def minibatch_sums(
        self, leaf: Tensor, others: dict[str, Tensor], inputs: Tensor, targets: Tensor, *, shared: bool
    ) -> Tensor:
        """As `sums`, each member on its own minibatch [A, n, …], or all on inputs [n, …] that are `shared`, with
        targets [n, …], or [A, n, …] if members have their own."""

        def one(flat: Tensor, mine: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._total((x, y))(flat, mine)

        axes = (0, 0, None if shared else 0, None if shared and not self.own else 0)
        found: Tensor = torch.func.vmap(one, in_dims=axes)(leaf, others, inputs, targets)
        return found

    @property
    def least_squares_like(self) -> bool:
        """Whether Gauss–Newton matrices can be made: a built-in loss over pairs of tensors, networks in a stack."""
        return self._rows_of_outputs and not self.alone

    @cached_property
    def _rows_of_outputs(self) -> bool:
        """Whether a built-in loss takes what the network gives for each sample as one vector."""
        parts = Tensor | str if self.own else Tensor
        if self.loss_name is None or not all(
            isinstance(b, tuple | list) and len(b) == 2 and all(isinstance(t, parts) for t in b) for b in self.batches
        ):
            return False
        inputs, targets = self.batches[0]
        outputs = self._outputs(inputs[:1])
        if not (isinstance(outputs, Tensor) and outputs.dim() >= 1):
            return False
        # Class indices of sequences and images are summed over positions, which Jacobians here are not.
        rows = self.own or targets.dim() == 1 or targets.is_floating_point()
        return self.loss_name != "cross_entropy" or (outputs.dim() == 2 and bool(rows))

    @cached_property
    def outputs(self) -> int:
        """Numbers the network gives for one sample."""
        return int(self._outputs(self.batches[0][0][:1]).numel())

    def _outputs(self, inputs: Any, named: dict[str, Tensor] | None = None) -> Any:
        """What the network gives, with its own tensors or with those that are named."""
        if named is None:
            return outputs_of(self.loss, self.model, lambda model: model(inputs))
        return outputs_of(self.loss, self.model, lambda model: torch.func.functional_call(model, named, (inputs,)))

    @property
    def _longest(self) -> int:
        return max(1, max(length_of(b) for b in self.batches))

    def of(self, rows: Tensor) -> Stack:
        """The stack of the members `rows`, in that order; a member may come several times."""
        others = {name: t[rows] for name, t in self.others.items()}
        return replace(self, others=others, members=len(rows))

    # ---- one member, one batch ---------------------------------------------------------------------------------

    def named(self, flat: Tensor, others: dict[str, Tensor]) -> dict[str, Tensor]:
        """Everything that a member's network computes with, by name: θ [P] and its `others`."""
        buffers = {name: t for name, t in others.items() if name not in self.own}
        return dict(zip(self.layout.names, self.layout.unflatten(flat), strict=True)) | buffers

    def _whole(self, batch: Batch, others: dict[str, Tensor]) -> Batch:
        """A batch with the own targets of a member, or of several, in place of their name; a minibatch has them."""
        return (batch[0], others[batch[1]]) if self.own and isinstance(batch[1], str) else batch

    def _samples(self, others: dict[str, Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of at most `size` samples; own targets of the members of `others` [A, n, ...]."""
        if not self.own:
            yield from rechunk(self.batches, size)
            return
        for batch in self.batches:
            inputs, targets = self._whole(batch, others)
            yield from zip(torch.split(inputs, size), torch.split(targets, size, dim=1), strict=True)

    def _total(self, batch: Batch) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
        """(θ [P], others) -> the loss summed over the batch."""
        holder = _Holder(self.model, self.loss)

        def total(flat: Tensor, others: dict[str, Tensor]) -> Tensor:
            named = {f"model.{k}": v for k, v in self.named(flat, others).items()}
            answer: Tensor = torch.func.functional_call(holder, named, (self._whole(batch, others),))
            return answer

        return total

    # ---- members one at a time ---------------------------------------------------------------------------------

    def _load(self, flat: Tensor, others: dict[str, Tensor]) -> None:
        """Put the numbers of one member into the model: what is recomputed in backward reads them there."""
        there = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, numbers in self.named(flat, others).items():
                there[name].copy_(numbers)

    @property
    def _leaves(self) -> list[Tensor]:
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.layout.names]

    def _each(self, part: Tensor, others: dict[str, Tensor], function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """`function` of the others of each member, with its numbers in the model, stacked."""
        found = []
        for i, flat in enumerate(part):
            mine = {name: t[i] for name, t in others.items()}
            self._load(flat, mine)
            found.append(function(mine))
        return torch.stack(found)

    def _sum(self, batch: Batch, mine: dict[str, Tensor]) -> Tensor:
        """The loss sum of the numbers that are in the model."""
        return self.loss(self.model, self._whole(batch, mine))[0]

    def _totals(self, part: Tensor, others: dict[str, Tensor], batch: Batch) -> Tensor:
        """Loss sums [A] of one batch, without graph."""
        if not self.alone:
            found: Tensor = torch.func.vmap(self._total(batch))(part, others)
            return found
        return self._each(part, others, lambda mine: self._sum(batch, mine).to(part.dtype))

    def _value_and_slope(self, batch: Batch, mine: dict[str, Tensor]) -> Tensor:
        total = self._sum(batch, mine)
        return torch.cat([total.detach().to(self.dtype).reshape(1), _slope(total, self._leaves)])

    def _columns_alone(self, batch: Batch, part: Tensor, others: dict[str, Tensor]) -> Tensor:
        """As `_columns_kept`."""

        def columns(mine: dict[str, Tensor]) -> Tensor:
            leaves = self._leaves
            slope = _slope(self._sum(batch, mine), leaves, create_graph=True)
            if not slope.requires_grad:  # the loss is linear in θ
                return slope.new_zeros(len(slope), len(slope))
            basis = torch.eye(len(slope), dtype=slope.dtype, device=slope.device)
            return torch.cat([_turned(slope, leaves, rows) for rows in torch.split(basis, BLOCK)])

        return self._each(part, others, columns)

    def _jacobian(self, part: Tensor, others: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [A, n, O] and Jacobians [A, n, O, P]: reverse mode, sample by sample under vmap."""

        def one(flat: Tensor, mine: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            z = self._outputs(x.unsqueeze(0), self.named(flat, mine)).reshape(-1)
            return z, z

        jacobian = torch.func.jacrev(one, has_aux=True)
        over_samples = torch.func.vmap(jacobian, in_dims=(None, None, 0))
        j, z = torch.func.vmap(over_samples, in_dims=(0, 0, None))(part, others, inputs)
        return z, j

    def _columns_kept(self, batch: Batch, part: Tensor, others: dict[str, Tensor]) -> Tensor:
        leaf = part.detach().requires_grad_()
        total = torch.func.vmap(self._total(batch))(leaf, others).sum()
        slope = torch.autograd.grad(total, leaf, create_graph=True, materialize_grads=True)[0]
        if not slope.requires_grad:  # the loss is linear in θ
            return part.new_zeros(*part.shape, self.parameters)
        columns = [
            torch.autograd.grad(slope[:, j].sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for j in range(self.parameters)
        ]
        return torch.stack(columns, dim=2)

    def _columns_forward(self, batch: Batch, part: Tensor, others: dict[str, Tensor]) -> Tensor:
        total = torch.func.vmap(self._total(batch))
        slope = torch.func.grad(lambda x: total(x, others).sum())

        def column(direction: Tensor) -> Tensor:
            pushed: Tensor = torch.func.jvp(slope, (part,), (direction.expand_as(part),))[1]
            return pushed

        width = self._size(batch, "product", len(part))
        identity = torch.eye(self.parameters, dtype=part.dtype, device=part.device)
        return torch.cat([torch.func.vmap(column)(block) for block in torch.split(identity, width)]).movedim(0, 2)

    def _penalty(self, theta: Tensor) -> Tensor:
        return 0.5 * self.weight_decay * theta.square().sum(1)

    # ---- chunks ------------------------------------------------------------------------------------------------

    def _over_batches(self, function: Callable[[Batch], Tensor]) -> Tensor:
        total = function(self.batches[0])
        for batch in self.batches[1:]:
            total = total + function(batch)
        return total

    def _room(self) -> float:
        """Bytes that one launch may touch."""
        usable = DEVICE_SHARE * usable_bytes(self.device, self.limit)
        return min(usable, 8 * CACHE_BYTES) if self.device.type == "cpu" else usable

    def _size(self, batch: Batch, what: str, members: int = 1) -> int:
        """How many members (or columns of Hessians) suit one launch."""
        samples = max(1, length_of(batch))
        one = members * samples * self.unit_bytes
        usable = usable_bytes(self.device, self.limit)
        if self.device.type == "cpu":
            return max(1, int(min(CACHE_BYTES, usable / LIVE[what]) // one))
        return max(1, int(DEVICE_SHARE * usable / LIVE[what] // one))

    def _pieces(self, theta: Tensor, rows: Tensor | None, size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        index = torch.arange(len(theta), device=theta.device) if rows is None else rows
        for part, numbers in zip(torch.split(theta, size), torch.split(index, size), strict=True):
            yield part, {name: t[numbers] for name, t in self.others.items()}

    def _chunked(
        self,
        theta: Tensor,
        rows: Tensor | None,
        what: str,
        function: Callable[[Tensor, dict[str, Tensor]], Tensor],
        members: int | None = None,
    ) -> Tensor:
        """`function` over chunks of members, smaller ones after running out of memory."""
        size = min(self._size(b, what) for b in self.batches) if members is None else members
        size = max(1, min(size, len(theta)))
        with strict_arithmetic():
            while True:
                try:
                    return torch.cat([function(*piece) for piece in self._pieces(theta, rows, size)])
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise _impossible(error, self.alone) from error
                    if size <= 1:
                        raise UsageError(
                            "not even one network at a time fits into memory", "raise --memory, or take fewer --samples"
                        ) from error
                size //= 2
                release_cached(self.device)  # here, where the traceback has let go of what it held


def _slope(
    total: Tensor, leaves: Sequence[Tensor], create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """∂ total / ∂ leaves as one vector [P]."""
    if not total.requires_grad:
        return torch.cat([leaf.new_zeros(leaf.numel()) for leaf in leaves])
    parts = torch.autograd.grad(
        total, list(leaves), create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return torch.cat([p.reshape(-1) for p in parts])


def _turned(slope: Tensor, leaves: Sequence[Tensor], rows: Tensor) -> Tensor:
    """∂ (row · slope) / ∂ leaves [b, P] of rows [b, P]: in one launch, which pays for networks as small as these,
    unless that fails or has another sum than a launch for that sum."""
    total = _slope(rows.sum(0) @ slope, leaves, retain_graph=True)
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.autograd.grad(
            slope, list(leaves), rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        turned = torch.cat([f.reshape(len(rows), -1) for f in found], dim=1)
        if (turned.sum(0) - total).norm() <= SAME_ULPS * torch.finfo(turned.dtype).eps * turned.norm():
            return turned
    return torch.stack([_slope(row @ slope, leaves, retain_graph=True) for row in rows])


class _Holder(nn.Module):
    """The loss sum of a batch as a module, so that `functional_call` can swap the model's tensors."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)[0]


def _impossible(error: Exception, alone: str) -> Exception:
    """What PyTorch cannot do with the user's network, as an error for the user; ours as they are."""
    if not isinstance(error, RuntimeError | NotImplementedError):
        return error
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    how = f", nor stacked ({alone})" if alone else ""
    return ProblemError(
        f"this network cannot be differentiated twice by itself{how}: {first}",
        "landscape doctor names the layer; landscape spectrum has other ways to take products",
    )
