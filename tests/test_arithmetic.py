"""The caller's arithmetic comes back, whatever happens inside."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from landscape.errors import UsageError
from landscape.runtime.arithmetic import is_out_of_memory, resolve_device, resolve_dtype, strict_arithmetic


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


SETTINGS = {
    "matmul": ("cuda", "matmul"),
    "conv": ("cuda", "conv"),
    "rnn": ("cuda", "rnn"),
    "cpu matmul": ("mkldnn", "matmul"),
    "cpu conv": ("mkldnn", "conv"),
    "cpu rnn": ("mkldnn", "rnn"),
}
B = torch.backends
CALLERS = {  # what a caller may have written: older switches, newer settings, of one operation or of all
    "cudnn.allow_tf32": (lambda x: setattr(B.cudnn, "allow_tf32", x), [True, False]),
    "matmul.allow_tf32": (lambda x: setattr(B.cuda.matmul, "allow_tf32", x), [True, False]),
    "set_float32_matmul_precision": (torch.set_float32_matmul_precision, ["highest", "high", "medium"]),
    "backends": (lambda x: setattr(B, "fp32_precision", x), ["none", "ieee", "tf32"]),
    "cudnn": (lambda x: setattr(B.cudnn, "fp32_precision", x), ["none", "ieee", "tf32"]),
    "matmul": (lambda x: setattr(B.cuda.matmul, "fp32_precision", x), ["none", "ieee", "tf32"]),
    "conv": (lambda x: setattr(B.cudnn.conv, "fp32_precision", x), ["none", "ieee", "tf32"]),
    "rnn": (lambda x: setattr(B.cudnn.rnn, "fp32_precision", x), ["none", "ieee", "tf32"]),
    "mkldnn matmul": (lambda x: setattr(B.mkldnn.matmul, "fp32_precision", x), ["none", "ieee", "bf16"]),
}


def seen() -> dict[str, str]:
    """What float32 products are rounded to, and what the older switches say, or that they cannot be read."""
    found = {name: torch._C._get_fp32_precision_getter(*setting) for name, setting in SETTINGS.items()}
    for name, switch in (
        ("cudnn", lambda: B.cudnn.allow_tf32),
        ("cuBLAS", lambda: B.cuda.matmul.allow_tf32),
        ("float32", torch.get_float32_matmul_precision),
    ):
        try:
            found[f"switch of {name}"] = str(switch())
        except RuntimeError:
            found[f"switch of {name}"] = "contradicted"
    return found


@pytest.fixture
def _untouched() -> Iterator[None]:
    before = {name: torch._C._get_fp32_precision_getter(*setting) for name, setting in SETTINGS.items()}
    yield
    B.fp32_precision = B.cudnn.fp32_precision = "none"
    B.mkldnn.fp32_precision = "none"
    B.cudnn.allow_tf32, B.cuda.matmul.allow_tf32 = True, False
    torch.set_float32_matmul_precision("highest")
    for name, (backend, operation) in SETTINGS.items():
        torch._C._set_fp32_precision_setter(backend, operation, before[name])


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("_untouched")
def test_float32_is_float32_whatever_a_caller_has_set(seed: int) -> None:
    rng = random.Random(seed)
    calls = [(name, rng.choice(CALLERS[name][1])) for name in rng.choices(sorted(CALLERS), k=rng.randint(1, 4))]
    for name, value in calls:
        CALLERS[name][0](value)
    before = seen()
    for allow in (False, True):
        with strict_arithmetic(allow_tf32=allow):
            rounded = {name for name, value in seen().items() if name in SETTINGS and value not in ("ieee", "none")}
            expected = {"matmul", "conv", "rnn"} if allow else set()
            assert rounded == expected, f"seed {seed}: after {calls}"
        assert seen() == before, f"seed {seed}: after {calls}"


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
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


@pytest.mark.parametrize(
    ("name", "words"),
    [("cuda:2", "sees 2 of them"), ("cuda:x", "no device"), ("cuda:-1", "no device"), ("cpu:x", "no device"),
     ("cuda:", "no device"), ("tpu", "no device")],
)  # fmt: skip
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=words) as caught:
        resolve_device(name)
    assert caught.value.hint
    assert [str(resolve_device(n)) for n in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
