"""The closed table of layouts: a new one is a file beside this one and an entry here."""

from __future__ import annotations

from prefopt.data.rows.layouts.choice import BY_SCORE, CHOICE
from prefopt.data.rows.layouts.columns import SHARED, Tiers
from prefopt.data.rows.layouts.continued import CONTINUED
from prefopt.data.rows.layouts.contrast import CONTRAST
from prefopt.data.rows.layouts.forms import FORMS
from prefopt.data.rows.layouts.labelled import LABELLED_ANSWER
from prefopt.data.rows.layouts.layout import Layout
from prefopt.data.rows.layouts.names import LAYOUT_NAMES
from prefopt.data.rows.layouts.pair import PAIR
from prefopt.data.rows.layouts.ranked import RANKED

ROW_LAYOUTS: tuple[Layout, ...] = (PAIR, CONTINUED, CONTRAST, LABELLED_ANSWER, RANKED, CHOICE, BY_SCORE)
"""In the order in which they are tried."""

ALIASES: dict[str, Tiers] = SHARED | {
    name: tiers for layout in ROW_LAYOUTS for name, tiers in layout.aliases.items()
}
"""Canonical name -> the names it may have in a source."""


def _described() -> dict[str, str]:
    texts = {name: [form.described] for name, form in FORMS.items()}
    for layout in ROW_LAYOUTS:
        if layout.name:
            texts.setdefault(layout.name, []).append(layout.described)
    return {name: "; ".join(parts) for name, parts in texts.items()}


LAYOUTS = _described()
"""What a recipe can call the layout of its rows, and what each needs: a form of pairs, or a layout's own name."""

assert tuple(LAYOUTS) == LAYOUT_NAMES, f"names.LAYOUT_NAMES must be {', '.join(LAYOUTS)}, in this order"
