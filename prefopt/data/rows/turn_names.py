"""Give the messages of a source that calls their parts otherwise the usual keys and roles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefopt.data.rows.convert import sequence
from prefopt.data.rows.raw_rows import RowError


class TurnNames(NamedTuple):
    """What a source calls the parts of a message.

    ``role`` and ``content`` are keys, None where they are the usual ones; ``roles`` says whose turn a word means.
    """

    role: str | None
    content: str | None
    roles: Mapping[str, str]

    @classmethod
    def of(cls, turn: Mapping[str, Any]) -> TurnNames:
        """Read them from a source."""
        return cls(turn.get("role"), turn.get("content"), turn.get("roles") or {})

    def keys_in(self, item: Any) -> tuple[str, str] | None:
        """Return the keys of role and content in a message, None where ``item`` is none."""
        if not isinstance(item, Mapping):
            return None
        role = self.role or ("role" if "role" in item else "from")
        content = self.content or ("content" if "content" in item else "value")
        return (role, content) if role in item and content in item else None

    def usual(self, value: Any) -> Any:
        """Return a cell with every message in it under the usual keys; text that holds them as JSON stays text."""
        if isinstance(value, str):
            inside = sequence(value)
            return value if inside is value else self._text(value, inside)
        if isinstance(value, list):
            return [self.usual(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        keys = self.keys_in(value)
        if keys is None:
            return {key: self.usual(item) for key, item in value.items()}
        return self._message(value, *keys)

    def is_in(self, value: Any) -> bool:
        """Whether a cell holds a message under these names."""
        value = sequence(value)
        if self.keys_in(value) is not None:
            return True
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        return any(self.is_in(item) for item in items)

    def _text(self, value: str, inside: Any) -> str:
        usual = self.usual(inside)
        return value if usual == inside else json.dumps(usual, ensure_ascii=False)

    def _message(self, item: Mapping[str, Any], role: str, content: str) -> dict[str, Any]:
        for own, usual in ((role, ("role", "from")), (content, ("content", "value"))):
            twice = next((key for key in usual if key in item and key != own), None)
            if twice is not None:
                raise RowError("", f"a message has both '{own}' and '{twice}'. Name one under turn")
        rest = {key: value for key, value in item.items() if key not in (role, content)}
        said = item[role]
        return {
            "role": self.roles.get(said, said) if isinstance(said, str) else said,
            "content": item[content],
            **rest,
        }
