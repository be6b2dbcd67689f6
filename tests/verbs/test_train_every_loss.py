"""Every loss of the table trains five steps from a recipe, on rows of the structure that it asks for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lanes import slow_but

from prefopt.losses import LOSSES, contract_of
from prefopt.verbs import train

WORDS = ("red", "blue", "green", "grey")


def pair(number: int) -> dict[str, Any]:
    """Give every column that a loss over pairs may ask for."""
    word, other = WORDS[number % 4], WORDS[(number + 1) % 4]
    return {
        "prompt": f"Item {number} is",
        "chosen": f" {word} all over.",
        "rejected": f" {other}!",
        "chosen_score": 1.0 - 0.05 * (number % 7),
        "rejected_score": 0.3 + 0.02 * (number % 5),
        "margin": 1.0 + number % 3,
        "soft_label": 0.6 + 0.1 * (number % 4),
        "gold": f" {word}, for sure.",
        "rationale": f"It was painted {word}.",
        "prompt_embedding": [1.0, math.sin(number), math.cos(number)],
    }


def ranked(number: int) -> dict[str, Any]:
    count = 3 + number % 2
    answers = [f" {word}." for word in WORDS[:count]]
    return {
        "prompt": f"Item {number} is",
        "responses": answers,
        "scores": [(at + number) % count for at in range(count)],
    }


def labelled(number: int) -> dict[str, Any]:
    return {"prompt": f"Item {number} is", "completion": f" {WORDS[number % 4]}.", "label": number % 3 > 0}


def contrast(number: int) -> dict[str, Any]:
    word = WORDS[number % 4]
    return {
        "chosen_prompt": f"Say {word}:",
        "rejected_prompt": f"Never say {word}:",
        "completion": f" {word}",
    }


def two_prompts(number: int) -> dict[str, Any]:
    row = pair(number)
    return {
        "chosen_prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected_prompt": f"Thing {number} may be",
        "rejected": row["rejected"],
    }


BY_DEFAULT = ("dpo", "sft", "kto", "plackett_luce", "joint_prompt", "prompt_contrast", "beta_dynamic")
"""One loss for each kind of row, and one that carries values from step to step."""


def rows_for(name: str) -> Any:
    by_name = {"joint_prompt": two_prompts, "prompt_contrast": contrast}
    by_structure = {"pairs": pair, "responses": pair, "lists": ranked, "labelled": labelled}
    return by_name.get(name) or by_structure[contract_of(LOSSES[name]).structure]


@pytest.mark.parametrize("name", slow_but(BY_DEFAULT, [*LOSSES]))
def test_trains_five_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logged numbers are finite and the trained weights are no longer those of the start."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    row = rows_for(name)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row(number)) + "\n" for number in range(24)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'run'}\nmodel: {{path: builtin:tiny}}\ndata: {{path: {data}}}\n"
        f"loss: {{name: {name}}}\nbatch: {{pairs_per_step: 4, tokens_per_batch: 400, max_tokens: 300}}\n"
        "optim: {lr: 1.0e-3, warmup: 0}\ntrain: {steps: 5, save_every: null}\n"
    )
    train.run(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert any(line["grad_norm"] > 0 for line in lines)
