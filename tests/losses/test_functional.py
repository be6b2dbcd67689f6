"""The plain-tensor door gives what the losses give, and says where it cannot."""

import inspect
import math
import re

import pytest
import torch

import prefopt.types
from prefopt.errors import RecipeError
from prefopt.losses import (
    LOSSES,
    contract_of,
    cpo,
    dpo,
    functional,
    hinge,
    ipo,
    rdpo_length,
    reward_aware,
    simpo,
    with_nll,
)
from prefopt.losses._on_sums import _stand_in, instead, on_sums
from prefopt.types import (
    INPUTS,
    MASK_STATS,
    PAIRED_STATS,
    STATS,
    LabelledLogps,
    ListLogps,
    LossOutput,
    PairLogps,
)

WITHOUT_DOOR = ("wpo", "ld_dpo", "sgdpo", "triple", "rationale", "sft")
WITHOUT_DOOR += ("tdpo", "mapo", "sparse_mask", "sparse_mask_independent", "pmpo")
OF_ANSWERS = ("aot_unpaired", "bco_unpaired", "kto", "apo_zero_unpaired")
OF_LISTS = ("plackett_luce", "pro_rank", "rrhf", "infonca_k", "nca_k", "exo_k", "tree", "sppo_k")
OF_PAIRS = [name for name in LOSSES if name not in (*WITHOUT_DOOR, *OF_ANSWERS, *OF_LISTS)]
SUMS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")
OPTIONAL_LENGTHS = ("ipo", "reward_aware", "alpha_margin")
"""These read lengths for means alone; ``pro_rank`` always, though it has a ``norm`` as well."""


@pytest.fixture
def policy(pairs):
    return pairs([[-1.0, -2.0], [-0.5]], [[-5.0], [-1.0, -3.0, -2.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.5], [-1.5]], [[-4.0], [-1.0, -2.0, -2.0]])


@pytest.fixture
def sums(policy, reference):
    sides = (policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    return dict(zip(SUMS, (side.total for side in sides), strict=True))


@pytest.fixture
def lengths(policy):
    return {"chosen_lengths": policy.chosen.length, "rejected_lengths": policy.rejected.length}


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-15, atol=0.0)  # one order of division apart


INPUT_VALUES = {
    "chosen_score": [0.9, 0.4],
    "rejected_score": [0.2, 0.5],
    "pair_margin": [2.0, 0.0],
    "soft_label": [0.9, 0.6],
    "prompt_embedding": [[1.0, 0.0], [0.6, 0.8]],
    "answer_score": [0.3, 0.9, 0.1, 0.2, 0.7],
}
INPUT_TENSORS = {name: torch.tensor(value, dtype=torch.float64) for name, value in INPUT_VALUES.items()}
INPUT_TENSORS |= {"pair_seed": torch.tensor([4, 9])}
CARRIED = {
    "baseline": torch.tensor(0.02).double(),
    "baseline_count": torch.tensor(40),
    "gap_mean": torch.tensor(0.3).double(),
    "gap_std": torch.tensor(0.8).double(),
    "margin_mean": torch.tensor(-0.2).double(),
    "margin_std": torch.tensor(0.5).double(),
}


def settings_of(contract):
    """Nothing, every number moved, and each choice alone."""
    yield {}
    numbers = {key: s for key, s in contract.settings.items() if s.type is float and s.only_with is None}
    yield {key: 0.3 for key, s in numbers.items() if 0.3 in (s.range or [0.3])}
    for key, setting in contract.settings.items():
        yield from ({key: choice} for choice in setting.choices or ())


def assert_same_paid(got, output):
    """Loss, rewards and what is carried; the mean of an answer is rounded once more through equal tokens."""
    rewards = [r for r in (output.chosen_reward, output.rejected_reward) if r is not None]
    kept = [dict(got.carried)] if output.carried else []
    torch.testing.assert_close(
        [*got], [output.loss, *rewards, *([dict(output.carried)] if kept else [])], rtol=1e-13, atol=1e-15
    )
    assert got.loss is got[0]


