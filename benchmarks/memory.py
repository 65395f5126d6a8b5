"""Peak memory of one analysis, measured in a process of its own: `python -m benchmarks.memory [LIMIT]` prints JSON."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

# 8 products go to the trace and 10 to the second look: the Krylov basis gets the rest.
KRYLOV, OTHERS = 100, 8


@dataclass(frozen=True)
class MemoryRow:
    """Peak resident set in GB under a limit (None: no limit), and what was done within it."""

    limit: str | None
    peak: float
    seconds: float
    parameters: int
    products: int
    basis: str
    error: str = ""


def measured(limit: str | None, products: int) -> MemoryRow:
    """Run the analysis in a fresh process; a crash is a row as well."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", limit or "-", str(products)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return MemoryRow(limit, float("nan"), float("nan"), 0, 0, "", f"exit {done.returncode}: {last[:120]}")
    return MemoryRow(limit, **json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    from benchmarks.problems import large_case
    from landscape import spectrum
    from landscape.settings import parse_bytes

    limit = None if sys.argv[1] == "-" else parse_bytes(sys.argv[1])
    start = time.perf_counter()
    # a tolerance out of reach: the basis grows to the limit of the products instead of stopping at convergence
    found = spectrum(
        large_case().problem(), top=5, bottom=5, density=False, exact=False, rtol=1e-12, tau=1e-12,
        max_products=int(sys.argv[2]) + OTHERS, memory=limit,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    plan = found.spent.plan
    report = {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "seconds": seconds,
        "parameters": found.parameters,
        "products": found.spent.products,
        "basis": f"{plan['krylov_rows']} rows, {plan['restarts']} restarts",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
