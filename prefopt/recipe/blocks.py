"""What blocks of a recipe are made of: the base of all of them, types of settings, and refusals."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(pattern=r"\S")]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Block(BaseModel):
    """A block of a recipe; a setting's docstring is its documentation everywhere."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


def wrong(message: str, key: str | None = None) -> PydanticCustomError:
    """Refuse a block; ``key`` names the setting in it that is to blame."""
    # braces would be taken for fields of a template
    return PydanticCustomError("rule", "{message}", {"message": message, "key": key})


def without(block: Any, other: type[Block], why: str) -> Any:
    """Refuse a setting of another form of the same block."""
    misplaced = (
        next((key for key in block if key in other.model_fields), None) if isinstance(block, dict) else None
    )
    if misplaced is not None:
        raise wrong(why, misplaced)
    return block


def share_or_count(value: float) -> float:
    """Take a share below 1 or a whole number."""
    if value < 1:
        return value
    if value != int(value):
        raise wrong(f"{value:g} is neither a share below 1 nor a whole number. Give one of the two.")
    return int(value)


ShareOrCount = Annotated[float, Field(ge=0), AfterValidator(share_or_count)]


def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list."""
    if not values:
        raise wrong("is an empty list. Give at least one entry.")
    return values