def paid(name, logps, tensors):
    """Call the door and the loss alike, at every setting, in a first and in a later step."""
    contract, door = contract_of(LOSSES[name]), getattr(functional, f"{name}_loss")
    takes = inspect.signature(door).parameters
    inputs = {key: INPUT_TENSORS[key] for key in contract.inputs if key in INPUT_TENSORS}
    for settings in settings_of(contract):
        is_read = name not in OPTIONAL_LENGTHS or settings.get("norm", takes["norm"].default) == "mean"
        given = {k: v for k, v in tensors.items() if k in takes and (is_read or k not in LENGTHS)}
        if settings.get("nll") == "batch_token":
            settings = settings | {"mean_chosen_length": torch.tensor(1.5).double()}
        for carried in [{}, {key: CARRIED[key] for key in contract.carried}]:
            output = LOSSES[name](*logps[: 1 + contract.needs_reference], **inputs, **carried, **settings)
            assert_same_paid(door(**given, **inputs, **carried, **settings), output)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_door_pays_what_the_loss_over_pairs_pays(name, policy, reference, sums, lengths):
    paid(name, (policy, reference), sums | lengths)


TOKENS = [[-1.0, -2.0], [-0.5], [-5.0], [-1.0, -3.0, -2.0], [-0.7]]
REFERENCE = [[-2.0, -2.5], [-1.5], [-4.0], [-1.0, -2.0, -2.0], [-0.9]]


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_a_door_pays_what_the_loss_over_answers_pays(name, answers):
    labels = torch.tensor([True, False, False, True, True])
    sides = [answers(TOKENS), answers(REFERENCE)]
    others = [answers([[-3.0, -1.0], [-2.0]]), answers([[-4.0, -1.5], [-1.0]])]
    logps = [LabelledLogps(side, labels, {"kl": other}) for side, other in zip(sides, others, strict=True)]
    tensors = {"policy_logps": sides[0].total, "ref_logps": sides[1].total, "is_desirable": labels}
    tensors |= {"policy_kl_logps": others[0].total, "ref_kl_logps": others[1].total}
    paid(name, logps, tensors)


@pytest.mark.parametrize("name", OF_LISTS)
def test_a_door_pays_what_the_loss_over_lists_pays(name, answers):
    sides = [answers(TOKENS), answers(REFERENCE)]
    tensors = {"policy_logps": sides[0].total, "ref_logps": sides[1].total, "lengths": sides[0].length}
    for sizes in ((3, 2), torch.tensor([3, 2])):
        paid(name, [ListLogps(side, (3, 2)) for side in sides], tensors | {"group_sizes": sizes})


def test_what_is_paid_unpacks_as_where_such_losses_come_from(sums):
    """Three of a pair, as in HALOs, SimPO, torchtune and TRL before 1.0; the loss alone by its name."""
    losses, chosen_rewards, rejected_rewards = functional.dpo_loss(**sums, beta=0.2)
    same(functional.dpo_loss(**sums, beta=0.2).loss, losses)
    # log-ratios 1.5 and 1, -1 and -1, at beta 0.2
    assert chosen_rewards.tolist() == pytest.approx([0.3, 0.2], rel=1e-14)
    assert rejected_rewards.tolist() == pytest.approx([-0.2, -0.2], rel=1e-14)


def test_labelled_answers_get_a_reward_each_in_their_order():
    """Kto around a drift of (1 + 3) / 2 = 2: at 2 the good answer is on the line, the bad one costs sigmoid(-1.5)."""
    zero = torch.zeros(2, dtype=torch.float64)
    losses, rewards = functional.kto_loss(
        torch.tensor([2.0, -1.0]).double(),
        torch.tensor([1.0, 3.0]).double(),
        zero,
        zero,
        torch.tensor([True, False]),
        beta=0.5,
    )
    assert losses.tolist() == pytest.approx([0.5, 0.182426], abs=1e-6)
    assert rewards.tolist() == [1.0, -0.5]


def test_what_is_carried_goes_into_the_next_step(sums):
    """The first mean reward is that of four: 0.2 * (1.5 + 1 - 1 - 1) / 4 = 0.025; the second step adds the same."""
    carried = {}
    for count in (4, 8):
        _, _, _, carried = functional.bco_loss(**sums, **carried, beta=0.2)
        assert carried["baseline"].item() == pytest.approx(0.025, rel=1e-13)
        assert carried["baseline_count"].item() == count


