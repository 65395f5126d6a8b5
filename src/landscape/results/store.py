"""Result files (docs/format.md): HDF5, written whole, self-describing; the only module that imports h5py."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from landscape.errors import StorageError, UsageError
from landscape.results.fields import AXES, Array, Interval, Provenance, Result
from landscape.results.identity import plain
from landscape.runtime.files import locked, remove_stale, storage_error, write_bytes

__all__ = [
    "FORMAT",
    "StoredResult",
    "is_result_file",
    "list_groups",
    "locked",
    "plain_arrays_bytes",
    "read_plain_arrays",
    "read_result",
    "restore",
    "stored_identity",
    "write_result",
]

FORMAT = 2
# The format version since which files of an analysis hold what results of it are now.
SINCE = {"descend": 2, "escape": 2, "widen": 2}
ROOT_ATTRIBUTES: dict[str, int | str] = {
    "landscape_format": FORMAT,
    "conventions": (
        "One group per analysis. NaN is a value (it diverged); what was not asked for is absent. "
        "bool: uint8 with attribute dtype = bool. Text: UTF-8. Settings and other mappings: JSON. "
        "Axes: dimension scales; those with attribute role = axis only count 0, 1, 2 ..."
    ),
}
SMALL = 512  # bytes; below, a chunk's overhead exceeds what compression and checksum give
TEXT = h5py.string_dtype("utf-8")
# What a damaged file makes h5py and our own decoding raise.
DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    IndexError,
    NotImplementedError,
)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class StoredResult:
    """One group of a result file.

    Attributes:
        group: its name, such as "spectrum".
        arrays: field name -> labelled array, in the file's order; absent optional fields are missing.
        attributes: what describes the result rather than measures something (operator, strategy …).
        provenance: how the result came about.
    """

    group: str
    arrays: dict[str, Array]
    attributes: dict[str, Any]
    provenance: Provenance


def write_result(
    path: str | PathLike[str],
    results: Result | Sequence[Result],
    provenance: Provenance,
    *,
    force: bool = False,
) -> None:
    """Write one file with a group per result, all with the same provenance, in place of an older result file.

    The file appears whole or not at all; hold `locked(path)` around the work that leads to it if another
    process might do the same work. Raises StorageError if `path` cannot be written, or holds something that
    is not a result file and `force` is not set; a folder is never replaced.
    """
    path = Path(path)
    results = [results] if isinstance(results, Result) else list(results)
    groups = [result.group for result in results]
    if len(set(groups)) != len(groups) or not groups:
        raise ValueError(f"a file holds one result per group, got {groups}")
    try:
        _refuse_foreign(path, force)
    except OSError as error:
        raise storage_error(error, path) from error
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v110"), track_order=True) as file:
        file.attrs.update(ROOT_ATTRIBUTES)
        for result in results:
            _write_group(file.create_group(result.group, track_order=True), result, provenance)
    remove_stale(path)
    write_bytes(path, buffer.getbuffer())


def _refuse_foreign(path: Path, force: bool) -> None:
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder", f"name a file, such as {path / 'result.h5'}")
    if path.exists() and not force and not is_result_file(path):
        raise StorageError(
            f"{path} exists and is not a landscape result, or a damaged one; it was left alone",
            "choose another folder with --out, or repeat with --force to overwrite it",
        )


def _write_group(group: h5py.Group, result: Result, provenance: Provenance) -> None:
    described = {k: _attribute(v) for k, v in vars(provenance).items()}
    for name, value in result.attributes().items():
        if name in described:
            raise ValueError(f"{type(result).__name__}.{name} has the name of a field of Provenance")
        described[name] = _attribute(value)
    arrays = result.arrays()
    for name in [*described, *arrays]:  # groups of parts: "certificate.loss" lies in the group "certificate"
        _parent(group, name)
    for name, value in described.items():
        _parent(group, name).attrs[name.rpartition(".")[2]] = value
    axes = _axis_sizes(arrays)
    # Scales first, so that every other dataset can point at them.
    scales = {axis: _write_scale(group, axis, size, arrays.get(axis)) for axis, size in axes.items()}
    for name, array in arrays.items():
        if name not in scales:
            dataset = _write_array(_parent(group, name), name.rpartition(".")[2], array)
            for number, axis in enumerate(array.dims):
                dataset.dims[number].attach_scale(scales[axis])


def _parent(group: h5py.Group, name: str) -> h5py.Group:
    """The group in which a field or a part's field lies, made if it is not there."""
    for step in name.split(".")[:-1]:
        group = group[step] if step in group else group.create_group(step, track_order=True)
    return group


