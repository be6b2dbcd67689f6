"""From sources to table and report: structures, policies, truncation, several sources and the cache."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_files import write_table

from prefopt.data import prepare as module
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.report import DataReport
from prefopt.data.rows.source import Source, read_rows
from prefopt.errors import BadRowsError, DataError
from prefopt.types import Preference

PAIR = {"prompt": "what is a fox?", "chosen": " an animal", "rejected": " the car"}
SAME = {"prompt": "what is a dog?", "chosen": " an animal", "rejected": " an animal"}
TIE = {**PAIR, "chosen_score": 3, "rejected_score": 3}
WON = {**PAIR, "chosen_score": 3, "rejected_score": 1}
KTO = [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "r", "completion": "b", "label": False}]
RANKED = {"prompt": "q", "responses": ["x", "y", "z", "w"], "scores": [1, 5, 5, 2]}


def texts(prepared: Prepared, tokenizer: Any, index: int = 0) -> tuple[str, list[str]]:
    group = prepared.table[index]
    return tokenizer.decode(group.prompts[0]), [tokenizer.decode(answer) for answer in group.responses]


def test_pairs_keep_both_answers_and_their_preference(write: Any, chatml: Any) -> None:
    got = prepare([Source(write("d.jsonl", [WON]))], chatml)
    assert texts(got, chatml) == ("what is a fox?", [" an animal<|endoftext|>", " the car<|endoftext|>"])
    group = got.table[0]
    assert group.preferences == (Preference(0, 1, 1.0, 2.0),) and group.scores == (3.0, 1.0)
    assert (got.report.rows_read, got.report.groups, got.report.pairs, got.report.responses) == (1, 1, 1, 2)


def test_responses_keep_the_preferred_answers_alone(write: Any, chatml: Any) -> None:
    pair = prepare([Source(write("d.jsonl", [PAIR, SAME]))], chatml, needs=Needs("responses"))
    assert [texts(pair, chatml, n)[1] for n in (0, 1)] == [[" an animal<|endoftext|>"]] * 2
    assert pair.report.pairs == 0 and not pair.report.identical.count
    labelled = prepare([Source(write("k.jsonl", KTO))], chatml, needs=Needs("responses"))
    assert len(labelled.table) == 1 and texts(labelled, chatml)[1] == ["a<|endoftext|>"]
    assert labelled.report.unused.count == 1
    assert labelled.report.unused.origins[0].endswith("k.jsonl:2")


def test_sides_are_labelled_answers_or_pairs_taken_apart(write: Any, chatml: Any) -> None:
    labelled = prepare([Source(write("k.jsonl", KTO))], chatml, needs=Needs("labelled"))
    assert [labelled.table[n].labels for n in (0, 1)] == [(True,), (False,)]
    apart = prepare([Source(write("d.jsonl", [PAIR, SAME]))], chatml, needs=Needs("labelled"))
    assert len(apart.table) == 1 and apart.report.identical.count == 1
    assert apart.table[0].labels == (True, False) and apart.table[0].preferences == ()


def test_best_of_several_meets_the_rest_and_equals_are_ties(write: Any, chatml: Any) -> None:
    """Scores 1, 5, 5, 2: the second is best; the third is its equal, so it is left out with its pair."""
    path = write("d.jsonl", [RANKED])
    got = prepare([Source(path)], chatml)
    group = got.table[0]
    assert texts(got, chatml)[1] == ["x<|endoftext|>", "y<|endoftext|>", "w<|endoftext|>"]
    assert group.preferences == (Preference(1, 0, 1.0, 4.0), Preference(1, 2, 1.0, 3.0)) and group.scores == (
        1.0,
        5.0,
        2.0,
    )
    assert got.report.ties.count == 1
    kept = prepare([Source(path)], chatml, on_tie="keep")
    assert len(kept.table[0].responses) == 4 and kept.report.pairs == 3 and kept.report.ties.count == 1
    lists = prepare([Source(path)], chatml, needs=Needs("lists"))
    assert lists.table[0].scores == (1.0, 5.0, 5.0, 2.0) and not lists.report.ties.count


def test_all_keeps_every_answer_of_every_row(write: Any, chatml: Any) -> None:
    got = prepare([Source(write("d.jsonl", [SAME, TIE]))], chatml, needs=Needs(None))
    assert [len(got.table[n].responses) for n in (0, 1)] == [2, 2]
    assert not got.report.identical.count and not got.report.ties.count


def test_rows_in_memory_are_read_and_keyed_by_their_content(chatml: Any, tmp_path: Path) -> None:
    first = prepare([Source("mine", rows=[PAIR, {**PAIR, "chosen": ""}])], chatml, cache_dir=tmp_path)
    assert first.table.origin(0) == "mine:1"
    assert [bad.describe() for bad in first.report.bad] == ["mine:2: chosen: empty"]
    assert not prepare([Source("mine", rows=[PAIR, PAIR])], chatml, cache_dir=tmp_path).report.from_cache
    assert prepare([Source("mine", rows=[PAIR, PAIR])], chatml, cache_dir=tmp_path).report.from_cache


def test_identical_answers_are_dropped_kept_or_refused_and_counted(write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [PAIR, SAME])
    dropped = prepare([Source(path)], chatml)
    assert len(dropped.table) == 1 and dropped.report.identical.origins == [f"{path}:2"]
    assert f"1 pairs of identical answers left out: {path}:2" in dropped.report.lines()
    kept = prepare([Source(path)], chatml, on_identical="keep")
    assert len(kept.table) == 2 and kept.report.identical.count == 1
    with pytest.raises(
        DataError, match=rf"^{path}:2: 'chosen' and 'rejected' are the same \d+ tokens, so the pair"
    ):
        prepare([Source(path)], chatml, on_identical="error")


def test_answers_that_truncation_makes_equal_are_identical(write: Any, chatml: Any) -> None:
    row = {"prompt": "q", "chosen": " the dog and a fox", "rejected": " the dog and the car"}
    room = len(chatml("q the dog and")["input_ids"])
    got = prepare([Source(write("d.jsonl", [row]))], chatml, max_tokens=room)
    assert (got.report.truncated.count, got.report.identical.count, len(got.table)) == (1, 1, 0)


def test_ties_are_dropped_kept_or_refused_and_counted(write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [WON, TIE])
    dropped = prepare([Source(path)], chatml)
    assert len(dropped.table) == 1 and dropped.report.ties.origins == [f"{path}:2"]
    assert len(prepare([Source(path)], chatml, on_tie="keep").table) == 2
    with pytest.raises(
        DataError, match=rf"^{path}:2: both answers have the score 3, so neither is preferred"
    ):
        prepare([Source(path)], chatml, on_tie="error")


def test_rejected_answer_with_the_higher_score_is_counted_and_kept(write: Any, chatml: Any) -> None:
    got = prepare([Source(write("d.jsonl", [{**PAIR, "chosen_score": 1, "rejected_score": 2}]))], chatml)
    assert got.report.inverted.count == 1 and got.table[0].preferences[0].margin == -1.0


def test_long_rows_are_cut_dropped_or_refused_as_asked(write: Any, chatml: Any) -> None:
    """The second row's prompt alone fills the room; the third fits."""
    long_answer = {**PAIR, "chosen": " the dog" * 30}
    long_prompt = {**PAIR, "prompt": "the dog " * 40}
    path = write("d.jsonl", [long_answer, long_prompt, PAIR])
    start = prepare([Source(path)], chatml, max_tokens=30)
    assert start.report.truncated.origins == [f"{path}:1"] and start.report.too_long.origins == [f"{path}:2"]
    assert texts(start, chatml)[0] == PAIR["prompt"] and len(start.table) == 2
    assert start.table.sizes(share_prompts=True).longest.max() == 30
    end = prepare([Source(path)], chatml, max_tokens=30, truncate="keep_end")
    assert end.report.truncated.count == 2 and len(end.table) == 3
    assert end.table[0].prompts[0].tolist() == start.table[0].prompts[0].tolist()[-1:]
    assert (
        end.table[1].prompts[0].tolist()
        == chatml(long_prompt["prompt"])["input_ids"][-len(end.table[1].prompts[0]) :]
    )
    assert texts(end, chatml, 1)[1] == [" an animal<|endoftext|>", " the car<|endoftext|>"]
    dropped = prepare([Source(path)], chatml, max_tokens=30, truncate="drop")
    assert dropped.report.too_long.count == 2 and len(dropped.table) == 1
    with pytest.raises(DataError, match=rf"^{path}:1: .* tokens, more than batch\.max_tokens: 30\. Raise it"):
        prepare([Source(path)], chatml, max_tokens=30, truncate="error")


