"""Lay whole groups end to end in one row: every prompt once, its responses behind it.

A prompt of two tokens with answers ``3 4`` and ``5``, then a prompt of one token with answers ``7`` and ``8 9``:

    packed token    0  1    2  3    4    5    6    7  8
    token id        1  2    3  4    5    6    7    8  9
    position        0  1    2  3    2    0    1    1  2     an answer goes on where its prompt ends
    predicts        .  3 5  4  .    .    7 8  .    9  .     the last prompt token, the start of every answer

>>> batch = pack([group_of([1, 2], [[3, 4], [5]]), group_of([6], [[7], [8, 9]])])
>>> batch.position_ids.tolist()
[0, 1, 2, 3, 2, 0, 1, 1, 2]
>>> list(zip(batch.score_at.tolist(), batch.target_ids.tolist()))
[(1, 3), (2, 4), (1, 5), (5, 7), (5, 8), (7, 9)]
>>> batch.segments.parents  # which run of tokens each answer continues
(-1, 0, 0, -1, 3, 3)
>>> batch.lengths, batch.pairs, batch.groups
((2, 1, 1, 2), ((0, 1), (2, 3)), (0, 2, 4))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prefopt.ragged import Lengths
from prefopt.types import IntArray, PackedBatch, Preference, Segments, TokenizedGroup
from prefopt.words import spelled

FILLER = 128
"""Most tokens of a segment that only fills a row up."""
_HOST = torch.device("cpu")


def group_of(
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    preferences: Sequence[tuple[int, int]] | None = None,
    *,
    scores: Sequence[float] | None = None,
    labels: Sequence[bool] | None = None,
    row_id: int = 0,
) -> TokenizedGroup:
    """Build a group from plain lists of token ids, for callers with their own data code.

    Args:
        prompt: at least one token.
        responses: K lists of at least one token, the end-of-sequence token included.
        preferences: (chosen, rejected) indices into ``responses``. None: the first over the second, if there are two.
        scores: a number for each response, for losses that read scores.
        labels: whether each response is desirable, for losses over labelled answers.
        row_id: names the row in errors.

    Raises:
        ValueError: a side is empty, or holds something else than token ids; scores or labels are not one for each
            response, or a preference names what is not there.
    """
    if not len(prompt) or not responses or not all(len(response) for response in responses):
        raise ValueError(f"group_of: row {row_id} has an empty prompt or response. Give every side a token.")
    for name, values in {"scores": scores, "labels": labels}.items():
        if values is not None and len(values) != len(responses):
            raise ValueError(
                f"group_of: row {row_id} has {len(responses)} responses but {len(values)} {name}. "
                f"Give one for each."
            )
    if odd := [label for label in labels or () if label not in (False, True)]:
        raise ValueError(f"group_of: row {row_id} has the label {spelled(odd[0])}. Give true or false.")
    if preferences is None:
        preferences = ((0, 1),) if len(responses) > 1 else ()
    for chosen, rejected in preferences:
        if chosen == rejected or not all(0 <= at < len(responses) for at in (chosen, rejected)):
            raise ValueError(
                f"group_of: row {row_id} prefers response {chosen} to {rejected}, but has {len(responses)}, counted "
                f"from 0. Give pairs of two different ones."
            )
    return TokenizedGroup(
        prompts=(_ids(prompt, row_id),),
        responses=tuple(_ids(response, row_id) for response in responses),
        prompt_of=(0,) * len(responses),
        preferences=tuple(Preference(*pair) for pair in preferences),
        row_id=row_id,
        origin=f"row {row_id}",
        scores=None if scores is None else tuple(scores),
        labels=None if labels is None else tuple(labels),
    )


def _ids(values: Sequence[int], row_id: int) -> IntArray:
    """Return token ids; 1.5 would be cut to 1, and -100 of labels is the id of no token."""
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0:
        raise ValueError(
            f"group_of: row {row_id} holds {spelled(found.tolist())}. Give token ids: a list of whole numbers from 0."
        )
    return found.astype(np.int32)


def sequence_key(
    prompt: IntArray, response: IntArray, is_scored: npt.NDArray[np.bool_] | None = None
) -> bytes:
    """Return the digest that names one response after one prompt, whatever row it came from.

    Args:
        prompt: its tokens.
        response: its tokens.
        is_scored: which of the response's tokens are scored; None: all.
    """
    digest = blake2b(digest_size=16)
    digest.update(len(prompt).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(prompt, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(response, dtype="<i4").tobytes())
    if is_scored is not None:
        digest.update(is_scored.tobytes())
    return digest.digest()


def pack(
    groups: Sequence[TokenizedGroup], *, share_prompts: bool = True, is_ghost: bool = False
) -> PackedBatch:
    """Build the batch of one forward pass from whole groups.

    Args:
        groups: at least one group; every prompt holds at least one token, and every response one that is
            scored. Tokens of weight 0 are read by the model and not scored.
        share_prompts: lay each prompt down once for all its responses; False repeats it before
            every response (padding-free without sharing).
        is_ghost: give every unit weight zero; the batch only keeps this rank's graph alive.

    Returns:
        The batch on the CPU.
    """
    layout = _Layout()
    pairs: list[tuple[int, int]] = []
    offsets = [0]
    for group in groups:
        first = offsets[-1]
        pairs += [(first + p.chosen, first + p.rejected) for p in group.preferences]
        offsets.append(first + len(group.responses))
        layout.add(group, share_prompts)
    preferences = [p for group in groups for p in group.preferences]
    lengths = Lengths(len(target) for target in layout.targets)
    for side in zip(*pairs, strict=True):  # made here, off the step: see prefopt.ragged
        lengths.take(side, _HOST)
    lengths.on(_HOST)
    weights = [0.0 if is_ghost else p.weight for p in preferences]
    return PackedBatch(
        input_ids=_join(layout.ids),
        position_ids=_join(layout.positions),
        segments=layout.segments(),
        score_at=_join(layout.score_at),
        target_ids=_join(layout.targets),
        lengths=lengths,
        pairs=tuple(pairs),
        pair_weight=torch.tensor(weights, dtype=torch.float32),
        pair_margin=torch.tensor([p.margin for p in preferences], dtype=torch.float32),
        groups=tuple(offsets),
        row_ids=tuple(group.row_id for group in groups),
        origins=tuple(group.origin for group in groups),
        keys=tuple(layout.keys),
        roles=_chain(groups, "roles", "answer"),
        scores=_tensor(_chain(groups, "scores", float("nan")), torch.float32),
        labels=_tensor(_chain(groups, "labels", None), torch.bool),
        pair_soft_label=_soft_labels(preferences),
        token_weights=_token_weights(groups),
        group_weight=_group_weight(groups, is_ghost),
        prompt_embedding=_prompt_embedding(groups),
        is_ghost=is_ghost,
    )


def fill(batch: PackedBatch, size: int) -> PackedBatch:
    """Return the batch with tokens behind it that nothing scores, ``size`` tokens in all.

    The filler lies in short segments of its own, so it sees no data, no data sees it, and its cost
    grows no faster than its length.

    Args:
        batch: on any device, which need not be waited for.
        size: at least the tokens of the batch.

    Raises:
        ValueError: the batch is longer.
    """
    missing = size - batch.num_tokens
    if missing < 0:
        raise ValueError(
            f"a pack of {batch.num_tokens} tokens for rows of {size}. Plan packs of at most {size}."
        )
    if missing == 0:
        return batch
    # a position that the data has, so one that the model has
    run = min(FILLER, max(batch.segments.lengths))
    starts = range(batch.num_tokens, size, run)
    segments = Segments(
        starts=(*batch.segments.starts, *starts),
        lengths=(*batch.segments.lengths, *(min(run, size - start) for start in starts)),
        parents=(*batch.segments.parents, *(-1 for _ in starts)),
    )
    ids, positions = batch.input_ids, batch.position_ids
    return replace(
        batch,
        input_ids=torch.cat([ids, ids[:1].expand(missing)]),
        position_ids=torch.cat([positions, torch.arange(missing, device=positions.device) % run]),
        segments=segments,
    )


class _Layout:
    """Collect runs of tokens in packed order."""

    def __init__(self) -> None:
        self.ids: list[IntArray] = []
        self.positions: list[IntArray] = []
        self.score_at: list[IntArray] = []
        self.targets: list[IntArray] = []
        self.keys: list[bytes] = []
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.num_tokens = 0

    def segments(self) -> Segments:
        return Segments(tuple(self.starts), tuple(self.lengths), tuple(self.parents))

    def add(self, group: TokenizedGroup, share_prompts: bool) -> None:
        """Add one group; responses keep their order, so that scored tokens do too."""
        roots: dict[int, int] = {}
        for index, (response, prompt_index) in enumerate(zip(group.responses, group.prompt_of, strict=True)):
            prompt = group.prompts[prompt_index]
            if prompt_index not in roots or not share_prompts:
                roots[prompt_index] = self._run(prompt, parent=-1, position=0)
            root = roots[prompt_index]
            last_of_prompt = self.starts[root] + len(prompt) - 1
            start = self.num_tokens
            self._run(response, parent=root, position=len(prompt))
            own = np.arange(start, start + len(response) - 1, dtype=np.int32)
            score_at = np.concatenate([np.array([last_of_prompt], np.int32), own])
            is_scored = _is_scored(group, index)
            assert is_scored is None or is_scored.any(), f"{group.origin}: a response without a scored token"
            self.score_at.append(score_at if is_scored is None else score_at[is_scored])
            self.targets.append(response if is_scored is None else response[is_scored])
            self.keys.append(sequence_key(prompt, response, is_scored))

    def _run(self, ids: IntArray, *, parent: int, position: int) -> int:
        self.ids.append(ids)
        self.positions.append(np.arange(position, position + len(ids), dtype=np.int32))
        self.starts.append(self.num_tokens)
        self.lengths.append(len(ids))
        self.parents.append(parent)
        self.num_tokens += len(ids)
        return len(self.lengths) - 1


def _is_scored(group: TokenizedGroup, index: int) -> npt.NDArray[np.bool_] | None:
    """Return which tokens of a response have a weight, or None where all have."""
    if group.token_weights is None or group.token_weights[index].all():
        return None
    is_scored: npt.NDArray[np.bool_] = group.token_weights[index] != 0
    return is_scored


def _join(arrays: Sequence[IntArray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))


def _chain(groups: Sequence[TokenizedGroup], name: str, missing: object) -> tuple[Any, ...] | None:
    """Join a per-response field over groups; None where no group has it, or where a gap has no filler."""
    values = [getattr(group, name) for group in groups]
    if all(value is None for value in values):
        return None
    if missing is None and any(value is None for value in values):
        return None
    filled = [
        [missing] * len(group.responses) if value is None else value
        for group, value in zip(groups, values, strict=True)
    ]
    return tuple(item for value in filled for item in value)


def _tensor(values: tuple[Any, ...] | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=dtype)


def _soft_labels(preferences: Sequence[Preference]) -> torch.Tensor | None:
    labels = [p.soft_label for p in preferences]
    return None if None in labels else torch.tensor(labels, dtype=torch.float32)


def _group_weight(groups: Sequence[TokenizedGroup], is_ghost: bool) -> torch.Tensor:
    """Return the weight of each group, [G]: that of its row, which all its pairs carry."""
    weights = [group.preferences[0].weight if group.preferences else 1.0 for group in groups]
    return torch.tensor([0.0] * len(groups) if is_ghost else weights, dtype=torch.float32)


def _prompt_embedding(groups: Sequence[TokenizedGroup]) -> torch.Tensor | None:
    parts = [group.prompt_embedding for group in groups]
    found = [part for part in parts if part is not None]
    return torch.from_numpy(np.stack(found)) if len(found) == len(parts) else None


def _token_weights(groups: Sequence[TokenizedGroup]) -> torch.Tensor | None:
    if all(group.token_weights is None for group in groups):
        return None
    parts = [
        np.concatenate(group.token_weights)
        if group.token_weights is not None
        else np.ones(sum(len(r) for r in group.responses), np.float32)
        for group in groups
    ]
    weights = np.concatenate(parts).astype(np.float32)
    return torch.from_numpy(weights[weights != 0])
