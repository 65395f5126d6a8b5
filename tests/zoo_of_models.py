"""The model zoo: small networks of every kind that people bring, each with what is right for it.

A name -> a builder of `Animal`. `models_zoo.py` holds the few on which operators are tested in depth; here is breadth:
`zoo_checked.py` takes each of these through every analysis.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations as parametrised
from torch.utils.checkpoint import checkpoint

from landscape.problem.problem import Problem

N, D, T, C = 5, 3, 3, 2


@dataclass(frozen=True)
class Animal:
    """A problem; the same one written out where torch's own derivatives, casts or copies are not to be trusted (its
    parameters in the same order); and words of the refusal, if every analysis has to refuse it."""

    problem: Problem
    truth: Problem | None = None
    refused: str = ""

    @property
    def written_out(self) -> Problem:
        return self.truth or self.problem


class Made(nn.Module):
    """A forward pass as a function, over the parts it is given."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            fresh = isinstance(part, Tensor) and part.is_floating_point() and not isinstance(part, nn.Parameter)
            setattr(self, name, nn.Parameter(part) if fresh else part)

    def forward(self, *given: Any) -> Any:
        return self.run(self, *given)


def weights(*shape: int) -> Tensor:
    return 0.7 * torch.randn(*shape)


def classes(model: nn.Module, *shape: int, x: Tensor | None = None, **more: Any) -> Animal:
    inputs = torch.randn(N, *(shape or (D,))) if x is None else x
    return Animal(Problem(model, (inputs, torch.randint(C, (len(inputs),))), "cross_entropy"), **more)


def squares(model: nn.Module, *shape: int, **more: Any) -> Animal:
    x = torch.randn(N, *(shape or (D,)))
    with torch.no_grad():
        y = torch.randn_like(model.eval()(x).float())
    return Animal(Problem(model, (x, y), "mse"), **more)


def summed(model: nn.Module, loss: Callable[..., Tensor], *batches: Any, **more: Any) -> Animal:
    """A loss of one's own, (model, *batch) -> sum, over whole batches."""

    def total(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        parts = batch.values() if isinstance(batch, dict) else batch
        return loss(model, *parts), len(next(iter(parts)))

    return Animal(Problem(model, list(batches), total), **more)


def headed(body: nn.Module, width: int, run: Callable[..., Tensor] | None = None) -> nn.Module:
    """A body, its outputs averaged over what is not the batch or the last axis, and a linear head."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = run(self.body, x) if run else self.body(x)
        return self.head(out.flatten(1, -2).mean(1) if out.dim() > 2 else out)

    return Made(forward, body=body, head=nn.Linear(width, C))


ZOO: dict[str, Callable[[], Animal]] = {}


def animal(name: str) -> Callable[[Callable[[], Animal]], Callable[[], Animal]]:
    def put(build: Callable[[], Animal]) -> Callable[[], Animal]:
        assert name not in ZOO
        ZOO[name] = build
        return build

    return put


def build(name: str) -> Animal:
    """The animal of that name; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(sum(map(ord, name)))
        return ZOO[name]()


# ---- dense layers and activations ---------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
    "softmax": lambda: nn.Softmax(1),
    "log softmax": lambda: nn.LogSoftmax(1),
    "glu": lambda: nn.Sequential(nn.Linear(D, 2 * D), nn.GLU()),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Tanh()),
}
for _name, _make in ACTIVATIONS.items():
    ZOO[_name] = lambda make=_make: classes(nn.Sequential(nn.Linear(D, D), make(), nn.Linear(D, C)))
ZOO |= {
    "linear": lambda: squares(nn.Linear(D, C)),
    "bilinear": lambda: classes(Made(lambda s, x: s.b(x, torch.tanh(x)), b=nn.Bilinear(D, D, C))),
    "maxout": lambda: classes(
        Made(lambda s, x: s.h(s.a(x).unflatten(1, (D, 2)).amax(2)), a=nn.Linear(D, 2 * D), h=nn.Linear(D, C))
    ),
}


# ---- convolutions and pools ---------------------------------------------------------------------------------------

