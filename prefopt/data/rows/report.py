"""What became of the rows: how many were used, left out or changed, and where the others stand."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prefopt.data.rows.layouts.columns import MAYBE_PROMPT
from prefopt.data.rows.raw_rows import BadRow
from prefopt.errors import BadRowsError, DataError
from prefopt.structures import rows_for
from prefopt.words import cut

MAX_NAMED = 20
"""Origins kept of each kind of finding; the count goes on."""

_FINDINGS = {
    "identical": "{n} pairs of identical answers {policy}",
    "ties": "{n} ties {policy}",
    "truncated": "{n} rows truncated",
    "too_long": "{n} rows too long and left out",
    "cut_back": "{n} prompts cut back to the tokens that all answers share",
    "special_in_content": "{n} rows that spell out a control token in their own text {policy}",
    "left_out": "{n} rows have text that the chat template does not print",
    "inverted": "{n} pairs whose rejected answer has the higher score {policy}",
    "half_scored": "{n} pairs with a score for one answer alone, which is not read",
    "spelled_turns": "{n} prompts spell out 'Human: … Assistant:' turns and are read as they stand",
    "json_texts": "{n} rows have a list or messages as JSON in a text, read as it stands",
    "repeated_prompt": "{n} rows whose answers begin with the prompt itself",
    "other_prompt": "{n} rows whose prompt is not in their conversations, which are read instead of it",
    "trimmed": "{n} rows have blanks around a text that the chat template does not print",
    "unsaid": "{n} rows with an answer that the chat template does not print wholly kept",
    "unused": "{n} rows without an answer to learn from left out",
    "two_prompts": "{n} pairs whose answers reply to different prompts, which share nothing",
}


_OTHERS = {"gold": "gold answers", "rationale": "rationales", "kl": "answers to other prompts"}


@dataclass(slots=True)
class Tally:
    """How often something was found, and where first."""

    count: int = 0
    origins: list[str] = field(default_factory=list)

    def add(self, origin: str, count: int = 1) -> None:
        """Count ``count`` findings at ``origin``."""
        self.count += count
        if len(self.origins) < MAX_NAMED:
            self.origins.append(origin)


@dataclass(slots=True)
class SourceReport:
    """The same for one source."""

    place: str
    layout: str
    weight: float
    rows_read: int = 0
    bad: int = 0
    groups: int = 0
    pairs: int = 0
    unread: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Say how the source is read, and what of it is not."""
        weight = "" if self.weight == 1 else f", drawn {self.weight:g} times an epoch"
        yield f"{self.place}: layout {self.layout}, {self.rows_read} rows, {self.bad} bad{weight}"
        if not self.unread:
            return
        named = ", ".join(
            [cut(name, 40) for name in self.unread[:MAX_NAMED]] + ["…"] * (len(self.unread) > MAX_NAMED)
        )
        doubtful = [name for name in self.unread if name in MAYBE_PROMPT]
        doubt = f"; {' and '.join(doubtful)} may belong to the prompt" if doubtful else ""
        yield f"{self.place}: columns that are not read: {named}{doubt}"


