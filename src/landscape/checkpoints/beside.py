"""What `landscape slice` reads besides the checkpoint: other checkpoints, direction files, stored eigenvectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StorageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from landscape.checkpoints.source import Source
    from landscape.cli.jobs import Job
    from landscape.problem.problem import Problem
    from landscape.slices.directions.direction import Eigenvectors
    from landscape.slices.frame import Beside

HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Inputs:
    """Paths that directions name, and the checkpoints of a trajectory, in order."""

    points: tuple[str, ...]
    trajectory: tuple[Path, ...]
    files: tuple[str, ...]

    def hashes(self) -> dict[str, Any]:
        """What identifies them: sha256 of each file."""

        return {
            "points": [sha256_of(Path(p)) for p in self.points],
            "trajectory": [sha256_of(p) for p in self.trajectory],
            "files": [sha256_of(Path(p)) for p in self.files],
        }


def sha256_of(path: Path) -> str:
    """The sha256 of a checkpoint."""
    from landscape.checkpoints.checkpoint import read_checkpoint
    from landscape.results.identity import file_sha256

    return read_checkpoint(path).sha256 if path.is_dir() else file_sha256(path)


def find_inputs(dirs: str, trajectory: Sequence[str], say: Callable[[str], object] | None = None) -> Inputs:
    """The files that `--dirs` and `--trajectory` name. `say`: as of `expand`.

    Raises:
        UsageError, CheckpointError: one that is not there.
    """
    from landscape.checkpoints.find import expand
    from landscape.slices.direction_words import parse_directions

    points, files = [], []
    for spec in parse_directions(dirs):
        if spec.kind == "between":
            points += [spec.options[name] for name in ("to", "third") if name in spec.options]
        if spec.kind == "file" and "path" in spec.options:
            files.append(spec.options["path"])
    for path in points:
        if not Path(path).exists():
            raise UsageError(f"--dirs between: {path} does not exist", "check the path; `ls` the folder")
    for path in files:
        if not Path(path).is_file():
            raise UsageError(f"--dirs file: there is no file {path}", "check the path; `ls` the folder")
    return Inputs(tuple(points), tuple(expand(trajectory, say)), tuple(files))


def load_beside(inputs: Inputs, job: Job, source: Source) -> Beside:
    """Everything that the inputs name, for one checkpoint.

    The other checkpoints are loaded as the sliced one was; a trajectory leaves that one itself out.
    """
    from landscape.slices.frame import Beside

    points = {name: _problem(Path(name), source) for name in inputs.points}
    own = job.path.resolve()
    others = [p for p in inputs.trajectory if p.resolve() != own]
    names = _names([str(p) for p in others])
    trajectory = [(name, _problem(p, source)) for name, p in zip(names, others, strict=True)]
    tensors = {path: read_directions(Path(path)) for path in inputs.files}
    return Beside(points, trajectory, tensors, _eigenvectors(job))


def _names(paths: list[str]) -> list[str]:
    from landscape.checkpoints.find import short_names

    return list(short_names(paths)) if len(paths) > 1 else paths


def _problem(path: Path, source: Source) -> Problem:
    """The other checkpoint's problem; its data are never read: losses are compared on those of the sliced one."""
    from landscape.checkpoints.load import load_problem

    checkpoint = _checkpoint(path, source.allow_globals, source.key)
    return load_problem(checkpoint, source.problem, source.sets, source.data, source.loss, source.batchnorm).problem


@cache
def _checkpoint(path: Path, allow_globals: tuple[str, ...], key: str | None) -> Any:
    from landscape.checkpoints.checkpoint import read_checkpoint

    return read_checkpoint(path, allow_globals, key)


