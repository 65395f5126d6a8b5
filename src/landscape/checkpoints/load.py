"""From a checkpoint and the words of a command to a Problem with the checkpoint's weights in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoints.adapters import base_of, in_place, is_peft, merged
from landscape.checkpoints.checkpoint import Checkpoint, read_checkpoint
from landscape.checkpoints.coordinates import words_of
from landscape.checkpoints.fit import load_into
from landscape.checkpoints.problem_file import call_problem
from landscape.checkpoints.run_config import Config, run_config
from landscape.checkpoints.weights import with_versions
from landscape.errors import CheckpointError, LandscapeError, ProblemError, UsageError
from landscape.problem.batchnorm import BATCHNORM, running_statistics
from landscape.problem.copies import copied
from landscape.problem.problem import LOSSES, Problem
from landscape.results.identity import file_sha256

_WRITE_ONE = "write problem.py with a function problem() that returns landscape.Problem(model, data, loss) (see README)"
_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Loaded:
    """A problem ready to be analysed.

    Attributes:
        problem: its model holds the checkpoint's parameters and buffers.
        checkpoint: what was read.
        notes: sentences the user should see, the checkpoint's included.
        problem_identity: what made the problem, in plain types, for hashing: equal means the same problem.
    """

    problem: Problem
    checkpoint: Checkpoint
    notes: tuple[str, ...]
    problem_identity: dict[str, Any]


def load_problem(
    checkpoint: str | Path | Checkpoint,
    problem: str | None = None,
    settings: Mapping[str, Any] = _NO_SETTINGS,
    data: str | None = None,
    loss: str | None = None,
    batchnorm: str | None = None,
) -> Loaded:
    """The problem of a checkpoint: from the user's function, else from the file's own header, else exported.

    Args:
        checkpoint: path, or what `read_checkpoint` returned.
        problem: `path/file.py:function` or `package.module:function`. The user named it, so it runs. Parameters
            named like a coordinate of the checkpoint (width, seed, step …) are filled in. `path` and `header` get the
            checkpoint's, `config` the settings of its run (in the file, or beside it), `state_dict` its tensors: what
            the function leaves of them, or puts there, is loaded into its model; an empty one says that the function
            has loaded them itself.
        settings: arguments of that function by name; texts are read as its annotations and defaults say.
        data: an .npz file with arrays `inputs` and `targets`: for exported programs, or instead of a header's data.
        loss: name of a built-in loss: for exported programs, or instead of a header's.
        batchnorm: eval | batch, see `Problem`; None: as the problem has it.

    Raises:
        UsageError: the arguments do not fit together, or name what does not exist.
        CheckpointError: the file is unusable, does not fit the model, or says nothing about its problem.
        ProblemError: the user's function fails, or the data is unusable.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    if batchnorm not in (None, *BATCHNORM):
        raise UsageError(f"--batchnorm {batchnorm!r} does not exist", f"choose {' or '.join(BATCHNORM)}")
    loaded = _loaded(found, problem, settings, data, loss, batchnorm)
    if batchnorm is None or batchnorm == loaded.problem.batchnorm:
        return loaded
    made_by = loaded.problem_identity | {"batchnorm": batchnorm}
    ready = dataclasses.replace(loaded.problem, batchnorm=batchnorm)
    return dataclasses.replace(loaded, problem=ready, problem_identity=made_by)


def _loaded(
    found: Checkpoint,
    problem: str | None,
    settings: Mapping[str, Any],
    data: str | None,
    loss: str | None,
    batchnorm: str | None,
) -> Loaded:
    if problem is not None:
        return _from_function(found, problem, settings, data, loss, batchnorm)
    if settings:
        raise UsageError(
            f"--set {next(iter(settings))} goes to the function of --problem, and none is given",
            "add --problem problem.py:problem, or leave --set out",
        )
    if loss is not None and loss not in LOSSES:
        raise UsageError(f"there is no built-in loss {loss!r}", f"choose one of {', '.join(LOSSES)}")
    if found.module is not None:
        return _from_export(found, found.module, data, loss, batchnorm)
    if "model" in found.header:
        return _from_header(found, data, loss, batchnorm)
    raise CheckpointError(*_nothing_known(found))


