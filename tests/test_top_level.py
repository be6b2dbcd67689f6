"""The top level of a clone leads to losses and kernels by links, and hides no package of that name."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "PKG-INFO").exists():
    pytest.skip("a source distribution holds no links", allow_module_level=True)

ROOMS = sorted(
    path.name for path in (ROOT / "prefopt" / "kernels").iterdir() if (path / "__init__.py").exists()
)
LINKS = {"losses": "prefopt/losses", **{f"kernels/{room}": f"../prefopt/kernels/{room}" for room in ROOMS}}

STAND_IN = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})

def use_kernel_forward_from_hub(name):
    return lambda owner: owner

def use_kernelized_func(*functions):
    return lambda owner: owner
"""
"""A package ``kernels`` with every name that transformers may import, two of which decorate its classes."""


def test_every_room_has_a_link_that_stays_inside_the_clone() -> None:
    """Relative, so a clone may lie anywhere; whole rooms, so nothing must be linked when a file is added."""
    assert len(ROOMS) == 3
    for name, target in LINKS.items():
        assert os.readlink(ROOT / name) == target
        assert (ROOT / name).resolve().is_dir()
    assert {path.name for path in (ROOT / "kernels").iterdir()} == {*ROOMS, "README.md"}


def test_git_keeps_links_as_links() -> None:
    """In an archive, as in a clone, a link holds the same relative path."""
    command = ["git", "-C", str(ROOT), "archive", "HEAD", "losses", "kernels"]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"needs a git checkout: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        links = {member.name: member.linkname for member in archive if not member.isdir()}
    assert links == {**LINKS, "kernels/README.md": ""}


def python(folder: Path, code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in ``folder`` as ``python -c`` does, which looks for packages there first, then in ``path``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Write the stand-in, as installed in a version that transformers takes."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    site = tmp_path / "site"
    about = site / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text(STAND_IN)
    return site


def test_an_installed_package_is_found_before_the_folder(site: Path) -> None:
    done = python(ROOT, "import kernels; print(kernels.__file__)", site)
    assert done.stdout.strip() == str(site / "kernels" / "__init__.py"), done.stderr


LOADS = """
from transformers import LlamaForCausalLM
from transformers.utils.import_utils import is_kernels_available
import prefopt.policy
print(is_kernels_available())
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_installed", [True, False])
def test_transformers_imports_from_the_top_level(is_installed: bool, site: Path) -> None:
    """With the Hugging Face package it is used; without, the folder is not taken for it."""
    if not is_installed and "kernels" in {d.name for d in distributions()}:
        pytest.skip("needs an environment without the package kernels")
    done = python(ROOT, LOADS, *([site] if is_installed else []))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(is_installed)


@pytest.mark.slow
def test_an_init_file_in_the_folder_would_break_transformers(site: Path, tmp_path: Path) -> None:
    """Why there is none: transformers sees the package's version and imports from the folder."""
    (tmp_path / "clone" / "kernels").mkdir(parents=True)
    (tmp_path / "clone" / "kernels" / "__init__.py").touch()
    done = python(tmp_path / "clone", LOADS, site)
    assert done.returncode != 0 and "cannot import name" in done.stderr
