"""What blocks of a recipe are made of: the base of all of them, types of settings, and refusals."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
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
