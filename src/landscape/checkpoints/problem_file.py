"""The user's problem function (`--problem file.py:function` or `package.module:function`): found, run, and its
mistakes reported where they are."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from landscape.checkpoints.arguments import Unconvertible, converted, kinds_of
from landscape.errors import LandscapeError, ProblemError, UsageError
from landscape.problem.problem import Problem

DEFAULT_FUNCTION = "problem"
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
        handed: what of `extras` the function was given.
    """

    problem: Problem
    sha256: str
    arguments: dict[str, Any]
    notes: tuple[str, ...]
    handed: dict[str, Any]


def call_problem(
    spec: str,
    settings: Mapping[str, Any],
    coordinates: Mapping[str, Any],
    extras: Mapping[str, Callable[[], Any]],
    words: Mapping[str, str] = MappingProxyType({}),
) -> Called:
    """Run the function that `spec` names and return its problem.

    Args:
        spec: `path/file.py:function` or `package.module:function`; `problem` where no function is named.
        settings: the user's `--set`, texts or values; each must be a parameter of the function.
        coordinates: for parameters of these names that `settings` leaves open.
        extras: the same, for what is no setting (`state_dict`, `header`, `path`, `config`); made when asked for.
        words: coordinates as the path spells them, for parameters that say what they take.

    Raises:
        UsageError: no such file, module, function or parameter; a text that is not what the parameter takes.
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
        spelt = {name: words.get(name, value) for name, value in coordinates.items()}
        arguments, notes = _arguments(function, function_name, settings, (coordinates, spelt), extras)
        with _reported(source):
            handed = _handed(function, arguments, extras)
            result = function(**arguments, **handed)
    if not isinstance(result, Problem):
        hint = "end it with: return landscape.Problem(model, data, loss)"
        what = "nothing" if result is None else f"a {type(result).__name__}"
        raise ProblemError(f"{source.name}: {function_name}() returned {what}, not a landscape.Problem", hint)
    return Called(result, hashlib.sha256(source.read_bytes()).hexdigest(), arguments, notes, handed)


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
    found: Any = getattr(module, name, None)
    if found is not None and (not callable(found) or isinstance(found, nn.Module)):
        free = next(n for n in (DEFAULT_FUNCTION, f"make_{name}", f"make_{name}_") if not hasattr(module, n))
        raise UsageError(
            f"--problem: {name!r} of {place} is a {type(found).__name__}, not a function that returns a Problem",
            f"build it within a function, def {free}(): return Problem(model, data, loss), and write "
            f"--problem {place}:{free}",
        )
    if callable(found):
        function: Callable[..., Any] = found
        return function
    own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    near = difflib.get_close_matches(name, own, n=1)
    functions = f"it has {', '.join(own[:8])}" if own else "it defines no function"
    raise UsageError(
        f"--problem: {place} has no function {name!r}; {functions}",
        f"write --problem {place}:{(near or [n for n in own if n == DEFAULT_FUNCTION] or own or ['function'])[0]}",
    )


def _handed(
    function: Callable[..., Any], arguments: Mapping[str, Any], extras: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """What of the checkpoint itself the function asks for; a `path` or `config` with a default of its own does not."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        own = name in ("path", "config") and parameter.default not in (parameter.empty, None)
        if name in extras and name not in arguments and not own:
            value = extras[name]()
            if value is None and name == "config" and parameter.default is parameter.empty:
                raise UsageError(
                    f"{function.__name__}() asks for config, and the settings of the run are neither in the file "
                    "(config, args, hparams, hyper_parameters) nor beside it",
                    "give `config` a default, or write a config.yaml or config.json into the folder of the checkpoint",
                )
            if value is not None or parameter.default is parameter.empty:
                found[name] = value
    return found


def _arguments(
    function: Callable[..., Any],
    name: str,
    settings: Mapping[str, Any],
    coordinates: tuple[Mapping[str, Any], Mapping[str, Any]],
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
    takes = [p.name for p in named if p.name not in extras or p.name in ("path", "config")]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in settings:
        if key not in takes and not open_ended:
            near = difflib.get_close_matches(key, takes, n=1)
            listed = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise UsageError(
                f"--set {key}: {name}() has no parameter {key!r}; {listed}",
                f"did you mean --set {near[0]}=…?" if near else f"remove it, or add {key} to {name}()",
            )
    kinds = kinds_of(function)
    given = {
        key: _converted(f"--set {key}={v}", name, key, v, kinds.get(key, Any)) if isinstance(v, str) else v
        for key, v in settings.items()
    }
    filled = {}
    for key in [p.name for p in named if p.name in coordinates[0] and p.name not in (*given, *extras)]:
        value = coordinates[0 if kinds[key] is Any else 1][key]
        filled[key] = _converted(f"{key}={value} of the checkpoint's path", name, key, value, kinds[key])
    lacking = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in given | filled
        and p.name not in extras
    ]
    if lacking:
        raise UsageError(
            f"{name}() needs {', '.join(lacking)}, which neither --set nor the checkpoint's path or header gives",
            f"add {' '.join(f'--set {n}=…' for n in lacking)}, or give the parameter a default",
        )
    notes = tuple(f"{key}={value} is the checkpoint's" for key, value in filled.items())
    return {**filled, **given}, notes


def _converted(where: str, function: str, key: str, value: Any, kind: Any) -> Any:
    """A text as what the function takes under a name. Raises UsageError."""
    if kind is Any and not isinstance(value, str):
        return value
    try:
        return converted(value, kind)
    except Unconvertible as error:
        raise UsageError(
            f"{where} is not what {function}() takes there: {error}",
            f"say it with --set {key}=…, or change the annotation or default of {key} in {function}()",
        ) from error


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
