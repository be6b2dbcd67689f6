"""The process that prints chat templates: it reads conversations from a pipe and answers with their texts.

Templates come with models from the hub. The sandbox of transformers keeps them from the machine, but neither from
looping for hours nor from filling its memory, and no thread can be stopped while it does. A process can: a timer of
the kernel ends it, whatever it is doing, and the kernel refuses it more memory than it may have.
"""

from __future__ import annotations

import gc
import json
import resource
import signal
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from prefopt.data.rows.raw_rows import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONE_SECONDS = 1.0
"""Processor time that one conversation may take."""

MANY_SECONDS = 0.5
"""The same of a few that are printed together; usually they take some milliseconds."""

_TOGETHER = 128
"""Conversations that are printed by one call."""

MEMORY, _MEMORY_PER_BYTE = 1 << 30, 32
"""Bytes of memory that printing may add, and so many more for each byte of a request."""

_TEXT_PER_CONTENT, _TEXT_AT_LEAST = 64, 1 << 20
"""Characters printed: so many for each that a conversation holds, and so many on top of it."""

TOO_MUCH = {
    "memory": f"needs more than {MEMORY >> 30} GiB of memory for this row",
    "text": "prints far more text than this row holds",
    "change": "prints this row otherwise each time, so that its tokens would change from run to run",
}
"""What a template did beyond all measure, by the word that stands for it in an answer."""


class _Job(NamedTuple):
    messages: list[Any]
    opens_answer: bool
    tools: list[Any] | None


def serve(
    pipe: Connection, others: Connection, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> None:
    """Answer requests until the other side is gone; runs in a process of its own.

    A request is JSON: ``[is_careful, [[base, [[more, opens_answer], ...], tools], ...]]``; printed is ``base + more``.
    The answer is a JSON list with the length of each text, or ``[kind, why]`` where there is none, and then the texts,
    end to end. Careful means one conversation at a time.

    Args:
        pipe: requests come and answers go.
        others: the other end of it, to be closed here.
        tokenizer: of the model that is trained.
        template: in place of the tokenizer's own.
    """
    others.close()
    # who started this process ends it by closing the pipe; signals are meant for that one
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.freeze()  # what is shared with the other process need not be looked through, and so copied
    held = _held_memory()
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        _bound_memory(held, len(request))
        is_careful, asks = json.loads(request)
        texts = _answers(tokenizer, template, is_careful, asks)
        pipe.send_bytes(encode([len(text) if isinstance(text, str) else text for text in texts]))
        whole = "".join(text for text in texts if isinstance(text, str))
        pipe.send_bytes(whole.encode("utf-8", "surrogatepass"))


def _plain(value: Any) -> Any:
    """Return what is no plain value as the name of its type, as templates would see it."""
    return value.item() if isinstance(value, np.generic) else f"<{type(value).__name__}>"


_ENCODER = json.JSONEncoder(default=_plain)


def encode(value: Any) -> bytes:
    """Return a request or an answer as JSON."""
    return _ENCODER.encode(value).encode()


def _held_memory() -> int | None:
    """Return the bytes of this process's address space; None on macOS, which does not bound it."""
    sizes = Path("/proc/self/statm")
    return int(sizes.read_text().split()[0]) * resource.getpagesize() if sizes.exists() else None


def _bound_memory(held: int | None, size: int) -> None:
    if held is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = held + MEMORY + _MEMORY_PER_BYTE * size
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _answers(
    tokenizer: PreTrainedTokenizerBase, template: str | None, is_careful: bool, asks: Sequence[Any]
) -> list[Any]:
    jobs = [_Job([*base, *more], opens, tools) for base, ways, tools in asks for more, opens in ways]
    texts: list[Any] = [None] * len(jobs)
    for at in _together(jobs, 1 if is_careful else _TOGETHER):
        seconds = ONE_SECONDS if is_careful else MANY_SECONDS
        signal.setitimer(signal.ITIMER_PROF, seconds)
        for n, text in zip(at, _print(tokenizer, template, [jobs[n] for n in at]), strict=True):
            texts[n] = text
        if at[0] == 0 and isinstance(texts[0], str) and texts[0] != _print(tokenizer, template, jobs[:1])[0]:
            texts[0] = ["change", ""]
        signal.setitimer(signal.ITIMER_PROF, 0)
    return texts


def _together(jobs: Sequence[_Job], most: int) -> Iterator[list[int]]:
    """Yield positions of jobs that one call can print: with the same tools, if any, and the same end."""
    order = sorted(range(len(jobs)), key=lambda n: jobs[n].opens_answer)
    for _, alike in groupby(order, key=lambda n: (jobs[n].opens_answer, id(jobs[n].tools))):
        at = list(alike)
        yield from (at[low : low + most] for low in range(0, len(at), most))


def _print(tokenizer: PreTrainedTokenizerBase, template: str | None, jobs: Sequence[_Job]) -> list[Any]:
    """Return the text of every conversation, or what is wrong with it."""
    try:
        texts = tokenizer.apply_chat_template(
            [job.messages for job in jobs],
            tools=jobs[0].tools,
            chat_template=template,
            add_generation_prompt=jobs[0].opens_answer,
            tokenize=False,
        )
        return [_bounded(str(text), job) for text, job in zip(texts, jobs, strict=True)]
    except jinja2.TemplateSyntaxError as error:
        return [["syntax", f"{one_line(error)}, line {error.lineno}"] for _ in jobs]
    except Exception as error:  # noqa: BLE001 - a template may raise anything; which row did is found below
        if len(jobs) == 1:
            return [["memory", ""] if isinstance(error, MemoryError) else ["refused", one_line(error)]]
    return [text for job in jobs for text in _print(tokenizer, template, [job])]


def _bounded(text: str, job: _Job) -> Any:
    if len(text) > _TEXT_AT_LEAST:
        content = len(json.dumps([job.messages, job.tools], ensure_ascii=False))
        if len(text) > _TEXT_AT_LEAST + _TEXT_PER_CONTENT * content:
            return ["text", ""]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ["refused", f"its text would hold half a character, not valid Unicode, at {error.start + 1}"]
    return text
