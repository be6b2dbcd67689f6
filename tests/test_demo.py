"""The embedded default: its task is sound, its tokenizer loses nothing, and DPO teaches what SFT cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt import demo
from prefopt.data.prepare import prepare
from prefopt.data.rows.source import Source
from prefopt.errors import DataError, ModelError

TASK = "builtin:sort"


def letters(row: demo.Row) -> str:
    return str(row["prompt"][0]["content"]).removeprefix(demo.ASK)


def answer(row: demo.Row, side: str) -> str:
    return str(row[side][0]["content"])


@pytest.fixture(scope="module")
def train_rows() -> list[demo.Row]:
    return demo.rows(TASK, "train")


@pytest.fixture(scope="module")
def test_rows() -> list[demo.Row]:
    return demo.rows(TASK, "test")


def test_rows_depend_on_the_seed_alone(train_rows: list[demo.Row]) -> None:
    assert demo.rows(TASK, "train") == train_rows
    assert demo.rows(TASK, "train", seed=1) != train_rows


def test_no_held_out_letters_are_trained_on_in_any_order(test_rows: list[demo.Row]) -> None:
    held_out = {frozenset(letters(row)) for row in test_rows}
    assert len(held_out) == len(test_rows) == 256
    for seed in (0, 1):
        rows = demo.rows(TASK, "train", seed=seed)
        assert not held_out & {frozenset(letters(row)) for row in rows}


def test_held_out_prompts_are_the_same_for_every_seed(test_rows: list[demo.Row]) -> None:
    other = demo.rows(TASK, "test", seed=7)
    assert [letters(row) for row in other] == [letters(row) for row in test_rows]


def test_a_rejected_answer_is_never_right(train_rows: list[demo.Row]) -> None:
    for row in train_rows:
        prompt = row["prompt"][0]["content"]
        assert answer(row, "chosen") != answer(row, "rejected")
        assert not demo.is_correct(prompt, answer(row, "rejected"))


def test_chosen_answers_are_flawed_as_often_as_written(train_rows: list[demo.Row]) -> None:
    """About 2,048 rows of each length: the share's standard deviation is below sqrt(0.25 / 1900) = 0.0115."""
    for length, share in demo.CARELESS.items():
        rows = [row for row in train_rows if len(letters(row)) == length]
        flawed = [not demo.is_correct(row["prompt"][0]["content"], answer(row, "chosen")) for row in rows]
        assert len(rows) > 1900
        assert sum(flawed) / len(rows) == pytest.approx(share, abs=0.046)  # four standard deviations


def test_a_flawed_chosen_answer_swaps_its_last_two_letters(train_rows: list[demo.Row]) -> None:
    flawed = [r for r in train_rows if answer(r, "chosen") != "".join(sorted(letters(r)))]
    for row in flawed:
        text = answer(row, "chosen")
        assert text[:-2] + text[-1] + text[-2] == "".join(sorted(letters(row)))


def test_only_the_sorted_letters_are_correct() -> None:
    assert demo.is_correct("sort qdmxk", "dkmqx")
    assert not demo.is_correct("sort qdmxk", "dkmxq")
    assert not demo.is_correct("sort qdmxk", "dkmq")
    assert not demo.is_correct("sort qdmxk", "dkmqx ")


def test_the_ordinary_data_path_takes_every_row(train_rows: list[demo.Row]) -> None:
    source = Source(path=TASK, rows=train_rows[:100])
    prepared = prepare([source], demo.build_tokenizer())
    assert len(prepared.table) == 100
    assert prepared.report.bad == []
    assert prepared.report.sources[0].layout == "messages"


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(DataError, match=r"no 'builtin:sum'. Built-in tasks: builtin:sort"):
        demo.rows("builtin:sum")
    with pytest.raises(DataError, match=r"no split 'dev'. It has: train, test"):
        demo.rows(TASK, "dev")
    with pytest.raises(ModelError, match=r"no 'builtin:huge'. Built-in models: builtin:tiny"):
        demo.build_model("builtin:huge")


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = demo.build_tokenizer()
    for text in ("sort qdmxk", " two  spaces\n\ttab ", "naïve – 漢字 🙂", "<|en", ""):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer("🙂").input_ids[0] > tokenizer.eos_token_id
    assert len(tokenizer("🙂").input_ids) == 4  # bytes of UTF-8


def test_markers_are_single_tokens_and_the_prompt_is_a_prefix(test_rows: list[demo.Row]) -> None:
    """The word sort, a space and n letters between <|user|> <|end|> and <|assistant|>: n + 8 tokens."""
    tokenizer = demo.build_tokenizer()
    row = test_rows[0]
    prompt = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_dict=True
    ).input_ids
    whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=True).input_ids
    assert len(prompt) == len(letters(row)) + 8
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == answer(row, "chosen") + demo.END


def test_the_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = demo.build_tokenizer()
    tokenizer.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    turns = [{"role": "user", "content": "sort qdmxk"}, {"role": "assistant", "content": "dkmqx"}]
    assert loaded.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(
        turns, tokenize=False
    )
    assert loaded("sort é").input_ids == tokenizer("sort é").input_ids
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_weights_depend_on_the_seed_alone() -> None:
    first = demo.build_model(seed=3).state_dict()
    torch.rand(5)
    again, other = demo.build_model(seed=3).state_dict(), demo.build_model(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_building_the_model_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    demo.build_model(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_answers_do_not_depend_on_the_batch(test_rows: list[demo.Row]) -> None:
    """Padding on the left is masked, so prompts of other lengths beside one change nothing."""
    model, tokenizer = demo.build_model(seed=0).eval(), demo.build_tokenizer()
    prompts = [row["prompt"] for row in test_rows[:6]]
    together = demo.greedy_answers(model, tokenizer, prompts, 8)
    alone = [demo.greedy_answers(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert together == alone
