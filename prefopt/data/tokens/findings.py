"""What was found in a row's text and tokens: counted in the report, and decided on by the settings of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefopt.data.rows.raw_rows import RowError
from prefopt.data.rows.report import DataReport, Tally
from prefopt.data.rows.split_prompts import Part
from prefopt.data.tokens.group import Settings
from prefopt.data.tokens.render import Rendered
from prefopt.data.tokens.tokenize import Tokens
from prefopt.errors import DataError
from prefopt.types import Comparison

Verdict = RowError | Literal["use", "leave out"]


def judge(
    settings: Settings,
    report: DataReport,
    row: Comparison,
    parts: Sequence[Part],
    rendered: Sequence[Rendered],
) -> Verdict:
    """Say whether a row is used, where its text holds control tokens or the template leaves out what answers say.

    Args:
        settings: what is to be done with such rows.
        report: where they are counted, bad rows apart.
        row: as it was chosen.
        parts: of it, one for each prompt.
        rendered: the text of each part.

    Raises:
        DataError: there is such a row and it is not allowed.
    """
    for part, entry in zip(parts, rendered, strict=True):
        if entry.unsaid is None:
            continue
        error = part.blame(entry.unsaid.error)
        if settings.on_unprinted == "drop":
            return error
        if settings.on_unprinted == "error":
            raise DataError(
                f"{row.origin}: {error}. Set rows.on_unprinted: drop to skip such rows, or keep to train on "
                f"what is printed."
            )
    if any(entry.unsaid is not None for entry in rendered):
        report.unsaid.add(row.origin)
    return _judge_markers(settings, report, row, rendered)


def _judge_markers(
    settings: Settings, report: DataReport, row: Comparison, rendered: Sequence[Rendered]
) -> Verdict:
    if not any(entry.has_control for entry in rendered):
        return "use"
    if settings.on_markers == "error":
        raise DataError(
            f"{row.origin}: the row's own text spells out a control token, and the tokenizer reads it as one. Set "
            f"rows.on_markers: drop to skip such rows, or keep to train on them."
        )
    report.special_in_content.add(row.origin)
    return "use" if settings.on_markers == "keep" else "leave out"


def note(report: DataReport, row: Comparison, rendered: Sequence[Rendered], tokens: Sequence[Tokens]) -> None:
    """Count what is worth knowing of a row that is used."""
    for is_found, tally in (
        (any(part.is_left_out for part in rendered), report.left_out),
        (any(part.is_trimmed for part in rendered), report.trimmed),
        (any(part.is_cut_back for part in tokens), report.cut_back),
        (row.own_prompts is not None, report.two_prompts),
    ):
        if is_found:
            tally.add(row.origin)
    for name in dict.fromkeys(name for part in rendered for name in part.unprinted):
        report.unprinted.setdefault(name, Tally()).add(row.origin)
