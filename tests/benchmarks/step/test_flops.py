"""The operations and lengths that the full-size step benchmark reckons with, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from benchmarks.step.flops import LAYOUTS, Load, Sizes, load_of, step_flops
from benchmarks.step.models import MODELS, SMALL, build_base, with_adapters
from benchmarks.step.workloads import FIRST_ID, WORKLOADS, Workload, describe, rows_of

SMALLEST = Sizes(layers=1, hidden=2, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocab=5)
ROW = [[(2, (1, 2))]]
SHAPES = [(128, 256, 256), (512, 256, 256), (2048, 512, 512), (8192, 512, 512)]
TABLE = {
    "Qwen3-0.6B": ["3.8 3.7 3.2 2.4", "7.9 6.8 4.9 3.7", "31.2 26.4 17.0 13.0", "161 141 77.6 59.5"],
    "Qwen3-1.7B": ["10.7 10.4 9.0 6.8", "21.8 19.5 13.6 10.3", "77.2 67.7 42.4 32.1", "318 278 151 114"],
    "Llama-3.1-8B": ["46.5 45.9 38.8 29.2", "93.6 89.8 60.9 45.9", "323 307 187 141", "1224 1156 620 468"],
}
"""TFLOP of a pair at each of ``SHAPES``, all weights trained: padded with kept logits of all rows,
padding-free, shared, and shared with a cached reference."""


def test_trunk_and_adapters_count_matrices() -> None:
    """Query and output 2 * 2 * 2, key and value the same, MLP 3 * 2 * 3: 34. Rank 1: 4 * (2 + 2) + 3 * (2 + 3) = 31."""
    assert SMALLEST.trunk == 34
    assert SMALLEST.adapter_of(1) == 31


def test_loads_of_every_layout() -> None:
    """Prompt 2, answers 1 and 2. Shared: 5 tokens, see 3 + (2 + 1) + (4 + 3) = 13. Apart: rows of 3 and 4,
    see 6 + 10. Padded to 4: 8 tokens, see 10 each. Scored are 3, or every token.
    """
    assert load_of(ROW, "shared") == Load(tokens=5, seen=13, scored=3)
    assert load_of(ROW, "padding-free") == Load(tokens=7, seen=16, scored=3)
    assert load_of(ROW, "padded") == Load(tokens=8, seen=20, scored=3)
    assert load_of(ROW, "padded", scores_all=True).scored == 8


def test_padding_goes_to_the_longest_of_its_batch() -> None:
    """Rows of 3 and 5: apart 3 + 3 + 5 + 5, together 4 * 5."""
    rows = [(1, (2, 2)), (1, (4, 4))]
    assert load_of([rows[:1], rows[1:]], "padded").tokens == 16
    assert load_of([rows], "padded").tokens == 20


def test_step_adds_forward_backward_and_reference() -> None:
    """5 tokens through 34 weights: 2 * 5 * 34 = 340; 13 pairs * 4 * 2 = 104; head 2 * 3 * 5 * 2 = 60: forward 504.
    Backward 680 + 13 * 10 * 2 + 3 * 60 = 1120, kept logits 60 less, layers once more 444 more.
    """
    load = load_of(ROW, "shared")
    assert step_flops(SMALLEST, load) == 504 + 1120 + 504
    assert step_flops(SMALLEST, load, is_cached=True) == 504 + 1120
    assert step_flops(SMALLEST, load, is_cached=True, head="kept") == 504 + 1060
    assert step_flops(SMALLEST, load, is_cached=True, recomputes_layers=True) == 504 + 1120 + 444


def test_adapters_leave_out_the_weights_own_gradients() -> None:
    """31 adapter weights: forward 2 * 5 * 65 + 104 + 60; backward 5 * (2 * 34 + 4 * 31) + 260 + 60."""
    sizes = Sizes(1, 2, 3, 1, 1, 2, 5, adapter=31)
    step = step_flops(sizes, load_of(ROW, "shared"), is_cached=True, head="frozen")
    assert step == (650 + 104 + 60) + (960 + 260 + 60)


@pytest.mark.parametrize("name", TABLE)
def test_operations_of_known_models(name: str) -> None:
    for (prompt, chosen, rejected), line in zip(SHAPES, TABLE[name], strict=True):
        sizes, rows = MODELS[name].sizes, [[(prompt, (chosen, rejected))]]
        shared = load_of(rows, "shared")
        found = (
            step_flops(sizes, load_of(rows, "padded", scores_all=True), head="kept"),
            step_flops(sizes, load_of(rows, "padding-free")),
            step_flops(sizes, shared),
            step_flops(sizes, shared, is_cached=True),
        )
        for value, text in zip(found, line.split(), strict=True):
            unit = 10.0 ** -len(text.partition(".")[2])
            assert abs(value / 1e12 - float(text)) <= 0.51 * unit, (name, prompt, text, value)


def test_more_answers_share_more() -> None:
    """8B, a prompt of 2048 and answers of 512: 1.64 times fewer operations for 2 answers, 3.13 for 8."""
    sizes = MODELS["Llama-3.1-8B"].sizes
    for count, expected in ((2, 1.64), (4, 2.40), (8, 3.13), (16, 3.69)):
        rows = [[(2048, (512,) * count)]]
        ratio = step_flops(sizes, load_of(rows, "padding-free")) / step_flops(sizes, load_of(rows, "shared"))
        assert ratio == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen3-0.6B", 596_049_920), ("Qwen3-1.7B", 1_720_574_976), ("Llama-3.1-8B", 8_030_261_248)],
)
def test_models_have_their_published_size(name: str, parameters: int) -> None:
    """From one narrow layer of each kind: matrices as counted, and norms, of two widths in Qwen3."""
    model = MODELS[name]
    sizes = model.sizes
    narrow = replace(sizes, layers=1, hidden=16, intermediate=24, heads=4, kv_heads=2, head_dim=4, vocab=10)
    layer = build_base(replace(model, sizes=narrow, dtype="float32"), "cpu", 0).model.layers[0]
    linear = [part.weight.numel() for part in layer.modules() if isinstance(part, nn.Linear)]
    assert sum(linear) == narrow.trunk
    norms = [p.shape[0] for p in layer.parameters() if p.dim() == 1]
    assert sorted(norms) == ([4, 4, 16, 16] if model.kind == "qwen3" else [16, 16])
    norm_weights = 2 * sizes.hidden + (2 * sizes.head_dim if model.kind == "qwen3" else 0)
    embeddings = sizes.vocab * sizes.hidden * (1 if model.ties else 2)
    assert sizes.trunk + sizes.layers * norm_weights + sizes.hidden + embeddings == parameters


def test_adapters_are_as_many_as_counted() -> None:
    pytest.importorskip("peft")
    sizes = Sizes(2, 16, 24, 4, 2, 4, 50)
    model = replace(SMALL, kind="qwen3", sizes=sizes, rank=3)
    adapted = with_adapters(build_base(model, "cpu", 0), model, seed=0, is_start=True)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == model.counted.adapter


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name.startswith("like")])
def test_lengths_have_the_published_medians(name: str) -> None:
    """With as many rows as a run takes, 4 per cent: whole tokens, and a sum's median of few rows."""
    published = {
        "UltraFeedback": (409, 0.42),
        "HH": (186, 2.15),
        "MetaMath": (872, 3.91),
        "Tulu-HelpSteer": (775, 6.34),
    }
    workload = WORKLOADS[name]
    length, ratio = published[name.removeprefix("like ")]
    rows = workload.rows(15 * workload.pairs_per_step)
    found = describe(rows)
    assert found["length_median"] == pytest.approx(length, rel=0.04)
    assert found["prompt_to_answer"] == pytest.approx(ratio, rel=0.02)
    assert found["longest"] <= workload.longest
    assert rows == workload.rows(15 * workload.pairs_per_step)


