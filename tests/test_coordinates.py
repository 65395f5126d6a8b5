"""Coordinates of a checkpoint: what a name says is read, what it does not say is never made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.checkpoints.coordinates import coordinates_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/width=64/seed=3/final.pt", {"width": 64, "seed": 3}),
        ("w64_s3.pt", {"width": 64, "seed": 3}),
        ("W64-S3/model.safetensors", {"width": 64, "seed": 3}),
        ("w64/s3/x.pt", {"width": 64, "seed": 3}),
        ("width64-seed3.pt", {"width": 64, "seed": 3}),
        ("runs/seed_3/width_64/x.pt", {"seed": 3, "width": 64}),
        ("mlp-width-64-seed-1.pt", {"width": 64, "seed": 1}),
        ("width=8/step=2000.pt", {"width": 8, "step": 2000}),
        ("epoch=3-step=1000.ckpt", {"epoch": 3, "step": 1000}),
        ("epoch=02-val_loss=0.32-v1.ckpt", {"epoch": 2, "val_loss": 0.32}),
        ("checkpoint_epoch_10_0.93.pth", {"epoch": 10}),
        ("resnet18_w64.pt", {"width": 64}),
        ("name=resnet18_w64/x.pt", {"name": "resnet18_w64"}),
        ("model.width=64,seed=3/a.pt", {"width": 64, "seed": 3}),
        ("model.lr=1,opt.lr=2/x.pt", {"model.lr": 1, "opt.lr": 2}),
        ("lr=1e-3_seed=1.pt", {"lr": 1e-3, "seed": 1}),
        ("lr1e-3_seed1/x.pt", {"lr": 1e-3, "seed": 1}),
        ("optimizer=adam_lr=0.1/w=4,s=2.pt", {"optimizer": "adam", "lr": 0.1, "width": 4, "seed": 2}),
        ("width=64_final.pt", {"width": 64}),
        ("width=64/seed=1/old/seed=2/x.pt", {"width": 64, "seed": 2}),
        ("date=2024-01-01/x.pt", {"date": "2024-01-01"}),
        ("lr=0.01.pt", {"lr": 0.01}),
        ("lr=-.5/x.pt", {"lr": -0.5}),
        ("hidden=[8,8]_width=8/final.pt", {"hidden": "[8,8]", "width": 8}),
        ("hidden=[8,8]_final.pt", {"hidden": "[8,8]"}),
        ("w=2,betas=(0.9, 0.99),act=relu.pt", {"width": 2, "betas": "(0.9, 0.99)", "act": "relu"}),
        ("opt=Adam(lr=0.1,eps=2)_w=4/x.pt", {"opt": "Adam(lr=0.1,eps=2)", "width": 4}),
        # nothing to read
        ("2024-01-01/12-00-00/v2/model.pt", {}),
        ("step_2024-01-01.pt", {}),
        ("/mnt/s3/bucket/model.pt", {}),
        ("version_3/resnet18/vgg16_bn.pt", {}),
        ("seed3.1/stepwidth4/midwidth64x.pt", {}),
        ("seed=/=3/a==b/x.pt", {}),
        ("v2.pt", {}),
        ("hidden=[8,8/x=8]/opt=Adam(1/x.pt", {}),
        ("", {}),
        ("/", {}),
    ],
)
def test_paths(path: str, expected: dict[str, Any]) -> None:
    got = coordinates_of(path, {})
    assert got == expected
    assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in expected.items()}


def test_root_limits_what_is_read() -> None:
    path = "/data/seed=9/runs/width=64/final.pt"
    assert coordinates_of(path, {}) == {"seed": 9, "width": 64}
    assert coordinates_of(path, {}, root="/data/seed=9/runs") == {"width": 64}
    assert coordinates_of(path, {}, root="/elsewhere") == {"seed": 9, "width": 64}


def test_header_wins_over_path_over_sidecar(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("width: 1\nseed: 1\nlr: 0.1\n")
    path = tmp_path / "width=2" / "seed=2" / "final.pt"
    header = {"coordinates": {"width": 3, "nested": {"not": "scalar"}}}
    assert coordinates_of(path, header, root=tmp_path) == {"width": 3, "seed": 2, "lr": 0.1}
    assert coordinates_of("seed=2.pt", {"coordinates": "odd"}) == {"seed": 2}


OVERRIDES = """\
- model.width=64
- 'seed=3'
- +optimizer.lr=1e-3   # a comment
- model=mlp
- ~callbacks
- layers=[64,64]
- name=null
"""
CONFIG = """\
# comment
defaults:
  - base
model:
  width: 128   # the default
  depth: 2
  act: "relu"
data: {name: mnist, batch_size: 5}
batch_size: 32
seed: null
weight_decay: &anchor 0.1
trainer:
  max_steps: 1000
