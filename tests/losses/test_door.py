"""The door of every loss: calls that a recipe would refuse, values that do not belong together, and rounding last."""

from __future__ import annotations

import functools
import inspect
import math
import pickle  # noqa: TID251 (how a spawned worker gets a loss)
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses import (
    LOSSES,
    TRANSFORMS,
    Loss,
    bound,
    contract_of,
    dpo,
    f_div,
    hinge,
    ipo,
    kto,
    mixed,
    offset,
    plackett_luce,
    pmpo,
    relative,
    reward_aware,
    sft,
    simpo,
    slic,
    weighted,
    with_nll,
)
from prefopt.losses._door import checked
from prefopt.losses.functional import on_sums
from prefopt.trainer.objective import Objective
from prefopt.types import LabelledLogps, ListLogps, LossOutput, PairLogps, Range, SeqLogps


def answers(*lengths: int, seed: int = 0) -> SeqLogps:
    generator = torch.Generator().manual_seed(seed)
    return SeqLogps(-torch.rand(sum(lengths), generator=generator), lengths)


def pairs(chosen: tuple[int, ...] = (3, 2), rejected: tuple[int, ...] = (1, 4), seed: int = 0) -> PairLogps:
    return PairLogps(answers(*chosen, seed=seed), answers(*rejected, seed=seed + 1))


def sides(*lengths: int) -> LabelledLogps:
    return LabelledLogps(answers(*lengths), torch.tensor([True, False]), {"kl": answers(2, 1)})


def lists(*sizes: int) -> ListLogps:
    return ListLogps(answers(*[2] * sum(sizes)), sizes)


UNITS = {
    "pairs": pairs,
    "labelled": lambda: sides(3, 2),
    "lists": lambda: lists(2, 2),
    "responses": lambda: answers(3, 2),
}


def mine(policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.1) -> LossOutput:
    """Pay the margin itself, in whatever dtype it has."""
    margin = policy.chosen.total - reference.chosen.total - policy.rejected.total + reference.rejected.total
    return LossOutput(-beta * margin, metrics={"margin": margin.detach()})


ILLEGAL = [
    (loss, name, value)
    for loss in LOSSES.values()
    for name, setting in contract_of(loss).settings.items()
    for value in (["avg", 1.0] if setting.choices else [None, "0.1", torch.tensor(0.1), math.nan])
]


