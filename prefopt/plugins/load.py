"""Import a file or a module that a recipe names; whatever goes wrong is one line that says where."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from prefopt.errors import OwnCodeError, RecipeError
from prefopt.plugins.code import Code, place_in, said, shown
from prefopt.plugins.digest import digest_of, files_behind
from prefopt.words import did_you_mean

_AS_IMPORTED: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()
"""Digests of the code behind functions as it was on disk when each was looked up; imported anew, each is another."""


def from_file(path: Path, attribute: str, where: str) -> tuple[Callable[..., Any], Code]:
    """Run a file as a module of its own and take a function from it.

    Raises:
        RecipeError: there is no such file or function.
        OwnCodeError: the file raises.
    """
    name = f"{path.name}:{attribute}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        what = "there is no file" if isinstance(error, FileNotFoundError) else "no file can be read at"
        raise RecipeError(
            f"{where}: {what} {shown(path)}. Write the path from the folder of the recipe, as in my_loss.py:my_loss."
        ) from None
    digest = digest_of({"": raw})
    # a file that changed is another module, and a name in it is never answered from the former one
    key = f"prefopt_own_{digest_of({str(path): raw})}"
    if key not in sys.modules:
        _run(key, path, raw, name, where)
    value = _take(sys.modules[key], attribute, shown(path), where)
    return value, Code(name, where, path, (path,), digest)


def from_module(module: str, attribute: str, where: str, folder: Path) -> tuple[Callable[..., Any], Code]:
    """Import a module and take a function from it.

    Raises:
        RecipeError: there is no such module or function, or its files have changed since this process imported them.
        OwnCodeError: the module raises.
    """
    name = f"{module}:{attribute}"
    found = _import(module, name, where, folder)
    value = _take(found, attribute, module, where)
    homes = [found, sys.modules.get(_home(value) or "", found)]
    files = {key: path for home in homes if not _is_known(home) for key, path in files_behind(home).items()}
    if not files:
        raise RecipeError(
            f"{where}: {name} comes with prefopt or Python, or from no file, so no digest can say which code it is. "
            f"Name a function of your own that calls it."
        )
    digest = digest_of({key: path.read_bytes() for key, path in files.items()})
    if _AS_IMPORTED.setdefault(value, digest) != digest:
        raise RecipeError(
            f"{where}: {name} has changed on disk since this process imported it, and what would run is the old "
            f"code. Start a new process."
        )
    own = files.get(module) or next(iter(files.values()))
    return value, Code(name, where, own, tuple(files.values()), digest)


class _Text(importlib.abc.SourceLoader):
    """Compile a file from bytes that were read already, and leave no compiled copy that could go stale."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw = path, raw

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: Any) -> bytes:
        return self.raw


def _run(key: str, path: Path, raw: bytes, name: str, where: str) -> None:
    loader = _Text(path, raw)
    spec = importlib.util.spec_from_loader(key, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # as dataclasses look there for the module they stand in
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if isinstance(error, (Exception, SystemExit)):
            raise _failed(error, name, where, path) from error
        raise


def _import(module: str, name: str, where: str, folder: Path) -> ModuleType:
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"{where}: there is no module '{error.name}'.{_beside(module, name, folder)} Install the package, or "
                f"put the folder that holds it on PYTHONPATH."
            ) from None
        raise _failed(error, name, where, _root(module)) from error


def _beside(module: str, name: str, folder: Path) -> str:
    """Say so where the module is a file that lies beside the recipe."""
    file = f"{module.replace('.', '/')}.py"
    return f" Write {file}:{name.rpartition(':')[2]} for the file there." if (folder / file).is_file() else ""


def _root(module: str) -> Path | None:
    """Return the folder of a module's package, or its file, without importing it."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    root = folders[0] if folders else spec.origin
    return None if root is None else Path(root).resolve()


def _failed(error: BaseException, name: str, where: str, root: Path | None) -> OwnCodeError:
    place = place_in(error, () if root is None else (root,))
    at = f", at {place}" if place else ""
    return OwnCodeError(f"{where}: importing {name} raised {said(error)}{at}.{_alone(error, root)}")


def _alone(error: BaseException, root: Path | None) -> str:
    """Say so where a file imports one that lies beside it."""
    if (
        not isinstance(error, ModuleNotFoundError)
        or error.name is None
        or root is None
        or root.suffix != ".py"
    ):
        return ""
    beside = root.with_name(error.name.partition(".")[0])
    if not (beside.is_dir() or beside.with_suffix(".py").is_file()):
        return ""
    return " A file is imported alone, without those beside it. Make a package of them and write module:function."


def _take(module: ModuleType, attribute: str, holder: object, where: str) -> Callable[..., Any]:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [each for each in vars(value) if not each.startswith("_")]
            raise RecipeError(
                f"{where}: {holder} holds no '{attribute}'.{did_you_mean(part, known)} Name a function that it defines."
            )
        value = getattr(value, part)
    if not isinstance(value, (FunctionType, partial)):
        kind = "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise RecipeError(f"{where}: '{attribute}' of {holder} is {kind}. Name a function.")
    return value


def _home(value: Any) -> str | None:
    """Return the module that a function was defined in; a partial goes by what it wraps."""
    while isinstance(value, partial):
        value = value.func
    return getattr(value, "__module__", None)


def _is_known(module: ModuleType) -> bool:
    """Tell whether code is prefopt's or Python's, which a run does not take a digest of."""
    top = module.__name__.partition(".")[0]
    return top == "prefopt" or top in sys.stdlib_module_names
