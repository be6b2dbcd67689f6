"""One battery for every loss and every composition: a new entry in ``LOSSES`` is picked up by itself.

Each case is a loss with its settings fixed: all entries at their defaults and once more for each
setting moved off its default, every transform on every loss it fits, its settings and nestings on a
few, and mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import pairwise, permutations

import pytest
import torch
from lanes import slow_but
from meta_device import META, Watch, pose_as_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.errors import RecipeError
from prefopt.losses import (
    LOSSES,
    TRANSFORMS,
    alpha_margin,
    alphapo,
    aot,
    apo_zero_unpaired,
    bco,
    bco_pair,
    beta_dynamic,
    bound,
    contract_of,
    convex,
    cpo,
    dpo,
    dpop,
    exo_k,
    exo_pref,
    exo_rw,
    f_div,
    flex,
    focal,
    focal_hard,
    hinge,
    infonca_k,
    ipo,
    joint_prompt,
    kto,
    ld_dpo,
    length_desensitized,
    mapo,
    mappo,
    mixed,
    nca_k,
    nca_pair,
    offset,
    plackett_luce,
    prior_scaled,
    prompt_contrast,
    rationale,
    rdpo_length,
    ref_scale,
    relative,
    reverse,
    reward_aware,
    reward_gap_weight,
    robust,
    settings_of,
    simpo,
    soft_label,
    sparse_mask,
    sparse_mask_independent,
    spo_selfsup,
    sppo,
    sppo_hard,
    sppo_k,
    suffix_from_divergence,
    tdpo,
    token_weighted,
    triple,
    weighted,
    with_nll,
    with_rationale,
    wpo,
)
from prefopt.losses._compose import COMBINING
from prefopt.losses._contract import Loss, Setting, read_docstring
from prefopt.losses._terms import recording_stops, replaying_stops
from prefopt.types import (
    OTHER_REFERENCES,
    READS,
    STATS,
    TOKEN_STATS,
    LabelledLogps,
    ListLogps,
    LossOutput,
    PairLogps,
    SeqLogps,
)

NUM_UNITS = 5
CHOSEN_LENGTHS = (3, 1, 4, 2, 6)
REJECTED_LENGTHS = (2, 5, 4, 1, 3)
OTHER_LENGTHS = (4, 2, 1, 3, 5)
GROUP_SIZES = (2, 4, 3, 2, 3)
LIST_LENGTHS = (3, 1, 2, 5, 1, 4, 2, 2, 6, 1, 3, 4, 1, 2)
LIST_SCORES = (0.2, 0.9, 1.3, -0.4, 0.6, 0.1, -0.7, 0.8, 1.1, 0.3, 0.5, -0.1, 0.4, 1.5)


def off_default(setting: Setting) -> list:
    """Legal values of a setting other than its default: all of a closed set, one number."""
    if setting.choices is not None:
        return [choice for choice in setting.choices if choice != setting.default]
    if setting.type is bool:
        return [not setting.default]
    legal = [
        v for v in (0.3, 0.7, 2.5) if v != setting.default and (setting.range is None or v in setting.range)
    ]
    return legal[:1]


def moved(key: str, value: object, setting: Setting) -> dict:
    """Give a setting a value, and the one that it depends on a choice beside which it has an effect."""
    rule = setting.only_with
    return {key: value} if rule is None else {rule.setting: rule.choices[0], key: value}


COMPOSED = ("dpo", "simpo")
"""Losses that meet every transform, setting of a transform and order of two; others meet all transforms at once."""


CARRIED = {
    "baseline": torch.tensor(0.02, dtype=torch.float64),
    "baseline_count": torch.tensor(40),
    "gap_mean": torch.tensor(0.3, dtype=torch.float64),
    "gap_std": torch.tensor(0.8, dtype=torch.float64),
    "margin_mean": torch.tensor(-0.2, dtype=torch.float64),
    "margin_std": torch.tensor(0.5, dtype=torch.float64),
}
"""What earlier steps may have left; a new name is taught here."""


def all_cases() -> dict[str, Loss]:
    cases: dict[str, Loss] = {}
    for name, loss in LOSSES.items():
        cases[name] = loss
        for key, setting in contract_of(loss).settings.items():
            cases |= {
                f"{name}-{key}={v}": bound(loss, **moved(key, v, setting)) for v in off_default(setting)
            }
        if carried := contract_of(loss).carried:
            cases[f"{name}-later step"] = partial(loss, **{key: CARRIED[key] for key in carried})
        if name in COMPOSED:
            cases |= compositions(name)
        elif contract_of(loss).structure == "pairs":
            cases |= all_at_once(name)
    whole = [bound(LOSSES[name], **defaults(LOSSES[name])) for name in ("dpo", "ipo", "simpo", "wpo", "cpo")]
    cases["mixed-all"] = mixed(whole, [0.5 + 0.25 * i for i in range(len(whole))])
    cases["with_nll(mixed)"] = with_nll(mixed(whole[:2], [0.8, 0.2]), nll="batch_token")
    return cases


def tried(loss: Loss, transform: str, **settings: object) -> Loss | None:
    """Apply a transform, or return None where it refuses; ``test_combine`` and the losses' own tests hold refusals."""
    try:
        return TRANSFORMS[transform](loss, **settings)
    except RecipeError:
        return None


