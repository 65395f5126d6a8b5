"""The caller's arithmetic comes back, whatever happens inside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from landscape.arithmetic import is_out_of_memory, resolve_dtype, strict_arithmetic


def flags() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.cudnn.allow_tf32,
        cuda.matmul.allow_tf32,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@pytest.fixture(params=[True, False])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    old = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = old


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_settings_come_back(tf32: bool, fails: bool, allow: bool, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        before = flags()
        try:
            with strict_arithmetic(allow_tf32=allow):
                assert flags() == (allow, allow, False, False, False, True, True, False)
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert flags() == before


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer


def test_precision() -> None:
    assert resolve_dtype("auto", torch.bfloat16) == torch.float32
    assert resolve_dtype("auto", torch.float64) == torch.float64
    assert resolve_dtype("float32", torch.float64) == torch.float32
    assert resolve_dtype("float64", torch.float16) == torch.float64
