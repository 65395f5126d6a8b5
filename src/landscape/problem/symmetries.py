"""Tangents of a network's named symmetries: directions in which the loss cannot change, whatever the data.

Each finder names candidates from the structure of the network and the values of its weights; `zero_modes` keeps those
that the Hessian indeed maps to zero. At a critical point the tangent of a symmetry lies in its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from landscape.problem.layers import Hidden, followed_by, hidden_layers, last_layer
from landscape.problem.parameters import Layout

# A candidate is a zero mode where ‖Hv‖ <= VERIFIED · ‖H‖ for unit v.
VERIFIED = 1e-7
# Input weights closer than this (relative) are one and the same.
SAME = 1e-6
# More candidates than this are not built: GL(h) of a wide linear layer has h² of them.
MOST = 4096


@dataclass(frozen=True)
class Symmetries:
    """What the finders need of a network, apart from its weights: see `symmetries_of`."""

    layout: Layout
    hidden: tuple[Hidden, ...]
    normalised: tuple[str, ...]
    shift: str | None

    @property
    def any(self) -> bool:
        """Whether there can be named zero modes at all."""
        return bool(self.hidden or self.normalised) or self.shift is not None


def symmetries_of(model: nn.Module, layout: Layout, loss: str | None) -> Symmetries:
    """Look at the network's structure once.

    Args:
        model: any module; those that `torch.fx` cannot trace have no named symmetries.
        layout: of the parameters that θ holds.
        loss: name of a built-in loss; cross_entropy does not see a common shift of all logits.
    """
    normalised = tuple(name for name, norm in followed_by(model, (nn.LayerNorm, nn.GroupNorm)))
    shift = last_layer(model) if loss == "cross_entropy" else None
    return Symmetries(layout, hidden_layers(model), normalised, shift)


def zero_modes(
    symmetries: Symmetries,
    theta: Tensor,
    matvec: Callable[[Tensor], Tensor],
    scale: float,
    most: int = MOST,
    left_out: tuple[str, ...] = (),
) -> tuple[Tensor, dict[str, int]]:
    """An orthonormal basis [P, k] of the verified tangents at θ [P], and how many each symmetry adds.

    Args:
        matvec: v [P, b] -> Hv. scale: max |eigenvalue| of H.
        most: symmetries with more candidates than this are left out. left_out: names of symmetries not to look for.
    """
    tensors = dict(zip(symmetries.layout.names, symmetries.layout.unflatten(theta), strict=True))
    basis = theta.new_zeros(len(theta), 0)
    counts: dict[str, int] = {}
    for name, finder in FINDERS.items():
        if name in left_out:
            continue
        candidates = _stacked(symmetries, islice(finder(symmetries, tensors), most + 1), theta)
        if candidates.shape[1] > most:
            continue
        if candidates.shape[1]:
            image = matvec(candidates).norm(dim=0)
            candidates = candidates[:, image <= VERIFIED * scale]
        before = basis.shape[1]
        basis = _extended(basis, candidates)
        if basis.shape[1] > before:
            counts[name] = basis.shape[1] - before
    return basis, counts


Tensors = dict[str, Tensor]
Finder = Callable[[Symmetries, Tensors], Iterator[Tensors]]


def rescaling(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """(w_j, b_j) → c (w_j, b_j), a_j → a_j / c across a positively homogeneous activation."""
    for hidden in symmetries.hidden:
        parts = _parts(hidden, tensors)
        if parts is None or not hidden.homogeneous:
            continue
        incoming, bias, outgoing = parts
        for j in range(len(incoming)):
            tangent = _row(hidden, tensors, j, incoming[j], None if bias is None else bias[j])
            yield tangent | _column(hidden, tensors, j, len(incoming), -outgoing[:, j])


def linear_maps(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """W₁ → (I + εM) W₁, W₂ → W₂ (I − εM) where nothing lies between two layers."""
    for hidden in symmetries.hidden:
        parts = _parts(hidden, tensors)
        if parts is None or not hidden.linear or len(parts[0]) ** 2 > MOST:
            continue
        incoming, bias, outgoing = parts
        for i in range(len(incoming)):
            for j in range(len(incoming)):
                tangent = _row(hidden, tensors, i, incoming[j], None if bias is None else bias[j])
                yield tangent | _column(hidden, tensors, j, len(incoming), -outgoing[:, i])


def dead_units(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """Every weight into and out of a neuron behind ReLU; those of a neuron that never fires are verified by H."""
    for hidden in symmetries.hidden:
        parts = _parts(hidden, tensors)
        if parts is None or nn.ReLU not in hidden.between:
            continue
        incoming, bias, outgoing = parts
        size = incoming.shape[1] + (bias is not None) + outgoing.shape[0] * outgoing.shape[2]
        if len(incoming) * size > MOST:
            continue
        for j in range(len(incoming)):
            for k in range(incoming.shape[1]):
                yield _row(hidden, tensors, j, _unit(incoming[j], k), None)
            if bias is not None:
                yield _row(hidden, tensors, j, torch.zeros_like(incoming[j]), torch.ones_like(bias[j]))
            flat = outgoing[:, j].reshape(-1)
            for k in range(len(flat)):
                yield _column(hidden, tensors, j, len(incoming), _unit(flat, k).reshape(outgoing[:, j].shape))


def duplicated_neurons(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """Output weights moved from one neuron to its twin, for every output."""
    for hidden in symmetries.hidden:
        parts = _parts(hidden, tensors)
        if parts is None:
            continue
        incoming, bias, outgoing = parts
        rows = incoming if bias is None else torch.cat([incoming, bias.unsqueeze(1)], dim=1)
        for i, j in _twins(rows):
            flat = outgoing[:, j].reshape(-1)
            for k in range(len(flat)):
                moved = _unit(flat, k).reshape(outgoing[:, j].shape)
                first = _column(hidden, tensors, i, len(incoming), moved)
                second = _column(hidden, tensors, j, len(incoming), -moved)
                yield {name: first[name] + second[name] for name in first}


def softmax_shift(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """The same vector added to the weights (and bias) of every class."""
    layer = symmetries.shift
    if layer is None:
        return
    prefix = f"{layer}." if layer else ""
    weight, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
    if weight is not None:
        for k in range(weight.shape[1]):
            moved = torch.zeros_like(weight)
            moved[:, k] = 1
            yield {f"{prefix}weight": moved}
    if bias is not None:
        yield {f"{prefix}bias": torch.ones_like(bias)}


def normalisation(symmetries: Symmetries, tensors: Tensors) -> Iterator[Tensors]:
    """A common shift of all neurons, or their common scale, in front of a normalisation."""
    for layer in symmetries.normalised:
        weight, bias = tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.bias")
        if weight is None:
            continue
        yield {f"{layer}.weight": weight} | ({} if bias is None else {f"{layer}.bias": bias})
        flat = weight.reshape(len(weight), -1)
        for k in range(flat.shape[1]):
            moved = torch.zeros_like(flat)
            moved[:, k] = 1
            yield {f"{layer}.weight": moved.reshape(weight.shape)}
        if bias is not None:
            yield {f"{layer}.bias": torch.ones_like(bias)}


FINDERS: dict[str, Finder] = {
    "softmax shift": softmax_shift,
    "duplicated neurons": duplicated_neurons,
    "dead units": dead_units,
    "rescaling": rescaling,
    "linear maps": linear_maps,
    "normalisation": normalisation,
}


def _parts(hidden: Hidden, tensors: Tensors) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """Input weights [h, in], biases [h] and output weights [out, h, k] of a hidden layer; None if one is frozen."""
    incoming, outgoing = tensors.get(f"{hidden.layer}.weight"), tensors.get(f"{hidden.next}.weight")
    if incoming is None or outgoing is None:
        return None
    h = len(incoming)
    if outgoing.shape[1] % h:
        return None
    return incoming.reshape(h, -1), tensors.get(f"{hidden.layer}.bias"), outgoing.reshape(len(outgoing), h, -1)


def neurons(hidden: Hidden, tensors: Tensors) -> tuple[Tensor, Tensor] | None:
    """Input weights with biases [h, in (+ 1)] and output weights [h, out] of a hidden layer; None if one is frozen."""
    parts = _parts(hidden, tensors)
    if parts is None:
        return None
    incoming, bias, outgoing = parts
    rows = incoming if bias is None else torch.cat([incoming, bias.unsqueeze(1)], dim=1)
    return rows, outgoing.movedim(1, 0).flatten(1)


def _row(hidden: Hidden, tensors: Tensors, j: int, weights: Tensor, bias: Tensor | None) -> Tensors:
    """A tangent that moves what comes into neuron j."""
    weight = tensors[f"{hidden.layer}.weight"]
    moved = torch.zeros_like(weight).reshape(len(weight), -1)
    moved[j] = weights
    found = {f"{hidden.layer}.weight": moved.reshape(weight.shape)}
    if bias is not None:
        shifted = torch.zeros_like(tensors[f"{hidden.layer}.bias"])
        shifted[j] = bias
        found[f"{hidden.layer}.bias"] = shifted
    return found


def _column(hidden: Hidden, tensors: Tensors, j: int, neurons: int, weights: Tensor) -> Tensors:
    """A tangent that moves what the next layer reads from neuron j; weights [out, k]."""
    weight = tensors[f"{hidden.next}.weight"]
    moved = torch.zeros_like(weight).reshape(len(weight), neurons, -1)
    moved[:, j] = weights
    return {f"{hidden.next}.weight": moved.reshape(weight.shape)}


def _unit(like: Tensor, k: int) -> Tensor:
    found = torch.zeros_like(like)
    found[k] = 1
    return found


def _twins(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Each neuron with the first one that equals it."""
    sizes = rows.norm(dim=1)
    for j in range(1, len(rows)):
        distance = (rows[:j] - rows[j]).norm(dim=1)
        close = (distance <= SAME * (sizes[:j] + sizes[j]) / 2).nonzero()
        if len(close):
            yield int(close[0]), j


def _stacked(symmetries: Symmetries, tangents: Iterator[Tensors], theta: Tensor) -> Tensor:
    """Tangents as unit columns [P, k]; parts on frozen parameters have no place in θ, such tangents are dropped."""
    layout = symmetries.layout
    columns = []
    for tangent in tangents:
        if not set(tangent) <= set(layout.names):
            continue
        parts = [tangent.get(n, theta.new_zeros(s)) for n, s in zip(layout.names, layout.shapes, strict=True)]
        column = layout.flatten(parts)
        size = float(column.norm())
        if size > 0:
            columns.append(column / size)
    return torch.stack(columns, dim=1) if columns else theta.new_zeros(len(theta), 0)


def _extended(basis: Tensor, columns: Tensor) -> Tensor:
    """An orthonormal basis of both."""
    if not columns.shape[1]:
        return basis
    for _ in range(2):
        columns = columns - basis @ (basis.mT @ columns)
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return torch.cat([basis, left[:, sizes > 1e-6]], dim=1)