IMAGE = (1, 4, 4)
for _name, _layer in {
    "conv2d": lambda: nn.Conv2d(1, 2, 3),
    "conv circular": lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
    "conv transposed": lambda: nn.ConvTranspose2d(1, 2, 2),
    "conv depthwise": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 2, groups=2)),
    "max pool": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2)),
    "lp pool": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Softplus(), nn.LPPool2d(2, 2)),
    "adaptive pool": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.AdaptiveAvgPool2d(2)),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(1, 8, 2), nn.PixelShuffle(2)),
    "upsample": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear")),
    "group norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.GroupNorm(2, 2)),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.InstanceNorm2d(2, affine=True)),
    "local response norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.LocalResponseNorm(2)),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)),
    "fold": lambda: nn.Sequential(nn.Unfold(2), nn.Conv1d(4, 2, 1)),
}.items():
    ZOO[_name] = lambda layer=_layer: classes(
        Made(lambda s, x: s.h(torch.tanh(s.b(x)).flatten(2).mean(2)), b=layer(), h=nn.Linear(2, C)), *IMAGE
    )
ZOO["conv1d"] = lambda: classes(nn.Sequential(nn.Conv1d(2, 2, 2), nn.ELU(), nn.Flatten(), nn.Linear(4, C)), 2, T)
ZOO["conv3d"] = lambda: classes(nn.Sequential(nn.Conv3d(1, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, C)), 1, 3, 3, 3)


# ---- normalisations and parametrisations --------------------------------------------------------------------------


@animal("layer norm")
def _() -> Animal:
    return classes(nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, C)))


@animal("rms norm in float32")
def _() -> Animal:
    """As LLaMA has it: part of the forward pass in float32, whatever the rest is in; the truth has no casts."""

    def net(cast: bool) -> nn.Module:
        def run(s: Any, x: Tensor) -> Tensor:
            z = s.a(x)
            wide = z.float() if cast else z
            wide = wide * torch.rsqrt(wide.pow(2).mean(1, keepdim=True) + 1e-6)
            return s.h(s.scale * wide.to(z.dtype))

        return Made(run, a=nn.Linear(D, D), scale=torch.rand(D) + 0.5, h=nn.Linear(D, C))

    made, plain = net(True), net(False)
    plain.load_state_dict(made.state_dict())
    found = classes(made)
    return Animal(found.problem, Problem(plain, found.problem.data, "cross_entropy"))


# What is said of a second derivative that torch itself has wrong.
WRONG_IN_TORCH = "Hessian is not that of this loss|symmetric|contradict|wrong"


