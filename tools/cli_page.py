"""Writes the --help sections of docs/cli.md; `python tools/cli_page.py` after a change of the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
SECTION = re.compile(r"(?<=<!-- help: )(?P<name>[a-z ]*)(?P<tail> -->\n```text\n).*?(?=\n```)", re.DOTALL)


def help_text(command: str) -> str:
    """What `landscape COMMAND --help` prints at 80 columns."""
    argv = [sys.executable, "-m", "landscape", *command.split()[1:], "--help"]
    environment = {**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    shown = subprocess.run(argv, capture_output=True, text=True, env=environment, check=True).stdout
    lines = shown.replace("python -m landscape", "landscape").strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def rendered(text: str) -> str:
    """The page with every help section made anew."""
    return SECTION.sub(lambda m: m["name"] + m["tail"] + help_text(m["name"]), text)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}\n")
