"""Imports point down the layers, and files stay readable: read off the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "landscape"
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
# Rooms, bottom up: each imports those before it, and within a room files import each other as they like.
ROOMS = (
    *("errors", "analyses", "settings", "linalg", "optim", "runtime", "results"),
    *("problem", "curvature", "stack", "models", "data"),
    *("points", "spectra", "widening", "slices", "diagnosis"),
    *("checkpoints", "training", "claims", "export", "figures", "report", "cli"),
)
RANKS = {room: rank for rank, room in enumerate(ROOMS)}
# Analyses know nothing of each other, but that a widened network is a point to descend from.
ANALYSES = {"points", "spectra", "widening", "slices", "diagnosis"}
BESIDE = {("widening", "points")}
# The package itself: `__init__` resolves names on first use, `__main__` is the command.
ROOTS = {"__init__", "__main__"}
PRINTERS = {("runtime.workers", "print_line")}  # the line protocol between processes
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    """ "cli.app", "linalg" (for its __init__), "operators"."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(p): ast.parse(p.read_text()) for p in FILES}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run, at any depth: `if TYPE_CHECKING` bodies do not."""
    yield node
    children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    for child in children:
        yield from walk(child)


def imports(module: str) -> set[str]:
    """Dotted names of everything a module imports; "from a import b" counts as a.b where that is a module."""
    found: set[str] = set()
    for node in walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix("landscape.")
                found.add(f"landscape.{inner}" if base.split(".")[0] == "landscape" and inner in MODULES else base)
    return found


def ours(module: str) -> set[str]:
    return {name.removeprefix("landscape.") for name in imports(module) if name.startswith("landscape.")}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_its_room() -> None:
    there = {room(m) for m in MODULES} - ROOTS
    assert there - set(RANKS) == set(), "name its rank in ROOMS"
    assert set(RANKS) - there == set(), "gone from the source"
    assert len([m for m in MODULES if "." not in m and (SOURCE / f"{m}.py").exists()]) <= 5


def test_imports_point_down() -> None:
    """The version alone is known everywhere."""
    wrong: dict[str, list[str]] = {}
    for module in sorted(set(MODULES) - ROOTS):
        here = room(module)
        for below in sorted(ours(module)):
            there = room(below)
            down = RANKS[there] <= RANKS[here]
            apart = {here, there} <= ANALYSES and here != there and (here, there) not in BESIDE
            if not down or apart:
                wrong.setdefault(module, []).append(below)
    assert wrong == {}


def test_no_cycles_when_modules_are_loaded() -> None:
    """Imports inside functions cannot deadlock, but a cycle among modules of one layer is no layering either."""
    graph = {m: {d for d in ours(m) if d in MODULES and d != m} for m in MODULES if m not in ROOTS}
    seen: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in seen:
            for below in graph.get(module, ()):
                visit(below, (*path, module))
            seen[module] = 1

    for module in graph:
        visit(module, ())


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert imports("__init__") <= {"__future__", "importlib", "typing", "landscape.analyses"}
    assert imports("analyses") <= {"__future__", "dataclasses", "importlib", "types", "typing"}


@pytest.mark.parametrize(("library", "home"), [("h5py", "results"), ("typer", "cli"), ("rich", "cli")])
def test_one_home_for_a_library(library: str, home: str) -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == library for name in imports(m))}
    assert users, f"nothing uses {library}"
    assert {m for m in users if m.split(".")[0] != home} == set()


def printing(module: str) -> Iterator[str]:
    """Functions (outermost) that call print, write to sys.stdout/stderr or use click/typer echo."""
    for top in MODULES[module].body:
        for node in walk(top):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
                "typer.echo",
            ):
                yield getattr(top, "name", "<module>")


def test_only_the_command_line_prints() -> None:
    talking = {(m, f) for m in MODULES if m.split(".")[0] != "cli" for f in printing(m)}
    assert talking <= PRINTERS


def test_detectors_detect() -> None:
    """The walkers above see what they should: a function-level import, a guarded one not, a print."""
    assert "linalg.lanczos" in ours("curvature.eigenpairs")
    assert "spectra.run" not in ours("__init__")  # TYPE_CHECKING only
    assert "print_line" in set(printing("runtime.workers"))


def test_functions_are_short_and_files_hold_one_idea() -> None:
    """A function from its first statement on: the signature of a command is its list of options."""
    long: dict[str, int] = {}
    for path in FILES:
        text = path.read_text()
        name, lines = str(path.relative_to(SOURCE)), len(text.splitlines())
        long |= {name: lines} if lines > 700 else {}
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        sizes = {f"{name}:{f.name}": (f.end_lineno or 0) - f.body[0].lineno + 1 for f in functions}
        long |= {function: size for function, size in sizes.items() if size > 60}
    assert long == {}


def test_the_page_shows_these_rooms() -> None:
    """In their order, each with a file to begin with that is there."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| `([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert tuple(room for room, _ in rows) == ROOMS
    assert [r for r, first in rows if not (SOURCE / r / first).exists() and not (SOURCE / first).exists()] == []
    named = set(re.findall(rf"\b((?:{'|'.join(ROOMS)})/[\w/]+\.py)\b", PAGE.read_text()))
    assert sorted(name for name in named if not (SOURCE / name).exists()) == []


def test_no_drawer_of_odds_and_ends() -> None:
    assert {p.stem for p in FILES} & {"utils", "util", "helpers", "misc", "common"} == set()
