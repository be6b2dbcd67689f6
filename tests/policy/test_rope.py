"""RoPE that turns all sequences of a row by the longest one: exact up to a length, refused beyond it everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import causal_types
import pytest
import torch
import toy
from transformers import LlamaConfig, PretrainedConfig

from prefopt.cli import main
from prefopt.data.packs.pack import group_of, pack
from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.rope import Reach, longest_path, reach_of
from prefopt.types import Segments

TURNED = {"rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def built(name: str) -> Any:
    return causal_types.build(causal_types.config_of(name))


def group(tokens: int, row: int = 0) -> Any:
    """A prompt of 3 tokens with an answer that makes ``tokens`` of it, and a short one."""
    return group_of([5, 6, 7], [list(range(8, 8 + tokens - 3)), [9, 10]], row_id=row)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_type": "linear", **TURNED}}, None),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 16, **TURNED}}, None),
        ({"rope_parameters": {"rope_type": "dynamic", **TURNED}}, Reach("dynamic", 128)),
        (
            {"rope_parameters": {**LONG, "original_max_position_embeddings": 32}},
            Reach("longrope", 32),
        ),
        ({"rope_parameters": LONG}, Reach("longrope", 128)),  # as transformers fills it in
    ],
)
def test_the_reach_is_read_from_the_configuration(settings: dict[str, Any], expected: Reach | None) -> None:
    assert reach_of(LlamaConfig(max_position_embeddings=128, head_dim=8, **settings)) == expected


def test_the_reach_of_layers_that_differ_is_that_of_the_shortest() -> None:
    config = LlamaConfig(max_position_embeddings=128, head_dim=8)
    vars(config)["rope_parameters"] = {
        "full_attention": {**LONG, "original_max_position_embeddings": 64},
        "sliding_attention": {"rope_type": "dynamic", "original_max_position_embeddings": 16, **TURNED},
    }
    assert reach_of(config) == Reach("dynamic", 16)


def test_a_kind_that_nobody_knows_is_not_trusted_beyond_what_it_was_made_for() -> None:
    """Configurations of models that bring their own code say what they like, and some under an older name."""
    config = PretrainedConfig(max_position_embeddings=128)
    vars(config)["rope_parameters"] = {"type": "mine", **TURNED}
    assert reach_of(config) == Reach("mine", 128)
    vars(config)["max_position_embeddings"] = None
    assert reach_of(config) == Reach("mine", 0)


def test_the_longest_path_goes_through_ancestors() -> None:
    """Prompts of 4 and 2 tokens; behind the first 3 tokens and, behind these, 5: 12. Behind the second 9: 11."""
    assert longest_path(Segments((0, 4, 7, 12, 14), (4, 3, 5, 2, 9), (-1, 0, 1, -1, 3))) == 12


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi3, longrope", "llama, dynamic"])
def test_sequences_are_scored_up_to_the_limit_and_refused_beyond(name: str) -> None:
    """16 tokens are exact whatever shares the row, 17 are refused, also in a loop of one's own."""
    model = built(name)
    wanted = torch.cat(
        [
            causal_types.plain_logps(model, each.prompts[0], answer)
            for each in (group(16), group(9))
            for answer in each.responses
        ]
    )
    policy = Policy(model)
    policy.check_fits(88, 16)
    torch.testing.assert_close(policy(pack([group(16), group(9)])).tokens, wanted, rtol=0, atol=2e-5)
    refused = r"positions by the longest sequence .* more than 16 tokens, but .* has 17, .* to 16 or less"
    with pytest.raises(ModelError, match=refused):
        policy.check_fits(88, 17)
    with pytest.raises(ModelError, match=refused):
        policy(pack([group(17), group(9)]))


@torch.no_grad()
@pytest.mark.parametrize("uses", ["inside plain_attention", "before the policy"])
def test_what_a_longer_sequence_left_behind_is_forgotten(uses: str) -> None:
    """Generation beyond the limit grows the frequencies; 16 tokens, as many as the limit, would not shrink them."""
    batch, long = pack([group(16)]), torch.arange(40)[None] + 3
    fresh = Policy(built("llama, dynamic"))(batch).tokens
    model = built("llama, dynamic")
    if uses == "before the policy":
        model(input_ids=long)
    policy = Policy(model)
    with policy.plain_attention() as plain:
        plain(input_ids=long)
    assert torch.equal(policy(batch).tokens, fresh)


def turned(folder: Path, limit: int) -> None:
    """Let the saved model turn positions by dynamic NTK beyond so many tokens."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", **TURNED}
    path.write_text(json.dumps(config | {"max_position_embeddings": limit}))


REFUSED = "turns positions by the longest sequence"
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "score": lambda folder: [str(folder / "model"), str(folder / "rows.jsonl"), "--out", str(folder / "out")],
    "check": lambda folder: [str(folder / "recipe.yaml")],
    "train": lambda folder: [str(folder / "recipe.yaml")],
}


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("limit", [20, 64])
def test_commands_refuse_such_data_before_they_compute(
    verb: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows have up to some 30 tokens."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    toy.recipe(tmp_path)
    turned(tmp_path / "model", limit)
    more = ["train.steps=1"] if verb == "train" else []
    assert main([verb, *COMMANDS[verb](tmp_path), *more]) == (0 if limit == 64 else 2)
    assert (REFUSED in capsys.readouterr().err) == (limit == 20)


def test_evaluation_rows_and_other_models_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy has no limit; a reference by path has one, which only the held-out rows break."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    arguments = toy.recipe(tmp_path, train__steps="1", batch__max_tokens="100")
    toy.save_model(tmp_path / "other")
    turned(tmp_path / "other", 64)
    row = {"prompt": "w1 " * 60, "chosen": " w2" * 9, "rejected": " w3"}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
    more = [f"reference={{path: {tmp_path / 'other'}}}", f"eval.data={{path: {tmp_path / 'held.jsonl'}}}"]
    assert main(["train", *arguments, *more]) == 2
    assert REFUSED in capsys.readouterr().err
