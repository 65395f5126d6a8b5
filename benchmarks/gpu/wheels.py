"""`make gpu-wheels`: what a bare GPU machine lacks, as wheels in one folder that can be carried there.

This project, its dependencies, the peers and the tests' helpers, at the versions of `benchmarks/requirements.txt` and
`constraints.txt`, less what such a machine has. Standard library and pip only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 60e6
# Large, and on the machine already; of the small ones what is there is not unpacked.
THERE = (
    "torch", "numpy", "scipy", "scikit-learn", "matplotlib", "h5py", "pillow", "contourpy", "kiwisolver", "fonttools",
    "sympy", "networkx", "mpmath",
)  # fmt: skip
# What the tests need besides; pydantic and others come with the peers.
FOR_TESTS = (
    "pytest-timeout",
    "pytest-xdist",
    "execnet",
    "hypothesis",
    "sortedcontainers",
    "h5netcdf",
    "xarray",
    "pandas",
)
# Of a peer's requirements, what only its plots want.
UNUSED = ("plotly", "narwhals")


def wanted() -> list[str]:
    """Requirements NAME==VERSION."""
    lines = (ROOT / "benchmarks" / "requirements.txt").read_text().split("\n")
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    constraints = dict(c.split("==") for c in (ROOT / "constraints.txt").read_text().split("\n") if "==" in c)
    pins |= {name: constraints[name] for name in FOR_TESTS}
    left = {normal(n) for n in (*THERE, *UNUSED)}
    return sorted(f"{name}=={version}" for name, version in pins.items() if normal(name) not in left)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(requirement: str, folder: Path, python: str) -> None:
    """A wheel for that Python on Linux; of sources it is built here (pure Python, then)."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    systems = [
        word for s in ("manylinux_2_28", "manylinux_2_17", "manylinux2014") for word in ("--platform", f"{s}_x86_64")
    ]
    binary = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python, *systems]
    ready = [*pip, *binary, "--dest", str(folder), requirement]
    if requirement == str(ROOT) or subprocess.run(ready, capture_output=True).returncode:
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), requirement], check=True)


def main() -> int:
    """Fill the folder anew."""
    parser = argparse.ArgumentParser(prog="make gpu-wheels", description=__doc__)
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-wheels")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".gpu-wheels-") as name:
        folder = Path(name)
        for requirement in wanted():
            fetch(requirement, folder, asked.python)
        fetch(str(ROOT), folder, asked.python)
        size = sum(w.stat().st_size for w in folder.glob("*.whl"))
        print(f"{len(list(folder.glob('*.whl')))} wheels, {size / 1e6:.1f} MB, in {asked.out}")
        if size > LARGEST:
            large = sorted(folder.glob("*.whl"), key=lambda w: -w.stat().st_size)[:3]
            named = ", ".join(f"{w.name} {w.stat().st_size / 1e6:.0f} MB" for w in large)
            print(f"error: that is over {LARGEST / 1e6:.0f} MB: {named}", file=sys.stderr)
            return 1
        asked.out.mkdir(exist_ok=True)
        for old in asked.out.glob("*.whl"):
            old.unlink()
        for wheel in folder.glob("*.whl"):
            wheel.rename(asked.out / wheel.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
