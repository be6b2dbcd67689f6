"""What rows, templates and settings hold reaches a terminal as text, never as a command to it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import toy
from lanes import slow_but
from rich.text import Text

from prefopt.cli import main
from prefopt.data.rows.raw_rows import BadRow
from prefopt.verbs.progress import Display, PlainConsole, PlainFormatter

TITLE = "\x1b]0;pwn\x07"
SAFE = r"\x1b]0;pwn\x07"
TALK = "你好 é 🙂"


def assert_plain(said: str) -> None:
    """A line holds the text of the attack and nothing that a terminal obeys."""
    assert SAFE.removesuffix(r"\x07") in said, said  # bells are taken out by rich
    assert not set(said) & set("\x1b\x07\x9b\u202e\r"), ascii(said)


def test_lines_and_styled_texts_of_a_console_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(soft_wrap=True, highlight=False)
    console.print(f"a {TITLE} {TALK}", markup=False)
    console.print(Text(f"b {TITLE} {TALK}", style="bold"))
    console.rule(Text(f"c {TITLE}"))
    display = Display(3, what=f"step {TITLE}")
    display.say(f"d {TITLE} {TALK}")
    display.advance(3, f"e {TITLE}")
    out, err = capsys.readouterr()
    for line in [*out.splitlines(), *err.splitlines()]:
        assert_plain(line)
    assert out.count(TALK) == 2
    assert err.count(TALK) == 1


def test_a_logged_warning_is_plain() -> None:
    record = logging.LogRecord("prefopt.x", logging.WARNING, "f.py", 1, "%s: gone", (TITLE,), None)
    assert_plain(PlainFormatter().format(record))
    handlers = logging.getLogger("prefopt").handlers
    assert any(isinstance(handler.formatter, PlainFormatter) for handler in handlers)


def test_a_bad_row_is_described_on_one_plain_line() -> None:
    line = BadRow(f"{TITLE}.jsonl:1", f"a\nb{TITLE}", f"why \x9b31m\u202e\r{TALK}", "").describe()
    assert_plain(line)
    assert line == rf"{SAFE}.jsonl:1: a\nb{SAFE}: why \x9b31m\u202e\r{TALK}"


TWICE = '{"KEY": 1, "KEY": 2, "prompt": "a", "chosen": "b", "rejected": "c"}'.replace(
    "KEY", json.dumps(TITLE)[1:-1]
)
ATTACKS = {
    # a row, and settings
    "key twice": (TWICE, []),
    "column": (json.dumps({TITLE: 1, "chosen": "b"}), []),
    "cell": (json.dumps({"prompt": "a", "chosen": TITLE, "rejected": 3}), []),
    "role": (json.dumps({"prompt": [{"role": TITLE, "content": "x"}], "chosen": "a", "rejected": "b"}), []),
    "setting": ("{}", [f"loss.name={TITLE}"]),
    "key of a setting": ("{}", [f"{TITLE}=1"]),
    "path": ("{}", [f"data.0.path={TITLE}.jsonl"]),
    "template": (
        json.dumps({"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"}),
        [r"model.chat_template={{ raise_exception('\x1b]0;pwn\x07\x9b\u202e') }}"],
    ),
    "template that does not compile": (
        json.dumps({"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"}),
        ["model.chat_template={% " + TITLE + " %}"],
    ),
}


@pytest.mark.parametrize(("row", "settings"), slow_but(("key twice", "column", "template"), ATTACKS))
def test_an_error_of_the_command_line_is_plain(
    row: str, settings: list[str], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy.recipe(in_tmp)
    (in_tmp / "rows.jsonl").write_text(row + "\n")
    capsys.readouterr()  # what was said of the model that the recipe names
    assert main(["check", *arguments, *settings]) in (2, 3)
    out, err = capsys.readouterr()
    for said in (out, err):
        assert not set(said) & set("\x1b\x07\x9b\u202e\r"), ascii(said)
