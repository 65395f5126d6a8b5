"""Files written whole or not at all, one writer at a time, nothing left behind (Linux and macOS)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from landscape.errors import StorageError
from landscape.runtime.interrupts import deferred

# What a system error means for the user: (what happened, what to do next).
ADVICE: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space and repeat the command: what is finished is kept"),
    errno.EDQUOT: (
        "your disk quota is used up",
        "free some space and repeat the command: what is finished is kept",
    ),
    errno.EFBIG: ("the file is larger than this shell allows", "raise the limit with `ulimit -f unlimited`"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 8192`"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to with --out"),
    errno.EPERM: ("permission denied", "choose a folder that you may write to with --out"),
    errno.EROFS: ("the file system is read-only", "choose a folder that you may write to with --out"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "choose another folder with --out"),
    errno.EEXIST: ("a part of its path is a file, not a folder", "choose another folder with --out"),
    errno.EISDIR: ("a folder of that name is in the way", "choose another folder with --out"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter name or folder with --out"),
}
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def storage_error(error: OSError, path: str | PathLike[str]) -> StorageError:
    """The `StorageError` that tells a user what `error` means for writing `path`."""
    what, hint = ADVICE.get(error.errno or 0, (error.strerror or str(error), "choose another folder with --out"))
    return StorageError(f"cannot write {os.fspath(path)}: {what}", hint)


def write_bytes(path: str | PathLike[str], data: bytes | memoryview) -> None:
    """Put `data` into `path` in one step; until then an older file there stays whole, whatever happens.

    Folders are made as needed. SIGINT and SIGTERM wait until the file is in place (`interrupts.deferred`).
    Raises StorageError: disk full, no permission, a folder in the way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with deferred():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_and_sync(temporary, data)
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def _write_and_sync(path: Path, data: bytes | memoryview) -> None:
    """Write `data` down to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_stale(path: str | PathLike[str]) -> None:
    """Remove temporaries of `path` whose process is dead: what a kill -9 leaves behind.

    Only temporaries of this very file are touched: a writer of another file, on another machine too, is safe.
    """
    path = Path(path)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,10}})\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            found = pattern.fullmatch(name)
            if found and not _alive(int(found[1])):
                with suppress(OSError):
                    path.with_name(name).unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(path: str | PathLike[str]) -> Iterator[None]:
    """Be the only process that works on the result `path`; clears stale temporaries of it first.

    The lock is the kernel's (`flock` on `.NAME.lock`), so it dies with its process and a file left by kill -9
    blocks nobody. Not re-entrant. Raises StorageError if another process holds it or the folder is unusable.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock, path)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        remove_stale(path)
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)  # before the release, or we might remove the next writer's
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold a copy of the descriptor
        os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int:
    """Descriptor of the locked file `lock`. Raises OSError, or StorageError if it is taken."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _flock(descriptor, lock, path) and not _is_same_file(descriptor, lock):
                os.close(descriptor)  # its owner removed it between our open and our lock
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor


def _flock(descriptor: int, lock: Path, path: Path) -> bool:
    """Lock at once or raise StorageError; False where the file system knows no locks, after a warning."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StorageError(
            f"another process (pid {owner}) is working on {path}",
            "wait for it and repeat the command, or choose another folder with --out",
        ) from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        message = f"{lock.parent} has no file locks: do not let two commands write there at once"
        warnings.warn(message, stacklevel=4)
        return False
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
