"""Sixty formats that libraries and scripts write, each read as the network that was saved or refused with a way out.

The layouts are those of the libraries themselves (lightning 2.6, transformers 5, peft 0.21, accelerate 1.15, diffusers
0.42, ema-pytorch 0.8, skorch 1.4, timm 1.0, torch.distributed.checkpoint), written out here by hand.
"""

from __future__ import annotations

import argparse
import collections
import copy
import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from landscape.checkpoints.checkpoint import load_into, read_checkpoint
from landscape.errors import CheckpointError


class Net(nn.Module):
    """A small network with buffers and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)


def made(seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for tensor in net.state_dict().values():
        tensor.copy_(torch.randint(1, 9, tensor.shape))  # numbers that half precision holds as well
    return net


NET, OTHER = made(1), made(2)
STATE: dict[str, Tensor] = dict(NET.state_dict())
EMA: dict[str, Tensor] = dict(OTHER.state_dict())
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 6)}}, "param_groups": [{"lr": 0.1}]}


def named(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(part: str) -> dict[str, Tensor]:
    return {name.replace(".", f".{part}.", 1): tensor for name, tensor in STATE.items()}


class Own:
    """Of the user's own."""


class Wrapped(nn.Module):
    """Of the user's own, with the network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.criterion = copy.deepcopy(NET), nn.CrossEntropyLoss(weight=torch.ones(3))


LIGHTNING = {
    "epoch": 1,
    "global_step": 8,
    "pytorch-lightning_version": "2.6.6",
    "state_dict": named("model.") | {"criterion.weight": torch.ones(3)},
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {
        "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "kth_value": torch.ones(())}
    },
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"width": 4},
}
# What torch.save writes, by name: the object, and what is said to read it.
SAVED: dict[str, tuple[Any, dict[str, Any]]] = {
    "state_dict": (STATE, {}),
    "ordered": (collections.OrderedDict(STATE), {}),
    "acc, epoch, state_dict (.t7)": ({"net": STATE, "acc": 93.1, "epoch": 300}, {}),
    "imagenet example": ({"epoch": 3, "arch": "x", "state_dict": named("module."), "best_acc1": torch.tensor(7.0)}, {}),
    "numpy score and namespace": (
        {"state_dict": STATE, "best": np.float64(1.0), "args": argparse.Namespace(lr=0.1)},
        {},
    ),
    "lightning": (LIGHTNING, {}),
    "lightning, averaged": (LIGHTNING | {"current_model_state": named("model.", EMA), "averaging_state": {"n": 3}}, {}),
    "fabric": ({"model": STATE, "optimizer": OPTIMIZER, "iter": 3}, {}),
    "ignite": ({"model": STATE, "optimizer": OPTIMIZER, "trainer": {"epoch_length": 3, "iteration": 6}}, {}),
    "catalyst": ({"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "epoch": 3}, {}),
    "nanogpt": (
        {
            "model": named("_orig_mod."),
            "optimizer": OPTIMIZER,
            "model_args": {"n_layer": 1},
            "best_val_loss": torch.ones(()),
        },
        {},
    ),
    "timm": ({"state_dict": STATE, "state_dict_ema": EMA, "arch": "x", "args": argparse.Namespace(lr=1)}, {}),
    "timm, averaged": ({"state_dict": EMA, "state_dict_ema": STATE}, {"key": "state_dict_ema"}),
    "deepspeed": (
        {"module": STATE, "optimizer": None, "ds_version": "0.17", "param_shapes": [{"a": torch.Size([2])}]},
        {},
    ),
    "composer": ({"state": {"model": named("module."), "optimizers": {"Adam": OPTIMIZER}}, "rng": []}, {}),
    "mmengine": ({"meta": {"iter": 3}, "state_dict": STATE, "message_hub": {}, "optimizer": OPTIMIZER}, {}),
    "fairseq": ({"args": None, "model": STATE, "last_optimizer_state": OPTIMIZER, "extra_state": {"x": 1}}, {}),
    "vissl": ({"classy_state_dict": {"base_model": {"model": {"trunk": STATE, "heads": {}}}}}, {}),
    "dino": ({"student": named("module.", EMA), "teacher": named("module."), "epoch": 3}, {"key": "teacher"}),
    "gan": ({"G": STATE, "D": EMA, "opt_G": OPTIMIZER}, {"key": "G"}),
    "moco": (
        named("module.encoder_q.") | named("module.encoder_k.", EMA) | {"module.queue": torch.ones(2, 3)},
        {"key": "module.encoder_q"},
    ),
    "ema-pytorch": (
        named("online_model.", EMA) | named("ema_model.") | {"initted": torch.tensor(True), "step": torch.tensor(3)},
        {"key": "ema_model"},
    ),
    "ema beside": ({"model": EMA, "ema": named("ema_model.") | named("online_model.", EMA)}, {"key": "ema.ema_model"}),
    "swa": (named("module.") | {"n_averaged": torch.tensor(4)}, {}),
    "data parallel": (named("module."), {}),
    "compiled": (named("_orig_mod."), {}),
    "compiled parts": (inside("_orig_mod"), {}),
    "fsdp": (named("_fsdp_wrapped_module."), {}),
    "fsdp of layers": (inside("_fsdp_wrapped_module"), {}),
    "activation checkpointing": (inside("_checkpoint_wrapped_module"), {}),
    "backbone": (named("backbone."), {}),
    "policy of reinforcement learning": (named("policy.features."), {}),
    "step beside": (STATE | {"step": torch.tensor(3)}, {}),
    "half precision": ({name: tensor.half() for name, tensor in STATE.items()}, {}),
    "bfloat16": ({name: tensor.bfloat16() for name, tensor in STATE.items()}, {}),
    "without counters": ({name: tensor for name, tensor in STATE.items() if "num_batches" not in name}, {}),
    "numpy arrays": ({name: tensor.numpy() for name, tensor in STATE.items()}, {}),
    "parts": (
        {
            part: {n.partition(".")[2]: t for n, t in STATE.items() if n.startswith(f"{part}.")}
            for part in ("a", "bn", "b")
        },
        {"key": "a,bn,b"},
    ),
    "criterion": ({"model": STATE, "criterion": nn.CrossEntropyLoss(weight=torch.ones(3))}, {}),
    "own class": ({"model": STATE, "config": Own()}, {"allow": f"{__name__}.Own"}),
    "whole model": (NET, {"allow": f"{__name__}.Net"}),
    "whole wrapper": ({"learner": Wrapped()}, {"allow": f"{__name__}.Net,{__name__}.Wrapped"}),
    "optimizer": (OPTIMIZER, {"refused": "an optimizer's state and no weights"}),
    "list of tensors": (list(NET.parameters()), {"refused": "holds a list, not named weights"}),
    "flat vector": (torch.ones(55), {"refused": "a vector of all parameters, perhaps"}),
    "random states": (
        {"cpu": torch.zeros(16, dtype=torch.uint8), "python": (3, (1, 2))},
        {"refused": "holds no weights"},
    ),
    "diverged": (STATE | {"a.bias": torch.full((4,), torch.nan)}, {"refused": "has NaN or Inf in a.bias"}),
    "float8": (STATE | {"a.weight": STATE["a.weight"].to(torch.float8_e5m2)}, {"refused": "of type torch.float8"}),
    "integers": (
        STATE | {"a.weight": STATE["a.weight"].to(torch.int8)},
        {"refused": "numbers of another kind: a.weight (int8"},
    ),
}


def zipped_policy(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", bytes(9000))


def tarred(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("model_weights.ckpt")
        entry.size = len(buffer.getvalue())
        archive.addfile(entry, io.BytesIO(buffer.getvalue()))


def hugging_face(folder: Path, name: str, write: Callable[[Path], Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write(folder / name)


def shards(folder: Path) -> None:
    folder.mkdir()
    names = list(STATE)
    files = {"pytorch_model-00001-of-00002.bin": names[:4], "pytorch_model-00002-of-00002.bin": names[4:]}
    for file, kept in files.items():
        torch.save({name: STATE[name] for name in kept}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, kept in files.items() for n in kept}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def distributed(folder: Path) -> None:
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"\x80\x04.")
    (folder / "__0_0.distcp").write_bytes(b"x")


def scripted(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # its code is compressed
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", bytes(9000))


# What is not written by torch.save: how to write it, and what is said to read it.
WRITTEN: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "before torch 1.6": (lambda p: torch.save({"net": STATE}, p, _use_new_zipfile_serialization=False), {}),
    "safetensors": (lambda p: save_file(STATE, p), {}),
    "safetensors of a model": (lambda p: save_model(NET, str(p)), {}),
    "safetensors of two": (lambda p: save_file(named("ema.") | named("raw.", EMA), p), {"key": "ema"}),
    "npz": (lambda p: np.savez(str(p) + ".npz", **{k: v.numpy() for k, v in STATE.items()}), {"name": "c.npz"}),  # type: ignore[arg-type]
    "transformers": (lambda p: hugging_face(p, "model.safetensors", lambda f: save_file(STATE, f)), {}),
    "transformers, older": (lambda p: hugging_face(p, "pytorch_model.bin", lambda f: torch.save(STATE, f)), {}),
    "diffusers": (lambda p: hugging_face(p, "diffusion_pytorch_model.safetensors", lambda f: save_file(STATE, f)), {}),
    "shards": (shards, {}),
    "distributed": (distributed, {"refused": "distributed checkpoint", "hint": "dcp_to_torch"}),
    "torchscript": (scripted, {"refused": "TorchScript archive", "hint": "torch.jit.load"}),
    "plain pickle": (lambda p: p.write_bytes(pickle.dumps(STATE)), {"refused": "plain pickle", "hint": "python -c"}),
    "another protocol": (
        lambda p: torch.save(STATE, p, pickle_protocol=4),
        {"refused": "another pickle protocol", "hint": "python -c"},
    ),
    "stable-baselines": (zipped_policy, {"refused": "it holds policy.pth", "hint": "python -m zipfile -e"}),
    "nemo": (tarred, {"refused": "tar archive", "hint": "tar -xf"}),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(99)), {"refused": "GGUF", "hint": "float weights"}),
    "keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), {"refused": "HDF5", "hint": "landscape info"}),
    "lfs pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), {"refused": "Git LFS"}),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(99)), {"refused": "is compressed", "hint": "gunzip <"}),
    "cut short": (lambda p: (torch.save(STATE, p), p.write_bytes(p.read_bytes()[:900])), {"refused": "cut short"}),
}
ZOO = {name: (lambda p, thing=thing: torch.save(thing, p), said) for name, (thing, said) in SAVED.items()} | WRITTEN


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 60


@pytest.mark.parametrize("kind", ZOO)
def test_every_format_is_the_network_that_was_saved_or_refused_with_a_way_out(tmp_path: Path, kind: str) -> None:
    write, said = ZOO[kind]
    write(tmp_path / "c")
    path = tmp_path / said.get("name", "c")
    if "allow" in said:  # refused first, with what is to be copied
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert f"--allow-global {said['allow']}" in (caught.value.hint or "")
    net = made(3)

    def load() -> None:
        load_into(net, read_checkpoint(path, [said["allow"]] if "allow" in said else (), said.get("key")))

    if "refused" in said:
        with pytest.raises(CheckpointError, match=re.escape(said["refused"])) as caught:
            load()
        assert said.get("hint", "") in (caught.value.hint or "")
        assert caught.value.hint
        return
    load()
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked") or kind != "without counters":
            assert torch.equal(tensor, STATE[name]), f"{kind}: {name}"
