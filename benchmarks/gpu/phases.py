"""The phases of `make gpu`: `python -m benchmarks.gpu.phases NAME` imports, waits for its seconds on stdin, measures.

A row is one line of JSON, written and flushed when it is measured: what, of which case, by whom; seconds, true error,
setting, and why not where a tool cannot do it. A peer that is not installed or fails is a row, too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape
from benchmarks import ours, peers, problems
from benchmarks.problems import Case
from landscape.curvature.operator import CurvatureOperator
from landscape.data import load_data
from landscape.models import build_model
from landscape.points.certify import certify_stack
from landscape.points.descent import Way, descend_stack
from landscape.problem.objective import build_objective
from landscape.problem.problem import Problem
from landscape.runtime.memory import synchronise
from landscape.stack.build import build_stack
from landscape.training.sweep import Run, plan, read_sweep
from landscape.training.sweeps import sweep_file

Product = Callable[[Tensor], Tensor]
LEAST_REPETITIONS, MOST_REPETITIONS = 3, 25
ACCURACY = 1e-3
STEPS, PROBES = 40, 3
# Steps at either end that a peer without a stopping rule may take.
KRYLOV_STEPS = (30, 40, 56, 80)
# How a test file says that some of its tests are for a GPU.
GPU_TESTS = r"mark\.gpu|DEVICES|device: str"
# The check is given so many seconds (on a GPU, in a rehearsal), and so many to stop when it is interrupted.
CHECK_SECONDS, STOPPING = (120.0, 8.0), 12.0
CHECK = ("check", "--claim", "escape-dimensions", "--run")


@dataclass
class Phase:
    """What a phase works with: where, how large, until when, and where its rows go."""

    device: torch.device
    tiny: bool
    end: float
    rows: Path
    cases: dict[str, Case] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def emit(self, row: str, case: str, who: str, **values: Any) -> None:
        """Write a row at once."""
        line = json.dumps({"row": row, "case": case, "who": who, **values}, default=_plain)
        with self.rows.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def case(self, name: str) -> Case:
        """The network of that name in this size, on the device."""
        if name not in self.cases:
            self.cases = {name: self.networks[name]().to(str(self.device))}  # one at a time: memory
        return self.cases[name]

    @property
    def networks(self) -> dict[str, Callable[[], Case]]:
        """By name, in the order in which they are measured."""
        return TINY if self.tiny else FULL

    @property
    def expected(self) -> int:
        """Products that a plan is made for: in a rehearsal not worth tracing anything."""
        return 5 if self.tiny else 640


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


FULL: dict[str, Callable[[], Case]] = {
    "MLP 85k": problems.mlp_case,
    "ResNet18 k=8": lambda: problems.resnet_case(8),
    "MLP 20M": problems.wide_mlp_case,
    "GPT 1M": lambda: problems.gpt_case(128, 5, 65, 64, 128),
    "GPT 100M": lambda: problems.gpt_case(768, 12, 16384, 8, 256),
    "ResNet18 k=64": lambda: problems.resnet_case(64),
}
TINY: dict[str, Callable[[], Case]] = {
    "MLP 85k": problems.small_case,
    "ResNet18 k=8": lambda: problems.resnet_case(1, 2),
    "GPT 100M": lambda: problems.gpt_case(8, 1, 7, 4, 5),
}


# ---- tests ----------------------------------------------------------------------------------------------------------


def tests(phase: Phase) -> None:
    """The tests marked gpu, each a row; in a rehearsal a few of the same tests, on the CPU."""
    if phase.device.type == "cpu":
        chosen = ["-k", "cpu and basis", "tests/test_devices.py"]
    else:  # only files with such tests: the others may need what a bare machine lacks
        marked = [p for p in Path("tests").rglob("test_*.py") if re.search(GPU_TESTS, p.read_text())]
        chosen = ["-m", "gpu", *map(str, sorted(marked, key=lambda p: p.name != "test_devices.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.tests_as_rows", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *chosen]
    if phase.device.type == "cuda" and importable("xdist"):
        command += ["-n", "4"]
    outer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # a rehearsal is a test itself
    environment = {**outer, "GPU_ROWS": str(phase.rows)}
    code = subprocess.run(command, env=environment).returncode
    if code not in (0, 1):  # 1: some failed, as their rows say
        phase.emit("test", "", "pytest", failed=True, why=f"exit code {code}")


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---- products -------------------------------------------------------------------------------------------------------


def products(phase: Phase) -> None:
    """A product's seconds, a vector's share of a block's, beside a gradient's of the same data."""
    names = list(phase.networks)
    for i, name in enumerate(names):
        begin = time.monotonic()
        seconds = phase.left / (len(names) - i)
        case = phase.case(name)
        v = unit(case.parameters, phase.device)
        exact = reference_product(case, v)
        for who, build in builders(case, phase.expected).items():
            _product_row(phase, case, name, who, build, v, exact, (begin + seconds - time.monotonic()) / 3)
            settle()


def _product_row(
    phase: Phase, case: Case, name: str, who: str, build: Callable[[], Any], v: Tensor, exact: Tensor, seconds: float
) -> None:
    try:
        start = time.monotonic()
        product, width, setting = build()
        columns = v[:, None].expand(-1, width) if width > 1 else v
        found = product(columns)
        found = found[:, 0] if found.dim() == 2 else found
        synchronise(phase.device)
        building = time.monotonic() - start
        error = float((found.detach().double() - exact).norm() / exact.norm())
        del found
        gradient = functools.partial(plain_gradient, case.copy(), case)
        calls = {"gradient": gradient, "product": lambda: product(columns)}
        taken = in_turn(calls, phase.device, min(seconds, phase.left))
        shares = [s / width for s in taken["product"]]
        memory = peak(phase.device)
        phase.emit("product", name, who, seconds=shares, gradient=taken["gradient"], error=error, setting=setting,
                   building=building, memory=memory, parameters=case.parameters, samples=case.samples)  # fmt: skip
    except Exception as error:  # a peer's failure is a result, and ours too
        why = in_short(error)
        phase.emit("product", name, who, why=why, failed=who.startswith("ours"))


def builders(case: Case, expected: int) -> dict[str, Callable[[], tuple[Product, int, dict[str, Any]]]]:
    """Tool -> its product, the vectors that it takes at once, and its setting."""

    def own() -> tuple[Product, int, dict[str, Any]]:
        operator = ours.operator_of(case, expected)[0]
        return operator, operator.width, operator.plan.as_dict()

    def own_single() -> tuple[Product, int, dict[str, Any]]:
        operator = ours.operator_of(case, expected, block=1)[0]
        return operator, 1, operator.plan.as_dict()

    def peer(name: str, *how: Any) -> tuple[Product, int, dict[str, Any]]:
        math_only(case)
        return getattr(peers, name)(case, *how), 1, {"chunk": how[0] if how else case.samples}

    return {
        "ours": own,
        "ours, one vector": own_single,
        "PyHessian": functools.partial(peer, "pyhessian_product"),
        "hessian-eigenthings": functools.partial(peer, "eigenthings_product", case.samples),
        "curvlinops": functools.partial(peer, "curvlinops_product", case.samples),
    }


def math_only(case: Case) -> None:
    """The kernel of attention that has second derivatives, for the peers, who do not choose it."""
    if case.targets.dim() > 1:
        for switch in ("flash", "mem_efficient", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{switch}_sdp")(False)


def reference_product(case: Case, v: Tensor) -> Tensor:
    """H v by PyTorch's double backward in float64, sample by chunk: nothing of this project is used."""
    model = case.copy().double()
    parameters = list(model.parameters())
    parts = [
        x.reshape(p.shape) for x, p in zip(v.double().split([p.numel() for p in parameters]), parameters, strict=True)
    ]
    total = [torch.zeros_like(p) for p in parameters]
    size = max(1, case.samples // 4)
    with sdpa_kernel([SDPBackend.MATH]):
        for x, y in zip(case.inputs.split(size), case.targets.split(size), strict=True):
            inputs = x.double() if x.is_floating_point() else x
            loss = nn.functional.cross_entropy(model(inputs), y, reduction="sum") / case.targets.numel()
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            inner = sum((g * part).sum() for g, part in zip(gradients, parts, strict=True))
            for t, h in zip(total, torch.autograd.grad(inner, parameters), strict=True):
                t += h
    return torch.cat([t.reshape(-1) for t in total]).detach()


def plain_gradient(model: nn.Module, case: Case) -> None:
    """The unit: one gradient of all data in one batch."""
    loss = nn.functional.cross_entropy(model(case.inputs), case.targets)
    torch.autograd.grad(loss, list(model.parameters()))


# ---- whole spectra --------------------------------------------------------------------------------------------------


def spectrum(phase: Phase) -> None:
    """Ten pairs at either end and a density, as one job."""
    names = [n for n in phase.networks if not (phase.tiny and n.startswith("ResNet"))]
    for i, name in enumerate(names):
        end = time.monotonic() + phase.left / (len(names) - i)
        case = phase.case(name)
        math_only(case)
        k = 3 if phase.tiny else 10
        try:
            truth, error, precision = reference_ends(case, k, (end - time.monotonic()) / 3)
        except Exception as failure:
            phase.emit("spectrum", name, "reference", why=in_short(failure), failed=True)
            continue
        told = {"reference": precision, "reference_error": error, "parameters": case.parameters}
        settle()
        own = functools.partial(_own_whole, case, k)
        _whole_row(phase, case, name, "ours", own, truth, told, repetitions=1 if phase.tiny else 2)
        settle()
        _peer_whole(phase, case, name, k, truth, told, end)
        settle()


def reference_ends(case: Case, k: int, seconds: float) -> tuple[np.ndarray, float, str]:
    """k eigenvalues of either end, in float64 where the time is enough, else in float32; their largest residual."""
    objective = build_objective(case.problem(), dtype=torch.float64, device=case.device)
    x = unit(case.parameters, case.device).double()
    operator = CurvatureOperator(objective, expected_products=3)
    operator(x)
    start = time.monotonic()
    operator(x)
    synchronise(case.device)
    precision = "float64" if 120 * (time.monotonic() - start) < seconds else "float32"
    settle()
    found = landscape.spectrum(
        case.problem(), top=k, bottom=k, density=False, exact=False, rtol=1e-5, tau=1e-7, device=case.device.type,
        precision=precision, max_products=400,
    )  # fmt: skip
    values, residuals = np.r_[found.top_value, found.bottom_value], np.r_[found.top_residual, found.bottom_residual]
    return values, float(np.max(residuals / np.abs(values))), precision


def _own_whole(case: Case, k: int, seed: int) -> np.ndarray:
    found = landscape.spectrum(
        case.problem(), top=k, bottom=k, probes=PROBES, steps=STEPS, exact=False, seed=seed, device=case.device.type
    )
    return np.r_[found.top_value, found.bottom_value]


def _peer_whole(
    phase: Phase, case: Case, name: str, k: int, truth: np.ndarray, told: dict[str, Any], end: float
) -> None:
    """hessian-eigenthings at the fewest steps that are right; where there is no time for it, what its products cost."""
    who = "hessian-eigenthings"
    try:
        v = unit(case.parameters, phase.device)
        product = functools.partial(peers.eigenthings_product(case, case.samples), v)
        each = min(in_turn({"product": product}, phase.device, 1.0)["product"])
        del product
    except Exception as error:
        phase.emit("spectrum", name, who, why=in_short(error))
        return
    settle()
    for steps in KRYLOV_STEPS:
        count = 2 * steps + PROBES * STEPS
        if count * each > min(end - time.monotonic(), phase.left):
            phase.emit(
                "spectrum", name, who, at_least=count * each, why=f"{count} products of {each:.3g} s alone", **told
            )
            return
        run = functools.partial(
            peers.eigenthings_whole, case, chunk=case.samples, steps=steps, k=k, probes=PROBES, density_steps=STEPS
        )
        if _whole_row(phase, case, name, who, run, truth, {**told, "setting": {"steps": steps}}, repetitions=1):
            return


def _whole_row(
    phase: Phase, case: Case, name: str, who: str, run: Callable[[int], np.ndarray], truth: np.ndarray,
    told: dict[str, Any], repetitions: int,
) -> bool:  # fmt: skip
    """Emit the row; whether it is right."""
    seconds, worst = [], 0.0
    try:
        for seed in range(repetitions):
            synchronise(phase.device)
            start = time.perf_counter()
            values = run(seed)
            synchronise(phase.device)
            seconds.append(time.perf_counter() - start)
            worst = max(worst, float(np.max(np.abs(values - truth) / np.abs(truth))))
    except Exception as error:
        phase.emit("spectrum", name, who, why=in_short(error), failed=who == "ours", **told)
        return False
    right = worst <= ACCURACY + told["reference_error"]
    phase.emit("spectrum", name, who, seconds=seconds, error=worst, right=right, memory=peak(phase.device), **told)
    return right


# ---- slices ---------------------------------------------------------------------------------------------------------


def slices(phase: Phase) -> None:
    """A plane of 41 × 41 points, ours and two peers."""
    from benchmarks import slices as planes

    if phase.tiny:
        planes.POINTS = 9
    cases = {"MLP 1k": problems.small_case, "MLP 85k": problems.mlp_case, "CNN": problems.cnn_case}
    for name, make in list(cases.items())[: 1 if phase.tiny else None]:
        case = make().to(str(phase.device))
        methods: dict[str, Callable[[int], np.ndarray]] = {
            "ours": functools.partial(planes.ours, case),
            "loss-landscapes": functools.partial(planes.landscapes, case, chunk=case.samples),
            "Landscaper": functools.partial(planes.landscaper, case, chunk=case.samples),
        }
        exact = own_loss(case)
        for who, run in methods.items():
            try:
                surface = run(0)
                taken = in_turn({who: functools.partial(run, 1)}, phase.device, phase.left / 8)[who]
                centre = surface[len(surface) // 2, len(surface) // 2]
                error = abs(float(centre) - exact) / abs(exact)
                phase.emit(
                    "slice", name, who, seconds=taken, error=error, right=error < 1e-4, parameters=case.parameters
                )
            except Exception as failure:
                phase.emit("slice", name, who, why=in_short(failure), failed=who == "ours")


def own_loss(case: Case) -> float:
    """In float64, by PyTorch alone."""
    with torch.no_grad():
        x = case.inputs.double()
        return float(nn.functional.cross_entropy(case.copy().double()(x), case.targets))


# ---- certified runs -------------------------------------------------------------------------------------------------


def certified(phase: Phase) -> None:
    """Descents to certified points a second, in stacks; and the command that trains the same students."""
    seeds = 4 if phase.tiny else 2000
    by_width: dict[int, list[Run]] = {}
    for run in swept("four-neuron", seeds):
        by_width.setdefault(int(run.coordinates["width"]), []).append(run)
    for members in list(by_width.values())[: 2 if phase.tiny else None]:
        run = members[0]
        data = tuple(t.double() for t in load_data(run.data, asdict(run.data_settings)).train)
        models = [build_model(r.model, asdict(r.model_settings), int(r.coordinates["seed"])).double() for r in members]
        stack, theta = build_stack([Problem(m, data, "mse") for m in models], device=str(phase.device))
        name = f"P = {stack.parameters}"
        synchronise(phase.device)
        start = time.perf_counter()
        descent, _ = descend_stack(stack, theta, Way(keep_points=False))
        synchronise(phase.device)
        descended = time.perf_counter() - start
        certificates = certify_stack(stack, descent.theta)
        synchronise(phase.device)
        seconds = time.perf_counter() - start
        verdicts: dict[str, int] = {}
        for c in certificates:
            verdicts[c.verdict] = verdicts.get(c.verdict, 0) + 1
        phase.emit("certified", name, "ours", seconds=[seconds], descended=descended, members=len(members),
                   rate=len(members) / seconds, verdicts=verdicts, parameters=stack.parameters)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "four-neuron", "--set", f"sweep.seed=0..{seeds // 2 - 1}", "--device", phase.device.type]
        words += ["--set", "sweep.width=[4]"] if phase.tiny else []
        start = time.perf_counter()
        done = command([*words, "--out", folder, "--quiet"], phase.left, folder)
        seconds = time.perf_counter() - start
        count = len(list(Path(folder).rglob("final.pt")))
        phase.emit("train", f"four-neuron, {seeds // 2} seeds", "ours", seconds=[seconds], members=count,
                   rate=count / seconds, whole=done == 0)  # fmt: skip


def swept(name: str, seeds: int) -> list[Run]:
    """All runs of a ready-made sweep with so many seeds."""
    return plan(read_sweep(sweep_file(Path(name)), {"sweep.seed": f"0..{seeds - 1}"}))


def command(words: list[str], seconds: float, folder: str) -> int | None:
    """`landscape WORDS`, interrupted when the time is over; its exit code, None if it had to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "landscape", *words], cwd=folder, stdout=sys.stderr
    )
    for signum, patience in ((None, max(0.5, seconds)), (signal.SIGINT, 10.0)):
        if signum is not None:
            process.send_signal(signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(patience)
    process.kill()
    process.wait()
    return None


# ---- check ----------------------------------------------------------------------------------------------------------


def check(phase: Phase) -> None:
    """What `check --run --scale full` gets done in the time, sweep by sweep, and what is left."""
    from landscape.cli.check import SEEDS, SEEDS_OF, SWEEPS

    scale = "small" if phase.tiny else "full"
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        out = Path(folder) / "out"
        words = [*CHECK, "--scale", scale, "--device", phase.device.type, "--out", str(out)]
        code = command(words, min(CHECK_SECONDS[phase.tiny], phase.left - STOPPING), folder)
        seconds = time.monotonic() - start
        done = total = 0
        for name in SWEEPS["escape-dimensions"]:
            kind = name.partition("-")[0]
            seeds = SEEDS_OF.get(kind, SEEDS)[scale]
            there = len(list((out / "runs" / name).rglob("final.pt")))
            wanted = len(swept(name, 1)) * seeds
            done, total = done + there, total + wanted
            phase.emit("check", name, "ours", members=there, wanted=wanted)
        rate = done / seconds
        whole = total / rate if rate else None
        phase.emit("check", "all sweeps", "ours", seconds=[seconds], members=done, wanted=total, rate=rate, scale=scale,
                   whole=code == 0, training_at_this_rate=whole)  # fmt: skip


# ---- memory ---------------------------------------------------------------------------------------------------------


def memory(phase: Phase) -> None:
    """Peak memory of the top ten of a GPT, and the largest GPT that fits."""
    case = phase.case("GPT 100M")
    math_only(case)
    for who, run in {"ours": _own_top, "hessian-eigenthings": _peers_top}.items():
        settle(phase.device)
        try:
            start = time.perf_counter()
            run(case, 3 if phase.tiny else 10)
            synchronise(phase.device)
            phase.emit("memory", "GPT 100M", who, seconds=[time.perf_counter() - start], memory=peak(phase.device),
                       weights=4 * case.parameters)  # fmt: skip
        except Exception as error:
            phase.emit("memory", "GPT 100M", who, why=in_short(error), failed=who == "ours")
    del case
    phase.cases = {}
    sizes = ((8, 1), (8, 2)) if phase.tiny else ((1024, 24), (1536, 24), (2048, 24), (2560, 32), (3200, 36))
    for width, depth in sizes:
        settle(phase.device)
        large = problems.gpt_case(width, depth, 7 if phase.tiny else 16384, 4, 5 if phase.tiny else 256).to(
            str(phase.device)
        )
        try:
            start = time.perf_counter()
            found = landscape.spectrum(
                large.problem(), top=1, bottom=0, density=False, exact=False, max_products=12, device=phase.device.type
            )
            synchronise(phase.device)
            phase.emit("largest", f"{large.parameters / 1e6:.3g} M parameters", "ours", memory=peak(phase.device),
                       seconds=[time.perf_counter() - start], products=found.spent.products,
                       notes=found.spent.plan.get("notes"))  # fmt: skip
        except Exception as error:
            phase.emit("largest", f"{large.parameters / 1e6:.3g} M parameters", "ours", why=in_short(error))
            return


def _own_top(case: Case, k: int) -> None:
    landscape.spectrum(case.problem(), top=k, bottom=0, density=False, exact=False, device=case.device.type)


def _peers_top(case: Case, k: int) -> None:
    peers.eigenthings_extremes(case, 0, chunk=case.samples, k=k, which="LA", steps=2 * k + 10)


# ---- shared ---------------------------------------------------------------------------------------------------------


def unit(n: int, device: torch.device) -> Tensor:
    """A random unit vector [n], the same on every device."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(0))
    return (v / v.norm()).to(device)


def in_turn(calls: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call, in turn, after one that does not count; on a GPU three of each at least, else one."""
    least, most = (LEAST_REPETITIONS, MOST_REPETITIONS) if device.type == "cuda" else (1, 1)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.monotonic() + seconds
    for i in range(most):
        if i >= least and time.monotonic() > end:
            break
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            taken[name].append(time.perf_counter() - start)
    return taken


def settle(device: torch.device | None = None) -> None:
    """Drop what is no longer used, and count the peak from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Bytes at most allocated on the GPU since `settle`; on the CPU, resident in the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


PHASES: dict[str, Callable[[Phase], None]] = {
    f.__name__: f for f in (tests, products, spectrum, slices, certified, check, memory)
}


def main() -> None:
    """Parse, wait for a number of seconds on stdin, measure."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.phases")
    parser.add_argument("name", choices=PHASES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full")
    parser.add_argument("--rows", type=Path, required=True)
    asked = parser.parse_args()
    line = sys.stdin.readline()
    if not line:  # the parent is gone, or wants nothing of this phase
        return
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"==== {asked.name}", flush=True)
    phase = Phase(torch.device(asked.device), asked.size == "tiny", time.monotonic() + float(line), asked.rows)
    PHASES[asked.name](phase)


if __name__ == "__main__":
    main()
