"""Floating-point operations of one optimizer step of DPO, counted for every layout of the same answers.

A product of [a, b] and [b, c] is 2 a b c operations. Counted are the trunk's matrices, attention over the pairs
of tokens that see each other, and the head; norms, rotary embeddings, activations and the optimizer are not,
so a share of the time that these operations need at the products' measured rate is a claim about the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = tuple[int, tuple[int, ...]]
"""Tokens of one prompt, and of each of its answers."""

LAYOUTS = ("padded", "padding-free", "shared")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the operations of a decoder-only model follow from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    adapter: int = 0  # parameters of all low-rank adapters, which every token of the trunk meets once

    @property
    def trunk(self) -> int:
        """Return the parameters of the layers' matrices: query and output, key and value, gate, up and down."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def adapter_of(self, rank: int) -> int:
        """Return the parameters of adapters of this rank on every matrix of the layers: rank x (in + out) each."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + wide) + 2 * (self.hidden + narrow)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True, slots=True)
class Load:
    """What one pass over a set of answers puts through a model."""

    tokens: int  # through the trunk, padding included
    seen: int  # pairs of a query and a key that it sees
    scored: int  # rows of the head


def load_of(batches: Iterable[Sequence[Row]], layout: str, *, scores_all: bool = False) -> Load:
    """Count tokens, attended pairs and head rows of micro-batches.

    Args:
        batches: the rows of every micro-batch; only ``padded`` depends on how rows are cut into them.
        layout: ``shared`` holds each prompt once, ``padding-free`` once before every answer, ``padded`` too
            and fills every answer of a micro-batch up to its longest. A causal kernel skips half the square;
            a dense mask that makes it compute the whole square costs more time, not more needed operations.
        scores_all: the head meets every token of the trunk, as without an index of the answers' tokens.
    """
    tokens = seen = scored = 0
    for rows in batches:
        answers = [(prompt, own) for prompt, owns in rows for own in owns]
        match layout:
            case "shared":
                tokens += sum(prompt + sum(owns) for prompt, owns in rows)
                seen += sum(_triangle(prompt) for prompt, _ in rows)
                seen += sum(prompt * own + _triangle(own) for prompt, own in answers)
            case "padding-free":
                tokens += sum(prompt + own for prompt, own in answers)
                seen += sum(_triangle(prompt + own) for prompt, own in answers)
            case "padded":
                longest = max(prompt + own for prompt, own in answers)
                tokens += len(answers) * longest
                seen += len(answers) * _triangle(longest)
            case _:
                raise AssertionError(f"unknown layout {layout}")
        scored += sum(own for _, own in answers)
    return Load(tokens, seen, tokens if scores_all else scored)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def forward_flops(sizes: Sizes, load: Load, *, has_adapter: bool = False) -> float:
    """Return the operations of one forward pass: 2 T W + 4 A L Hq d + 2 N V D."""
    return (
        _layers_flops(sizes, load, has_adapter=has_adapter) + 2.0 * load.scored * sizes.vocab * sizes.hidden
    )


def _layers_flops(sizes: Sizes, load: Load, *, has_adapter: bool) -> float:
    weights = sizes.trunk + (sizes.adapter if has_adapter else 0)
    return 2.0 * load.tokens * weights + 4.0 * load.seen * sizes.layers * sizes.heads * sizes.head_dim


HEAD_BACKWARD = {"kept": 2, "recomputed": 3, "frozen": 1, "frozen, recomputed": 2}
"""Products of the head's size in its backward: gradients of hidden states and weights, and logits once more.

A frozen head needs no gradient of its own. ``frozen``: the hidden states' gradient is made with the log-probs.
"""


def step_flops(
    sizes: Sizes,
    load: Load,
    *,
    head: str = "recomputed",
    is_cached: bool = False,
    recomputes_layers: bool = False,
) -> float:
    """Return the operations of forward, backward and reference of one optimizer step.

    The layers' backward takes 4 T W + 10 A L Hq d, attention's weights being made again. With adapters the
    trunk's matrices are frozen and need 2 T W; every adapter needs both of its gradients.

    Args:
        sizes: of the model; adapters freeze everything else, the head too.
        load: of all answers of the step, in the layout that is asked about.
        head: a name out of ``HEAD_BACKWARD``.
        is_cached: the reference was scored before training.
        recomputes_layers: layers run forward once more in the backward.
    """
    layers = _layers_flops(sizes, load, has_adapter=sizes.adapter > 0)
    per_token = 2.0 * sizes.trunk + 4.0 * sizes.adapter if sizes.adapter else 4.0 * sizes.trunk
    backward = load.tokens * per_token + 10.0 * load.seen * sizes.layers * sizes.heads * sizes.head_dim
    if recomputes_layers:
        backward += layers
    product = 2.0 * load.scored * sizes.vocab * sizes.hidden
    reference = 0.0 if is_cached else forward_flops(sizes, load)
    return layers + product + backward + HEAD_BACKWARD[head] * product + reference
