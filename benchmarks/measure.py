"""The measurement itself; `benchmarks/run.py` starts it in .bench-env."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks import page
from benchmarks.memory import KRYLOV, measured
from benchmarks.problems import NETWORKS, cnn_case, mlp_case, small_case
from benchmarks.rows import Bench
from benchmarks.slices import POINTS, slice_rows
from benchmarks.timing import Effort
from benchmarks.truth import reference_of, truth_of
from landscape.curvature.operator import CurvatureOperator
from landscape.problem.objective import build_objective
from landscape.runtime.memory import keep_heap

ROWS = ("products", "top", "bottom", "density", "whole", "slices", "memory")
ON_DIGITS = {"products", "top", "bottom", "density", "whole"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    parser.add_argument("--only", choices=ROWS, nargs="+", default=ROWS, help="rows to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--networks", choices=tuple(NETWORKS), nargs="+", help="of the product row; all on a GPU, else mlp and cnn"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for the repetitions of a row")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="two repetitions, few references: for trying it out")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks.md"), help="rows left out are named in it; '-' writes nothing"
    )
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    effort = Effort(2, 30.0) if asked.quick else Effort(asked.repetitions, asked.seconds)
    load = os.getloadavg()[0]
    torch.set_num_threads(asked.threads)
    keep_heap()  # for all tools: without it a tool's time depends on what the others have freed before
    parts: list[str] = []

    def show(text: str) -> None:
        parts.append(text)
        print(text, flush=True)

    if set(asked.only) & ON_DIGITS:
        case = mlp_case().to(asked.device)
        bench = Bench(case, effort)
        truth = truth_of(case)
        show(
            f"## {case.name}, ReLU, {case.parameters:,} parameters, digits (N = {case.samples}), float32\n\n"
            f"Largest eigenvalues {truth.top[0]:.5g} … {truth.top[-1]:.5g}, most negative {truth.bottom[0]:.5g}; "
            f"the two references agree to {truth.disagreement:.1e}.\n"
        )
        if "products" in asked.only:
            for name in asked.networks or (NETWORKS if asked.device == "cuda" else ("mlp", "cnn")):
                network = NETWORKS[name]().to(asked.device)
                objective = build_objective(network.problem(), dtype=torch.float64, device=asked.device)
                show(page.product_table(Bench(network, effort).products(CurvatureOperator(objective))))
        if "top" in asked.only:
            show(page.race_table(bench.top(truth)))
        if "bottom" in asked.only:
            show(page.race_table(bench.bottom(truth)))
        if "density" in asked.only:
            reference = reference_of(truth, *((4, 80) if asked.quick else (16, 100)))
            show(page.race_table(bench.density(truth, reference)))
        if "whole" in asked.only:
            show(page.race_table(bench.whole(truth)))
    if "slices" in asked.only:
        for made in (small_case, mlp_case, cnn_case):
            network = made().to(asked.device)
            show(page.slice_table(network.name, network.parameters, POINTS, slice_rows(network, effort)))
    if "memory" in asked.only:
        limits = (None, "6GB", "4GB")
        show(page.memory_table([measured(limit, 20 if asked.quick else KRYLOV) for limit in limits]))
    left_out = [row for row in ROWS if row not in asked.only]
    if left_out:
        parts.append(f"Not measured in this run: {', '.join(left_out)}.\n")
    if str(asked.out) == "-" or asked.quick:
        print("docs/benchmarks.md is left as it is", file=sys.stderr)
        return
    page.write(asked.out, [page.machine(load), *parts])
    print(f"wrote {asked.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