@dataclass(slots=True)
class DataReport:
    """Counts over all sources; JSON-able by ``to_json``.

    Pairs are counted for ``ties``, ``identical`` and ``inverted``, rows for everything else; ``responses``
    are answers alone.
    ``lengths`` holds quantiles in tokens (min, p50, p90, p99, max) of prompt, answer and the longest
    sequence of a group.
    """

    structure: str | None
    max_tokens: int | None
    on_identical: str
    on_tie: str
    on_inverted: str = "keep"
    on_markers: str = "keep"
    rows_read: int = 0
    groups: int = 0
    responses: int = 0
    pairs: int = 0
    bad: list[BadRow] = field(default_factory=list)
    ties: Tally = field(default_factory=Tally)
    identical: Tally = field(default_factory=Tally)
    inverted: Tally = field(default_factory=Tally)
    half_scored: Tally = field(default_factory=Tally)
    spelled_turns: Tally = field(default_factory=Tally)
    json_texts: Tally = field(default_factory=Tally)
    repeated_prompt: Tally = field(default_factory=Tally)
    other_prompt: Tally = field(default_factory=Tally)
    truncated: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)
    cut_back: Tally = field(default_factory=Tally)
    special_in_content: Tally = field(default_factory=Tally)
    left_out: Tally = field(default_factory=Tally)
    trimmed: Tally = field(default_factory=Tally)
    unsaid: Tally = field(default_factory=Tally)
    unprinted: dict[str, Tally] = field(default_factory=dict)  # of what rows hold besides texts, by its name
    unused: Tally = field(default_factory=Tally)
    two_prompts: Tally = field(default_factory=Tally)
    others: dict[str, int] = field(default_factory=dict)  # responses of other roles than "answer"
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: list[SourceReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    from_cache: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataReport:
        """Rebuild a report from ``to_json``."""
        plain = dict(value)
        for name in _FINDINGS:
            plain[name] = Tally(**plain[name])
        plain["unprinted"] = {name: Tally(**tally) for name, tally in plain["unprinted"].items()}
        plain["bad"] = [BadRow(**row) for row in plain["bad"]]
        plain["sources"] = [SourceReport(**source) for source in plain["sources"]]
        return cls(**plain)

    def write_quarantine(self, path: Path) -> None:
        """Write every bad row to ``path`` as JSON lines; without bad rows no file is left there."""
        path = Path(path)
        if not self.bad:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # A lone surrogate from the source must not stop the file that reports it.
            with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.bad)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def enforce(self, max_bad: float) -> None:
        """Refuse to go on with too many bad rows, or with none that is good.

        Args:
            max_bad: a share of the rows read if below 1, else a count.

        Raises:
            BadRowsError: more rows are bad than allowed.
            DataError: no row is left to train on.
        """
        count = len(self.bad)
        allowed = max_bad * self.rows_read if max_bad < 1 else max_bad
        if count > allowed:
            raise BadRowsError(
                f"{count} of {self.rows_read} rows are bad, more than rows.max_bad: {max_bad:g} allows. The "
                f"first: {self.bad[0].describe()}. Repair the rows named in quarantine.jsonl or raise "
                f"rows.max_bad."
            )
        if not self.groups:
            reasons = [f"{count} bad"] if count else []
            reasons += [text for name in _FINDINGS if (text := self._finding(name)) and _leaves_out(text)]
            places = ", ".join(source.place for source in self.sources)
            raise DataError(
                f"{places}: none of {self.rows_read} rows is left to train on ({'; '.join(reasons)}). "
                f"Change the rows settings or the data."
            )

    def lines(self) -> list[str]:
        """Return the report for people, one finding a line."""
        counted = [f"{self.responses} answers"]
        if rows_for(self.structure).ranks:
            counted = [f"{self.responses} answers in {self.groups} groups"]
        elif self.pairs:
            counted = [f"{self.pairs} pairs in {self.groups} groups"]
        counted += [f"{count} {_OTHERS[role]}" for role, count in self.others.items()]
        cached = " (from the cache)" if self.from_cache else ""
        lines = [f"{self.rows_read} rows read, {', '.join(counted)}{cached}"]
        lines += [line for source in self.sources for line in source.lines()]
        if self.bad:
            lines.append(f"{len(self.bad)} bad rows, first {self.bad[0].describe()}")
        lines += [
            f"{text}: {self._places(getattr(self, name))}"
            for name in _FINDINGS
            if (text := self._finding(name))
        ]
        lines += [
            f"{tally.count} rows have '{name}' that the chat template does not print: {self._places(tally)}"
            for name, tally in self.unprinted.items()
        ]
        for name, values in self.lengths.items() if self.groups else ():
            spread = ", ".join(f"{key} {value}" for key, value in values.items())
            lines.append(f"{name} tokens: {spread}")
        return lines + self.notes

    def _finding(self, name: str) -> str:
        tally: Tally = getattr(self, name)
        policies = {"identical": self.on_identical, "ties": self.on_tie, "inverted": self.on_inverted}
        policies["special_in_content"] = self.on_markers
        policy = {"keep": "kept", "swap": "swapped"}.get(policies.get(name, ""), "left out")
        text = _FINDINGS[name].format(n=tally.count, policy=policy)
        return text if tally.count else ""

    @staticmethod
    def _places(tally: Tally, limit: int = 3) -> str:
        named = ", ".join(tally.origins[:limit])
        return named + (", …" if len(tally.origins) > limit else "")


def quantiles(values: npt.NDArray[np.int64]) -> dict[str, int]:
    """Return min, p50, p90, p99 and max of ``values`` as values that occur."""
    if not len(values):
        return {}
    shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(shares.values()), method="higher")
    return {name: int(value) for name, value in zip(shares, found, strict=True)}


def _leaves_out(text: str) -> bool:
    return text.endswith("left out")
