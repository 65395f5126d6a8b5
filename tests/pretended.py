"""A GPU that is not there: tensors in ordinary memory that are taken to lie on CUDA, and mistakes that only CUDA shows.

Two modes of PyTorch see everything. The one for functions answers what Python asks (`.device`, `.to(device)`,
`.numpy()`, factories with a device); the one for dispatch sees what is computed, below autograd and `torch.func`, and
refuses operations on tensors of both devices as CUDA does. Where a tensor lies is noted with its storage, so that views
lie where their base does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARY = f"{Path(__file__).resolve().parent.parent / 'src' / 'landscape'}/"
# What autograd makes for itself lies wherever the others do.
CPU, CUDA, ANYWHERE = "cpu", "cuda", "anywhere"
FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        *("empty", "zeros", "ones", "full", "eye", "arange", "linspace", "logspace", "scalar_tensor", "empty_strided"),
        *("rand", "randn", "randint", "randperm", "tensor", "as_tensor", "asarray", "from_numpy"),
    )
)
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand")
# Operations that may see both devices, and those of one number on the host that CUDA takes as it is.
ACROSS = ("aten::copy_", "aten::_to_copy", "aten::set_", "aten::lift_fresh", "aten::is_same_size")
INDEXED = ("aten::index", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put")
WITH_A_NUMBER = ("aten::where", "aten::masked_fill", "aten::index_fill", "aten::fill")
# Operations whose result the host has to wait for.
WAITING = ("aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")


class MistakeError(RuntimeError):
    """What CUDA would have refused, or would have done wrong."""


class Places:
    """Where storages lie; what is not known lies on the CPU."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, StorageWeakRef]] = {}

    def of(self, tensor: Tensor) -> str:
        known = self._known.get(_storage(tensor)._cdata)
        return CPU if known is None or known[1].expired() else known[0]

    def is_known(self, tensor: Tensor) -> bool:
        known = self._known.get(_storage(tensor)._cdata)
        return known is not None and not known[1].expired()

    def put(self, tensor: Tensor, place: str) -> None:
        if len(self._known) > 10_000:
            self._known = {k: v for k, v in self._known.items() if not v[1].expired()}
        storage = _storage(tensor)
        self._known[storage._cdata] = (place, StorageWeakRef(storage))


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return tensor.untyped_storage()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Those among the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def place_of(device: Any) -> str | None:
    """Of what may stand for a device; None for the meta device, which is nowhere."""
    kind = "cuda" if isinstance(device, int) else torch.device(device).type
    return {"cuda": CUDA, "cpu": CPU}.get(kind)


