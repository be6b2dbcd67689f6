"""What log-probs are built from: what is missing or does not fit is said in one line."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from prefopt.losses import functional, kto, tdpo, triple, wpo
from prefopt.types import LabelledLogps, ListLogps, PairLogps, SeqLogps

MASK = torch.ones(4, 3)


def answers(count: int = 4) -> SeqLogps:
    return SeqLogps.from_padded(-torch.rand(count, 3), torch.ones(count, 3))


def pairs() -> PairLogps:
    return PairLogps.from_concatenated(-torch.rand(4, 3), MASK)


def sides() -> LabelledLogps:
    return LabelledLogps(answers(), torch.tensor([True, False, True, True]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: tdpo(pairs(), pairs()),
            r"^SeqLogps\.stats: .* 'kl', .*from_padded\(logps, mask, kl=\.\.\.\)\.$",
        ),
        (lambda: wpo(pairs(), pairs()), r"^SeqLogps\.stats: .* 'log_sum_p2', which was not given\. "),
        (lambda: triple(pairs()), r"^PairLogps\.others: .* 'gold', .* others=\{'gold': \.\.\.\}\.$"),
        (lambda: kto(sides(), sides()), r"^LabelledLogps\.others: .* 'kl', .* others=\{'kl': \.\.\.\}\.$"),
    ],
    ids=["statistic", "statistic of a head", "third answer", "mismatched answers"],
)
def test_what_a_loss_reads_and_was_not_given_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_was_given_is_read_as_before():
    stats = SeqLogps.from_padded(-torch.rand(4, 3), MASK, kl=torch.ones(4, 3)).stats
    assert list(stats) == ["kl"] and "entropy" not in stats and stats.get("entropy") is None
    assert torch.equal(deepcopy(stats)["kl"], torch.ones(12))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1)])
def test_every_answer_has_a_label(shape):
    """A single label would stand for all four by broadcasting."""
    with pytest.raises(ValueError, match=r"^LabelledLogps: is_desirable has shape .* for 4 answers\."):
        LabelledLogps(answers(), torch.ones(shape, dtype=torch.bool))


def test_the_way_to_triple_that_functional_names_works():
    """A margin of none and a gold answer that is not read: log 2."""
    with pytest.raises(AttributeError, match=r"PairLogps\(chosen, rejected, \{'gold': gold\}\)"):
        functional.triple_loss  # noqa: B018
    side = answers(2)
    assert triple(PairLogps(side, side, {"gold": side}), alpha=0.0).loss.tolist() == pytest.approx(
        [math.log(2.0)] * 2
    )


def tokens(count: int, dtype: torch.dtype) -> torch.Tensor:
    return -torch.rand(count, generator=torch.Generator().manual_seed(count)).to(dtype)


DOORS = {
    "SeqLogps": lambda logps: SeqLogps(logps, (len(logps),)),
    "from_ragged": lambda logps: SeqLogps.from_ragged([logps]),
    "from_padded": lambda logps: SeqLogps.from_padded(logps[None], torch.ones(1, len(logps))),
    "from_concatenated": lambda logps: (
        PairLogps.from_concatenated(logps.expand(2, -1), torch.ones(2, len(logps))).chosen
    ),
    "take": lambda logps: SeqLogps(torch.cat([logps, logps]), (len(logps),) * 2).take([1]),
    "with_total": lambda logps: SeqLogps(logps, (len(logps),)).with_total(
        SeqLogps(logps, (len(logps),)).total
    ),
    "detach": lambda logps: SeqLogps(logps, (len(logps),)).detach(),
}
"""All ways to log-probs of one response."""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_sum_is_that_of_the_very_numbers_whatever_their_dtype(door, dtype):
    """By fsum of them: added up in bfloat16, 1,000 and 8,000 of them came to -256 alike."""
    for count in (300, 1000, 8000, 32_000):
        logps = tokens(count, dtype)
        answer = DOORS[door](logps)
        assert answer.total.tolist() == pytest.approx([math.fsum(logps.tolist())], rel=1e-14)
        assert answer.mean.tolist() == pytest.approx([math.fsum(logps.tolist()) / count], rel=1e-14)
        assert answer.tokens.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_statistics_and_replaced_sums_are_widened_too():
    """Ids and other whole numbers stay what they are."""
    stats = {"logsumexp": tokens(300, torch.bfloat16), "token_id": torch.arange(300)}
    found = SeqLogps(tokens(300, torch.float32), (300,), stats, torch.ones(1, dtype=torch.float16))
    assert {name: values.dtype for name, values in found.stats.items()} == {
        "logsumexp": torch.float32,
        "token_id": torch.int64,
    }
    assert found.replaced_total is not None and found.replaced_total.dtype == torch.float32
    added = found.with_stats({"kl": tokens(300, torch.float16)})
    assert added.stats["kl"].dtype == torch.float32
    exact = math.fsum(stats["logsumexp"].tolist())
    assert found.mean_of(found.stats["logsumexp"]).item() == pytest.approx(exact / 300, rel=1e-14)


def test_gradients_reach_narrow_and_wide_tokens_in_their_own_dtype():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logps = tokens(5, dtype).requires_grad_()
        (SeqLogps(logps, (2, 3)).total * torch.tensor([1.0, 2.0])).sum().backward()
        assert logps.grad is not None
        assert logps.grad.dtype == dtype and logps.grad.tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]


ONES = -torch.ones(3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SeqLogps(ONES, (0, 3)), r"^SeqLogps: lengths holds 0 at 0\. Give at least 1 everywhere\.$"),
        (lambda: SeqLogps(ONES, (4, -1)), r"^SeqLogps: lengths holds -1 at 1\."),
        (lambda: SeqLogps(ONES, (1.5, 1.5)), r"^SeqLogps: lengths is \(1\.5, 1\.5\)\. Give whole numbers\.$"),
        (lambda: SeqLogps(ONES, (math.nan,)), r"^SeqLogps: lengths is \(nan,\)\."),
        (
            lambda: SeqLogps(ONES, torch.tensor([3])),
            r"^SeqLogps: lengths is a tensor\. .*lengths\.tolist\(\)\.$",
        ),
        (lambda: SeqLogps(ONES, (2,)), r"^SeqLogps: tokens has shape \[3\] but lengths add up to 2\."),
        (lambda: SeqLogps(ONES.long(), (3,)), r"^SeqLogps: tokens has dtype int64\. Give floats, in nats\.$"),
        (lambda: SeqLogps(ONES.to(torch.complex64), (3,)), r"^SeqLogps: tokens has dtype complex64\."),
        (
            lambda: SeqLogps(ONES, (3,), {"kl": [0.0] * 3}),
            r"^SeqLogps: stat 'kl' is of type list\. Give a tensor\.$",
        ),
        (
            lambda: PairLogps.from_concatenated([[-1.0]] * 2, ONES),
            r"logps is of type list\. Give a tensor \[S, T\]\.$",
        ),
        (lambda: SeqLogps([-1.0, -2.0], (2,)), r"^SeqLogps: tokens is of type list\. Give a tensor\.$"),
        (
            lambda: SeqLogps(ONES, (3,), {"kl": ONES.to("meta")}),
            r"stat 'kl' is on meta, tokens on cpu\. Move one\.$",
        ),
        (lambda: SeqLogps(ONES, (3,), {"kl": ONES.to(torch.complex64)}), r"stat 'kl' is complex\."),
        (
            lambda: SeqLogps.from_ragged([[-1.0, -2.0]]),
            r"^SeqLogps\.from_ragged: logps\[0\] is of type list\. Give one 1-D tensor for each response\.$",
        ),
        (
            lambda: SeqLogps.from_ragged([ONES, np.ones(2)]),
            r"^SeqLogps\.from_ragged: logps\[1\] is of type ndarray",
        ),
        (
            lambda: SeqLogps.from_ragged([ONES[:, None]]),
            r"logps\[0\] is of shape \[3, 1\]\. Give one 1-D tensor",
        ),
        (lambda: SeqLogps.from_ragged([ONES], kl=[[0.0] * 3]), r"from_ragged: kl\[0\] is of type list"),
        (
            lambda: SeqLogps.from_padded(ONES, ONES),
            r"^SeqLogps\.from_padded: logps is of shape \[3\]\. .*\[S, T\]\.$",
        ),
        (
            lambda: SeqLogps.from_padded(ONES[None], [[1, 1, 1]]),
            r"^SeqLogps\.from_padded: mask is of type list",
        ),
        (
            lambda: PairLogps(SeqLogps(ONES, (3,)), SeqLogps(ONES.to("meta"), (3,))),
            r"^PairLogps: chosen is on cpu but rejected on meta\. Move one\.$",
        ),
        (
            lambda: LabelledLogps(answers(), torch.tensor([1, 0, 1, 1])),
            r"^LabelledLogps: is_desirable is of torch\.int64\. Give a tensor of bool, e\.g\. labels > 0\.$",
        ),
        (lambda: LabelledLogps(answers(), torch.ones(4)), r"is_desirable is of torch\.float32\."),
        (lambda: LabelledLogps(answers(), [True] * 4), r"^LabelledLogps: is_desirable is of list\."),
        (
            lambda: LabelledLogps(answers(), torch.ones(4, dtype=torch.bool, device="meta")),
            r"^LabelledLogps: answers is on cpu but is_desirable on meta\.",
        ),
        (lambda: ListLogps(answers(), (4, 0)), r"^ListLogps: group_sizes holds 0 at 1\."),
        (lambda: ListLogps(answers(), torch.tensor([4])), r"^ListLogps: group_sizes is a tensor\."),
        (lambda: ListLogps(answers(), (3,)), r"^ListLogps: groups of 3 answers in all, but 4 answers\.$"),
    ],
)
def test_what_cannot_be_log_probs_is_refused_in_one_line(build, words):
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: PairLogps(ONES, ONES),
            r"^PairLogps: chosen is of type Tensor\. Build a prefopt\.SeqLogps\.$",
        ),
        (lambda: PairLogps(answers(), answers(), {"gold": ONES}), r"^PairLogps: gold is of type Tensor\."),
        (lambda: LabelledLogps(ONES, ONES > 0), r"^LabelledLogps: answers is of type Tensor\."),
        (lambda: ListLogps(pairs(), (2,)), r"^ListLogps: answers is of type PairLogps\."),
    ],
)
def test_units_are_made_of_responses(build, words):
    with pytest.raises(TypeError, match=words):
        build()


def test_counts_of_numpy_serve_as_lengths():
    assert SeqLogps(ONES, np.array([1, 2])).lengths == (1, 2)
    assert ListLogps(answers(), np.array([1, 3])).group_sizes == (1, 3)


@pytest.mark.parametrize(
    ("mask", "odd"),
    [
        (torch.tensor([[1.0, 0.5], [1.0, 1.0]]), r"0\.5"),
        (torch.tensor([[-100, 7], [3, 4]]), "-100"),
        (torch.tensor([[1.0, math.nan], [1.0, 1.0]]), "nan"),
    ],
    ids=["weights", "labels", "nan"],
)
@pytest.mark.parametrize("door", [SeqLogps.from_padded, PairLogps.from_concatenated])
def test_a_mask_says_yes_or_no(door, mask, odd):
    """Whatever is not zero was scored: weights as 1, and the prompt that labels leave out by -100."""
    with pytest.raises(ValueError, match=rf"mask holds {odd}\. Give 1 at scored positions and 0 elsewhere"):
        door(-torch.ones(2, 2), mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_a_mask_of_any_dtype_says_the_same(dtype):
    mask = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    assert SeqLogps.from_padded(-torch.ones(2, 2), mask).lengths == (1, 2)


@pytest.mark.parametrize(
    "values", [torch.tensor([[0.3, 2.0]]), torch.tensor([[0.3, 0.9]]), torch.tensor([[-3.0, 12.0]])]
)
def test_costs_probabilities_and_logits_are_no_log_probs(values):
    """Trained on the negatives, a policy learns to prefer what was rejected."""
    with pytest.raises(
        ValueError, match=r"^SeqLogps\.from_padded: logps reaches from .* Give log-probs, which"
    ):
        SeqLogps.from_padded(values, torch.ones(1, 2))


def test_log_probs_that_are_rounded_or_not_scored_may_lie_above_zero():
    found = SeqLogps.from_padded(torch.tensor([[-1.0, 0.2, 9.0]]), torch.tensor([[1, 1, 0]]))
    assert found.total.item() == pytest.approx(-0.8)
    assert SeqLogps.from_padded(torch.tensor([[1e-6]]), torch.ones(1, 1)).lengths == (1,)
    unknown = SeqLogps.from_padded(torch.tensor([[math.nan, -1.0]]), torch.ones(1, 2))
    assert unknown.total.isnan().all()


@pytest.mark.parametrize(
    ("build", "kind", "said"),
    [
        (
            lambda: SeqLogps(ONES, (3,), replaced_total=[1.0]),
            ValueError,
            "SeqLogps: replaced_total is of type list",
        ),
        (
            lambda: SeqLogps(ONES, (3,)).with_total(torch.ones(1).long()),
            ValueError,
            "replaced_total has dtype int64",
        ),
        (
            lambda: SeqLogps(ONES, (3,)).with_total(torch.ones(1, device="meta")),
            ValueError,
            "SeqLogps: tokens is on cpu but replaced_total on meta. Move one",
        ),
        (lambda: SeqLogps(ONES, (3,), None), TypeError, "SeqLogps: stats is of type NoneType. Give a dict"),
        (lambda: PairLogps(answers(), answers(), None), TypeError, "PairLogps: others is of type NoneType"),
        (
            lambda: SeqLogps.from_ragged([ONES, torch.arange(3)]),
            ValueError,
            "SeqLogps.from_ragged: logps\\[1\\] has dtype int64",
        ),
        (
            lambda: SeqLogps.from_ragged([ONES, ONES.to("meta")]),
            ValueError,
            "SeqLogps.from_ragged: logps\\[0\\] is on cpu but logps\\[1\\] on meta",
        ),
        (
            lambda: SeqLogps.from_padded(ONES[None].to(torch.complex64), MASK[:1]),
            ValueError,
            "from_padded: logps has dtype complex64",
        ),
        (lambda: SeqLogps.from_padded(torch.zeros(0, 3), torch.zeros(0, 3)), ValueError, "logps has no row"),
    ],
)
def test_what_cannot_be_log_probs_is_named(build, kind, said):
    """Token ids among log-probs were added up as such."""
    with pytest.raises(kind, match=said):
        build()
