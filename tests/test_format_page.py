"""docs/format.md and the code say the same, both ways."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from landscape.claims.escape_dimensions import decide as claim
from landscape.claims.result import Checked, Read, checked
from landscape.errors import StorageError
from landscape.points.descend import descend
from landscape.points.escape import escape
from landscape.points.results import Descended
from landscape.problem.problem import Problem
from landscape.results.fields import AXES, Spectrum, Spent
from landscape.results.store import FORMAT, read_result, stored_identity, write_result
from landscape.slices.frame import Beside
from landscape.slices.result import Sliced
from landscape.slices.run import slice
from landscape.widening.run import widen
from samples import sample_provenance, sample_spectrum
from surfaces import quadratic, surface
from test_certificate import fixture_problem
from test_widen import split_fixture

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("format_page", ROOT / "tools" / "format_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(heading: str) -> dict[str, list[str]]:
    """First cell without its backquotes -> the other cells, of all tables below a heading of the page."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    cells = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("`"): [c.replace("\\|", "|") for c in rest] for first, *rest in cells}


def full_spectrum() -> Spectrum:
    """A spectrum with every optional field present."""
    absent = [n for n in Spectrum.declared() if getattr(sample_spectrum(), n) is None]
    values = {n: np.zeros((3, 40)) if n.endswith("_vector") else 1.0 for n in absent}
    return sample_spectrum(**values)


def test_generated_tables_are_fresh(tool: ModuleType) -> None:
    assert tool.render(PAGE) == PAGE, "run `python tools/format_page.py`"


def test_every_part_is_on_the_page(tool: ModuleType) -> None:
    with pytest.raises(KeyError, match="provenance"):
        tool.render(PAGE.replace("begin: provenance", "begin: axes"))


def full_descent() -> Descended:
    """A real descent, of a quadratic; every optional field is present."""
    start = torch.ones(4, dtype=torch.float64)
    return descend(surface(quadratic(torch.linspace(1, 2, 4, dtype=torch.float64)), start))


def full_check() -> Checked:
    """A decision on made-up losses."""
    losses = {4: np.array([1e-20, 1e-2]), 5: np.array([1e-20, 1e-20])}
    evidence = claim.Evidence([claim.Population("made up", 4, losses)])
    spent = Spent(0, 1.0, "float64", "cpu", {"notes": ()})
    return checked(claim.CLAIM, claim.decide(evidence), claim.draw(evidence), [Read("made", 4, "[sweep]")], spent)


def full_slice() -> Sliced:
    """A real slice of several planes, between checkpoints; what the kinds of directions exclude is filled in."""
    torch.manual_seed(0)
    model, other = (nn.Linear(3, 2).double() for _ in range(2))
    data = (torch.randn(9, 3).double(), torch.randint(2, (9,)))
    problem = Problem(model, data, "cross_entropy")
    beside = Beside(trajectory=[("other", Problem(other, data, "cross_entropy"))])
    metrics = ("accuracy", "gradient_norm", "lambda_max", "lambda_min")
    found = slice(problem, points=(3, 3), repeat=2, metrics=metrics, beside=beside)
    return replace(found, variance_explained=np.ones(2), barrier=0.0, barrier_at=0.0)


def test_a_real_file_holds_what_the_page_says_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    start = fixture_problem()
    way_out = escape(split_fixture(), controls=1, steps=3)
    opened = widen(start, "0", follow=True, controls=1, steps=3, shares=((2.0, -1.0),), samples=500)
    opened = replace(opened, predicted_negative=np.zeros(len(opened.split), int), predicted_zero=opened.measured_zero)
    results = [full_spectrum(), full_descent(), way_out, opened, full_slice(), full_check()]
    write_result(path, results, sample_provenance())
    with h5py.File(path, "r") as file:
        assert set(file.attrs) == set(rows("Root"))
        assert list(file) == re.findall(r"^## Group `(\w+)`", PAGE, re.MULTILINE)
        for name, group in file.items():
            check_group(group, rows(f"Group `{name}`"))


def check_group(group: h5py.Group, described: dict[str, list[str]]) -> None:
    parts = {n: item for n, item in group.items() if isinstance(item, h5py.Group) and "value" not in item}
    datasets = {n: d for n, d in flat(group, parts) if d.attrs.get("role") != "axis"}
    own = {n for n, cells in described.items() if len(cells) == 1}
    assert set(group.attrs) == set(rows("Attributes of every group")) | own
    assert set(datasets) | set(parts) == set(described) - own
    for name, dataset in datasets.items():
        check_dataset(name, dataset, described[name])
    assert {n for n, item in group.items() if n not in described and isinstance(item, h5py.Dataset)} <= set(AXES)
    assert set(rows("Axes")) == set(AXES)
    for part in parts.values():
        check_part(part)


def check_part(part: h5py.Group) -> None:
    """A certificate; a pair of neurons and kinks are in some only."""
    described = rows("Parts")
    datasets = dict(flat(part, {}))
    attributes = {f"{before}{n}" for before, g in inner(part) for n in g.attrs}
    sometimes = {n for n, cells in described.items() if len(cells) == 1 or cells[2] == "yes"}
    assert set(datasets) | attributes <= set(described)
    assert set(described) - set(datasets) - attributes <= sometimes
    for name, dataset in datasets.items():
        check_dataset(name, dataset, described[name])


def inner(group: h5py.Group, before: str = "") -> Iterator[tuple[str, h5py.Group]]:
    yield before, group
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from inner(item, f"{before}{name}.")


def flat(group: h5py.Group, without: Container[str]) -> Iterator[tuple[str, h5py.Dataset]]:
    """Data sets of a group and of the groups in it, by names with dots."""
    for before, found in inner(group):
        if before.partition(".")[0] not in without:
            yield from ((before + n, d) for n, d in found.items() if isinstance(d, h5py.Dataset))


def check_dataset(name: str, dataset: h5py.Dataset, cells: list[str]) -> None:
    axes, units, _, text = cells
    assert (dataset.attrs["units"], dataset.attrs["long_name"]) == (units, text)
    scales = [d[0].name.rsplit("/")[-1] for d in dataset.dims if len(d)] or [name] * dataset.ndim
    assert ", ".join(f"`{s}`" for s in scales) == axes


def test_files_of_the_first_version_are_read_or_refused_with_what_to_do(tmp_path: Path) -> None:
    """Spectra are as they were; results with certificates are made anew, and count as not there."""
    path = tmp_path / "a.h5"
    write_result(path, [full_spectrum(), full_descent()], sample_provenance())
    with h5py.File(path, "r+") as file:
        file.attrs["landscape_format"] = 1
    assert read_result(path, "spectrum").arrays["top_value"].values.size
    assert stored_identity(path, "spectrum") is not None
    assert stored_identity(path, "descend") is None
    with pytest.raises(StorageError, match="format version 1") as caught:
        read_result(path, "descend")
    assert caught.value.hint == "repeat the command that wrote it"


def test_the_page_is_of_this_version() -> None:
    assert PAGE.startswith(f"# The result file, format version {FORMAT}\n")
