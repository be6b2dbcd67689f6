"""What a memory plan is made for: what the packs look like, on which machine, with which kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prefopt.kernels import which_impl
from prefopt.kernels.prefix_attention.choice import machine_of
from prefopt.kernels.prefix_attention.spec import Machine
from prefopt.types import PackedBatch, Segments

_NEW_GPU = Machine("cuda", (9, 0))


@dataclass(frozen=True, slots=True)
class Sample:
    """A stretch of a packed row that stands for the data: how it is cut up, and how much of it is scored."""

    segments: Segments
    num_scored: int

    @classmethod
    def of(cls, batch: PackedBatch) -> Sample:
        """Take the layout of a batch."""
        return cls(batch.segments, sum(batch.lengths))

    @classmethod
    def uniform(cls, prompt: int = 512, answers: Sequence[int] = (256, 256)) -> Sample:
        """Take one group: a prompt of so many tokens, shared by answers of so many tokens each."""
        lengths = (prompt, *answers)
        starts = tuple(sum(lengths[:at]) for at in range(len(lengths)))
        return cls(Segments(starts, lengths, (-1, *[0] * len(answers))), sum(answers))

    @property
    def num_tokens(self) -> int:
        return sum(self.segments.lengths)

    def scored(self, tokens: int) -> int:
        """Return how many tokens a row of ``tokens`` like this one scores."""
        return round(tokens * self.num_scored / self.num_tokens)

    def twice(self) -> Sample:
        """Return the same stretch laid end to end with itself."""
        once, count = self.segments, len(self.segments)
        again = Segments(
            starts=(*once.starts, *(start + self.num_tokens for start in once.starts)),
            lengths=once.lengths * 2,
            parents=(*once.parents, *(parent if parent < 0 else parent + count for parent in once.parents)),
        )
        return Sample(again, 2 * self.num_scored)


@dataclass(frozen=True, slots=True)
class Target:
    """What a step is planned for: a machine, and what is asked of it; by default a GPU of today."""

    machine: Machine = _NEW_GPU
    attention: str = "auto"
    head: str = "fused"
    autocast: torch.dtype | None = None

    @classmethod
    def of(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        attention: str = "auto",
        autocast: torch.dtype | None = None,
    ) -> Target:
        """Look at a device that is here.

        Args:
            device: cpu or cuda.
            dtype: of the weights.
            attention: the kernel asked for.
            autocast: compute in this dtype while weights keep theirs.
        """
        like = torch.empty((0, 0), dtype=dtype, device=device)
        return cls(machine_of(like.device), attention, which_impl(like, like), autocast)

    @property
    def device(self) -> str:
        return self.machine.device
