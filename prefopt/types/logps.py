"""What meets a loss: per-token log-probs, arranged in the units it pays for, and what it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.ragged import Lengths, on_device


class _Named(dict[str, Any]):
    """A dict whose missing entry is named in one line, with the way to give it."""

    def __init__(self, values: Mapping[str, Any], owner: str, way: str) -> None:
        super().__init__(values)
        self.owner, self.way = owner, way

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"{self.owner}: the loss reads '{name}', which was not given. Build them with {self.way.format(name)}."
        )


@dataclass(frozen=True, slots=True)
class SeqLogps:
    """Log-probs of S responses, ragged: every scored token, ordered by response.

    Args:
        tokens: [M] log-prob of each scored token, nats.
        lengths: [S] scored tokens per response, as host ints.
        stats: name -> [M], per-token statistics beside the log-prob.
        replaced_total: [S], stands in for the plain sum where a transform reweighted tokens.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    replaced_total: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 1 or self.tokens.numel() != sum(self.lengths):
            raise ValueError(
                f"SeqLogps: tokens has shape {list(self.tokens.shape)} but lengths add up to "
                f"{sum(self.lengths)}. Give one log-prob per scored token."
            )
        for name, values in self.stats.items():
            if values.shape != self.tokens.shape:
                raise ValueError(
                    f"SeqLogps: stat '{name}' has shape {list(values.shape)}, "
                    f"tokens {list(self.tokens.shape)}. Give one value per scored token."
                )
        if self.replaced_total is not None and self.replaced_total.shape != (len(self.lengths),):
            raise ValueError("SeqLogps: replaced_total needs one value per response.")
        object.__setattr__(self, "lengths", Lengths.of(self.lengths))
        object.__setattr__(
            self, "stats", _Named(self.stats, "SeqLogps.stats", "from_padded(logps, mask, {}=...)")
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def _counts(self) -> Tensor:
        return Lengths.of(self.lengths).on(self.tokens.device)

    @property
    def length(self) -> Tensor:
        """Scored tokens per response, [S], in the dtype and on the device of ``tokens``."""
        return self._counts.to(self.tokens.dtype)

    @property
    def sequence_of(self) -> Tensor:
        """The response each scored token belongs to, int64 [M]."""
        counts = self._counts
        responses = torch.arange(len(self.lengths), device=counts.device)
        return torch.repeat_interleave(responses, counts, output_size=self.tokens.numel())

    def sum(self, values: Tensor) -> Tensor:
        """Add up per-token ``values`` [M] within each response -> [S], in a fixed order."""
        return torch.segment_reduce(values, "sum", lengths=self._counts, initial=0.0, unsafe=True)

    @property
    def total(self) -> Tensor:
        """Log-prob of each response, [S]: the sum over its tokens unless a transform replaced it."""
        return self.sum(self.tokens) if self.replaced_total is None else self.replaced_total

    @property
    def mean(self) -> Tensor:
        """Mean log-prob per token of each response, [S]; never touched by a transform."""
        return self.sum(self.tokens) / self.length

    def mean_of(self, values: Tensor) -> Tensor:
        """Average per-token ``values`` [M] within each response -> [S]."""
        return self.sum(values) / self.length

    def detach(self) -> SeqLogps:
        """Return the same values outside the graph."""
        total = self.replaced_total
        return SeqLogps(
            tokens=self.tokens.detach(),
            lengths=self.lengths,
            stats={name: values.detach() for name, values in self.stats.items()},
            replaced_total=None if total is None else total.detach(),
        )

    def with_stats(self, stats: Mapping[str, Tensor]) -> SeqLogps:
        """Return the same tokens with further statistics, name -> [M]."""
        return replace(self, stats={**self.stats, **stats}) if stats else self

    def with_total(self, total: Tensor) -> SeqLogps:
        """Return the same tokens with another ``total`` [S]."""
        return replace(self, replaced_total=total)

    def take(self, index: Sequence[int]) -> SeqLogps:
        """Gather whole responses by host indices, in that order; repeats are allowed."""
        if tuple(index) == tuple(range(len(self.lengths))):
            return self
        take = Lengths.of(self.lengths).take(index, self.tokens.device)
        total = self.replaced_total
        return SeqLogps(
            tokens=self.tokens.index_select(0, take.tokens),
            lengths=take.lengths,
            stats={name: values.index_select(0, take.tokens) for name, values in self.stats.items()},
            replaced_total=None if total is None else total.index_select(0, take.runs),
        )

    @classmethod
    def from_ragged(cls, logps: Sequence[Tensor], **stats: Sequence[Tensor]) -> SeqLogps:
        """Build from one 1-D tensor of per-token log-probs for each response.

        Args:
            logps: S tensors, the i-th of shape [length_i], nats.
            stats: name -> S tensors of the same shapes.

        Raises:
            ValueError: a response is empty or a stat's shape differs.
        """
        lengths = tuple(values.numel() for values in logps)
        if not lengths or 0 in lengths:
            raise ValueError("SeqLogps.from_ragged: every response needs at least one token.")
        for name, values in stats.items():
            if tuple(value.numel() for value in values) != lengths:
                raise ValueError(f"SeqLogps.from_ragged: '{name}' differs from logps in lengths.")
        joined = {name: torch.cat(list(values)) for name, values in stats.items()}
        return cls(tokens=torch.cat(list(logps)), lengths=lengths, stats=joined)

    @classmethod
    def from_padded(cls, logps: Tensor, mask: Tensor, **stats: Tensor) -> SeqLogps:
        """Build from padded per-token log-probs.

        Args:
            logps: [S, T] log-prob of each position's target, nats.
            mask: [S, T], true (or non-zero) at scored positions.
            stats: name -> [S, T].

        Raises:
            ValueError: shapes differ, or a response has no scored token.
        """
        keep = mask.bool()
        for name, values in {"mask": keep, **stats}.items():
            if values.shape != logps.shape:
                raise ValueError(
                    f"SeqLogps.from_padded: {name} has shape {list(values.shape)}, "
                    f"logps {list(logps.shape)}. Shift both to the same positions."
                )
        lengths = tuple(keep.sum(dim=1).tolist())
        if not lengths or 0 in lengths:
            row = lengths.index(0) if lengths else 0
            raise ValueError(f"SeqLogps.from_padded: response {row} has no scored token in mask.")
        kept = {name: values[keep] for name, values in stats.items()}
        return cls(tokens=logps[keep], lengths=lengths, stats=kept)


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probs of P pairs; both sides hold P responses, so ``chosen.total`` is [P].

    A pair owns its tokens: the same answer may count differently against different partners.
    ``others`` holds, for each role that the loss names, a further response of every pair.
    """

    chosen: SeqLogps
    rejected: SeqLogps
    others: Mapping[str, SeqLogps] = field(default_factory=dict)  # role -> P responses

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ValueError(
                f"PairLogps: {len(self.chosen)} chosen but {len(self.rejected)} rejected responses."
            )
        for role, answers in self.others.items():
            if len(answers) != len(self.chosen):
                raise ValueError(f"PairLogps: {len(answers)} {role} responses for {len(self.chosen)} pairs.")
        object.__setattr__(self, "others", _Named(self.others, "PairLogps.others", "others={{'{}': ...}}"))

    def __len__(self) -> int:
        return len(self.chosen)

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
        if logps.shape[0] % 2:
            raise ValueError(
                f"PairLogps.from_concatenated: {logps.shape[0]} rows cannot be halved into chosen "
                f"and rejected. Give 2 P rows, chosen first."
            )
        both = SeqLogps.from_padded(logps, mask, **stats)
        half = logps.shape[0] // 2
        return cls(both.take(range(half)), both.take(range(half, 2 * half)))


@dataclass(frozen=True, slots=True)
class LabelledLogps:
    """Log-probs of S single answers, each desirable or not (unpaired feedback).

    ``others`` holds, for each role that the loss names, responses of their own number, such as the
    mismatched answers (role ``kl``) that KTO takes its baseline from.
    """

    answers: SeqLogps
    is_desirable: Tensor  # bool [S]
    others: Mapping[str, SeqLogps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_desirable.shape != (len(self.answers),):
            raise ValueError(
                f"LabelledLogps: is_desirable has shape {list(self.is_desirable.shape)} for {len(self.answers)} "
                f"answers. Give one value per answer."
            )
        object.__setattr__(
            self, "others", _Named(self.others, "LabelledLogps.others", "others={{'{}': ...}}")
        )

    def __len__(self) -> int:
        return len(self.answers)

    def detach(self) -> LabelledLogps:
        """Return the same values outside the graph."""
        others = {role: answers.detach() for role, answers in self.others.items()}
        return LabelledLogps(self.answers.detach(), self.is_desirable, others)


@dataclass(frozen=True, slots=True)
class ListLogps:
    """Log-probs of the answers of G groups, for listwise losses; a group's answers lie together."""

    answers: SeqLogps
    group_sizes: tuple[int, ...]  # [G], answers per group

    def __post_init__(self) -> None:
        if sum(self.group_sizes) != len(self.answers):
            raise ValueError(
                f"ListLogps: groups of {sum(self.group_sizes)} answers in all, but {len(self.answers)} answers."
            )

    def __len__(self) -> int:
        return len(self.group_sizes)

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
