"""Digests of whole files, and what is remembered of them, so that no start hashes again what has not changed.

A digest is remembered under device and inode of the file, and holds while size, time of modification and time of
change are what they were. The last of them cannot be set from outside, so a file that was replaced or edited and given
its old date is hashed again. Each memory is a file of its own, replaced as a whole: writers at once do no harm.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.errors import ModelError

_LOG = logging.getLogger(__name__)
_BLOCK = 1 << 20
_THREADS = 4
SETTLED = 2_000_000_000
"""Nanoseconds that a file must have stood still before its digest is remembered: file systems count time in steps."""


class Stamp(NamedTuple):
    """What the file system says of a file; links are followed."""

    device: int
    inode: int
    size: int
    modified: int  # ns
    changed: int  # ns; of content or of any mark, set by the system alone

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Ask for it."""
        try:
            found = path.stat()
        except OSError as error:
            raise ModelError(
                f"{path}: it cannot be read ({error.strerror or error}). Check the path."
            ) from None
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FileDigests:
    """Hash files on threads, each once.

    Args:
        memory: folder where digests are remembered between starts.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self._known: dict[Stamp, Future[str]] = {}
        self._stop = threading.Event()
        threads = min(_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefopt-digest")

    def close(self) -> None:
        """Break off what is under way."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start(self, path: Path) -> Future[str]:
        """Begin to hash a file, and return what will hold its SHA-256, 64 hexadecimal digits."""
        stamp = Stamp.of(path)
        if stamp not in self._known:
            self._known[stamp] = self._pool.submit(self._digest, path, stamp)
        return self._known[stamp]

    def of(self, paths: Iterable[Path]) -> list[str]:
        """Return the SHA-256 of each file.

        Raises:
            ModelError: one cannot be read, or changes meanwhile.
        """
        return [each.result() for each in [self.start(path) for path in paths]]

    def _digest(self, path: Path, stamp: Stamp) -> str:
        entry = self.memory / f"{stamp.device:x}-{stamp.inode:x}.json"
        known = _recall(entry, stamp)
        if known is not None:
            return known
        before = time.time_ns()
        found = self._hash(path)
        if Stamp.of(path) != stamp:
            raise ModelError(
                f"{path}: the file changed while it was read. Let what writes it finish, then start again."
            )
        # a change within the same tick of the file system's clock could not be told from none
        if before - stamp.changed > SETTLED:
            _remember(entry, stamp, found)
        return found

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        block = memoryview(bytearray(_BLOCK))
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    digest.update(block[:count])
                    if self._stop.is_set():
                        raise ModelError(f"{path}: hashing was broken off.")
        except OSError as error:
            raise ModelError(f"{path}: it cannot be read ({error.strerror or error}). Restore it.") from None
        return digest.hexdigest()


def _recall(entry: Path, stamp: Stamp) -> str | None:
    """Return what is remembered of a file in this very state; what is damaged counts as nothing."""
    try:
        stored: Any = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    digest = stored.get("sha256") if isinstance(stored, dict) else None
    return digest if isinstance(digest, str) and stored == _entry(stamp, digest) else None


def _remember(entry: Path, stamp: Stamp, digest: str) -> None:
    temporary = entry.with_name(f".{uuid.uuid4().hex}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(_entry(stamp, digest)), encoding="utf-8")
        os.replace(temporary, entry)
    except OSError as error:
        _LOG.warning(
            "%s: a digest could not be kept (%s). The next start hashes the file again.", entry, error
        )


def _entry(stamp: Stamp, digest: str) -> dict[str, Any]:
    check = hashlib.blake2b(f"{tuple(stamp)} {digest}".encode(), digest_size=8).hexdigest()
    return {"file": list(stamp), "sha256": digest, "check": check}
