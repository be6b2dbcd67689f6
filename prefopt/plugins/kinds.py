"""Kinds of things that a recipe names and users can add to, and looking a name up."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.plugins.code import Code
from prefopt.plugins.load import from_file, from_module

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that a recipe names."""

    what: str  # what one is called in messages: "loss"
    table: Mapping[str, Any]  # those that come with prefopt
    group: str  # of the entry points by which installed packages add theirs
    taken: Collection[str] = ()  # further names that no package may add


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for."""

    name: str  # as a resolved recipe says it: a file by its whole path
    value: Any
    code: Code | None = None  # None: it comes with prefopt

    @property
    def short(self) -> str:
        """The name in messages."""
        return self.name if self.code is None else self.code.name


def is_own(name: str) -> bool:
    """Tell whether a name says itself where the code is."""
    return ":" in name


def installed(kind: Kind) -> dict[str, tuple[EntryPoint, ...]]:
    """Return what installed packages add to a kind, by name; several stand under a name that packages dispute."""
    return _installed(kind.group, tuple(sys.path))


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    # a package may lie on the path twice, which is no dispute
    found: dict[str, dict[str, EntryPoint]] = {}
    for each in entry_points(group=group):
        found.setdefault(each.name, {}).setdefault(each.value, each)
    return {name: tuple(found[name].values()) for name in sorted(found)}


def find(kind: Kind, name: str, where: str, folder: Path = Path()) -> Named | None:
    """Return what ``name`` stands for, the code that it names imported; None where nothing has that name.

    Args:
        kind: of what is looked for.
        name: of the table or installed, ``module:function`` or ``file.py:function``.
        where: the setting that holds the name, for messages.
        folder: which a file is looked for from.

    Raises:
        RecipeError: packages dispute the name, or no function can be imported by it.
        OwnCodeError: importing it raised.
    """
    if is_own(name):
        return _own(kind, name, where, folder)
    points = installed(kind).get(name, ())
    _check_undisputed(kind, name, points, where)
    if points:
        return _of_package(name, points[0], where, folder)
    return Named(name, kind.table[name]) if name in kind.table else None


def _of_package(name: str, point: EntryPoint, where: str, folder: Path) -> Named:
    if not point.pattern.fullmatch(point.value) or not point.attr:
        raise RecipeError(
            f"{where}: '{name}' is given as '{point.value}', which is not module:function. Mend its package."
        )
    value, code = from_module(point.module, point.attr, where, folder)
    return Named(name, value, replace(code, name=name))


def _own(kind: Kind, name: str, where: str, folder: Path) -> Named:
    target, _, attribute = name.rpartition(":")
    is_file = target.endswith(".py")
    if not _DOTTED.fullmatch(attribute) or not (is_file or _DOTTED.fullmatch(target)):
        raise RecipeError(
            f"{where}: '{name}' names no {kind.what}. Write my_package.my_module:function, or my_file.py:function for "
            f"a file beside the recipe."
        )
    if not is_file:
        return Named(name, *from_module(target, attribute, where, folder))
    path = Path(os.path.abspath(folder / target))  # a link keeps the name that the recipe gives
    return Named(f"{path}:{attribute}", *from_file(path, attribute, where))


def _check_undisputed(kind: Kind, name: str, points: Collection[EntryPoint], where: str) -> None:
    """Refuse a name that means more than one thing on this machine."""
    is_ours = name in kind.table or name in kind.taken
    if not points or (len(points) == 1 and not is_ours):
        return
    givers = [f"{each.dist.name if each.dist else 'a package'} ({each.value})" for each in points]
    claims = " and ".join([*(["prefopt"] if is_ours else []), *givers])
    raise RecipeError(
        f"{where}: '{name}' is given by {claims}. Uninstall one, or let it have another name; a package's own also "
        f"goes by module:function."
    )
