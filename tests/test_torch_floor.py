"""Nothing needs a torch newer than 2.11, the oldest that `pyproject.toml` and the GPU machines have."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEWER = frozenset((Path(__file__).parent / "newer-than-torch-2.11.txt").read_text().split())
FILES = sorted(p for folder in ("src", "tests", "tools", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


def aliases_of(tree: ast.Module) -> dict[str, str]:
    """Names in a file that stand for torch or something of it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split(".")[0] == "torch":
                    found[a.asname or "torch"] = a.name if a.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).split(".")[0] == "torch":
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What a file uses of torch, as the list has it, with the line: names and parameters of what is reached through
    torch, and, since nothing says what an object is, every method."""
    aliases = aliases_of(tree)
    for name in aliases.values():
        yield from ((part, 1) for part in name.split(".")[1:])

    def of_torch(node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in aliases

    def name_of(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return node.attr if of_torch(node) else f".{node.attr}"
        return aliases.get(node.id, "").rpartition(".")[2] if isinstance(node, ast.Name) else ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield name_of(node), node.lineno
        elif isinstance(node, ast.Call) and name_of(node.func):
            yield from ((f"{name_of(node.func)}({k.arg})", node.lineno) for k in node.keywords)


def test_the_list_names_what_is_new() -> None:
    """Against what is known to be new in 2.12 and 2.13, and to be old."""
    assert {"linear_cross_entropy", "LinearCrossEntropyLoss", "normal(key)"} <= NEWER
    assert not {"vmap", "linearize", ".to", ".addmm_", "randn(generator)", "eigh"} & NEWER


def test_no_file_needs_a_newer_torch() -> None:
    text = (
        "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "torch.normal(0.0, 1.0, key=1)\nnn.LinearCrossEntropyLoss()\nF.linear_cross_entropy(1)\nx.normal(key=2)\n"
    )
    seen = sorted((line, name) for name, line in used(ast.parse(text)) if name in NEWER)
    assert seen == [(4, "normal(key)"), (5, "LinearCrossEntropyLoss"), (6, "linear_cross_entropy")]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        for name, line in used(ast.parse(path.read_text(encoding="utf-8")))
        if name in NEWER
    ]
    assert not found, "newer than torch 2.11: " + "; ".join(found)
