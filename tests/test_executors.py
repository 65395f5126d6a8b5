"""Batches of real processes: deaths, retries, signals, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from landscape.errors import BatchError, UsageError
from landscape.runtime.interrupts import GRACE_SECONDS, Interrupted, deferred, interruptible
from landscape.runtime.workers import Outcome, Task, run_batch, visible_gpus

WORKER = """
import os, signal, subprocess, sys, time
what, folder = sys.argv[1], sys.argv[2]
def mark(name):
    open(os.path.join(folder, name), "a").write(str(os.getpid()) + "\\n")
if what == "ok":
    print('{"n": %s}' % sys.argv[3]); print("progress", file=sys.stderr)
elif what == "fail":
    print("error: no", file=sys.stderr); print("hint: yes", end="", file=sys.stderr); sys.exit(3)
elif what == "dies":
    mark("dies"); print("half", flush=True); os.kill(os.getpid(), signal.SIGKILL)
elif what == "dies once":
    mark("once")
    if len(open(os.path.join(folder, "once")).readlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print("{}")
elif what == "threads":
    print(os.environ["OMP_NUM_THREADS"])
elif what == "gpu":
    # Nobody ends before so many have started: then all of them run at the same time.
    mark("gpu " + sys.argv[3])
    while len([f for f in os.listdir(folder) if f.startswith("gpu ")]) < int(sys.argv[4]): time.sleep(0.02)
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("LANDSCAPE_WORKERS_PER_GPU"))
elif what == "chatty":
    for i in range(20000): print("x" * 100, file=sys.stderr); print("y" * 100)
elif what == "leaves a grandchild":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(12)"]); print("{}")
elif what == "polite":
    def stop(*_):
        print("z" * 300000, file=sys.stderr); mark("written"); sys.exit(143)
    signal.signal(signal.SIGTERM, stop); mark("started"); time.sleep(60)
elif what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); mark("started"); time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return (sys.executable, "-S", str(script))


def children() -> list[psutil.Process]:
    """Processes of this one, but for those that `commands.run` forks from."""
    return [p for p in psutil.Process().children() if "multiprocessing." not in " ".join(p.cmdline())]


def run(tasks: list[Task], program: tuple[str, ...], workers: int = 2) -> tuple[list[Outcome], list[str]]:
    lines: list[str] = []
    seen: list[Outcome] = []
    outcomes = run_batch(
        tasks, workers, seen.append, on_line=lambda t, s: lines.append(f"[{t.label}] {s}"), program=program
    )
    assert {id(o) for o in seen} == {id(o) for o in outcomes}
    assert children() == []
    return outcomes, lines


def test_outcomes_in_order_and_lines_with_labels(tmp_path: Path, program: tuple[str, ...]) -> None:
    tasks = [Task(["ok", str(tmp_path), str(n)], f"t{n}") for n in range(5)]
    tasks.insert(2, Task(["fail", str(tmp_path)], "bad"))
    outcomes, lines = run(tasks, program)
    assert [o.task for o in outcomes] == tasks
    assert [o.exit_code for o in outcomes] == [0, 0, 3, 0, 0, 0]
    assert [json.loads(o.stdout)["n"] for o in outcomes if o.ok] == [0, 1, 2, 3, 4]
    assert sorted(lines) == sorted([f"[t{n}] progress" for n in range(5)] + ["[bad] error: no", "[bad] hint: yes"])
    assert all(o.attempts == 1 and o.seconds > 0 for o in outcomes)
    assert run([], program) == ([], [])


def test_killed_worker_is_tried_once_more_and_stops_no_other(tmp_path: Path, program: tuple[str, ...]) -> None:
    words = ["dies", "ok", "dies once", "ok"]
    outcomes, lines = run([Task([w, str(tmp_path), "1"], w) for w in words], program)
    assert [o.ok for o in outcomes] == [False, True, True, True]
    assert [o.attempts for o in outcomes] == [2, 1, 2, 1]
    assert outcomes[0].killed
    assert outcomes[0].exit_code == -signal.SIGKILL
    assert "[dies] warning: killed by signal 9; trying once more" in lines
    assert len((tmp_path / "dies").read_text().split()) == 2


