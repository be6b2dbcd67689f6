"""Decide which layout the rows of a source have, from their columns and the first values in them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data.rows.needs import PAIRS, READ_FOR, Needs
from prefopt.data.rows.raw import RawRow
from prefopt.data.rows.source import Source
from prefopt.data.rows.values import MISSING, is_messages, is_sharegpt, is_transcript, opened, pick, sequence
from prefopt.errors import DataError

LAYOUTS: dict[str, str] = {
    "messages": "prompt, chosen, rejected as messages (role, content); or full conversations in chosen and "
    "rejected; text is taken as one turn",
    "sharegpt": "conversations, chosen, rejected with from and value",
    "transcript": "chosen, rejected as whole 'Human: … Assistant: …' texts",
    "text": "prompt, chosen, rejected as plain text",
    "labelled": "messages (or prompt and completion) and a true or false label",
    "ranked": "prompt, responses and scores or ranks; or two responses and which is better",
}
"""What each layout needs, by name. The first four say what an answer is, the last two what a row compares."""

Tiers = tuple[tuple[str, ...], ...]

SPARSE = ("system", "tools", "chosen_score", "rejected_score", "margin", "soft_label", "weight")
"""Columns that may first appear anywhere in a source."""

ALIASES: dict[str, Tiers] = {
    "prompt": (
        ("prompt",),
        ("question", "instruction", "query", "input.messages"),
        ("conversations", "conversation", "messages", "context"),
        ("input",),
    ),
    "chosen": (
        ("chosen",),
        ("chosen_response", "response_chosen", "preferred_output", "preferred", "accepted"),
    ),
    "rejected": (
        ("rejected",),
        ("rejected_response", "response_rejected", "non_preferred_output", "dispreferred"),
    ),
    "messages": (("messages",), ("conversations", "conversation")),
    "chosen_prompt": (("chosen_prompt",), ("prompt_chosen",)),
    "rejected_prompt": (("rejected_prompt",), ("prompt_rejected",)),
    "completion": (("completion",), ("response", "answer", "output")),
    "label": (("label",), ("kto_tag", "is_desirable", "desirable")),
    "responses": (("responses",), ("completions", "answers")),
    "scores": (("scores",), ("ratings", "rewards")),
    "ranks": (("ranks",), ("rank", "ranking")),
    "first": (("first",),),  # and _PAIRS_OF_NAMES
    "second": (("second",),),
    "better": (
        ("better",),
        ("better_response_id", "winner", "preference", "overall_preference", "preference_strength"),
    ),
    "system": (("system",), ("system_prompt",)),
    "tools": (("tools",), ("input.tools",)),
    "chosen_score": (("chosen_score",), ("score_chosen", "chosen_rating", "chosen-rating", "rating_chosen")),
    "rejected_score": (
        ("rejected_score",),
        ("score_rejected", "rejected_rating", "rejected-rating", "rating_rejected"),
    ),
    "margin": (("margin",),),
    "soft_label": (("soft_label",),),
    "weight": (("weight",),),
    "gold": (("gold",), ("reference",)),
    "rationale": (("rationale",),),
    "rationale_prompt": (("rationale_prompt",),),
    "prompt_embedding": (("prompt_embedding",),),
}
"""Canonical name -> the names it may have in a source; the first tier that is present wins."""

_PAIRS_OF_NAMES = (
    ("response_0", "response_1"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
    ("response_1", "response_2"),
    ("response1", "response2"),
)

_OWN_PROMPTS = ("chosen_prompt", "rejected_prompt")
_OF_PAIR = ("margin", "soft_label", "weight", "prompt_embedding")
_THIRD = ("gold", "rationale", "rationale_prompt")

_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # shape: (what it must have, what it may have)
    "pair": (
        ("chosen", "rejected"),
        ("prompt", *_OWN_PROMPTS, "system", "tools", "chosen_score", "rejected_score", *_OF_PAIR, *_THIRD),
    ),
    "contrast": ((*_OWN_PROMPTS, "completion"), ("system", "tools", *_OF_PAIR)),
    "labelled": (("label",), ("messages", "prompt", "completion", "system", "tools", "prompt_embedding")),
    "ranked": (
        ("prompt", "responses"),
        ("scores", "ranks", "system", "tools", "weight", "gold", "prompt_embedding"),
    ),
    "choice": (
        ("prompt", "first", "second", "better"),
        ("system", "tools", "weight", "prompt_embedding", *_THIRD),
    ),
}
_NAMED_SHAPES = {"labelled": ("labelled",), "ranked": ("ranked", "choice")}
_CHAT_FORMS = ("messages", "sharegpt", "transcript")


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the rows of one source are read.

    Args:
        form: messages, sharegpt, transcript or text.
        shape: pair, contrast (one answer to two prompts), labelled, ranked or choice (two answers and which
            is better).
        columns: canonical name -> dotted path in the row, only names that the source has.
        found: all columns of the first rows, as they are called there.
    """

    form: str
    shape: str
    columns: Mapping[str, str]
    found: tuple[str, ...] = ()

    @property
    def has_own_prompts(self) -> bool:
        """Whether the two answers of a pair may reply to different prompts."""
        return any(name in self.columns for name in _OWN_PROMPTS)

    @property
    def is_chat(self) -> bool:
        """Whether rows become messages for the chat template, rather than plain text."""
        return self.form in _CHAT_FORMS

    @property
    def name(self) -> str:
        """The layout as a recipe and the report call it."""
        shape = {"pair": "", "contrast": "", "choice": "ranked"}.get(self.shape, self.shape)
        return f"{shape} ({self.form})" if shape else self.form


