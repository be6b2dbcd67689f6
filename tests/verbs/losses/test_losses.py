"""The verb ``losses``: legible on a narrow terminal, and the same numbers with plotext and without."""

from __future__ import annotations

import re
import sys

import pytest

from prefopt.losses import LOSSES, TRANSFORMS, contract_of
from prefopt.verbs import losses


def test_the_list_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence wraps into two lines, a remark is one more: under three lines for each of 76 entries."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    losses.run()
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 3 * (len(LOSSES) + len(TRANSFORMS))
    assert {*LOSSES, *TRANSFORMS, "mixed"} <= {line.split(" ")[0] for line in lines}
    words = " ".join(" ".join(lines).split())
    assert contract_of(LOSSES["simpo"]).summary in words
    assert "without a reference; needs [mean_chosen_length]" in words


def test_without_plotext_it_prints_the_numbers_and_how_to_get_the_drawing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DPO at beta 0.1: log 2 and slope -0.05 at margin 0, 10 nats and slope -0.1 at -100 nats."""
    monkeypatch.setitem(sys.modules, "plotext", None)
    losses.run("dpo")
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["margin", "loss", "slope"] in rows
    assert ["0", "0.6931", "-0.05"] in rows
    assert ["-100", "10", "-0.1"] in rows
    assert "To have this drawn: pip install 'prefopt[plot]'" in out


def test_with_plotext_it_draws(capsys: pytest.CaptureFixture[str]) -> None:
    losses.run("dpo")
    out = capsys.readouterr().out
    assert "prefopt[plot]" not in out and "⠤" in out


def test_an_answer_has_two_curves_where_it_is_labelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    losses.run("apo_zero_unpaired")
    out = capsys.readouterr().out
    assert "loss desirable" in out and "slope undesirable" in out
