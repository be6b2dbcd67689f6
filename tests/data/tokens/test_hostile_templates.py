"""A template ends within its bounds, whatever it does: of time, of memory, of text, and never beyond its sandbox."""

from __future__ import annotations

import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import pytest
from lanes import slow_but

from prefopt.data.prepare import prepare
from prefopt.data.rows.source import Source
from prefopt.data.tokens import printer, template
from prefopt.errors import DataError, ModelError

FRAME = (
    "{{% for m in messages %}}{{{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}}}{{% endfor %}}"
    "{}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)
ROW = {
    "prompt": [{"role": "user", "content": "what is it"}],
    "chosen": [{"role": "assistant", "content": "a fox"}],
    "rejected": [{"role": "assistant", "content": "a car"}],
}
TIME = r"needs more than \S+ s of processor time for this row"
TEXT = "prints far more text than this row holds"
MEMORY = f"(needs more than 1 GiB of memory for this row|{TIME}|{TEXT})"  # which bound comes first is the machine's
CHANGE = "prints this row otherwise each time"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x OP ns.x %}{% endfor %}"

BEYOND = {
    # what the template does besides printing the turns, and what is said of it
    "loops": ("{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}", TIME),
    "loops without calls": (
        "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
        TIME,
    ),
    "power": ("{% set x = 7 ** 99999999 %}", TIME),
    "factors": (
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        TIME,
    ),
    "lorem": ("{% set x = lipsum(n=9999999) %}", TIME),
    "repeated": ("{{ 'x' * 400000000 }}", MEMORY),
    "repeated at compile": ("{{ 'x' * 99999999999 }}", MEMORY),
    "width": ("{{ '%1000000000d' % 1 }}", MEMORY),
    "format": ("{{ '{:>1000000000}'.format(1) }}", MEMORY),
    "centre": ("{{ 'x'.center(3000000000) }}", MEMORY),
    "replaced": ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", MEMORY),
    "list": ("{% set x = [1] * 9999999999 %}", MEMORY),
    "joined": (DOUBLE.replace("OP", "~"), MEMORY),
    "added": (DOUBLE.replace("OP", "+"), MEMORY),
    "flood": ("{% for i in range(99999) %}{{ messages[0].content * 9 }}{% endfor %}", TEXT),
    "chance": ("{{ range(99999) | random }}", CHANGE),
}


def prepared(text: str, make_tokenizer: Any, **settings: Any) -> Any:
    rows = [ROW] * settings.pop("rows", 1)
    return prepare([Source("mine", rows=rows)], make_tokenizer(template=text), **settings)


@pytest.mark.parametrize(("what", "why"), slow_but(("list", "flood", "chance"), BEYOND))
def test_a_template_beyond_all_measure_is_refused_with_its_row(
    what: str, why: str, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    started = time.process_time()
    with pytest.raises(ModelError) as caught:
        prepared(FRAME.format(what), make_tokenizer)
    assert re.match(f"mine:1: the chat template {why}", str(caught.value)), caught.value
    assert str(caught.value).endswith("Repair model.chat_template, or take the row out.")
    assert time.process_time() - started < 1, "the work was done in this process"


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give less time, which the process inherits; the bound itself is of use to users alone."""
    monkeypatch.setattr(printer, "MANY_SECONDS", 0.2)
    monkeypatch.setattr(template, "ONE_SECONDS", 0.4)
    monkeypatch.setattr(printer, "ONE_SECONDS", 0.4)


REFUSED = {
    # the row is bad, with the reason of the sandbox
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch hacked').read() }}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "digits": "{{ 9 ** 9999 }}",
    "changes the row": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("what", slow_but(("classes", "range", "changes the row"), REFUSED))
def test_a_template_that_leaves_its_sandbox_makes_the_row_bad(
    what: str, make_tokenizer: Any, in_tmp: Path
) -> None:
    report = prepared(FRAME.format(what), make_tokenizer).report
    (bad,) = report.bad
    assert bad.origin == "mine:1"
    assert bad.why.startswith("the chat template refuses it (")
    assert not list(in_tmp.glob("hacked"))


def test_the_row_that_a_template_hangs_on_is_named(
    make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows before it are printed; the third, in the midst of a call for many, is the one that hangs."""
    _hurry(monkeypatch)
    hang = "{% if messages[0].content == 'hang' %}" + BEYOND["loops"][0] + "{% endif %}"
    rows = [ROW, ROW, {**ROW, "prompt": [{"role": "user", "content": "hang"}]}, ROW]
    with pytest.raises(ModelError, match=r"^mine:3: the chat template needs more than"):
        prepare([Source("mine", rows=rows)], make_tokenizer(template=FRAME.format(hang)))


def test_a_template_that_prints_the_date_is_noted_with_the_day(make_tokenizer: Any) -> None:
    report = prepared(FRAME.format("{{ strftime_now('%Y') }}"), make_tokenizer).report
    assert any("prints the date, in these rows 2" in note for note in report.notes)


def test_the_process_of_a_template_ends_with_the_preparation(make_tokenizer: Any) -> None:
    prepared(FRAME.format(""), make_tokenizer, rows=3)
    with pytest.raises(DataError):
        prepare([Source("mine", rows=[{**ROW, "weight": 1}])], make_tokenizer(template=None))
    assert not [child for child in multiprocessing.active_children() if child.name == "prefopt-template"]