def detect(rows: Sequence[RawRow], source: Source, needs: Needs = PAIRS) -> RowLayout:
    """Return the one layout that fits the first rows of ``source``.

    Rows that fit no layout are passed over, so that one bad row at the top does not decide. Columns that
    only some losses read are looked for only if ``needs`` asks for them.

    Raises:
        DataError: no layout or more than one fits, or ``source.columns`` or ``source.layout`` name
            something that the rows do not have.
    """
    values = [row.value for row in rows if row.value is not None]
    if not values:
        first = next((row.bad(row.error).describe() for row in rows if row.error), source.place)
        raise DataError(
            f"{first}. No readable row among the first {len(rows)}. Give JSON objects or a table."
        )
    _check_names(source, values)
    for value in values:
        found = _candidates(value, values, source, needs)
        if len(found) == 1:
            return _with_given(found[0], source, needs)
        if found:
            names = " and ".join(f"'{layout.name}' ({_needs(layout)})" for layout in found)
            raise DataError(
                f"{source.place}: the columns fit more than one layout, {names}. Name one as data.layout."
            )
    raise DataError(_no_match(source, values))


def _candidates(
    value: Mapping[str, Any], values: Sequence[Mapping[str, Any]], source: Source, needs: Needs
) -> list[RowLayout]:
    found: list[RowLayout] = []
    allowed = _NAMED_SHAPES.get(source.layout, tuple(_SHAPES))
    for shape in allowed:
        needed, optional = _SHAPES[shape]
        columns = {name: path for name in needed if (path := _find(name, [value], source))}
        if len(columns) < len(needed) or (shape == "contrast" and found):
            continue
        wanted = [name for name in optional if name not in READ_FOR or needs.reads(name)]
        columns |= {name: path for name in wanted if (path := _find(name, values, source))}
        form = _form(shape, columns, value, source.layout)
        if form == "text" and source.layout == "auto" and _has_text(columns.get("system"), values):
            form = "messages"
        if form:
            found.append(RowLayout(form, shape, columns, tuple(_columns_of(values))))
    return found


def _find(name: str, values: Sequence[Mapping[str, Any]], source: Source) -> str | None:
    """Return the path of ``name`` in any of ``values``, as given or by its aliases."""
    given = (source.columns or {}).get(name)
    if given is not None:
        return given if _has(values, given) else None
    if name in ("first", "second"):
        pair = next((pair for pair in _PAIRS_OF_NAMES if all(_has(values, path) for path in pair)), None)
        return pair[name == "second"] if pair else (name if _has(values, name) else None)
    for tier in ALIASES[name]:
        paths = [path for path in tier if _has(values, path)]
        if len(paths) > 1:
            both = " and ".join(f"'{path}'" for path in paths)
            raise DataError(
                f"{source.place}: {both} could each be the {name}. Name one: columns: {{{name}: {paths[0]}}}."
            )
        if paths:
            return paths[0]
    return None


def _has(values: Sequence[Mapping[str, Any]], path: str) -> bool:
    return any(pick(value, path) not in (MISSING, None) for value in values)


def _has_text(path: str | None, values: Sequence[Mapping[str, Any]]) -> bool:
    return path is not None and any(pick(value, path) not in (MISSING, None, "") for value in values)


def _form(shape: str, columns: Mapping[str, str], value: Mapping[str, Any], asked: str) -> str | None:
    lists = ("responses", "scores", "ranks")
    cells = {
        name: (sequence if name in lists else opened)(pick(value, path)) for name, path in columns.items()
    }
    found = _FORMS[shape]({name: cell for name, cell in cells.items() if cell not in (MISSING, None)})
    match asked:
        case "messages" | "sharegpt":
            return asked if found in ("messages", "sharegpt", "text") else None
        case "text" | "transcript":
            return found if found == asked else None
    return found


def _form_of_pair(cells: Mapping[str, Any]) -> str | None:
    sides = [cells["chosen"], cells["rejected"]]
    prompts = [cells[name] for name in ("prompt", *_OWN_PROMPTS) if name in cells]
    if any(is_messages(cell) for cell in [*sides, *prompts]):
        return "sharegpt" if any(is_sharegpt(cell) for cell in [*sides, *prompts]) else "messages"
    if not all(isinstance(cell, str) for cell in [*sides, *prompts]):
        return None
    if not prompts:
        return "transcript" if all(is_transcript(cell) for cell in sides) else None
    return "text"


