"""Rounding made visible: a computation repeated with every result off by a last place (Vignes's stochastic arithmetic).

What changes is what rounding may change, whatever the loss: differences of large numbers, the 1 − p of saturated
probabilities, a cast to less precision inside of the model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that move, choose or negate numbers without computing any: backward finds what was chosen by equality.
# fmt: off
EXACT = frozenset({
    "abs", "adaptive_max_pool2d", "adaptive_max_pool3d", "alias", "amax", "amin", "aminmax", "as_strided", "cat",
    "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "copy_", "cummax", "cummin", "detach", "embedding",
    "empty_like", "expand", "expand_as", "flip", "fmax", "fmin", "full", "full_like", "gather", "hardtanh", "index",
    "index_select", "kthvalue", "lift_fresh", "max", "max_pool2d_with_indices", "max_pool3d_with_indices", "maximum",
    "median", "min", "minimum", "mode", "nanmedian", "narrow", "neg", "new_empty_strided", "new_zeros", "ones",
    "ones_like", "permute", "relu", "reshape", "select", "sgn", "sign", "slice", "sort", "split", "squeeze", "stack",
    "t", "threshold_backward", "topk", "transpose", "unsqueeze", "view", "where", "zero_", "zeros", "zeros_like",
})
# fmt: on
# In units of eps: what rounds to a last place at least, and has the size of one on average.
LEAST, MOST = 0.75, 1.25
# Their rounding is that of 1, whatever the result: inside is the logarithm of a sum that is 1 or more.
ABSOLUTE = frozenset({"_log_softmax"})


def _chooses(name: str, args: Any) -> bool:
    """Whether this is a norm that is one of its entries."""
    return name == "linalg_vector_norm" and len(args) > 1 and math.isinf(args[1])


def _has_memory(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor._is_zerotensor()) and tensor.layout == torch.strided


class TransformedError(NotImplementedError):
    """What runs is transformed by `torch.func`."""


class _Refuse(TorchFunctionMode):
    """Ends what transforms tensors by `torch.func`: in a backward pass under another mode they crash (torch 2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(a, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(a) for a in args):
            raise TransformedError("torch.func inside cannot be repeated with other last places")
        return func(*args, **(kwargs or {}))


class LastPlaces(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Inside, every floating-point result is multiplied by 1 ± about eps of its own dtype, drawn at random.

    Not by eps itself: in the sum of a few numbers, half of the draws would cancel to nothing.

    Raises:
        TransformedError: inside, where `torch.func` transforms what runs.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._refuse = _Refuse()

    def __enter__(self) -> LastPlaces:
        super().__enter__()  # type: ignore[no-untyped-call,unused-ignore]
        self._refuse.__enter__()  # type: ignore[no-untyped-call,unused-ignore]
        return self

    def __exit__(self, *error: Any) -> None:
        self._refuse.__exit__(*error)  # type: ignore[no-untyped-call,unused-ignore]
        super().__exit__(*error)  # type: ignore[no-untyped-call,unused-ignore]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and torch would import its compiler for a second to say so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in EXACT or getattr(func, "is_view", False) or _chooses(name, args):
            return result
        for part in result if isinstance(result, tuple | list) else (result,):
            # A tangent of zero has no memory: torch crashes where it is written to. On the way to one, shapes alone are
            # computed (device "meta").
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel() and _has_memory(part):
                # In place: the result of an in-place operation must stay itself. By a factor: a mask's −inf must, too.
                part.mul_(self._signed_eps(part).add_(1))
                if name in ABSOLUTE:
                    part.add_(self._signed_eps(part))
        return result

    def _signed_eps(self, like: Tensor) -> Tensor:
        generator, eps = self._generator(like.device), torch.finfo(like.dtype).eps
        drawn = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        drawn.uniform_((LEAST - MOST) * eps, (MOST - LEAST) * eps, generator=generator)
        return drawn.add_(drawn.sign(), alpha=LEAST * eps)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
