"""`landscape` as the tests run it: a process of its own each time, forked from one that has PyTorch loaded already.

To start Python and import PyTorch takes longer than most commands of the tests. Tests of signals, of pipes and of how
a process starts begin theirs with subprocess.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import warnings
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import TextIO
from unittest import mock

SETTINGS = {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("torch", "torch.func", "torch.fx", "torch.fx.experimental.symbolic_shapes", "h5py"),
        *("scipy.optimize", "scipy.linalg", "scipy.stats", "scipy.integrate", "rich.console", "rich.table"),
        *("matplotlib.figure", "matplotlib.backends.backend_agg"),
        *("landscape", "landscape.cli", "landscape.checkpoints.load", "landscape.results.store"),
        *("landscape.cli.app", "landscape.figures.choice", "landscape.figures.spectrum", "landscape.figures.slice"),
        *(
            "landscape.figures.descend",
            "landscape.figures.escape",
            "landscape.figures.widen",
            "landscape.figures.check",
        ),
        *("landscape.spectra.run", "landscape.points.descend", "landscape.points.escape", "landscape.widening.run"),
        *("landscape.slices.run", "landscape.diagnosis.run"),
    ]
)


def run(*arguments: object, cwd: Path, timeout: float = 280, **environment: str) -> CompletedProcess[str]:
    """What `landscape ARGUMENTS` prints and returns, in a folder, with every warning an error.

    Raises:
        TimeoutExpired: it was still at work after `timeout` seconds, and was killed.
    """
    texts = [str(a) for a in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder) / name) for name in ("out", "err")]
        process = FORKS.Process(target=_landscape, args=(texts, str(cwd), SETTINGS | environment, outputs))
        with mock.patch.dict(os.environ, SETTINGS):  # of the process that is forked, when this is the first
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired(texts, timeout)
        out, err = (Path(p).read_text() for p in outputs)
    return CompletedProcess(texts, process.exitcode, out, err)


def typed(block: str, cwd: Path) -> CompletedProcess[str]:
    """What the lines of a page's shell block give, one after the other, up to the first that fails.

    `landscape ...` and `landscape ... > FILE` are forked as by `run`, everything else goes through a shell.
    """
    done = CompletedProcess[str]([], 0, "", "")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in block.strip().splitlines():
        words = shlex.split(line)
        target = words[-1] if len(words) > 2 and words[-2] == ">" else None
        if words[0] == "landscape":
            done = run(*(words[1:-2] if target else words[1:]), cwd=cwd)
            if target:
                (cwd / target).write_text(done.stdout)
        else:
            environment = {**os.environ, **SETTINGS, "PATH": path}
            shell = ["bash", "-e", "-c", line]
            done = subprocess.run(shell, cwd=cwd, capture_output=True, text=True, env=environment, timeout=280)
        if done.returncode:
            return CompletedProcess(words, done.returncode, done.stdout, done.stderr)
    return done


def _landscape(arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    os.chdir(cwd)
    os.environ |= environment
    sys.path[:] = [cwd, *(p for p in sys.path if Path(p) != Path(__file__).parent)]
    sys.argv = ["landscape", *arguments]
    sys.stdout, sys.stderr = (_opened(path, number) for number, path in enumerate(outputs, 1))
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")  # of torch.jit, by torch itself
    from landscape.cli import main

    main()


def _opened(path: str, number: int) -> TextIO:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    return os.fdopen(number, "w", closefd=False)
