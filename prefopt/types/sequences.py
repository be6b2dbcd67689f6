"""Per-token log-probs of responses, ragged, with their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.ragged import Lengths
from prefopt.types.checks import (
    host_counts,
    kept_of,
    log_probs,
    require_log_probs,
    require_named,
    require_padded,
    require_vectors,
    same_device,
    stats_of_tokens,
    wide,
)


class Named(dict[str, Any]):
    """A dict whose missing entry is named in one line, with the way to give it."""

    def __init__(self, values: Mapping[str, Any], owner: str, way: str) -> None:
        super().__init__(values)
        self.owner, self.way = owner, way

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"{self.owner}: the loss reads '{name}', which was not given. Build them with {self.way.format(name)}."
        )


class Arranged:
    """Log-probs of responses in units of some kind."""

    __slots__ = ()

    @property
    def parts(self) -> dict[str, SeqLogps]:
        """All responses, by name; the first are the units' own."""
        raise NotImplementedError

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """What policy and reference have in common, by name."""
        return {name: part.lengths for name, part in self.parts.items()}


@dataclass(frozen=True, slots=True)
class SeqLogps(Arranged):
    """Log-probs of S responses, ragged: every scored token, ordered by response.

    Floats of 16 bits are widened to float32 here, before anything is added up or subtracted.

    Args:
        tokens: [M] log-prob of each scored token, nats.
        lengths: [S] scored tokens per response, as host ints, each at least 1.
        stats: name -> [M], per-token statistics beside the log-prob.
        replaced_total: [S], stands in for the plain sum where a transform reweighted tokens.

    Raises:
        ValueError: shapes, devices or lengths do not fit, or ``tokens`` holds no floats.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    replaced_total: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = log_probs(self.tokens, "SeqLogps: tokens")
        lengths = host_counts(self.lengths, "SeqLogps: lengths")
        if tokens.dim() != 1 or tokens.numel() != sum(lengths):
            raise ValueError(
                f"SeqLogps: tokens has shape {list(tokens.shape)} but lengths add up to "
                f"{sum(lengths)}. Give one log-prob per scored token."
            )
        stats = stats_of_tokens(require_named(self.stats, "SeqLogps: stats"), tokens)
        total = self.replaced_total
        if total is not None:
            total = log_probs(total, "SeqLogps: replaced_total")
            same_device("SeqLogps", {"tokens": tokens, "replaced_total": total})
            if total.shape != (len(lengths),):
                raise ValueError("SeqLogps: replaced_total needs one value per response.")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "stats", Named(stats, "SeqLogps.stats", "from_padded(logps, mask, {}=...)"))
        object.__setattr__(self, "replaced_total", total)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def _counts(self) -> Tensor:
        return Lengths.of(self.lengths).on(self.tokens.device)

    @property
    def parts(self) -> dict[str, SeqLogps]:
        """All responses, by name."""
        return {"answers": self}

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
        """Add up per-token ``values`` [M] within each response -> [S], in a fixed order and in float64.

        A loss goes on in float64 and is rounded when it is returned: a difference of two sums of 32,000
        log-probs each keeps two decimals in float32.
        """
        return torch.segment_reduce(wide(values), "sum", lengths=self._counts, initial=0.0, unsafe=True)

    @property
    def total(self) -> Tensor:
        """Log-prob of each response, [S]: as ``sum`` of its tokens, unless a transform replaced it."""
        return self.sum(self.tokens) if self.replaced_total is None else wide(self.replaced_total)

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
            ValueError: something is no 1-D tensor, a response is empty or a stat's shape differs.
        """
        for name, values in {"logps": logps, **stats}.items():
            require_vectors(name, values)
        for row, tokens in enumerate(logps):
            log_probs(tokens, f"SeqLogps.from_ragged: logps[{row}]")
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
            mask: [S, T], true (or 1) at scored positions.
            stats: name -> [S, T].

        Raises:
            ValueError: shapes differ, something is no tensor, a mask is not of 0 and 1, a response has no scored
                token, or what is scored is above 0.
        """
        for name, values in {"logps": logps, "mask": mask, **stats}.items():
            require_padded(name, values)
        keep = kept_of(mask)
        for name, values in {"mask": keep, **stats}.items():
            if values.shape != logps.shape:
                raise ValueError(
                    f"SeqLogps.from_padded: {name} has shape {list(values.shape)}, "
                    f"logps {list(logps.shape)}. Shift both to the same positions."
                )
        lengths = tuple(keep.sum(dim=1).tolist())
        if not lengths:
            raise ValueError("SeqLogps.from_padded: logps has no row. Give at least one response.")
        if 0 in lengths:
            raise ValueError(
                f"SeqLogps.from_padded: response {lengths.index(0)} has no scored token in mask."
            )
        kept = {name: values[keep] for name, values in stats.items()}
        tokens = log_probs(logps, "SeqLogps.from_padded: logps")[keep]
        require_log_probs(tokens, "SeqLogps.from_padded: logps")
        return cls(tokens=tokens, lengths=lengths, stats=kept)
