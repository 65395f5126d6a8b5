"""What is tried of a loss before anything is solved: that it runs, is fixed, and whether its samples see each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import NarrowError, ProblemError
from landscape.problem.batches import length_of, move, split, take, tensors_of, values_of
from landscape.problem.batchnorm import take_batch_statistics
from landscape.problem.copies import copied, require_same_loss
from landscape.problem.graph import SCALED, gradients, reaches
from landscape.problem.last_places import LastPlaces
from landscape.problem.parameters import trainable
from landscape.problem.passes import in_portions
from landscape.problem.problem import Batch, LossFunction, Problem
from landscape.problem.user_loss import plain, with_changes
from landscape.runtime.arithmetic import is_out_of_memory

# Samples whose graph is looked at.
FEWEST = 8
# Two losses on one batch differ by no more than this many times what the last places of all results move one.
ROUNDED = 10.0
# Two evaluations of one loss in one arithmetic differ by less, in units of eps.
SAME_LOSS = 1e3
# So near, they need no look at what rounding does.
SURELY_SAME = 8.0


def as_it_runs(
    problem: Problem, model: nn.Module, loss: LossFunction, given: Batch, there: Batch
) -> tuple[LossFunction, bool]:
    """The loss as `_tried`, and whether a few samples are enough for that: not of a network on one graph."""
    if not problem.per_sample:
        return _tried(problem, model, loss, given, there, False), False
    try:
        return _tried(problem, model, loss, given, there, True), True
    except ProblemError as error:
        with suppress(ProblemError, NotImplementedError):
            return _tried(problem, model, loss, given, there, False), False
        raise error


def _tried(
    problem: Problem, model: nn.Module, loss: LossFunction, given: Batch, there: Batch, cuttable: bool
) -> LossFunction:
    """The loss as it runs on the copy: its constants in the copy's arithmetic if they must be, and recording gradients
    if it is another, or none at all, without."""
    given, there = (take(b, slice(0, FEWEST)) if cuttable else b for b in (given, there))
    wider = real_dtype(model) != real_dtype(problem.model)
    ran: list[tuple[LossFunction, float, float]] = []
    bare: list[float] = []

    def run(part: Batch) -> None:
        ran.append(in_arithmetic(model, loss, part, lambda: wider and _runs_as_given(problem, loss, given)))

    def run_bare(part: Batch) -> None:
        bare.append(float(evaluate(model, found, part)[0]))

    in_portions(run, there, cuttable)
    found = ran[0][0]
    try:
        with torch.inference_mode():
            in_portions(run_bare, there, cuttable)
    except (ProblemError, NotImplementedError):
        return with_changes(found, recorded=True)
    total, count = sum(r[1] for r in ran), sum(r[2] for r in ran)
    eps = torch.finfo(real_dtype(model)).eps
    same = not abs(total) < float("inf") or abs(total - sum(bare)) <= SAME_LOSS * eps * max(abs(total), abs(count))
    return found if same else with_changes(found, recorded=True)


def in_arithmetic(
    model: nn.Module, loss: LossFunction, batch: Batch, as_given: Callable[[], bool]
) -> tuple[LossFunction, float, float]:
    """The loss, with its constants brought to the model's arithmetic if it does not run without; sum and count.

    Args:
        as_given: whether it runs in its own arithmetic.

    Raises:
        NarrowError: it runs in its own arithmetic only.
    """
    try:
        return (loss, *_with_gradient(model, loss, batch))
    except ProblemError as error:
        dtype = real_dtype(model)
        brought = with_changes(loss, within=dtype)
        with suppress(ProblemError, NotImplementedError):
            return (brought, *_with_gradient(model, brought, batch))
        if not as_given():
            raise
        raise NarrowError(
            f"the model or loss runs in its own arithmetic, but not in {str(dtype).removeprefix('torch.')}: "
            f"{error.message}",
            "make what it computes with follow its inputs, such as weight.to(outputs.dtype) or "
            "torch.eye(n, dtype=x.dtype)",
        ) from error


def _with_gradient(model: nn.Module, loss: LossFunction, batch: Batch) -> tuple[float, float]:
    """Sum and count of a batch, whose gradient can be taken. Raises ProblemError."""
    with warnings.catch_warnings():  # float(tensor) inside a loss, say
        warnings.simplefilter("ignore")
        total, count = evaluate(model, loss, batch)
        try:
            gradients(total, [p for p in model.parameters() if p.requires_grad])
        except NotImplementedError:
            raise
        except Exception as error:  # the user's backward
            if is_out_of_memory(error):
                raise
            raise ProblemError(
                f"the gradient of the loss cannot be taken ({type(error).__name__}): {_first_line(error)}",
                "call total.backward() on the loss yourself; analyses need what training needs",
            ) from error
    return float(total.detach()), count


def _runs_as_given(problem: Problem, loss: LossFunction, batch: Batch) -> bool:
    """Whether the user's own model has a loss and its gradient on its own data."""
    with suppress(ProblemError, NotImplementedError):
        _with_gradient(_own_model(problem), loss, batch)
        return True
    return False


