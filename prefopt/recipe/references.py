"""What a recipe may compare the policy with: the names, the blocks, and what does not go with the model.

A kind of reference is a name in ``ReferenceName`` or a block in ``ReferenceBlock``; how it is built, described
and planned is ``prefopt.assemble.references``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from prefopt.recipe.blocks import Block, Count, Text, without, wrong
from prefopt.recipe.explain import no_choice


class ReferenceModel(Block):
    """A reference that is not the model at the start of training."""

    path: Text
    """Hub id or local folder."""
    revision: Text | None = None
    """Branch, tag or commit of a hub model."""
    adapter: Text | None = None
    """Path or hub id of an adapter on top of it."""
    cached: bool = False
    """Score all data once before training, then let the model go."""

    @model_validator(mode="before")
    @classmethod
    def _stands_still(cls, block: Any) -> Any:
        for name, other in NAMED_BLOCKS.items():
            without(block, other, f"belongs to a {name} reference. Add name: {name}, or take it out.")
        return block


class Moving(Block):
    """A copy of the policy that follows it while training (TR-DPO, arXiv 2404.09656)."""

    name: Literal["moving"]
    """moving."""
    every: Count = 512
    """Optimizer steps between two updates."""
    mix: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the policy in an update, the rest is the old reference; 1 replaces it."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_copy(cls, block: Any) -> Any:
        return without(
            block, ReferenceModel, "does not go with name: moving, a copy of the policy that stays in memory."
        )


ReferenceName = Literal["initial", "adapter_off", "cached"]
ReferenceBlock = Annotated[ReferenceModel, Tag("<path>")] | Annotated[Moving, Tag("<moving>")]
"""Blocks with the kind in brackets; all but the one by path say it as their ``name``."""

Entry = ReferenceName | ReferenceModel | Moving
"""One reference, as a recipe writes it."""

BLOCKS: dict[str, type[Block]] = {
    get_args(each)[1].tag.strip("<>"): get_args(each)[0] for each in get_args(ReferenceBlock)
}
NAMED_BLOCKS = {kind: block for kind, block in BLOCKS.items() if "name" in block.model_fields}
KINDS: tuple[str, ...] = (*get_args(ReferenceName), *BLOCKS)

FROM_START = frozenset({"initial", "cached"})
"""Kinds that score with the weights that training starts from, a given adapter included."""


def kind_of(entry: Entry) -> str:
    """Return the kind of a reference, one of ``KINDS``."""
    return entry if isinstance(entry, str) else getattr(entry, "name", "path")


def _form_of(value: Any) -> str:
    """Say which member of the union below a value is meant for."""
    if isinstance(value, str):
        return "<name>"
    if isinstance(value, (list, tuple)):
        return "<list>"
    return f"<{value.get('name', 'path') if isinstance(value, dict) else kind_of(value)}>"


def _is_known(value: Any) -> Any:
    if isinstance(value, dict) and "name" in value and value["name"] not in list(NAMED_BLOCKS):
        raise wrong(no_choice(value["name"], NAMED_BLOCKS), "name")
    return value


def _two_or_more(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(values) < 2:
        raise wrong("lists fewer than two references. Write a single one without the brackets.")
    return values


ListedReference = Annotated[
    Annotated[ReferenceName, Tag("<name>")] | Annotated[ReferenceModel, Tag("<block>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<block>"),
]
References = Annotated[
    Annotated[Literal[ReferenceName, "none"], Tag("<name>")]
    | ReferenceBlock
    | Annotated[
        tuple[ListedReference, ...], Field(strict=False), AfterValidator(_two_or_more), Tag("<list>")
    ],
    Discriminator(_form_of),
    BeforeValidator(_is_known),
]
"""What may stand at ``reference``."""


def check_fit(entries: tuple[Entry, ...], *, trains_adapter: bool) -> None:
    """Refuse references that do not go with the model that is trained."""
    for entry in entries:
        if entry == "adapter_off" and not trains_adapter:
            raise wrong(
                "adapter_off takes the model without its adapter, but none is trained. "
                "Write initial, or set model.lora or model.adapter.",
                "reference",
            )
        if isinstance(entry, Moving) and entry.mix < 1 and trains_adapter:
            raise wrong(
                f"moving with mix {entry.mix:g} would average the factors of an adapter, which is not the "
                f"average of what they add. Set mix: 1, or train all weights.",
                "reference",
            )
