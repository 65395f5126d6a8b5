"""Folders of runs: what in them is a checkpoint, as Hugging Face, PEFT, accelerate and torch.distributed write them."""

from __future__ import annotations

import json
import random
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import commands
from landscape.checkpoints.adapters import in_place, merged
from landscape.checkpoints.checkpoint import read_checkpoint
from landscape.checkpoints.coordinates import coordinates_of
from landscape.checkpoints.find import expand, natural, result_paths
from landscape.checkpoints.load import load_problem
from landscape.errors import CheckpointError

PROBLEM = """
import torch
from landscape import Problem
def problem():
    torch.manual_seed(0)
    return Problem(torch.nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2)), "mse")
"""


def state(number: float = 1.0) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), float(number)), "bias": torch.arange(2.0)}


def trained(folder: Path, number: float = 1.0, config: bool = True) -> Path:
    """A checkpoint as the Trainer of transformers leaves one, 15 files for three of them."""
    folder.mkdir(parents=True)
    save_file(state(number), folder / "model.safetensors", {"format": "pt"})
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer.pt")
    torch.save({"base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.1]}, folder / "scheduler.pt")
    torch.save({"cpu": torch.zeros(16, dtype=torch.uint8)}, folder / "rng_state.pth")
    torch.save({"args": 1}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")
    if config:
        (folder / "config.json").write_text('{"model_type": "linear"}')
    return folder


def sharded(folder: Path, ending: str, index: bool) -> Path:
    """The same in two files, with or without the index that names them."""
    folder.mkdir(parents=True)
    names = [f"{'model' if ending == '.safetensors' else 'pytorch_model'}-0000{n}-of-00002{ending}" for n in (1, 2)]
    for name, (key, tensor) in zip(names, state().items(), strict=True):
        save_file({key: tensor}, folder / name) if ending == ".safetensors" else torch.save(
            {key: tensor}, folder / name
        )
    if index:
        text = json.dumps({"weight_map": dict(zip(state(), names, strict=True))})
        (folder / f"{names[0].partition('-')[0]}{ending}.index.json").write_text(text)
    return folder


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards_are_one_checkpoint(tmp_path: Path, ending: str, index: bool) -> None:
    folder = sharded(tmp_path / "run" / "checkpoint-500", ending, index)
    assert expand([str(tmp_path / "run")]) == [folder]
    found = read_checkpoint(folder)
    assert same(dict(sorted(found.state.items())), dict(sorted(state().items())))
    assert found.coordinates == {"step": 500}
    shards = sorted(folder.glob("*-of-*"))
    with pytest.raises(CheckpointError, match="one of several files") as caught:
        read_checkpoint(shards[0])
    assert str(folder) in (caught.value.hint or "")
    if index:
        assert same(read_checkpoint(next(folder.glob("*.index.json"))).state, found.state)
    else:
        shards[0].unlink()
        with pytest.raises(CheckpointError, match="lacks number 1 of its 2 shards"):
            read_checkpoint(folder)


def test_a_run_is_searched_for_what_is_a_checkpoint(tmp_path: Path) -> None:
    for config in (True, False):
        run = tmp_path / f"config={config}"
        steps = [trained(run / f"checkpoint-{n}", n, config) for n in (500, 1000)]
        wanted = steps if config else [step / "model.safetensors" for step in steps]
        for pattern in (str(run), str(run / "checkpoint-*"), str(tmp_path / "*" / "checkpoint-*"), str(run / "**")):
            found = [p for p in expand([pattern]) if run in p.parents]
            assert found == wanted, pattern
            assert [read_checkpoint(p).coordinates["step"] for p in found] == [500, 1000]
        said: list[str] = []
        expand([str(run)], said.append)
        assert len(said) == (0 if config else 1)
        assert config or "optimizer.pt (an optimizer's state)" in said[0]
    assert expand([str(tmp_path / "**" / "*.safetensors")]) == sorted(tmp_path.rglob("model.safetensors"), key=natural)


def test_a_folder_of_one_network_says_what_lies_below(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    trained(tmp_path / "run" / "checkpoint-500")
    said: list[str] = []
    assert expand([str(tmp_path / "run")], said.append) == [tmp_path / "run"]
    assert "checkpoint-500 (checkpoints below it" in said[0]


def test_nothing_is_passed_over_that_could_be_a_checkpoint(tmp_path: Path) -> None:
    """Random folders of weights and of what lies beside them, under names that say nothing."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    weights: list[Any] = [state(), {"model": state()}, {"net": nn.Linear(3, 2)}, {"payload": {"x": {"y": state()}}}]
    others: list[Any] = [
        {"state": {}, "param_groups": []},
        {"optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": []}},
        {"epoch": 3},
        torch.zeros(4, dtype=torch.uint8),
        [torch.ones(3)],
        {"rng": torch.zeros(4, dtype=torch.uint8)},
    ]
    for trial in range(6):
        folder = tmp_path / str(trial)
        wanted = set()
        for number in range(8):
            path = folder / rng.choice("abc") / f"{number}{rng.choice(['.pt', '.pth', '.ckpt', '.bin'])}"
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = rng.choice(["weights", "others", "damaged", "old"])
            if kind in ("weights", "damaged"):
                torch.save(rng.choice(weights), path)
            elif kind == "old":
                torch.save(rng.choice(weights[:2]), path, _use_new_zipfile_serialization=False)
            else:
                torch.save(rng.choice(others), path)
            if kind == "damaged":
                path.write_bytes(path.read_bytes()[: rng.randrange(20, 400)])
            wanted |= {path} if kind != "others" else set()
        found = set(expand([str(folder)])) if wanted else set()
        assert found == wanted, f"seed {seed}"


def test_a_search_unpacks_nothing(tmp_path: Path) -> None:
    """An archive of 10 kB that would fill 10 MB is left for the reader to refuse."""
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", b"\x80\x02}FloatStorage" + bytes(10_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "read", None)  # an error if it is called
        patch.setattr("landscape.checkpoints.unpickle._unsafe_globals", None)
        assert expand([str(tmp_path)]) == [tmp_path / "c.pt"]


def test_an_empty_search_says_what_there_was(tmp_path: Path) -> None:
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint, but 1: optimizer\.pt \(an optimizer's state\)"):
        expand([str(tmp_path)])
    with pytest.raises(CheckpointError, match="matches no checkpoint"):
        expand([str(tmp_path / "*.ckpt")])


def test_a_folder_keeps_its_whole_name_in_that_of_its_result(tmp_path: Path) -> None:
    paths = [trained(tmp_path / name) for name in ("lr=0.1", "lr=0.2")]
    assert [p.name for p in result_paths(paths, Path("out"), "spectrum")] == [
        "lr=0.1.spectrum.h5",
        "lr=0.2.spectrum.h5",
    ]


def test_distributed_checkpoints_reach_their_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names torch's own program, which writes what is read here; a stand-in for it checks the words."""
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"x")
    (folder / "__0_0.distcp").write_bytes(b"x")
    for pattern in (folder, tmp_path, tmp_path / "d*"):
        assert expand([str(pattern)]) == [folder]
    with pytest.raises(CheckpointError, match="distributed checkpoint") as caught:
        read_checkpoint(folder)
    words = shlex.split((caught.value.hint or "").partition(": ")[2])
    assert words == [
        *("python", "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"),
        *(str(folder), f"{folder}.pt"),
    ]


def test_a_run_on_the_command_line(tmp_path: Path) -> None:
    """`spectrum` and `info` on a run of the Trainer, and on a file with two sets of weights."""
    (tmp_path / "problem.py").write_text(PROBLEM)
    for n in (500, 1000):
        trained(tmp_path / "run" / f"checkpoint-{n}", n)
    options = ("--problem", "problem.py", "--json", "--no-density", "--top", "1", "--bottom", "1")
    done = commands.run("spectrum", "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["coordinates"] for f in found] == [{"step": 500}, {"step": 1000}]
    assert [Path(f["result"]).name for f in found] == ["checkpoint-500.spectrum.h5", "checkpoint-1000.spectrum.h5"]
    torch.save({"model": state(1), "model_ema": state(2)}, tmp_path / "c.pt")
    losses = []
    for key in ((), ("--key", "model_ema")):
        done = commands.run("spectrum", "c.pt", *options, *key, "--out", f"out{len(key)}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads(done.stdout)["loss"])
    assert losses[0] != losses[1]
    done = commands.run("spectrum", "c.pt", *options, "--key", "model_ema", "--out", "out0", cwd=tmp_path)
    assert done.returncode == 5  # another result lies there
    shown = commands.run("info", "c.pt", "--key", "model_ema", "--json", cwd=tmp_path)
    assert "model_ema" in json.loads(shown.stdout)["notes"][0]
    listed = commands.run("info", "run", cwd=tmp_path)
    assert "checkpoints in run: 2" in listed.stdout


# ---- PEFT adapters --------------------------------------------------------------------------------------------------


class Low(nn.Module):
    """A linear layer with a low-rank change, as PEFT builds and names it."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base.requires_grad_(False), scale
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        low: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + self.scale * low  # type: ignore[no-any-return]


class Saved(nn.Module):
    """A layer that PEFT trains as a whole (`modules_to_save`)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.original_module, self.modules_to_save = layer.requires_grad_(False), nn.ModuleDict()
        self.modules_to_save["default"] = nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)  # type: ignore[no-any-return]


def base_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def adapted(seed: int, rank: int = 2, scale: float = 1.5) -> nn.Module:
    base = base_network(seed)
    inner = nn.Sequential(Low(base[0], rank, scale), nn.Tanh(), Saved(base[2]))  # type: ignore[arg-type]
    return nn.ModuleDict({"base_model": nn.ModuleDict({"model": inner})})


def adapter_folder(folder: Path, model: nn.Module, **config: Any) -> Path:
    """What `save_pretrained` of a PEFT model writes: its tensors without the adapter's own name."""
    folder.mkdir()
    state = {
        name.replace(".default", "").replace(".modules_to_save", ""): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if "lora_" in name or "modules_to_save" in name
    }
    save_file(state, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "some/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


ADAPTED = """
import torch
from test_folders import adapted, base_network
from landscape import Problem
def data():
    torch.manual_seed(0)
    return torch.randn(5, 3), torch.randn(5, 2)
class Whole(torch.nn.Module):
    def __init__(self, inner):
        super().__init__(); self.base_model = inner["base_model"]
    def forward(self, x):
        return self.base_model["model"](x)
def peft():
    return Problem(Whole(adapted(7)), data(), "mse")
def plain():
    return Problem(base_network(8), data(), "mse")
"""


def test_adapters_are_read_beside_their_base_or_merged_into_it(tmp_path: Path) -> None:
    (tmp_path / "problem.py").write_text(ADAPTED)
    torch.manual_seed(5)
    truth = adapted(7)
    for name, tensor in truth.state_dict().items():
        if "lora_" in name or "modules_to_save" in name:
            tensor.normal_()
    folder = adapter_folder(tmp_path / "checkpoint-20", truth)
    assert expand([str(tmp_path)]) == [folder]
    assert read_checkpoint(folder / "adapter_model.safetensors").adapter == read_checkpoint(folder).adapter
    inputs = torch.randn(6, 3)
    wanted = truth["base_model"]["model"](inputs)  # type: ignore[index, operator]
    beside = load_problem(folder, f"{tmp_path / 'problem.py'}:peft")
    assert torch.equal(beside.problem.model(inputs), wanted)
    assert any("4 tensors beside the adapter's are as the problem function made them" in n for n in beside.notes)
    with pytest.raises(CheckpointError, match="an adapter of 'some/base', which is no folder here") as caught:
        load_problem(folder, f"{tmp_path / 'problem.py'}:plain")
    assert "peft.get_peft_model" in (caught.value.hint or "")
    (tmp_path / "base").mkdir()
    save_file(base_network(7).state_dict(), tmp_path / "base" / "model.safetensors")
    folder = adapter_folder(tmp_path / "checkpoint-40", truth, base_model_name_or_path=str(tmp_path / "base"))
    whole = load_problem(folder, f"{tmp_path / 'problem.py'}:plain")
    assert torch.allclose(whole.problem.model(inputs), wanted, atol=1e-6)
    assert any("merged into the weights of" in note for note in whole.notes)
    assert whole.problem_identity["base"] == read_checkpoint(tmp_path / "base").sha256


def test_adapters_of_other_kinds_are_refused_by_name() -> None:
    state = {"base_model.model.0.lora_A.weight": torch.ones(2, 3), "base_model.model.0.lora_B.weight": torch.ones(4, 2)}
    base = dict(base_network(1).state_dict())
    for config, words in (
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"peft_type": "LORA", "use_dora": True}, "with use_dora"),
    ):
        with pytest.raises(CheckpointError, match=words):
            merged("a", base, state, config)
    moved = {k.replace(".0.", ".9."): v for k, v in state.items()}
    with pytest.raises(CheckpointError, match=r"changes 9\.weight, which its base does not have"):
        merged("a", base, moved, {"peft_type": "LORA"})
    with pytest.raises(CheckpointError, match="no place for"):
        in_place(adapted(1), {"base_model.model.9.lora_A.weight": torch.ones(2)})


@pytest.mark.parametrize("config", [{"lora_alpha": 6}, {"use_rslora": True}, {"alpha_pattern": {"0": 5}}])
def test_scales_of_merged_adapters(config: dict[str, Any]) -> None:
    low, high = torch.randn(2, 3), torch.randn(4, 2)
    state = {"base_model.model.0.lora_A.weight": low, "base_model.model.0.lora_B.weight": high}
    base = dict(base_network(1).state_dict())
    scale = {"lora_alpha": 6 / 2, "use_rslora": 4 / 2**0.5, "alpha_pattern": 5 / 2}[next(iter(config))]
    found = merged("a", base, state, {"peft_type": "LORA", "lora_alpha": 4} | config)
    assert torch.allclose(found["0.weight"], base["0.weight"] + scale * high @ low, atol=1e-5)
    turned = merged(
        "a", {"0.weight": base["0.weight"].T}, state, {"peft_type": "LORA", "fan_in_fan_out": True} | config
    )
    assert turned["0.weight"].shape == (3, 4)


def test_steps_in_names_of_folders() -> None:
    assert coordinates_of("out/run/checkpoint-500/model.safetensors", {}) == {"step": 500}
    assert coordinates_of("out/global_step500/mp_rank_00_model_states.pt", {}) == {"step": 500}
    for name in ("checkpoint_000003/model.pt", "my-checkpoint-5x/m.pt", "checkpoint-2024-01-01/m.pt", "checkpoints-5"):
        assert coordinates_of(name, {}) == {}
