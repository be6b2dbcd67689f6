"""What meets a loss: per-token log-probs, arranged in the units it pays for, and what it pays.

Each arrangement names its responses (``parts``) and what policy and reference have in common (``layout``), so that
whoever compares two of them need not know which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prefopt.ragged import on_device
from prefopt.types.checks import (
    host_counts,
    require_bool,
    require_named,
    require_padded,
    require_responses,
    same_device,
)
from prefopt.types.sequences import Arranged, Named, SeqLogps


@dataclass(frozen=True, slots=True)
class PairLogps(Arranged):
    """Log-probs of P pairs; both sides hold P responses, so ``chosen.total`` is [P].

    A pair owns its tokens: the same answer may count differently against different partners.
    ``others`` holds, for each role that the loss names, a further response of every pair.
    """

    chosen: SeqLogps
    rejected: SeqLogps
    others: Mapping[str, SeqLogps] = field(default_factory=dict)  # role -> P responses

    def __post_init__(self) -> None:
        require_named(self.others, "PairLogps: others")
        require_responses("PairLogps", self.parts)
        if len(self.chosen) != len(self.rejected):
            raise ValueError(
                f"PairLogps: {len(self.chosen)} chosen but {len(self.rejected)} rejected responses."
            )
        for role, answers in self.others.items():
            if len(answers) != len(self.chosen):
                raise ValueError(f"PairLogps: {len(answers)} {role} responses for {len(self.chosen)} pairs.")
        object.__setattr__(self, "others", Named(self.others, "PairLogps.others", "others={{'{}': ...}}"))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def parts(self) -> dict[str, SeqLogps]:
        """All responses, by name."""
        return {"chosen": self.chosen, "rejected": self.rejected, **self.others}

    def detach(self) -> PairLogps:
        """Return the same values outside the graph."""
        return PairLogps(
            chosen=self.chosen.detach(),
            rejected=self.rejected.detach(),
            others={role: answers.detach() for role, answers in self.others.items()},
        )

    @classmethod
    def from_concatenated(cls, logps: Tensor, mask: Tensor, **stats: Tensor) -> PairLogps:
        """Build from the usual padded rows: first all chosen, then all rejected.

        Args:
            logps: [2 P, T] per-token log-probs, nats.
            mask: [2 P, T], true at scored positions.
            stats: name -> [2 P, T].

        Raises:
            ValueError: an odd number of rows, or what ``SeqLogps.from_padded`` refuses.
        """
        require_padded("logps", logps)
        if logps.shape[0] % 2:
            raise ValueError(
                f"PairLogps.from_concatenated: {logps.shape[0]} rows cannot be halved into chosen "
                f"and rejected. Give 2 P rows, chosen first."
            )
        both = SeqLogps.from_padded(logps, mask, **stats)
        half = logps.shape[0] // 2
        return cls(both.take(range(half)), both.take(range(half, 2 * half)))


@dataclass(frozen=True, slots=True)
class LabelledLogps(Arranged):
    """Log-probs of S single answers, each desirable or not (unpaired feedback).

    ``others`` holds, for each role that the loss names, responses of their own number, such as the
    mismatched answers (role ``kl``) that KTO takes its baseline from.
    """

    answers: SeqLogps
    is_desirable: Tensor  # bool [S]
    others: Mapping[str, SeqLogps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_named(self.others, "LabelledLogps: others")
        require_responses("LabelledLogps", self.parts)
        require_bool(self.is_desirable, "LabelledLogps: is_desirable")
        if self.is_desirable.shape != (len(self.answers),):
            raise ValueError(
                f"LabelledLogps: is_desirable has shape {list(self.is_desirable.shape)} for {len(self.answers)} "
                f"answers. Give one value per answer."
            )
        same_device("LabelledLogps", {"answers": self.answers.tokens, "is_desirable": self.is_desirable})
        object.__setattr__(self, "others", Named(self.others, "LabelledLogps.others", "others={{'{}': ...}}"))

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def parts(self) -> dict[str, SeqLogps]:
        """All responses, by name."""
        return {"answers": self.answers, **self.others}

    def detach(self) -> LabelledLogps:
        """Return the same values outside the graph."""
        others = {role: answers.detach() for role, answers in self.others.items()}
        return LabelledLogps(self.answers.detach(), self.is_desirable, others)


@dataclass(frozen=True, slots=True)
class ListLogps(Arranged):
    """Log-probs of the answers of G groups, for listwise losses; a group's answers lie together."""

    answers: SeqLogps
    group_sizes: tuple[int, ...]  # [G], answers per group

    def __post_init__(self) -> None:
        require_responses("ListLogps", self.parts)
        sizes = host_counts(self.group_sizes, "ListLogps: group_sizes")
        if sum(sizes) != len(self.answers):
            raise ValueError(
                f"ListLogps: groups of {sum(sizes)} answers in all, but {len(self.answers)} answers."
            )
        object.__setattr__(self, "group_sizes", tuple(sizes))

    def __len__(self) -> int:
        return len(self.group_sizes)

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """What policy and reference have in common, by name."""
        return {"groups": self.group_sizes, "answers": self.answers.lengths}

    @property
    def parts(self) -> dict[str, SeqLogps]:
        """All responses, by name."""
        return {"answers": self.answers}

    @property
    def group_of(self) -> Tensor:
        """The group each answer belongs to, int64 [S]."""
        index = np.repeat(np.arange(len(self.group_sizes)), self.group_sizes)
        return on_device(torch.from_numpy(index), self.answers.tokens.device)

    def detach(self) -> ListLogps:
        """Return the same values outside the graph."""
        return ListLogps(self.answers.detach(), self.group_sizes)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss pays per unit, and the implicit rewards it optimises.

    Args:
        loss: [U], differentiable.
        chosen_reward: [U], detached; None for a loss without rewards (sft).
        rejected_reward: [U], detached; None where units have no rejected answer.
        metrics: name -> [U], detached extras, averaged over units in the log.
        carried: name -> tensor, detached; what the loss hands to itself in the next optimizer step, under
            the parameter of that name marked ``Carried``.
    """

    loss: Tensor
    chosen_reward: Tensor | None = None
    rejected_reward: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Mapping[str, Tensor] = field(default_factory=dict)
