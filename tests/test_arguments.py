"""Texts of --set and of paths become what a problem function says it takes, or are refused; the settings of the run."""

from __future__ import annotations

import ast
import enum
import json
import math
import random
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from landscape.checkpoints.arguments import Unconvertible, converted, kinds_of
from landscape.checkpoints.coordinates import coordinates_of, words_of
from landscape.checkpoints.load import load_problem
from landscape.checkpoints.run_config import Config, read_yaml
from landscape.errors import CheckpointError, UsageError
from landscape.points.settings import DescendSettings, EscapeSettings
from landscape.settings import keyword_settings
from landscape.slices.settings import SliceSettings
from landscape.spectra.settings import SpectrumSettings
from landscape.widening.settings import WidenSettings


class Size(enum.Enum):
    """For annotations."""

    SMALL = 1
    LARGE = "big"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("false", bool, False),
        ("True", bool, True),
        ("0", bool, False),
        ("007", int, 7),
        ("1e3", int, 1000),
        ("64.0", int, 64),
        ("1e-3", float, 1e-3),
        ("3", float, 3.0),
        ("007", str, "007"),
        ("True", str, "True"),
        ("x/y", Path, Path("x/y")),
        ("none", int | None, None),
        ("3", int | None, 3),
        ("0.5", int | float, 0.5),
        ("2", float | int | str, 2.0),
        ("adam", float | str, "adam"),
        ("sgd", Literal["adam", "sgd"], "sgd"),
        ("true", Literal[True, "auto"], True),
        ("2", Literal[1, 2], 2),
        ("LARGE", Size, Size.LARGE),
        ("big", Size, Size.LARGE),
        ("64,32", list[int], [64, 32]),
        ("(64,32)", tuple[int, ...], (64, 32)),
        ("a,b", list[str], ["a", "b"]),
        ("[a, b]", list[str], ["a", "b"]),
        ("[relu,(1,2)]", Any, ["relu", (1, 2)]),
        ("64,32", list, [64, 32]),
        ("[64]", tuple, (64,)),
        ("{'a': 1}", dict, {"a": 1}),
        ("(1, 'x')", Any, (1, "x")),
        ("false", Any, False),
        ("word", Any, "word"),
    ],
)
def test_texts_become_what_an_annotation_says(text: str, kind: Any, value: Any) -> None:
    found = converted(text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("maybe", bool), ("2", bool), ("1.5", int), ("x", int), ("inf", int), ("", int), ("x", float)),
        *(("x", int | None), ("rmsprop", Literal["adam", "sgd"]), ("HUGE", Size), ("1,x", list[int])),
        ("(1,2,3)", tuple[int, int]),
        *(("[8", list[str]), ("8]", list[str]), ("4", list), ("[8,8", list), ("(4)", tuple), ("4", dict), ("[1]", set)),
    ],
)
def test_what_does_not_convert_is_refused(text: str, kind: Any) -> None:
    with pytest.raises(Unconvertible):
        converted(text, kind)


def test_every_value_comes_back_from_its_text() -> None:
    """Random values of every kind, written as a person and as Python writes them."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for _ in range(300):
        value: Any = rng.choice(
            [rng.random() < 0.5, rng.randrange(-99, 10**6), rng.uniform(-1e3, 1e3), f"v{rng.random()}"]
        )
        for text in {str(value), repr(value) if not isinstance(value, str) else value, f" {value}".lower()}:
            kind = type(value)
            if kind is str:
                text = text.strip()
            assert converted(text, kind) == value, f"seed {seed}: {text!r}"


def test_defaults_say_what_a_function_takes_where_annotations_do_not() -> None:
    def function(a, flag=False, size=4, rate=0.1, name="x", other=None, typed: int = 3):  # type: ignore[no-untyped-def]
        """Of every kind."""

    kinds = kinds_of(function)
    assert kinds["flag"] is bool
    assert kinds["name"] is str
    assert kinds["typed"] is int
    assert kinds_of(lambda sizes=[4]: sizes)["sizes"] is list
    assert kinds["a"] is Any
    assert kinds["other"] is Any
    assert converted("0.5", kinds["size"]) == 0.5
    with pytest.raises(Unconvertible):
        converted("big", kinds["size"])


# ---- in a problem function ------------------------------------------------------------------------------------------

FILE = """
import json
import pathlib
import torch
from torch import nn
from landscape import Problem

