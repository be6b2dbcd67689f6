"""Several references at once, for the transforms that combine them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from prefopt.errors import RecipeError
from prefopt.policy import Policy
from prefopt.reference.adapter_off import AdapterOffReference
from prefopt.reference.base import Reference, check_adapter_alone
from prefopt.reference.frozen_adapter import FrozenAdapterReference
from prefopt.reference.itself import SelfReference
from prefopt.types import OTHER_REFERENCES, PackedBatch, SeqLogps


class SeveralReferences(Reference):
    """Score with several references: the first one's log-probs, those of the others as statistics.

    The second one's are ``stats["reference_2"]``, and so on, as the transforms that combine them read it.
    """

    is_start = False

    def __init__(self, references: Sequence[Reference]) -> None:
        assert 2 <= len(references) <= 1 + len(OTHER_REFERENCES)
        self.references = tuple(references)
        self.moves = any(each.moves for each in references)

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        first, *others = self.references
        found = first(batch, stats=own_stats(stats))
        further = {name: other(batch).tokens for name, other in zip(OTHER_REFERENCES, others, strict=False)}
        return replace(found, stats={**found.stats, **further})

    def models(self) -> Iterator[Policy]:
        for each in self.references:
            yield from each.models()

    def follow(self, trained: Mapping[str, nn.Parameter], done: int) -> None:
        for each in self.references:
            each.follow(trained, done)

    def check_stands(self, done: int) -> None:
        for each in self.references:
            each.check_stands(done)

    def state(self) -> dict[str, Tensor]:
        """Return the weights of all that move, their names behind the number of the reference."""
        states = enumerate(each.state() for each in self.references)
        return {f"{at}.{name}": value for at, state in states for name, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for at, each in enumerate(self.references):
            start = f"{at}."
            each.load_state({n.removeprefix(start): v for n, v in state.items() if n.startswith(start)})


def check_number(loss: str, stats: Collection[str], reference: Reference | None) -> None:
    """Refuse several references where a loss compares with one, and one where it combines several.

    Args:
        loss: its name, for messages.
        stats: what the loss reads of a reference.
        reference: what the policy is compared with.

    Raises:
        RecipeError: the numbers do not agree.
    """
    several = isinstance(reference, SeveralReferences)
    if several and not set(OTHER_REFERENCES) & set(stats):
        raise RecipeError(
            f"reference: {loss} compares with one reference, but there are several. Keep one, or combine them with "
            f"losses.multi_ref."
        )
    if not several and OTHER_REFERENCES[0] in stats:
        raise RecipeError(
            f"reference: {loss} combines several references, but there is one. Give SeveralReferences."
        )


def check_apart(policy: Policy, reference: Reference) -> None:
    """Refuse a reference that moves with every step because it scores with weights that are trained.

    Args:
        policy: the model to train.
        reference: what it is compared with.

    Raises:
        RecipeError: the two can never differ.
        ModelError: the policy trains more than the adapter that the reference scores without.
    """
    trained = {id(parameter) for parameter in policy.model.parameters() if parameter.requires_grad}
    for each in reference.references if isinstance(reference, SeveralReferences) else (reference,):
        if isinstance(each, (AdapterOffReference, FrozenAdapterReference)):
            check_adapter_alone(each)  # once more: what is trained may have changed since it was made
        held = (parameter for model in each.models() for parameter in model.model.parameters())
        if isinstance(each, SelfReference) or any(id(parameter) in trained for parameter in held):
            raise RecipeError(
                f"reference: {type(each).__name__} scores with the very weights that are trained, so the policy would "
                f"never differ from it. Take a FrozenReference with a model of its own, or a CachedReference that it "
                f"has filled."
            )


def own_stats(stats: Collection[str]) -> tuple[str, ...]:
    """Return the statistics that one reference is asked for: all but the log-probs of others."""
    return tuple(name for name in stats if name not in OTHER_REFERENCES)