def _attribute(value: Any) -> Any:
    """A group attribute: text and numbers as they are, bool as uint8, everything else as JSON text."""
    if isinstance(value, bool | np.bool_):
        return np.uint8(value)
    if isinstance(value, int | np.integer):
        return np.int64(value)
    if isinstance(value, float | np.floating):
        return np.float64(value)
    if isinstance(value, str):
        return value
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def _axis_sizes(arrays: Mapping[str, Array]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array.values.ndim != len(array.dims):
            raise ValueError(f"{name} has shape {array.values.shape} but declares the axes {array.dims}")
        for axis, size in zip(array.dims, array.values.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} entries along {axis}, another field has {sizes[axis]}")
    for axis in set(sizes) & set(arrays):
        if arrays[axis].dims != (axis,) or AXES[axis][1] != axis:
            raise ValueError(f"the field {axis} has the name of an axis but is not its coordinate")
    return sizes


def _write_scale(group: h5py.Group, axis: str, size: int, coordinate: Array | None) -> h5py.Dataset:
    if coordinate is None:
        counting = Array(np.arange(size, dtype=np.int64), (axis,), "1", AXES[axis][0])
        dataset = _write_array(group, axis, counting)
        dataset.attrs["role"] = "axis"
    else:
        dataset = _write_array(group, axis, coordinate)
    dataset.make_scale(axis)
    return dataset


def _write_array(group: h5py.Group, name: str, array: Array) -> h5py.Dataset:
    values, dtype = _encoded(name, array.values)
    options: dict[str, Any] = {}
    if array.dims and dtype is not TEXT and values.nbytes >= SMALL:
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    dataset = group.create_dataset(name, data=values, dtype=dtype, **options)
    dataset.attrs["units"] = array.units
    dataset.attrs["long_name"] = array.long_name
    if array.values.dtype.kind == "b":
        dataset.attrs["dtype"] = "bool"  # xarray's convention as well: it gives bool back
    return dataset


def _encoded(name: str, values: np.ndarray) -> tuple[Any, Any]:
    """Values and explicit file dtype; HDF5 for Python would otherwise choose, and round."""
    kind = values.dtype.kind
    if kind == "b":
        return values.astype("u1"), np.dtype("u1")
    if kind in "iu":
        return values.astype("<i8"), np.dtype("<i8")
    if values.dtype in (np.float32, np.float64):
        little = np.dtype(f"<f{values.dtype.itemsize}")
        return values.astype(little, copy=False), little
    if kind == "U":
        return values.astype(object), TEXT
    raise TypeError(f"{name} has dtype {values.dtype}; a result holds float64, float32, int64, bool or str")


def read_result(
    path: str | PathLike[str], group: str | None = None, *, axes: Collection[str] | None = None
) -> StoredResult:
    """Read one group; `group=None` is for files that hold exactly one.

    With `axes`, only scalars and arrays on these axes are read: a table of many files needs no eigenvectors.

    Raises StorageError (for reading, too: exit code 5) if the file is missing, damaged, not ours or of a newer
    format, and UsageError if there is no such group or `group` must be named.
    """
    with _opened(path) as file:
        names = list(file)
        if group is None and len(names) != 1:
            raise UsageError(f"{path} holds {len(names)} results", f"name one of: {', '.join(names)}")
        name = names[0] if group is None else group
        if name not in names:
            raise UsageError(f"{path} holds no result called {name}", f"it holds: {', '.join(names)}")
        found = file[name]
        if (version := int(file.attrs["landscape_format"])) < SINCE.get(name, 1):
            raise StorageError(
                f"{path} has format version {version}, whose results of {name} are read no more",
                "repeat the command that wrote it",
            )
        attributes = {key: _plain_attribute(value) for key, value in _attributes(found)}
        provenance = _provenance(attributes)
        fields = {k: d for k, d in _datasets(found) if d.attrs.get("role") != "axis"}
        wanted = {k for k, d in fields.items() if axes is None or set(_dims(d)) <= set(axes)}
        arrays = {k: _read_array(d) for k, d in fields.items() if k in wanted}
        return StoredResult(name, arrays, attributes, provenance)


def _attributes(group: h5py.Group, before: str = "") -> Iterator[tuple[str, Any]]:
    """Attributes of a group and of its parts: "certificate.exact"."""
    yield from ((before + name, value) for name, value in group.attrs.items())
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _attributes(item, f"{before}{name}.")


def _datasets(group: h5py.Group, before: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Data sets of a group and of its parts: "certificate.lambda_min.low"."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{before}{name}.")
        else:
            yield before + name, item


def restore(stored: StoredResult, kind: type[R]) -> R:
    """The result object that was written, such as `restore(stored, Spectrum)`; drops fields it does not know.

    Raises StorageError if a required field is missing: an older version of the format, or another analysis.
    """
    values: dict[str, Any] = {
        name: array.values.item() if array.values.ndim == 0 else array.values for name, array in stored.arrays.items()
    }
    values |= stored.attributes
    missing: list[str] = []
    made = _restored(kind, values, "", missing)
    if missing:
        raise StorageError(
            f"the result {stored.group} lacks {', '.join(sorted(missing))}",
            "repeat the command that wrote it with --force",
        )
    assert isinstance(made, kind)
    return made


def _restored(kind: type[Any], values: Mapping[str, Any], before: str, missing: list[str]) -> Any:
    """An object of the class from the values whose names begin so; None if required ones are not there, which go to
    `missing`."""
    found, lacks = {}, len(missing)
    for f in (f for f in dataclasses.fields(kind) if f.init):
        name = before + f.name
        part = Interval if "interval" in f.metadata else f.metadata["part"]() if "part" in f.metadata else None
        if part is not None and any(known.startswith(f"{name}.") for known in values):
            found[f.name] = _restored(part, values, f"{name}.", missing)
        elif name in values:
            mapping = before and str(f.type).startswith("Mapping")
            found[f.name] = json.loads(values[name]) if mapping else values[name]
        elif f.default is f.default_factory is dataclasses.MISSING:
            missing.append(name)
    return None if len(missing) > lacks else kind(**found)


def list_groups(path: str | PathLike[str]) -> list[str]:
    """Names of the results in a file. Raises StorageError as `read_result` does."""
    with _opened(path) as file:
        return list(file)


def is_result_file(path: str | PathLike[str]) -> bool:
    """Whether `path` is a result file, of any format version; False for a missing, damaged or foreign one."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "landscape_format" in file.attrs
    except DAMAGE:
        return False


def stored_identity(path: str | PathLike[str], group: str) -> tuple[str, str] | None:
    """(identity, status) of a stored result, None if there is no such file or no such group in it.

    Raises StorageError if something else, or a damaged file, is in its place: the caller must not overwrite
    that unasked.
    """
    if not Path(path).exists():
        return None
    with _opened(path) as file:
        if group not in file or int(file.attrs["landscape_format"]) < SINCE.get(group, 1):
            return None
        return str(file[group].attrs["identity"]), str(file[group].attrs["status"])


def read_plain_arrays(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The numeric datasets of any HDF5 file by name, "group/name" in groups. Raises StorageError as `read_result`."""
    found: dict[str, h5py.Dataset] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    with _opened(path, ours=False) as file:
        file.visititems(note)
        return {name: np.asarray(item[()]) for name, item in found.items() if item.dtype.kind in "fiub"}


def plain_names(path: str | PathLike[str]) -> list[str]:
    """The names of the datasets of any HDF5 file. Raises StorageError as `read_result`."""
    found: list[str] = []
    with _opened(path, ours=False) as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def plain_arrays_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An HDF5 file of nothing but these datasets."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v110")) as file:
        for name, values in arrays.items():
            encoded, dtype = _encoded(name, values)
            file.create_dataset(name, data=encoded, dtype=dtype, track_times=False)
    return buffer.getvalue()


