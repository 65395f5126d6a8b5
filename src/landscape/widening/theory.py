"""What second order says of neuron splits before they are made: the inner Hessian, and the inertia it foretells.

For a neuron with input weights w (its bias and the scale and shift of a normalisation included), output weights a,
h(w) what the next layer reads of it, and
δ = ∂L/∂h, ε = ∂L/∂z behind the next layer, all at a critical point of the narrow network:

    B = ∇²_w ⟨δ, h(w)⟩        D = ∂²/∂a ∂w ⟨ε, a h(w)⟩

On the directions that only the wide network has, Σμ_i u_i = 0 for the input and Σs_i = 0 for the output weights of the
copies, its Hessian is Σμ_i u_iᵀ B u_i + 2 Σ s_iᵀ D u_i (Fukumizu & Amari 2000; Simsek et al. 2021), and its
inertia adds to that of the narrow network. Both matrices come from hooks and autograd, for any layers and activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.errors import ProblemError
from landscape.problem.layers import Hidden
from landscape.problem.objective import Objective
from landscape.runtime.arithmetic import strict_arithmetic
from landscape.widening.networks import norms_between, width_of

# Predicted eigenvalues within this share of the largest are zero.
TAU = 1e-8


@dataclass(frozen=True)
class Inner:
    """Second order of one neuron.

    Attributes:
        hessian: B [m, m], over its input weights, bias, and the scale and shift of a normalisation behind it.
        mixed: D [q, m], for q output weights.
        eigenvalues: of B, ascending [m].
        input_gradient, output_gradient: ∂L/∂w [m] and ∂L/∂a [q] of the narrow network.
    """

    hessian: Tensor
    mixed: Tensor
    eigenvalues: Tensor
    input_gradient: Tensor
    output_gradient: Tensor


@dataclass(frozen=True)
class Foretold:
    """Inertia that a split adds to the narrow network's.

    Attributes:
        negative, zero: how many eigenvalues below and at zero it adds.
        lowest: of the form on the new directions, in orthonormal coordinates: the wide network's λ_min is at most this.
        direction: of that lowest value, as (u [k, m], s [k, q]).
    """

    negative: int
    zero: int
    lowest: float
    direction: tuple[Tensor, Tensor]


def inner_hessians(objective: Objective, hidden: Hidden) -> list[Inner]:
    """B and D of every neuron at the objective's θ, over all its data.

    Raises:
        ProblemError: the layer's weights are frozen, or it is called several times.
    """
    named = set(objective.names)
    for name in (f"{hidden.layer}.weight", f"{hidden.next}.weight"):
        if name not in named:
            raise ProblemError(f"{name} is frozen or tied to another parameter", "its neurons cannot be split alone")
    with strict_arithmetic():
        curved, mixed, inward, outward = (t / objective.count for t in _sums(objective, hidden))
    found = []
    for j in range(len(curved)):
        b = (curved[j] + curved[j].mT) / 2
        found.append(Inner(b, mixed[j].mT, torch.linalg.eigvalsh(b), inward[j], outward[j]))
    return found


def foretell(inner: Inner, shares: tuple[float, ...], floor: float = 0.0) -> Foretold:
    """The inertia of the form on the new directions, and its lowest direction.

    Args:
        floor: eigenvalues within this of zero are zero, and those within `TAU` of the largest one.
    """
    b, d = inner.hessian, inner.mixed
    m, q, k = len(b), len(d), len(shares)
    mu = torch.tensor(shares, dtype=b.dtype, device=b.device)
    # Orthonormal bases of Σμ_i c_i = 0 and Σ c_i = 0, [k, k − 1] each.
    inputs, outputs = _complement(mu), _complement(torch.ones_like(mu))
    form = b.new_zeros((k - 1) * (m + q), (k - 1) * (m + q))
    n = (k - 1) * m
    form[:n, :n] = _kron(inputs.T @ (mu.unsqueeze(1) * inputs), b)
    form[n:, :n] = _kron(outputs.T @ inputs, d)
    form[:n, n:] = form[n:, :n].T
    eigenvalues, vectors = torch.linalg.eigh(form)
    floor = max(floor, TAU * float(eigenvalues.abs().max()))
    lowest = vectors[:, 0]
    u = inputs @ lowest[:n].reshape(k - 1, m)
    s = outputs @ lowest[n:].reshape(k - 1, q)
    return Foretold(
        int((eigenvalues < -floor).sum()),
        int((eigenvalues.abs() <= floor).sum()),
        float(eigenvalues[0]),
        (u, s),
    )


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of matrices; `torch.kron` (2.13) raises on some strides of length-1 axes."""
    return torch.einsum("ij,kl->ikjl", a, b).reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def _complement(vector: Tensor) -> Tensor:
    """Orthonormal basis [k, k − 1] of the complement of a vector."""
    basis: Tensor = torch.linalg.qr(vector.unsqueeze(1), mode="complete")[0]
    return basis[:, 1:]


