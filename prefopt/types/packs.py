"""What meets the model: packed rows, and all of them in one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.ragged import Change, Lengths, pinned
from prefopt.types.rows import TokenizedGroup


@dataclass(frozen=True, slots=True)
class Segments:
    """Host-side layout of one packed row: a forest whose nodes are runs of tokens.

    Segment ``i`` holds the packed tokens ``[starts[i], starts[i] + lengths[i])`` and attends
    causally to itself and wholly to its chain of ancestors; ``parents[i]`` is -1 for a root (a
    prompt) and always less than ``i``. Plain ints, so no device sync is needed to read them.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.lengths) == len(self.parents):
            raise ValueError("Segments: starts, lengths and parents differ in number.")

    def __len__(self) -> int:
        return len(self.starts)

    def ancestors(self, index: int) -> tuple[int, ...]:
        """Return the chain from the root down to the parent of segment ``index``."""
        chain: list[int] = []
        parent = self.parents[index]
        while parent >= 0:
            chain.append(parent)
            parent = self.parents[parent]
        return tuple(reversed(chain))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass: whole groups laid end to end in a single row, without padding.

    Row ``score_at[m]`` of the hidden states predicts ``target_ids[m]``; the last prompt token
    predicts the first token of every response of that prompt, so ``score_at`` repeats. Scored
    tokens are ordered by response. Host fields (tuples) never need a device sync.
    """

    input_ids: Tensor  # int64 [T]
    position_ids: Tensor  # int64 [T], restarts at the prompt's length for every response
    segments: Segments
    score_at: Tensor  # int64 [M]
    target_ids: Tensor  # int64 [M]
    lengths: tuple[int, ...]  # [S], scored tokens per response
    pairs: tuple[tuple[int, int], ...]  # [P], (chosen, rejected) as indices into the S responses
    pair_weight: Tensor  # float32 [P]
    pair_margin: Tensor  # float32 [P]
    groups: tuple[int, ...]  # [G + 1], response offsets of every group
    row_ids: tuple[int, ...]  # [G]
    origins: tuple[str, ...]  # [G]
    keys: tuple[bytes, ...]  # [S], digest of prompt ids + response ids
    roles: tuple[str, ...] | None = None  # [S]
    scores: Tensor | None = None  # float32 [S]
    labels: Tensor | None = None  # bool [S]
    pair_soft_label: Tensor | None = None  # float32 [P]
    token_weights: Tensor | None = None  # float32 [M], above 0
    group_weight: Tensor | None = None  # float32 [G], None: all 1
    prompt_embedding: Tensor | None = None  # float32 [G, E]
    is_ghost: bool = False  # fills a short rank: real tokens, weight zero

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.position_ids.shape:
            raise ValueError("PackedBatch: input_ids and position_ids differ in shape.")
        if self.score_at.shape != self.target_ids.shape or self.score_at.numel() != sum(self.lengths):
            raise ValueError("PackedBatch: score_at, target_ids and lengths disagree.")
        object.__setattr__(self, "lengths", Lengths.of(self.lengths))

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """Return the batch with every tensor on ``device``."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """Return the batch in host memory that a GPU reads while the host goes on."""
        return self._apply(pinned)

    def _apply(self, change: Change) -> PackedBatch:
        changed: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, Lengths):
                changed[name] = value.apply(change)
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Totals:
    """Units of one optimizer step over all ranks, known from the plan before the first backward."""

    pairs: int
    responses: int  # answers that a loss over single answers is averaged over
    groups: int
    tokens: int  # packed tokens, ghosts not counted
    chosen_tokens: int  # scored tokens of the chosen answers, once per pair; of all answers without pairs
    desirable: int = 0  # answers labelled so


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Where the scored tokens of one optimizer step lie: in the order of the plan, and rank by rank.

    ``prefopt.data.packs.step_layout`` makes it, and shows one.
    """

    batch: PackedBatch  # all groups of the step in the plan's order; says what its units are, never scored
    places: Tensor  # int64 [M], where each scored token of ``batch`` lies among those that the ranks hold
    counts: tuple[int, ...]  # [world], how many scored tokens each rank holds
    start: int  # first of this rank's tokens among those that the ranks hold

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StepLayout:
        """Return the layout with every tensor on ``device``."""
        batch = self.batch.to(device, non_blocking=non_blocking)
        return replace(self, batch=batch, places=self.places.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> StepLayout:
        """Return the layout in host memory that a GPU reads while the host goes on."""
        return replace(self, batch=self.batch.pin_memory(), places=pinned(self.places))


@dataclass(frozen=True, slots=True)
class Step:
    """All packs of one optimizer step of this rank, and the step's totals over all ranks.

    Every rank holds the same number of packs, so that every rank runs the same collectives.
    """

    index: int  # optimizer step of its source, from 0
    epoch: int
    packs: tuple[PackedBatch, ...]
    totals: Totals
    members: tuple[tuple[TokenizedGroup, ...], ...] = ()  # of every pack, to lay one out anew in halves
    share_prompts: bool = True  # as the packs were laid out
    layout: StepLayout | None = None  # for a loss that reads all units of the step at once

    def pin_memory(self) -> Step:
        """Return the step in host memory that a GPU reads while the host goes on."""
        layout = None if self.layout is None else self.layout.pin_memory()
        return replace(self, packs=tuple(batch.pin_memory() for batch in self.packs), layout=layout)
