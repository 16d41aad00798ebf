"""The one place that makes bytes durable: write, fsync, rename, lock.

A reader sees a file or a folder whole or not at all, whatever is killed and whenever. Everything durable passes through
`Disk`, so a fault test patches one class.

    write_bytes(path, data)              # temporary file, fsync, rename, fsync of the folder
    with Lock(path): ...                 # flock with the holder's name inside; a dead holder's lock is free
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Self, cast

from features.errors import Busy, FramepoolError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
USERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)  # no fault

LOCK_WAIT_S: Final = 10.0  # a job that was killed needs a moment to end
_BUFFER_BYTES: Final = 1 << 20


class Disk:
    """The operations that can fail halfway. Nothing else in the project writes durable bytes."""

    @staticmethod
    def write(stream: IO[bytes], data: bytes | memoryview) -> None:
        stream.write(data)
        stream.flush()

    @staticmethod
    def fsync(fileno: int) -> None:
        os.fsync(fileno)

    @staticmethod
    def rename(source: Path, target: Path) -> None:
        os.replace(source, target)

    @staticmethod
    def truncate(stream: IO[bytes], size: int) -> None:
        stream.truncate(size)

    @staticmethod
    def remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all. A stray temporary file of a killed writer is replaced by the next."""
    with write_parts(path) as stream:
        stream.write(data)


@contextmanager
def write_parts(path: Path) -> Iterator[IO[bytes]]:
    """`write_bytes` of what is written to the stream; nothing where that raises."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with temporary.open("wb") as file:
            parts = _Parts(file)
            stream = io.BufferedWriter(parts, _BUFFER_BYTES)
            try:
                yield stream
                stream.flush()
            except Exception as error:  # of who could not write: torch's own word for a full disk, say
                raise parts.failed or error from None
            Disk.fsync(file.fileno())
        Disk.rename(temporary, path)
        fsync_folder(path.parent)


class _Parts(io.RawIOBase):
    """Hands what is written to `Disk` until that fails; then nothing more, though the buffer above may ask again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.failed = file, cast(BaseException | None, None)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.failed is None:
            try:
                Disk.write(self.file, data)
            except BaseException as error:
                self.failed = error
                raise
        return len(data)


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of readable JSON: sorted keys, one indent, no NaN."""
    write_bytes(
        path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def publish_folder(source: Path, target: Path) -> None:
    """Make the tree `source` durable, then rename it to `target`, which must not exist."""
    with writing(target):
        for folder, _, names in os.walk(source):
            for name in names:
                with open(os.path.join(folder, name), "rb") as stream:
                    Disk.fsync(stream.fileno())
            fsync_folder(Path(folder))
        Disk.rename(source, target)
        fsync_folder(target.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """`target` as a second name of the file `source`; as a copy of it where the disk has no second names."""
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        Disk.remove(temporary)
        try:
            os.link(source, temporary)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as stream:
                Disk.fsync(stream.fileno())
        Disk.rename(temporary, target)
        fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    with writing(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            Disk.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> Path:
    """`folder`, made with its parents where it is missing."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def scratch_folder(target: Path) -> Path:
    """An empty folder beside `target`, to make it in before `publish_folder`."""
    folder = target.with_name(f"{target.name}.partial")  # a suffix would begin at the first dot of a network's tag
    remove(folder)
    return make_folder(folder)


def remove(path: Path) -> None:
    """Remove a file or a tree; what is already gone is no error."""
    with writing(path):
        Disk.remove(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` below into one line that names the path, the free space and what to do."""
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> FramepoolError:
    what = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in USERS:
        return UserError("cannot write", where=path, got=what, fix="make its folder exist and writable")
    folder = next(p for p in (path, *path.parents, Path()) if p.exists())
    free_mb = shutil.disk_usage(folder).free / 1e6
    first = "free some space there" if error.errno in FULL else "see to that disk"
    fix = f"{first} and run the same command again: what is finished is kept"
    return FramepoolError("cannot write", where=path, got=f"{what} ({free_mb:.0f} MB free)", fix=fix)


class Lock:
    """One holder at a time, among processes and, where the file system has flock, among machines.

    The file names its holder. The kernel drops the lock with its holder, so a dead holder never blocks anybody.

    Raises `Busy`, naming the holder, when it is not free within `wait_s` seconds.
    """

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        self.path, self.wait_s = path, wait_s
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self.wait_s
        while not self._take():
            if time.monotonic() >= deadline:
                holder = self.holder()
                raise Busy("locked", where=self.path, got=f"held by {holder}", fix="wait for it, or stop that process")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a file without its holder blocks nobody
                Disk.remove(self.path)
            self._file.close()
            self._file = None

    def holder(self) -> str:
        """Who holds the lock, as the holder wrote it: process, machine, since when."""
        try:
            return self.path.read_text().strip() or "a process that is just starting"
        except FileNotFoundError:
            return "a process that has just ended"

    def _flock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise
            fix = "mount it with locks (Lustre: -o flock), or keep work/ on another disk"
            got = os.strerror(error.errno)
            raise UserError("file system without locks", where=self.path, got=got, fix=fix) from None

    def _take(self) -> bool:
        with writing(self.path):
            file = self.path.open("a+")
            try:
                self._flock(file)
                # The last holder may have removed the name between our open and our flock: then we hold a ghost.
                if os.fstat(file.fileno()).st_ino != os.stat(self.path).st_ino:
                    raise FileNotFoundError
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
                file.flush()
            except (BlockingIOError, FileNotFoundError):
                file.close()
                return False
            except BaseException:
                file.close()
                raise
        self._file = file
        return True
