"""Code of the user's own: which name in a recipe it stands behind, and the line of it where something failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefopt.errors import NonFiniteError, OwnCodeError, PrefoptError
from prefopt.words import cut

MOST = 200
"""Characters of an exception's text that a line shows."""


@dataclass(frozen=True, slots=True)
class Code:
    """The code behind one name in a recipe."""

    name: str  # in messages: my_loss.py:my_loss, without folders
    where: str  # the setting that names it: loss.name
    path: Path  # of the file that was asked for
    files: tuple[Path, ...]  # that the digest covers, this one included
    digest: str

    def describe(self) -> str:
        """Say in one line what was imported from where."""
        others = f" and {len(self.files) - 1} more of its package" if len(self.files) > 1 else ""
        return f"{self.name} is imported from {self.path}{others}, digest {self.digest}"


@contextmanager
def blamed(codes: Sequence[Code]) -> Iterator[None]:
    """Turn what the user's own code raises within the block into one line that names it.

    Raises:
        OwnCodeError: caused by what was raised, if its traceback passes through a file of ``codes``; every other
            exception passes as it is, and so does what is said in one line already.
    """
    try:
        yield
    except NonFiniteError as error:
        if codes:
            names = ", ".join(dict.fromkeys(code.name for code in codes))
            error.args = (f"{error} The recipe names code of your own: {names}.", *error.args[1:])
        raise
    except PrefoptError:
        raise
    except Exception as error:
        for code in codes:
            if (place := place_in(error, code.files)) is not None:
                raise OwnCodeError(f"{code.where}: {code.name} raised {said(error)}, at {place}.") from error
        raise


def place_in(error: BaseException, files: Sequence[Path]) -> str | None:
    """Return ``file:line`` of the innermost frame of ``error`` that lies in one of ``files``, or below one of them."""
    if isinstance(error, SyntaxError) and error.filename is not None and _is_in(error.filename, files):
        return f"{shown(Path(error.filename))}:{error.lineno}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if _is_in(each.filename, files)]
    return f"{shown(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else None


def _is_in(name: str, files: Sequence[Path]) -> bool:
    if name.startswith("<"):
        return False  # code without a file
    path = Path(name).resolve()
    return any(path == file or file in path.parents for file in map(Path.resolve, files))


def said(error: BaseException) -> str:
    """Write an exception on one line: its type and its text."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split()).rstrip(".")
    return f"{type(error).__name__}: {cut(text, MOST)}" if text else type(error).__name__


def shown(path: Path) -> Path:
    """Return a path as short as it can be read from the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if here in path.parents else path


def line_of(function: Callable[..., Any]) -> str:
    """Return ``file:line`` where a function begins, or its type where it has no code of its own."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return (
        type(function).__name__ if code is None else f"{shown(Path(code.co_filename))}:{code.co_firstlineno}"
    )
