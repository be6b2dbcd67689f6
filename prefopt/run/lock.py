"""One run per folder: a lock that names host, process and start, and that ends with its holder.

Where the file system knows locks (NFS does too), the kernel gives the lock up with the process, however that
ends; what stands in the file only says who holds it. Elsewhere the existence of a file is the lock, and one whose
process on this host is gone is taken over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from prefopt.errors import RecipeError, writing

NAME = ".lock"
NAME_WITHOUT_LOCKS = ".lock.held"
"""The file whose existence is the lock, where the file system knows no locks."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_MOMENT = 0.1
"""Seconds within which whoever takes a lock has written down who it is."""

# over NFS a lock belongs to a process, and would not keep out a second thread of it
_ours: dict[tuple[int, int], Owner] = {}
_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock."""

    host: str
    pid: int
    started: str | None  # of the process, by its system's count; tells it from a later one of the same number
    since: str  # UTC

    @classmethod
    def here(cls) -> Owner:
        """Return this process."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), os.getpid(), start_of(os.getpid()), now)

    @property
    def is_gone(self) -> bool:
        """Whether it ran on this host and has ended; of other hosts nothing is known."""
        if self.host != socket.gethostname():
            return False
        return not _is_alive(self.pid) or (self.started is not None and start_of(self.pid) != self.started)

    def describe(self) -> str:
        """Say who it is."""
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def held(folder: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock of a folder, which exists, for the length of the block.

    Args:
        folder: what nobody else may write into.
        say: told of a lock that a process left behind when it was killed.

    Raises:
        RecipeError: another run holds it; names that one.
        StorageError: the lock's file cannot be written.
    """
    with _alone_in_process(folder):
        with writing(folder / NAME):
            release = _take(folder / NAME, say)
        try:
            yield
        finally:
            release()


@contextmanager
def _alone_in_process(folder: Path) -> Iterator[None]:
    with writing(folder):
        status = folder.stat()
    key = (status.st_dev, status.st_ino)
    with _guard:
        if key in _ours:
            raise _refusal(folder / NAME, _ours[key])
        _ours[key] = Owner.here()
    try:
        yield
    finally:
        del _ours[key]


def _take(path: Path, say: Callable[[str], None]) -> Callable[[], None]:
    """Take the lock and return what gives it up."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED:
                return _take_without_locks(path.with_name(NAME_WITHOUT_LOCKS), say)
            if error.errno not in _TAKEN:
                raise
            time.sleep(_MOMENT)
            raise _refusal(path, _read(path)) from None
        if _is_at(path, descriptor):
            return _sign(path, descriptor, say)
        os.close(descriptor)  # its last holder removed it between our two calls


def _sign(path: Path, descriptor: int, say: Callable[[str], None]) -> Callable[[], None]:
    """Write into a lock that was just taken who holds it."""

    def release() -> None:
        with suppress(OSError):  # the file may stay: the lock goes with the descriptor
            path.unlink()
        os.close(descriptor)

    try:
        _say_left(path, _read(path), say)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _signature(), 0)
    except BaseException:
        release()
        raise
    return release


def _take_without_locks(path: Path, say: Callable[[str], None]) -> Callable[[], None]:
    """Take the lock by making its file, which no two processes can."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        time.sleep(_MOMENT)
        owner = _read(path)
        if owner is None or not owner.is_gone:
            raise _refusal(path, owner) from None
        _say_left(path, owner, say)
        _remove_left(path, owner)
        return _take_without_locks(path, say)
    try:
        os.write(descriptor, _signature())
    finally:
        os.close(descriptor)
    return lambda: path.unlink(missing_ok=True)


def _remove_left(path: Path, owner: Owner) -> None:
    """Remove the lock of a process that is gone, unless another start has done so and taken it."""
    right = path.with_name(f"{path.name}.remove")  # who made it may remove
    try:
        os.close(os.open(right, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        raise _refusal(right, None) from None
    try:
        if _read(path) == owner:
            path.unlink()
    finally:
        right.unlink()


def _refusal(path: Path, owner: Owner | None) -> RecipeError:
    who = owner.describe() if owner is not None else "a process that did not write its name"
    return RecipeError(
        f"output: {path.parent} is in use by another run ({who}). Wait for its end or choose another folder with "
        f"output=…; if that process is no more, delete {path}."
    )


def _say_left(path: Path, owner: Owner | None, say: Callable[[str], None]) -> None:
    if owner is not None:
        say(f"{path}: left behind by {owner.describe()}, which was killed; taken over")


def _read(path: Path) -> Owner | None:
    """Return who wrote a lock; None where nobody did to the end."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _signature() -> bytes:
    return (json.dumps(asdict(Owner.here())) + "\n").encode()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def start_of(pid: int) -> str | None:
    """Return when a process started, as boot and clock ticks; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *others = fields.rpartition(")")[2].split()  # the program's name before may hold spaces
    return "ended" if state in "ZX" else f"{boot} {others[18]}"
