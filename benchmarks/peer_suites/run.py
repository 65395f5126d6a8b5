"""Run peers' own test suites against ours and write docs/peer-suites.md; by hand, with checkouts of theirs.

    python -m benchmarks.peer_suites.run traceax=~/src/traceax curvlinops=~/src/curvlinops ...

Nothing of theirs is copied: a checkout is read where it lies, and a pytest plugin (`NAME.py` beside this file) puts
our operators and algorithms in the place of theirs before the tests are imported. What their tests import besides
(JAX, equinox, BackPACK ...) has to be installed in the environment that runs this. Suites that are not named keep the
rows they have on the page.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "peer-suites.md"
SUITES = ("hessian_eigenthings", "curvlinops", "spectral_density", "matfree", "imate", "traceax")
HEAD = """# Peers' own test suites against ours

Written by `python -m benchmarks.peer_suites.run NAME=CHECKOUT ...`: the tests that peers wrote for their operators,
eigensolvers, traces and densities, with ours in the place of theirs. Tests of what is not ours to give (settings,
guards and random numbers of theirs, Fisher matrices, finite differences) are left out by name, with the reason, in
`benchmarks/peer_suites/`; the counts are those of the rest.
"""


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, or a dash."""
    found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "–"


def run_suite(name: str, checkout: Path, extra: list[str]) -> dict[str, Any]:
    """Counts of one suite, and the tests that failed with the last line of each error."""
    plugin = importlib.import_module(f"benchmarks.peer_suites.{name}")
    paths = [str(checkout / p) for p in getattr(plugin, "PATHS", ("",))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(checkout), "--import-mode",
            getattr(plugin, "IMPORT", "prepend"), "-p", "benchmarks.peer_suites.choosing", "-p",
            f"benchmarks.peer_suites.{name}", "-p", "no:cacheprovider", f"--junitxml={report}",
            *(str(checkout / f) for f in plugin.FILES), *extra,
        ]  # fmt: skip
        environment = {
            **os.environ, "PEER_SUITE": name, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *paths, os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        subprocess.run(command, cwd=folder, env=environment)  # a checkout may hold a folder named after a package
        if not report.exists():
            raise SystemExit(f"{name}: pytest ended before any test")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error"):
            if (node := case.find(kind)) is not None:
                message = " ".join((node.get("message") or "").split())
                failed[f"{case.get('classname')}::{case.get('name')}"] = message[:160]
    # a test may hold many cases, where the plugin counts them
    held = [{p.get("name"): int(p.get("value") or 0) for p in case.iter("property")} for case in cases]
    total = sum(h.get("cases", 1) for h, case in zip(held, cases, strict=True) if case.find("skipped") is None)
    wrong = sum(h.get("wrong") or 1 for h, case in zip(held, cases, strict=True) if case.find("failure") is not None)
    wrong += sum(case.find("error") is not None for case in cases)
    return {
        "commit": commit_of(checkout), "applicable": total, "passed": total - wrong,
        "failed": failed, "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    }  # fmt: skip


def known() -> dict[str, Any]:
    """The counts that the page already holds."""
    text = PAGE.read_text() if PAGE.exists() else ""
    found = re.search(r"<!-- counts: (.*?) -->", text, re.DOTALL)
    return json.loads(found[1]) if found else {}


def page(counts: dict[str, Any]) -> str:
    """docs/peer-suites.md; the counts stay in it for the next run."""
    rows = [(name, c["commit"], str(c["applicable"]), str(c["passed"]), c["date"]) for name, c in counts.items()]
    total = (sum(c[k] for c in counts.values()) for k in ("applicable", "passed"))
    rows.append(("**all**", "", *(f"**{n}**" for n in total), ""))
    head = ("suite", "commit", "cases", "passed", "run on")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * 5, *rows)]
    for name, c in counts.items():
        lines += ["", *([f"Failed of {name}:", ""] if c["failed"] else [])]
        lines += [f"- `{test}`: {message.replace('|', '/')}" for test, message in c["failed"].items()]
    made = f"Python {platform.python_version()}, torch {version('torch')}."
    text = "\n".join([HEAD, made, "", *lines]).rstrip()
    return f"{text}\n\n<!-- counts: {json.dumps(counts)} -->\n"


def main() -> int:
    """Run the named suites; 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", metavar="NAME=CHECKOUT", help=f"NAME is one of {', '.join(SUITES)}")
    parser.add_argument("--no-page", action="store_true")
    options, extra = parser.parse_known_args()
    counts = known()
    for pair in options.suites:
        name, _, checkout = pair.partition("=")
        if name not in SUITES or not Path(checkout).expanduser().is_dir():
            parser.error(f"{pair} is not NAME=CHECKOUT of a peer that is known and a folder that exists")
        counts[name] = run_suite(name, Path(checkout).expanduser().resolve(), extra)
        print(f"{name}: {counts[name]['passed']} of {counts[name]['applicable']} passed")
    if not options.no_page:
        PAGE.write_text(page({name: counts[name] for name in SUITES if name in counts}))
    return int(any(counts[p.partition("=")[0]]["failed"] for p in options.suites))


if __name__ == "__main__":
    sys.exit(main())
