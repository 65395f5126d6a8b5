"""Local worker processes for a batch: one operating-system process per task, so that one death stops no other."""

from __future__ import annotations

import itertools
import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from landscape.errors import BatchError, UsageError
from landscape.runtime.interrupts import deferred, interruptible

__all__ = ["Outcome", "Task", "call", "run_batch", "visible_gpus"]

# -P: like the installed command, and unlike plain -m, never import from the folder we happen to be in.
PROGRAM = (sys.executable, "-P", "-m", "landscape.runtime.work")
ATTEMPTS = 2  # a worker killed by a signal (out of memory, kill -9) gets a second chance
STOP_SECONDS = 20.0  # for workers to write what they have after SIGTERM
TICK_SECONDS = 0.1
CHUNK = 1 << 16
# Which GPUs CUDA sees, by number, UUID or MIG instance: a scheduler's list, or what a worker is given.
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Task:
    """What one process does: words of its command line after the program's, and what it reads from stdin; `label` names
    it on the terminal."""

    argv: list[str]
    label: str
    request: bytes = b""


def call(function: Callable[..., object], *arguments: object, label: str) -> Task:
    """A task that calls a function of a module with arguments, all of which can be pickled."""
    return Task([], label, pickle.dumps((function, arguments)))


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: the task.
        exit_code: of the last attempt; negative: killed by that signal.
        stdout: what the last attempt printed (its JSON line).
        attempts: 1, or 2 after a worker was killed.
        seconds: wall time of the last attempt.
    """

    task: Task
    exit_code: int
    stdout: str
    attempts: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the task is done."""
        return self.exit_code == 0

    @property
    def killed(self) -> bool:
        """Whether a signal ended it, such as the kernel's when memory ran out."""
        return self.exit_code < 0


@dataclass(eq=False)
class _Worker:
    """A running process and what it has said so far; stderr is kept up to the last whole line. gpu: its own, or None
    where there is nothing to choose."""

    number: int
    task: Task
    attempt: int
    gpu: str | None
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)


def print_line(task: Task, line: str) -> None:
    """Pass on a line of a worker's stderr, with its label."""
    sys.stderr.write(f"[{task.label}] {line}\n")
    sys.stderr.flush()


def run_batch(
    tasks: Sequence[Task],
    workers: int,
    on_done: Callable[[Outcome], None],
    *,
    device: str = "cpu",
    on_line: Callable[[Task, str], None] = print_line,
    program: Sequence[str] = PROGRAM,
) -> list[Outcome]:
    """Run every task as a process of its own, `workers` at a time; outcomes in the order of `tasks`.

    A failing task stops no other. One killed by a signal runs once more, after the others. On SIGINT, SIGTERM or
    SIGHUP the workers get SIGTERM, time to write what they have, and then SIGKILL; no process is left behind.

    Args:
        tasks: what to run.
        workers: how many at a time; the processor cores are shared out among them.
        on_done: called with each outcome as it comes in.
        device: the tasks' `--device`. Unless it is the CPU or one GPU by its number, each worker sees one GPU only, the
            one with the fewest workers; those that share a GPU share its memory.
        on_line: called with each line that a worker prints on stderr.
        program: what the tasks' `argv` is appended to.

    Raises:
        UsageError: fewer than one worker.
        BatchError: the system starts no more processes.
        Interrupted: such a signal came; what was finished stays finished.
    """
    if workers < 1:
        raise UsageError(f"a batch needs at least one worker, not {workers}", "try --workers 1")
    gpus = visible_gpus(device)
    environment = _environment(min(workers, max(1, len(tasks))), device, len(gpus))
    waiting = deque((number, task, 1) for number, task in enumerate(tasks))
    outcomes: dict[int, Outcome] = {}
    running: list[_Worker] = []
    with interruptible(), selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    with deferred():  # a process that nobody knows of could not be stopped
                        gpu = _least_busy(gpus, running)
                        running.append(_start(*waiting.popleft(), gpu, program, environment, selector))
                for worker in _finished(running, selector, on_line):
                    outcome = _outcome(worker)
                    if outcome.killed and worker.attempt < ATTEMPTS:
                        on_line(worker.task, f"warning: killed by signal {-outcome.exit_code}; trying once more")
                        waiting.append((worker.number, worker.task, worker.attempt + 1))
                        continue
                    outcomes[worker.number] = outcome
                    on_done(outcome)
        finally:
            _stop(running, selector, on_line)
    return [outcomes[number] for number in sorted(outcomes)]


