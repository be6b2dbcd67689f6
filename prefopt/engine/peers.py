"""Whether the other ranks are alive: every rank leaves signs of life in a store that all can read, and reads theirs.

A collective waits for a rank that was killed or stopped until its own time is up, and does not know which it was.
Signs are counted, not dated, so no two clocks are compared.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist

from prefopt.errors import PeerError, PrefoptError, first_line, is_out_of_memory

LONGEST_WAIT = timedelta(hours=1)
"""For a rank that is alive, as one that tokenizes for all; ``watched`` finds those that are not much sooner."""

_SIGNS_PER_TIMEOUT = 6
_LONGEST_PAUSE = 5.0
_GRACE = 3.0
"""Seconds in which a rank may end by itself once it is known that another one is gone."""
_LOST = re.compile(
    r"connection (closed|reset|refused)|closed by peer|timed out|timeout|broken pipe|unreachable",
    re.IGNORECASE,
)
_DONE, _FAILED, _LEFT = "done", "failed", "left"  # left: because of another

_watches = count(1)  # one process may be watched several times by way of one store


class Peers:
    """What a rank knows of the others; see ``watched``."""

    def __init__(self, rank: int, world: int, timeout: float | None) -> None:
        self.rank, self.others, self.timeout = rank, [r for r in range(world) if r != rank], timeout
        pause = _LONGEST_PAUSE if timeout is None else timeout / _SIGNS_PER_TIMEOUT
        self.pause = min(_LONGEST_PAUSE, pause)
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # a connection of its own, as one that waits for a key blocks all who share it
        store: Any = dist.distributed_c10d._get_default_store()
        self.store = dist.distributed_c10d.PrefixStore(f"prefopt/{again}/{next(_watches)}", store.clone())
        self.store.set_timeout(timedelta(seconds=max(1.0, self.pause)))
        self.silent = dict.fromkeys(self.others, 0)  # own signs since the last one of each
        self._seen: dict[int, bytes] = {}
        self._unheard = 0  # own signs since the store took one
        self._end = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Give signs of life and look for those of the others while the block runs.

        Raises:
            PeerError: in place of what a collective raises when a rank is gone.
        """
        self._write("who", json.dumps([_place(), socket.gethostname(), os.getpid()]))
        thread = threading.Thread(target=self._run, name="prefopt-peers", daemon=True)
        thread.start()
        state = _FAILED
        try:
            yield
            state = _DONE
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            state = _LEFT
            raise PeerError(self.blame(first_line(error))) from error
        except PeerError:
            state = _LEFT
            raise
        except PrefoptError as error:
            # asked to stop, all ranks do
            state = _DONE if error.exit_code in (75, 130) else _FAILED
            raise
        finally:
            self._end.set()
            thread.join(2 * _LONGEST_PAUSE)
            self._write("state", state)

    def blame(self, what: str) -> str:
        """Say which rank is gone, as far as can be found out within some seconds."""
        end = time.monotonic() + _GRACE
        while (found := self.gone()) is None and time.monotonic() < end:
            time.sleep(0.1)
        who = found or f"another rank, unknown which, is gone ({what})"
        return f"{who}. Its own line, if it has one, says why; run again with --resume."

    def gone(self) -> str | None:
        """Say which rank ended or gives no sign of life, if one does."""
        for rank in self.others:
            if self._read(f"state/{rank}") == _FAILED.encode():
                return f"rank {rank} failed"
            if (state := self._process(rank)) is not None:
                return f"rank {rank} {state}"
        return None

    def _process(self, rank: int) -> str | None:
        """Say what became of a process of this machine, unless it runs or has done its work."""
        known = self._read(f"who/{rank}")
        if known is None or self._read(f"state/{rank}") is not None:
            return None
        place, host, pid = json.loads(known)
        if place is None or place != _place():
            return None
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            stat = ") Z"
        return f"(process {pid} on {host}) is gone" if stat.rpartition(")")[2].split()[0] in "ZX" else None

    def _run(self) -> None:
        """Give signs and look for others until the block ends, or this process does."""
        for signs in count(1):
            if self._end.wait(self.pause):
                return
            self._unheard = 0 if self._write("sign", str(signs)) else self._unheard + 1
            self._look()
            what = self._silence() or self.gone()
            if what is None or self._end.wait(_GRACE):
                continue
            if (still := self._silence() or self.gone()) is not None:  # it may have been done just then
                self._leave(still)

    def _look(self) -> None:
        for rank in self.others:
            sign = self._read(f"sign/{rank}")
            is_new = sign is not None and sign != self._seen.get(rank)
            self.silent[rank] = 0 if is_new else self.silent[rank] + 1
            if sign is not None:
                self._seen[rank] = sign

    def _silence(self) -> str | None:
        """Say who has been silent for too long."""
        if self.timeout is None:
            return None
        if self._unheard * self.pause >= self.timeout:
            return "the launcher or rank 0, which keeps what ranks tell each other, cannot be reached"
        for rank, signs in self.silent.items():
            if signs * self.pause >= self.timeout and self._read(f"state/{rank}") != _DONE.encode():
                return (
                    f"rank {rank} has given no sign of life for {self.timeout:g} seconds (train.peer_timeout): it is "
                    f"stopped, cut off or stuck"
                )
        return None

    def _leave(self, what: str) -> None:
        """End this process where it stands, as its main thread waits inside a collective."""
        self._write("state", _LEFT)
        begin = "" if self.rank == 0 else f"rank {self.rank}: "
        line = f"{begin}error: {what}. Run again with --resume.\n"
        with suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, line.encode())
        os._exit(PeerError.exit_code)

    def _write(self, name: str, value: str) -> bool:
        try:
            self.store.set(f"{name}/{self.rank}", value)
        except RuntimeError:  # whoever keeps the store may be gone
            return False
        return True

    def _read(self, key: str) -> bytes | None:
        try:
            return bytes(self.store.get(key)) if self.store.check([key]) else None
        except RuntimeError:
            return None


@contextmanager
def watched(rank: int, world: int, timeout: float | None) -> Iterator[None]:
    """Watch the other ranks during the block, which is left by all of them or ends with this rank.

    Args:
        rank: of this process.
        world: ranks there are, which all enter the block; one alone is not watched.
        timeout: seconds without a sign of life after which a rank is given up; None waits for ever.

    Raises:
        PeerError: another rank failed; names it as far as that is known.
    """
    if world == 1:
        yield
        return
    with Peers(rank, world, timeout).watching():
        yield


def _place() -> str | None:
    """Return what tells the processes whose numbers this one can look up; None where there is no such place."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether torch says that another rank cannot be reached, and not that a call of ours was wrong."""
    if is_out_of_memory(error):
        return False
    is_transport = (
        isinstance(error, dist.DistError) or "gloo/transport" in str(error) or "[c10d]" in str(error)
    )
    return is_transport and _LOST.search(str(error)) is not None