class _WeightNorm(nn.Module):
    """Weight norm by its formula: torch 2.13's fused one has a wrong second derivative."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.g = nn.Parameter(layer.weight.detach().norm(dim=1, keepdim=True))
        self.v = nn.Parameter(layer.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)


@animal("weight norm")
def _() -> Animal:
    head, layer = nn.Linear(D, C), nn.Linear(D, D)
    plain = nn.Sequential(_WeightNorm(layer), nn.Tanh(), head)
    found = classes(nn.Sequential(parametrised.weight_norm(layer), nn.Tanh(), head))
    return Animal(found.problem, Problem(plain, found.problem.data, "cross_entropy"), WRONG_IN_TORCH)


@animal("weight norm, old")
def _() -> Animal:
    head, layer = nn.Linear(D, C), nn.Linear(D, D)
    plain = nn.Sequential(_WeightNorm(layer), nn.Tanh(), head)
    found = classes(nn.Sequential(nn.utils.weight_norm(layer), nn.Tanh(), head))
    return Animal(found.problem, Problem(plain, found.problem.data, "cross_entropy"), WRONG_IN_TORCH)


@animal("spectral norm")
def _() -> Animal:
    return classes(nn.Sequential(parametrised.spectral_norm(nn.Linear(D, D)), nn.Tanh(), nn.Linear(D, C)))


@animal("spectral norm, old")
def _() -> Animal:
    layer = nn.utils.spectral_norm(nn.Linear(D, D))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(D, C))
    model(torch.randn(4, D))  # its power iteration leaves a computed weight behind

    def run(s: Any, x: Tensor) -> Tensor:
        sigma = s.u @ s.w @ s.v
        return s.h(torch.tanh(F.linear(x, s.w / sigma, s.b)))

    plain = Made(run, b=layer.bias.detach().clone(), w=layer.weight_orig.detach().clone(), h=model[2])
    plain.register_buffer("u", layer.weight_u.clone())
    plain.register_buffer("v", layer.weight_v.clone())
    found = classes(model)
    return Animal(found.problem, Problem(plain, found.problem.data, "cross_entropy"))


@animal("orthogonal")
def _() -> Animal:
    return classes(nn.Sequential(parametrised.orthogonal(nn.Linear(D, D)), nn.Tanh(), nn.Linear(D, C)))


@animal("cosine similarity")
def _() -> Animal:
    return classes(
        Made(lambda s, x: F.cosine_similarity(s.a(x)[:, None], s.w[None], dim=2), a=nn.Linear(D, D), w=weights(C, D))
    )


# ---- embeddings ---------------------------------------------------------------------------------------------------


def _tokens(*shape: int) -> Tensor:
    return torch.randint(1, 5, shape or (N, T))


ZOO |= {
    "embedding": lambda: classes(headed(nn.Embedding(5, 2), 2), x=_tokens()),
    "embedding padded": lambda: classes(headed(nn.Embedding(5, 2, padding_idx=0), 2), x=_tokens()),
    "embedding bag": lambda: classes(
        Made(lambda s, x: s.h(s.e(x)), e=nn.EmbeddingBag(5, 2), h=nn.Linear(2, C)),
        x=_tokens(),
        refused="_embedding_bag|cannot be differentiated twice",
    ),
    "embedding scaled": lambda: classes(
        headed(nn.Embedding(5, 2, scale_grad_by_freq=True), 2), x=_tokens(), refused="scale_grad_by_freq"
    ),
}


@animal("embedding sparse")
def _() -> Animal:
    sparse, dense = (headed(nn.Embedding(5, 2, sparse=how), 2) for how in (True, False))
    dense.load_state_dict(sparse.state_dict())
    found = classes(sparse, x=_tokens())
    return Animal(found.problem, Problem(dense, found.problem.data, "cross_entropy"))


@animal("tied language model")
def _() -> Animal:
    model = Made(lambda s, x: s.o(torch.tanh(s.m(s.e(x)))), e=nn.Embedding(5, 2), m=nn.Linear(2, 2), o=nn.Linear(2, 5))
    model.o.weight = model.e.weight

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")

    return summed(model, loss, (_tokens(), _tokens()))


# ---- recurrent ----------------------------------------------------------------------------------------------------


def _last(body: Any, x: Tensor) -> Tensor:
    return body(x)[0][:, -1]


ZOO |= {
    "rnn": lambda: classes(headed(nn.RNN(D, 2, batch_first=True), 2, _last), T, D),
    "lstm": lambda: classes(headed(nn.LSTM(D, 2, batch_first=True), 2, _last), T, D),
    "lstm projected": lambda: classes(headed(nn.LSTM(D, 2, proj_size=1, batch_first=True), 1, _last), T, D),
    "gru both ways": lambda: classes(headed(nn.GRU(D, 1, batch_first=True, bidirectional=True), 2, _last), T, D),
}


@animal("lstm packed")
def _() -> Animal:
    def run(body: Any, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % T + 1
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(body(packed)[0], batch_first=True, total_length=T)[0]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum")

    return summed(headed(nn.LSTM(D, 2, batch_first=True), 2, run), loss, (torch.randn(N, T, D), torch.randint(C, (N,))))


@animal("cells in a loop")
def _() -> Animal:
    def run(cell: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 2)
        for t in range(x.shape[1]):
            h = cell(x[:, t], h)
        return h

    return classes(headed(nn.GRUCell(D, 2), 2, run), T, D)


# ---- attention ----------------------------------------------------------------------------------------------------


def _causal() -> Tensor:
    return torch.triu(torch.full((T, T), -torch.inf), 1)


def _attends(run: Callable[..., Tensor]) -> Callable[[], Animal]:
    def attention(s: Any, x: Tensor) -> Tensor:
        q, k, v = s.qkv(x).chunk(3, -1)
        return s.h(run(s, q, k, v).mean(1))

    def made() -> Animal:
        model = Made(attention, qkv=nn.Linear(2, 6), h=nn.Linear(2, C))
        model.register_buffer("mask", _causal())
        return classes(model, T, 2)

    return made


def _written_out(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(2) + s.mask, -1) @ v


def _linear_attention(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kept = torch.cumsum(k.unsqueeze(-1) * v.unsqueeze(-2), 1)
    return (q.unsqueeze(-2) @ kept).squeeze(-2) / (q * torch.cumsum(k, 1)).sum(-1, keepdim=True)


def _rotated(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angle = torch.arange(T, dtype=q.dtype)
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    q, k = (torch.view_as_real(torch.view_as_complex(t.unsqueeze(2).contiguous()) * turn).squeeze(2) for t in (q, k))
    return torch.softmax(q @ k.mT, -1) @ v


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(2, 2, 2, dropout=0.1, batch_first=True, **options)


def _padded(body: Any, x: Tensor) -> Tensor:
    padding = torch.arange(T).expand(len(x), -1) >= 2
    return body(x, src_key_padding_mask=padding)


ZOO |= {
    "attention written out": _attends(_written_out),
    "attention fused": _attends(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "attention fused causal": _attends(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "attention fused masked": _attends(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=s.mask)),
    "attention linear": _attends(_linear_attention),
    "attention rotary": _attends(_rotated),
    "multihead": lambda: classes(
        headed(nn.MultiheadAttention(2, 2, batch_first=True), 2, lambda b, x: b(x, x, x)[0]), T, 2
    ),
    "encoder": lambda: classes(headed(_encoder(norm_first=True), 2), T, 2),
    "encoder padded": lambda: classes(
        headed(nn.TransformerEncoder(_encoder(), 1, enable_nested_tensor=False), 2, _padded), T, 2
    ),
    "decoder": lambda: classes(
        headed(nn.TransformerDecoderLayer(2, 1, 2, dropout=0.0, batch_first=True), 2, lambda b, x: b(x, x)), T, 2
    ),
}


# ---- assignments, scatters, branches ------------------------------------------------------------------------------


def _slices(s: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), C, dtype=x.dtype)
    for k in range(C):
        out[:, k] = torch.tanh(s.a(x)[:, k]) * (k + 1)
    return out


def _in_place(s: Any, x: Tensor) -> Tensor:
    z = s.a(x)
    z += 0.5
    z = torch.sin(z).mul_(2.0)
    z[:, 0] *= s.scale
    return z


def _graph(s: Any, x: Tensor) -> Tensor:
    """Messages along edges, summed where they arrive; attention weights by a softmax over each node's edges."""
    source, target = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([1, 2, 0, 1, 0])
    h = s.a(x)
    score = torch.exp(F.leaky_relu((h[:, source] * h[:, target]).sum(-1), 0.2))
    total = torch.zeros(len(x), T, dtype=x.dtype).index_add(1, target, score)
    messages = h[:, source] * (score / total[:, target]).unsqueeze(-1)
    gathered = torch.zeros_like(h).scatter_add(1, target.view(1, -1, 1).expand_as(messages), messages)
    return s.h(torch.tanh(gathered).mean(1))