"""


@pytest.mark.parametrize("below", ["", "checkpoints", "a/b"])
def test_hydra(tmp_path: Path, below: str) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(OVERRIDES)
    (tmp_path / ".hydra" / "config.yaml").write_text(CONFIG)
    got = coordinates_of(tmp_path / below / "last.ckpt", {}, root=tmp_path)
    assert got == {"width": 64, "seed": 3, "lr": 1e-3, "model": "mlp", "depth": 2, "batch_size": 32}


HPARAMS = """\
width: 16
loss: !!python/object:x.Y
  width: 3
notes: |
  depth: 4
  seed: 5
lr: 0.02
layers:
  - depth: 6
    batch_size: 7
a: {b: 1,
  weight_decay: 8}
name: mlp
"""


def test_lightning(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hparams.yaml").write_text(HPARAMS)
    got = coordinates_of(folder / "checkpoints" / "epoch=3-step=40.ckpt", {}, root=tmp_path)
    assert got == {"width": 16, "lr": 0.02, "epoch": 3, "step": 40}


def test_ambiguous_sidecars_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("encoder:\n  width: 3\ndecoder:\n  width: 4\nseed: 1\n")
    assert coordinates_of(tmp_path / "x.pt", {}, root=tmp_path) == {"seed": 1}


def test_sidecars_far_above_are_not_meant(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("width: 1\n")
    assert coordinates_of(tmp_path / "a" / "b" / "c" / "x.pt", {}, root=tmp_path) == {}


def test_relative_paths_find_their_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hparams.yaml").write_text("width: 1\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert coordinates_of("x.pt", {}) == {"width": 1}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00" * 100, b"width:" * 1000, b"[]", b"", b"- \n-\n: :\n"])
def test_odd_sidecars_are_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in (".hydra/overrides.yaml", ".hydra/config.yaml", "hparams.yaml"):
        (tmp_path / name).write_bytes(content)
    assert coordinates_of(tmp_path / "x.pt", {}, root=tmp_path) == {}
    (tmp_path / "hparams.yaml").unlink()
    (tmp_path / "hparams.yaml").mkdir()
    assert coordinates_of(tmp_path / "x.pt", {}, root=tmp_path) == {}


numbers = st.integers(0, 10**6)
calm = settings(deadline=None)  # a busy machine is not an error


@calm
@given(numbers, numbers, st.sampled_from(["width={}/seed={}", "w{}_s{}", "width{}-seed{}", "width_{}/seed-{}"]))
def test_every_spelling_gives_the_same(width: int, seed: int, spelling: str) -> None:
    assert coordinates_of(f"runs/{spelling.format(width, seed)}/final.pt", {}) == {"width": width, "seed": seed}


floats = st.floats(allow_nan=False, allow_infinity=False)


@calm
@given(st.dictionaries(st.from_regex(r"[a-z]{2,8}", fullmatch=True), numbers | floats, min_size=1, max_size=4))
def test_pairs_come_back_exactly(pairs: dict[str, int | float]) -> None:
    for separator in ("/", ",", " "):
        text = separator.join(f"{k}={v!r}" for k, v in pairs.items())
        assert coordinates_of(f"{text}/x.pt", {}) == pairs


inner = st.recursive(
    numbers | floats | st.sampled_from(["relu", "a=1"]), lambda below: st.lists(below, max_size=3), max_leaves=6
)


@calm
@given(
    st.dictionaries(st.from_regex(r"[a-z]{2,8}", fullmatch=True), st.lists(inner, max_size=2), min_size=1, max_size=4)
)
def test_lists_are_read_whole(pairs: dict[str, list[Any]]) -> None:
    for separator in ("/", ",", "_"):
        text = separator.join(f"{k}={v}" for k, v in pairs.items())
        assert coordinates_of(f"{text}/x.pt", {}) == {k: str(v) for k, v in pairs.items()}


@calm
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=60))
def test_any_path_gives_plain_values_of_named_keys(text: str) -> None:
    for key, value in coordinates_of(text, {}).items():
        assert key
        assert type(value) in (int, float, str)
        assert value == value and value not in ("", float("inf"), float("-inf"))  # noqa: PT018


@calm
@given(st.lists(st.sampled_from(["resnet18", "v2", "2024-01-01", "final", "run", "x86", "b0", "s3"]), max_size=5))
def test_words_with_numbers_are_no_coordinates(words: list[str]) -> None:
    for separator in "_-/":
        assert coordinates_of(separator.join(words) + ".pt", {}) == {}


@calm
@given(st.text(max_size=200))
def test_any_sidecar_is_survived(text: str) -> None:
    from landscape.checkpoints import coordinates

    pairs = list(coordinates._yaml_scalars(text))
    assert all(type(v) in (int, float, str) for _, v in [*pairs, *coordinates._overrides(pairs)])