def test_sharing_saves_what_the_ratio_allows() -> None:
    """Equal lengths: (2 P + C + R) / (P + C + R) = 1.2, 1.5, 5 / 3 and 17 / 9 of the tokens."""
    for (prompt, chosen, rejected), ratio in zip(SHAPES, (1.2, 1.5, 5 / 3, 17 / 9), strict=True):
        rows = [WORKLOADS[f"{prompt} + {chosen} / {rejected}"].rows(3)]
        loads = {layout: load_of(rows, layout) for layout in LAYOUTS}
        assert loads["padding-free"].tokens / loads["shared"].tokens == pytest.approx(ratio)
        assert loads["padded"] == loads["padding-free"]


def test_groups_hold_the_drawn_lengths_and_disjoint_pairs() -> None:
    workload = Workload("four", 9, (3,) * 4, prompt_spread=0.5, answer_spread=0.5, longest=14)
    groups = workload.groups(20, vocab=40)
    assert rows_of(groups) == workload.rows(20)
    assert [(p.chosen, p.rejected) for p in groups[0].preferences] == [(0, 1), (2, 3)]
    ids = [i for g in groups for part in (*g.prompts, *g.responses) for i in part.tolist()]
    assert min(ids) >= FIRST_ID and max(ids) < 40
    assert max(prompt + own for prompt, owns in rows_of(groups) for own in owns) <= 14
