"""The list of analyses: what every row must have, and what follows from a new one."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import typer
from torch import nn

import landscape
from landscape.analyses import ANALYSES, Analysis
from landscape.checkpoints.source import Source
from landscape.cli import options as common
from landscape.cli.app import OTHERS, make_app
from landscape.problem.objective import build_objective
from landscape.results.fields import CURVATURE, Result, Spent, field_of
from landscape.settings import SEED, check_options, documented, flag_of, option, plain_options
from landscape.training.sweep import plan, read_sweep

DOCS = Path(__file__).parents[1] / "docs"


def missing(row: Analysis, commands: str, formats: str) -> list[str]:
    """What an analysis lacks, in words; `commands`, `formats`: the pages docs/cli.md and docs/format.md."""
    lacks: list[str] = []

    def there(what: str, module: str, *names: str) -> Any:
        try:
            found = import_module(module)
        except ImportError:
            lacks.append(f"{what}: {module}")
            return None
        lacks.extend(f"{what}: {module}.{name}" for name in names if not callable(getattr(found, name, None)))
        return found

    there("command", f"landscape.cli.{row.name}", row.name)
    there("view", f"landscape.cli.views.{row.name}", "print_json", "print_one")
    there("figure", f"landscape.figures.{row.name}", "draw")
    for what, place in (("result", row.result), ("settings", row.settings), ("function", row.function)):
        if place is not None:
            module, _, name = place.partition(":")
            there(what, module, name)
    if f"\n## landscape {row.name}" not in commands:
        lacks.append("section in docs/cli.md")
    if not any(lack.startswith("result:") for lack in lacks):
        declared = row.result_class.declared()
        names = {name.removeprefix("certificate.").removeprefix("end.") for name in declared}
        lacks += [f"docs/format.md: {name}" for name in sorted(names) if f"| `{name}` |" not in formats]
        if row.result_class.group != row.name:
            lacks.append("group of the result")
    if row.settings is not None and not any(lack.startswith("settings:") for lack in lacks):
        assert row.settings_class is not None
        for f in fields(row.settings_class):
            if not f.metadata.get("help"):
                lacks.append(f"help of {f.name}")
            if flag_of(f) not in commands:
                lacks.append(f"docs/cli.md: {flag_of(f)}")
    return lacks


PAGES = tuple((DOCS / name).read_text() for name in ("cli.md", "format.md"))


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_has_all_its_parts(name: str) -> None:
    row = ANALYSES[name]
    assert missing(row, *PAGES) == []
    if row.settings is not None:
        view = row.view
        assert callable(view.print_many)
        assert callable(view.warn)
    assert (row.function is not None) == (name in landscape.__all__)


@pytest.mark.parametrize("name", [name for name, row in ANALYSES.items() if row.settings is not None])
def test_settings_say_what_they_are(name: str) -> None:
    """Defaults keep their own limits, plain types go to files, and the docstring names every option with its help."""
    kind = ANALYSES[name].settings_class
    assert kind is not None
    made = kind(layer="0") if name == "widen" else kind()
    plain = made.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert all(f"{f.name}: {f.metadata['help']}" in (kind.__doc__ or "") for f in fields(kind))


def test_public_names_resolve() -> None:
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    assert sorted(dir(landscape)) == sorted(landscape.__all__)


def test_an_analysis_without_its_parts_is_told_each_of_them() -> None:
    row = Analysis("sharpness", "nowhere:Sharp", "nowhere:Settings", "nowhere:sharpness", "sharpnesses", "Sharpness")
    lacks = "\n".join(missing(row, *PAGES))
    for part in ("command", "view", "figure", "result", "settings", "function", "section in docs/cli.md"):
        assert part in lacks, part


# ---- a new analysis: its settings, result and function, its command, its view, its figure, and one row --------------


@documented
@dataclass(frozen=True)
class SharpnessSettings:
    """Options of the trial."""

    radius: float = option(0.1, "How far to go.")
    seed: int = option(0, SEED)

    def __post_init__(self) -> None:
        check_options(self)

    def as_dict(self) -> dict[str, Any]:
        return plain_options(self)


@dataclass(frozen=True, kw_only=True)
class Sharp(Result):
    """Result of the trial."""

    group: ClassVar[str] = "sharpness"
    rise: np.ndarray = field_of("rise of the loss at both ends", "side", units=CURVATURE)
    side: np.ndarray = field_of("side of the direction", "side")
    loss: float = field_of("loss at the point")
    spent: Spent | None = None


def sharpness(problem: Any, settings: SharpnessSettings) -> Sharp:
    """The trial: how much the loss rises along its own gradient."""
    objective = build_objective(problem)
    loss, gradient = objective.value_and_gradient()
    rises = np.array([settings.radius, -settings.radius]) * float(gradient.norm())
    return Sharp(rise=rises, side=np.array(["+", "-"]), loss=loss, spent=Spent(1, 0.1, "float32", "cpu", {"notes": ()}))


def _compute(job: Any, report: Any, pieces: Any) -> Sharp:
    return sharpness(job.problem, SharpnessSettings())


@common.options_of(SharpnessSettings)
def command(
    checkpoints: common.Checkpoints, source: Source, settings: SharpnessSettings, output: common.Output
) -> None:
    """How much the loss rises."""
    from landscape.cli.loop import Command, run_command

    run_command(Command("sharpness", settings.as_dict(), _compute), checkpoints, source, output)


def draw(found: Any, by: str | None) -> Any:
    from landscape.figures.style import new_figure

    figure = new_figure(2.0, head=0.3)
    figure.subplots().plot(found[0].arrays["rise"].values)
    return figure, []


@pytest.fixture
def with_sharpness(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    view, cli, figure = (ModuleType(f"landscape.{place}.sharpness") for place in ("cli.views", "cli", "figures"))
    view.print_json = lambda shown: print(json.dumps({"loss": shown.result.loss}))  # type: ignore[attr-defined]
    view.print_one = lambda shown: print(f"loss {shown.result.loss:.3g}")  # type: ignore[attr-defined]
    view.print_many = lambda shown: print(f"{len(shown)} results")  # type: ignore[attr-defined]
    view.warn = lambda shown: None  # type: ignore[attr-defined]
    cli.sharpness, figure.draw = command, draw  # type: ignore[attr-defined]
    cli.EXAMPLES = ("landscape sharpness a.pt", "landscape sharpness b.pt --radius 1")  # type: ignore[attr-defined]
    for module in (view, cli, figure):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Analysis(
        "sharpness", f"{here}:Sharp", f"{here}:SharpnessSettings", f"{here}:sharpness", "sharpnesses", "Sharpness"
    )
    monkeypatch.setitem(ANALYSES, "sharpness", row)


def test_everything_follows_from_a_new_row(
    with_sharpness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command with its options; plot, report, info and export of what it wrote; none of them was touched."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problem.py").write_text(
        "import torch\nfrom torch import nn\nfrom landscape import Problem\n"
        "def problem():\n    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))\n"
        "    return Problem(nn.Linear(2, 1), (x, x[:, :1]), 'mse')\n"
    )
    for name in "ab":
        torch.save(nn.Linear(2, 1).state_dict(), f"{name}.pt")
    assert missing(ANALYSES["sharpness"], "\n## landscape sharpness: --radius --seed", "| `rise` |`side` |") == [
        "docs/format.md: loss",
        "docs/format.md: side",
    ]
    app = make_app()

    def typed(*words: str) -> str:
        assert not app(list(words), standalone_mode=False)
        return capsys.readouterr().out

    assert "How far to go." in typed("sharpness", "--help")
    assert "sharpness" in typed("--help")
    told = ("--problem", "problem.py:problem", "--radius", "0.5", "-q")
    assert "2 results" in typed("sharpness", "a.pt", "b.pt", *told)
    assert json.loads(typed("sharpness", "a.pt", *told, "--json"))["loss"] > 0
    place = "landscape-results/a.sharpness.h5"
    assert typed("plot", place).strip().endswith(".png")
    assert typed("plot", "landscape-results").strip() == "landscape-results/sharpnesses.png"
    assert typed("report", "landscape-results").strip().endswith("report.html")
    assert "Sharpness (2)" in Path("landscape-results/report.html").read_text()
    rows = list(csv.DictReader(typed("info", "landscape-results", "--csv").splitlines()))
    assert [row["group"] for row in rows] == ["sharpness"] * 2
    assert "rise" in typed("info", place)
    assert typed("export", place, "--format", "npz").strip().endswith(".npz")
    assert landscape.read_result(place).arrays["rise"].values.shape == (2,)


@cache
def parsers() -> Any:
    """Command name -> its parser."""
    return typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*ANALYSES, *OTHERS])
def test_help_ends_with_examples_that_can_be_typed(name: str) -> None:
    """Two of every command; their options exist and take these values."""
    examples = import_module(f"landscape.cli.{name}").EXAMPLES
    assert len(examples) == 2
    commands = parsers()
    for line in examples:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("landscape", name)
        assert len(line) <= 78
        commands[name].make_context(name, words)
        assert f"  {line}\n" in PAGES[0]


@pytest.mark.parametrize("page", sorted(p.name for p in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]))
def test_commands_on_pages_can_be_typed(page: str) -> None:
    """Every `landscape` line of a shell block: the command is there, and its options take these values."""
    path = DOCS / page if (DOCS / page).exists() else DOCS.parent / page
    commands = parsers()
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("landscape "):
                _, name, *words = shlex.split(line.partition(" > ")[0], comments=True)
                commands[name].make_context(name, words)


def test_the_sweep_file_on_its_page_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (DOCS / "sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "sweep.toml").write_text(block)
    assert len(plan(read_sweep(tmp_path / "sweep.toml", {}))) == 8