def _eigenvectors(job: Job) -> Eigenvectors | None:
    """Those of a spectrum of the same checkpoint and data beside the result, if it was made with --vectors."""
    import torch

    from landscape.results.store import list_groups, read_result
    from landscape.slices.directions.direction import Eigenvectors

    place = job.place.with_name(job.place.name.removesuffix(".slice.h5") + ".spectrum.h5")
    try:
        if not place.is_file() or "spectrum" not in list_groups(place):
            return None
        stored = read_result(place, "spectrum")
    except StorageError:
        return None
    how = stored.provenance
    same = how.sha256 == job.loaded.checkpoint.sha256 and how.data_fingerprint == job.fingerprint
    whole = how.settings.get("samples") == job.settings.get("samples") and not how.settings.get("params")
    if not (same and whole and stored.attributes.get("operator") == "hessian" and how.status == "complete"):
        return None

    def end(name: str) -> tuple[Tensor, Tensor, Tensor] | None:
        if f"{name}_vector" not in stored.arrays:
            return None
        arrays = (stored.arrays[f"{name}_{part}"].values for part in ("value", "residual", "vector"))
        value, residual, vector = (torch.as_tensor(a) for a in arrays)
        return value, residual, vector

    found = Eigenvectors(end("top"), end("bottom"))
    return None if found.top is None and found.bottom is None else found


# ---- files of directions --------------------------------------------------------------------------------------------


def read_directions(path: Path) -> list[Mapping[str, Tensor]]:
    """The directions in a file, a mapping of tensors by parameter name each.

    HDF5: our own results (directions of a slice, that of an escape, eigenvectors of a spectrum), or data sets named
    like parameters, at the root or in groups, one per direction. `.pt`: a mapping of tensors, or a list of them.

    Raises:
        UsageError: it holds nothing of the kind.
    """
    found = _from_hdf5(path) if path.suffix in HDF5 else _from_pickle(path)
    if not found or not all(found):
        raise UsageError(
            f"{path} holds no directions",
            "HDF5 with data sets named like parameters (groups for several directions), or torch.save of a mapping",
        )
    return found


def _from_hdf5(path: Path) -> list[Mapping[str, Tensor]]:
    import torch

    from landscape.results.store import is_result_file, list_groups, read_plain_arrays, read_result

    if is_result_file(path):
        for group in list_groups(path):
            stored = read_result(path, group)
            names, sizes = (stored.arrays[n].values if n in stored.arrays else None for n in ("tensor", "tensor_size"))
            for field in ("direction_vector", "direction", "top_vector", "bottom_vector"):
                array = stored.arrays.get(field)
                if array is not None and "parameter" in array.dims and names is not None and sizes is not None:
                    return [_pieces(row, names, sizes) for row in array.values.reshape(-1, array.values.shape[-1])]
        return []
    groups: dict[str, dict[str, Tensor]] = {}
    for name, values in read_plain_arrays(path).items():
        if values.dtype.kind in "fiu":
            group, _, last = name.rpartition("/")
            groups.setdefault(group, {})[last] = torch.as_tensor(values.astype("float64"))
    return list(groups.values())


def _pieces(row: np.ndarray, names: np.ndarray, sizes: np.ndarray) -> Mapping[str, Tensor]:
    """A flat direction as tensors by name, flat as well."""
    import torch

    parts = torch.split(torch.as_tensor(row), [int(s) for s in sizes])
    return {str(name): part for name, part in zip(names, parts, strict=True)}


def _from_pickle(path: Path) -> list[Mapping[str, Tensor]]:
    import torch
    from torch import Tensor

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or foreign file makes PyTorch raise many things
        raise UsageError(
            f"{path} cannot be read as directions ({type(error).__name__})",
            "write it with torch.save({parameter name: tensor}, path)",
        ) from error
    listed = list(found) if isinstance(found, list | tuple) else [found]
    mappings = [m for m in listed if isinstance(m, dict)]
    nested = [v for m in mappings for v in m.values() if isinstance(v, dict)]
    if nested and len(mappings) == 1:
        mappings = nested
    return [{str(k): v for k, v in m.items() if isinstance(v, Tensor)} for m in mappings]
