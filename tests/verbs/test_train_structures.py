"""Every structure of rows trains from a recipe, and the wrong one is refused in one line before training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F

from prefopt.cli import main
from prefopt.losses import LOSSES, dpo
from prefopt.types import LabelledLogps, LossOutput, PairLogps, Range, Roles
from prefopt.verbs import train

WORDS = ("red", "blue", "green", "grey")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def by_sides(
    policy: Annotated[LabelledLogps, Roles("kl")],
    reference: LabelledLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay -log sigmoid of the reward or of its opposite, and report the drift on mismatched answers."""
    reward = beta * (policy.answers.total - reference.answers.total)
    drift = (policy.others["kl"].total - reference.others["kl"].total).detach().mean()
    loss = -F.logsigmoid(torch.where(policy.is_desirable, reward, -reward))
    return LossOutput(loss, chosen_reward=reward.detach(), metrics={"drift": drift.expand(len(policy))})


def by_embedding(policy: PairLogps, reference: PairLogps, *, prompt_embedding: torch.Tensor) -> LossOutput:
    """Pay the DPO loss, and report the length of each prompt's embedding."""
    output = dpo(policy, reference)
    return replace(output, metrics={"norm": prompt_embedding.norm(dim=1)})


def pair(number: int) -> dict[str, Any]:
    word, other = WORDS[number % 4], WORDS[(number + 1) % 4]
    return {"prompt": f"Item {number} is", "chosen": f" {word}.", "rejected": f" {other}!"}


def ranked(number: int) -> dict[str, Any]:
    """Three or four scored answers, so that groups differ in size."""
    count = 3 + number % 2
    return {
        "prompt": f"Item {number} is",
        "responses": [f" {word}." for word in WORDS[:count]],
        "scores": [(at + number) % count for at in range(count)],
    }


def labelled(number: int) -> dict[str, Any]:
    return {"prompt": f"Item {number} is", "completion": f" {WORDS[number % 4]}.", "label": number % 3 > 0}


def two_prompts(number: int) -> dict[str, Any]:
    row = pair(number)
    return {
        "chosen_prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected_prompt": f"Thing {number} may be",
        "rejected": row["rejected"],
    }


def contrast(number: int) -> dict[str, Any]:
    word = WORDS[number % 4]
    return {
        "chosen_prompt": f"Say {word}:",
        "rejected_prompt": f"Do not say {word}:",
        "completion": f" {word}",
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, loss: str, **extra: str) -> Path:
    path = folder / "recipe.yaml"
    lines = {
        "output": str(folder / "run"),
        "model": "{path: builtin:tiny}",
        "data": f"{{path: {folder / 'rows.jsonl'}}}",
        "loss": loss,
        "batch": "{pairs_per_step: 4, tokens_per_batch: 400, max_tokens: 300}",
        # eps of the size of small gradients: no step turns the rounding of one near zero into a learning rate
        "optim": "{lr: 3.0e-3, warmup: 0, eps: 1.0e-4}",
        "train": "{steps: 5}",
    }
    path.write_text("".join(f"{key}: {value}\n" for key, value in (lines | extra).items()))
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


CASES: dict[str, tuple[str, Any, str, float | None]] = {
    # loss, row of a number, what a unit is called, loss before the first step where the reference is the policy
    "lists": ("{name: plackett_luce}", ranked, "groups", None),
    "lists without a reference": ("{name: pro_rank}", ranked, "groups", None),
    "lists of two": (
        "{name: tree}",
        lambda n: {**pair(n), "chosen_score": 1, "rejected_score": 0},
        "groups",
        math.log(2) * (1 / math.log(2) - 1 / math.log(3)),
    ),
    "labelled": ("{name: by_sides}", labelled, "answers", math.log(2)),
    "divergence": ("{name: pmpo}", labelled, "answers", None),
    "pairs taken apart": ("{name: by_sides}", pair, "answers", math.log(2)),
    "drift": ("{name: kto}", labelled, "answers", 0.5),
    "labels without drift": ("{name: apo_zero_unpaired}", labelled, "answers", 0.5),
    "labels around a mean": ("{name: bco_unpaired}", labelled, "answers", math.log(2)),
    "quantiles of pairs": ("{name: aot}", pair, "pairs", math.log(2)),
    "quantiles of pairs taken apart": ("{name: aot_unpaired}", pair, "answers", math.log(2)),
    "every pair of answers": ("{name: relative, weighting: diagonal}", pair, "pairs", math.log(2)),
    "near prompts": (
        "{name: relative}",
        lambda n: {**pair(n), "prompt_embedding": [1.0, n]},
        "pairs",
        math.log(2),
    ),
    "gold": ("{name: triple}", lambda n: {**pair(n), "reference": " black."}, "pairs", None),
    "rationale": ("{name: rationale}", lambda n: {**pair(n), "rationale": "It shines."}, "pairs", None),
    "two prompts": ("{name: joint_prompt}", two_prompts, "pairs", math.log(2)),
    "one answer, two prompts": ("{name: prompt_contrast}", contrast, "pairs", math.log(2)),
    "soft labels": ("{name: soft_label}", lambda n: {**pair(n), "soft_label": 0.9}, "pairs", math.log(2)),
    "embeddings": (
        "{name: by_embedding}",
        lambda n: {**pair(n), "prompt_embedding": [3, 4]},
        "pairs",
        math.log(2),
    ),
}


@pytest.fixture(autouse=True)
def _losses_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "by_sides", by_sides)
    monkeypatch.setitem(LOSSES, "by_embedding", by_embedding)


