"""The ids of a row are those of its whole text, whatever tokenizer and template; oddities are named."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from prefopt.data.rows.raw_rows import RowError
from prefopt.data.tokens import tokenize
from prefopt.data.tokens.render import Rendered, Renderer
from prefopt.data.tokens.tokenize import Tokenizer, Tokens, WindowError
from prefopt.errors import DataError, ModelError
from prefopt.types import Comparison, Preference

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PLAIN_TURNS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
KINDS = ["byte_level", "sentencepiece", "metaspace", "bytes"]
ENDS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    " 12",
    "7",
    "你好",
    "🙂",
    "don",
    "'",
    " a",
    ".",
    "\t",
    "é",
    "-",
    "Answer:",
]
STARTS = ["yes", " yes", "\nno", "23", " 你", "🙂🙂", "'t do", "  two", "!", "é", "\n\n\nend", "a" * 40]


def row(prompt: Any, *answers: Any, tools: Any = None) -> Comparison:
    pairs = (Preference(0, 1),) if len(answers) > 1 else ()
    return Comparison(prompt, answers, pairs, row_id=0, origin="f.jsonl:1", tools=tools)


def chat(question: str, *answers: str, system: str | None = None) -> Comparison:
    opening = [] if system is None else [{"role": "system", "content": system}]
    return row(
        [*opening, {"role": "user", "content": question}],
        *([{"role": "assistant", "content": answer}] for answer in answers),
    )


def ids_of(tokenizer: Any, rows: Sequence[Comparison], windowed: bool = True) -> list[Tokens]:
    rendered = Renderer(tokenizer).render(rows)
    assert all(isinstance(entry, Rendered) for entry in rendered), rendered
    tokens = Tokenizer(tokenizer, windowed).tokenize(rendered)  # type: ignore[arg-type]
    assert all(isinstance(entry, Tokens) for entry in tokens), tokens
    return tokens  # type: ignore[return-value]


def expected(tokenizer: Any, comparison: Comparison) -> tuple[list[int], list[list[int]]]:
    """Tokenize the prompt and every whole text on their own and cut all at their common prefix."""
    if isinstance(comparison.prompt, str):
        texts = [
            comparison.prompt,
            *(f"{comparison.prompt}{a}{tokenizer.eos_token}" for a in comparison.answers),
        ]
        ids = [tokenizer(text)["input_ids"] for text in texts]
    else:
        talks = [comparison.prompt, *([*comparison.prompt, *a] for a in comparison.answers)]
        texts = [
            tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=n == 0)
            for n, talk in enumerate(talks)
        ]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    size = 0
    while all(len(one) > size and one[size] == ids[0][size] for one in ids):
        size += 1
    return ids[0][:size], [one[size:] for one in ids[1:]]


def check(tokenizer: Any, rows: Sequence[Comparison]) -> None:
    windowed = not _needs_whole(tokenizer, rows)
    for comparison, tokens in zip(rows, ids_of(tokenizer, rows, windowed), strict=True):
        prompt, answers = expected(tokenizer, comparison)
        assert tokens.prompt.tolist() == prompt, comparison
        assert [answer.tolist() for answer in tokens.answers] == answers, comparison


def _needs_whole(tokenizer: Any, rows: Sequence[Comparison]) -> bool:
    try:
        ids_of(tokenizer, rows)
    except WindowError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_text_has_the_ids_of_its_whole_text(kind: str, adds_bos: bool, make_tokenizer: Any) -> None:
    """Every end of a prompt meets every start of an answer, after filler long enough for a window."""
    tokenizer = make_tokenizer(kind, adds_bos=adds_bos)
    rows = [
        row(filler + end, start + " and so on", start[::-1] + "?")
        for filler in ("what is", "the quick brown fox jumps over the lazy dog and the dog does not mind it")
        for end in ENDS
        for start in STARTS
    ]
    check(tokenizer, rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [None, LLAMA3, PLAIN_TURNS], ids=["chatml", "llama3", "turns"])
def test_messages_have_the_ids_of_their_whole_text(
    kind: str, template: str | None, make_tokenizer: Any
) -> None:
    tokenizer = make_tokenizer(kind, adds_bos=True)
    tokenizer.chat_template = template or tokenizer.chat_template
    rows = [chat("what is " + end, start + " so", "no", system="be good") for end in ENDS for start in STARTS]
    check(tokenizer, rows)


def test_random_text_has_the_ids_of_its_whole_text(make_tokenizer: Any) -> None:
    draw = random.Random(3)
    letters = "ab 1.\n'é你🙂\t-" + "the "
    text = lambda longest: "".join(draw.choices(letters, k=draw.randint(1, longest)))  # noqa: E731
    rows = [row("q" + text(90), "a" + text(20), text(9) + "b") for _ in range(400)]
    for kind in KINDS:
        check(make_tokenizer(kind), rows)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_usual_tokenizers_are_served_by_windows(kind: str, make_tokenizer: Any) -> None:
    rows = [
        row("what is the quick brown fox that jumps over the lazy dog?" + end, " it", " a") for end in ENDS
    ]
    assert not _needs_whole(make_tokenizer(kind), rows)
    assert not _needs_whole(make_tokenizer(kind), [chat("what is" + end, "it", "a") for end in ENDS])


def test_scored_tokens_are_what_the_template_prints_after_the_prompt(chatml: Any) -> None:
    tokens = ids_of(chatml, [chat("what is a fox?", "an animal", "a car")])[0]
    assert (
        chatml.decode(tokens.prompt) == "<|im_start|>user\nwhat is a fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [chatml.decode(answer) for answer in tokens.answers] == [
        "an animal<|im_end|>\n",
        "a car<|im_end|>\n",
    ]


def test_bos_stands_once_whoever_adds_it(make_tokenizer: Any) -> None:
    """The tokenizer adds it, the template prints it, both, or the text spells it."""
    bos = make_tokenizer().bos_token_id
    for template, adds_bos in ((LLAMA3, False), (LLAMA3, True)):
        tokens = ids_of(make_tokenizer(template=template, adds_bos=adds_bos), [chat("q", "a", "b")])[0]
        assert tokens.prompt.tolist().count(bos) == 1 and tokens.prompt[0] == bos
    for text in ("what is", "<|begin_of_text|>what is"):
        tokens = ids_of(make_tokenizer(adds_bos=True), [row(text, "a", "b")])[0]
        assert tokens.prompt.tolist().count(bos) == 1 and tokens.prompt[0] == bos
    assert bos not in ids_of(make_tokenizer(), [row("what is", "a", "b")])[0].prompt


def test_plain_text_ends_with_one_end_token(chatml: Any) -> None:
    end = chatml.eos_token_id
    tokens = ids_of(chatml, [row("what is", " it", " it<|endoftext|>")])[0]
    for answer in tokens.answers:
        assert answer.tolist().count(end) == 1 and answer[-1] == end
    assert np.array_equal(*tokens.answers)
    assert end not in tokens.prompt


def test_chat_answer_gets_no_end_token_beside_the_templates(chatml: Any) -> None:
    tokens = ids_of(chatml, [chat("q", "a", "b")])[0]
    assert all(chatml.eos_token_id not in answer for answer in tokens.answers)


def test_prompt_whose_last_token_merges_is_cut_back(make_tokenizer: Any) -> None:
    """The prompt ends with a blank, which the answers' first words swallow, so it is scored with them."""
    tokenizer = make_tokenizer(template=PLAIN_TURNS)
    tokens = ids_of(tokenizer, [chat("what is it", "the dog", "a fox")])[0]
    assert tokens.is_cut_back
    assert tokenizer.decode(tokens.prompt) == "user: what is it\nassistant:"
    assert [tokenizer.decode(answer) for answer in tokens.answers] == [" the dog\n", " a fox\n"]


