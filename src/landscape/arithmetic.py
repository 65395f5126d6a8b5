"""The arithmetic of products: TF32 off, differentiable attention, and everything restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import UsageError


@contextmanager
def strict_arithmetic(allow_tf32: bool = False) -> Iterator[None]:
    """Inside, float32 means float32, gradients are recorded, second derivatives of attention and RNNs exist.

    PyTorch's default `cudnn.allow_tf32=True` makes every convolution's product wrong by 4e-4 … 1e-2; fused
    attention kernels and cuDNN RNNs have no second derivative. Under a caller's `no_grad` or `inference_mode`
    every product would silently be zero. The caller's settings come back on exit.
    """
    convolution, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    try:
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cuda.matmul.allow_tf32 = matmul


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
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}, but PyTorch sees no CUDA device", "use --device cpu, or install a CUDA build"
        )
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", "choose auto, cpu or cuda")
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
    )
