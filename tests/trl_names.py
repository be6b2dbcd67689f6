"""The table of TRL's names in docs/choosing_a_loss.md, as tests read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefopt.recipe.strict_yaml import parse_value

PAGE = Path(__file__).parents[1] / "docs" / "choosing_a_loss.md"


def rows(table: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return what stands on the left of each row, and the loss blocks on its right; a transform is put on dpo."""
    text = PAGE.read_text(encoding="utf-8").split(f"<!-- table: {table} -->")[1].split("<!-- end -->")[0]
    found = []
    for line in text.strip().splitlines()[2:]:
        left, right = (cell.strip() for cell in line.strip("|").split(" | "))
        found.append((left, [_block(code) for code in re.findall(r"`((?:with: )?[\[{].*?)`", right)]))
    return found


def losses(trainer: str) -> dict[str, dict[str, Any]]:
    """Return the block of every ``loss_type`` of a trainer of TRL."""
    found = {}
    for left, blocks in rows("trl"):
        if match := re.fullmatch(rf'{trainer}, `loss_type="([\w-]+)"`', left):
            found[match[1]] = blocks[0]
    return found


def without_tables(text: str) -> str:
    """Return a page without those tables, whose names are TRL's."""
    return re.sub(r"<!-- table: trl.*?<!-- end -->", "", text, flags=re.DOTALL)


def _block(code: str) -> dict[str, Any]:
    text = f"{{name: dpo, {code}}}" if code.startswith("with: ") else code
    block = parse_value(text, "docs/choosing_a_loss.md")
    assert isinstance(block, dict)
    return block
