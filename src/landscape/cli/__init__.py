"""The command line: the only layer that prints or exits. Heavy imports happen inside the commands."""

from __future__ import annotations

from landscape.cli.app import main

__all__ = ["main"]