def all_at_once(name: str) -> dict[str, Loss]:
    built, text = LOSSES[name], name
    for transform in TRANSFORMS:
        # a second reference doubles what is drawn, and "dpo" and "simpo" meet those transforms anyway
        if transform not in COMBINING and (applied := tried(built, transform)):
            built, text = applied, f"{transform}({text})"
    return {text: built}


def compositions(name: str) -> dict[str, Loss]:
    cases: dict[str, Loss | None] = {}
    for transform in TRANSFORMS:
        cases[f"{transform}({name})"] = tried(LOSSES[name], transform)
        for key, setting in settings_of(TRANSFORMS[transform]).items():
            cases |= {
                f"{transform}({name})-{key}={v}": tried(LOSSES[name], transform, **moved(key, v, setting))
                for v in off_default(setting)
            }
    for inner, outer in permutations(TRANSFORMS, 2):
        within = tried(LOSSES[name], inner)
        cases[f"{outer}({inner}({name}))"] = within and tried(within, outer)
    return {text: loss for text, loss in cases.items() if loss is not None}


def defaults(loss: Loss) -> dict:
    return {name: setting.default for name, setting in contract_of(loss).settings.items()}


ON_PAIRS = [name for name, loss in LOSSES.items() if contract_of(loss).structure == "pairs"]
CASES = all_cases()
NEIGHBOURS = {f"{outer}({inner}(dpo))" for inner, outer in pairwise(TRANSFORMS)}
# by default every loss, setting and transform, and each transform inside and around another
every_case = pytest.mark.parametrize(
    "loss", slow_but(lambda name: name.count("(") < 2 or name in NEIGHBOURS, CASES)
)


def draw(lengths: Sequence[int], stats: Sequence[str], dtype: torch.dtype, seed: int) -> SeqLogps:
    generator = torch.Generator().manual_seed(seed)
    known = (*STATS, *OTHER_REFERENCES, *TOKEN_STATS[len(STATS) :])
    values = torch.rand(1 + len(known), sum(lengths), generator=generator, dtype=torch.float64).to(dtype)
    kept = {}
    for name, value in zip(known, values[1:], strict=True):
        if name in stats:
            kept[name] = -value if name in (*STATS, *OTHER_REFERENCES) else value
    if "token_id" in stats:
        kept["token_id"] = (kept["token_id"] < 0.5).long()  # two ids, so that some answers begin alike
    return SeqLogps(tokens=-2.0 * values[0], lengths=tuple(lengths), stats=kept)


def units(structure: str, stats: Sequence[str], dtype: torch.dtype, seed: int, roles: Sequence[str] = ()):
    """Draw log-probs of ``NUM_UNITS`` units in the loss's structure; a new structure is taught here."""
    chosen = draw(CHOSEN_LENGTHS, stats, dtype, seed)
    others = {role: draw(OTHER_LENGTHS, stats, dtype, seed + 2 + i) for i, role in enumerate(roles)}
    if structure == "pairs":
        return PairLogps(chosen, draw(REJECTED_LENGTHS, stats, dtype, seed + 1), others)
    if structure == "labelled":
        return LabelledLogps(chosen, torch.tensor([True, False, True, True, False]), others)
    if structure == "lists":
        return ListLogps(draw(LIST_LENGTHS, stats, dtype, seed), GROUP_SIZES)
    assert structure == "responses", f"the battery cannot draw {structure} yet"
    return chosen


def arguments(loss: Loss, dtype: torch.dtype = torch.float64) -> dict:
    """Everything the contract of ``loss`` asks for."""
    contract = contract_of(loss)
    roles = contract.roles
    given = {"policy": units(contract.structure, contract.policy_stats, dtype, 0, roles)}
    if contract.needs_reference:
        given["reference"] = units(contract.structure, contract.reference_stats, dtype, 10, roles)
    inputs = {
        "chosen_score": torch.linspace(0.5, 1.5, NUM_UNITS, dtype=dtype),
        "rejected_score": torch.linspace(0.7, -0.2, NUM_UNITS, dtype=dtype),
        "pair_margin": torch.linspace(0.0, 1.0, NUM_UNITS, dtype=dtype),
        "soft_label": torch.linspace(0.55, 0.95, NUM_UNITS, dtype=dtype),
        "pair_seed": torch.arange(NUM_UNITS) + 1,
        "answer_score": torch.tensor(LIST_SCORES, dtype=dtype),
        "desirable_share": torch.tensor(0.6, dtype=dtype),
        "prompt_embedding": torch.linspace(-1.0, 2.0, 3 * NUM_UNITS, dtype=dtype).view(NUM_UNITS, 3).sin(),
        "mean_chosen_length": torch.tensor(sum(CHOSEN_LENGTHS) / NUM_UNITS, dtype=dtype),
    }
    if contract.structure != "lists":
        inputs["answer_score"] = inputs["answer_score"][:NUM_UNITS]
    return given | {name: inputs[name] for name in contract.inputs}


