"""What a loss pays as one unit's margin moves, and the slope of it: the numbers behind the plots of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prefopt.losses import Loss, LossContract, contract_of
from prefopt.structures import STRUCTURES
from prefopt.structures.structure import MakeUnit
from prefopt.types import LossOutput, SeqLogps

LENGTH = 200
"""Tokens per answer. Long, so that a wide margin of sums is a likely one per token."""
NATS = -2.0
"""Log-prob of every token at margin 0."""
WIDTHS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Half-widths of the axis that are tried, in nats."""
EXAMPLE_STATS = {"log_sum_p2": -3.0, "logsumexp": 5.0, "entropy": 2.0, "kl": 0.01, "weight": 1.0}
EXAMPLE_STATS |= {"activation": 1.0, "reward_mask": 1.0, "kl_mask": 1.0}
"""Every token's statistics; what is not named here is zero."""
EXAMPLE_INPUTS: dict[str, Tensor] = {
    "chosen_score": torch.ones(1, dtype=torch.float64),
    "rejected_score": torch.zeros(1, dtype=torch.float64),
    "pair_margin": torch.ones(1, dtype=torch.float64),
    "soft_label": torch.full((1,), 0.9, dtype=torch.float64),
    "pair_seed": torch.ones(1, dtype=torch.int64),
    "answer_score": torch.tensor([1.0, 0.0], dtype=torch.float64),
    "mean_chosen_length": torch.tensor(float(LENGTH), dtype=torch.float64),
    "desirable_share": torch.tensor(0.5, dtype=torch.float64),
    "prompt_embedding": torch.ones(1, 4, dtype=torch.float64),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: a loss and its derivative at every margin, in nats of summed log-probs."""

    label: str
    margin: tuple[float, ...]
    loss: tuple[float, ...]
    slope: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """A loss over its margin."""

    axis: str
    lines: tuple[Curve, ...]


def curves_of(loss: Loss, num_points: int = 81) -> Curves | None:
    """Work out what ``loss`` pays for one unit; None where it has no margin, or costs the same at any.

    The latter is so for losses that compare an answer with others of its step.

    A pair, or a group of two answers, is moved by half the margin up on the chosen side and half down on
    the rejected one; a single answer by all of it, once as a desirable and once as an undesirable one.
    """
    contract = contract_of(loss)
    subject = "log-ratio to the reference" if contract.needs_reference else "log-prob"
    units = STRUCTURES[contract.structure].margin
    if units is None:
        return None
    width = max(_width(loss, contract, make) for make in units.make.values())
    lines = tuple(_line(loss, contract, make, word, width, num_points) for word, make in units.make.items())
    if all(min(line.loss) == max(line.loss) for line in lines):
        return None
    return Curves(units.axis.format(subject=subject), lines)


def _width(loss: Loss, contract: LossContract, make: MakeUnit) -> float:
    """Choose the narrowest axis on which the loss shows three quarters of the bend it ever shows."""
    # without a reference the log-probs themselves move, and none of them may rise above 0
    most_nats = -2 * NATS * LENGTH
    widths = [width for width in WIDTHS if contract.needs_reference or width < most_nats]
    bends = {width: _bend(_line(loss, contract, make, "", width, 41).loss) for width in widths}
    most = max(bends.values())
    return next(width for width in widths if bends[width] >= 0.75 * most)


def _bend(values: Sequence[float]) -> float:
    """Return the largest distance from the chord, as a share of the range."""
    points = torch.tensor(values, dtype=torch.float64)
    chord = torch.linspace(values[0], values[-1], len(values), dtype=torch.float64)
    extent = (points.max() - points.min()).item()
    return (points - chord).abs().max().item() / extent if extent > 0 else 0.0


def _line(
    loss: Loss, contract: LossContract, make: MakeUnit, label: str, width: float, num_points: int
) -> Curve:
    margins = torch.linspace(-width, width, num_points, dtype=torch.float64).tolist()
    points = [_point(loss, contract, make, margin) for margin in margins]
    return Curve(label, tuple(margins), *zip(*points, strict=True))


def _point(loss: Loss, contract: LossContract, make: MakeUnit, margin: float) -> tuple[float, float]:
    moved = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    given = {name: EXAMPLE_INPUTS[name] for name in contract.inputs}
    start = torch.zeros((), dtype=torch.float64)
    answers = partial(_answers, contract)
    others = {role: answers([start]) for role in contract.roles}
    margins = (moved, start) if contract.needs_reference else (moved,)
    output: LossOutput = loss(*(make(answers, by, others) for by in margins), **given)
    (slope,) = torch.autograd.grad(output.loss.sum(), moved)
    return output.loss.sum().item(), slope.item()


def _answers(contract: LossContract, lifted: Sequence[Tensor]) -> SeqLogps:
    tokens = [(NATS + by / LENGTH).expand(LENGTH) for by in lifted]
    names = {*contract.policy_stats, *contract.reference_stats}
    stats = {name: [torch.full_like(part, EXAMPLE_STATS.get(name, 0.0)) for part in tokens] for name in names}
    return SeqLogps.from_ragged(tokens, **stats)