@pytest.mark.parametrize(("loss", "row", "unit", "start"), CASES.values(), ids=CASES.keys())
def test_five_steps(loss: str, row: Any, unit: str, start: float | None, tmp_path: Path) -> None:
    write(tmp_path, [row(number) for number in range(16)])
    final = train.run(recipe(tmp_path, loss, eval="{split: 0.25, every: 5}"))
    assert (final / "model.safetensors").exists()
    lines = metrics(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert all(unit in line and f"{unit}_per_second" in line for line in steps)
    assert steps[0][unit] == 4
    assert math.isfinite(lines[-1]["eval/loss"])
    if start is not None:
        assert steps[0]["loss"] == pytest.approx(start, abs=1e-5)  # float32
        assert steps[-1]["loss"] != pytest.approx(start, abs=1e-5)


def test_the_lists_order_is_learned(tmp_path: Path) -> None:
    """Always the same order of the same answers: it is right in every list after 40 steps."""
    rows = [{"prompt": f"{n}:", "responses": ["a", "b", "c"], "scores": [1, 3, 2]} for n in range(8)]
    write(tmp_path, rows)
    train.run(recipe(tmp_path, "{name: plackett_luce, beta: 1.0}", train="{steps: 40}"))
    lines = metrics(tmp_path)
    assert lines[0]["ranking_accuracy"] == 0.5  # all rewards are 0
    assert lines[-1]["ranking_accuracy"] == 1.0
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


def test_labelled_answers_part(tmp_path: Path) -> None:
    """Desirable answers gain and undesirable ones lose; both have a mean of their own."""
    rows = [{"prompt": f"{n}:", "completion": "ab"[n % 2], "label": n % 2 == 0} for n in range(8)]
    write(tmp_path, rows)
    train.run(recipe(tmp_path, "{name: by_sides, beta: 1.0}", train="{steps: 20}"))
    last = metrics(tmp_path)[-1]
    assert last["reward/desirable"] > 0 > last["reward/undesirable"]
    assert last["reward/margin"] == pytest.approx(last["reward/desirable"] - last["reward/undesirable"])


def test_a_cached_reference_knows_every_response(tmp_path: Path) -> None:
    """Mismatched answers are scored ahead like all others, and training is the same."""
    seen = []
    for name, extra in (("live", {}), ("cached", {"reference": "cached"})):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, [labelled(number) for number in range(8)])
        train.run(recipe(folder, "{name: by_sides}", **extra))
        seen.append([(line["loss"], line["drift"]) for line in metrics(folder)])
    for live, cached in zip(*seen, strict=True):
        assert cached == pytest.approx(live, abs=1e-5)  # float32 scored in other packs
    assert any(abs(drift) > 1e-3 for _, drift in seen[0])


REFUSED = {
    "labelled rows for pairs": (
        "{name: dpo}",
        labelled,
        "dpo compares answers to one prompt, but the rows are single",
    ),
    "pairs without scores for lists": (
        "{name: plackett_luce}",
        pair,
        "plackett_luce reads lists of scored answers",
    ),
    "pairs without scores": ("{name: mappo}", pair, "mappo needs a score for each answer"),
    "pairs without a soft label": ("{name: soft_label}", pair, "soft_label needs a soft_label in every row"),
    "pairs without gold": ("{name: triple}", pair, "triple needs a gold text in every row"),
    "pairs without a margin": ("{name: reverse}", pair, "reverse needs a margin for each pair"),
    "two prompts for one": (
        "{name: ipo}",
        two_prompts,
        "'chosen_prompt' and 'rejected_prompt' differ, but ipo",
    ),
    "one prompt for two": (
        "{name: prompt_contrast}",
        pair,
        "prompt_contrast compares one answer to two prompts",
    ),
    "embeddings": ("{name: by_embedding}", pair, "by_embedding needs a prompt_embedding in every row"),
    "one prompt for all": (
        "{name: by_sides}",
        lambda n: {**labelled(n), "prompt": "Item"},
        "by_sides needs answers to other prompts for its baseline, but all 16 rows have one prompt",
    ),
}


@pytest.mark.parametrize(("loss", "row", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_the_wrong_structure_is_one_line_and_leaves_nothing(
    loss: str, row: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [row(number) for number in range(16)])
    assert main(["train", str(recipe(tmp_path, loss))]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0] and "rows.jsonl" in errors[0]
    assert not any((tmp_path / "run").rglob("*"))


def test_rows_of_which_none_is_left_have_no_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Item is", "responses": [" red.", " blue."], "scores": [2, 2]}
    write(tmp_path, [row] * 4)
    assert main(["train", str(recipe(tmp_path, "{name: plackett_luce}"))]) == 2
    said = capsys.readouterr().err
    assert "none of 4 rows is left to train on (4 ties left out)" in said
    assert "tokens:" not in said


@pytest.mark.parametrize(
    ("loss", "metric", "choices"),
    [("sft", "reward/margin", "loss"), ("by_sides", "reward/accuracy", "loss or reward/margin")],
)
def test_a_metric_that_the_structure_has_not_is_refused(
    loss: str, metric: str, choices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [labelled(number) for number in range(4)])
    asked = recipe(tmp_path, f"{{name: {loss}}}", eval=f"{{split: 0.5, metric: {metric}, best: true}}")
    assert main(["train", str(asked)]) == 2
    message = f"eval.metric: {loss} learns from single answers and has no {metric}. Choose {choices}."
    assert message in capsys.readouterr().err


def test_check_shows_what_is_scored_besides_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [{**pair(number), "reference": " black."} for number in range(8)])
    assert main(["check", str(recipe(tmp_path, "{name: triple}"))]) == 0
    out = capsys.readouterr().out
    assert "8 pairs in 8 groups, 8 gold answers" in out
    assert "gold, 8 scored tokens" in out
