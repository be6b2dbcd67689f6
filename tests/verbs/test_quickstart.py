"""The quickstart: both recipes run, and DPO beats the supervised model on held-out prompts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from prefopt import demo
from prefopt.errors import RecipeError
from prefopt.recipe import load_recipe
from prefopt.verbs import quickstart


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, quickstart.Outcome, quickstart.Outcome, str]:
    """Run the quickstart at half its batch, some 20 seconds."""
    folder = tmp_path_factory.mktemp("quickstart")
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(folder / "cache"))
        before, after = quickstart.run(
            folder / "run", ["batch.pairs_per_step=32"], Console(file=screen, width=110)
        )
    return folder / "run", before, after, screen.getvalue()


def test_dpo_beats_supervised_training_on_held_out_prompts(
    finished: tuple[Path, quickstart.Outcome, quickstart.Outcome, str],
) -> None:
    """Seeds 0, 1, 2 gave 0.62, 0.61, 0.62 right answers after SFT and 0.78, 0.91, 0.85 after DPO.

    Each bound leaves about half of the smallest gain seen: 0.16 in accuracy, 0.09 in ranking, 2.8 nats.
    """
    _, before, after, _ = finished
    assert 0.4 < before.accuracy < 0.75
    assert after.accuracy > before.accuracy + 0.08
    assert after.ranking > before.ranking + 0.04
    assert after.margin > before.margin + 1.4


def test_answers_keep_their_length(
    finished: tuple[Path, quickstart.Outcome, quickstart.Outcome, str],
) -> None:
    """Right answers have 5.5 letters on average; 0.08 more or less was seen, 0.25 would be a letter in four answers."""
    _, before, after, _ = finished
    rows = demo.rows("builtin:sort", "test")
    right = sum(len(demo.right_answer(row["prompt"][0]["content"])) for row in rows) / len(rows)
    assert before.length == pytest.approx(right, abs=0.25)
    assert after.length == pytest.approx(right, abs=0.25)


def test_the_table_shows_both_and_two_answers_that_dpo_mended(
    finished: tuple[Path, quickstart.Outcome, quickstart.Outcome, str],
) -> None:
    _, before, after, screen = finished
    assert "256 held-out prompts" in screen
    for outcome in (before, after):
        assert f"{outcome.accuracy:.1%}" in screen
        assert f"{outcome.margin:.2f}" in screen
    samples = [line.split("│") for line in screen.splitlines() if "│ sort " in line]
    assert len(samples) == 2
    for _, prompt, first, second, right, _ in samples:
        assert second.strip() == right.strip() == demo.right_answer(prompt.strip())
        assert first.strip() == before.answers[prompt.strip()] != right.strip()


def test_a_finished_quickstart_prints_its_table_again_without_training(
    finished: tuple[Path, quickstart.Outcome, quickstart.Outcome, str],
) -> None:
    folder, before, after, _ = finished
    lines = (folder / "dpo" / "metrics.jsonl").read_text(encoding="utf-8")
    screen = Console(file=io.StringIO())
    assert quickstart.run(folder, ["batch.pairs_per_step=32"], screen) == (before, after)
    assert (folder / "dpo" / "metrics.jsonl").read_text(encoding="utf-8") == lines


@pytest.mark.parametrize("name", ["quickstart_sft", "quickstart"])
def test_recipes_that_ship_are_found_and_load(name: str) -> None:
    recipe = load_recipe(quickstart.recipe_file(name))
    assert recipe.output.startswith("runs/quickstart/")


def test_a_missing_recipe_is_one_clear_line() -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: the recipe is missing from this installation"):
        quickstart.recipe_file("nowhere")