def _mixture(s: Any, x: Tensor) -> Tensor:
    gates = torch.softmax(s.gate(x), 1)
    return (gates.unsqueeze(2) * torch.stack([e(x) for e in s.experts], 1)).sum(1)


def _routed(s: Any, x: Tensor) -> Tensor:
    """The best expert only, samples sorted by it."""
    gates, out = torch.softmax(s.gate(x), 1), torch.zeros(len(x), C, dtype=x.dtype)
    for k, expert in enumerate(s.experts):
        chosen = (gates.argmax(1) == k).nonzero().squeeze(1)
        out[chosen] = gates[chosen, k : k + 1] * expert(x[chosen])
    return out


ZOO |= {
    "slices assigned": lambda: squares(Made(_slices, a=nn.Linear(D, C))),
    "in place": lambda: squares(Made(_in_place, a=nn.Linear(D, C), scale=torch.tensor(0.7))),
    "graph attention": lambda: classes(Made(_graph, a=nn.Linear(2, 2), h=nn.Linear(2, C)), T, 2),
    "mixture soft": lambda: classes(
        Made(_mixture, gate=nn.Linear(D, 2), experts=nn.ModuleList(nn.Linear(D, C) for _ in range(2)))
    ),
    "mixture routed": lambda: classes(
        Made(_routed, gate=nn.Linear(D, 2), experts=nn.ModuleList(nn.Linear(D, C) for _ in range(2)))
    ),
    "where": lambda: classes(
        Made(lambda s, x: torch.where(x[:, :1] > 0, s.a(x), s.b(x)), a=nn.Linear(D, C), b=nn.Linear(D, C))
    ),
    "top k": lambda: classes(
        Made(lambda s, x: s.h(torch.tanh(s.a(x)).topk(2, dim=1)[0]), a=nn.Linear(D, D), h=nn.Linear(2, C))
    ),
    "cumulative product": lambda: squares(Made(lambda s, x: torch.cumprod(1 + 0.3 * s.a(x), 1), a=nn.Linear(D, C))),
    "einsum": lambda: squares(
        Made(lambda s, x: torch.einsum("bi,ijk,bk->bj", x, torch.sin(s.w), x), w=weights(D, C, D))
    ),
    "hook": lambda: classes(_hooked()),
}


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
    model[1].register_forward_hook(lambda m, i, o: 2 * o if float(o.detach().abs().max()) < 1e6 else o)
    return model