def problem({parameters}):
    {body}
    model = nn.Linear(2, 1)
    return Problem(model, (torch.ones(3, 2), torch.ones(3, 1)), "mse")
"""


def seen(folder: Path, parameters: str, place: str = "c.pt", settings: dict[str, Any] | None = None) -> Any:
    """What a problem function of these parameters gets, and what is loaded by it."""
    (folder / "problem.py").write_text(
        FILE.format(parameters=parameters, body="pathlib.Path('seen.json').write_text(json.dumps(locals()))")
    )
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    loaded = load_problem(str(path), str(folder / "problem.py"), settings or {})
    return json.loads((folder / "seen.json").read_text()), loaded


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_parser_for_paths_and_settings(tmp_path: Path) -> None:
    for place, settings in (("skip=false/c.pt", {}), ("c.pt", {"skip": "false"})):
        assert seen(tmp_path, "skip: bool = True", place, settings)[0] == {"skip": False}
        assert seen(tmp_path, "skip=True", place, settings)[0] == {"skip": False}
        assert seen(tmp_path, "skip=None", place, settings)[0] == {"skip": False}
        assert seen(tmp_path, "skip: str", place, settings)[0] == {"skip": "false"}
    assert seen(tmp_path, "run: str", "run=007/c.pt")[0] == {"run": "007"}
    assert seen(tmp_path, "run: int", "run=007/c.pt")[0] == {"run": 7}
    assert seen(tmp_path, "run", "run=007/c.pt")[0] == {"run": 7}
    for parameters in ("skip: bool", "skip=True", "skip: int = 3"):
        with pytest.raises(UsageError, match="skip=maybe of the checkpoint's path is not what problem"):
            seen(tmp_path, parameters, "skip=maybe/c.pt")
        with pytest.raises(UsageError, match="--set skip=maybe is not what problem"):
            seen(tmp_path, parameters, "c.pt", {"skip": "maybe"})


def test_lists_in_paths_are_read_whole_and_lone_numbers_are_no_lists(tmp_path: Path) -> None:
    place = "hidden=[8,8]_width=8/c.pt"
    for parameters in ("hidden", "hidden=[4]", "hidden=None", "hidden: list[int] = [4]"):
        assert seen(tmp_path, parameters, place)[0] == {"hidden": [8, 8]}
    assert seen(tmp_path, "hidden: str", place)[0] == {"hidden": "[8,8]"}
    assert seen(tmp_path, "hidden, width", place)[0] == {"hidden": [8, 8], "width": 8}
    assert seen(tmp_path, "hidden=None", "hidden=[8,8/c.pt")[0] == {"hidden": None}
    for place, settings in (("hidden=4/c.pt", {}), ("c.pt", {"hidden": "4"})):
        with pytest.raises(
            UsageError, match=r"hidden=4 .*is not what problem\(\) takes there: a list such as \[64,32\]"
        ):
            seen(tmp_path, "hidden=[4]", place, settings)


def test_a_function_may_take_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "c.pt")
    assert seen(tmp_path, "path")[0] == {"path": path}
    assert seen(tmp_path, "path=None")[0] == {"path": path}
    assert seen(tmp_path, "path='data.npz'")[0] == {"path": "data.npz"}  # a parameter of its own
    assert seen(tmp_path, "path", "c.pt", {"path": "other"})[0] == {"path": "other"}


INSIDE = {"width": 64, "model": {"act": "relu", "layers": [1, 2]}}


@pytest.mark.parametrize("key", ["config", "args", "hparams", "hyper_parameters"])
def test_settings_of_the_run_from_inside_the_file(tmp_path: Path, key: str) -> None:
    torch.save({"state_dict": torch.nn.Linear(2, 1).state_dict(), key: INSIDE}, tmp_path / "c.pt")
    (tmp_path / "config.json").write_text('{"width": 3}')
    found, loaded = seen(tmp_path, "config")
    assert found == {"config": INSIDE}
    assert f"config is that under {key!r} in the file" in loaded.notes
    assert loaded.problem_identity["config"] == INSIDE


YAML = """
# of a run
width: 64   # wide
model:
  act: 'relu'
  layers: [1, 2]
  names:
  - a
  - b
