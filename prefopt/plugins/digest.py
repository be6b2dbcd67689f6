"""Which files stand behind a function of the user's own, and their digest."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import ModuleType


def digest_of(contents: Mapping[str, bytes]) -> str:
    """Return a digest of files by name, whatever folder they lie in."""
    digest = blake2b(digest_size=16)
    for name in sorted(contents):
        digest.update(f"{name} {len(contents[name])} ".encode() + contents[name])
    return digest.hexdigest()


def files_behind(module: ModuleType) -> dict[str, Path]:
    """Return by name the file of a module, and those of its package that it imports, at any remove.

    Imports are read from the text, so that those inside functions count, and nothing is run. Not followed are imports
    of other packages, and those by a computed name.
    """
    top = module.__name__.partition(".")[0]
    folders = [Path(folder) for folder in getattr(sys.modules.get(top), "__path__", ())]
    if not folders:
        file = Path(getattr(module, "__file__", None) or "")
        return {module.__name__: file.resolve()} if file.is_file() else {}
    found: dict[str, Path] = {}
    left = [module.__name__]
    while left:
        name = left.pop()
        path = None if name in found else _file_of(name, folders)
        if path is None:
            continue  # known, or a function and no module
        found[name] = path
        left += _ancestors(name)
        left += [each for each in _imported(path, name) if each == top or each.startswith(f"{top}.")]
    return found


def _file_of(name: str, folders: Iterable[Path]) -> Path | None:
    """Find the file of a module of the package that lies in ``folders``."""
    inside = name.split(".")[1:]
    for folder in folders:
        path = folder.joinpath(*inside)
        files = [path / "__init__.py"]
        if inside:
            files += [path.with_name(f"{path.name}.py"), *sorted(path.parent.glob(f"{path.name}.*.so"))]
        for file in files:
            if file.is_file():
                return file.resolve()
    return None


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _imported(path: Path, name: str) -> Iterator[str]:
    """Yield every module that a file may import: for ``from a import b`` both a and a.b."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a module that cannot be imported and whose import is not reached
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