def test_losses_with_a_norm_take_lengths_for_means_only(policy, reference, sums, lengths):
    same(functional.ipo_loss(**sums, **lengths).loss, ipo(policy, reference).loss)
    same(functional.ipo_loss(**sums, norm="sum").loss, ipo(policy, reference, norm="sum").loss)
    scores = {key: torch.tensor(INPUT_VALUES[key]).double() for key in ("chosen_score", "rejected_score")}
    got = functional.reward_aware_loss(**sums, **lengths, **scores, norm="mean")
    same(got.loss, reward_aware(policy, reference, **scores, norm="mean").loss)


def test_likelihood_over_the_tokens_of_the_step(policy, sums, lengths):
    chosen = list(sums.values())[:2]
    length = torch.tensor(1.5, dtype=torch.float64)
    got = functional.cpo_loss(*chosen, **lengths, nll="batch_token", mean_chosen_length=length)
    same(got.loss, cpo(policy, nll="batch_token", mean_chosen_length=length).loss)
    with pytest.raises(ValueError, match="mean_chosen_length is missing"):
        functional.cpo_loss(*chosen, **lengths, nll="batch_token")


def test_lengths_go_by_place_too(policy, reference, sums, lengths):
    got = functional.rdpo_length_loss(*sums.values(), *lengths.values(), alpha=0.3)
    same(got.loss, rdpo_length(policy, reference, alpha=0.3).loss)
    got = functional.simpo_loss(*list(sums.values())[:2], *lengths.values(), gamma=0.5)
    same(got.loss, simpo(policy, gamma=0.5).loss)


def test_doors_take_settings_of_every_kind(policy, reference, sums):
    for name, settings in {
        "dpo": {"beta": 0.3, "label_smoothing": 0.2},
        "focal": {"gamma": 0.4, "detach_weight": True},
        "convex": {"link": "savage"},
        "exo_pref": {"label_smoothing": 0.1},
    }.items():
        got = getattr(functional, f"{name}_loss")(**sums, **settings)
        same(got.loss, LOSSES[name](policy, reference, **settings).loss)


def test_a_door_says_what_it_takes():
    door = functional.exo_rw_loss
    keywords = ("chosen_score", "rejected_score", "beta", "beta_r")
    assert tuple(inspect.signature(door).parameters) == (*SUMS, *keywords)
    assert door.__name__ == "exo_rw_loss"
    assert "prefopt.losses.exo_rw" in door.__doc__
    assert ", ".join(keywords) in door.__doc__


def test_the_result_is_differentiable_and_per_pair(sums):
    sums["policy_chosen_logps"].requires_grad_()
    loss, *rewards = functional.dpo_loss(**sums)
    assert loss.shape == (2,) and not any(reward.requires_grad for reward in rewards)
    loss.sum().backward()
    assert (sums["policy_chosen_logps"].grad < 0).all()


def test_integer_lengths_do(sums, lengths):
    whole = {name: value.long() for name, value in lengths.items()}
    same(functional.ipo_loss(**sums, **whole).loss, functional.ipo_loss(**sums, **lengths).loss)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_here_with_its_defaults_or_says_what_to_build(name):
    if name in WITHOUT_DOOR:
        with pytest.raises(AttributeError, match=rf"no {name}_loss. .*Logps.from_.*prefopt.losses.{name}\("):
            getattr(functional, f"{name}_loss")
        return
    keyword = inspect.signature(getattr(functional, f"{name}_loss")).parameters.values()
    given = {
        p.name: p.default for p in keyword if p.kind is p.KEYWORD_ONLY and p.name not in (*INPUTS, *CARRIED)
    }
    assert given == {key: setting.default for key, setting in contract_of(LOSSES[name]).settings.items()}


