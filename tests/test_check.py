"""The verb ``check`` says everything about a run before it starts, and trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy

from prefopt.cli import main


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def test_everything_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = toy.recipe(tmp_path, eval="{split: 0.2}")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"prompt": [{"role": "user", "content": "w1"}], "chosen": 3, "rejected": "w2"}\n')
    assert main(["check", *arguments, "rows.max_bad=1"]) == 0
    out = capsys.readouterr().out
    assert "beta: 0.1" in out and "warmup: 0.2" in out  # the resolved recipe, defaults too
    assert "loss dpo(beta=0.1, label_smoothing=0.0)" in out
    assert f"{tmp_path / 'rows.jsonl'}:41" in out  # the bad row by line
    assert "chosen, " in out and "⟦" in out  # an example with its scored tokens marked
    assert "sharing ratio 1." in out and "of the tokens saved" in out
    assert "6 optimizer steps of 8 pairs" in out
    assert "prompt + longest answer" in out
    assert not (tmp_path / "run").exists()


def test_the_example_shows_exactly_the_scored_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy.recipe(tmp_path)
    row = '{"prompt": "w1 w2", "chosen": " w3 w4", "rejected": " w5"}\n'
    (tmp_path / "rows.jsonl").write_text(row)
    assert main(["check", *arguments]) == 0
    out = capsys.readouterr().out
    assert "chosen, 3 scored tokens: ⟦w3·w4·<end>⟧" in out
    assert "rejected, 2 scored tokens: ⟦w5·<end>⟧" in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__beta": "x"}, "loss.beta"),
        ({"model__path": "/nowhere"}, "model.path"),
        ({"rows__max_bad": "0"}, "bad"),
    ],
    ids=str,
)
def test_what_train_would_refuse_is_refused(
    changes: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy.recipe(tmp_path, **changes)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{not json\n")
    assert main(["check", *arguments]) in (2, 3)
    assert words in capsys.readouterr().err