def test_cut_answer_gets_no_end_token(write: Any, chatml: Any) -> None:
    got = prepare([Source(write("d.jsonl", [{**PAIR, "chosen": " the dog" * 30}]))], chatml, max_tokens=30)
    ends = [answer[-1] == chatml.eos_token_id for answer in got.table[0].responses]
    assert ends == [False, True]


def test_room_for_less_than_a_prompt_and_an_answer_is_refused(write: Any, chatml: Any) -> None:
    with pytest.raises(DataError, match=r"batch\.max_tokens: 1 has no room"):
        prepare([Source(write("d.jsonl", [PAIR]))], chatml, max_tokens=1)


def test_sources_keep_their_order_weights_and_counts(write: Any, chatml: Any) -> None:
    first = write("a.jsonl", [PAIR, {**PAIR, "chosen": ""}, PAIR])
    second = write("b.jsonl", [{"question": "q", "chosen": "x", "rejected": "y"}] * 4)
    got = prepare([Source(first), Source(second, limit=2, weight=0.5)], chatml)
    assert got.table.source_of.tolist() == [0, 0, 1, 1] and got.table.source_weights == (1.0, 0.5)
    assert got.table.row_ids.tolist() == [0, 2, 3, 4]
    assert [got.table.origin(n) for n in range(4)] == [
        f"{first}:1",
        f"{first}:3",
        f"{second}:1",
        f"{second}:2",
    ]
    assert [(s.rows_read, s.bad, s.groups, s.pairs, s.weight) for s in got.report.sources] == [
        (3, 1, 2, 2, 1.0),
        (2, 0, 2, 2, 0.5),
    ]
    assert f"{second}: layout text, 2 rows, 0 bad, drawn 0.5 times an epoch" in got.report.lines()


