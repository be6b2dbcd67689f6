"""From loss to loss: compare with several references as if they were one.

The further references' per-token log-probs come as the statistics ``reference_2``, ``reference_3``, ... of the
reference, in the order in which a recipe lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter
from typing import Annotated, Literal

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses._compose import COMBINING, RESUMMING, Given, admit, compose, picklable, union
from prefopt.losses._contract import Loss, contract_of, signature_of
from prefopt.types import OTHER_REFERENCES, LossOutput, PairLogps, Range, Refuses, SeqLogps, Stats
from prefopt.types.checks import wide

SumsByReference = list[tuple[Tensor, Tensor]]
"""Summed log-probs of the chosen and the rejected answers, each [P], by reference."""


@picklable
def multi_ref(
    loss: Loss,
    *,
    weights: Literal["adaptive", "equal"] = "adaptive",
    epsilon: Annotated[float, Range(ge=0, lt=1)] = 0.1,
) -> Loss:
    """Compare with the weighted harmonic mean of several references, each held near the last one.

    For borrowing from other models than the one that training starts from. Write the borrowed models
    first and the start last: ``reference: [{path: other}, initial]``. The harmonic mean of sequence
    probabilities follows whoever finds an answer least likely, so every other reference is first
    clipped to a band around the last one.

    When:
        the reference holds training back

    Args:
        loss: a loss over pairs that compares with a reference.
        weights: "adaptive" weighs a reference by how far apart it holds the two answers of the pair, as
            a share of all references; "equal" by 1 / K.
        epsilon: width of the band, as a share of the last reference's log-prob; 0 is that reference alone.

    Returns:
        A loss over the same pairs. For a loss that reads the reference's tokens, what the mean adds to
        the first reference is spread evenly over the answer's tokens, which is our choice.

    Formula:
        R_k = log-prob of an answer under reference k of K
        R_k is clipped to [R_K * (1 + e), R_K * (1 - e)], e = epsilon * |B| / (|B_chosen| + |B_rejected|),
        B = mean of R_k over the references, of this answer
        a_k = |R_k chosen - R_k rejected| / sum_j |R_j chosen - R_j rejected|, unclipped, or 1 / K
        R = -log sum_k a_k * exp(-R_k)

    Raises:
        RecipeError: ``loss`` is not over pairs, has no reference or already combines references; or a
            setting is illegal.

    Source:
        Le, Tran, Nguyen, Sohel, Gupta and Venkatesh, "Multi-Reference Preference Optimization for Large
        Language Models", 2024, arXiv 2405.16388. The authors' code, for two references, gives the first
        one's weight to the second and the other way round; this follows the formula. For more than two
        the clipping of each around the last is ours.
    """
    settings = admit(multi_ref, loss, weights=weights, epsilon=epsilon)
    epsilon = settings["epsilon"]

    def combine(reference: PairLogps) -> PairLogps:
        sums = [(c.total, r.total) for c, r in _each(reference)]
        shares = _shares(sums, weights)
        clipped = _clipped(sums, epsilon)
        chosen, rejected = (
            -torch.logsumexp(
                torch.stack([a.log() - s[side] for a, s in zip(shares, clipped, strict=True)]), dim=0
            )
            for side in (0, 1)
        )
        return replace(
            reference,
            chosen=_shifted(reference.chosen, chosen),
            rejected=_shifted(reference.rejected, rejected),
        )

    return _combined(multi_ref, loss, combine)


@picklable
def momentum_ref(loss: Loss, *, alpha: Annotated[float, Range(ge=0)] = 0.3) -> Loss:
    """Compare with the newest of two references, carried on in the direction it has come from.

    For iterated training: list the last round's policy first and the one before it second. As in
    Nesterov's method the step is taken from an extrapolated point; constants cancel in the margin, so
    two references are enough and no weights are mixed.

    When:
        training goes in rounds, on fresh answers

    Args:
        loss: a loss over pairs that compares with a reference.
        alpha: how far beyond the newest one; 0 leaves it as it is.

    Returns:
        A loss over the same pairs.

    Formula:
        R = (1 + alpha) * R_1 - alpha * R_2, token by token

    Raises:
        RecipeError: ``loss`` is not over pairs, has no reference or already combines references; or a
            setting is illegal.

    Source:
        He, Yuan and Gu, "Accelerated Preference Optimization for Large Language Model Alignment", 2024,
        arXiv 2410.06293. The extrapolation is written for log-probs here, our reading of the method; the
        default of alpha was not checked against the paper.
    """
    alpha = admit(momentum_ref, loss, alpha=alpha)["alpha"]

    def combine(reference: PairLogps) -> PairLogps:
        return _linear(reference, lambda tokens: (1.0 + alpha) * tokens[0] - alpha * tokens[1])

    return _combined(momentum_ref, loss, combine)


@picklable
def spo_sequential(loss: Loss, *, keep: Annotated[float, Range(ge=0)] = 0.5) -> Loss:
    """Compare with the last round's policy while holding on to what the rounds before it learned.

    For aligning with one dimension of preference after another: list the policies of earlier rounds from
    the newest to the one that the first round started from.

    When:
        dimensions of preference are learned one after another

    Args:
        loss: a loss over pairs that compares with a reference.
        keep: weight of the earlier rounds' implicit rewards, in units of the present one's beta; 0 is
            plain training against the last round.

    Returns:
        A loss over the same pairs.

    Formula:
        maximising the new reward plus keep * beta * sum_k log(R_k / R_{k+1}), at a KL cost of beta to R_1, gives
        R = R_1 + keep * sum_k (R_k - R_{k+1}), token by token

    Raises:
        RecipeError: ``loss`` is not over pairs, has no reference or already combines references; or a
            setting is illegal.

    Source:
        Lou, Zhang, Xie, Liu, Yan and Huang, "Sequential Preference Optimization: Multi-Dimensional
        Preference Alignment with Implicit Reward Modeling", 2024, arXiv 2405.12739. Derived as above from
        the problem that the paper states, with one weight for all rounds; its own coefficients were not
        checked.
    """
    keep = admit(spo_sequential, loss, keep=keep)["keep"]

    def combine(reference: PairLogps) -> PairLogps:
        return _linear(reference, lambda tokens: tokens[0] + keep * (tokens[0] - tokens[-1]))

    return _combined(spo_sequential, loss, combine)


INSIDE = (*RESUMMING, "f_div", "prior_scaled")
"""Transforms that change what is read of a reference; outside they would reach the first one alone."""


def _combined(transform: Callable[..., Loss], loss: Loss, combine: Callable[[PairLogps], PairLogps]) -> Loss:
    name, contract = transform.__name__, contract_of(loss)
    if not contract.needs_reference:
        raise RecipeError(f"{name}: {contract.name} has no reference to combine with others. Remove {name}.")
    other = next((applied for applied in contract.applies if applied in COMBINING), None)
    if other is not None:
        raise RecipeError(
            f"{name}: {contract.name} already combines its references by {other}. Keep one of the two."
        )
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        return loss(**{**given, "reference": combine(given["reference"])})

    wanted = Annotated[PairLogps, Stats(OTHER_REFERENCES[0])]
    second = Parameter("reference", Parameter.POSITIONAL_OR_KEYWORD, annotation=wanted)
    return compose(transform, loss, union(name, [signature], [second], [Refuses(*INSIDE)]), pay)


def _each(reference: PairLogps) -> list[tuple[SeqLogps, SeqLogps]]:
    """Return chosen and rejected answers under every reference, the first one first."""
    names = [name for name in OTHER_REFERENCES if name in reference.chosen.stats]
    found = [(reference.chosen, reference.rejected)]
    for name in names:
        found.append(
            tuple(replace(side, tokens=side.stats[name], stats={}, replaced_total=None) for side in found[0])  # type: ignore[arg-type]
        )
    return found


def _linear(reference: PairLogps, mix: Callable[[list[Tensor]], Tensor]) -> PairLogps:
    sides = zip(*_each(reference), strict=True)
    chosen, rejected = (mix([wide(answers.tokens) for answers in side]) for side in sides)
    return replace(
        reference,
        chosen=replace(reference.chosen, tokens=chosen),
        rejected=replace(reference.rejected, tokens=rejected),
    )


def _shifted(answers: SeqLogps, total: Tensor) -> SeqLogps:
    """Return the answers with an equal part added to each token, so that they add up to ``total`` [P]."""
    part = (total - answers.total) / answers.length
    return replace(answers, tokens=answers.tokens + part.index_select(0, answers.sequence_of))


def _shares(sums: SumsByReference, weights: str) -> list[Tensor]:
    if weights == "equal":
        return [torch.full_like(chosen, 1.0 / len(sums)) for chosen, _ in sums]
    gaps = [(chosen - rejected).abs() for chosen, rejected in sums]
    # a pair that no reference tells apart has no gap to share out: all weigh alike
    floor = torch.finfo(gaps[0].dtype).tiny
    whole = torch.stack(gaps).sum(0) + floor * len(gaps)
    return [(gap + floor) / whole for gap in gaps]


def _clipped(sums: SumsByReference, epsilon: float) -> SumsByReference:
    means = [torch.stack(side).mean(0).abs() for side in zip(*sums, strict=True)]
    bands = [epsilon * mean / (means[0] + means[1]) for mean in means]
    last = sums[-1]
    clipped: SumsByReference = []
    for pair in sums[:-1]:
        chosen, rejected = (
            torch.clamp(value, centre * (1 + band), centre * (1 - band))
            for value, centre, band in zip(pair, last, bands, strict=True)
        )
        clipped.append((chosen, rejected))
    return [*clipped, last]
