"""The typer application: registers the commands and turns errors into one message and an exit code."""

from __future__ import annotations

import errno
import os
import sys

import typer

from landscape.cli import check, descend, doctor, escape, export, info, plot, report, slice, spectrum, train, widen
from landscape.cli.terminal import print_error, within_memory
from landscape.errors import LandscapeError
from landscape.runtime.files import storage_error
from landscape.runtime.interrupts import Interrupted, interruptible

app = typer.Typer(
    name="landscape",
    help="Where in the loss landscape did training stop? Hessian spectra of PyTorch checkpoints, with bounds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("spectrum")(spectrum.spectrum)
app.command("escape")(escape.escape)
app.command("widen")(widen.widen)
app.command("slice")(slice.slice)
app.command("descend")(descend.descend)
app.command("train")(train.train)
app.command("check")(check.check)
app.command("info")(info.info)
app.command("plot")(plot.plot)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the `landscape` command; exit codes are those of `docs/cli.md`."""
    try:
        with interruptible():
            within_memory(app)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except LandscapeError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `landscape ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has nowhere to go
        full = storage_error(error, "the output")
        print_error(full)
        sys.exit(full.exit_code)
