"""A pack without memory is the pack that trains, for every family of models that can be trained."""

from __future__ import annotations

import pytest
import torch
from families import EXACT, Family

from prefopt.data.packs.pack import group_of, pack
from prefopt.errors import ModelError
from prefopt.kernels.linear_logp import chunked
from prefopt.memory.ledger import Ledger, Moment
from prefopt.memory.outline import StepModels, _lines, outline
from prefopt.memory.stand_ins import HEAD_BACKWARD, Sample, Target
from prefopt.policy import Policy

CPU = Target.of("cpu", torch.float32)


@pytest.mark.parametrize("family", EXACT.values(), ids=EXACT)
def test_what_a_family_keeps_after_the_forward_is_what_is_alive(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the head's own logits are counted apart
    monkeypatch.setattr(chunked, "CACHE_BYTES", {"cpu": 0, "cuda": 0})
    policy = Policy(family.build())
    groups = [group_of([*range(3, 28)], [[*range(4, 16)], [*range(5, 18)]], row_id=row) for row in range(4)]
    batch = pack(groups)
    found = outline(StepModels(policy.model), Sample.of(pack(groups[:1])), CPU)
    policy.model.train()
    policy(batch)  # masks and tables of rotations are made once, and are not counted
    known = [*policy.model.parameters(), *policy.model.buffers()]
    with Ledger(known, "forward") as ledger:
        logps = policy(batch)
        ledger.note("end")
    assert logps.tokens.requires_grad
    alive = ledger.moments[-1].live
    kept = found.lines[HEAD_BACKWARD][0].at(batch.num_tokens)
    # numbers per row, which so small a model has nearly as many of as of hidden states
    assert kept == pytest.approx(alive, rel=0.05)


def test_a_line_goes_through_both_sizes_and_low_ones_are_left_out() -> None:
    """Twice as many tokens: 100 becomes 150, so 50 stay and 5 come with each of 10; 80 becomes 90: lower."""
    once = [Moment("a", 100, 0), Moment("a", 80, 0), Moment("a", 20, 70), Moment("b", 8, 0)]
    twice = [Moment("a", 150, 0), Moment("a", 90, 0), Moment("a", 20, 70), Moment("b", 16, 0)]
    found = _lines(once, twice, 10)
    # the second is higher for fewer than 5 tokens, the third where gradients count
    assert found["a"] == ((50, 5, 0), (70, 1, 0), (20, 0, 70))
    assert found["b"] == ((0, 0.8, 0),)
    lower = _lines([*once, Moment("a", 90, 0)], [*twice, Moment("a", 130, 0)], 10)
    assert lower == found


def test_a_size_between_and_beyond_is_on_the_line() -> None:
    policy = Policy(EXACT["qwen3_moe"].build())
    sample = Sample.uniform(24, (12, 12))
    lines = outline(StepModels(policy.model, ("adapter",)), sample, CPU).lines
    doubled = outline(StepModels(policy.model, ("adapter",)), sample.twice().twice(), CPU).lines
    for phase, each in lines.items():
        tops = [max(line.at(tokens) for line in each) for tokens in (48, 480)]
        assert tops == pytest.approx(
            [max(line.at(t) for line in doubled[phase]) for t in (48, 480)], rel=1e-6
        )


def test_a_model_that_does_something_else_on_longer_rows_is_refused() -> None:
    policy = Policy(EXACT["llama"].build())
    plain = policy.model.lm_head.forward  # type: ignore[union-attr,operator]
    layer = policy.model.model.layers[0].mlp  # type: ignore[union-attr,operator]
    forward = layer.forward

    def longer(hidden: torch.Tensor) -> torch.Tensor:
        return forward(hidden) if hidden.shape[1] < 60 else forward(hidden) + forward(hidden)

    layer.forward = longer
    with pytest.raises(ModelError, match="what it does depends on the tokens"):
        outline(StepModels(policy.model), Sample.uniform(24, (12,)), CPU)
    assert policy.model.lm_head.forward == plain  # type: ignore[union-attr,operator]
