"""The values that flow from a data row to a loss, and the closed tables of names they use.

Letters, once: **T** packed tokens, **M** scored tokens, **S** responses (sequences), **P** pairs,
**G** groups, **U** units of a loss (pairs, responses or groups). Log-probs are nats: float32 from
the kernels, float64 in tests; nothing casts in between. Lengths are tokens.

Values are frozen; ``__post_init__`` compares shapes and nothing else. Past this door losses and
kernels check nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefopt.ragged import Change, Lengths, on_device, pinned

Message = Mapping[str, Any]
Text = str | Sequence[Message]
IntArray = npt.NDArray[np.int32]

STATS = ("logsumexp", "entropy", "log_sum_p2", "is_top1", "mean_logit")
"""Per-token statistics of one head, beside the log-prob; ``is_top1`` has no gradient."""

PAIRED_STATS = ("kl",)
"""Those of the policy's head against the reference's: ``kl`` is KL(reference || policy), nats."""

BATCH_STATS = ("token_id", "weight")
"""What the data says of each scored token: its id (int64), and its weight, 1 where no weights are given."""

LEARNED_MASKS = ("reward_mask", "kl_mask")
"""Weights that a module learns to make from the reference's hidden states, along with the policy."""

MASK_STATS = ("activation", *LEARNED_MASKS)
"""All weights made from those hidden states; ``activation`` is from 0 to 1 and has no gradient."""

TOKEN_STATS = (*STATS, *PAIRED_STATS, *BATCH_STATS, *MASK_STATS)
"""The closed table of what a loss can ask for per token, by name."""

OTHER_REFERENCES = tuple(f"reference_{number}" for number in range(2, 9))
"""Per-token log-probs under further references, which a combined reference returns beside its own."""

ROLES = ("answer", "gold", "rationale", "kl")
"""What a response is for; all but ``answer`` are used only by the losses that name them."""

OTHER_RESPONSES = {
    "gold": "a gold answer in every row",
    "rationale": "a rationale in every row",
    "kl": "answers to other prompts, which are taken from the next row",
}
"""What the roles besides ``answer`` ask of the data."""

PROMPTS = {
    "two": "the answers of a pair may reply to different prompts",
    "contrast": "a pair is one answer to two prompts",
}
"""What a loss over pairs may say of prompts; without a word both answers of a pair reply to one prompt."""


class InputSpec(NamedTuple):
    """Describe one tensor that a trainer can hand to a loss besides log-probs."""

    shape: str
    source: str


INPUTS: dict[str, InputSpec] = {
    "chosen_score": InputSpec("[P]", "the score of the chosen answer in the data"),
    "rejected_score": InputSpec("[P]", "the score of the rejected answer in the data"),
    "pair_margin": InputSpec("[P]", "the margin of the pair in the data"),
    "soft_label": InputSpec(
        "[P]", "the probability, from the data, that the chosen answer is the better one"
    ),
    "pair_seed": InputSpec(
        "int64 [P]", "a number that names the pair in its optimizer step, however the step is split up"
    ),
    "answer_score": InputSpec("[S]", "the score of each answer in the data"),
    "prompt_embedding": InputSpec("[U, E]", "the embedding, in the data, of the prompt of each unit"),
    "mean_chosen_length": InputSpec(
        "[]", "mean tokens of the trained-on answers of this optimizer step, over all ranks"
    ),
    "desirable_share": InputSpec(
        "[]", "share of desirable answers among those of this optimizer step, over all ranks"
    ),
}
"""The closed table of what a trainer can hand a loss, by parameter name."""


class Preference(NamedTuple):
    """One preferred pair inside a group: indices of its responses, weight, margin and certainty."""

    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float = 0.0
    soft_label: float | None = None  # probability that the chosen answer is the better one, where known