rate: 1e-3
skip: false
seed: null
"""
READ = {
    "width": 64,
    "model": {"act": "relu", "layers": [1, 2], "names": ["a", "b"]},
    "rate": 1e-3,
    "skip": False,
    "seed": None,
}


@pytest.mark.parametrize("name", ["config.yaml", "hparams.yaml", "config.json", "params.json", ".hydra/config.yaml"])
@pytest.mark.parametrize("below", ["", "checkpoints", "a/b"])
def test_settings_of_the_run_from_beside_the_file(tmp_path: Path, name: str, below: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(READ) if name.endswith(".json") else YAML)
    found, loaded = seen(tmp_path, "config", f"{below}/c.pt" if below else "c.pt")
    assert {**found["config"], "rate": float(found["config"]["rate"])} == READ  # PyYAML reads 1e-3 as a text
    assert f"config is that {file}" in loaded.notes


def test_settings_of_wandb_and_those_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "_wandb:\n  value:\n    cli_version: 0.17\nwidth:\n  desc: null\n  value: 64\n"
    )
    assert seen(tmp_path, "config")[0] == {"config": {"width": 64}}
    (tmp_path / "config.yaml").write_text("a: [1\n  {")
    with pytest.raises(CheckpointError, match=r"config\.yaml, the settings of this run, cannot be read"):
        seen(tmp_path, "config")
    (tmp_path / "config.yaml").unlink()
    assert seen(tmp_path, "config=None")[0] == {"config": None}
    assert seen(tmp_path, "config={'width': 2}")[0] == {"config": {"width": 2}}
    with pytest.raises(UsageError, match=r"problem\(\) asks for config") as caught:
        seen(tmp_path, "config")
    assert "config.yaml" in (caught.value.hint or "")


def test_settings_by_name_and_as_attributes() -> None:
    config = Config({"a": {"b": [{"c": 1}]}})
    assert config.a.b[0].c == config["a"]["b"][0]["c"] == 1
    with pytest.raises(AttributeError, match="no 'width'; it has a"):
        _ = config.width
    with pytest.raises(KeyError, match="no 'width'"):
        config["width"]
    with pytest.raises(ValueError, match=r"PyYAML|expected"):
        read_yaml("a: &x\n  - {b: [}\n")


# ---- names of Ray Tune ----------------------------------------------------------------------------------------------


def trial(rng: random.Random, config: dict[str, Any]) -> str:
    """The folder of a trial as Ray Tune names it (`Trial.generate_dirname`, `format_vars`), long names cut."""
    texts = {
        k: f"{v:.4f}"
        if isinstance(v, float)
        else "".join(c if c.isalnum() or c in "_-" else "_" for c in str(v)).strip("_")
        for k, v in config.items()
    }
    tag = f"{rng.randrange(50)}_" + ",".join(f"{k.split('/')[-1]}={texts[k]}" for k in sorted(config))
    name = f"train_fn_{rng.randrange(16**5):05x}_{rng.randrange(100):05d}_{tag}"[:130]
    return f"{name}_2024-01-0{rng.randrange(1, 10)}_12-33-44"


def test_names_of_ray_tune_give_the_right_coordinates_or_none(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    keys = ["width", "lr", "opt/momentum", "act", "seed", "layers", "data", "a_rather_long_name_of_a_setting"]
    for number in range(60):
        made = {
            k: rng.choice([rng.randrange(1000), 10.0 ** rng.uniform(-6, 0), "relu", "a/b"]) for k in rng.sample(keys, 5)
        }
        truth = {k.split("/")[-1]: v for k, v in made.items()}
        folder = tmp_path / str(number) / trial(rng, made)
        found = coordinates_of(folder / "checkpoint_000003" / "model.pt", {}, root=tmp_path / str(number))
        assert all(truth[k] == v for k, v in found.items()), f"seed {seed}: {folder.name} gives {found}"
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps(made))
        found = coordinates_of(folder / "model.pt", {}, root=tmp_path / str(number))
        assert all(truth[k] == v for k, v in found.items()), f"seed {seed}: {folder.name} gives {found}"
        shown = {k for k in truth if f"{k}=" in folder.name.partition("_2024")[0][:120]}
        assert shown <= set(found), f"seed {seed}: {folder.name}"


def test_words_of_a_path_are_its_own_letters() -> None:
    path = "run=007/width=64/x.pt"
    assert words_of(path, coordinates_of(path, {})) == {"run": "007", "width": "64"}
    assert words_of(path, {"run": 8, "width": 64}) == {"width": "64"}  # a header's run


# ---- keywords of the library ----------------------------------------------------------------------------------------

ANALYSES = (SpectrumSettings, SliceSettings, DescendSettings, EscapeSettings, WidenSettings)
SPELT: list[tuple[type, str, Any, Any]] = [
    *((kind, "memory", "1MB", 10**6) for kind in ANALYSES),
    *((kind, "samples", value, 5) for kind in ANALYSES for value in ("5", 5.0, np.int64(5), torch.tensor(5))),
    *((kind, "tau", "1e-3", 1e-3) for kind in ANALYSES if kind is not SliceSettings),
    *((kind, "tau", np.float64(1e-3), 1e-3) for kind in ANALYSES if kind is not SliceSettings),
    *((kind, "device", torch.device("cpu"), "cpu") for kind in ANALYSES),
    *((kind, "precision", torch.float64, "float64") for kind in ANALYSES if kind is not WidenSettings),
    *((SliceSettings, "points", value, (3, 5)) for value in ("3x5", [3, 5], np.array([3, 5]), (3.0, 5.0))),
    *((SliceSettings, "points", value, (3,)) for value in ("3", 3, [3])),
    *((SliceSettings, "span", value, (0.5,)) for value in ("0.5", 0.5, [0.5])),
    (SliceSettings, "metrics", "accuracy,gradient-norm", ("accuracy", "gradient_norm")),
    (SpectrumSettings, "params", "0.*,2.*", ("0.*", "2.*")),
    (SpectrumSettings, "params", ["0.*"], ("0.*",)),
    (SpectrumSettings, "params", None, ()),
    (SpectrumSettings, "exact", np.bool_(True), True),
    (WidenSettings, "neurons", "0,3", (0, 3)),
    (WidenSettings, "neurons", 3, (3,)),
    (WidenSettings, "shares", "0.25", ((0.25, 0.75),)),
    (WidenSettings, "shares", [[0.5, 0.5]], ((0.5, 0.5),)),
]


def as_keyword(kind: type, name: str, value: Any) -> Any:
    """The setting, given by keyword to a library function."""
    needed = {"layer": "0"} if kind is WidenSettings else {}
    return getattr(keyword_settings(kind, {**needed, name: value}, "analysis"), name)  # type: ignore[type-var]


@pytest.mark.parametrize(("kind", "name", "value", "wanted"), SPELT)
def test_settings_are_understood_as_the_command_line_and_numpy_spell_them(
    kind: type, name: str, value: Any, wanted: Any
) -> None:
    found = as_keyword(kind, name, value)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize("kind", ANALYSES)
def test_every_setting_takes_what_it_says_or_refuses_with_a_hint_that_works(kind: type) -> None:
    """Values of the wrong kind for every setting of every analysis: no other error, and hints can be typed."""
    strange = (object(), torch.ones(2, 2), {"a": 1}, 1j, math.nan, 10**30, None, True)
    odd = (*strange, "", "x", "3y3", (), [], (1.5, "a"), 2.5, -3)
    refused = 0
    for setting in fields(kind):
        for value in odd:
            try:
                as_keyword(kind, setting.name, value)
            except UsageError as error:
                refused += 1
                start, typed = f"write it like {setting.name}=", error.hint or ""
                if typed.startswith(start):
                    as_keyword(kind, setting.name, ast.literal_eval(typed.removeprefix(start)))
    assert refused > 3 * len(fields(kind))