# ---- complex numbers ----------------------------------------------------------------------------------------------


@animal("fourier layer")
def _() -> Animal:
    def run(s: Any, x: Tensor) -> Tensor:
        return s.h(torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(s.w), n=4, dim=1).tanh())

    return classes(Made(run, w=weights(3, 2), h=nn.Linear(4, C)), 4)


@animal("complex buffer")
def _() -> Animal:
    """A rotation by a complex table, which `nn.Module.double()` would cast to real: the truth has real numbers."""
    phase = torch.rand(D)

    def turned(s: Any, x: Tensor) -> Tensor:
        return s.h((s.a(x) * s.table).real.tanh())

    def plain(s: Any, x: Tensor) -> Tensor:
        return s.h((s.a(x) * s.table).tanh())

    one, other = (Made(run, a=nn.Linear(D, D), h=nn.Linear(D, C)) for run in (turned, plain))
    other.load_state_dict(one.state_dict())
    one.register_buffer("table", torch.polar(torch.ones(D), phase))
    other.register_buffer("table", one.table.real.clone())
    found = classes(one)
    return Animal(found.problem, Problem(other, found.problem.data, "cross_entropy"))


@animal("complex parameter")
def _() -> Animal:
    w = nn.Parameter(torch.randn(D, C, dtype=torch.complex64))
    return squares(Made(lambda s, x: (x.to(s.w.dtype) @ s.w).abs().square(), w=w), refused="is complex")


# ---- implicit layers and linear algebra ---------------------------------------------------------------------------