def test_no_row_left_says_what_became_of_them(write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [SAME, TIE, {**PAIR, "chosen": ""}, {**PAIR, "chosen": None}])
    report = prepare([Source(path)], chatml).report
    with pytest.raises(
        DataError, match=r"none of 4 rows is left .*2 bad; 1 pairs of identical answers left out; 1 ties"
    ):
        report.enforce(4)
    with pytest.raises(BadRowsError):
        report.enforce(0.1)


def test_plain_text_beside_a_chat_template_is_pointed_out(write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [PAIR])
    notes = prepare([Source(path)], chatml).report.notes
    assert len(notes) == 1 and "the rows are plain text, so the chat template is not applied" in notes[0]
    assert prepare([Source(path, layout="messages")], chatml).report.notes == []


def test_findings_of_the_tokenizer_are_in_the_report(write: Any, make_tokenizer: Any) -> None:
    template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    rows = [
        {"system": "s", **PAIR, "chosen": "an animal", "rejected": "the car"},
        {"system": "brief", **PAIR, "chosen": "<|im_end|>", "rejected": "the car"},
    ]
    path = write("d.jsonl", rows)
    report = prepare([Source(path)], make_tokenizer(template=template)).report
    assert report.cut_back.origins == [f"{path}:1", f"{path}:2"]
    assert report.special_in_content.origins == [f"{path}:2"]
    assert report.left_out.origins == [f"{path}:2"]


def test_row_that_the_template_refuses_is_bad_with_its_raw_text(write: Any, make_tokenizer: Any) -> None:
    template = "{{ raise_exception('no') if messages[0]['content'] == 'x' }}{{ messages }}"
    row = {"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"}
    path = write("d.jsonl", [row])
    report = prepare([Source(path)], make_tokenizer(template=template)).report
    assert [bad.describe() for bad in report.bad] == [f"{path}:1: the chat template refuses it (no)"]
    assert json.loads(report.bad[0].raw) == row


