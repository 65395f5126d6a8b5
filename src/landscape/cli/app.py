"""The typer application: registers the commands."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import typer

from landscape.analyses import ANALYSES
from landscape.cli.terminal import within_errors, within_memory
from landscape.errors import UsageError

# What typer raises where a command line cannot be parsed, whichever parser it has inside.
MISTYPED: Any = typer.BadParameter.__mro__[2]
OTHERS = ("train", "doctor", "info", "plot", "report", "export")


def _examples(module: ModuleType) -> str:
    """What stands at the end of a command's help, each on a line of its own."""
    lines = "\n".join(f"  {line}" for line in module.EXAMPLES)
    return f"\b\nExamples:\n{lines}"


def make_app() -> typer.Typer:
    """The application with a command for every analysis, and the others."""
    app = typer.Typer(
        name="landscape",
        help="Where in the loss landscape did training stop? Hessian spectra of PyTorch checkpoints, with bounds.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in (*ANALYSES, *OTHERS):
        module = import_module(f"landscape.cli.{name}")
        app.command(name, epilog=_examples(module))(getattr(module, name))
    return app


app = make_app()


def main() -> None:
    """Entry point of the `landscape` command; exit codes are those of `docs/cli.md`."""
    within_errors(_run)


def _run() -> None:
    try:
        code = within_memory(app, standalone_mode=False)
    except MISTYPED as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "landscape"
        said = error.format_message().rstrip(".").replace("Value error, ", "")
        raise UsageError(said, f"`{path} --help` says what there is") from error
    if code:  # of typer.Exit
        sys.exit(code)
