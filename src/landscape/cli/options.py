"""The options of commands: those that all share, and those that the fields of an analysis's settings declare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from landscape.checkpoints.source import Source
from landscape.errors import UsageError
from landscape.settings import flag_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...", help="Checkpoints, globs ('runs/**/final.pt') or folders of them.", show_default=False
    ),
]
ProblemOption = Annotated[
    str | None,
    typer.Option(
        "--problem", metavar="FILE.py:FUNCTION", help="Function that returns the Problem (model, data, loss)."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Argument of the problem function; repeatable.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="FILE.npz", help="Arrays inputs and targets, for exported programs.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", help="cross_entropy, mse or bce, for exported programs and with --data.")
]
AllowGlobal = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global", metavar="NAME,...", help="Classes that a checkpoint may contain, skipped unread; repeatable."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY", help="Which weights of a file with several sets: state_dict_ema, state.model."
    ),
]
BatchNorm = Annotated[
    Literal["eval", "batch"] | None,
    typer.Option(
        "--batchnorm",
        help="BatchNorm's statistics: eval (running ones, the default) or batch (of each whole batch, as in training).",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the result files.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per checkpoint on stdout, one a line.")]
Force = Annotated[bool, typer.Option("--force", help="Compute again, and overwrite other results in --out.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress; warnings and errors stay.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Workers = Annotated[int, typer.Option("--workers", help="Checkpoints analysed at the same time, a process each.")]
DEFAULT_OUT = Path("landscape-results")


# Options of the problem that stand before those of an analysis in `--help`, and fields of settings that stand after.
FIRST = ("problem", "sets")
LAST = ("device", "precision", "batch_size", "block", "memory", "samples", "seed")
# Parameters that stand for several options.
SOURCE: dict[str, Any] = {
    "problem": ProblemOption, "sets": SetOption, "data": DataOption, "loss": LossOption,
    "allow_global": AllowGlobal, "key": Key, "batchnorm": BatchNorm,
}  # fmt: skip
OUTPUT: dict[str, tuple[Any, Any]] = {
    "out": (Out, DEFAULT_OUT), "as_json": (Json, False), "force": (Force, False), "quiet": (Quiet, False),
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """Where results go, and what is said of them on the way."""

    out: Path
    as_json: bool
    force: bool
    quiet: bool


def options_of(
    kind: type[DataclassInstance] | None = None, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the options that its parameters stand for.

    Its parameter `settings` becomes the options of the fields of `kind`, each with its help, default and choices;
    `source` those that name a problem; `output` those of files and messages. Other parameters stay as they are.

    Args:
        kind: a dataclass whose fields are made by `settings.option`. without: options that this command does not have.
    """

    known = {} if kind is None else {f.name: f for f in fields(kind) if f.name not in without}
    source = [name for name in SOURCE if name not in without]

    def made(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        def run(**given: Any) -> None:
            told = {name: given[name] for name in own if name in given}
            if "settings" in own and kind is not None:
                told["settings"] = kind(**{name: _value(f, given[name]) for name, f in known.items()})
            if "source" in own:
                told["source"] = source_of({name: given[name] for name in source})
            if "output" in own:
                told["output"] = Output(**{name: given[name] for name in OUTPUT})
            command(**told)

        hints = {} if kind is None else get_type_hints(kind)
        listed = _listed(own, {name: _parameter(f, hints[name]) for name, f in known.items()}, source)
        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__annotations__ = {name: hint for name, (hint, _) in listed.items()}
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in listed.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return made


def _listed(
    own: Mapping[str, inspect.Parameter], analysis: Mapping[str, tuple[Any, Any]], source: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every option, in the order of `--help`: what is peculiar to a command comes first."""
    listed: dict[str, tuple[Any, Any]] = {}
    for name, parameter in own.items():
        if name == "settings":
            listed |= {k: v for k, v in analysis.items() if k not in LAST}
        elif name == "source":
            listed |= {k: (SOURCE[k], None) for k in source if k in FIRST}
        elif name == "output":
            listed |= {k: (SOURCE[k], None) for k in source if "source" in own and k not in FIRST}
            listed |= {k: analysis[k] for k in LAST if k in analysis}
            listed |= OUTPUT
        else:
            listed[name] = (parameter.annotation, parameter.default)
    return listed


def _parameter(setting: Field[Any], hint: Any) -> tuple[Any, Any]:
    """The option of a field as typer takes it: annotation and default."""
    told, default, flag = setting.metadata, setting.default, flag_of(setting)
    bools = hint is bool or bool in get_args(hint)
    if bools and default is not False:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    if told.get("many"):
        hint, default = list[str] | None, None
    elif "words" in told:
        hint = str | None
    shown = default is not None and default is not False and default != ""
    found = typer.Option(flag, help=told["help"], metavar=told.get("metavar"), show_default=shown)
    return Annotated[hint, found], default


def _value(setting: Field[Any], given: Any) -> Any:
    """What was typed, as the field has it."""
    words: Callable[[str], Any] | None = setting.metadata.get("words")
    if words is None or given is None:
        return setting.default if given is None else given
    if not setting.metadata.get("many"):
        return words(given)
    return tuple(item for text in given for item in words(text)) if given else setting.default


def source_of(given: Mapping[str, Any]) -> Source:
    """Which problem the options name."""
    return Source(
        given.get("problem"),
        parse_sets(given.get("sets")),
        given.get("data"),
        given.get("loss"),
        tuple(given.get("allow_global") or ()),
        given.get("key"),
        given.get("batchnorm"),
    )


def required_workers(workers: int) -> int:
    """A number of processes. Raises UsageError."""
    if workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    return workers


def parse_sets(pairs: list[str] | None) -> dict[str, str]:
    """--set KEY=VALUE options as a mapping.

    Raises:
        UsageError: a pair without "=", or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not KEY=VALUE", "write it like --set width=64")
        if key in found:
            raise UsageError(f"--set {key} is given twice", "keep one of them")
        found[key] = value
    return found