def visible_gpus(device: str) -> tuple[str, ...]:
    """Every GPU that workers on `device` may be given, as `CUDA_VISIBLE_DEVICES` names it; none on the CPU, and where
    one GPU is named by its number.

    A list that is set already, by a scheduler perhaps, is not left; of it CUDA sees what comes before the first name
    that is none. It counts one MIG instance only, but takes each of them by its name.
    """
    if device not in ("auto", "cuda"):
        return ()
    import torch

    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]
    if listed[0].startswith("MIG-"):
        return tuple(itertools.takewhile(lambda name: name.startswith("MIG-"), listed))
    count = torch.cuda.device_count()
    return tuple(listed[:count] if VISIBLE in os.environ else map(str, range(count)))


def _least_busy(gpus: Sequence[str], running: Sequence[_Worker]) -> str | None:
    """The first GPU that has the fewest workers; None where there is nothing to choose."""
    taken = [worker.gpu for worker in running]
    return min(gpus, key=taken.count) if len(gpus) > 1 else None


def _environment(workers: int, device: str, gpus: int) -> dict[str, str]:
    """Ours, with the cores and the GPUs' memory shared out; a lower limit of cores that the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        share = min(share, int(limit))
    environment = {**os.environ, "OMP_NUM_THREADS": str(share)}
    if gpus or device.startswith("cuda"):
        from landscape.runtime.memory import SHARERS

        environment[SHARERS] = str(-(-workers // max(1, gpus)))
    return environment


def _start(
    number: int,
    task: Task,
    attempt: int,
    gpu: str | None,
    program: Sequence[str],
    environment: dict[str, str],
    selector: selectors.BaseSelector,
) -> _Worker:
    try:
        with tempfile.TemporaryFile() as request:  # no pipe: a worker that does not read would block us
            request.write(task.request)
            request.seek(0)
            process = subprocess.Popen(
                [*program, *task.argv],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment if gpu is None else {**environment, VISIBLE: gpu},
                process_group=0,  # so that Ctrl-C reaches us alone and the workers get one signal, not two
            )
    except OSError as error:
        raise BatchError(
            f"cannot start a worker for {task.label}: {error.strerror}", "repeat with fewer --workers"
        ) from error
    worker = _Worker(number, task, attempt, gpu, process)
    for stream, said in ((process.stdout, worker.stdout), (process.stderr, worker.stderr)):
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        selector.register(stream, selectors.EVENT_READ, (worker, said))
    return worker


def _finished(
    running: list[_Worker], selector: selectors.BaseSelector, on_line: Callable[[Task, str], None]
) -> list[_Worker]:
    """Wait a tick for output, pass it on, and take the workers that have ended out of `running`."""
    if selector.get_map():
        for key, _ in selector.select(TICK_SECONDS):
            worker, said = key.data
            _read(key.fileobj, said, selector)  # type: ignore[arg-type]
            _pass_on(worker, on_line)
    else:
        time.sleep(TICK_SECONDS / 10)  # all pipes are closed: the processes are about to end
    done = [worker for worker in running if worker.process.poll() is not None]
    for worker in done:
        # Whatever is still in the pipes; not until they close, which a grandchild could delay for ever.
        for stream, said in ((worker.process.stdout, worker.stdout), (worker.process.stderr, worker.stderr)):
            assert stream is not None
            while not stream.closed and _read(stream, said, selector):
                pass
            if not stream.closed:
                selector.unregister(stream)
                stream.close()
        _pass_on(worker, on_line, last=True)
        running.remove(worker)
    return done


def _read(stream: IO[bytes], said: bytearray, selector: selectors.BaseSelector) -> bool:
    """Append what the pipe holds; False if it held nothing. At its end the pipe is closed."""
    try:
        data = os.read(stream.fileno(), CHUNK)
    except BlockingIOError:
        return False
    if not data:
        selector.unregister(stream)
        stream.close()
    said += data
    return bool(data)


def _pass_on(worker: _Worker, on_line: Callable[[Task, str], None], last: bool = False) -> None:
    """Hand over the whole lines of stderr; with `last`, what follows them too."""
    *lines, rest = bytes(worker.stderr).split(b"\n")
    if last and rest:
        lines, rest = [*lines, rest], b""
    worker.stderr[:] = rest
    for line in lines:
        on_line(worker.task, line.decode("utf-8", "replace").rstrip("\r"))


def _outcome(worker: _Worker) -> Outcome:
    return Outcome(
        worker.task,
        worker.process.returncode,
        worker.stdout.decode("utf-8", "replace"),
        worker.attempt,
        time.monotonic() - worker.started,
    )


def _stop(running: list[_Worker], selector: selectors.BaseSelector, on_line: Callable[[Task, str], None]) -> None:
    """End every running worker: SIGTERM, then after a while or at a second signal to us SIGKILL."""
    if not running:
        return
    try:
        for worker in running:
            worker.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        while running and time.monotonic() < until:
            _finished(running, selector, on_line)  # reading on: a worker with a full pipe could not end
    finally:
        for worker in running:
            worker.process.kill()
        for worker in running:
            with worker.process:  # waits for it, and closes its pipes
                pass
