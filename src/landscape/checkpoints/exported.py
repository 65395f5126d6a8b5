"""`torch.export` programs (.pt2) as networks, by our own interpreter of their graph.

`torch.export.load` runs code from the file in several ways: pickled weights, constants and sample inputs, shape
expressions given to `eval`, shared libraries. So it is not used. Of the archive we read the graph and the tensor
tables (JSON) and the raw weights; the graph's operations are looked up among PyTorch's own `aten` operations that
only compute, and everything else is refused by name.
"""

from __future__ import annotations

import json
import operator
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError, ProblemError

_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    12: torch.bool,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
# Arithmetic on shapes; nothing that can call, import or build large numbers.
_ON_SHAPES: dict[str, Callable[..., Any]] = {
    **{f"_operator.{n}": getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg")},
    **{f"_operator.{n}": getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"torch.{n}": getattr(torch, n) for n in ("sym_max", "sym_min", "sym_float", "sym_int")},
}
# Checks that only repeat what holds for the exported shapes.
_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert_\w+|sym_constrain_range\w*)\.\w+")
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z]\w*|_softmax|_log_softmax|_unsafe_view|_to_copy)\.(\w+)")
_IN_PLACE = re.compile(
    r"(relu|relu6|hardtanh|leaky_relu|elu|celu|selu|silu|mish|hardswish|hardsigmoid|sigmoid|tanh|"
    r"add|sub|mul|div|clamp|clamp_min|clamp_max|neg|exp|masked_fill|dropout|feature_dropout|alpha_dropout)_"
)
# Text that says how to compute; any other text (a file's name) has no place in a computation.
_TEXT_ARGUMENTS = {"approximate", "rounding_mode", "equation", "indexing", "side", "mode", "ord", "reduce"}
_RESAVE = "save model.state_dict() as well, and pass it with --problem problem.py:problem"


class UnsupportedError(Exception):
    """What in the file is not supported; becomes a CheckpointError."""


@dataclass(frozen=True)
class _Value:
    """Refers to the value of that name when the graph runs."""

    name: str


@dataclass(frozen=True)
class _Precision:
    """The floating-point type of the parameters at run time, where the file has that of its own weights."""


class _Device:
    """The device of the input at run time."""


@dataclass(frozen=True)
class _Step:
    """One operation of the graph."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str, ...]


class Program(nn.Module):
    """An exported network: parameters and buffers under their own names, and the graph's operations in order."""

    def __init__(self, tensors: Mapping[str, Tensor], persistent: set[str], values: Mapping[str, str]) -> None:
        super().__init__()
        self.values = dict(values)  # name in the graph -> name of the tensor
        self.steps: list[_Step] = []
        self.input = self.output = ""
        self.shape: tuple[int | None, ...] = ()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(last, tensor)
            else:
                owner.register_buffer(last, tensor, persistent=name in persistent)

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's output.

        Raises:
            ProblemError: a shape that the program was not exported for.
        """
        self._check_shape(inputs)
        named = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers(remove_duplicate=False))
        values: dict[str, Any] = {name: named[tensor] for name, tensor in self.values.items()}
        floats = [t.dtype for t in self.parameters() if t.is_floating_point()]
        precision = floats[0] if floats else torch.get_default_dtype()
        values[self.input] = inputs

        def resolve(value: Any) -> Any:
            if isinstance(value, _Value):
                return values[value.name]
            if isinstance(value, list):
                return [resolve(item) for item in value]
            if isinstance(value, _Precision):
                return precision
            return inputs.device if isinstance(value, _Device) else value

        for step in self.steps:
            result = step.function(*map(resolve, step.args), **{k: resolve(v) for k, v in step.kwargs.items()})
            if len(step.outputs) == 1 and not isinstance(result, tuple | list):
                values[step.outputs[0]] = result
            else:
                values.update(zip(step.outputs, result, strict=True))
        output: Tensor = values[self.output]
        return output

    def _check_shape(self, inputs: Tensor) -> None:
        fits = len(self.shape) == inputs.dim() and all(
            want is None or want == have for want, have in zip(self.shape, inputs.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise ProblemError(
                f"the exported program takes inputs of shape ({wanted}), not {tuple(inputs.shape)}",
                "export it with a free batch size: torch.export.export(model.eval(), (x,), "
                "dynamic_shapes=({0: torch.export.Dim('batch')},))",
            )


def read_exported(path: Path) -> Program:
    """The program in a .pt2 file; nothing in the file is run, neither now nor when the network is called.

    Raises:
        CheckpointError: anything but one graph of plain tensor operations with one input and one output.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _build(archive)
    except UnsupportedError as error:
        raise CheckpointError(f"{path}: the exported program {error}", _RESAVE) from None
    except Exception as error:  # a changed or future layout can end in any type
        raise CheckpointError(
            f"{path} is not laid out as a torch.export program of torch 2.8 or later ({type(error).__name__}: {error})",
            f"export it again with this torch ({torch.__version__}), or {_RESAVE}",
        ) from error


