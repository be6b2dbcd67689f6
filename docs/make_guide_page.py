"""Write the tables of docs/choosing_a_loss.md from what the losses say under "When:": `python docs/make_guide_page.py`.

The words around the tables are written by hand, in the page itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from prefopt.losses import LOSSES, TRANSFORMS
from prefopt.losses._contract import read_docstring

PAGE = Path(__file__).with_name("choosing_a_loss.md")
OF_DATA = "each row has "
"""How a line begins that speaks of the data; any other tells what is seen in training."""
TABLE = re.compile(r"(<!-- table: (data|seen) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def page() -> str:
    """Return the text of the page, the tables written anew."""
    return TABLE.sub(
        lambda found: found[1] + _table(found[2] == "data") + found[3], PAGE.read_text(encoding="utf-8")
    )


def _table(is_of_data: bool) -> str:
    heads = (OF_DATA.strip() if is_of_data else "you see, or want", "losses and transforms")
    rows = [
        (line.removeprefix(OF_DATA), ", ".join(f"`{name}`" for name in names))
        for line, names in places().items()
        if line.startswith(OF_DATA) == is_of_data
    ]
    lines = [heads, ("---", "---"), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def places() -> dict[str, list[str]]:
    """Return the losses and transforms by each line that one of them says."""
    found: dict[str, list[str]] = {}
    for name, function in {**LOSSES, **TRANSFORMS}.items():
        _, sections = read_docstring(function)
        for line in sections.get("When", "").splitlines():
            found.setdefault(line, []).append(name)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