@pytest.mark.parametrize("name", WITHOUT_DOOR)
def test_what_it_says_to_build_instead_can_be_built(name):
    """The code of the message, run with what it names: four rows of three tokens, one prompt a pair of rows."""
    told = instead(contract_of(LOSSES[name]))
    values, answers, call = re.fullmatch(
        r"Build (.*?)(?:, each by (.*))? from per-token log-probs.* and call (prefopt\.losses\..*\)).*\.",
        told,
    ).groups()
    logps = -torch.arange(1.0, 13.0, dtype=torch.float64).view(4, 3) / 12
    around = torch.full((4, 3), 0.5, dtype=torch.float64)
    given = dict.fromkeys((*STATS, *PAIRED_STATS, *MASK_STATS), around) | {
        "pair_seed": torch.tensor([1, 2]),
        "answer_score": torch.tensor([1.0, 0.0, 0.5, 2.0]),
        "desirable_share": torch.tensor(0.5),
        "prompt_embedding": torch.eye(2).double(),
        "mean_chosen_length": torch.tensor(3.0),
    }
    names = {
        **vars(prefopt.types),
        "prefopt": prefopt,
        "given": given,
        "logps": logps,
        "mask": torch.ones(4, 3),
    }
    names |= {"is_desirable": torch.tensor([True, False] * 2), "group_sizes": (2, 2), "carried": {}}
    if answers:
        exec(f"chosen = rejected = answers = gold = rationale = kl = {filled(answers)}", names)
    exec(f"policy = reference = {filled(values)}\nloss = {filled(call)}.loss", names)
    assert names["loss"].isfinite().all()


def filled(code):
    return re.sub(r"(\w+)=\.\.\.", r"\1=given['\1']", code)


def test_a_loss_of_ones_own_is_made_a_function_of_sums(sums):
    """Twice the margin of dpo at beta 0.1 is dpo at beta 0.2; a transform of tokens is refused."""

    def twice(policy: PairLogps, reference: PairLogps, *, beta: float = 0.1) -> LossOutput:
        return dpo(policy, reference, beta=2 * beta)

    same(functional.on_sums(twice)(**sums).loss, functional.dpo_loss(**sums, beta=0.2).loss)
    with pytest.raises(
        ValueError, match=r"with_nll\(dpo\): It reads the log-probs of its single tokens\. Build"
    ):
        on_sums(with_nll(dpo))


