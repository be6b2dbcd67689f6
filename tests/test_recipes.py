"""Every recipe of the folder trains, on a small model and rows of the shape that its data set has on the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
import yaml

from prefopt.verbs import train

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
RNG = np.random.default_rng(0)


def text() -> str:
    return " ".join(RNG.choice(toy.WORDS, size=RNG.integers(2, 9)))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def binarized() -> dict[str, Any]:
    """Build a row of HuggingFaceH4/ultrafeedback_binarized: both sides hold the whole conversation."""
    prompt, good, bad = text(), text(), text()
    return {
        "prompt": prompt,
        "prompt_id": "0" * 64,
        "chosen": [turn("user", prompt), turn("assistant", good)],
        "rejected": [turn("user", prompt), turn("assistant", bad)],
        "messages": [turn("user", prompt), turn("assistant", good)],
        "score_chosen": 8.5,
        "score_rejected": 7.0,
    }


def kto_mix() -> dict[str, Any]:
    """Build a row of trl-lib/kto-mix-14k."""
    return {
        "prompt": [turn("user", text())],
        "completion": [turn("assistant", text())],
        "label": bool(RNG.integers(2)),
    }


def ultrafeedback() -> dict[str, Any]:
    """Build a row of openbmb/UltraFeedback: four models' answers with an overall score and finer ones."""
    names = ["alpaca-7b", "falcon-40b-instruct", "gpt-4", "llama-2-13b-chat"]
    rating = {"Rating": "4", "Rationale": "Clear."}
    answers = [
        {
            "annotations": dict.fromkeys(["helpfulness", "honesty", "truthfulness"], rating),
            "custom_system_prompt": "Be helpful.",
            "model": name,
            "principle": "helpfulness",
            "response": text(),
            "critique": "Shorter would be better.",
            "overall_score": float(RNG.integers(1, 11)),
            "fine-grained_score": 4.25,
        }
        for name in names
    ]
    return {
        "source": "evol_instruct",
        "instruction": text(),
        "models": names,
        "completions": answers,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": binarized,
    "trl-lib/kto-mix-14k": kto_mix,
    "openbmb/UltraFeedback": ultrafeedback,
}
ON_THE_HUB = [path for path in RECIPES if not path.stem.startswith("quickstart")]


@pytest.mark.parametrize("path", ON_THE_HUB, ids=lambda path: path.stem)
def test_trains_two_steps_and_evaluates(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, rows and sizes stand in; loss, reference, layout and optimizer are the recipe's."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = recipe["data"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(ROWS[source["path"]]()) + "\n" for _ in range(32)))
    toy.save_model(tmp_path / "model")
    source = {key: value for key, value in source.items() if key == "layout"} | {"path": str(rows)}
    held_out = {"split": 0.25} if "split" in recipe["eval"] else {"data": source}
    small = {
        "output": str(tmp_path / "run"),
        "model.path": str(tmp_path / "model"),
        "data": source,
        "eval": {**held_out, "every": 2},
        "batch.pairs_per_step": 8,
        "batch.tokens_per_batch": 200,
        "optim.warmup": 1,
        "train": {"steps": 2},
    }
    train.run(path, [f"{key}={json.dumps(value)}" for key, value in small.items()])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == [1, 2]
    assert any(name.startswith("eval/") for line in lines for name in line)
    assert all(math.isfinite(value) for line in lines for value in line.values())