def _fixed_point(s: Any, x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for _ in range(60):
        new = torch.tanh(0.3 * s.a(z) + x)
        done = float((new - z).detach().abs().max()) < 1e-13
        z = new
        if done:
            break
    return s.h(z)


def _runge_kutta(s: Any, x: Tensor) -> Tensor:
    def field(z: Tensor) -> Tensor:
        return torch.tanh(s.a(z))

    for _ in range(2):
        k1 = field(x)
        k2 = field(x + 0.25 * k1)
        k3 = field(x + 0.25 * k2)
        k4 = field(x + 0.5 * k3)
        x = x + (k1 + 2 * k2 + 2 * k3 + k4) / 12
    return s.h(x)


def _solved(s: Any, x: Tensor) -> Tensor:
    eye = torch.eye(D, dtype=x.dtype)
    return s.h(torch.linalg.solve(eye + s.w @ s.w.T, x.T).T)


def _matrix(function: Callable[[Tensor], Tensor]) -> Callable[[], Animal]:
    return lambda: squares(Made(lambda s, x: s.h(x @ function(0.3 * s.w)), w=weights(D, D), h=nn.Linear(D, C)))


ZOO |= {
    "deep equilibrium": lambda: classes(Made(_fixed_point, a=nn.Linear(D, D), h=nn.Linear(D, C))),
    "neural ode": lambda: classes(Made(_runge_kutta, a=nn.Linear(D, D), h=nn.Linear(D, C))),
    "linear solve": lambda: squares(Made(_solved, w=weights(D, D), h=nn.Linear(D, C))),
    "matrix exponential": _matrix(torch.linalg.matrix_exp),
    "cholesky": _matrix(lambda w: torch.linalg.cholesky(w @ w.T + torch.eye(D, dtype=w.dtype))),
    "eigenvalues": _matrix(lambda w: torch.diag(torch.linalg.eigvalsh(w + w.T))),
}


# ---- derivatives inside -------------------------------------------------------------------------------------------


def _field() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))


@animal("pinn by grad")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_(True)
        u = model(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return (bend + u).square().sum()

    return summed(_field(), loss, (torch.linspace(0, 2, 5).unsqueeze(1),))


@animal("pinn by func")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        def u(t: Tensor) -> Tensor:
            return model(t.unsqueeze(0)).squeeze()

        bend = torch.func.vmap(torch.func.grad(lambda t: torch.func.grad(u)(t).sum()))(x)
        return (bend + model(x)).square().sum()

    return summed(_field(), loss, (torch.linspace(0, 2, 5).unsqueeze(1),))


@animal("forces of an energy")
def _() -> Animal:
    def run(s: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return -torch.autograd.grad(s.e(x).sum(), x, create_graph=True)[0]

    x = torch.randn(N, 2)
    model = Made(run, e=nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1)))
    return Animal(Problem(model, (x, torch.randn(N, 2)), "mse"))


@animal("gradient penalty")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            z = model(x)
            slope = torch.autograd.grad(z.sum(), x, create_graph=True)[0]
            return (z.square().sum(1) + (slope.norm(dim=1) - 1).square()).sum()

    return summed(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), loss, (torch.randn(N, 2),))


# ---- functions of one's own, checkpoints --------------------------------------------------------------------------


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class _Once(_Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


class _Wrong(_Cube):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3.3 * x**2 * grads[0]


class _Straight(_Cube):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (3 * x).round() / 3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _own(kind: Any) -> Callable[..., nn.Module]:
    return lambda: Made(lambda s, x: s.h(kind.apply(s.a(x))), a=nn.Linear(D, D), h=nn.Linear(D, C))


def _checkpointed(reentrant: bool) -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True) if reentrant else x
        return s.h(checkpoint(lambda t: torch.tanh(s.a(t)), x, use_reentrant=reentrant))

    return Made(run, a=nn.Linear(D, D), h=nn.Linear(D, C))


ZOO |= {
    "function": lambda: classes(_own(_Cube)()),
    "function once": lambda: classes(_own(_Once)(), refused="once_differentiable"),
    "function wrong": lambda: classes(_own(_Wrong)(), refused="is not the derivative of this loss|contradict"),
    "straight through": lambda: classes(_own(_Straight)(), refused="is not the derivative of this loss|contradict"),
    "checkpoint": lambda: classes(_checkpointed(False)),
    "checkpoint reentrant": lambda: classes(_checkpointed(True), refused="use_reentrant|reentrant"),
}


# ---- frozen, adapted, generative ----------------------------------------------------------------------------------


@animal("lora")
def _() -> Animal:
    base = nn.Linear(D, D).requires_grad_(False)
    model = Made(lambda s, x: s.h(torch.tanh(s.b(x) + x @ s.low @ s.up)), b=base, low=weights(D, 1), up=weights(1, D), h=nn.Linear(D, C))  # fmt: skip # noqa: E501
    return classes(model)


