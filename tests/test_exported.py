"""torch.export programs: the same numbers as the network, second derivatives, and nothing in the file runs."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.errors import CheckpointError


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


class Convolutional(nn.Module):
    """Uses what exported networks use: convolution, in-place activations, constants, splits, shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.head.weight
        self.register_buffer("scale", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Some of everything."""
        h = self.drop(self.act(self.norm(self.conv(x))))
        a, b = h.chunk(2, 1)
        h = torch.cat([b, a], 1).mean((2, 3)) * self.scale + torch.zeros(x.shape[0], 4)
        h = self.again(torch.tanh(self.head(h))).view(x.size(0), 2, -1).reshape(h.shape[0], -1)
        return h * torch.tensor([1.0, 2.0, 3.0, 4.0])


def export(model: nn.Module, sample: Tensor, path: Path) -> None:
    program = torch.export.export(model, (sample,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def test_exported_programs_compute_the_same_and_have_second_derivatives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Convolutional().eval()
    export(model, torch.randn(3, 1, 8, 8), tmp_path / "c.pt2")
    found = read_checkpoint(tmp_path / "c.pt2")
    assert found.kind == "export"
    assert_same(dict(sorted(found.state.items())), dict(sorted(model.state_dict().items())))
    program = copy.deepcopy(found.module)
    assert program is not None
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(program.eval()(x), model(x))
    assert len(list(program.parameters())) == len(list(model.parameters()))  # the tie is kept
    model64, program64, x64 = model.double(), program.double(), x.double()
    torch.testing.assert_close(program64(x64), model64(x64), rtol=0, atol=0)

    def product(module: nn.Module) -> Tensor:
        loss = module(x64).square().sum()
        parameters = [p for _, p in sorted(module.named_parameters())]
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        inner = sum((g * torch.cos(p.detach())).sum() for g, p in zip(gradient, parameters, strict=True))
        return torch.cat([g.flatten() for g in torch.autograd.grad(inner, parameters)])  # type: ignore[arg-type]

    torch.testing.assert_close(product(program64), product(model64))


def test_exported_programs_of_other_kinds(tmp_path: Path) -> None:
    for number, (model, sample) in enumerate(
        [
            (nn.Sequential(nn.Linear(4, 5), nn.GELU(approximate="tanh"), nn.LayerNorm(5)), torch.randn(3, 4)),
            (nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 2)), torch.randint(0, 6, (3, 2))),
            (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(3, 4, 8)),
        ]
    ):
        export(model.eval(), sample, tmp_path / f"{number}.pt2")
        program = read_checkpoint(tmp_path / f"{number}.pt2").module
        assert program is not None
        more = torch.cat([sample, sample])
        torch.testing.assert_close(program(more), model(more))


def test_exported_programs_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + torch.rand_like(input))

    cases = [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(), "training mode"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), r"model\.eval\(\)"),
        (Noisy(4, 4), "random numbers"),
    ]
    for model, reason in cases:
        export(model, torch.randn(3, 4), tmp_path / "c.pt2")
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(tmp_path / "c.pt2")


# ---- hostile archives ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "c.pt2"
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    sample = torch.randn(3, 2)
    torch.export.save(torch.export.export(model, (sample,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    return path


def rewritten(source: Path, target: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, edit(entry.filename, old.read(entry)))
    return target


def in_json(
    change: Callable[[dict[str, Any]], None], suffix: str = "models/model.json"
) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith(suffix):
            return data
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return edit


def set_target(target: str, *arguments: dict[str, Any]) -> Callable[[str, bytes], bytes]:
    def change(document: dict[str, Any]) -> None:
        node = document["graph_module"]["graph"]["nodes"][1]
        node["target"] = target
        node["inputs"] = [{"name": f"a{i}", "arg": a, "kind": 1} for i, a in enumerate(arguments)]

    return in_json(change)


def everywhere(key: str, value: str) -> Callable[[str, bytes], bytes]:
    def walk(thing: Any) -> None:
        if isinstance(thing, dict):
            if key in thing:
                thing[key] = value
            for inner in thing.values():
                walk(inner)
        elif isinstance(thing, list):
            for inner in thing:
                walk(inner)

    return in_json(walk)


@pytest.mark.parametrize(
    "target",
    [
        "torch.serialization.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten._resize_output_.default",
        "torch.ops.aten.__class__.__init__",
        "torch.ops.load_library",
        "torch.ops.higher_order.cond",
        "torch.ops.inductor._reinterpret_tensor.default",
        "torch.hub.load",
        "_operator.attrgetter",
        "_operator.pow",
        "math.os.system",
        "#os.system",
        "eval",
    ],
)
def test_exported_graphs_reach_tensor_operations_only(tmp_path: Path, exported: Path, target: str) -> None:
    mark = tmp_path / "mark"
    edit = set_target(target, {"as_string": f"touch {mark}"})
    with pytest.raises(CheckpointError, match="uses '"):
        read_checkpoint(rewritten(exported, tmp_path / "c.pt2", edit))
    assert not mark.exists()


def test_exported_archives_with_code_in_them_run_nothing(tmp_path: Path, exported: Path) -> None:
    """Each of these runs its code under torch.export.load (sample inputs, weights, expressions)."""
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Calls(os.system, f"touch {mark}"), buffer)
    evil = buffer.getvalue()
    expression = f"__import__('os').system('touch {mark}')"

    def pickled_weights(name: str, data: bytes) -> bytes:
        if "weights/weight_" in name:
            return evil
        change = everywhere("use_pickle", True)  # type: ignore[arg-type]
        return change("models/model.json", data) if name.endswith("weights_config.json") else data

    harmless = [
        lambda name, data: evil if "sample_inputs" in name else data,
        everywhere("expr_str", expression),
        everywhere("stack_trace", expression),
        in_json(lambda document: document.update(guards_code=[expression])),
    ]
    for edit in harmless:
        program = read_checkpoint(rewritten(exported, tmp_path / "c.pt2", edit)).module
        assert program is not None
        assert program(torch.ones(2, 2)).shape == (2, 2)
    with pytest.raises(CheckpointError, match="pickled or custom objects"):
        read_checkpoint(rewritten(exported, tmp_path / "c.pt2", pickled_weights))
    outside = in_json(lambda d: d["config"]["0.weight"].update(path_name="../../x"), "model_weights_config.json")
    with pytest.raises(CheckpointError, match="pickled or custom objects"):
        read_checkpoint(rewritten(exported, tmp_path / "c.pt2", outside))
    assert not mark.exists()
