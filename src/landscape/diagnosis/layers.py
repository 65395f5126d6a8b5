"""What needs care, found by walking modules and watching operations; which layer is to blame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.curvature.products import Builder
from landscape.diagnosis.findings import Finding, Visit, listed
from landscape.problem.batches import tensors_of
from landscape.problem.copies import copied
from landscape.problem.objective import Objective
from landscape.problem.parameters import layout_of, trainable
from landscape.problem.problem import Batch, Problem
from landscape.runtime.arithmetic import strict_arithmetic

FEW_SAMPLES = 8  # so few that a small step seldom crosses a kink
KINKS = (
    *("relu", "relu6", "leaky_relu", "_prelu_kernel", "prelu", "rrelu_with_noise", "threshold", "hardtanh"),
    *("hardswish", "hardsigmoid", "elu", "clamp", "clamp_min", "clamp_max", "abs", "maximum", "minimum"),
    *("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "mkldnn_max_pool2d"),
)
Layer = type[nn.Module] | tuple[type[nn.Module], ...]
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
CARE: tuple[tuple[str, Layer, str], ...] = (
    ("batch norm", _BATCH_NORM, "it uses its running statistics here, so this is not the loss of train mode"),
    ("dropout", _DROPOUT, "it is off here: the loss is that of the whole network, not the one training saw"),
    ("recurrent", nn.RNNBase, "forward mode or cuDNN's second derivative may be missing: double backward is used"),
    ("group norm", nn.GroupNorm, "it cannot take several vectors at once: products run vector by vector"),
    ("attention", nn.MultiheadAttention, "second derivatives exist in the MATH backend only, which is switched on"),
)


def check_layers(model: nn.Module) -> list[Finding]:
    """What the modules and parameters themselves say."""
    parameters = trainable(model)
    total = sum(p.numel() for p in parameters.values())
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})
    half = any(p.dtype.itemsize < 4 for p in parameters.values())
    text = f"{total:,} trainable in {', '.join(dtypes)}" + ("; products run in float32 or better" if half else "")
    found = [Finding("parameters", "care" if half else "ok", text, {"parameters": total})]
    for name, kinds, words in CARE:
        places = [n or type(m).__name__ for n, m in model.named_modules() if isinstance(m, kinds)]
        if places:
            where = f"layer{'s' if len(places) > 1 else ''} {listed(places)}"
            found.append(Finding(name, "care", f"in {where} {words}", {"layers": places}))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and (module.sparse or module.padding_idx is not None):
            why = "has sparse gradients, which have no second derivative: here they are dense"
            why = why if module.sparse else f"keeps row {module.padding_idx} fixed: that row is flat"
            found.append(Finding("embedding", "care", f"{name} {why}"))
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        found.append(Finding("frozen", "care", f"{listed(frozen)} stay fixed; the Hessian leaves them out"))
    tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    if tied:
        found.append(Finding("tied", "care", f"{listed(sorted(tied))} share another's weights; they count once"))
    return found


def not_finite(problem: Problem, batches: Sequence[Batch]) -> str:
    """The first place where NaN or Inf comes up, on the CPU in the model's own dtype."""
    model = copied(problem.model).cpu().eval()
    bad = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        return f"the parameters {listed(bad)} hold NaN or Inf"
    seen: list[str] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors_of(output)):
            seen.append(name or type(module).__name__)

    for name, module in model.named_modules():
        module.register_forward_hook(partial(note, name))
    with strict_arithmetic():
        for batch in batches:
            problem.loss_function(model, batch)
    return f"the first layer to give NaN or Inf is {seen[0]}" if seen else "all layers are finite: look at the loss"


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Names of the tensor operations a model runs, functional ones included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.partition("::")[2].rstrip("_"))
        return func(*args, **(kwargs or {}))


def watch_kinks(visit: Visit, objective: Objective) -> None:
    """Piecewise operations inside the model, whether modules or plain functions."""
    forward, seen = objective.model.forward, _Operations()

    def watched(*args: Any, **kwargs: Any) -> Any:
        with seen:
            return forward(*args, **kwargs)

    objective.model.forward = watched
    try:
        objective.batch_sum(objective.batches[0])  # with gradients on: some layers take another path without
    finally:
        del objective.model.forward
    kinks = sorted(seen.names & set(KINKS))
    visit.kinks = bool(kinks)
    if kinks:
        text = (
            f"{listed(kinks)}: piecewise, so the Hessian is that of the piece θ is on, and curvature that sits in "
            f"the kinks is not seen; central differences use {FEW_SAMPLES} samples to stay on one piece"
        )
        visit.findings.append(Finding("kinks", "care", text, {"operations": kinks}))


class _Alone(nn.Module):
    """A layer as a function of its parameters and of its input."""

    def __init__(self, layer: nn.Module, given: Tensor) -> None:
        super().__init__()
        self.layer, self.given = layer, nn.Parameter(given)

    def forward(self, *rest: Any) -> Any:
        return self.layer(self.given, *rest)


def culprits(objective: Objective, builder: Builder) -> str:
    """The layers for which a builder fails on their own, or gives two results, as words."""
    caught: dict[str, tuple[nn.Module, Any]] = {}

    def catch(name: str, module: nn.Module, args: Any) -> None:
        if not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors_of(args)):
            caught.setdefault(name, (module, args))  # what torch.func has wrapped does not outlive its call

    leaves = [(n, m) for n, m in objective.model.named_modules() if not any(m.children())]
    handles = [m.register_forward_pre_hook(partial(catch, n)) for n, m in leaves]
    with strict_arithmetic(), torch.no_grad():
        objective.batch_sum(objective.batches[0])
    for handle in handles:
        handle.remove()
    guilty = []
    for name, (module, args) in caught.items():
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            continue
        alone = _Alone(copied(module).requires_grad_(), args[0].detach().clone())
        leaf = trainable(alone)
        lone = dataclasses.replace(
            objective, model=alone, loss=_waves, batches=[args[1:]], names=tuple(leaf), layout=layout_of(leaf)
        )
        try:
            with strict_arithmetic():
                product, rows = builder(lone, args[1:]), tuple(torch.stack([p.detach()] * 2) for p in leaf.values())
                first, again = ([t.clone() for t in product(rows)] for _ in range(2))
            works = all(torch.allclose(a, b) for a, b in zip(first, again, strict=True))
        except Exception:
            works = False
        if not works:
            guilty.append(f"{name or 'the model'} ({type(module).__name__})")
    return f"because of {listed(guilty)}" if guilty else "no single layer is to blame: look at the model's own forward"


def _waves(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """A smooth scalar of whatever a layer returns."""
    return torch.stack([t.sin().sum() for t in tensors_of(model(*batch)) if t.is_floating_point()]).sum(), 1