@animal("frozen half")
def _() -> Animal:
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
    model[0].requires_grad_(False)
    return classes(model)


@animal("variational autoencoder")
def _() -> Animal:
    def loss(model: Any, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = model.e(x).chunk(2, 1)
        found = model.d(mean + torch.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return F.mse_loss(found, x, reduction="sum") + divergence

    model = Made(lambda s, x: s.d(s.e(x).chunk(2, 1)[0]), e=nn.Linear(D, 4), d=nn.Linear(2, D))
    return summed(model, loss, (torch.randn(N, D), torch.randn(N, 2)))


@animal("diffusion")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        level = torch.cos(0.5 * math.pi * time).unsqueeze(1)
        noisy = level * x + (1 - level**2).sqrt() * noise
        return F.mse_loss(model(torch.cat([noisy, time.unsqueeze(1)], 1)), noise, reduction="sum")

    net = nn.Sequential(nn.Linear(D + 1, 3), nn.SiLU(), nn.Linear(3, D))
    return summed(net, loss, (torch.randn(N, D), torch.randn(N, D), torch.rand(N)))


@animal("flow")
def _() -> Animal:
    def loss(model: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        scale, shift = model.n(a).chunk(2, 1)
        z = torch.cat([a, b * torch.exp(torch.tanh(scale)) + shift], 1) @ model.w.T
        volume = torch.tanh(scale).sum() + len(x) * torch.linalg.slogdet(model.w)[1]
        return 0.5 * z.square().sum() - volume

    model = Made(lambda s, x: s.n(x), n=nn.Linear(1, 2), w=torch.eye(2) + 0.3 * torch.randn(2, 2))
    return summed(model, loss, (torch.randn(N, 2),))


@animal("autoregressive masks")
def _() -> Animal:
    model = Made(lambda s, x: F.linear(torch.tanh(F.linear(x, s.a * s.m)), s.b * s.m), a=weights(D, D), b=weights(D, D))
    model.register_buffer("m", torch.tril(torch.ones(D, D)))
    return squares(model)


@animal("hypernetwork")
def _() -> Animal:
    return squares(Made(lambda s, x: (s.n(x).unflatten(1, (C, D)) @ x.unsqueeze(2)).squeeze(2), n=nn.Linear(D, C * D)))


@animal("mixture density")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weight, mean, scale = model(x).chunk(3, 1)
        each = torch.log_softmax(weight, 1) - 0.5 * ((y - mean) / F.softplus(scale)).square() - F.softplus(scale).log()
        return -torch.logsumexp(each, 1).sum()

    return summed(nn.Linear(D, 6), loss, (torch.randn(N, D), torch.randn(N, 1)), (torch.randn(2, D), torch.randn(2, 1)))


@animal("gaussian process")
def _() -> Animal:
    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        z = model(x)
        kernel = torch.exp(-0.5 * (z[:, None] - z[None]).square().sum(2)) + model.noise.exp() * torch.eye(len(x))
        return -torch.distributions.MultivariateNormal(torch.zeros(len(x)), kernel).log_prob(y)

    model = Made(lambda s, x: s.a(x), a=nn.Linear(D, 2), noise=torch.tensor(-1.0))
    return summed(model, loss, (torch.randn(N, D), torch.randn(N)))


@animal("contrastive")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.normalize(model(x), dim=1), F.normalize(model(y), dim=1)
        return F.cross_entropy(4 * a @ b.T, torch.arange(len(x)), reduction="sum")

    return summed(nn.Linear(D, D), loss, (torch.randn(N, D), torch.randn(N, D)))


@animal("connectionist")
def _() -> Animal:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logs = F.log_softmax(model(x), 2).transpose(0, 1)
        sizes = torch.full((len(x),), x.shape[1]), torch.full((len(x),), y.shape[1])
        return F.ctc_loss(logs, y, *sizes, reduction="sum")

    batch = torch.randn(N, 4, 2), torch.randint(1, C + 1, (N, 2))
    return summed(nn.Linear(2, C + 1), loss, batch, refused="ctc_loss")


@animal("triplet")
def _() -> Animal:
    def loss(model: nn.Module, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.triplet_margin_loss(model(a), model(b), model(c), margin=5.0, reduction="sum")

    return summed(nn.Linear(D, 2), loss, tuple(torch.randn(N, D) for _ in range(3)))


@animal("huber and weight decay")
def _() -> Animal:
    found = summed(
        nn.Sequential(nn.Linear(D, 2), nn.Tanh(), nn.Linear(2, 1)),
        lambda model, x, y: F.huber_loss(model(x), y, reduction="sum", delta=10.0),
        (torch.randn(N, D), torch.randn(N, 1)),
    ).problem
    return Animal(Problem(found.model, found.data, found.loss, 0.1))


@animal("policy gradient")
def _() -> Animal:
    def loss(model: nn.Module, batch_x: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        return -(torch.distributions.Categorical(logits=model(batch_x)).log_prob(action) * reward).sum()

    net = nn.Sequential(nn.Linear(D, 2), nn.Tanh(), nn.Linear(2, C))
    return summed(net, loss, {"x": torch.randn(N, D), "action": torch.randint(C, (N,)), "reward": torch.randn(N)})


@animal("poisson")
def _() -> Animal:
    return summed(
        nn.Linear(D, 1),
        lambda model, x, y: F.poisson_nll_loss(model(x), y, reduction="sum"),
        (torch.randn(N, D), torch.randint(4, (N, 1)).float()),
    )


@animal("class weights")
def _() -> Animal:
    weight = torch.tensor([0.5, 2.0])

    def weighed(weight: Tensor) -> Callable[..., Tensor]:
        return lambda model, x, y: F.cross_entropy(model(x), y, weight=weight, reduction="sum")

    batch, net = (torch.randn(N, D), torch.randint(C, (N,))), nn.Linear(D, C)
    return summed(net, weighed(weight), batch, truth=summed(net, weighed(weight.double()), batch).problem)


@animal("table that is no buffer")
def _() -> Animal:
    model, plain = (Made(lambda s, x: s.h(torch.tanh(x @ s.table)), h=nn.Linear(D, C)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    object.__setattr__(model, "table", torch.linspace(-1, 1, D * D).reshape(D, D))
    plain.register_buffer("table", model.table)
    found = classes(model)
    return Animal(found.problem, Problem(plain, found.problem.data, "cross_entropy"))


# ---- arithmetic and wrappers --------------------------------------------------------------------------------------


@animal("bfloat16 weights")
def _() -> Animal:
    return classes(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)).bfloat16())


@animal("half weights")
def _() -> Animal:
    return classes(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)).half())


@animal("float64 weights")
def _() -> Animal:
    return classes(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)).double())


@animal("autocast inside")
def _() -> Animal:
    def run(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            z = s.a(x)
        return s.h(torch.tanh(z.float()).to(x.dtype))

    return classes(Made(run, a=nn.Linear(D, D), h=nn.Linear(D, C)))


@animal("compiled")
def _() -> Animal:
    net = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
    found = classes(net)
    return Animal(Problem(torch.compile(net), found.problem.data, "cross_entropy"), found.problem)


@animal("functional dropout")
def _() -> Animal:
    model = Made(lambda s, x: s.h(F.dropout(s.a(x), 0.5)), a=nn.Linear(D, D), h=nn.Linear(D, C))
    return classes(model, refused="answers differently twice")


@animal("counting buffer")
def _() -> Animal:
    def run(s: Any, x: Tensor) -> Tensor:
        s.calls.add_(1)
        return s.h(x)

    model = Made(run, h=nn.Linear(D, C))
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    return classes(model, refused="changes the buffer")


@animal("cut graph")
def _() -> Animal:
    return classes(Made(lambda s, x: s.h(x).detach(), h=nn.Linear(D, C)), refused="does not depend on")


@animal("renormalised embedding")
def _() -> Animal:
    return classes(headed(nn.Embedding(5, 2, max_norm=0.1), 2), x=_tokens(), refused="changes the parameter")
