"""The benchmark of attention: the same pairs in every layout, wrong numbers never timed, a run stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.attention import measure as measuring
from benchmarks.attention.measure import NAMES, REPEATED, measure
from benchmarks.attention.packs import Repeated, draw, pack, truth, visible_pairs
from benchmarks.bench_attention import main
from benchmarks.shared import results
from benchmarks.shared.ops import Limits
from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.dense import dense_attention
from prefopt.kernels.prefix_attention.layout import dense_mask
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments

SHAPE = (5, 3, 4)


def test_rows_hold_as_many_pairs_as_fit() -> None:
    """12 tokens a pair: two in 25, one in 0; drawn lengths differ and stay within the budget."""
    assert pack(SHAPE, 25) == Segments((0, 5, 8, 12, 17, 20), (5, 3, 4, 5, 3, 4), (-1, 0, 0, -1, 3, 3))
    assert len(pack(SHAPE, 0)) == 3
    numbers = np.random.default_rng(0)
    drawn = [pack((50, 30, 40), 1000, numbers) for _ in range(3)]
    assert len({segments.lengths for segments in drawn}) == 3
    assert all(800 < sum(segments.lengths) <= 1000 for segments in drawn)


def test_visible_pairs_are_those_of_the_mask() -> None:
    segments = pack(SHAPE, 25)
    assert visible_pairs(segments) == int(dense_mask(segments, None, torch.device("cpu")).sum())


def test_repeated_prompts_are_the_same_problem() -> None:
    """Output and gradients of 2 P + C + R tokens, folded back, are those of the shared row."""
    shared = draw(pack(SHAPE, 25), (4, 2, 8), torch.float64, "cpu", 0)
    repeated = Repeated.of(shared)
    assert repeated.inputs.segments.lengths == (8, 9, 8, 9)
    found = []
    for inputs in (shared, repeated.inputs):
        leaves = inputs.leaves()
        out = dense_attention(*leaves, None, inputs.segments, Rule(8**-0.5))
        found.append([out.detach(), *torch.autograd.grad(out, leaves, inputs.upstream)])
    expected = truth(shared)
    for a, b, c in zip(found[0], repeated.fold(found[1], expected), expected, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-12)


def test_a_wrong_or_failing_back_end_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that leak from one answer to the next are refused with the reason, and so is what needs a GPU."""

    def leaky(
        query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
    ) -> Tensor:
        whole = Segments((0,), (sum(segments.lengths),), (-1,))
        return dense_attention(query, key, value, sinks, whole, rule)

    monkeypatch.setitem(BACKENDS, "dense", replace(BACKENDS["dense"], run=leaky))
    monkeypatch.setattr(measuring, "PACKINGS", 2)
    lines = {
        line.name: line for line in measure(SHAPE, "small", 30, torch.float32, "cpu", NAMES, Limits(2, 9.0))
    }
    assert lines["dense"].note.startswith("wrong: output is off by")
    assert lines["varlen"].note == lines["flex"].note == "runs on NVIDIA GPUs only, not on cpu"
    assert not lines["dense"].forward_ms and not lines["flex"].forward_ms
    for name in ("segments", REPEATED):
        assert lines[name].note == "" and max(lines[name].errors) < 1e-5
        assert len(lines[name].forward_ms) == len(lines[name].backward_ms) == 2
        assert lines[name].repeats_bits and lines[name].graphs == 0
    assert (lines["segments"].tokens, lines[REPEATED].tokens) == (24, 34)

    monkeypatch.setitem(BACKENDS, "dense", replace(BACKENDS["dense"], run=lambda *given: {}["no such"]))
    (line,) = measure(SHAPE, "small", 30, torch.float32, "cpu", ["dense"], Limits(2, 9.0))
    assert line.note.startswith("failed: KeyError: 'no such'")


def test_a_run_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON and as the table on the screen, with the speed relative to repeated prompts."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(measuring, "PACKINGS", 2)
    words = ["--device", "cpu", "--shape", "5,3,4", "--tokens", "30", "--turns", "2", "--threads", "1"]
    assert main(words) == 0
    record = json.loads((tmp_path / "attention_cpu.json").read_text())
    timed = [line["name"] for line in record["lines"] if line["forward_ms"]]
    assert timed == ["segments", "dense", REPEATED]
    said = capsys.readouterr().out
    # 8 * 9 / 2 + 9 * 10 / 2 = 81 pairs of tokens against 15 + 15 + 6 + 20 + 10 = 66
    assert "repeating prompts weighs 1.23 times as many pairs of tokens" in said
    assert "flex              runs on NVIDIA GPUs only, not on cpu" in said