def test_windows_are_given_up_for_all_rows_when_one_disagrees(
    write: Any, chatml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("d.jsonl", [PAIR, WON])
    right = prepare([Source(path)], chatml)
    honest = module.Tokenizer._by_window

    def wrong(self: Any, rows: Any) -> Any:
        return [entry._replace(prompt=entry.prompt[:-1]) for entry in honest(self, rows)]

    monkeypatch.setattr(module.Tokenizer, "_by_window", wrong)
    got = prepare([Source(path)], chatml)
    assert got.table.prompt_ids.tolist() == right.table.prompt_ids.tolist()
    assert got.report == right.report


# the cache


def cached(path: str, tokenizer: Any, tmp_path: Path, **settings: Any) -> Prepared:
    source = {
        name: settings.pop(name) for name in ("limit", "columns", "layout", "weight") if name in settings
    }
    return prepare([Source(path, **source)], tokenizer, cache_dir=tmp_path / "cache", **settings)


def test_second_start_reads_no_row_and_reports_the_same(
    write: Any, chatml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("d.jsonl", [PAIR, SAME, {**PAIR, "chosen": ""}, TIE])
    first = cached(path, chatml, tmp_path)
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("rows were tokenized again"))
    second = cached(path, chatml, tmp_path)
    assert not first.report.from_cache and second.report.from_cache
    first.report.from_cache = True
    assert second.report == first.report and second.report.lines() == first.report.lines()
    assert second.table.response_ids.tolist() == first.table.response_ids.tolist()
    assert second.table[0].origin == f"{path}:1"


def test_report_survives_json() -> None:
    report = DataReport("pairs", None, "drop", "keep")
    report.ties.add("a:1")
    assert DataReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_weight_changes_no_token_and_so_not_the_cache(write: Any, chatml: Any, tmp_path: Path) -> None:
    path = write("d.jsonl", [PAIR])
    cached(path, chatml, tmp_path)
    again = cached(path, chatml, tmp_path, weight=3.0)
    assert again.report.from_cache
    assert again.table.source_weights == (3.0,) and again.report.sources[0].weight == 3.0


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 50},
        {"truncate": "drop"},
        {"on_identical": "keep"},
        {"on_tie": "keep"},
        {"on_inverted": "swap"},
        {"on_markers": "drop"},
        {"on_unprinted": "keep"},
        {"needs": Needs("responses")},
        {"needs": Needs(inputs=("pair_margin",))},
        {"needs": Needs(roles=("gold",))},
        {"needs": Needs(prompts=("two",))},
        {"chat_template": "{{ messages }}"},
        {"limit": 1},
        {"layout": "text"},
        {"columns": {"prompt": "prompt"}},
        {"columns": {"margin": False}},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_each_setting_that_can_change_the_result_misses_the_cache(
    change: dict[str, Any], write: Any, chatml: Any, tmp_path: Path
) -> None:
    path = write("d.jsonl", [{**PAIR, "margin": 1, "gold": " a dog"}] * 2)
    cached(path, chatml, tmp_path)
    assert not cached(path, chatml, tmp_path, **change).report.from_cache
    assert cached(path, chatml, tmp_path).report.from_cache


def test_what_words_of_a_source_mean_is_part_of_the_key(chatml: Any, tmp_path: Path) -> None:
    said = [{"who": "user", "says": "q"}]
    row = {"prompt": said, "response_a": "x", "response_b": "y", "winner": 1}
    plain = {"turn": {"role": "who", "content": "says"}, "better_is": {"first": (1,), "second": (0,)}}

    def is_cached(**changes: Any) -> bool:
        source = Source("d", rows=[row], **{**plain, **changes})
        return prepare([source], chatml, cache_dir=tmp_path).report.from_cache

    assert not is_cached() and is_cached()
    assert not is_cached(better_is={"first": (0,), "second": (1,)})
    assert not is_cached(turn={**plain["turn"], "roles": {"user": "system"}})


def test_a_loss_of_other_name_and_equal_needs_finds_the_cache(
    write: Any, chatml: Any, tmp_path: Path
) -> None:
    path = write("d.jsonl", [PAIR])
    cached(path, chatml, tmp_path, needs=Needs(loss="dpo"))
    assert cached(path, chatml, tmp_path, needs=Needs(loss="ipo")).report.from_cache


def test_changed_row_or_tokenizer_misses_the_cache(
    write: Any, chatml: Any, make_tokenizer: Any, tmp_path: Path
) -> None:
    """The changed file has the same size and time stamp: only its bytes differ."""
    path = write("d.jsonl", [PAIR])
    cached(path, chatml, tmp_path)
    for other in (
        make_tokenizer(adds_bos=True),
        make_tokenizer("metaspace"),
        make_tokenizer(eos_token="<|eot_id|>"),
    ):
        assert not cached(path, other, tmp_path).report.from_cache
    stamp = os.stat(path)
    write("d.jsonl", [{**PAIR, "chosen": " an insect"}])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    got = cached(path, chatml, tmp_path)
    assert not got.report.from_cache and texts(got, chatml)[1][0] == " an insect<|endoftext|>"