class Extra(NamedTuple):
    """A text of a row that is scored but is none of its answers: what it is for, and what it replies to."""

    role: str  # of ROLES, not "answer"
    text: Text
    prompt: Text | None = None  # None: that of the first answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One data row in canonical text form: a prompt, its answers, and which is preferred.

    ``prompt`` and every answer are strings (plain text) or message lists, all of one kind.
    An answer as messages holds only the turns after the prompt. ``labels`` says desirable or not
    per answer, ``scores`` holds a number per answer; both are None where the data has none.
    Where the answers reply to different prompts, ``own_prompts`` has one for each and ``prompt`` is
    the first of them.
    """

    prompt: Text
    answers: tuple[Text, ...]
    preferences: tuple[Preference, ...]
    row_id: int
    origin: str  # file:line, or dataset[split]:row
    scores: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    tools: Sequence[Any] | None = None
    own_prompts: tuple[Text, ...] | None = None
    extras: tuple[Extra, ...] = ()
    prompt_embedding: npt.NDArray[np.float32] | None = None  # [E]

    def __post_init__(self) -> None:
        for name in ("scores", "labels", "own_prompts"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.answers):
                raise ValueError(
                    f"{self.origin}: {len(values)} {name} for {len(self.answers)} answers. "
                    f"Give one per answer."
                )


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """Token ids of one row: its prompts (nearly always one), its responses and their preferences.

    The planner's unit: a group is never split, and each prompt is stored once for all its responses.
    """

    prompts: tuple[IntArray, ...]
    responses: tuple[IntArray, ...]
    prompt_of: tuple[int, ...]  # [K], index into prompts
    preferences: tuple[Preference, ...]
    row_id: int
    origin: str
    roles: tuple[str, ...] | None = None  # [K], None: all "answer"
    scores: tuple[float, ...] | None = None  # [K], NaN for other roles than "answer"
    labels: tuple[bool, ...] | None = None  # [K], False for other roles than "answer"
    token_weights: tuple[npt.NDArray[np.float32], ...] | None = None  # [K] of [length], 0: not scored
    prompt_embedding: npt.NDArray[np.float32] | None = None  # [E]

    def __post_init__(self) -> None:
        num_responses = len(self.responses)
        for name in ("prompt_of", "roles", "scores", "labels", "token_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != num_responses:
                raise ValueError(f"{self.origin}: {len(values)} {name} for {num_responses} responses.")


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

    def copy_to(self, device: torch.device) -> PackedBatch:
        """Return the batch with every tensor on ``device``, without waiting for a GPU."""
        return self._apply(lambda tensor: on_device(tensor, device))

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
class Step:
    """All packs of one optimizer step of this rank, and the step's totals over all ranks.

    Every rank holds the same number of packs, so that every rank runs the same collectives.
    """

    index: int  # optimizer step, from 0
    epoch: int
    packs: tuple[PackedBatch, ...]
    totals: Totals


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
class SideLogps:
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
                f"SideLogps: is_desirable has shape {list(self.is_desirable.shape)} for {len(self.answers)} answers. "
                f"Give one value per answer."
            )
        object.__setattr__(self, "others", _Named(self.others, "SideLogps.others", "others={{'{}': ...}}"))

    def __len__(self) -> int:
        return len(self.answers)

    def detach(self) -> SideLogps:
        """Return the same values outside the graph."""
        others = {role: answers.detach() for role, answers in self.others.items()}
        return SideLogps(self.answers.detach(), self.is_desirable, others)


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


@dataclass(frozen=True, slots=True)
class Stats:
    """Mark a loss parameter that also needs per-token statistics: ``Annotated[PairLogps, Stats("entropy")]``."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if name not in (*TOKEN_STATS, *OTHER_REFERENCES):
                raise ValueError(
                    f"Stats: there is no per-token statistic '{name}'. Choose from {', '.join(TOKEN_STATS)}."
                )
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True)
class Roles:
    """Mark a loss parameter that also needs responses of other roles: ``Annotated[PairLogps, Roles("gold")]``.

    They are found under ``others[role]``.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if name not in ROLES[1:]:
                raise ValueError(f"Roles: there is no role '{name}'. Choose from {', '.join(ROLES[1:])}.")
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Mark a loss over pairs whose two answers may reply to different prompts: ``Annotated[..., Prompts("two")]``.

    With "contrast" every pair must be one answer to two prompts.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if name not in PROMPTS:
                raise ValueError(f"Prompts: there is no '{name}'. Choose from {', '.join(PROMPTS)}.")
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True)
class WholeStep:
    """Mark a loss whose units depend on each other: ``Annotated[PairLogps, WholeStep()]``.

    It is called once with all units of an optimizer step, over all packs and ranks, in the order of
    the plan, so that what it pays does not depend on how the step is split up.
    """


@dataclass(frozen=True, slots=True)
class Carried:
    """Mark a keyword parameter that a whole-step loss carries from one optimizer step to the next.

    ``mean: Annotated[Tensor | None, Carried()] = None`` is None in the first step and then what the
    loss returned as ``LossOutput.carried["mean"]``; a trainer keeps it in its checkpoints.
    """


@dataclass(frozen=True, slots=True)
class Range:
    """Mark the legal range of a numeric setting: ``beta: Annotated[float, Range(gt=0)] = 0.1``.

    Our own four-field marker, so that losses import nothing but torch.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        parts = [("> ", self.gt), (">= ", self.ge), ("< ", self.lt), ("<= ", self.le)]
        return " and ".join(f"{sign}{bound:g}" for sign, bound in parts if bound is not None)
