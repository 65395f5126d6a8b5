"""Which checkpoints a command is about, and where each result goes."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from landscape.errors import CheckpointError, UsageError

# Endings of files that are checkpoints by their name.
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pt2", ".bin")


def expand(patterns: Sequence[str], say: Callable[[str], object] | None = None) -> list[Path]:
    """Paths, globs and folders as a list of checkpoints, each once, in the order given.

    A folder stands for the checkpoints below it, unless it is itself one (Hugging Face's, a PEFT adapter). `say` is
    told in one line what is passed over there, and why.

    Raises:
        UsageError: a path does not exist. CheckpointError: a glob or folder holds no checkpoint.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.exists():
            hits, passed = _below(path) if path.is_dir() else ([path], {})
        elif glob.has_magic(pattern):
            hits, passed = _matching(pattern)
        else:
            raise UsageError(f"{pattern} does not exist", "check the path; `ls` the folder")
        if not hits:
            where = f"the folder {pattern} holds" if path.is_dir() else f"{pattern} matches"
            raise CheckpointError(
                f"{where} no checkpoint" + (f", but {_said(passed)}" if passed else f" ({', '.join(SUFFIXES)})"),
                "name the files themselves, or quote a pattern, in which ** crosses folders: 'runs/**/final.pt'",
            )
        passed = {p: what for p, what in passed.items() if p not in hits}
        if passed and say is not None and os.environ.get("RANK", "0") == "0":  # one process of torchrun says it
            say(f"{pattern}: {len(hits)} checkpoint{'s' * (len(hits) > 1)}; passed over {_said(passed)}")
        found |= dict.fromkeys(hits)
    return list(found)


def _matching(pattern: str) -> tuple[list[Path], dict[Path, str]]:
    """What a glob matches: files, and folders as if they were named."""
    matches = sorted((Path(p) for p in glob.glob(pattern, recursive=True)), key=natural)
    folders = [p for p in matches if p.is_dir()]
    hits: list[Path] = []
    passed: dict[Path, str] = {}
    for path in matches:
        if path in folders:
            found, others = _below(path)
        elif any(folder in path.parents for folder in folders):
            continue  # what is to be found in a folder that matches as well
        else:
            found, others = _sorted_out([path])
        hits += found
        passed |= others
    return list(dict.fromkeys(hits)), passed


def _below(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The folder itself, where it is one checkpoint; else the checkpoints in it and below."""
    from landscape.checkpoints.folders import SUFFIXES, is_checkpoint_folder

    inside = [p for p in folder.rglob("*") if p.is_dir() or p.suffix in SUFFIXES]
    wholes = [p for p in (folder, *inside) if is_checkpoint_folder(p)]
    if folder in wholes:
        return [folder], {p: f"checkpoints below it, '{folder}/*'" for p in wholes if p != folder}
    files = [p for p in inside if p.is_file() and not any(whole in p.parents for whole in wholes)]
    hits, passed = _sorted_out(files)
    return sorted((*wholes, *hits), key=natural), passed


def _sorted_out(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Files that are checkpoints, and what the others are."""
    from landscape.checkpoints.folders import not_weights

    passed = {path: what for path in files if path.is_file() and (what := not_weights(path))}
    return [path for path in files if path not in passed and path.is_file()], passed


def _said(passed: Mapping[Path, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for path, what in passed.items():
        kinds.setdefault(what, []).append(path.name)
    texts = []
    for what, names in kinds.items():
        shown = list(dict.fromkeys(names))
        texts.append(f"{', '.join(shown[:3])}{' and more' if len(shown) > 3 else ''} ({what})")
    return f"{len(passed)}: {', '.join(texts)}"


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts width=8 before width=16."""
    return [
        (0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", str(path)) if piece
    ]


def short_names(paths: list[str]) -> list[str]:
    """Paths without the folders and the suffix that all of them share."""
    parts = [Path(p).parts for p in paths]
    start = 0
    while all(len(p) > start + 1 for p in parts) and len({p[start] for p in parts}) == 1:
        start += 1
    stop = 0
    while all(len(p) - stop > start + 1 for p in parts) and len({p[-1 - stop] for p in parts}) == 1:
        stop += 1
    return ["/".join(p[start : len(p) - stop]) for p in parts]


def result_paths(checkpoints: Sequence[Path], out: Path, command: str) -> list[Path]:
    """One file per checkpoint below `out`, its path mirrored below the checkpoints' common parent.

    `width=8/final.pt` becomes `OUT/width=8/final.spectrum.h5`; where two differ in their suffix only, it stays.
    """
    absolute = [Path(os.path.abspath(p)) for p in checkpoints]
    parent = Path(os.path.commonpath([p.parent for p in absolute]))
    # A folder that is a checkpoint, such as lr=0.1, has no suffix.
    stems = [p.relative_to(parent).with_suffix("") if p.is_file() else p.relative_to(parent) for p in absolute]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else path.relative_to(parent) for stem, path in zip(stems, absolute, strict=True)
    ]
    return [out / name.with_name(f"{name.name}.{command}.h5") for name in names]


def check_out(out: Path) -> None:
    """Refuse an output folder that is a file, early.

    Raises:
        UsageError: something else is there.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; results go into a folder", "name a folder, such as -o results")
