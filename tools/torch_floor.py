"""Writes tests/newer-than-torch-2.11.txt: what the installed torch has and an older one lacks, from both sources.

pip download --no-deps --only-binary=:all: --platform macosx_11_0_arm64 --python-version 3.12 torch==2.11.0
unzip -q torch-2.11.0-*.whl '*.py' '*.pyi' -d older
python tools/torch_floor.py older/torch
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "tests" / "newer-than-torch-2.11.txt"
# Folders and files of torch whose names programs use.
PUBLIC = (
    *("__init__.py", "functional.py", "_tensor.py", "_C/__init__.pyi", "_C/_VariableFunctions.pyi", "random.py"),
    *("_C/_nn.pyi", "nn", "func", "_functorch/apis.py", "_functorch/eager_transforms.py", "linalg", "special", "fft"),
    *("autograd", "optim", "cuda", "backends", "accelerator", "amp", "distributed/distributed_c10d.py", "library.py"),
    *("utils/data", "utils/checkpoint.py", "utils/_pytree.py", "utils/_python_dispatch.py", "overrides.py"),
    *(
        "export/__init__.py",
        "export/exported_program.py",
        "fx/proxy.py",
        "fx/graph.py",
        "fx/node.py",
        "serialization.py",
    ),
    *("fx/_symbolic_trace.py", "fx/graph_module.py", "fx/interpreter.py", "storage.py", "compiler", "testing"),
)

COMMON = ("Tensor", "TensorBase", "Module", "Optimizer", "Generator", "Parameter")


def names_of(path: Path) -> dict[str, set[str]]:
    """Public names defined in a file, those of classes as Class.name, each with its parameters, of all overloads."""
    found: dict[str, set[str]] = {}

    def visit(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                found.setdefault(owner + node.name, set()).update(a.arg for a in every)
            elif isinstance(node, ast.ClassDef):
                found.setdefault(owner + node.name, set())
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("torch")):
                found.update({owner + (a.asname or a.name): set() for a in node.names})
            elif isinstance(node, ast.Assign | ast.AnnAssign) and not owner:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update({owner + t.id: set() for t in targets if isinstance(t, ast.Name)})
            elif isinstance(node, ast.If | ast.Try):
                visit([*node.body, *node.orelse], owner)

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return {k: v for k, v in found.items() if not any(part.startswith("_") for part in k.split("."))}


def files_of(folder: Path) -> Iterator[Path]:
    """The public files of a torch, relative to its folder."""
    for place in PUBLIC:
        whole = folder / place
        if whole.is_dir():
            private = [p for p in whole.rglob("*") if p.name.startswith("_") and p.is_dir()]
            files = (p for p in sorted(whole.rglob("*.py")) if not any(q in p.parents for q in private))
            yield from (p.relative_to(folder) for p in files)
        elif whole.exists():
            yield Path(place)


def last_names(folder: Path) -> dict[str, set[str]]:
    """Of all public files: every name without its module, with its parameters in all places; methods of classes whose
    objects go by any name as ".name", those of other classes are left out."""
    found: dict[str, set[str]] = {}
    for file in files_of(folder):
        for name, parameters in names_of(folder / file).items():
            owner, _, last = name.rpartition(".")
            if not owner or owner in COMMON:
                found.setdefault(f".{last}" if owner else last, set()).update(parameters)
    return found


def newer(folder: Path, older: Path) -> set[str]:
    """Names, and "name(parameter)", that the older torch has nowhere."""
    before, found = last_names(older), set()
    for name, parameters in last_names(folder).items():
        if name not in before:
            found.add(name)
        elif before[name]:  # of classes and assigned functions no parameters are known
            found |= {f"{name}({p})" for p in parameters - before[name] if not p.startswith("_")}
    return found


if __name__ == "__main__":
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    lines = sorted(newer(Path(spec.origin).parent, Path(sys.argv[1])))
    PAGE.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{PAGE}: {len(lines)} names\n")