def test_no_loss_takes_a_setting_that_a_recipe_could_not_have():
    """Every setting of every loss, with values of a wrong type or none of the choices, word for word as ``bound``."""
    for loss, name, value in ILLEGAL:
        policy = UNITS[contract_of(loss).structure]()
        given = [policy, policy] if contract_of(loss).needs_reference else [policy]
        with pytest.raises(RecipeError) as wanted:
            bound(loss, **{name: value})
        with pytest.raises(RecipeError) as caught:
            loss(*given, **{name: value})
        assert str(caught.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: dpo(p, p, beta=-1), r"^dpo\.beta: -1 is out of range\. Give a number > 0\.$"),
        (
            lambda p: LOSSES["robust"](p, p, label_smoothing=0.5),
            r"^robust\.label_smoothing: 0\.5 is out of range",
        ),
        (lambda p: ipo(p, p, norm="avg"), r"^ipo\.norm: 'avg' is no choice\. Give one of sum, mean\.$"),
        (lambda p: ipo(p, p, beta=0), r"^ipo\.beta: 0 is out of range"),
        (
            lambda p: reward_aware(
                p, p, chosen_score=p.chosen.total, rejected_score=p.chosen.total, divergence="fwd_kl"
            ),
            r"^reward_aware\.divergence: 'fwd_kl' is no choice\.",
        ),
        (
            lambda p: dpo(p, p, beta=torch.tensor(0.1)),
            r"^dpo\.beta: a tensor is not a number\. Give a number > 0\.$",
        ),
        (lambda p: f_div(dpo, divergence="x"), r"^f_div\.divergence: 'x' is no choice\."),
        (lambda p: with_nll(dpo)(p, p, beta=-1), r"^with_nll\(dpo\)\.beta: -1 is out of range"),
        (lambda p: with_nll(mine)(p, p, beta=-1), r"^with_nll\(mine\)\.beta: -1 is out of range"),
        (lambda p: mixed([mine], [1])(p, p, beta=-1), r"^mixed\(1 \* mine\)\.beta: -1 is out of range"),
        (lambda p: mixed([partial(dpo, beta=-1)], [1]), r"^dpo\.beta: -1 is out of range"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(call, message):
    with pytest.raises(RecipeError, match=message):
        call(pairs())


def test_a_number_of_numpy_serves_as_one():
    assert torch.equal(dpo(pairs(), pairs(), beta=np.float64(0.3)).loss, dpo(pairs(), pairs(), beta=0.3).loss)
    assert dpo(pairs(), pairs(), beta=np.float32(0.25)).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dpo(lists(2, 2), lists(2, 2)),
            r"^dpo: policy is of type ListLogps\. Build a prefopt\.PairLogps\.$",
        ),
        (
            lambda: dpo(torch.zeros(2), pairs()),
            r"^dpo: policy is of type Tensor\. Build a prefopt\.PairLogps\.$",
        ),
        (lambda: dpo(pairs(), (1, 2)), r"^dpo: reference is of type tuple\."),
        (lambda: sft(pairs()), r"^sft: policy is of type PairLogps\. Build a prefopt\.SeqLogps\.$"),
        (lambda: dpo(pairs()), "missing 1 required positional argument: 'reference'"),
        (dpo, "missing 2 required positional arguments"),
        (lambda: simpo(pairs(), pairs()), "takes 1 positional argument but 2 were given"),
        (lambda: dpo(pairs(), pairs(), betta=1.0), "betta"),
        (
            lambda: offset(pairs(), pairs(), chosen_score=[1.0, 2.0], rejected_score=torch.zeros(2)),
            r"^offset: chosen_score is of type list, no tensor\. Give \[2\]: the score of the chosen answer",
        ),
    ],
)
def test_another_type_is_named_with_the_one_to_build(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def scored(chosen: Tensor) -> LossOutput:
    return offset(pairs(), pairs(seed=2), chosen_score=chosen, rejected_score=torch.zeros(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dpo(pairs(), pairs((3,), (1,))),
            r"^dpo: policy holds 2 units but reference 1\. Give the same ones under both\.$",
        ),
        (
            lambda: dpo(pairs(), pairs((3, 2), (1, 3))),
            r"^dpo: rejected 1 has 4 scored tokens in policy but 3 in reference\. Score the same .*, by one mask\.$",
        ),
        (lambda: dpo(pairs(), pairs((2, 3), (1, 4))), "dpo: chosen 0 has 3 scored tokens in policy but 2"),
        (lambda: with_nll(mine)(pairs(), pairs((2, 3), (1, 4))), r"with_nll\(mine\): chosen 0 has 3 scored"),
        (
            lambda: plackett_luce(lists(2, 3), lists(3, 2), answer_score=torch.arange(5.0)),
            r"^plackett_luce: group 0 has 2 answers in policy but 3 in reference\. Group both alike\.$",
        ),
        (
            lambda: kto(sides(3, 2), replace(sides(3, 2), others={"kl": answers(2, 1, 1)})),
            r"^kto: policy holds 2 kl but reference 3\.",
        ),
        (
            lambda: dpo(pairs(), with_graph(pairs())),
            r"^dpo: reference carries a graph and would be trained as well\.",
        ),
        (
            lambda: dpo(pairs(), on_meta(pairs())),
            r"^dpo: policy is on cpu but reference on meta\. Move one\.$",
        ),
        (
            lambda: scored(torch.ones(2, 1)),
            r"^offset: chosen_score has shape \[2, 1\]\. Give \[2\]: the score of the chosen answer in the data\.$",
        ),
        (lambda: scored(torch.ones(1)), r"^offset: chosen_score has shape \[1\]\. Give \[2\]"),
        (lambda: scored(torch.ones(2, dtype=torch.complex64)), r"^offset: chosen_score is complex\."),
        (
            lambda: scored(torch.ones(2, device="meta")),
            r"^offset: chosen_score is on meta but policy on cpu\.",
        ),
        (
            lambda: plackett_luce(lists(2, 3), lists(2, 3), answer_score=torch.ones(2)),
            r"^plackett_luce: answer_score has shape \[2\]\. Give \[5\]: the score of each answer",
        ),
        (
            lambda: relative(pairs(), pairs(seed=2), prompt_embedding=torch.ones(8)),
            r"^relative: prompt_embedding has shape \[8\]\. Give \[2, E\]: ",
        ),
        (
            lambda: sft(answers(2, 3), mean_chosen_length=torch.ones(2), nll="batch_token"),
            r"^sft: mean_chosen_length has shape \[2\]\. Give \[\]: ",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def with_graph(pair: PairLogps) -> PairLogps:
    pair.chosen.tokens.requires_grad_()
    return pair


def on_meta(pair: PairLogps) -> PairLogps:
    return PairLogps(
        *(replace(side, tokens=side.tokens.to("meta"), stats={}) for side in (pair.chosen, pair.rejected))
    )


def test_a_reference_outside_the_graph_is_taken_as_before():
    policy = with_graph(pairs())
    assert dpo(policy, policy.detach()).loss.requires_grad


def test_sixteen_bit_inputs_are_widened():
    """2.75 and 0.0078125 are exact in bfloat16, their difference is not: it would be 2.734375 or 2.75."""
    scores = [torch.tensor([2.75, 2.75]), torch.tensor([0.0078125, 0.0]), torch.tensor([0.5, 0.5])]
    narrow = [score.bfloat16() for score in scores]
    pay = partial(LOSSES["mappo"], pairs(), pairs(seed=2))
    assert torch.equal(
        pay(chosen_score=narrow[2], rejected_score=narrow[1]).loss,
        pay(chosen_score=scores[2], rejected_score=scores[1]).loss,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_a_loss_of_ones_own_returns_is_rounded_by_every_door(dtype):
    """Sums are float64; a loss put through a door pays in the dtype of the log-probs, float32 for narrower ones."""
    pair = PairLogps(
        *(SeqLogps(side.tokens.to(dtype), side.lengths) for side in (pairs().chosen, pairs().rejected))
    )
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    doors = [dpo, bound(mine), with_nll(mine), mixed([mine], [1.0]), checked(mine)]
    doors += [lambda *given: Objective(mine, seed=0).compute(*given, {})]
    for loss in doors:
        output = loss(pair, pair)
        assert {value.dtype for value in (output.loss, *output.metrics.values())} == {wanted}, loss


def test_a_loss_of_ones_own_on_sums_is_rounded_too():
    sums = [torch.tensor([-3.0, -2.0]) for _ in range(4)]
    paid = on_sums(mine)(*sums)
    assert (paid if isinstance(paid, Tensor) else paid.loss).dtype == torch.float32


def exact_margin(policy: PairLogps, reference: PairLogps | None) -> float:
    def total(side: SeqLogps, other: SeqLogps | None) -> float:
        own = side.tokens.tolist()
        return math.fsum(own if other is None else [*own, *(-value for value in other.tokens.tolist())])

    chosen, rejected = (None, None) if reference is None else (reference.chosen, reference.rejected)
    return total(policy.chosen, chosen) - total(policy.rejected, rejected)


@pytest.mark.parametrize("tokens", [300, 1000, 8000, 32_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_margin_of_long_answers_is_exact_to_a_hundred_thousandth_of_a_nat(tokens, dtype):
    """The hinges pay 1 - h for h below 1: h by fsum of the very same numbers. Sums in float32 were off by 0.29."""

    def answer(seed: int) -> SeqLogps:
        values = -torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
        return SeqLogps(values.to(dtype), (tokens,))

    def near(side: SeqLogps, seed: int) -> SeqLogps:
        noise = 1e-3 * torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
        return SeqLogps((side.tokens - noise).to(dtype), (tokens,))

    policy = PairLogps(answer(1), answer(2))
    # shifted by less than a nat in all, so that float32 can hold h itself to a tenth of the bound
    reference = PairLogps(near(policy.chosen, 3), near(policy.rejected, 4))
    h = exact_margin(policy, reference)
    assert abs(hinge(policy, reference, beta=1e-3).loss.item() - max(0.0, 1.0 - 1e-3 * h)) <= 1e-7
    shift = abs(exact_margin(policy, None)) + 1.0
    assert abs(slic(policy, delta=shift, lam=0.0).loss.item() - (shift - exact_margin(policy, None))) <= 1e-5
    # without a scale in front of it
    assert abs(hinge(policy, reference, beta=1.0).loss.item() - max(0.0, 1.0 - h)) <= 1e-5


SCORED = ("offset", "reward_aware", "mappo", "exo_rw", "sppo")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", SCORED)
def test_scores_that_are_whole_numbers_count_as_those_numbers(name, dtype):
    """0 - 1 is 255 in uint8, and bools cannot be subtracted at all."""
    chosen, rejected = torch.tensor([0, 1]), torch.tensor([1, 0])
    pay = partial(LOSSES[name], pairs(), pairs(seed=2))
    found = pay(chosen_score=chosen.to(dtype), rejected_score=rejected.to(dtype)).loss
    assert torch.equal(found, pay(chosen_score=chosen.double(), rejected_score=rejected.double()).loss)


@pytest.mark.parametrize("name", ["sgdpo", "beta_dynamic"])
def test_seeds_draw_alike_in_every_whole_dtype_and_are_no_others(name):
    """Of int32 a shift by 41 bits leaves something else."""
    pay = partial(LOSSES[name], pairs(), pairs(seed=2))
    wanted = pay(pair_seed=torch.tensor([1, 2])).loss
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(pay(pair_seed=torch.tensor([1, 2], dtype=dtype)).loss, wanted)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(
            ValueError,
            match=rf"^{name}: pair_seed has dtype \w+, not int64\. Give \[2\]: a number that names",
        ):
            pay(pair_seed=torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"baseline": torch.tensor(3.0)}, ValueError, "baseline is given without baseline_count"),
        ({"baseline_count": torch.tensor(3)}, ValueError, "baseline_count is given without baseline"),
        ({"baseline": torch.ones(2)}, ValueError, r"baseline has shape \[2\], not \[\]"),
        ({"baseline": 3.0}, TypeError, "baseline is of type float, no tensor"),
        ({"baseline": torch.ones((), requires_grad=True)}, ValueError, "baseline carries a graph"),
    ],
)
def test_what_a_loss_carries_is_handed_back_whole_or_refused(given, kind, said):
    """One average without the other was taken for none, and two of them for one per pair."""
    if len(given) == 1 and "without" not in said:
        given = {**given, "baseline_count": torch.tensor(4)}
    for loss in (LOSSES["bco"], with_nll(LOSSES["bco"])):
        with pytest.raises(
            kind, match=rf": {said}\. Hand back the last output's: .*\*\*output\.carried\)\.$"
        ):
            loss(pairs(), pairs(), **given)


def averaging(policy: PairLogps, reference: PairLogps) -> LossOutput:
    """Pay an average."""
    return LossOutput(policy.chosen.total.mean())


def in_columns(policy: PairLogps, reference: PairLogps) -> LossOutput:
    """Pay a column, which would be added to each with every other."""
    return LossOutput(policy.chosen.total[:, None])


def bare(policy: PairLogps, reference: PairLogps) -> LossOutput:
    """Return a tensor."""
    return policy.chosen.total  # type: ignore[return-value]


def cut_off(policy: PairLogps, reference: PairLogps) -> LossOutput:
    """Pay what nothing is learned from."""
    return LossOutput(policy.chosen.total.detach())


def half(loss: Loss) -> Loss:
    """Pay the mean of it, twice over: a transform of one's own, around which functools.wraps copies a door."""

    @functools.wraps(loss)
    def pay(*args, **kwargs):
        output = loss(*args, **kwargs)
        return replace(output, loss=output.loss.mean())

    return pay


closed = bound(dpo, beta=0.3, label_smoothing=0.0)

AROUND = {
    "bound": bound,
    "with_nll": with_nll,
    "reward_gap_weight": lambda loss: partial(
        TRANSFORMS["reward_gap_weight"](loss), chosen_score=torch.ones(2), rejected_score=torch.zeros(2)
    ),
    "mixed": lambda loss: mixed([closed, loss], [1.0, 0.5]),
    "mixed partial": lambda loss: mixed([closed, partial(loss)], [1.0, 0.5]),
    "alone": checked,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (averaging, r"averaging returned loss of shape \[\] for 2 pairs\. Return LossOutput\(loss\)"),
        (in_columns, r"in_columns returned loss of shape \[2, 1\] for 2 pairs"),
        (bare, "bare returned a Tensor for 2 pairs"),
        (cut_off, "cut_off returned a loss without a gradient, so nothing would be learned"),
        (half(mine), r"mine returned loss of shape \[\] for 2 pairs"),
        (half(hinge), r"hinge returned loss of shape \[\] for 2 pairs"),
        (half(closed), r"dpo returned loss of shape \[\] for 2 pairs"),
    ],
    ids=["averaging", "in_columns", "bare", "cut_off", "half", "half of a door", "half of a composed one"],
)
def test_a_part_pays_for_every_unit_by_itself(around, loss, said):
    """What is added to it would hide an average, or that nothing is learned from this part."""
    policy = with_graph(pairs())
    policy.rejected.tokens.requires_grad_()
    if "beta" in contract_of(loss).settings:
        loss = bound(loss, beta=0.2)
    with pytest.raises(RecipeError, match=rf"^loss: {said}"):
        AROUND[around](loss)(policy, pairs(seed=2))


def test_a_loss_without_a_graph_is_fine_where_none_is_wanted():
    with torch.no_grad():
        assert cut_off(pairs(), pairs()).loss.shape == bound(cut_off)(with_graph(pairs()), pairs()).loss.shape
    assert bound(cut_off)(pairs(), pairs()).loss.shape == (2,)


@pytest.mark.parametrize(
    "name", [name for name, loss in LOSSES.items() if "answer_score" in contract_of(loss).inputs]
)
def test_a_score_that_is_no_number_ranks_nothing(name):
    """Sorted, NaN is the greatest or the least of all."""
    given = [lists(2, 3)] * (1 + contract_of(LOSSES[name]).needs_reference)
    paid = LOSSES[name](*given, answer_score=torch.tensor([0.1, 0.4, 0.3, math.nan, 0.2])).loss
    assert paid.isnan().tolist() == [False, True]


def test_numbers_that_are_none_of_the_reference_or_the_data_are_not_passed_over():
    """NaN is no lack of spread to alpha_margin, and no unknown degree to spo_selfsup."""
    spoilt = pairs(seed=2)
    spoilt.chosen.tokens[0] = math.nan
    assert LOSSES["alpha_margin"](pairs(), spoilt).loss.isnan().all()
    degree = torch.tensor([math.nan, 1.0])
    paid = LOSSES["spo_selfsup"](pairs(), pairs(seed=2), pair_margin=degree).loss
    assert paid.isnan().tolist() == [True, False]


def sent(loss: Loss) -> Loss:
    return pickle.loads(pickle.dumps(loss))  # noqa: S301 (written a moment ago)


@pytest.mark.parametrize("name", [*LOSSES, *TRANSFORMS])
def test_a_door_changes_nothing_that_a_reader_sees(name):
    loss = (LOSSES | TRANSFORMS)[name]
    written = inspect.unwrap(loss)
    assert sent(loss) is loss
    assert (loss.__name__, loss.__module__, loss.__doc__) == (
        written.__name__,
        written.__module__,
        written.__doc__,
    )
    assert inspect.signature(loss) == inspect.signature(written)
    assert f"def {loss.__name__}(" in inspect.getsource(loss)
    assert hasattr(loss, "door") == (name in LOSSES), f"Write @checked above {name}."


COMPOSED = {
    "bound": lambda: bound(dpo, beta=0.3),
    "mixed": lambda: mixed([bound(dpo, beta=0.3, label_smoothing=0.0), simpo], [1.0, 0.25]),
    "nested": lambda: with_nll(weighted(bound(ipo, norm="sum")), alpha=0.5),
    "own": lambda: with_nll(mine, alpha=0.5),
    "partial": lambda: mixed([partial(dpo, beta=0.3), partial(ipo, beta=0.2)], [1, 1]),
    **{name: lambda name=name: TRANSFORMS[name](dpo) for name in TRANSFORMS},
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_loss_is_pickled_as_the_calls_that_made_it(name):
    loss = COMPOSED[name]()
    twin = sent(loss)
    assert contract_of(twin) == contract_of(loss) and inspect.signature(twin) == inspect.signature(loss)
    contract = contract_of(loss)
    extra = {"token_id": torch.arange(5)} | {
        stat: -torch.rand(5, generator=torch.Generator().manual_seed(7))
        for stat in {*contract.policy_stats, *contract.reference_stats} - {"token_id"}
    }
    roles = {role: answers(1, 1) for role in contract.roles}
    policy, reference = (
        PairLogps(pair.chosen.with_stats(extra), pair.rejected.with_stats(extra), roles)
        for pair in (pairs(), pairs(seed=2))
    )
    inputs = {name: torch.tensor([0.5, 1.5]) for name in contract.inputs}
    given = (policy, reference) if contract.needs_reference else (policy,)
    assert torch.equal(twin(*given, **inputs).loss, loss(*given, **inputs).loss)


def test_a_partial_counts_as_closed_in_a_mixture():
    mixture = mixed([partial(dpo, beta=0.1), partial(ipo, beta=0.2)], [1, 0.5])
    assert list(contract_of(mixture).settings) == ["label_smoothing", "norm"]
    policy, reference = pairs(), pairs(seed=2)
    wanted = dpo(policy, reference, beta=0.1).loss + 0.5 * ipo(policy, reference, beta=0.2).loss
    torch.testing.assert_close(mixture(policy, reference).loss, wanted)


def test_no_check_waits_for_a_device_or_looks_at_numbers():
    """Meta tensors have none: pmpo's inputs and labels are compared by shape, type and device alone."""
    held = LabelledLogps(
        SeqLogps(torch.zeros(5, device="meta"), (3, 2), {"kl": torch.zeros(5, device="meta")}),
        torch.zeros(2, dtype=torch.bool, device="meta"),
    )
    output = pmpo(held, held.detach(), desirable_share=torch.tensor(0.5, device="meta"), alpha=0.5)
    assert output.loss.shape == (2,) and output.loss.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # asked for by torch.compile itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_that_builds_pairs_and_pays_for_them_is_compiled(backend):
    """Lengths are numbers of the mask, so building the pairs ends a graph; the loss itself is one."""
    mask = torch.ones(8, 6)
    mask[0, 4:], mask[5, 2:] = 0.0, 0.0
    logps = (-torch.rand(8, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    other = -torch.rand(8, 6, generator=torch.Generator().manual_seed(1))

    def step(logps: Tensor, mask: Tensor) -> Tensor:
        policy = PairLogps.from_concatenated(logps, mask)
        return dpo(policy, PairLogps.from_concatenated(other, mask), beta=0.1).loss.mean()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend)
    for seen in (mask, torch.ones(8, 6)):
        wanted, found = step(logps, seen), compiled(logps, seen)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, logps), torch.autograd.grad(wanted, logps))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "bound", "mixed", "nested"])
def test_a_loss_is_one_graph(name):
    loss = dpo if name == "dpo" else COMPOSED[name]()
    stats = {stat: -torch.rand(5) for stat in contract_of(loss).policy_stats}
    policy = PairLogps(*(side.with_stats(stats) for side in (pairs().chosen, pairs().rejected)))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *given: loss(*given).loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(policy, pairs(seed=2)), loss(policy, pairs(seed=2)).loss)
    with pytest.raises(RecipeError, match=r"dpo\.beta: -1 is out of range"):
        torch.compile(partial(dpo, beta=-1), backend="eager")(policy, pairs(seed=2))
