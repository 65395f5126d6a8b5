"""Which checkpoints a command is about, and where each result goes."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import CheckpointError, UsageError

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pt2", ".bin")


def expand(patterns: Sequence[str]) -> list[Path]:
    """Paths, globs and folders as a list of checkpoint files, each once, in the order given.

    A folder stands for the checkpoints below it, unless it is itself one (a Hugging Face folder).

    Raises:
        CheckpointError: a path does not exist, a glob or folder holds no checkpoint.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir() and not (path / "config.json").exists():
            hits = sorted((p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()), key=natural)
            if not hits:
                raise CheckpointError(
                    f"the folder {pattern} holds no checkpoint ({', '.join(SUFFIXES)})", "name the files themselves"
                )
        elif path.exists():
            hits = [path]
        elif glob.has_magic(pattern):
            hits = sorted((Path(p) for p in glob.glob(pattern, recursive=True)), key=natural)
            hits = [p for p in hits if p.is_file()]
            if not hits:
                raise CheckpointError(
                    f"no file matches {pattern}", "quote the pattern, and mind that ** crosses folders"
                )
        else:
            raise CheckpointError(f"{pattern} does not exist", "check the path; `ls` the folder")
        found += [p for p in hits if p not in found]
    return found


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts width=8 before width=16."""
    return [
        (0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", str(path)) if piece
    ]


def result_paths(checkpoints: Sequence[Path], out: Path, command: str) -> list[Path]:
    """One file per checkpoint below `out`, its path mirrored below the checkpoints' common parent.

    `width=8/final.pt` becomes `OUT/width=8/final.spectrum.h5`; where two differ in their suffix only, it stays.
    """
    absolute = [Path(os.path.abspath(p)) for p in checkpoints]
    parent = Path(os.path.commonpath([p.parent for p in absolute]))
    stems = [p.relative_to(parent).with_suffix("") for p in absolute]
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
