"""The user's problem function (`--problem file.py:function` or `package.module:function`): found, run, and its
mistakes reported where they are."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, ProblemError, UsageError
from landscape.problem import Problem

DEFAULT_FUNCTION = "problem"
_CONSTANTS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
# Modules that earlier problem files imported from their own folders; a folder of today may have the same names.
_neighbours: dict[str, Path] = {}


@dataclass(frozen=True)
class Called:
    """A problem and what made it.

    Attributes:
        problem: what the function returned.
        sha256: of the file that defines the function.
        arguments: what the function was given by name, tensors and header left out.
        notes: which arguments came from the checkpoint.
    """

    problem: Problem
    sha256: str
    arguments: dict[str, Any]
    notes: tuple[str, ...]


def parse_setting(text: str) -> Any:
    """The value of `--set key=text`: a Python literal where it is one (1e-3, True, None, (1, 2)), else the text."""
    if text.strip().lower() in _CONSTANTS:
        return _CONSTANTS[text.strip().lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape in a path
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def call_problem(
    spec: str, settings: Mapping[str, Any], coordinates: Mapping[str, Any], extras: Mapping[str, Any]
) -> Called:
    """Run the function that `spec` names and return its problem.

    Args:
        spec: `path/file.py:function` or `package.module:function`; `problem` where no function is named.
        settings: the user's `--set`, texts or values; each must be a parameter of the function.
        coordinates: for parameters of these names that `settings` leaves open.
        extras: the same, for what is no setting (`state_dict`, `header`).

    Raises:
        UsageError: no such file, module, function or parameter.
        ProblemError: the user's code fails, or returns something else.
    """
    place, function_name = _parsed(spec)
    is_file = place.endswith(".py") or "/" in place or "\\" in place
    path = Path(place).expanduser()
    if is_file and not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=3, cutoff=0.3)
        raise UsageError(
            f"--problem: there is no file {place}",
            f"did you mean {' or '.join(near)}?" if near else "write --problem path/to/file.py:function",
        )
    folder = path.resolve().parent if is_file else Path.cwd()
    with _importing_from(folder):
        module, source = _run_file(path) if is_file else _import(place)
        function = _function(module, function_name, place)
        arguments, notes = _arguments(function, function_name, settings, coordinates, extras)
        with _reported(source):
            result = function(**arguments)
    if not isinstance(result, Problem):
        hint = "end it with: return landscape.Problem(model, data, loss)"
        what = "nothing" if result is None else f"a {type(result).__name__}"
        raise ProblemError(f"{source.name}: {function_name}() returned {what}, not a landscape.Problem", hint)
    shown = {name: value for name, value in arguments.items() if name not in extras}
    return Called(result, hashlib.sha256(source.read_bytes()).hexdigest(), shown, notes)


def _parsed(spec: str) -> tuple[str, str]:
    place, colon, name = spec.rpartition(":")
    if not colon or (not name.isidentifier() and name):  # the colon of a drive letter is none of ours
        return spec, DEFAULT_FUNCTION
    if not place:
        raise UsageError(f"--problem {spec!r} names no file", "write --problem path/to/file.py:function")
    return place, name or DEFAULT_FUNCTION


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """The folder on the import path, and the user's prints on stderr: stdout is for results."""
    for name, owner in list(_neighbours.items()):
        if owner != folder:
            sys.modules.pop(name, None)
            del _neighbours[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and Path(file).parent == folder:
                _neighbours[name] = folder


def _run_file(path: Path) -> tuple[types.ModuleType, Path]:
    """Run the file as a module of its own, afresh."""
    name = f"landscape_problem_{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    with _reported(path):
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module, path


def _import(place: str) -> tuple[types.ModuleType, Path]:
    found = None
    try:
        found = importlib.util.find_spec(place)  # runs the packages around it
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")
        if not absent and not isinstance(error, ValueError):
            raise ProblemError(f"--problem: importing {place} fails: {type(error).__name__}: {error}") from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        near = difflib.get_close_matches(f"{place}.py", [p.name for p in Path().glob("*.py")], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "for a file, write path/to/file.py:function"
        raise UsageError(f"--problem: there is no module {place!r} here or among the installed ones", hint)
    with _reported(Path(found.origin)):
        return importlib.import_module(place), Path(found.origin)


def _function(module: types.ModuleType, name: str, place: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(module, name, None)
    if callable(function):
        return function
    own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    near = difflib.get_close_matches(name, own, n=1)
    functions = f"it has {', '.join(own[:8])}" if own else "it defines no function"
    raise UsageError(
        f"--problem: {place} has no function {name!r}; {functions}",
        f"write --problem {place}:{(near or own or ['function'])[0]}",
    )


def _arguments(
    function: Callable[..., Any],
    name: str,
    settings: Mapping[str, Any],
    coordinates: Mapping[str, Any],
    extras: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What to call the function with, and where it came from. Raises UsageError."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--problem: {name} is not a Python function", "name a function that returns a Problem"
        ) from error
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = [p.name for p in named if p.name not in extras]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in settings:
        if key not in takes and not open_ended:
            near = difflib.get_close_matches(key, takes, n=1)
            listed = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise UsageError(
                f"--set {key}: {name}() has no parameter {key!r}; {listed}",
                f"did you mean --set {near[0]}=…?" if near else f"remove it, or add {key} to {name}()",
            )
    given = {key: parse_setting(v) if isinstance(v, str) else v for key, v in settings.items()}
    filled = {p.name: coordinates[p.name] for p in named if p.name in coordinates and p.name not in given}
    special = {p.name: extras[p.name] for p in named if p.name in extras}
    lacking = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in given | filled | special
    ]
    if lacking:
        raise UsageError(
            f"{name}() needs {', '.join(lacking)}, which neither --set nor the checkpoint's path or header gives",
            f"add {' '.join(f'--set {n}=…' for n in lacking)}, or give the parameter a default",
        )
    notes = tuple(f"{key}={value} is the checkpoint's" for key, value in filled.items())
    return {**filled, **given, **special}, notes


@contextlib.contextmanager
def _reported(source: Path) -> Iterator[None]:
    """Turn any failure of the user's code into one sentence with the user's own line."""
    try:
        yield
    except LandscapeError as error:
        where = _where(error, source)
        if where is None:
            raise
        raise type(error)(f"{where}: {error.message}", error.hint) from error
    except (Exception, SystemExit) as error:
        where = _where(error, source) or source.name
        hint = None
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"pip install {error.name.partition('.')[0]}, or put it into the folder of {source.name}"
        text = str(error).strip().splitlines()
        message = f"{where}: {type(error).__name__}" + (f": {text[0][:300]}" if text else "")
        raise ProblemError(message, hint) from error


def _where(error: BaseException, source: Path) -> str | None:
    """The innermost line of the user's files that the error passed through: "problem.py line 12"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name} line {error.lineno}"
    folder = source.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_absolute() or Path(frame.filename).exists():
            file = Path(frame.filename).resolve()
            if file == source.resolve() or (folder in file.parents and "site-packages" not in file.parts):
                return f"{file.name} line {frame.lineno}"
    return None