def _own_model(problem: Problem) -> nn.Module:
    """A copy of the user's own model, as analyses run it."""
    own = copied(problem.model).eval()
    if problem.batchnorm == "batch":
        take_batch_statistics(own)
    return own


def require_alike(
    losses: tuple[LossFunction, LossFunction], before: nn.Module, after: nn.Module, here: Batch, there: Batch
) -> None:
    """The loss of a model on a batch is that of its copy on the same batch elsewhere."""

    def on(loss: LossFunction, batch: Batch) -> Callable[[nn.Module], tuple[float, float]]:
        def sums(model: nn.Module) -> tuple[float, float]:
            with torch.no_grad():
                total, count = evaluate(model, loss, batch)
            return float(total), count

        return sums

    require_same_loss(before, after, on(losses[0], here), on(losses[1], there))


def require_own(problem: Problem, loss: LossFunction, model: nn.Module, given: Batch, moved: Batch) -> None:
    """As `require_alike`, for the user's own model: on the data as given, or in its dtype, if it runs on either."""
    own, bare = _own_model(problem), plain(loss)
    first = next(iter(trainable(own).values()))
    for batch in (given, move(given, first.device, first.dtype.to_real() if first.is_complex() else first.dtype)):
        runs = False
        with torch.no_grad(), suppress(ProblemError, NotImplementedError):
            evaluate(own, bare, batch)
            runs = True
        if runs:
            return require_alike((bare, loss), own, model, batch, moved)
    return None


def is_separate(model: nn.Module, loss: LossFunction, batch: Batch) -> bool:
    """Whether the loss of a batch is that of its halves: not where a network normalises over what else is there."""
    half = (length_of(batch) + 1) // 2
    if half < 1 or half == length_of(batch):
        return True
    pieces = list(split(batch, half))
    try:
        with torch.no_grad():
            whole, count = evaluate(model, loss, batch)
    except (ProblemError, RuntimeError, MemoryError):  # said elsewhere, or no memory for as many
        return True
    try:
        with torch.no_grad():
            parts = [evaluate(model, loss, piece) for piece in pieces]
            apart = abs(float(whole) - sum(float(total) for total, _ in parts))
            eps = torch.finfo(whole.dtype).eps * max(abs(float(whole)), count)
            if apart <= SURELY_SAME * eps:
                return True
            allowed = 0.0
            for seed in range(2):
                try:
                    with LastPlaces(seed):
                        moved = abs(float(evaluate(model, loss, batch)[0]) - float(whole))
                except (ProblemError, NotImplementedError):  # `torch.func` inside
                    moved = SAME_LOSS / ROUNDED * eps
                allowed = max(allowed, ROUNDED * moved)
    except ProblemError:  # too few for its statistics
        return False
    return not apart > allowed