def _form_of_contrast(cells: Mapping[str, Any]) -> str | None:
    return _form_of_answers(cells["chosen_prompt"], [cells["completion"], cells["rejected_prompt"]])


def _form_of_labelled(cells: Mapping[str, Any]) -> str | None:
    if is_messages(cells.get("messages")) and "completion" not in cells:
        return "sharegpt" if is_sharegpt(cells["messages"]) else "messages"
    return _form_of_answers(cells.get("prompt"), [cells.get("completion")])


def _form_of_ranked(cells: Mapping[str, Any]) -> str | None:
    answers = cells["responses"]
    if not isinstance(answers, list) or not answers:
        return None
    inside = isinstance(answers[0], Mapping) and any(key in answers[0] for key in (*SCORE_KEYS, *RANK_KEYS))
    if not inside and not any(isinstance(cells.get(name), list) for name in ("scores", "ranks")):
        return None
    return _form_of_answers(cells["prompt"], answers)


def _form_of_choice(cells: Mapping[str, Any]) -> str | None:
    return _form_of_answers(cells["prompt"], [cells["first"], cells["second"]])


def _form_of_answers(prompt: Any, answers: Sequence[Any]) -> str | None:
    if prompt is None or answers[0] is None:
        return None
    if any(is_messages(cell) for cell in [prompt, *answers]):
        return "sharegpt" if any(is_sharegpt(cell) for cell in [prompt, *answers]) else "messages"
    return "text" if isinstance(prompt, str) else None


_FORMS = {
    "pair": _form_of_pair,
    "contrast": _form_of_contrast,
    "labelled": _form_of_labelled,
    "ranked": _form_of_ranked,
    "choice": _form_of_choice,
}
TEXT_KEYS = ("response", "text", "answer", "completion", "output", "content")
SCORE_KEYS = ("score", "overall_score", "rating", "reward")
RANK_KEYS = ("rank",)


def _with_given(layout: RowLayout, source: Source, needs: Needs) -> RowLayout:
    unused = [name for name in source.columns or {} if name not in layout.columns]
    if unused and unused[0] in READ_FOR and not needs.reads(unused[0]):
        raise DataError(f"{source.place}: columns.{unused[0]}: {needs.loss} does not read it. Take it out.")
    if unused:
        raise DataError(
            f"{source.place}: columns.{unused[0]} has no use in layout '{layout.name}', which reads "
            f"{_needs(layout)}. Remove it or name another layout."
        )
    return layout


def _needs(layout: RowLayout) -> str:
    return ", ".join(dict.fromkeys(layout.columns.values()))


def _check_names(source: Source, values: Sequence[Mapping[str, Any]]) -> None:
    if source.layout != "auto" and source.layout not in LAYOUTS:
        raise DataError(
            f"{source.place}: no layout '{source.layout}'.{_nearest(source.layout, LAYOUTS)} "
            f"Layouts: auto, {', '.join(LAYOUTS)}."
        )
    for name, path in (source.columns or {}).items():
        if name not in ALIASES:
            raise DataError(
                f"{source.place}: columns.{name} is no column that a layout reads.{_nearest(name, ALIASES)} "
                f"Names: {', '.join(ALIASES)}."
            )
        if not _has(values, path):
            found = _columns_of(values)
            raise DataError(
                f"{source.place}: columns.{name}: no column '{path}' in the first {len(values)} rows."
                f"{_nearest(path, found)} Columns found: {', '.join(found)}."
            )


def _nearest(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _columns_of(values: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for value in values for name in value))


_HALF = (
    ("responses", "scores", "number for each answer"),
    ("completion", "label", "true or false that says whether it is wanted"),
)
"""Columns that need another one: its name, and what it would say."""


def _no_match(source: Source, values: Sequence[Mapping[str, Any]]) -> str:
    found = ", ".join(_columns_of(values)) or "none"
    asked = "no layout fits" if source.layout == "auto" else f"layout '{source.layout}' does not fit"
    for name, lacking, what in _HALF:
        there = next((path for tier in ALIASES[name] for path in tier if _has(values, path)), None)
        if there is not None and not _find(lacking, values, source):
            return (
                f"{source.place}: {asked} the columns found ({found}). '{there}' is there, but no {what}. "
                f"Add a column {lacking}, or map one with columns: {{{lacking}: …}}."
            )
    hint = ""
    if _find("chosen", values, source) and _find("rejected", values, source):
        hint = " 'chosen' and 'rejected' are there, but no prompt that goes with them."
    known = "; ".join(f"{name}: {needs}" for name, needs in LAYOUTS.items())
    return (
        f"{source.place}: {asked} the columns found ({found}).{hint} Map them with columns: "
        f"{{prompt: …, chosen: …, rejected: …}}. Layouts are {known}."
    )
