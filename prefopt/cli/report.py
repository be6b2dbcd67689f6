"""What went wrong, as lines for a person."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from importlib import metadata

import typer

from prefopt.errors import OwnCodeError


def usage(error: Exception) -> str:
    """Say what is wrong with the arguments, and how settings are written."""
    # click words its message in this method; str() leaves out the name of the argument
    message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
    line = f"command line: {message}" + ("" if message.endswith("?") else ".")
    if found := re.search(r"[Nn]o such option:? '?-+([\w.]+)", message):
        key = found.group(1)
        return f"{line} Settings are written without dashes: {key}=VALUE."
    return f"{line} See `prefopt --help`."


def internal(error: Exception) -> str:
    """Say where the traceback is of a mistake that nobody foresaw."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what[:300]}. This is a bug in prefopt; the traceback is in {_kept(error)}."


def theirs(error: OwnCodeError) -> str:
    """Say where the traceback is of a mistake in code of the user's own."""
    return f"{error} The traceback is in {_kept(error.__cause__ or error)}."


def _kept(error: BaseException) -> str:
    """Write the traceback into a file and return its path."""
    handle, path = tempfile.mkstemp(prefix="prefopt-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"prefopt {metadata.version('prefopt')}, python {sys.version}\n")
        traceback.print_exception(type(error), error, error.__traceback__, file=file)
    return path


def report(message: str, code: int, label: str = "error") -> int:
    """Write every line of ``message`` to stderr with its label and return ``code``."""
    rank = os.environ.get("RANK", "0")
    begin = typer.style(f"{label}:", fg="red", bold=True) if sys.stderr.isatty() else f"{label}:"
    for line in message.splitlines():
        typer.echo(f"{begin} {line}" if rank == "0" else f"rank {rank}: {begin} {line}", err=True)
    return code