def require_fixed(model: nn.Module, loss: LossFunction, batch: Batch) -> None:
    """Refuse what has no Hessian: a loss that differs between two calls, or changes the model."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    drawn = torch.get_rng_state()
    with torch.no_grad():
        first, count = evaluate(model, loss, batch)
        second, _ = evaluate(model, loss, batch)
    a, b = float(first), float(second)
    finite = abs(a) < float("inf")
    # Where random numbers were drawn, any difference is theirs; else sums may be taken in another order.
    same = 0.0 if not torch.equal(drawn, torch.get_rng_state()) else SAME_LOSS
    if finite and abs(a - b) > same * torch.finfo(first.dtype).eps * max(abs(a), count):
        raise ProblemError(
            f"the model answers differently twice ({a:.9g} and {b:.9g} on the same batch), so its loss has no Hessian",
            "look for functional dropout (F.dropout without training=self.training), noise or sampling in forward",
        )
    changed = [n for n, old in model.named_buffers() if not torch.equal(values_of(old), values_of(buffers[n]))]
    if changed or model.training:
        what = f"changes the buffer {changed[0]!r}" if changed else "switches the model to train mode"
        raise ProblemError(
            f"evaluating the loss {what}: products would depend on how often they are taken",
            "leave the model in eval mode inside the loss",
        )


def require_reached(
    model: nn.Module, loss: LossFunction, batches: Sequence[Batch], names: Sequence[str], cuttable: bool
) -> None:
    """Refuse a loss whose graph ends before the selected parameters: all its derivatives would silently be zero."""
    named = dict(model.named_parameters())
    leaves = [named[n] for n in names]
    reached: list[bool] = []
    for batch in batches:
        few = take(batch, slice(0, FEWEST)) if cuttable else batch
        with warnings.catch_warnings():  # float(tensor) inside a loss, say: here nobody asked for gradients
            warnings.simplefilter("ignore")
            in_portions(lambda part: reached.append(reaches(evaluate(model, loss, part)[0], leaves)), few, cuttable)
        if any(reached):
            return
    raise ProblemError(
        f"the loss does not depend on {'any trainable parameter' if len(names) > 1 else repr(names[0])} of the model: "
        "it calls another network, or cuts the graph with no_grad(), detach() or item()",
        "inside loss(model, batch) call the `model` you are given, and keep its outputs as they are",
    )


def refuse_scaled(model: nn.Module) -> None:
    """Embeddings whose gradient is that of no loss."""
    for name, module in model.named_modules():
        scaled = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq
        if scaled and module.weight.requires_grad:
            raise ProblemError(f"{name!r}: {SCALED[0]}", SCALED[1])


def evaluate(model: nn.Module, loss: LossFunction, batch: Batch) -> tuple[Tensor, float]:
    """One call of the user's loss, its answer checked."""
    try:
        answer: Any = loss(model, batch)
    except (ProblemError, NotImplementedError):
        raise
    except Exception as error:  # the user's code: whatever it raises is about the problem, not a bug of ours
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(batch)[:4])
        raise ProblemError(
            f"the model or loss fails on the data (a batch of tensors of shape {shapes}): "
            f"{type(error).__name__}: {_first_line(error)}",
            "check that the data fit the model: sizes, number of classes, dtype",
        ) from error
    if isinstance(answer, Tensor):
        what = "a mean over the batch, perhaps" if answer.dim() == 0 else "one value a sample, perhaps"
        raise ProblemError(
            f"the loss returned a tensor of shape {tuple(answer.shape)} ({what}), not the pair (sum, count)",
            "return (F.cross_entropy(model(x), y, reduction='sum'), len(y)), for example: means cannot be added up",
        )
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor)):
        raise ProblemError(
            f"the loss returned a {type(answer).__name__}, not the pair (sum, count)",
            "return (F.cross_entropy(model(x), y, reduction='sum'), len(y)), for example",
        )
    total, count = answer
    if isinstance(count, Tensor) and count.requires_grad:
        raise ProblemError(
            "the loss's count depends on the parameters; sums and counts over batches are added up and divided once, "
            "and only the sum is differentiated",
            "count samples or constant weights; of a weighted mean over a batch, return (mean * len(y), len(y))",
        )
    if total.dim() != 0:
        raise ProblemError(
            f"the loss sum has shape {tuple(total.shape)}, not a scalar",
            "sum over the samples: reduction='sum'",
        )
    return total, float(count)


def real_dtype(model: nn.Module) -> torch.dtype:
    return next(iter(trainable(model).values())).dtype.to_real()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else ""