@pytest.mark.parametrize(
    ("users", "workers", "expected"), [("", 1, None), ("1", 1, 1), ("9999", 1, None), ("", 9999, 1)]
)
def test_threads_are_shared_out(
    tmp_path: Path,
    program: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    users: str,
    workers: int,
    expected: int | None,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", users)
    cores = len(os.sched_getaffinity(0))
    tasks = [Task(["threads", str(tmp_path)], "t")] * (1 if workers == 1 else cores)
    outcomes, _ = run(tasks, program, workers)
    assert {int(o.stdout) for o in outcomes} == {expected or cores}


def seen_gpus(
    folder: Path, program: tuple[str, ...], device: str, workers: int, tasks: int | None = None
) -> list[list[str]]:
    """What each of so many workers at a time sees of GPUs: their list, and how many workers share each."""
    count = workers if tasks is None else tasks
    at_once = min(count, workers)
    made = [Task(["gpu", str(folder), str(n), str(at_once)], f"t{n}") for n in range(count)]
    outcomes = run_batch(made, workers, lambda o: None, device=device, program=program)
    return [o.stdout.split() for o in outcomes]


# GPUs that CUDA counts, the list that a scheduler has set, and the names that are shared out.
GPUS = [
    (1, None, ["0"]),
    (3, None, ["0", "1", "2"]),
    (2, "5,2", ["5", "2"]),
    (2, "GPU-8932f937, GPU-fef8089b", ["GPU-8932f937", "GPU-fef8089b"]),
    (2, "0,1,-1,2", ["0", "1"]),  # CUDA reads as far as the first name that is none
    (1, "MIG-0a,MIG-1b,MIG-2c", ["MIG-0a", "MIG-1b", "MIG-2c"]),  # of MIG instances it counts one
    (0, "", []),
    (0, None, []),
]


@pytest.mark.parametrize(("count", "listed", "names"), GPUS)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, count: int, listed: str | None, names: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert list(visible_gpus(device)) == names
    assert visible_gpus("cpu") == visible_gpus("cuda:1") == ()


@pytest.mark.parametrize(("gpus", "workers"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 2), (3, 6)])
def test_workers_get_a_gpu_each_and_share_evenly(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = seen_gpus(tmp_path, program, "cuda", workers)
    named = Counter(name for name, _ in seen)
    expected = {str(n): workers // gpus + (n < workers % gpus) for n in range(gpus)}
    assert dict(named) == ({"None": workers} if gpus == 1 else {n: k for n, k in expected.items() if k})
    assert {int(sharers) for _, sharers in seen} == {max(expected.values())}


def test_next_worker_gets_the_gpu_that_is_free(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers one stays until the other's GPU has had all further tasks in turn."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    long = Task(["gpu", str(tmp_path), "0", "4"], "long")
    short = [Task(["gpu", str(tmp_path), str(n), "1"], "short") for n in range(1, 4)]
    outcomes = run_batch([long, *short], 2, lambda o: None, device="auto", program=program)
    assert [o.stdout.split()[0] for o in outcomes] == ["0", "1", "1", "1"]


@pytest.mark.parametrize(("device", "sharers"), [("cpu", "None"), ("cuda:1", "2")])
def test_gpus_are_left_alone(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, device: str, sharers: str
) -> None:
    """On the CPU, and where the user names one GPU: all workers then share that one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,2")
    assert seen_gpus(tmp_path, program, device, 2) == [["3,1,0,2", sharers]] * 2


def test_much_output_does_not_block(tmp_path: Path, program: tuple[str, ...]) -> None:
    outcomes, lines = run([Task(["chatty", str(tmp_path)], "c")], program)
    assert len(lines) == 20000
    assert len(outcomes[0].stdout) == 20000 * 101


def test_grandchild_that_keeps_the_pipe_open(tmp_path: Path, program: tuple[str, ...]) -> None:
    started = time.monotonic()
    outcomes, _ = run([Task(["leaves a grandchild", str(tmp_path)], "g")], program)
    assert outcomes[0].ok
    assert time.monotonic() - started < 10


def test_bad_calls(program: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one worker"):
        run_batch([], 0, print)
    with pytest.raises(BatchError, match="cannot start a worker"):
        run_batch([Task([], "t")], 1, print, program=(str(tmp_path / "nothing"),))


def test_error_in_the_callback_stops_the_workers(tmp_path: Path, program: tuple[str, ...]) -> None:
    def fails(outcome: Outcome) -> None:
        raise RuntimeError("disk full")

    tasks = [Task(["polite", str(tmp_path)], "p"), Task(["ok", str(tmp_path), "1"], "o")]
    with pytest.raises(RuntimeError, match="disk full"):
        run_batch(tasks, 2, fails, on_line=lambda t, s: None, program=program)
    assert children() == []


PARENT = """
import sys
from landscape.runtime import workers as executors
from landscape.runtime.interrupts import Interrupted
executors.STOP_SECONDS = {patience}
tasks = [executors.Task([word, {folder!r}, "1"], word) for word in {words!r}]
try:
    executors.run_batch(tasks, 2, lambda o: print(o.task.label, flush=True), on_line=lambda t, s: None,
                        program={program!r})
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("word", ["polite", "stubborn"])
def test_interrupted_batch(
    tmp_path: Path, program: tuple[str, ...], signum: signal.Signals, code: int, word: str
) -> None:
    words = ["ok", word, word, "ok"]
    script = PARENT.format(patience=20 if word == "polite" else 1, folder=str(tmp_path), words=words, program=program)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        marks = tmp_path / "started"
        until = time.monotonic() + 30
        while time.monotonic() < until and not (marks.exists() and marks.read_text().count("\n") == 2):
            time.sleep(0.02)
        started = time.monotonic()
        parent.send_signal(signum)
        said, _ = parent.communicate(timeout=30)
    assert parent.returncode == code
    assert said == "ok\n"  # finished work stays; the fourth task never began
    assert time.monotonic() - started < 15
    pids = [int(line) for line in marks.read_text().split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    if word == "polite":
        assert sorted((tmp_path / "written").read_text().split()) == sorted(map(str, pids))


# ---- interrupts ---------------------------------------------------------------------------------------------


def signal_myself(signum: int) -> None:
    with interruptible():
        os.kill(os.getpid(), signum)
        time.sleep(5)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_becomes_an_exception_and_handlers_come_back(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        signal_myself(signum)
    assert caught.value.exit_code == 128 + signum
    assert not isinstance(caught.value, Exception)
    assert signal.getsignal(signum) is before


def test_deferred_work_is_finished_first() -> None:
    done = []

    def work() -> None:
        with interruptible(), deferred():
            for n in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                with deferred():
                    done.append(n)

    with pytest.raises(Interrupted):
        work()
    assert done == [0, 1, 2]


def test_second_copy_of_a_signal_does_not_cut_the_clean_up() -> None:
    cleaned = []

    def work() -> None:
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(GRACE_SECONDS / 10)
                cleaned.append(True)

    with pytest.raises(Interrupted):
        work()
    assert cleaned == [True]
    with pytest.raises(Interrupted):  # and the next block listens at once
        signal_myself(signal.SIGINT)


class SignalsWhenDeleted:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0)  # the handler runs in here, where Python swallows every exception


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    def work() -> None:
        with interruptible():
            for _ in range(3):
                SignalsWhenDeleted()
            time.sleep(5)

    before = sys.unraisablehook
    started = time.monotonic()
    with pytest.raises(Interrupted):
        work()
    assert time.monotonic() - started < 4
    assert sys.unraisablehook is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "landscape", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "landscape" in done.stdout