def _build(archive: zipfile.ZipFile) -> Program:
    root = archive.namelist()[0].partition("/")[0]
    models = [n for n in archive.namelist() if n.startswith(f"{root}/models/") and n.endswith(".json")]
    if len(models) != 1:
        raise UnsupportedError(f"file holds {len(models)} models, not one")
    if any(f"{root}/data/{folder}/" in n for n in archive.namelist() for folder in ("aotinductor", "executorch")):
        raise UnsupportedError("is compiled; export the network without compiling it")
    if archive.read(f"{root}/byteorder").decode() != sys.byteorder:
        raise UnsupportedError("was saved on a machine of the other byte order")
    name = Path(models[0]).stem
    document = json.loads(archive.read(models[0]))
    if document["schema_version"]["major"] != 8:
        raise UnsupportedError(f"has format {document['schema_version']['major']}; this version reads 8")
    tables = [
        (f"{root}/data/{folder}/", json.loads(archive.read(f"{root}/data/{folder}/{name}_{folder}_config.json")))
        for folder in ("weights", "constants")
    ]
    stored: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for folder, table in tables:
        for tensor_name, entry in table["config"].items():
            stored[tensor_name] = _tensor(archive, folder, entry, seen)
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    program = _signature(graph, signature, stored)
    floats = [t.dtype for t in program.parameters() if t.is_floating_point()]
    own = floats[0] if floats else torch.float32
    fixed = set(program.values) | {program.input}
    program.steps = [step for node in graph["nodes"] for step in _steps(node, own, fixed)]
    defined = fixed | {output for step in program.steps for output in step.outputs}
    if program.output not in defined:
        raise UnsupportedError("returns a value that it does not compute")
    return program


def _tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any], seen: dict[str, Tensor]) -> Tensor:
    """A stored tensor; the same object for names that share one (tied weights)."""
    if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
        raise UnsupportedError("holds pickled or custom objects, which could only be read by running code")
    key = folder + json.dumps(entry, sort_keys=True)
    if key not in seen:
        meta = entry["tensor_meta"]
        if meta["dtype"] not in _DTYPES or meta["layout"] != 7:
            raise UnsupportedError("holds complex, quantized, 8-bit float or sparse tensors")
        sizes, strides = ([dim["as_int"] for dim in meta[what]] for what in ("sizes", "strides"))
        data = bytearray(archive.read(folder + entry["path_name"]))
        dtype = _DTYPES[meta["dtype"]]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensor = flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).clone()
        if entry["is_param"]:
            tensor = nn.Parameter(tensor, requires_grad=bool(meta["requires_grad"]))
        seen[key] = tensor
    return seen[key]


def _signature(graph: dict[str, Any], signature: dict[str, Any], stored: Mapping[str, Tensor]) -> Program:
    """The program without its operations: what its inputs and its output are."""
    values: dict[str, str] = {}
    persistent: set[str] = set()
    inputs: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            values[content["arg"]["name"]] = content[f"{kind}_name"]
            if kind == "parameter" or (kind == "buffer" and content["persistent"]):
                persistent.add(content[f"{kind}_name"])
        elif kind == "user_input" and "as_tensor" in content["arg"]:
            inputs.append(content["arg"]["as_tensor"]["name"])
        else:
            raise UnsupportedError(f"has an input that is no tensor ({kind})")
    outputs = [spec.get("user_output") for spec in signature["output_specs"]]
    if any(output is None for output in outputs):
        raise UnsupportedError("changes its own buffers; call model.eval() before you export it")
    if len(inputs) != 1 or len(outputs) != 1 or "as_tensor" not in outputs[0]["arg"]:
        raise UnsupportedError(f"has {len(inputs)} inputs and {len(outputs)} outputs; one tensor each is needed")
    program = Program({name: stored[name] for name in values.values()}, persistent, values)
    program.input, program.output = inputs[0], outputs[0]["arg"]["as_tensor"]["name"]
    program.shape = tuple(dim.get("as_int") for dim in graph["tensor_values"][program.input]["sizes"])
    return program


