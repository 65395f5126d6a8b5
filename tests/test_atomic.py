"""Whole files only: a full disk, kill -9, signals and second writers never leave half a result."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from landscape.errors import StorageError
from landscape.results.fields import Spectrum
from landscape.results.store import read_result, restore, stored_identity, write_result
from landscape.runtime import files as atomic
from landscape.runtime.files import locked
from samples import assert_same_result, sample_provenance, sample_spectrum

HERE = str(Path(__file__).parent)

# ---- the disk says no ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a.h5"
    write_result(path, sample_spectrum(), sample_provenance(identity="old"))
    real = os.write
    written = []

    def fails_half_way(descriptor: int, data: memoryview) -> int:
        if written:
            raise OSError(code, os.strerror(code))
        written.append(real(descriptor, data[: len(data) // 2]))
        return written[0]

    monkeypatch.setattr(atomic.os, "write", fails_half_way)
    with pytest.raises(StorageError, match="cannot write") as caught:
        write_result(path, sample_spectrum(), sample_provenance(identity="new"))
    monkeypatch.undo()
    assert caught.value.hint
    assert caught.value.exit_code == 5
    assert stored_identity(path, "spectrum") == ("old", "complete")
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


WRITE_ONE = """
import sys; sys.path.insert(0, {here!r})
from samples import sample_provenance, sample_spectrum
from landscape.errors import StorageError
from landscape.results.store import write_result
{before}
try:
    write_result({path!r}, sample_spectrum(), sample_provenance(identity="new"))
except StorageError as error:
    print(error.message)
"""


def write_elsewhere(path: Path, before: str = "", prefix: list[str] | None = None) -> str:
    """Message of the StorageError that another process meets when it writes `path`."""
    script = WRITE_ONE.format(here=HERE, path=str(path), before=before)
    done = subprocess.run(
        [*(prefix or []), sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_really_full_disk(tmp_path: Path) -> None:
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=16k tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*own_mounts, "sh", "-c", mount], check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    run = f'{mount} && "$@" && ls -A {tmp_path}'
    said = write_elsewhere(tmp_path / "a.h5", prefix=[*own_mounts, "sh", "-c", run, "sh"])
    assert "the disk is full" in said
    assert len(said.splitlines()) == 1  # and the folder is empty


def test_file_size_limit(tmp_path: Path) -> None:
    write_result(tmp_path / "a.h5", sample_spectrum(), sample_provenance(identity="old"))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    assert "larger than this shell allows" in write_elsewhere(tmp_path / "a.h5", limit)
    assert stored_identity(tmp_path / "a.h5", "spectrum") == ("old", "complete")
    assert len(list(tmp_path.iterdir())) == 1


def test_read_only_folder(tmp_path: Path) -> None:
    # root may write anywhere, but not in a user namespace of its own, where it is nobody
    prefix = ["unshare", "--user"] if os.geteuid() == 0 else []
    if prefix and (not shutil.which("unshare") or subprocess.run([*prefix, "true"], check=False).returncode):
        pytest.skip("runs as root and may not make a user namespace")
    write_result(tmp_path / "a.h5", sample_spectrum(), sample_provenance(identity="old"))
    tmp_path.chmod(0o555)
    try:
        assert "permission denied" in write_elsewhere(tmp_path / "a.h5", prefix=prefix)
        assert "permission denied" in write_elsewhere(tmp_path / "new" / "b.h5", prefix=prefix)
    finally:
        tmp_path.chmod(0o755)
    assert stored_identity(tmp_path / "a.h5", "spectrum") == ("old", "complete")
    assert len(list(tmp_path.iterdir())) == 1


# ---- kill -9, stale files, locks ----------------------------------------------------------------------------


def test_killed_at_random_moments_the_file_is_always_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    rng = random.Random(0)
    # One parent that forks the writers: 25 starts of Python with NumPy would take a minute.
    script = textwrap.dedent(
        """
        import os, sys
        sys.path.insert(0, {here!r})
        from samples import sample_provenance, sample_spectrum
        from landscape.results.store import write_result
        result = sample_spectrum()
        for line in sys.stdin:
            pid = os.fork()
            if pid == 0:
                n = int(line)
                while True:
                    n += 1
                    write_result({path!r}, result, sample_provenance(products=n))
            print(pid, flush=True)
            os.waitpid(pid, 0)
            print("dead", flush=True)
        """
    ).format(here=HERE, path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        write_result(path, sample_spectrum(), sample_provenance(products=0))
        seen, stale = 0, 0
        for _ in range(25):
            print(seen, file=parent.stdin, flush=True)
            pid = int(parent.stdout.readline())
            time.sleep(0.02 + 0.08 * rng.random())
            os.kill(pid, signal.SIGKILL)
            assert parent.stdout.readline() == "dead\n"
            stored = read_result(path)
            assert_same_result(restore(stored, Spectrum), sample_spectrum())
            assert stored.provenance.products >= seen
            seen = stored.provenance.products
            stale += len(list(tmp_path.glob(".a.h5.*.tmp")))
        parent.stdin.close()
    assert seen > 0
    write_result(path, sample_spectrum(), sample_provenance())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]  # the temporaries of the dead are gone


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_the_file_is_whole_and_nothing_stays(tmp_path: Path, signum: int, code: int) -> None:
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, {here!r})
        from samples import sample_provenance, sample_spectrum
        from landscape.runtime.interrupts import Interrupted, interruptible
        from landscape.results.store import locked, write_result
        n = 0
        try:
            with interruptible(), locked({path!r}):
                while True:
                    n += 1
                    write_result({path!r}, sample_spectrum(), sample_provenance(products=n))
                    if n == 1:
                        print("started", flush=True)
        except Interrupted as stop:
            sys.exit(stop.exit_code)
        """
    ).format(here=HERE, path=str(tmp_path / "a.h5"))
    for delay in (0.0, 0.01, 0.03):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(delay)
            process.send_signal(signum)
        assert process.returncode == code
        assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
        assert_same_result(restore(read_result(tmp_path / "a.h5"), Spectrum), sample_spectrum())


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_stale_temporaries_of_this_file_and_dead_processes_only(tmp_path: Path) -> None:
    dead, alive = dead_pid(), os.getppid()
    names = [f".a.h5.{dead}.tmp", f".a.h5.{alive}.tmp", f".b.h5.{dead}.tmp", f".a.h5.{dead}.tmp.bak", "a.h5.1.tmp"]
    for name in names:
        (tmp_path / name).touch()
    with locked(tmp_path / "a.h5"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == set(names[1:])


def test_second_writer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    holder = (
        f"import sys, time; from landscape.runtime.files import locked\n"
        f"with locked({str(path)!r}): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=rf"another process \(pid {process.pid}\)"), locked(path):
            pass
        process.kill()
    assert (tmp_path / ".a.h5.lock").exists()  # kill -9 left the file, but not the lock
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_is_released_after_an_error_and_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(RuntimeError), locked(path):
        raise RuntimeError
    with locked(path), pytest.raises(StorageError, match="another process"), locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="has no file locks"), locked(tmp_path / "a.h5"):
        pass