def sides_of(value) -> list[SeqLogps]:
    if isinstance(value, PairLogps):
        return [value.chosen, value.rejected, *value.others.values()]
    if isinstance(value, ListLogps):
        return [value.answers]
    return [value.answers, *value.others.values()] if isinstance(value, LabelledLogps) else [value]


def with_sides(value, sides: Sequence[SeqLogps]):
    if isinstance(value, PairLogps):
        return PairLogps(*sides[:2], dict(zip(value.others, sides[2:], strict=True)))
    if isinstance(value, LabelledLogps):
        others = dict(zip(value.others, sides[1:], strict=True))
        return replace(value, answers=sides[0], others=others)
    return replace(value, answers=sides[0]) if isinstance(value, ListLogps) else sides[0]


def leaves(given: dict) -> list[Tensor]:
    """List every float tensor that a gradient may reach: all but the reference's."""
    found: list[Tensor] = []
    for name, value in given.items():
        if name == "reference":
            continue
        if isinstance(value, Tensor):
            found += [value] if value.is_floating_point() else []
        else:
            found += [t for side in sides_of(value) for t in (side.tokens, *_floats(side).values())]
    return found


def _floats(side: SeqLogps) -> dict[str, Tensor]:
    return {name: value for name, value in side.stats.items() if value.is_floating_point()}


def with_leaves(given: dict, tensors: Sequence[Tensor]) -> dict:
    """Put ``tensors`` where ``leaves`` found them."""
    remaining = iter(tensors)
    rebuilt = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            rebuilt[name] = next(remaining) if value.is_floating_point() else value
            continue
        if name == "reference":
            rebuilt[name] = value
            continue
        sides = []
        for side in sides_of(value):
            tokens = next(remaining)
            moved = {k: next(remaining) for k in _floats(side)}
            sides.append(replace(side, tokens=tokens, stats={**side.stats, **moved}))
        rebuilt[name] = with_sides(value, sides)
    return rebuilt


def tensors_of(output: LossOutput) -> dict[str, Tensor]:
    found = {"loss": output.loss, "chosen": output.chosen_reward, "rejected": output.rejected_reward}
    return {name: value for name, value in {**found, **output.metrics}.items() if value is not None}


