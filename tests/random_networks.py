"""Architectures of the random problems: small networks of every kind that trained checkpoints come from.

Each maker takes a generator and the number of outputs, and returns a network with the shape of one input; token
networks take class indices below `TOKENS`. Nothing here is shared with the models that other tests use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = 7


class Network(NamedTuple):
    """A model and what it reads."""

    model: nn.Module
    shape: tuple[int, ...]
    tokens: bool = False


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Sigmoid, nn.LeakyReLU, nn.Mish, nn.Hardtanh,
    nn.Softsign, Sine, Erf,
)  # fmt: skip
Maker = Callable[[np.random.Generator, int], Network]


def _any_of(rng: np.random.Generator, choices: tuple[Callable[[], nn.Module], ...] = ACTIVATIONS) -> nn.Module:
    return choices[int(rng.integers(len(choices)))]()


def _size(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def linear(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 1, 12)
    layer = nn.Linear(d, outputs, bias=bool(rng.random() < 0.7))
    return Network(nn.Sequential(layer) if rng.random() < 0.5 else layer, (d,))


def mlp(rng: np.random.Generator, outputs: int) -> Network:
    """One to three hidden layers; one activation throughout."""
    d, width, depth = _size(rng, 2, 8), _size(rng, 1, 9), _size(rng, 1, 3)
    kind = ACTIVATIONS[int(rng.integers(len(ACTIVATIONS)))]
    layers: list[nn.Module] = [nn.Linear(d, width), kind()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), kind()]
    return Network(nn.Sequential(*layers, nn.Linear(width, outputs)), (d,))


def deep_linear(rng: np.random.Generator, outputs: int) -> Network:
    d, width = _size(rng, 2, 6), _size(rng, 1, 6)
    middle = [nn.Linear(width, width, bias=False) for _ in range(_size(rng, 0, 2))]
    return Network(nn.Sequential(nn.Linear(d, width, bias=False), *middle, nn.Linear(width, outputs, bias=False)), (d,))


class Tied(nn.Module):
    """Encoder and decoder share one matrix; a head reads the reconstruction."""

    def __init__(self, d: int, width: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(d, width)
        self.shared = self.encoder.weight
        self.activation, self.head = activation, nn.Linear(d, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.encoder(x)) @ self.shared)


def tied(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Tied(d, _size(rng, 2, 5), outputs, _any_of(rng)), (d,))


class Repeated(nn.Module):
    """One layer used several times, as in recurrent and equilibrium networks."""

    def __init__(self, d: int, outputs: int, times: int, activation: nn.Module) -> None:
        super().__init__()
        self.cell, self.head, self.times, self.activation = nn.Linear(d, d), nn.Linear(d, outputs), times, activation

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(self.times):
            h = self.activation(self.cell(h)) + 0.5 * x
        return self.head(h)


def repeated(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 7)
    return Network(Repeated(d, outputs, _size(rng, 2, 4), _any_of(rng)), (d,))


class Residual(nn.Module):
    """Pre-norm residual blocks."""

    def __init__(self, d: int, outputs: int, norm: Callable[[int], nn.Module], activation: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(d) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.activation, self.head = activation, nn.Linear(d, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + self.activation(block(norm(x)))
        return self.head(x)


def _batch_norm(d: int) -> nn.Module:
    """With statistics as training leaves them; in eval mode they are constants."""
    norm = nn.BatchNorm1d(d)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3.0)
    return norm


def normalised(rng: np.random.Generator, outputs: int) -> Network:
    d = 2 * _size(rng, 1, 3)
    norms: tuple[Callable[[int], nn.Module], ...] = (
        nn.LayerNorm, nn.RMSNorm, _batch_norm, lambda n: nn.GroupNorm(2, n), nn.Identity,
    )  # fmt: skip
    return Network(Residual(d, outputs, norms[int(rng.integers(len(norms)))], _any_of(rng)), (d,))


class Gated(nn.Module):
    """Experts mixed by a softmax gate, or one branch gated by the sigmoid of another."""

    def __init__(self, d: int, width: int, outputs: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d, experts if experts else width)
        self.branches = nn.ModuleList(nn.Linear(d, width) for _ in range(max(experts, 1)))
        self.head, self.experts = nn.Linear(width, outputs), experts

    def forward(self, x: Tensor) -> Tensor:
        if not self.experts:
            return self.head(torch.sigmoid(self.gate(x)) * self.branches[0](x))
        hidden = torch.stack([torch.tanh(b(x)) for b in self.branches], dim=-1)
        return self.head((hidden * torch.softmax(self.gate(x), -1)[:, None, :]).sum(-1))


def gated(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Gated(d, _size(rng, 2, 5), outputs, _size(rng, 0, 3)), (d,))


class Radial(nn.Module):
    """Gaussian bumps around learnt centres with learnt widths."""

    def __init__(self, d: int, bumps: int, outputs: int) -> None:
        super().__init__()
        self.centre, self.log_width = nn.Parameter(torch.randn(bumps, d)), nn.Parameter(torch.zeros(bumps))
        self.head = nn.Linear(bumps, outputs)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, None, :] - self.centre).square().sum(-1)
        return self.head(torch.exp(-distance * torch.exp(-2 * self.log_width)))


def radial(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 1, 5)
    return Network(Radial(d, _size(rng, 2, 6), outputs), (d,))


class Rotated(nn.Module):
    """A Cayley transform before a network with normalised rows: inverses and norms of parameters."""

    def __init__(self, d: int, outputs: int) -> None:
        super().__init__()
        self.skew, self.rows = nn.Parameter(0.3 * torch.randn(d, d)), nn.Parameter(torch.randn(outputs, d))
        self.gain = nn.Parameter(torch.ones(outputs))
        self.register_buffer("eye", torch.eye(d))

    def forward(self, x: Tensor) -> Tensor:
        a = self.skew - self.skew.T
        turned = torch.tanh(torch.linalg.solve(self.eye + a, (self.eye - a) @ x.T).T)
        return turned @ (self.gain[:, None] * self.rows / self.rows.norm(dim=1, keepdim=True)).T


def rotated(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Rotated(d, outputs), (d,))


class Spectral(nn.Module):
    """A fixed complex filter in Fourier space between two real layers."""

    def __init__(self, d: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(d, width), nn.Linear(width, outputs)
        self.register_buffer("response", torch.randn(width // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.irfft(torch.fft.rfft(torch.tanh(self.first(x))) * self.response, n=self.first.out_features)
        return self.head(h)


def fourier(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Spectral(d, 2 * _size(rng, 2, 3), outputs), (d,))


class Filled(nn.Module):
    """A state that is filled slice by slice, as simulation and decoding loops write."""

    def __init__(self, d: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(d, width), nn.Linear(d, width), nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        width = self.first.out_features
        state = x.new_zeros(len(x), 2 * width)
        state[:, :width] = torch.tanh(self.first(x))
        state[:, width:] = torch.sigmoid(self.second(x)) * state[:, :width].clone()
        return self.head(state)


def filled(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Filled(d, _size(rng, 2, 5), outputs), (d,))


class Cast(nn.Module):
    """A float32 detour within, as mixed-precision code has it; `casts` False is the function that is meant."""

    def __init__(self, d: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.head, self.casts = nn.Linear(d, width), nn.Linear(width, outputs), True

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(torch.tanh(h.float() if self.casts else h).to(h.dtype))


def cast(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 6)
    return Network(Cast(d, _size(rng, 2, 6), outputs), (d,))


class Paired(nn.Module):
    """`Bilinear` over two halves of the input."""

    def __init__(self, d: int, outputs: int) -> None:
        super().__init__()
        self.d, self.form, self.head = d, nn.Bilinear(d, d, 3), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.form(x[:, : self.d].contiguous(), x[:, self.d :].contiguous())))


def bilinear(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 1, 4)
    return Network(Paired(d, outputs), (2 * d,))


def frozen(rng: np.random.Generator, outputs: int) -> Network:
    """A network whose first layer is not trained; dropout, which eval mode switches off."""
    d, width = _size(rng, 2, 6), _size(rng, 3, 8)
    model = nn.Sequential(nn.Linear(d, width), _any_of(rng), nn.Dropout(0.4), nn.Linear(width, outputs))
    for p in model[0].parameters():
        p.requires_grad_(False)
    return Network(model, (d,))


def images(rng: np.random.Generator, outputs: int) -> Network:
    """Convolution, normalisation, activation, pool, head: two dimensions."""
    channels, kept = _size(rng, 1, 2), 2 * _size(rng, 1, 2)
    mode = ("zeros", "zeros", "circular", "reflect")[int(rng.integers(4))]
    conv = nn.Conv2d(channels, kept, 3, padding=1, stride=_size(rng, 1, 2), padding_mode=mode)
    norm = (nn.Identity(), nn.GroupNorm(2, kept), nn.InstanceNorm2d(kept, affine=True))[int(rng.integers(3))]
    pools: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AdaptiveMaxPool2d(1), lambda: nn.AvgPool2d(2),
        lambda: nn.MaxPool2d(2),
    )  # fmt: skip
    body = nn.Sequential(conv, norm, _any_of(rng), _any_of(rng, pools), nn.Flatten())
    side = 5
    flat = body(torch.zeros(1, channels, side, side)).shape[1]
    return Network(nn.Sequential(*body, nn.Linear(flat, outputs)), (channels, side, side))


def signals(rng: np.random.Generator, outputs: int) -> Network:
    """One-dimensional convolutions, the second transposed or in groups."""
    kept, length = 2 * _size(rng, 1, 2), 8
    second: nn.Module = nn.ConvTranspose1d(kept, 2, 3) if rng.random() < 0.5 else nn.Conv1d(kept, kept, 3, groups=2)
    body = nn.Sequential(nn.Conv1d(1, kept, 3, dilation=2), _any_of(rng), second, _any_of(rng), nn.Flatten())
    flat = body(torch.zeros(1, 1, length)).shape[1]
    return Network(nn.Sequential(*body, nn.Linear(flat, outputs)), (1, length))


class Words(nn.Module):
    """Embedding, a mean or a recurrent or an attentive body, and a head that may share the embedding."""

    def __init__(self, width: int, outputs: int, body: str, padding: bool, bind: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width, padding_idx=0 if padding else None)
        self.position = nn.Parameter(0.3 * torch.randn(4, width))
        self.body: nn.Module | None = None
        if body in ("RNN", "GRU", "LSTM"):
            self.body = getattr(nn, body)(width, width, batch_first=True)
        elif body == "attention":
            self.body = nn.MultiheadAttention(width, 2, batch_first=True)
        elif body == "encoder":
            self.body = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head, self.bind = nn.Linear(TOKENS if bind else width, outputs), bind

    def forward(self, words: Tensor) -> Tensor:
        h = self.embedding(words) + self.position
        if isinstance(self.body, nn.MultiheadAttention):
            h = h + self.body(h, h, h, need_weights=False)[0]
        elif isinstance(self.body, nn.RNNBase):
            h = self.body(h)[0]
        elif self.body is not None:
            h = self.body(h)
        h = h.mean(dim=1)
        return self.head(torch.tanh(h @ self.embedding.weight.T) if self.bind else h)


def _words(body: str) -> Maker:
    def make(rng: np.random.Generator, outputs: int) -> Network:
        width = 2 * _size(rng, 1, 2)
        return Network(Words(width, outputs, body, bool(rng.random() < 0.3), bool(rng.random() < 0.4)), (4,), True)

    return make


class Attentive(nn.Module):
    """Causal attention written out, over a sequence of vectors; `fused` takes PyTorch's own product."""

    def __init__(self, d: int, outputs: int, fused: bool) -> None:
        super().__init__()
        self.qkv, self.head, self.fused = nn.Linear(d, 3 * d), nn.Linear(d, outputs), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(mask, float("-inf"))
        return self.head((torch.softmax(scores, -1) @ v).mean(1))


def attention(rng: np.random.Generator, outputs: int) -> Network:
    d = _size(rng, 2, 5)
    return Network(Attentive(d, outputs, bool(rng.random() < 0.5)), (3, d))


# Twice in the list is twice as often.
MAKERS: tuple[tuple[str, Maker], ...] = (
    ("linear", linear), ("linear", linear), ("mlp", mlp), ("mlp", mlp), ("mlp", mlp), ("mlp", mlp),
    ("deep linear", deep_linear), ("tied", tied), ("repeated", repeated), ("normalised", normalised),
    ("normalised", normalised), ("gated", gated), ("radial", radial), ("rotated", rotated), ("fourier", fourier),
    ("filled", filled), ("cast", cast), ("bilinear", bilinear), ("frozen", frozen),
    ("images", images), ("images", images),
    ("signals", signals), ("bag of words", _words("mean")), ("rnn", _words("RNN")), ("gru", _words("GRU")),
    ("lstm", _words("LSTM")), ("words, attention", _words("attention")), ("encoder", _words("encoder")),
    ("attention", attention),
)  # fmt: skip
