"""The arithmetic of products: TF32 off, differentiable attention, and everything restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import UsageError

# PyTorch's settings since 2.9 of what float32 products may be rounded to: of a GPU, and of a CPU by oneDNN. As
# `torch.backends.cudnn.conv.fp32_precision` and so on, ten times as fast: every product passes here.
_SETTINGS = (*(("cuda", o) for o in ("matmul", "conv", "rnn")), *(("mkldnn", o) for o in ("matmul", "conv", "rnn")))
_precision, _set_precision = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter


@contextmanager
def strict_arithmetic(allow_tf32: bool = False) -> Iterator[None]:
    """Inside, float32 means float32, gradients are recorded, second derivatives of attention exist.

    PyTorch's default `cudnn.allow_tf32=True` makes every convolution's product wrong by 4e-4 … 1e-2; a caller's
    `set_float32_matmul_precision` does so to matrix products, on some CPUs as well; fused attention kernels have no
    second derivative, and what transformers take without gradients is not what they take with them (padding comes out
    as zeros). Under a caller's `no_grad` or `inference_mode` every product would silently be zero. The caller's
    settings come back on exit, whether made by PyTorch's older switches or by its newer ones.
    """
    before, switches = list(starmap(_precision, _SETTINGS)), _switches()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if switches is not None:  # they are to agree with the settings, or reading them is an error
            torch._C._set_cudnn_allow_tf32(allow_tf32)
            torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
        _round(("tf32",) * 3 + ("ieee",) * 3 if allow_tf32 else ("ieee",) * 6)
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if switches is not None:
            torch._C._set_cudnn_allow_tf32(switches[0])
            torch.set_float32_matmul_precision(switches[1])
        if list(starmap(_precision, _SETTINGS)) != before:
            for setting, value in zip(_SETTINGS, before, strict=True):
                _set_precision(*setting, value)


def _switches() -> tuple[bool, str] | None:
    """The older switches, of cuDNN and of matrix products; None where newer settings contradict them."""
    try:
        return torch._C._get_cudnn_allow_tf32(), torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _round(to: Sequence[str]) -> None:
    """Set what is not so already; "none", where nobody has said otherwise, does not round either."""
    for setting, now, wanted in zip(_SETTINGS, starmap(_precision, _SETTINGS), to, strict=True):
        if now != wanted and (now, wanted) != ("none", "ieee"):
            _set_precision(*setting, wanted)


def without_cudnn(model: nn.Module) -> nn.Module:
    """The model, its recurrent layers kept away from cuDNN: there they have no second derivative, and in eval mode not
    even a first one. PyTorch's own kernels on CUDA have both; convolutions go on with cuDNN."""
    before: list[bool] = []

    def off(*_: object) -> None:
        before.append(torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False

    def as_it_was(*_: object) -> None:
        torch.backends.cudnn.enabled = before.pop()

    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(off)
            module.register_forward_hook(as_it_was, always_call=True)
    return model


def resolve_dtype(precision: str, own: torch.dtype) -> torch.dtype:
    """The dtype of products: the checkpoint's own, at least float32, for "auto"."""
    if precision == "auto":
        return torch.promote_types(own, torch.float32)
    return torch.float64 if precision == "float64" else torch.float32


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        UsageError: CUDA asked for and not there, or an unknown device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()):
        raise UsageError(f"there is no device {name!r}", "choose auto, cpu or cuda")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}, but PyTorch sees no CUDA device", "use --device cpu, or install a CUDA build"
        )
    if colon and int(number) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}, but PyTorch sees {count} of them, numbered from 0", "use --device cuda:0")
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()  # the last: cuBLAS, cuSOLVER and cuDNN, which allocate on their own
    words = ("can't allocate memory", "out of memory", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(word in said for word in words)
