"""Names of code of one's own: what they lead to, what each mistake says, and what the digest covers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.errors import NonFiniteError, OwnCodeError, RecipeError
from prefopt.plugins import Code, Kind, blamed, find, installed

KIND = Kind("loss", {"ours": len}, "prefopt.losses", taken=("mixed",))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the current one and that modules are imported from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def code_of(name: str) -> Code:
    found = find(KIND, name, "loss.name")
    assert found is not None and found.code is not None
    return found.code


def value_of(name: str, folder: Path = Path()) -> object:
    found = find(KIND, name, "loss.name", folder)
    assert found is not None
    return found.value


def test_the_table_a_file_and_a_module(folder: Path) -> None:
    """A file is looked for from the folder that is given, and its whole path is what a resolved recipe says."""
    write(folder / "lib" / "mine.py", "def one(): return 1\n")
    write(folder / "pkg" / "__init__.py", "")
    write(folder / "pkg" / "sub.py", "def two(): return 2\n")
    assert value_of("ours") is len and find(KIND, "nothing", "loss.name") is None
    found = find(KIND, "mine.py:one", "loss.name", folder / "lib")
    assert found is not None and found.value() == 1
    assert found.name == f"{folder / 'lib' / 'mine.py'}:one" and found.short == "mine.py:one"
    assert value_of(found.name)() == 1  # type: ignore[operator]
    assert value_of("pkg.sub:two")() == 2  # type: ignore[operator]


def test_a_file_that_changed_is_read_anew_and_one_that_did_not_is_not(folder: Path) -> None:
    """Though size and time of change are the same, which compiled copies go by."""
    write(folder / "mine.py", "def one(): return 1\n")
    first = value_of("mine.py:one")
    assert value_of("mine.py:one") is first
    write(folder / "mine.py", "def one(): return 2\n")
    assert value_of("mine.py:one")() == 2  # type: ignore[operator]
    assert not (folder / "__pycache__").exists()


def test_a_dataclass_in_a_file_finds_its_module(folder: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    write(folder / "mine.py", text + "def one(): return A(1)\n")
    assert value_of("mine.py:one")().x == 1  # type: ignore[operator]


REFUSED = {
    "mine.py:": "'mine.py:' names no loss. Write my_package",
    ":f": "':f' names no loss",
    "a/b:f": "'a/b:f' names no loss",
    "gone.py:f": "there is no file gone.py. Write the path from the folder of the recipe",
    "gone.sub:f": "there is no module 'gone'. Install the package, or put",
    "mine.sub:f": "there is no module 'mine.sub'",
    "beside:f": "there is no module 'beside'. Write beside.py:f for the file there. Install",
    "mine.py:onne": "mine.py holds no 'onne'. Did you mean 'one'? Name a function",
    "mine:onne": "mine holds no 'onne'. Did you mean 'one'?",
    "mine.py:NUMBER": "'NUMBER' of mine.py is of type int. Name a function",
    "mine.py:Class": "'Class' of mine.py is a class. Name a function",
    "json:dumps": "json:dumps comes with prefopt or Python",
    "prefopt.losses:dpo": "prefopt.losses:dpo comes with prefopt or Python",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_leads_to_no_function_is_refused_in_one_line(name: str, folder: Path) -> None:
    write(folder / "mine.py", "NUMBER = 3\nclass Class: pass\ndef one(): return 1\n")
    write(folder / "recipes" / "beside.py", "def f(): pass\n")
    with pytest.raises(RecipeError) as caught:
        find(KIND, name, "loss.name", folder / "recipes" if name == "beside:f" else folder)
    assert not isinstance(caught.value, OwnCodeError)
    assert str(caught.value).startswith(f"loss.name: {REFUSED[name]}") and "\n" not in str(caught.value)


RAISING = {
    "import os\ndef f(:\n": "SyntaxError: invalid syntax, at mine.py:2",
    "\nimport nowhere\n": "ModuleNotFoundError: No module named 'nowhere', at mine.py:2",
    "def g():\n    1 / 0\ng()\n": "ZeroDivisionError: division by zero, at mine.py:2",
    "import sys\nsys.exit(3)\n": "SystemExit: 3, at mine.py:2",
    "raise ValueError('a\\nb')\n": "ValueError: a b, at mine.py:1",
}


@pytest.mark.parametrize("name", ["mine.py:f", "mine:f"])
@pytest.mark.parametrize("text", RAISING)
def test_code_that_raises_when_imported_is_told_by_its_own_line(text: str, name: str, folder: Path) -> None:
    write(folder / "mine.py", text)
    before = set(sys.modules)
    with pytest.raises(OwnCodeError) as caught:
        find(KIND, name, "loss.name")
    assert str(caught.value) == f"loss.name: importing {name} raised {RAISING[text]}."
    assert caught.value.__cause__ is not None and caught.value.exit_code == 2
    assert not [each for each in set(sys.modules) - before if "mine" in each or "prefopt_own" in each]


def test_a_file_that_imports_one_beside_it_is_told_to_be_a_package(folder: Path) -> None:
    write(folder / "code" / "mine.py", "import helpers\n")
    write(folder / "code" / "helpers.py", "")
    said = r"No module named 'helpers', at code/mine.py:1\. A file is imported alone, .* write module:function\.$"
    with pytest.raises(OwnCodeError, match=said):
        find(KIND, "code/mine.py:f", "loss.name")


def test_what_raises_inside_the_block_is_named_where_the_code_is_ones_own(folder: Path) -> None:
    """The line of the innermost frame in the file, whoever raised below it; what does not pass through it passes."""
    write(folder / "mine.py", "import json\ndef f():\n    json.loads('{')\n")
    code = code_of("mine.py:f")
    said = r"^loss.name: mine.py:f raised JSONDecodeError: .*, at mine.py:3\.$"
    with pytest.raises(OwnCodeError, match=said), blamed([code]):
        value_of("mine.py:f")()  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError), blamed([code]):
        _ = 1 / 0
    with pytest.raises(RecipeError, match=r"^as it is$"), blamed([code]):
        raise RecipeError("as it is")
    said = r"not finite\. The recipe names code of your own: mine.py:f\."
    with pytest.raises(NonFiniteError, match=said), blamed([code]):
        raise NonFiniteError("not finite.")
    with pytest.raises(NonFiniteError, match=r"^not finite\.$"), blamed([]):
        raise NonFiniteError("not finite.")


PACKAGE = {
    "__init__.py": "",
    "losses.py": "from pkg import helpers\ndef f():\n    from . import late, never\n",
    "helpers.py": "import pkg.sub.deep as deep\n",
    "late.py": "",
    "sub/__init__.py": "",
    "sub/deep.py": "from ..peer import x\n",
    "peer.py": "x = 1\n",
    "unused.py": "import json\n",
    "never.py": "print 'of another age'\n",
}
COVERED = ("__init__", "losses", "helpers", "late", "never", "sub/__init__", "sub/deep", "peer")


@pytest.mark.parametrize("name", sorted(PACKAGE))
def test_the_digest_of_a_package_covers_what_the_module_imports_of_it(name: str, folder: Path) -> None:
    """At any remove, also in functions and relatively; a file that it does not import changes nothing."""
    for each, text in PACKAGE.items():
        write(folder / "pkg" / each, text)
    first = code_of("pkg.losses:f")
    assert {str(p.relative_to(folder / "pkg").with_suffix("")) for p in first.files} == set(COVERED)
    write(folder / "pkg" / name, PACKAGE[name] + "# changed\n")
    if name == "unused.py":
        assert code_of("pkg.losses:f").digest == first.digest
        return
    with pytest.raises(RecipeError, match=r"pkg.losses:f has changed on disk since .*Start a new process\.$"):
        code_of("pkg.losses:f")


def test_the_digest_follows_a_function_to_where_it_is_defined(folder: Path) -> None:
    write(folder / "front.py", "from back import f\n")
    write(folder / "back.py", "def f(): pass\n")
    assert [path.name for path in code_of("front:f").files] == ["front.py", "back.py"]


def test_a_link_keeps_its_name_and_its_errors_are_found(folder: Path) -> None:
    write(folder / "real.py", "def f():\n    1 / 0\n")
    (folder / "link.py").symlink_to(folder / "real.py")
    code = code_of("link.py:f")
    assert (code.name, code.digest) == ("link.py:f", code_of("real.py:f").digest)
    with (
        pytest.raises(OwnCodeError, match=r"link.py:f raised ZeroDivisionError: .*, at link.py:2\.$"),
        blamed([code]),
    ):
        value_of("link.py:f")()  # type: ignore[operator]


def test_the_digest_does_not_depend_on_where_files_lie(folder: Path) -> None:
    for each in ("a", "b"):
        write(folder / each / "mine.py", "def f(): pass\n")
    assert code_of("a/mine.py:f").digest == code_of("b/mine.py:f").digest


def install(folder: Path, package: str, **names: str) -> None:
    """Lay down what an installed package leaves of itself, with entry points."""
    lines = [f"{name} = {value}" for name, value in names.items()]
    write(
        folder / f"{package}-1.0.dist-info" / "METADATA",
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
    )
    write(
        folder / f"{package}-1.0.dist-info" / "entry_points.txt", "\n".join(["[prefopt.losses]", *lines, ""])
    )


def test_installed_packages_add_names_and_are_imported_when_one_is_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = folder / "site"
    install(site, "theirs", new="theirs.losses:f")
    write(site / "theirs" / "__init__.py", "")
    write(site / "theirs" / "losses.py", "def f(): return 'theirs'\n")
    monkeypatch.syspath_prepend(str(site))
    assert list(installed(KIND)) == ["new"] and "theirs" not in sys.modules
    found = find(KIND, "new", "loss.name")
    assert found is not None and found.value() == "theirs"
    assert found.name == found.short == "new" and found.code is not None
    assert [path.name for path in found.code.files] == ["losses.py", "__init__.py"]


def test_a_disputed_name_is_refused_and_never_shadows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder / "site", "theirs", ours="theirs.losses:f", mixed="theirs.losses:f", new="theirs.losses:f")
    install(folder / "site", "others", new="others:g", odd="no function")
    monkeypatch.syspath_prepend(str(folder / "site"))
    for name, givers in {
        "ours": r"prefopt and theirs \(theirs.losses:f\)",
        "mixed": r"prefopt and theirs \(theirs.losses:f\)",
        "new": r"(theirs|others) \(.*\) and (theirs|others) \(.*\)",
    }.items():
        with pytest.raises(RecipeError, match=rf"^loss.name: '{name}' is given by {givers}\. Uninstall one"):
            find(KIND, name, "loss.name")
    with pytest.raises(RecipeError, match=r"'odd' is given as 'no function', which is not module:function\."):
        find(KIND, "odd", "loss.name")