def _sums(objective: Objective, hidden: Hidden) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over all data: Bᵀ of every neuron [h, m, m], Dᵀ [h, m, q], ∂L/∂w [h, m] and ∂L/∂a [h, q], as sums.

    h depends on neuron j's input weights only through neuron j, so one double backward of a sum over all neurons gives
    a column for each of them.
    """
    first = objective.model.get_submodule(hidden.layer)
    second = objective.model.get_submodule(hidden.next)
    norms = norms_between(objective.model, hidden, width_of(objective.model, hidden.layer))
    owned = [p for module in (first, *norms) for p in (module.weight, module.bias)]
    into = [p for p in owned if isinstance(p, Tensor) and p.requires_grad]
    weight = second.weight
    assert isinstance(weight, Tensor)
    width = len(into[0])
    totals: list[Tensor] | None = None
    for batch in objective.batches:
        h, z, delta, epsilon = _observed(objective, first, second, batch)
        slope = _rows(torch.autograd.grad((delta * h).sum(), into, create_graph=True), width)
        m = slope.shape[1]
        curved = [_derivative(slope[:, i].sum(), into, width) for i in range(m)]
        outward = torch.autograd.grad((epsilon * z).sum(), weight, create_graph=True)[0]
        by_neuron = outward.reshape(len(weight), width, -1).movedim(1, 0).flatten(1)  # [h, q]
        mixed = [_derivative(by_neuron[:, i].sum(), into, width) for i in range(by_neuron.shape[1])]
        parts = [torch.stack(curved, 2), torch.stack(mixed, 2), slope.detach(), by_neuron.detach()]
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
    assert totals is not None
    return totals[0], totals[1], totals[2], totals[3]


def _observed(
    objective: Objective, first: nn.Module, second: nn.Module, batch: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the second layer reads, h, and gives, z, both with their graph; δ = ∂L/∂h and ε = ∂L/∂z as numbers."""
    kept: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append((arguments[0], output))

    handle = second.register_forward_hook(note)
    try:
        total, _ = objective.batch_sum(batch)
    finally:
        handle.remove()
    if len(kept) != 1:
        raise ProblemError(
            f"the layer behind the split one is called {len(kept)} times in a forward pass",
            "weights that are shared in this way cannot be split neuron by neuron",
        )
    h, z = kept[0]
    delta, epsilon = torch.autograd.grad(total, (h, z), retain_graph=True)
    return h, z, delta.detach(), epsilon.detach()


def _rows(parts: tuple[Tensor, ...], width: int) -> Tensor:
    """Derivatives by the weight and the bias of a layer as [h, m]."""
    return torch.cat([p.reshape(width, -1) for p in parts], dim=1)


def _derivative(value: Tensor, into: list[Tensor], width: int) -> Tensor:
    """∂ value / ∂ (w, b) as [h, m]; zero where nothing depends on them (linear maps)."""
    if not value.requires_grad:
        return torch.zeros(width, sum(p.numel() for p in into) // width, dtype=value.dtype, device=value.device)
    found = torch.autograd.grad(value, into, retain_graph=True, allow_unused=True, materialize_grads=True)
    return _rows(tuple(found), width).detach()
