"""Check that an sdist and wheels hold each file of the package once, and no link of the top level.

python tests/check_dists.py CHECKOUT SDIST WHEEL WHEEL
"""

from __future__ import annotations

import stat
import sys
import tarfile
import zipfile
from pathlib import Path

SCATTERED = ("losses", "kernels")
"""What the top level of a clone links to, and a distribution must not repeat."""


def of_package(root: Path) -> set[str]:
    """Return the files of the package and the recipes, as paths in the checkout."""
    return {
        path.relative_to(root).as_posix()
        for folder in ("prefopt", "recipes")
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def in_sdist(path: str) -> list[str]:
    """Return the paths in an sdist below its top folder."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members), "the sdist holds something that is no plain file"
    return [member.name.partition("/")[2] for member in members]


def in_wheel(path: str) -> list[str]:
    """Return the paths in a wheel, its metadata apart, as paths in the checkout."""
    with zipfile.ZipFile(path) as archive:
        kinds = {entry.external_attr >> 28 for entry in archive.infolist()}
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert kinds <= {0, stat.S_IFREG >> 12}, "the wheel holds something that is no plain file"
    return [name.replace("prefopt/_recipes/", "recipes/") for name in names]


def main(root: str, sdist: str, *wheels: str) -> None:
    expected = of_package(Path(root))
    listings = {sdist: in_sdist(sdist), **{wheel: in_wheel(wheel) for wheel in wheels}}
    for path, names in listings.items():
        assert len(names) == len(set(names)), f"{path} holds a file twice"
        assert not {name for name in names if name.startswith(SCATTERED)}, f"{path} holds the links"
        assert expected <= set(names), f"{path} lacks {sorted(expected - set(names))}"
        assert path == sdist or set(names) == expected, f"{path} adds {sorted(set(names) - expected)}"
    sys.stdout.write(f"sdist and {len(wheels)} wheels: {len(expected)} files of the package, each once\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
