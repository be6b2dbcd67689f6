"""Where a text spells out control tokens, at which tokenizers cut it before anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTokens:
    """The tokens that split a text before anything else looks at it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = sorted({token.content for token in added if token.content}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._openings = tuple({name[:2] for name in names})
        # A token that is matched only as a whole word, or after normalisation, is no sure boundary.
        sure = [token.content for token in added if not token.single_word and not token.normalized]
        self._sure = (
            re.compile("|".join(map(re.escape, sorted(sure, key=len, reverse=True)))) if sure else None
        )

    def found_in(self, texts: Sequence[str]) -> bool:
        """Whether any text spells out a control token."""
        if self._pattern is None:
            return False
        pattern = self._pattern
        return any(
            pattern.search(text) is not None
            for text in texts
            if any(opening in text for opening in self._openings)
        )

    def last_start(self, text: str, from_position: int) -> int:
        """Return where the last control token at or after ``from_position`` starts, or -1."""
        if self._sure is None:
            return -1
        found = -1
        for match in self._sure.finditer(text, max(from_position, 0)):
            found = match.start()
        return found