def _nothing_known(found: Checkpoint) -> tuple[str, str]:
    if "problem" in found.header:
        named = found.header["problem"]
        return (
            f"{found.path} names the problem {named!r}, and code named by a checkpoint is never run by itself",
            f"if you trust it, repeat it: --problem {named}",
        )
    return (
        f"{found.path} holds weights only: nothing in it says which network, data and loss they belong to",
        f"{_WRITE_ONE}, and pass --problem problem.py:problem",
    )


def _from_function(
    found: Checkpoint,
    spec: str,
    settings: Mapping[str, Any],
    data: str | None,
    loss: str | None,
    batchnorm: str | None,
) -> Loaded:
    if data is not None or loss is not None:
        raise UsageError(
            f"--problem and {'--data' if data is not None else '--loss'} do not go together: "
            "the problem function brings its own",
            "leave one of them out",
        )
    config: list[tuple[Config, str] | None] = []

    def settings_of_the_run() -> Config | None:
        config.append(run_config(Path(found.path), found.config))
        return config[-1][0] if config[-1] is not None else None

    extras = {
        "state_dict": lambda: with_versions({name: t.clone() for name, t in found.state.items()}, found.state),
        "header": lambda: dict(found.header),
        "path": lambda: found.path,
        "config": settings_of_the_run,
    }
    called = call_problem(spec, settings, found.coordinates, extras, words_of(found.path, found.coordinates))
    # A copy: the function may hand out one network for every checkpoint.
    try:
        model = copied(called.problem.model)
    except Exception as error:
        raise ProblemError(
            f"the model cannot be copied ({type(error).__name__}: {error})",
            "keep tensors that are results of computations out of its attributes",
        ) from error
    made_by: dict[str, Any] = {"problem": spec, "sha256": called.sha256, "settings": called.arguments}
    unused = _unused(model, batchnorm or called.problem.batchnorm)
    notes = _fitted(model, found, called.handed.get("state_dict"), made_by, unused)
    if config and config[-1] is not None:
        notes = (f"config is that {config[-1][1]}", *notes)
        made_by["config"] = config[-1][0]
    ready = dataclasses.replace(called.problem, model=model)
    return Loaded(ready, found, (*found.notes, *called.notes, *notes), made_by)


def _unused(model: nn.Module, batchnorm: str | None) -> frozenset[str]:
    return running_statistics(model) if batchnorm == "batch" else frozenset()


def _fitted(
    model: nn.Module,
    found: Checkpoint,
    left: Mapping[str, Any] | None,
    made_by: dict[str, Any],
    unused: frozenset[str],
) -> tuple[str, ...]:
    """The checkpoint's tensors, or what the problem function left of them, into its model; notes."""
    notes: list[str] = []
    if left is not None:
        wrong = [str(n) for n, value in left.items() if not (isinstance(n, str) and isinstance(value, Tensor))]
        if wrong:
            raise ProblemError(
                f"the problem function put something else than tensors into state_dict: {', '.join(wrong[:5])}",
                "keep names and tensors in it",
            )
        if not left:
            return ("the problem function took all tensors out of state_dict: its network is as it returned it",)
        taken, put = ([n for n in one if n not in other] for one, other in ((found.state, left), (left, found.state)))
        said = [f"took {len(taken)} tensors out of state_dict"] if taken else []
        said += [f"put {len(put)} into it"] if put else []
        notes += [f"the problem function {' and '.join(said)}"] if said else []
    state = left
    if found.adapter is not None:
        adapter = found.state if left is None else left
        if is_peft(model):
            state = in_place(model, adapter)
            notes.append(
                f"{len(state) - len(adapter)} tensors beside the adapter's are as the problem function made them"
            )
        else:
            base = read_checkpoint(base_of(found.path, found.adapter))
            state = merged(found.path, base.state, adapter, found.adapter)
            made_by["base"] = base.sha256
            notes.append(f"the adapter is merged into the weights of {base.path}")
    return (*notes, *load_into(model, found, state, unused))