@every_case
def test_gradient_equals_finite_differences_with_stopped_values_held(loss):
    given = arguments(loss)
    with recording_stops() as stopped:
        loss(**given)
    inputs = [leaf.clone().requires_grad_() for leaf in leaves(given)]

    def pay(*tensors: Tensor) -> Tensor:
        with replaying_stops(stopped):
            return loss(**with_leaves(given, tensors)).loss

    assert torch.autograd.gradcheck(pay, inputs, fast_mode=False)
    held = torch.autograd.grad(pay(*inputs).sum(), inputs, allow_unused=True)
    live = torch.autograd.grad(loss(**with_leaves(given, inputs)).loss.sum(), inputs, allow_unused=True)
    for one, other in zip(held, live, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@every_case
def test_output_is_one_value_per_unit_in_the_inputs_dtype(loss):
    for dtype in (torch.float32, torch.float64):
        for name, value in tensors_of(loss(**arguments(loss, dtype))).items():
            assert value.shape == (NUM_UNITS,), name
            assert value.dtype == dtype, name


class Narrowed(TorchDispatchMode):
    """Names every operation that casts float64 to a narrower float and changes a number by it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        if (
            op is torch.ops.aten._to_copy.default
            and args[0].dtype == torch.float64
            and made.is_floating_point()
        ):
            self.ops += [] if torch.equal(made.double(), args[0]) else [str(made.dtype)]
        return made


@every_case
def test_no_number_passes_through_float32_on_its_way_to_float64(loss):
    """Neither by a cast nor as a constant, which torch makes in its default dtype, and a setting is rarely exact in."""
    with Narrowed() as narrowed:
        plain = tensors_of(loss(**arguments(loss)))
    assert narrowed.ops == []
    torch.set_default_dtype(torch.float64)
    try:
        wide = tensors_of(loss(**arguments(loss)))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in plain.items():
        assert torch.equal(value, wide[name]), name


def stretched(value, dtype: torch.dtype, times: int = 1000):
    """Repeat every token, and hold the same numbers in another dtype; answers become as long as documents."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value

    def repeated(tokens: Tensor) -> Tensor:
        tokens = tokens.repeat_interleave(times)
        return tokens.to(dtype) if tokens.is_floating_point() else tokens

    sides = [
        SeqLogps(
            repeated(side.tokens),
            tuple(times * length for length in side.lengths),
            {name: repeated(values) for name, values in side.stats.items()},
        )
        for side in sides_of(value)
    ]
    return with_sides(value, sides)


@pytest.mark.parametrize("loss", slow_but(lambda name: name in LOSSES, CASES))
def test_float32_is_float64_rounded_last(loss):
    """Answers of up to 6,000 tokens, the same numbers in either dtype; sums in float32 were off by 6e-3 nats."""
    given = arguments(loss, torch.float32)
    narrow, wide = (
        tensors_of(loss(**{name: stretched(value, dtype) for name, value in given.items()}))
        for dtype in (torch.float32, torch.float64)
    )
    for name, value in wide.items():
        # 2^-24, and once more for what is computed from inputs in float32
        torch.testing.assert_close(narrow[name].double(), value, rtol=2.5e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("loss", slow_but(lambda name: name in LOSSES, CASES))
def test_autocast_changes_no_loss(loss):
    """A trainer that computes losses in its model's context gets the same: products would be taken in bfloat16."""
    given = arguments(loss, torch.float32)
    plain = tensors_of(loss(**given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, value in tensors_of(loss(**given)).items():
            assert torch.equal(value, plain[name]), name


@every_case
def test_only_the_loss_carries_a_gradient(loss):
    given = arguments(loss)
    inputs = [leaf.requires_grad_() for leaf in leaves(given)]
    for name, value in tensors_of(loss(**with_leaves(given, inputs))).items():
        assert value.requires_grad == (name == "loss"), name


def answer_order(order: Sequence[int], count: int) -> list[int]:
    """Return the order of ``count`` answers when units are moved: the units' own, or that of whole groups."""
    if count == NUM_UNITS:
        return list(order)
    starts = [sum(GROUP_SIZES[:group]) for group in range(NUM_UNITS)]
    return [starts[group] + at for group in order for at in range(GROUP_SIZES[group])]


def on_meta(value):
    if isinstance(value, Tensor):
        return value.to(META)
    sides = [
        SeqLogps(side.tokens.to(META), side.lengths, {name: v.to(META) for name, v in side.stats.items()})
        for side in sides_of(value)
    ]
    if isinstance(value, LabelledLogps):
        others = dict(zip(value.others, sides[1:], strict=True))
        return LabelledLogps(sides[0], value.is_desirable.to(META), others)
    return with_sides(value, sides)


@every_case
def test_a_gpu_is_never_waited_for(loss, monkeypatch: pytest.MonkeyPatch):
    """Forward and backward read no number of the device on the host, and copy to it without waiting."""
    pose_as_gpu(monkeypatch)
    given = {name: on_meta(value) for name, value in arguments(loss).items()}
    inputs = [leaf.requires_grad_() for leaf in leaves(given)]
    with Watch() as watch:
        torch.autograd.grad(loss(**with_leaves(given, inputs)).loss.sum(), inputs, allow_unused=True)
    assert watch.waits == []


@every_case
def test_units_permute_with_their_inputs(loss):
    order = [3, 0, 4, 1, 2]
    given = arguments(loss)
    moved = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            moved[name] = value[answer_order(order, len(value))] if value.dim() else value
            continue
        if isinstance(value, ListLogps):
            answers = value.answers.take(answer_order(order, len(value.answers)))
            moved[name] = ListLogps(answers, tuple(GROUP_SIZES[group] for group in order))
            continue
        moved[name] = with_sides(value, [side.take(order) for side in sides_of(value)])
        if isinstance(value, LabelledLogps):
            moved[name] = replace(moved[name], is_desirable=value.is_desirable[order])
    before, after = tensors_of(loss(**given)), tensors_of(loss(**moved))
    # averages over the step add its units up in another order
    rtol = 1e-13 if contract_of(loss).is_whole_step else 0.0
    for name, value in before.items():
        torch.testing.assert_close(value[order], after[name], rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if contract_of(loss).carried])
def test_what_it_carries_is_named_in_its_signature_and_counts_in_the_next_step(name):
    loss = LOSSES[name]
    given = arguments(loss)
    with_grad = with_leaves(given, [leaf.requires_grad_() for leaf in leaves(given)])
    first = loss(**with_grad)
    assert tuple(first.carried) == contract_of(loss).carried
    assert not any(value.requires_grad for value in first.carried.values())
    for key, value in first.carried.items():
        changed = loss(**given, **{**first.carried, key: value * 3 + 1})
        kept = loss(**given, **first.carried)
        same = [torch.equal(kept.loss, changed.loss)]
        same += [torch.equal(kept.carried[name], changed.carried[name]) for name in kept.carried]
        assert not all(same), key


@every_case
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_at_margins_of_ten_thousand_in_float32(loss, sign):
    """Every token of one side gets 1e4 / beta nats, so sums and means alike reach a margin of +-1e4 at least.

    In a list every second answer is pushed.
    """
    given = arguments(loss, torch.float32)
    setting = contract_of(loss).settings.get("beta")
    nats = -1e4 / (setting.default if setting else 0.01)
    sides = sides_of(given["policy"])
    far = sides[min(1, len(sides) - 1)] if sign > 0 else sides[0]
    pushed = [replace(s, tokens=torch.full_like(s.tokens, nats)) if s is far else s for s in sides]
    if isinstance(given["policy"], ListLogps):
        far = sides[0].sequence_of % 2 == (sign > 0)
        pushed = [replace(sides[0], tokens=torch.where(far, nats, sides[0].tokens))]
    given["policy"] = with_sides(given["policy"], pushed)
    inputs = [leaf.clone().requires_grad_() for leaf in leaves(given)]
    output = loss(**with_leaves(given, inputs))
    for name, value in tensors_of(output).items():
        assert torch.isfinite(value).all(), name
    for gradient in torch.autograd.grad(output.loss.sum(), inputs, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@every_case
def test_stats_it_does_not_ask_for_do_not_matter(loss):
    """NaN in every stat that the contract does not name changes no bit."""
    given = arguments(loss)
    contract = contract_of(loss)
    asked = {"policy": contract.policy_stats, "reference": contract.reference_stats}
    poisoned = dict(given)
    for name in asked.keys() & given.keys():
        sides = []
        for side in sides_of(given[name]):
            poison = {s: torch.full_like(side.tokens, math.nan) for s in TOKEN_STATS if s not in asked[name]}
            sides.append(replace(side, stats={**side.stats, **poison}))
        poisoned[name] = with_sides(given[name], sides)
    clean, dirty = tensors_of(loss(**given)), tensors_of(loss(**poisoned))
    assert clean.keys() == dirty.keys()
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def alike(side: SeqLogps, has_lengths: bool) -> SeqLogps:
    """The same totals, of equal tokens: as many as there were, or one an answer."""
    if not has_lengths:
        return SeqLogps(tokens=side.total, lengths=(1,) * len(side))
    mean = side.total / side.length
    return SeqLogps(mean[side.sequence_of], side.lengths, replaced_total=side.total)


@pytest.mark.parametrize("name", [n for n in LOSSES if not contract_of(LOSSES[n]).policy_stats])
def test_it_says_what_it_reads_of_an_answer(name):
    """The least that gives what the loss pays, at its defaults and with every setting moved."""

    def is_enough(has_lengths: bool) -> bool:
        for loss in (loss for case, loss in CASES.items() if case.split("-")[0] == name):
            given = arguments(loss)
            seen = {
                key: value
                if isinstance(value, Tensor)
                else with_sides(value, [alike(side, has_lengths) for side in sides_of(value)])
                for key, value in given.items()
            }
            # equal tokens round the mean once more
            if not torch.allclose(loss(**seen).loss, loss(**given).loss, rtol=1e-12, atol=1e-12):
                return False
        return True

    read = "sum" if is_enough(False) else "length" if is_enough(True) else "tokens"
    assert contract_of(LOSSES[name]).reads == read, (
        f'{name} reads {READS[read]}. Mark policy: Reads("{read}")'
    )


@every_case
def test_what_it_asks_for_matters(loss):
    """Each tensor that the contract names changes the loss or a metric when it changes; scores change places.

    Roles are asked of the policy, stats of its answers; what the reference and the other responses have of
    both comes along, needed or not.
    """
    given = arguments(loss)
    optional = [id(given[name]) for name, is_required in contract_of(loss).inputs.items() if not is_required]
    for name in ("policy", "reference"):
        for answers in getattr(given.get(name), "others", {}).values():
            along = [answers.tokens] if name == "reference" else []
            optional += [id(leaf) for leaf in (*along, *answers.stats.values())]
    before = tensors_of(loss(**given))
    for index, leaf in enumerate(leaves(given)):
        if id(leaf) in optional:
            continue
        # up and down, as a loss may be clamped on one side
        changes = (-leaf,) if leaf is given.get("answer_score") else (leaf * 1.5 - 0.01, leaf * 0.5)
        afters = []
        for change in changes:
            changed = leaves(given)
            changed[index] = change
            afters.append(tensors_of(loss(**with_leaves(given, changed))))
        assert any(not torch.equal(before[name], after[name]) for name in before for after in afters), (
            f"input {index}"
        )


@pytest.mark.parametrize(
    ("name", "transform"), [(n, t) for n in ON_PAIRS for t in TRANSFORMS if tried(LOSSES[n], t)]
)
def test_a_transform_that_is_accepted_acts(name, transform):
    """A loss that walks past what a transform changes has to refuse it."""
    loss = TRANSFORMS[transform](LOSSES[name])
    given = arguments(loss)
    plain = {key: value for key, value in given.items() if key in signature(LOSSES[name]).parameters}
    assert not torch.equal(loss(**given).loss, LOSSES[name](**plain).loss)


@pytest.mark.parametrize(
    "function", [*LOSSES.values(), *TRANSFORMS.values(), mixed], ids=lambda f: f.__name__
)
def test_docstring_tells_what_it_pays_and_where_it_comes_from(function):
    text = function.__doc__
    assert "Formula:" in text
    assert "Args:" in text
    assert text.partition("\n")[0].endswith(".")
    if function is not mixed:
        assert "arXiv" in text.partition("Source:")[2]


@pytest.mark.parametrize(
    "function", [*LOSSES.values(), *TRANSFORMS.values()], ids=lambda function: function.__name__
)
def test_docstring_names_its_place_in_the_guide(function):
    lines = read_docstring(function)[1].get("When", "").splitlines()
    assert lines, (
        f"{function.__name__} is not in docs/choosing_a_loss.md. Add a section 'When:' before 'Args:' with a line "
        "of that page, or a new one, and run: make pages"
    )
    assert all(line == line.strip() and line[-1] not in ".;" for line in lines)


CHOICES = [
    (name, key, choice)
    for name, settings in [
        *((name, contract_of(loss).settings) for name, loss in LOSSES.items()),
        *((name, settings_of(transform)) for name, transform in TRANSFORMS.items()),
    ]
    for key, setting in settings.items()
    for choice in setting.choices or ()
]


def made(name: str, **settings: object) -> Loss:
    """Close settings of a loss, or of a transform around one."""
    return bound(LOSSES[name], **settings) if name in LOSSES else TRANSFORMS[name](dpo, **settings)


@pytest.mark.parametrize(("name", "key", "choice"), CHOICES)
def test_a_setting_that_a_choice_leaves_without_effect_is_refused_beside_it(name, key, choice):
    """And one that has an effect is not."""
    settings = contract_of(LOSSES[name]).settings if name in LOSSES else settings_of(TRANSFORMS[name])
    for other, setting in settings.items():
        rule = setting.only_with
        for value in off_default(setting)[:1] * (other != key):
            if rule is not None and rule.setting == key and choice not in rule.choices:
                with pytest.raises(
                    RecipeError, match=rf"{other}: {value} has no effect with {key}: {choice}"
                ):
                    made(name, **{key: choice, other: value})
                continue
            full = moved(other, value, setting) | {key: choice}
            without = {k: v for k, v in full.items() if k != other}
            given = arguments(made(name, **full))
            given |= {k: v for k, v in CARRIED.items() if k in signature(made(name, **full)).parameters}
            one, two = (made(name, **each)(**given).loss for each in (full, without))
            assert not torch.equal(one, two), f"{other} has no effect with {key}: {choice}. Mark it OnlyWith."


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_legal_and_names_match(name):
    contract = contract_of(LOSSES[name])
    assert contract.name == name
    assert contract.summary
    assert contract.formula
    assert contract.source
    for key, setting in contract.settings.items():
        assert setting.check(setting.default, key) == setting.default


def at_the_cap(given: dict) -> dict:
    """Make sampled tokens much likelier than average, so that every weight reaches its cap of 1."""
    sides = [
        replace(side, stats={"log_sum_p2": torch.full_like(side.tokens, -9.0)})
        for side in sides_of(given["policy"])
    ]
    return {**given, "policy": PairLogps(*sides)}


def one_unit(given: dict) -> dict:
    """Keep the first unit alone."""
    kept = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            kept[name] = value[:1] if value.dim() else value
        else:
            kept[name] = with_sides(value, [side.take([0]) for side in sides_of(value)])
    return kept


def undrifted(given: dict) -> dict:
    """Make the mismatched answers as likely under the policy as under the reference."""
    return {**given, "policy": replace(given["policy"], others=given["reference"].others)}


def certain(given: dict) -> dict:
    """Make the chosen answer win always and the rejected one never."""
    one = torch.ones(NUM_UNITS, dtype=torch.float64)
    return {**given, "chosen_score": one, "rejected_score": 0.0 * one, "soft_label": one}


def right_in_three_of_four(given: dict) -> dict:
    return {**given, "soft_label": torch.full((NUM_UNITS,), 0.75, dtype=torch.float64)}


def chosen_scores_more(given: dict) -> dict:
    return {**given, "rejected_score": given["chosen_score"] - 0.3}


def on_pairs(loss: Loss) -> Loss:
    """Hand every pair to a loss over lists, as a group of two."""

    def lists_of(pair: PairLogps) -> ListLogps:
        sides = (pair.chosen, pair.rejected)
        both = SeqLogps(torch.cat([s.tokens for s in sides]), sides[0].lengths + sides[1].lengths)
        order = [index + side * len(pair) for index in range(len(pair)) for side in (0, 1)]
        return ListLogps(both.take(order), (2,) * len(pair))

    def pay(
        policy: PairLogps, reference: PairLogps, *, chosen_score: Tensor, rejected_score: Tensor
    ) -> LossOutput:
        scores = torch.stack([chosen_score, rejected_score], dim=1).flatten()
        return loss(lists_of(policy), lists_of(reference), answer_score=scores)

    return pay


def counting_all(given: dict) -> dict:
    """Give every token the weight 1, by whatever name."""
    names = ("weight", "activation", "reward_mask", "kl_mask")
    sides = [
        side.with_stats({name: torch.ones_like(side.tokens) for name in names if name in side.stats})
        for side in sides_of(given["policy"])
    ]
    return {**given, "policy": with_sides(given["policy"], sides)}


def together(given: dict) -> dict:
    """Put the policy's whole distribution on the reference's."""
    sides = [side.with_stats({"kl": torch.zeros_like(side.tokens)}) for side in sides_of(given["policy"])]
    return {**given, "policy": with_sides(given["policy"], sides)}


def parting_at_once(given: dict) -> dict:
    """Let every pair's answers differ from the first token on."""
    pair = given["policy"]
    sides = [
        side.with_stats({"token_id": torch.full_like(side.stats["token_id"], i)})
        for i, side in enumerate(sides_of(pair))
    ]
    return {**given, "policy": with_sides(pair, sides)}


def as_drawn(given: dict) -> dict:
    return given


REDUCES_TO = {
    "dpo without smoothing": (bound(dpo, label_smoothing=0.0), dpo, as_drawn),
    "focal gamma=0": (bound(focal, gamma=0.0), dpo, as_drawn),
    "focal gamma=0 detached": (bound(focal, gamma=0.0, detach_weight=True), dpo, as_drawn),
    "robust label_smoothing=0": (bound(robust, label_smoothing=0.0), dpo, as_drawn),
    "convex logistic": (bound(convex, link="logistic"), dpo, as_drawn),
    "convex hinge": (bound(convex, link="hinge", beta=0.05), hinge, as_drawn),
    "sppo with certain wins": (sppo, sppo_hard, certain),
    "aot of one pair": (bound(aot, beta=0.1), dpo, one_unit),
    "relative of one pair": (relative, dpo, one_unit),
    "relative of one pair by its diagonal": (bound(relative, weighting="diagonal"), dpo, one_unit),
    "relative diagonal alone": (bound(relative, weighting="diagonal", diagonal_weight=1.0), dpo, as_drawn),
    "beta_dynamic alpha=0 rho=0": (bound(beta_dynamic, alpha=0.0, rho=0.0), dpo, as_drawn),
    "alpha_margin alpha=0": (bound(alpha_margin, alpha=0.0, beta=2.0, gamma=1.0), simpo, as_drawn),
    "bco around zero": (
        partial(bco, baseline=torch.tensor(0.0), baseline_count=torch.tensor(10**18)),
        bco_pair,
        as_drawn,
    ),
    "kto without drift": (kto, apo_zero_unpaired, undrifted),
    "joint_prompt": (joint_prompt, dpo, as_drawn),
    "prompt_contrast": (prompt_contrast, dpo, as_drawn),
    "plackett_luce of two": (on_pairs(plackett_luce), dpo, certain),
    "infonca_k of two, one of them wanted": (on_pairs(bound(infonca_k, beta=0.1, tau=1e-3)), dpo, certain),
    "nca_k of two, one of them wanted": (on_pairs(bound(nca_k, tau=1e-3)), nca_pair, certain),
    "exo_k of two": (on_pairs(exo_k), exo_rw, chosen_scores_more),
    "exo_k preference of two": (on_pairs(bound(exo_k, target="preference")), exo_pref, certain),
    "sppo_k of two": (on_pairs(sppo_k), sppo, chosen_scores_more),
    "f_div reverse_kl of dpo": (f_div(dpo, divergence="reverse_kl"), dpo, as_drawn),
    "f_div reverse_kl of ipo": (f_div(ipo, divergence="reverse_kl"), ipo, as_drawn),
    "f_div alpha to 0 of dpo": (f_div(dpo, alpha=1e-15), dpo, as_drawn),
    "ld_dpo alpha=1": (bound(ld_dpo, alpha=1.0), dpo, as_drawn),
    "ld_dpo alpha=1 policy only": (bound(ld_dpo, alpha=1.0, apply_to_reference=False), dpo, as_drawn),
    "wpo at its cap": (bound(wpo, beta=0.1), dpo, at_the_cap),
    "length_desensitized alpha=1 of ipo": (length_desensitized(ipo, alpha=1.0), ipo, as_drawn),
    "length_desensitized alpha=1 of simpo": (length_desensitized(simpo, alpha=1.0), simpo, as_drawn),
    "length_desensitized(dpo) is ld_dpo": (length_desensitized(dpo), ld_dpo, as_drawn),
    "weighted(dpo) is wpo": (weighted(bound(dpo, beta=0.01)), wpo, as_drawn),
    "weighted at its cap of ipo": (weighted(ipo), ipo, at_the_cap),
    "dpop lam=0": (bound(dpop, beta=0.1, lam=0.0), dpo, as_drawn),
    "rdpo_length alpha=0": (bound(rdpo_length, alpha=0.0), dpo, as_drawn),
    "mappo with a gap of one": (mappo, dpo, certain),
    "prior_scaled(dpo) is mappo": (prior_scaled(bound(dpo, label_smoothing=0.0)), mappo, as_drawn),
    "prior_scaled with a gap of one of ipo": (prior_scaled(ipo), ipo, certain),
    "prior_scaled with a gap of one of simpo": (prior_scaled(simpo), simpo, certain),
    "ref_scale gamma=1": (bound(ref_scale, gamma=1.0), dpo, as_drawn),
    "ref_scale gamma=0": (bound(ref_scale, gamma=0.0), bound(cpo, alpha=0.0), as_drawn),
    "flex with equal betas": (bound(flex, beta_rejected=0.1), dpo, as_drawn),
    "reward_aware with certain wins": (bound(reward_aware, beta=0.1, eta=1e3), dpo, certain),
    "focal_hard gamma=0": (bound(focal_hard, gamma=0.0), dpo, as_drawn),
    "offset alpha=0": (bound(offset, alpha=0.0), dpo, as_drawn),
    "offset with a gap of one": (offset, dpo, certain),
    "reverse gamma=0": (bound(reverse, gamma=0.0), dpo, as_drawn),
    "soft_label with certain labels": (soft_label, dpo, certain),
    "soft_label of one certainty": (soft_label, bound(dpo, label_smoothing=0.25), right_in_three_of_four),
    "spo_selfsup gamma=0": (bound(spo_selfsup, gamma=0.0), dpo, as_drawn),
    "alphapo alpha=0": (bound(alphapo, alpha=0.0), bound(simpo, beta=2.5, gamma=0.1), as_drawn),
    "alphapo alpha to 0": (bound(alphapo, alpha=1e-15), bound(simpo, beta=2.5, gamma=0.1), as_drawn),
    "triple alpha=0": (bound(triple, alpha=0.0, beta=0.1), bound(cpo, alpha=0.0), as_drawn),
    "triple of means": (bound(triple, alpha=0.0, beta=2.0, gamma=1.0, norm="mean"), simpo, as_drawn),
    "rationale gamma=0": (bound(rationale, link="nll", gamma=0.0), dpo, as_drawn),
    "with_rationale(dpo) is rationale": (
        with_rationale(bound(dpo, label_smoothing=0.0)),
        rationale,
        as_drawn,
    ),
    "reward_gap_weight of wide gaps": (reward_gap_weight(dpo, scale=1e3), dpo, certain),
    "with_nll alpha=0": (with_nll(dpo, alpha=0.0), dpo, as_drawn),
    "tdpo without divergence": (bound(tdpo, beta=0.1), dpo, together),
    "tdpo1 without divergence": (bound(tdpo, variant="tdpo1"), dpo, together),
    "tdpo alpha=0": (bound(tdpo, alpha=0.0), dpo, together),
    "mapo counting every token": (mapo, bound(tdpo, variant="tdpo1"), counting_all),
    "sparse_mask of ones": (bound(sparse_mask, l1=0.0), bound(tdpo, variant="tdpo1"), counting_all),
    "independent masks of ones": (
        bound(sparse_mask_independent, l1=0.0),
        bound(tdpo, variant="tdpo1"),
        counting_all,
    ),
    "token_weighted by ones of dpo": (token_weighted(dpo), dpo, counting_all),
    "token_weighted by ones of simpo": (token_weighted(simpo), simpo, counting_all),
    "token_weighted by ones of tdpo": (token_weighted(tdpo), tdpo, counting_all),
    "suffix from the first token of ipo": (suffix_from_divergence(ipo), ipo, parting_at_once),
    "suffix from the first token of tdpo": (suffix_from_divergence(tdpo), tdpo, parting_at_once),
    "mixed of one": (mixed([dpo], [1.0]), dpo, as_drawn),
    "mixed of two halves": (mixed([bound(dpo, **defaults(dpo))] * 2, [0.5, 0.5]), dpo, as_drawn),
}


@pytest.mark.parametrize(("special", "general", "prepare"), REDUCES_TO.values(), ids=REDUCES_TO.keys())
def test_degenerate_setting_equals_the_simpler_loss(special, general, prepare):
    given = arguments(special)
    if contract_of(special).policy_stats == () and contract_of(general).policy_stats:
        given = arguments(general)
    given = prepare(given)
    logps = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    inputs = [leaf.clone().requires_grad_() for leaf in leaves(logps)]
    names = [n for side in sides_of(logps["policy"]) for n in ("tokens", *_floats(side))]
    results = []
    for loss in (special, general):
        all_given = given | with_leaves(logps, inputs)
        output = loss(**{k: v for k, v in all_given.items() if k in signature(loss).parameters})
        results.append([output.loss, output.chosen_reward, output.rejected_reward])
        # what a loss does not read has a gradient of zero; what only the special one reads cannot be compared
        found = torch.autograd.grad(output.loss.sum(), inputs, materialize_grads=True)
        shared = ("tokens", *contract_of(general).policy_stats)
        results[-1] += [grad for grad, name in zip(found, names, strict=True) if name in shared]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0.0)  # a few roundings of float64
