"""`make bench`: makes .bench-env once (this project and its peers), then measures in it. Standard library only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENT = ROOT / ".bench-env"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = HERE / "requirements.txt"
STAMP = ENVIRONMENT / ".installed"
TORCH = "torch==2.13.0"


def wanted() -> str:
    """What the environment was made from; a change of it makes it anew."""
    text = TORCH + REQUIREMENTS.read_text() + str(ROOT)
    return hashlib.sha256(text.encode()).hexdigest()


def install() -> None:
    """torch first and alone, so that nothing else can pull a CUDA build or torchvision."""
    if STAMP.exists() and STAMP.read_text() == wanted():
        return
    print(f"making {ENVIRONMENT} (once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
    STAMP.write_text(wanted())


def main() -> int:
    """Install, then hand the arguments on to the measurement."""
    install()
    command = [str(PYTHON), "-W", "ignore", "-m", "benchmarks.measure", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode


if __name__ == "__main__":
    sys.exit(main())