class PretendedGpu(TorchFunctionMode):
    """Inside, there is one.

    Attributes:
        waits: how often the host waited for the GPU, by the line of the library that made it wait.
        computed: operations by where they ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places, self.waits, self.computed = Places(), Counter[str](), Counter[str]()
        self._below = _Computed(self)
        self.made_at: str | None = None  # where a factory that Python has called puts its tensor

    def __enter__(self) -> PretendedGpu:
        self._below.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._below.__exit__(*error)

    def wait(self, what: str) -> None:
        frame = sys._getframe()
        while frame.f_back is not None and not frame.f_code.co_filename.startswith(LIBRARY):
            frame = frame.f_back
        self.waits[f"{frame.f_code.co_filename.removeprefix(LIBRARY)}:{frame.f_lineno} ({what})"] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._asked(func, args)
        if func in FACTORIES:
            return self._made(func, args, kwargs)
        first = args[0] if args else None
        if isinstance(first, Tensor):
            method = getattr(self, f"_on_{name}", None)
            if method is not None:
                return method(func, first, args[1:], kwargs)
            if name == "new_tensor" or ("device" in kwargs and name.startswith(("new_", *LIKE))):
                return self._alike(func, first, args, kwargs)
            if kwargs.get("generator") is not None and self.places.of(first) == CUDA:
                raise MistakeError(f"Expected a 'cuda' device type for generator of {name} but found 'cpu'")
        return func(*args, **kwargs)

    def _asked(self, func: Any, args: Any) -> Any:
        tensor, what = args[0], getattr(func.__self__, "__name__", "")
        if what in ("device", "is_cuda", "is_cpu") and (place := self.places.of(tensor)) == CUDA:
            return {"device": torch.device("cuda", 0), "is_cuda": True, "is_cpu": False}[what] if place else None
        return func(*args)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        device, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        default = CPU if source is None else self.places.of(source)  # torch.as_tensor leaves it where it is
        place = default if device is None else place_of(device)
        if place is None:
            return func(*args, device=device, **kwargs)
        if kwargs.get("generator") is not None and place == CUDA:
            raise MistakeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if pinned and place == CUDA:
            raise MistakeError("Only dense CPU tensors can be pinned")
        if source is not None and self.places.of(source) != place:
            kwargs["copy"] = True
            return self._on_to(Tensor.to, source, (place,), {"copy": True, "dtype": kwargs.get("dtype")})
        before, self.made_at = self.made_at, place
        try:
            made = func(*args, **kwargs)
        finally:
            self.made_at = before
        if source is None or place == CUDA:
            self.places.put(made, place)
        return made

    def _alike(self, func: Any, first: Tensor, args: Any, kwargs: Any) -> Any:
        device = kwargs.pop("device", None)
        place = self.places.of(first) if device is None else place_of(device)
        if place is None:
            return func(*args, device=device, **kwargs)
        made = func(*args, **kwargs)
        self.places.put(made, place)
        return made

    # ---- methods of tensors ------------------------------------------------------------------------------------------

    def _on_to(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        given = [*rest, *kwargs.values()]
        others = [x for x in given if isinstance(x, Tensor)]
        devices = [x for x in given if isinstance(x, torch.device | str) or type(x) is int]
        source = self.places.of(tensor)
        target = self.places.of(others[0]) if others else place_of(devices[0]) if devices else source
        if target is None:
            return func(tensor, *rest, **kwargs)
        if source == CUDA and target == CPU:
            if kwargs.get("non_blocking"):
                raise MistakeError("a copy to the host that does not block: the host may read before it is there")
            self.wait("to the CPU")
        real = torch.device("cpu")
        rest = [real if isinstance(x, torch.device | str) or type(x) is int else x for x in rest]
        kwargs = {k: real if k == "device" and v is not None else v for k, v in kwargs.items()}
        kwargs.pop("non_blocking", None)
        if {source, target} == {CPU, CUDA}:
            kwargs["copy"] = True
            rest = [x for x in rest if not isinstance(x, bool)]
        moved = func(tensor, *rest, **kwargs)
        if target != source:
            self.places.put(moved, target)
        return moved

    def _on_cpu(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        return self._on_to(Tensor.to, tensor, (torch.device("cpu"),), {})

    def _on_cuda(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        return self._on_to(Tensor.to, tensor, (torch.device("cuda"),), {})

    def _on_read(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        if self.places.of(tensor) == CUDA:
            self.wait("read")
        return func(tensor, *rest, **kwargs)

    # inference mode hides it from the mode for dispatch
    _on___float__ = _on___int__ = _on___bool__ = _on___index__ = _on_item = _on_tolist = _on_read

    def _on_host_only(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        if self.places.of(tensor) == CUDA:
            raise MistakeError(
                f"can't convert cuda:0 device type tensor to numpy, nor save it as it is ({func.__name__})"
            )
        return func(tensor, *rest, **kwargs)

    _on_numpy = _on___array__ = _on_pin_memory = _on_host_only

    def _on___deepcopy__(self, func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Any:
        made = func(tensor, *rest, **kwargs)
        self.places.put(made, self.places.of(tensor))
        return made


class _Computed(TorchDispatchMode):
    """Refuses what mixes devices; what comes out lies where the tensors that went in do."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # importing it takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places, name = self.gpu.places, func._schema.name
        at = [(places.of(t), t) for t in tensors_in((args, list(kwargs.values())))]
        if not name.startswith(ACROSS):
            self._require_one_place(name, func, args, at)
        found = {place for place, _ in at}
        if CUDA in found and self._waits(name, args):
            self.gpu.wait(name)
        place = next((p for p in (CUDA, CPU, ANYWHERE) if p in found), self.gpu.made_at or ANYWHERE)
        if name.startswith("aten::copy_"):
            place = at[0][0]
            if place == CPU and at[1][0] == CUDA:
                self.gpu.wait("copied to the CPU")
        self.gpu.computed[place] += 1
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            if not places.is_known(tensor):
                places.put(tensor, place)
        return out

    def _require_one_place(self, name: str, func: Any, args: Any, at: list[tuple[str, Tensor]]) -> None:
        places = {place for place, _ in at}
        if not {CPU, CUDA} <= places:
            return
        pointwise = torch.Tag.pointwise in func.tags or name.startswith(WITH_A_NUMBER)
        if name.rstrip("_") in INDEXED or name in INDEXED:
            own = self.gpu.places.of(args[0])
            values = [t for t in args[2:3] if isinstance(t, Tensor) and t.dim()]
            if own == CUDA and all(self.gpu.places.of(v) != CPU for v in values):
                return  # indices may lie on the host
        elif pointwise and all(t.dim() == 0 for place, t in at if place == CPU):
            return
        said = ", ".join(f"{place} {tuple(t.shape)}" for place, t in at)
        raise MistakeError(f"Expected all tensors to be on the same device, but found two, in {name}: {said}")

    def _waits(self, name: str, args: Any) -> bool:
        if name.startswith(WAITING):
            return True
        if name.rstrip("_") not in INDEXED:
            return False
        return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1])


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch, free: int = 8 * 2**30) -> Iterator[PretendedGpu]:
    """Inside, there is a GPU with so many bytes of free memory."""
    said: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (free, free),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
    }
    with patch.context() as inside:
        for name, function in said.items():
            inside.setattr(torch.cuda, name, function)
        gpu, reduced = PretendedGpu(), Tensor._reduce_ex_internal

        def saved(tensor: Tensor, protocol: Any) -> Any:
            return gpu._on_host_only(reduced, tensor, (protocol,), {})

        inside.setattr(Tensor, "_reduce_ex_internal", saved)
        with gpu:
            yield gpu
