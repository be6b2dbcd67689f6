"""The chat template of a model: conversations in, texts out, within bounds of time, memory and text."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.data.rows.raw_rows import RowError
from prefopt.data.tokens.printer import ONE_SECONDS, TOO_MUCH, encode, serve
from prefopt.errors import ModelError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from transformers import PreTrainedTokenizerBase

_BYTES_AT_ONCE = 4 << 20

Turns = Sequence[Any]
Printed = list[str | RowError]


class Ask(NamedTuple):
    """What is to be printed of one row: turns, with several endings."""

    origin: str
    base: Turns
    ends: Sequence[tuple[Turns, bool]]  # what follows, and whether the opening of a further answer is printed
    tools: Sequence[Any] | None = None


class TemplateProcess:
    """Print conversations by a chat template, in a process that is started with the first of them.

    Args:
        tokenizer: of the model that is trained.
        template: a template in place of the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._owner = os.getpid()
        self._process: ForkProcess | None = None
        self._pipe: Connection | None = None

    def print(self, asks: Sequence[Ask]) -> list[Printed]:
        """Return the texts of every ask, in the order of its ends; one that the template refuses says why.

        Raises:
            ModelError: the template does not compile, or a row needs more time, memory or text than any honest
                template would.
        """
        requests = [encode(ask[1:]) for ask in asks]
        answers = (answer for part in _parts(requests) for answer in self._answers(asks, requests, part))
        return [[_read(ask, next(answers)) for _ in ask.ends] for ask in asks]

    def _answers(self, asks: Sequence[Ask], requests: Sequence[bytes], part: range) -> list[Any]:
        found = self._exchange([requests[n] for n in part], is_careful=False)
        if found is None:  # one of them ended the process; alone, it shows which
            found = [answer for n in part for answer in self._alone(asks[n].origin, requests[n])]
        return found

    def _alone(self, origin: str, request: bytes) -> list[Any]:
        code: int = -signal.SIGTERM
        while code == -signal.SIGTERM:  # a signal that was meant for all processes here
            found = self._exchange([request], is_careful=True)
            if found is not None:
                return found
            assert self._process is not None
            code = self._process.exitcode or 0
        if code == -signal.SIGPROF:
            raise _beyond(origin, f"needs more than {ONE_SECONDS:g} s of processor time for this row")
        raise _beyond(origin, f"ends the process that prints this row (exit code {code})")

    def _exchange(self, requests: Sequence[bytes], is_careful: bool) -> list[Any] | None:
        """Send requests and return the answers, or None if the process ended over them."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(b"[%d,[%b]]" % (is_careful, b",".join(requests)))
            sizes, whole = json.loads(self._pipe.recv_bytes()), self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            self._process.join()
            return None
        return list(_cut(sizes, whole.decode("utf-8", "surrogatepass")))

    def _start(self) -> None:
        self.close()
        # a fork has the tokenizer already, and transformers need not be imported again
        fork = multiprocessing.get_context("fork")
        self._pipe, other = fork.Pipe()
        arguments = (other, self._pipe, self.tokenizer, self.template)
        self._process = fork.Process(target=serve, args=arguments, name="prefopt-template", daemon=True)
        with _quiet_fork():
            self._process.start()
        other.close()

    def close(self) -> None:
        """End the process; it starts again where it is needed."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None

    def __del__(self) -> None:
        # the interpreter ends its children itself, and a fork of this process has none
        if not sys.is_finalizing() and os.getpid() == self._owner:
            self.close()


def _cut(sizes: Sequence[Any], whole: str) -> Iterator[Any]:
    """Cut texts that lie end to end apart; what has no size is no text and stays as it is."""
    start = 0
    for size in sizes:
        if isinstance(size, int):
            yield whole[start : start + size]
            start += size
        else:
            yield size


def _parts(requests: Sequence[bytes]) -> Iterator[range]:
    """Cut requests into stretches of a few megabytes, each of at least one."""
    start = size = 0
    for at, request in enumerate(requests):
        if size and size + len(request) > _BYTES_AT_ONCE:
            yield range(start, at)
            start, size = at, 0
        size += len(request)
    if requests:
        yield range(start, len(requests))


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Silence what is said of forks beside threads: the child uses neither tokenizers nor locks of ours."""
    name = "TOKENIZERS_PARALLELISM"
    is_ours = name not in os.environ
    if is_ours:
        os.environ[name] = "true"  # only that it is set matters, and only in the moment of the fork
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if is_ours:
            del os.environ[name]


def _read(ask: Ask, answer: Any) -> str | RowError:
    if isinstance(answer, str):
        return answer
    kind, why = answer
    if kind == "syntax":
        raise ModelError(f"model.chat_template: does not compile ({why}). Repair the template.")
    if kind in TOO_MUCH:
        raise _beyond(ask.origin, TOO_MUCH[kind])
    return RowError("", f"the chat template refuses it ({why})")


def _beyond(origin: str, what: str) -> ModelError:
    return ModelError(f"{origin}: the chat template {what}. Repair model.chat_template, or take the row out.")