@contextmanager
def _opened(path: str | PathLike[str], *, ours: bool = True) -> Iterator[h5py.File]:
    """The open file, checked to be ours if it must be; what goes wrong inside is told as damage of the file."""
    try:
        with Path(path).open("rb"):
            pass  # the system's own words for a missing or forbidden file are better than HDF5's
    except OSError as error:
        hint = "check the path; results end in .h5 and lie in the folder given to --out"
        raise StorageError(f"cannot read {path}: {error.strerror}", hint) from error
    try:
        with _unlocked(path) as file:
            if ours:
                _check_format(file, path)
            yield file
    except DAMAGE as error:
        raise StorageError(
            f"{path} is damaged or not a landscape result ({type(error).__name__}: {_first_line(error)}), "
            "such as a copy that was cut short",
            "delete it, or repeat the command that wrote it with --force",
        ) from error


@contextmanager
def _unlocked(path: str | PathLike[str]) -> Iterator[h5py.File]:
    """Without HDF5 locks: files are replaced whole, never changed, and many cluster file systems know none.

    HDF5 opens a file twice in a process with the same flags only: where another library (xarray) has it open with
    locks, it is read as bytes.
    """
    with ExitStack() as held:
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            file = h5py.File(held.enter_context(Path(path).open("rb")), "r")
        yield held.enter_context(file)


