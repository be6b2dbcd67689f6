"""Write the lists of models in docs/exactness.md from tests/causal_types.json: `python docs/make_exactness_page.py`.

The words around the lists are written by hand, in the page itself; `python tests/causal_types.py` writes the table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import fill

PAGE = Path(__file__).with_name("exactness.md")
TABLE = PAGE.parents[1] / "tests" / "causal_types.json"
LIST = re.compile(r"(<!-- types: (exact|refused|not built) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
WIDTH = 120


def page() -> str:
    """Return the text of the page, the lists written anew."""
    return LIST.sub(lambda found: found[1] + _list(found[2]) + found[3], PAGE.read_text(encoding="utf-8"))


def types(outcome: str) -> list[str]:
    """Return the types of the table with an outcome, without those that stand there twice with other settings."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["outcomes"]
    return [name for name, said in table.items() if said.split(":")[0] == outcome and "," not in name]


def _list(outcome: str) -> str:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    count = sum("," not in name for name in table["outcomes"])
    names = types(outcome)
    head = f"{len(names)} of the {count} causal types of transformers {table['transformers']}:"
    text = f"{head} {', '.join(f'`{name}`' for name in names)}."
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