def test_corrupt_cache_is_said_and_built_again(
    write: Any, chatml: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("d.jsonl", [PAIR])
    good = cached(path, chatml, tmp_path)
    (stored,) = (tmp_path / "cache").iterdir()
    content = bytearray(stored.read_bytes())
    content[-20] ^= 1
    stored.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        got = cached(path, chatml, tmp_path)
    assert not got.report.from_cache and got.table.response_ids.tolist() == good.table.response_ids.tolist()
    assert len(caplog.records) == 1 and "Tokenizing the rows again" in caplog.text
    assert cached(path, chatml, tmp_path).report.from_cache


def test_cache_that_cannot_be_written_stops_nothing(
    write: Any, chatml: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("d.jsonl", [PAIR])
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        got = cached(path, chatml, tmp_path)
    assert len(got.table) == 1 and "could not be kept" in caplog.text


# hub and real data


def test_hub_rows_are_named_by_split_and_number(
    write: Any, chatml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []
    rows = [PAIR, {**PAIR, "chosen": ""}, PAIR]

    def load(path: str, **settings: Any) -> Any:
        asked.append((path, settings))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source("someone/pairs-v1.5", split="train_prefs", subset="small", revision="abc", limit=3)
    got = prepare([source], chatml, cache_dir=tmp_path / "cache")
    assert asked[0] == ("someone/pairs-v1.5", {"name": "small", "split": "train_prefs", "revision": "abc"})
    assert [bad.describe() for bad in got.report.bad] == ["someone/pairs-v1.5[train_prefs]:2: chosen: empty"]
    assert [got.table.origin(n) for n in (0, 1)] == [f"someone/pairs-v1.5[train_prefs]:{n}" for n in (1, 3)]
    assert prepare([source], chatml, cache_dir=tmp_path / "cache").report.from_cache
    rows[0] = {**PAIR, "rejected": " the bus"}
    assert not prepare([source], chatml, cache_dir=tmp_path / "cache").report.from_cache


def test_hub_that_cannot_be_reached_is_one_line(chatml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach\n the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = (
        r"^someone/pairs\[train\]: cannot be loaded as a hub dataset \(ConnectionError: Couldn't reach the Hub\)\. "
        r"Check the id, split"
    )
    with pytest.raises(DataError, match=message):
        prepare([Source("someone/pairs")], chatml)


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz", "rows.json", "lines.json", "rows.parquet", "file.arrow"],
)
def test_every_format_gives_the_same_rows(name: str, write: Any, tmp_path: Path) -> None:
    import csv
    import gzip
    import io

    rows = [PAIR, {**SAME, "chosen": 'two\nlines, "é"'}]
    path = tmp_path / name
    if name.endswith(("parquet", "arrow")):
        pa = pytest.importorskip("pyarrow")
        write_table(path, pa.Table.from_pylist(rows), "parquet" if name.endswith("parquet") else "arrow")
    else:
        text = io.StringIO(newline="")
        if ".csv" in name:
            writer = csv.DictWriter(text, list(PAIR))
            writer.writeheader()
            writer.writerows(rows)
        elif ".jsonl" in name or name == "lines.json":
            text.write("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        else:
            json.dump(rows, text, indent=2)
        content = text.getvalue().encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [row.value for row in read_rows(Source(str(path)))] == rows


def test_real_transcripts_load_without_a_mapping(shared_data: Path, chatml: Any) -> None:
    """2,312 rows, of which four have an answer without text."""
    path = shared_data / "hh-rlhf-harmless" / "test.jsonl.gz"
    got = prepare([Source(str(path))], chatml)
    assert got.report.sources[0].layout == "transcript"
    assert got.report.rows_read == 2312
    assert [bad.describe().rsplit(".gz:", 1)[1] for bad in got.report.bad] == [
        "87: chosen: empty answer",
        "517: chosen: empty answer",
        "926: chosen: empty answer",
        "1104: chosen: empty answer",
    ]
    assert got.report.groups + got.report.identical.count == 2308
    got.report.enforce(0.01)


def test_real_sharegpt_pairs_load_without_a_mapping(shared_data: Path, chatml: Any) -> None:
    path = shared_data / "llama-factory-demo" / "dpo_en_demo.json"
    got = prepare([Source(str(path), limit=100)], chatml)
    assert got.report.sources[0].layout == "sharegpt" and not got.report.bad
    assert got.report.pairs + got.report.identical.count == 100
    first = json.loads(path.read_text())[0]
    prompt, answers = texts(got, chatml)
    turns = "".join(f"<|im_start|>user\n{turn['value']}<|im_end|>\n" for turn in first["conversations"])
    assert prompt == turns + "<|im_start|>assistant\n"
    assert answers == [first[side]["value"] + "<|im_end|>\n" for side in ("chosen", "rejected")]
    lines = path.read_text().splitlines()
    assert all(lines[int(got.table.origin(n).rsplit(":", 1)[1]) - 1] == "  {" for n in range(len(got.table)))


def test_real_labelled_answers_load_without_a_mapping(shared_data: Path, chatml: Any) -> None:
    path = shared_data / "llama-factory-demo" / "kto_en_demo.json"
    got = prepare([Source(str(path))], chatml, needs=Needs("labelled"))
    assert got.report.sources[0].layout == "labelled (messages)" and not got.report.bad
    assert np.asarray(got.table.labels).tolist().count(1) == 150 and len(got.table) == 300