def _check_format(file: h5py.File, path: str | PathLike[str]) -> None:
    if "landscape_format" not in file.attrs:
        raise StorageError(
            f"{path} is an HDF5 file, but not a landscape result",
            "name a file that a landscape command wrote",
        )
    found = int(file.attrs["landscape_format"])
    if found > FORMAT:
        raise StorageError(
            f"{path} has format version {found}; this landscape reads up to {FORMAT}",
            "pip install --upgrade torch-landscape",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _plain_attribute(value: Any) -> Any:
    if isinstance(value, np.uint8):
        return bool(value)
    return value.item() if isinstance(value, np.generic) else value


def _provenance(attributes: dict[str, Any]) -> Provenance:
    """Take the provenance out of a group's `attributes`, which keep the rest. Raises KeyError, ValueError."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Provenance):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in attributes and has_default:
            continue
        value = attributes.pop(field.name)
        if str(field.type).startswith("Mapping"):
            value = json.loads(value)
        elif str(field.type).startswith("tuple"):
            value = tuple(json.loads(value))
        values[field.name] = value
    return Provenance(**values)


def _dims(dataset: h5py.Dataset) -> tuple[str, ...]:
    scales = [dataset] if h5py.h5ds.is_scale(dataset.id) else [dimension[0] for dimension in dataset.dims]
    return tuple(scale.name.rsplit("/", 1)[-1] for scale in scales)


def _read_array(dataset: h5py.Dataset) -> Array:
    if h5py.check_string_dtype(dataset.dtype) is not None:
        values = np.asarray(dataset.asstr()[()], dtype=str)
    else:
        values = np.asarray(dataset[()])
    if _text(dataset.attrs.get("dtype")) == "bool":
        values = values.astype(bool)
    return Array(values, _dims(dataset), _text(dataset.attrs["units"]), _text(dataset.attrs["long_name"]))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