def test_a_loss_that_is_added_to_the_table_is_here(sums, monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", hinge)
    assert "mine_loss" in dir(functional)
    same(functional.mine_loss(**sums).loss, functional.hinge_loss(**sums).loss)


def test_other_names_are_ordinary_attribute_errors():
    with pytest.raises(AttributeError, match="label_smoothing above 0"):
        _ = functional.cdpo_loss
    with pytest.raises(AttributeError, match="has no attribute 'orpo_los'"):
        _ = functional.orpo_los


def test_bad_values_are_refused_at_the_door(sums, lengths):
    with pytest.raises(RecipeError, match=r"dpo_loss.beta: 0 is out of range. Give a number > 0."):
        functional.dpo_loss(**sums, beta=0)
    with pytest.raises(ValueError, match="norm='mean' needs chosen_lengths and rejected_lengths"):
        functional.ipo_loss(**sums)
    with pytest.raises(ValueError, match="norm='sum' does not use lengths"):
        functional.ipo_loss(**sums, **lengths, norm="sum")
    with pytest.raises(RecipeError, match=r"ipo_loss.norm: 'avg' is no choice"):
        functional.ipo_loss(**sums, norm="avg")
    sums["ref_chosen_logps"] = sums["ref_chosen_logps"][:1]
    with pytest.raises(
        ValueError, match=r"dpo_loss: the tensors have shapes .*\[1\].*Give one value per pair"
    ):
        functional.dpo_loss(**sums)
    with pytest.raises(TypeError, match=r"sppo_loss: missing .*'chosen_score'\. It takes"):
        functional.sppo_loss(*[torch.zeros(2)] * 4, rejected_score=torch.zeros(2))
    with pytest.raises(ValueError, match=r"sppo_loss: the tensors have shapes .*\[3\]"):
        functional.sppo_loss(
            *[torch.zeros(2)] * 4, chosen_score=torch.zeros(2), rejected_score=torch.zeros(3)
        )
    with pytest.raises(TypeError, match=r"hinge_loss: got an unexpected .*'betta'\. It takes .*beta"):
        functional.hinge_loss(*[torch.zeros(2)] * 4, betta=1.0)
    with pytest.raises(ValueError, match=r"simpo_loss: the tensors have shapes \[\[2, 1\]"):
        functional.simpo_loss(*[torch.zeros(2, 1)] * 4)


def test_bad_answers_and_lists_are_refused_at_the_door():
    two, three, labels = torch.zeros(2), torch.zeros(3), torch.tensor([True, False])
    with pytest.raises(
        ValueError, match=r"^apo_zero_unpaired_loss: is_desirable is torch.int64 \[2\] for 2 ans"
    ):
        functional.apo_zero_unpaired_loss(two, two, labels.long())
    with pytest.raises(
        ValueError, match=r"is_desirable is torch.bool \[2\] for 3 answers. Give a tensor of one"
    ):
        functional.apo_zero_unpaired_loss(three, three, labels)
    with pytest.raises(ValueError, match=r"is_desirable is list for 2 answers"):
        functional.apo_zero_unpaired_loss(two, two, [True, False])
    with pytest.raises(
        ValueError, match=r"^kto_loss: .*Give one value per mismatched answer, \[K\], everywhere"
    ):
        functional.kto_loss(two, three, two, two, labels)
    with pytest.raises(ValueError, match=r"^kto_loss: .*\[\[2\], \[3\]\]. Give one value per answer, \[S\]"):
        functional.kto_loss(two, two, three, two, labels)
    with pytest.raises(
        TypeError, match=r"^kto_loss: missing .*'is_desirable'. It takes policy_logps, policy_kl"
    ):
        functional.kto_loss(two, two, two, two)
    with pytest.raises(TypeError, match=r"^dpo_loss: list is no tensor. Give tensors \[P\]"):
        functional.dpo_loss([0.0, 0.0], two, two, two)
    for sizes in ((2, 2), (3, 0), ()):
        with pytest.raises(
            ValueError, match=r"^nca_k_loss: group_sizes \[.*\] do not split 3 answers. Give how"
        ):
            functional.nca_k_loss(three, three, sizes, answer_score=three)
    with pytest.raises(ValueError, match=r"^nca_k_loss: .* \[\[3\], \[2\]\], the second of answer_score"):
        functional.nca_k_loss(three, three, (2, 1), answer_score=two)
    with pytest.raises(TypeError, match=r"^rrhf_loss: missing .*'lengths'"):
        functional.rrhf_loss(three, (2, 1), answer_score=three)


def test_lengths_below_one_are_refused(sums, lengths):
    lengths["rejected_lengths"][1] = 0.0
    with pytest.raises(
        ValueError, match=r"simpo_loss: rejected_lengths holds 0. Give at least one scored token"
    ):
        functional.simpo_loss(*list(sums.values())[:2], **lengths)


def test_stand_ins_have_the_totals_means_and_lengths_of_the_answers(sums, policy):
    """What the doors rely on; without lengths a single token's total is its value."""
    value = sums["policy_chosen_logps"]
    assert torch.equal(_stand_in(value, None).total, value)
    stand_in = _stand_in(value, policy.chosen.lengths)
    assert torch.equal(stand_in.total, value)
    assert torch.equal(stand_in.length, policy.chosen.length)
    torch.testing.assert_close(stand_in.mean, policy.chosen.mean, rtol=1e-15, atol=0.0)  # one rounding


def test_the_gradient_passes_through_sums_and_means(sums, lengths):
    """CPO at alpha 1: each chosen sum gets -0.1 * sigmoid(-m) - 1 / length."""
    chosen, rejected = (sums[name].requires_grad_() for name in list(SUMS)[:2])
    functional.cpo_loss(chosen, rejected, **lengths).loss.sum().backward()
    pull = 0.1 * torch.sigmoid(-0.1 * (chosen - rejected)).detach()
    torch.testing.assert_close(chosen.grad, -pull - 1.0 / lengths["chosen_lengths"], rtol=1e-14, atol=0.0)
    torch.testing.assert_close(rejected.grad, pull, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (2.7, r"holds 2\.7"),
        (math.nan, "holds nan"),
        (math.inf, "holds inf"),
        (True, "has dtype bool"),
        (2j, "has dtype complex64"),
    ],
)
def test_lengths_are_whole_numbers(sums, length, said):
    """2.7 tokens were 2."""
    counts = torch.tensor([length, length])
    with pytest.raises(
        ValueError, match=rf"^simpo_loss: chosen_lengths {said}\. Give at least one scored token"
    ):
        functional.simpo_loss(*list(sums.values())[:2], counts, torch.ones(2))
