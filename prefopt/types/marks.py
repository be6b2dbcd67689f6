"""What a loss writes into its signature: the closed tables of names, and the marks that use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


READS = {
    "sum": "the sum of its log-probs",
    "length": "the sum of its log-probs, and its length",
    "tokens": "the log-probs of its single tokens",
}
"""What a loss may read of an answer, the least first; what is said of one says the ones before it too."""


SCALES = {
    "unit_gap": "the gap between the scores of a pair lies between 0 and 1, and counts as the nearer end elsewhere",
    "probability": "each score is a probability, from 0 to 1",
}
"""What a loss may say of the scores in the data; without a word any scale will do."""


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
class OnlyWith:
    """Mark a setting that has no effect unless another is one of these choices: ``OnlyWith("link", "logistic")``.

    Beside any other choice it must keep its default, and whatever else it is given is refused.
    """

    setting: str
    choices: tuple[str, ...]

    def __init__(self, setting: str, *choices: str) -> None:
        object.__setattr__(self, "setting", setting)
        object.__setattr__(self, "choices", choices)


@dataclass(frozen=True, slots=True)
class Reads:
    """Mark a loss that reads more of an answer than its sum: ``Annotated[PairLogps, Reads("length")]``.

    "length": its sum and its length, "tokens": single tokens, which ``Stats`` says already. Sums, and lengths where
    they are read, are all that the function of plain tensors of such a loss takes. Where a setting decides whether
    lengths are read, ``only_with`` says beside which choices they are.
    """

    names: tuple[str, ...]
    only_with: OnlyWith | None = None

    def __init__(self, *names: str, only_with: OnlyWith | None = None) -> None:
        for name in names:
            if name not in READS:
                raise ValueError(f"Reads: there is no '{name}' of an answer. Choose from {', '.join(READS)}.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "only_with", only_with)


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
class Scale:
    """Mark a loss that takes the data's scores for something on a scale of its own: ``Scale("probability")``.

    Nothing is refused by it: ``prefopt check`` counts the scores that lie elsewhere.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if name not in SCALES:
                raise ValueError(f"Scale: there is no '{name}' of scores. Choose from {', '.join(SCALES)}.")
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
    loss returned as ``LossOutput.carried["mean"]``; a trainer keeps it in its checkpoints. ``Carried(shape=())`` says
    its shape, and another is refused.
    """

    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Applies:
    """Mark a loss that already contains a transform: ``Annotated[PairLogps, Applies("weighted")]``."""

    transforms: tuple[str, ...]

    def __init__(self, *transforms: str) -> None:
        object.__setattr__(self, "transforms", transforms)


@dataclass(frozen=True, slots=True)
class Refuses:
    """Mark a loss that reads past what a transform changes: ``Annotated[PairLogps, Refuses("f_div")]``."""

    transforms: tuple[str, ...]

    def __init__(self, *transforms: str) -> None:
        object.__setattr__(self, "transforms", transforms)


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
