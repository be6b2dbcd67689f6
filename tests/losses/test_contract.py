"""A signature read as a contract, and the signatures that are refused."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pytest
from torch import Tensor

from prefopt import losses
from prefopt.errors import RecipeError
from prefopt.losses import contract_of, dpo, sft, simpo, weighted, with_nll, wpo
from prefopt.losses._settings import Setting, check_settings
from prefopt.types import ListLogps, LossOutput, PairLogps, Range, Reads, SeqLogps, Stats


def example(
    policy: Annotated[ListLogps, Stats("entropy", "logsumexp")],
    reference: Annotated[ListLogps, Stats("logsumexp")],
    *,
    answer_score: Tensor,
    prompt_embedding: Tensor | None = None,
    count: Annotated[int, Range(ge=1)] = 3,
    link: Literal["hinge", "logistic"] = "logistic",
    is_sharp: bool = False,
) -> LossOutput:
    """Pay nothing, as an example.

    Formula:
        loss = 0
        for all

    Source:
        Nobody, 1999,
        arXiv 9999.00001.
    """
    raise NotImplementedError


def test_everything_is_read_from_signature_and_docstring():
    contract = contract_of(example)
    assert contract.name == "example"
    assert contract.structure == "lists"
    assert contract.needs_reference
    assert contract.policy_stats == ("entropy", "logsumexp")
    assert contract.reference_stats == ("logsumexp",)
    assert contract.inputs == {"answer_score": True, "prompt_embedding": False}
    assert contract.settings == {
        "count": Setting(3, int, Range(ge=1)),
        "link": Setting("logistic", str, choices=("hinge", "logistic")),
        "is_sharp": Setting(False, bool),
    }
    assert contract.summary == "Pay nothing, as an example."
    assert contract.formula == "loss = 0\nfor all"
    assert contract.source == "Nobody, 1999, arXiv 9999.00001."


def test_structure_and_reference_of_the_shipped_losses():
    assert (contract_of(dpo).structure, contract_of(dpo).needs_reference) == ("pairs", True)
    assert (contract_of(simpo).structure, contract_of(simpo).needs_reference) == ("pairs", False)
    assert (contract_of(sft).structure, contract_of(sft).needs_reference) == ("responses", False)
    assert contract_of(wpo).policy_stats == ("log_sum_p2",)
    assert contract_of(wpo).reference_stats == ()


def test_a_composed_loss_has_the_union_of_needs():
    contract = contract_of(with_nll(weighted(simpo), nll="batch_token"))
    assert contract.name == "with_nll(weighted(simpo))"
    assert contract.policy_stats == ("log_sum_p2",)
    assert contract.inputs == {"mean_chosen_length": True}
    assert list(contract.settings) == ["beta", "gamma", "label_smoothing", "link"]
    assert not contract.needs_reference
    assert contract.applies == ("weighted", "with_nll")


@pytest.mark.parametrize("loss", [dpo, with_nll(weighted(dpo))], ids=["plain", "composed"])
def test_a_partial_is_its_loss_with_another_default(loss):
    contract, plain = contract_of(partial(loss, beta=0.3)), contract_of(loss)
    assert contract.settings["beta"].default == 0.3
    settings = {**contract.settings, "beta": plain.settings["beta"]}
    assert replace(contract, settings=settings) == plain


def no_policy(chosen: PairLogps) -> LossOutput: ...


def bare_policy(policy: Tensor) -> LossOutput: ...


def two_structures(policy: PairLogps, reference: SeqLogps) -> LossOutput: ...


def unknown_input(policy: PairLogps, *, temperature: float) -> LossOutput: ...


def misplaced(policy: ListLogps, *, chosen_score: Tensor) -> LossOutput: ...


def scores_of_pairs(policy: PairLogps, *, answer_score: Tensor) -> LossOutput: ...


def odd_type(policy: PairLogps, *, betas: list = []) -> LossOutput: ...  # noqa: B006


def reserved(policy: PairLogps, *, weight: float = 1.0) -> LossOutput: ...


def open_ended(policy: PairLogps, **settings: float) -> LossOutput: ...


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (no_policy, "positional parameters are .'chosen'.. Take policy, then reference"),
        (bare_policy, "annotate policy and reference alike, with one of PairLogps"),
        (two_structures, "annotate policy and reference alike"),
        (unknown_input, "'temperature' has no default and is no input that a trainer supplies"),
        (misplaced, r"'chosen_score' is \[P\], but the loss learns from lists of answers"),
        (scores_of_pairs, r"'answer_score' is \[S\], but the loss learns from pairs"),
        (odd_type, "'betas' is annotated .*Use float, int, bool or a Literal"),
        (reserved, "'weight' has the name of a key of every loss block"),
        (open_ended, "'settings' is variadic keyword. Put settings after"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_signature_that_breaks_the_rules_says_which(loss, message):
    with pytest.raises(TypeError, match=message):
        contract_of(loss)


NUMBER = Setting(1.0, float, Range(gt=0, le=2))
COUNT = Setting(1, int)
SWITCH = Setting(False, bool)
CHOICE = Setting("mean", str, choices=("sum", "mean"))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (NUMBER, "5e-6", r"x: '5e-6' is not a number. Write 5e-6 without quotes."),
        (NUMBER, "lots", r"x: 'lots' is not a number. Give a number > 0 and <= 2."),
        (NUMBER, True, r"x: true is not a number. Give a number > 0 and <= 2."),
        (NUMBER, None, r"x: null is not a number. Give a number > 0 and <= 2."),
        (NUMBER, [1.0], r"x: \[1.0\] is not a number."),
        (NUMBER, 0, r"x: 0 is out of range. Give a number > 0 and <= 2."),
        (NUMBER, 2.5, r"x: 2.5 is out of range."),
        (NUMBER, float("nan"), r"x: nan is not finite."),
        (NUMBER, float("inf"), r"x: inf is not finite."),
        (NUMBER, 10**400, r"is not finite."),
        (COUNT, 1.0, r"x: 1.0 is not a whole number."),
        (COUNT, True, r"x: true is not a whole number."),
        (SWITCH, 1, r"x: 1 is not true or false. Write one of the two."),
        (SWITCH, "false", r"x: 'false' is not true or false."),
        (CHOICE, "meen", r"x: 'meen' is no choice. Did you mean 'mean'\? Give one of sum, mean."),
        (CHOICE, 3, r"x: 3 is no choice. Give one of sum, mean."),
    ],
)
def test_an_illegal_value_is_refused_in_one_line(setting, value, message):
    with pytest.raises(RecipeError, match=message) as caught:
        setting.check(value, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (2, 2.0), (0.5, 0.5)])
def test_a_whole_number_serves_as_a_number(value, expected):
    checked = NUMBER.check(value, "x")
    assert checked == expected
    assert type(checked) is float


def test_unknown_settings_come_with_the_nearest_name_and_the_list():
    settings = contract_of(dpo).settings
    with pytest.raises(
        RecipeError,
        match=r"^loss.betta: dpo has no such setting. Did you mean 'beta'\? dpo accepts: beta, label_smoothing.$",
    ):
        check_settings("dpo", settings, {"betta": 0.1}, "loss")
    assert check_settings("dpo", settings, {"beta": 1}, "loss") == {"beta": 1.0, "label_smoothing": 0.0}


def test_type_checkers_take_every_name_of_the_room_for_public():
    """They cannot read the computed ``__all__``; what they go by is ``import dpo as dpo``."""
    source = ast.parse(Path(losses.__file__).read_text(encoding="utf-8"))
    imports = [node for node in source.body if isinstance(node, ast.ImportFrom)]
    public = {alias.asname for node in imports for alias in node.names if alias.name == alias.asname}
    for name in {*losses.__all__} - {"LOSSES", "TRANSFORMS"}:
        assert name in public, f"Write in {losses.__file__}: import {name} as {name}"
    assert public <= {*losses.__all__}


def test_what_is_read_of_an_answer_is_its_sum_unless_the_signature_says_more():
    """A transform may change tokens in ways that the sum does not show; ``bound`` changes none."""
    read = {"sum": dpo, "length": simpo, "tokens": wpo}
    assert {name: contract_of(loss).reads for name, loss in read.items()} == {name: name for name in read}
    assert contract_of(with_nll(dpo)).reads == "tokens"
    assert contract_of(losses.bound(simpo, beta=1.0)).reads == "length"
    closed = [losses.bound(dpo, beta=0.1, label_smoothing=0.0), losses.bound(simpo, beta=2.0)]
    assert contract_of(losses.mixed(closed, [1, 1])).reads == "length"
    with pytest.raises(
        ValueError, match=r"^Reads: there is no 'word' of an answer\. Choose from sum, length, tokens\.$"
    ):
        Reads("word")