def test_prompt_is_cut_back_to_what_all_answers_share(make_tokenizer: Any) -> None:
    """A digit keeps the blank apart, a letter does not: both answers then start with the blank."""
    tokenizer = make_tokenizer(template=PLAIN_TURNS)
    tokens = ids_of(tokenizer, [chat("what is it", "<3", "the dog")])[0]
    assert tokens.is_cut_back
    assert [tokenizer.decode(answer)[0] for answer in tokens.answers] == [" ", " "]


def test_prompt_that_the_template_prints_otherwise_alone_is_a_bad_row(make_tokenizer: Any) -> None:
    got = Renderer(make_tokenizer(template=THINKING)).render([chat("q", "a", "b")])[0]
    assert isinstance(got, RowError)
    assert (got.column, got.why) == (
        "prompt",
        "the chat template prints '<think>\\n' where the same prompt before an answer has 'a<|im_end|>\\n'",
    )


def test_template_that_refuses_one_row_spoils_no_other(make_tokenizer: Any) -> None:
    picky = (
        "{% for m in messages %}{% if 'x' in m['content'] %}{{ raise_exception('no x here') }}{% endif %}"
        "{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    got = Renderer(make_tokenizer(template=picky)).render([chat("q", "a"), chat("x", "a"), chat("r", "b")])
    assert [type(entry) for entry in got] == [Rendered, RowError, Rendered]
    assert isinstance(got[1], RowError) and got[1].why == "the chat template refuses it (no x here)"
    assert isinstance(got[2], Rendered) and got[2].answers == ("b<|im_end|>",)


def test_template_that_prints_nothing_for_an_answer_is_a_bad_row(make_tokenizer: Any) -> None:
    mute = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    got = Renderer(make_tokenizer(template=mute)).render([chat("q", "a", "b")])[0]
    assert isinstance(got, RowError)
    assert (got.column, got.why) == ("answer 1", "the chat template prints nothing for it")


def test_messages_without_a_template_name_the_setting(make_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^f\.jsonl:1: .* no chat template\. Set model\.chat_template"):
        Renderer(make_tokenizer(template=None)).render([chat("q", "a", "b")])


def test_plain_text_without_an_end_token_is_refused(make_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^f\.jsonl:1: plain text needs an end-of-text token"):
        Renderer(make_tokenizer(eos_token=None)).render([row("q", "a", "b")])


def test_template_is_taken_as_text_or_from_a_file(make_tokenizer: Any, tmp_path: Any) -> None:
    tokenizer = make_tokenizer(template=None)
    path = tmp_path / "mine.jinja"
    path.write_text(LLAMA3)
    for given in (LLAMA3, str(path)):
        got = Renderer(tokenizer, given).render([chat("q", "a", "b")])[0]
        assert isinstance(got, Rendered) and got.prompt.startswith("<|begin_of_text|><|start_header_id|>user")
    with pytest.raises(ModelError, match=r"model\.chat_template: 'none\.jinja' is neither a template nor"):
        Renderer(tokenizer, "none.jinja")
    with pytest.raises(ModelError, match=r"model\.chat_template: does not compile"):
        Renderer(tokenizer, "{% for m in %}").render([chat("q", "a", "b")])


def test_tools_reach_the_template(make_tokenizer: Any) -> None:
    template = "{% if tools %}{{ tools[0]['name'] }}|{% endif %}" + PLAIN_TURNS
    comparison = row(
        [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}], tools=[{"name": "f"}]
    )
    with_tools, without = Renderer(make_tokenizer(template=template)).render([comparison, chat("q", "a")])
    assert isinstance(with_tools, Rendered) and with_tools.prompt == "f|user: q\nassistant: "
    assert isinstance(without, Rendered) and without.prompt == "user: q\nassistant: "


def test_control_token_in_content_is_noticed(chatml: Any) -> None:
    rows = [
        chat("q", "a", "b"),
        chat("q <|im_end|>", "a", "b"),
        chat("q", "a", "<|im_start|>user"),
        row("q<|", "a", "b"),
    ]
    got = Renderer(chatml).render(rows)
    assert [isinstance(entry, Rendered) and entry.has_control for entry in got] == [False, True, True, False]


def test_message_that_the_template_leaves_out_is_noticed(make_tokenizer: Any) -> None:
    no_system = PLAIN_TURNS.replace("in messages", "in messages if m['role'] != 'system'")
    got = Renderer(make_tokenizer(template=no_system)).render(
        [chat("q", "a"), chat("q", "a", system="be brief")]
    )
    assert [isinstance(entry, Rendered) and entry.is_left_out for entry in got] == [False, True]


def test_window_that_disagrees_with_the_whole_text_is_found_out(
    chatml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that starts in mid-word and is believed without a look gives other ids in the sample."""
    monkeypatch.setattr(Tokenizer, "_by_window", lambda self, rows: [
        Tokens(np.array([1], np.int32), tuple(np.array([2], np.int32) for _ in r.answers), False) for r in rows
    ])  # fmt: skip
    with pytest.raises(WindowError):
        ids_of(chatml, [row("what is", " it", " not")])


def test_windows_spare_most_of_a_long_prompt(chatml: Any) -> None:
    """A prompt of 400 words is tokenized once, not once per answer: the windows are under 1% of its text."""
    seen: list[int] = []
    tokenizer = Tokenizer(chatml)
    encode = tokenizer._encode
    tokenizer._encode = lambda texts: (seen.append(sum(map(len, texts))), encode(texts))[1]  # type: ignore[assignment,method-assign,func-returns-value]
    tokenizer._seen = tokenize._SAMPLE_FIRST
    rendered = Renderer(chatml).render([chat("word " * 4000, "yes", "no")])
    tokenizer.tokenize(rendered)  # type: ignore[arg-type]
    assert sum(seen[1:]) < 0.01 * seen[0]


def test_tokenizer_given_is_not_changed(make_tokenizer: Any) -> None:
    """Stored truncation neither cuts our texts nor is lost."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokens = ids_of(tokenizer, [row("the quick brown fox jumps over", " the dog", " it")])[0]
    assert tokenizer.decode(tokens.prompt) == "the quick brown fox jumps over"
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 4


def test_fingerprint_changes_with_what_decides_the_ids(make_tokenizer: Any) -> None:
    same = Tokenizer(make_tokenizer()).fingerprint()
    assert Tokenizer(make_tokenizer()).fingerprint() == same
    others = [
        make_tokenizer("metaspace"),
        make_tokenizer(adds_bos=True),
        make_tokenizer(eos_token="<|eot_id|>"),
    ]
    assert len({same, *(Tokenizer(other).fingerprint() for other in others)}) == 4
    assert Renderer(make_tokenizer()).fingerprint() != Renderer(make_tokenizer(), LLAMA3).fingerprint()


def test_tokenizer_without_a_fast_backend_gives_the_same_ids(
    make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("what is the lazy dog" + end, start + " so") for end in ENDS for start in STARTS]
    fast = ids_of(make_tokenizer(adds_bos=True), rows)
    slow = make_tokenizer(adds_bos=True)
    monkeypatch.setattr(type(slow), "is_fast", property(lambda _: False))
    other = ids_of(slow, rows)
    assert [entry.prompt.tolist() for entry in other] == [entry.prompt.tolist() for entry in fast]
    assert [entry.answers[0].tolist() for entry in other] == [entry.answers[0].tolist() for entry in fast]
    assert Tokenizer(slow).fingerprint() == Tokenizer(make_tokenizer(adds_bos=True)).fingerprint()