def _steps(node: dict[str, Any], own: torch.dtype, fixed: set[str]) -> Iterator[_Step]:
    """The node's operation, if it computes anything. Raises UnsupportedError."""
    target = node["target"].replace(".detach_.", ".detach.")  # in place only on the tape, which is ours
    if _CHECKS.fullmatch(target):
        return
    given = {item["name"]: _argument(item["arg"], own) for item in node["inputs"]}
    args = tuple(_argument(item["arg"], own) for item in node["inputs"] if item["kind"] != 2)
    kwargs = {item["name"]: given[item["name"]] for item in node["inputs"] if item["kind"] == 2}
    function = _ON_SHAPES.get(target) or _operation(target)
    if given.get("train") is True or given.get("training") is True:
        raise UnsupportedError(
            "is in training mode (dropout, batch statistics); call model.eval() before you export it"
        )
    changed = target.split(".")[-2].endswith("_") and args and isinstance(args[0], _Value)
    if changed and args[0].name in fixed:
        raise UnsupportedError("changes its weights, buffers or input in place; call model.eval() before you export it")
    yield _Step(function, args, kwargs, tuple(_outputs(node["outputs"])))


def _operation(target: str) -> Callable[..., Any]:
    """The `aten` operation of that name, if all it can do is compute tensors from tensors. Raises UnsupportedError."""
    found = _ATEN.fullmatch(target)
    packet = getattr(torch.ops.aten, found[1], None) if found else None
    overload = getattr(packet, found[2], None) if found and packet else None
    if not isinstance(overload, torch._ops.OpOverload):
        raise UnsupportedError(f"uses {target!r}, which is not one of PyTorch's tensor operations")
    schema = overload._schema
    mutates = schema.is_mutable and not _IN_PLACE.fullmatch(found[1])  # type: ignore[index]
    text = [a.name for a in schema.arguments if "str" in str(a.type) and a.name not in _TEXT_ARGUMENTS]
    tensors = all(re.fullmatch(r"(Optional\[)?(List\[)?Tensor\]?\]?|int|SymInt", str(r.type)) for r in schema.returns)
    random = torch.Tag.nondeterministic_seeded in overload.tags and "train" not in {a.name for a in schema.arguments}
    takes_dropout = "attention" in found[1] and any(a.name == "dropout_p" for a in schema.arguments)  # type: ignore[index]
    if mutates or text or not tensors or not schema.returns or found[1] == "from_file":  # type: ignore[index]
        raise UnsupportedError(f"uses {target!r}, which does more than compute tensors")
    if random and not takes_dropout:
        raise UnsupportedError(f"draws random numbers ({target!r})")
    return overload


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        ((kind, content),) = output.items()
        if kind == "as_tensor":
            yield content["name"]
        elif kind == "as_tensors":
            yield from (item["name"] for item in content)
        elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            yield content["as_name"]
        else:
            raise UnsupportedError(f"has an operation with an unusual result ({kind})")


def _argument(argument: dict[str, Any], own: torch.dtype) -> Any:
    """A node's argument: a constant, a list, or what stands for a value at run time. Raises UnsupportedError."""
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
        return _reference(value, own)
    if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_reference(item, own) for item in value]
    if kind in ("as_int", "as_bool", "as_string", "as_ints", "as_bools", "as_int_lists"):
        return value
    if kind == "as_float":
        return float(value)
    if kind == "as_floats":
        return [float(item) for item in value]
    if kind == "as_scalar_type" and value in _DTYPES:
        dtype = _DTYPES[value]
        return _Precision() if dtype == own else dtype
    if kind == "as_memory_format" and value in _MEMORY_FORMATS:
        return _MEMORY_FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return _Device()
    raise UnsupportedError(f"has an operation with an argument of an unusual kind ({kind})")


def _reference(value: dict[str, Any], own: torch.dtype) -> Any:
    if "name" in value:
        return _Value(value["name"])
    if "as_name" in value:
        return _Value(value["as_name"])
    return _argument(value, own)