def _from_header(found: Checkpoint, data: str | None, loss: str | None, batchnorm: str | None) -> Loaded:
    """The built-in network and data that our own header names. Raises CheckpointError, ProblemError."""
    from landscape.data import load_data
    from landscape.models import build_model

    header = found.header
    if data is None and "data" not in header:
        raise CheckpointError(f"{found.path}: its header names no data", "pass --data file.npz")
    name = loss or header.get("loss")
    if name not in LOSSES:
        raise CheckpointError(
            f"{found.path}: its header names {f'the loss {name!r}, which is unknown' if name else 'no loss'}",
            f"pass --loss, one of {', '.join(LOSSES)}",
        )
    model_settings, data_settings = header.get("model_settings", {}), header.get("data_settings", {})
    samples = read_npz(data) if data is not None else None
    try:
        model = build_model(header["model"], model_settings)
        samples = samples or load_data(header["data"], data_settings).train
    except LandscapeError as error:
        raise CheckpointError(f"{found.path}: its header is unusable: {error.message}", error.hint) from error
    notes = load_into(model, found, unused=_unused(model, batchnorm))
    decay = header.get("weight_decay", 0.0)
    if type(decay) not in (int, float) or not 0 <= decay < float("inf"):
        raise CheckpointError(f"{found.path}: weight_decay in its header is {decay!r}, not a number >= 0")
    source = {"data_sha256": file_sha256(data)} if data else {"data": header["data"], "data_settings": data_settings}
    made_by = {"model": header["model"], "model_settings": model_settings, "loss": name, "weight_decay": decay}
    return Loaded(Problem(model, samples, name, decay), found, (*found.notes, *notes), made_by | source)


def _from_export(
    found: Checkpoint, module: nn.Module, data: str | None, loss: str | None, batchnorm: str | None
) -> Loaded:
    if data is None or loss is None:
        raise UsageError(
            f"{found.path} is an exported network without data and loss",
            f"add --data file.npz (arrays inputs and targets) and --loss {'|'.join(LOSSES)}",
        )
    samples = read_npz(data)
    model = copied(module)
    notes = load_into(model, found, unused=_unused(model, batchnorm))
    try:
        with torch.no_grad():
            dtype = next((t.dtype for t in model.parameters()), torch.float32)
            any_batch = getattr(model, "shape", ())[:1] == (None,)
            sample = samples[0][:2] if any_batch else samples[0]
            model(sample.to(dtype) if sample.is_floating_point() else sample)
    except ProblemError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProblemError(
            f"the exported network fails on the inputs in {data}: {reason[:200]}",
            f"inputs are {tuple(samples[0].shape)} of type {str(samples[0].dtype).removeprefix('torch.')}",
        ) from error
    made_by = {"exported": found.sha256, "data_sha256": file_sha256(data), "loss": loss}
    return Loaded(Problem(model, samples, loss), found, (*found.notes, *notes), made_by)


def read_npz(path: str) -> tuple[Tensor, Tensor]:
    """`inputs` and `targets` of an .npz file as tensors; pickled objects in it are refused, never read.

    Raises:
        UsageError: there is no such file.
        ProblemError: the file or its arrays are unusable.
    """
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"--data: there is no file {path}", "write it with numpy.savez(path, inputs=…, targets=…)")
    try:
        with place.open("rb") as raw:
            loaded = np.load(raw, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with loaded as file:
                names = list(file.files)
                arrays = {name: file[name] for name in ("inputs", "targets") if name in names}
    except Exception as error:  # a damaged file can end in almost any type
        what = "it holds pickled objects" if "allow_pickle" in str(error) else str(error)
        raise ProblemError(
            f"{path} cannot be read as an .npz file of numbers: {what}", "numpy.savez(path, inputs=…, targets=…)"
        ) from error
    for name in ("inputs", "targets"):
        if name not in arrays:
            raise ProblemError(
                f"{path} has no array {name!r}; it has {', '.join(names) or 'none'}",
                "numpy.savez(path, inputs=…, targets=…)",
            )
    inputs, targets = (_numbers(path, name, arrays[name]) for name in ("inputs", "targets"))
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        raise ProblemError(
            f"{path}: inputs have shape {tuple(inputs.shape)} and targets {tuple(targets.shape)}",
            "the first axis of both counts the samples",
        )
    return inputs, targets


def _numbers(path: str, name: str, array: np.ndarray) -> Tensor:
    """An array as a tensor in this machine's byte order; small and unsigned integers as int64."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    if array.dtype.kind in "iu":
        return torch.from_numpy(np.ascontiguousarray(array).astype(np.int64))
    if array.dtype.kind == "b":
        return torch.from_numpy(np.ascontiguousarray(array))
    raise ProblemError(f"{path}: {name} are of type {array.dtype}", "store floats, integers or booleans")
