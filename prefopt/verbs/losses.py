"""The verb ``losses``: list what a recipe's ``loss`` block can name, or explain one entry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import plotext
from rich.console import Console
from rich.table import Table

from prefopt.errors import RecipeError
from prefopt.losses import LOSSES, TRANSFORMS, LossContract, Setting, contract_of, settings_of
from prefopt.types import INPUTS, OTHER_RESPONSES, PROMPTS
from prefopt.verbs.loss_curves import Curve, curves_of

MIXED = "Add up several losses of one kind, each with its weight."
_UNITS = {"pairs": "pairs", "responses": "answers", "sides": "labelled answers", "lists": "groups of answers"}


def run(name: str | None = None) -> None:
    """Print a table of all losses and transforms, or one of them in full.

    Raises:
        RecipeError: there is no loss or transform of that name.
    """
    if name is None:
        _list_all()
    elif name in LOSSES:
        _explain_loss(name)
    elif name in TRANSFORMS:
        _explain_transform(name)
    elif name == "mixed":
        _say(f"mixed: a list of losses\n\n{MIXED}\n")
        _say("loss: {name: mixed, of: [{name: dpo, weight: 0.8}, {name: ipo, weight: 0.2}]}")
    else:
        known = [*LOSSES, *TRANSFORMS, "mixed"]
        close = get_close_matches(name.lower(), known, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise RecipeError(f"losses: there is no loss '{name}'. {hint}There are: {', '.join(known)}.")


def _list_all() -> None:
    rows = []
    for name, loss in LOSSES.items():
        contract = contract_of(loss)
        rows.append(
            [name, _UNITS[contract.structure], _reference(contract), _extras(contract), contract.summary]
        )
    _table(["loss", "learns from", "reference", "also needs", "what it does"], rows)
    _say("")
    changes = [[name, _summary(transform)] for name, transform in TRANSFORMS.items()]
    _table(["transform", "what it does to a loss (with: [...])"], [*changes, ["mixed", MIXED]])
    _say("\n`prefopt losses NAME` shows settings, ranges and source.")


def _explain_loss(name: str) -> None:
    contract = contract_of(LOSSES[name])
    _say(f"{name}: learns from {_UNITS[contract.structure]}, reference {_reference(contract)}")
    if (extras := _extras(contract)) != "-":
        _say(f"also needs: {extras}")
    for role in contract.roles:
        _say(f"  {role}: {OTHER_RESPONSES[role]}")
    for prompts in contract.prompts:
        _say(f"  {PROMPTS[prompts]}")
    if contract.is_whole_step:
        _say("reads all units of the optimizer step at once: packs are scored twice")
    if contract.carried:
        _say(f"carries from step to step: {', '.join(contract.carried)}")
    for given in contract.inputs:
        _say(f"  {given}: {INPUTS[given].source}")
    _say(f"\n{inspect.getdoc(LOSSES[name])}\n")
    _settings(contract.settings)
    _plot(name)
    _say(f"\nloss: {_example(name, contract.settings)}")


def _plot(name: str) -> None:
    """Draw the loss at its defaults, and its slope, over the margin of one unit."""
    curves = curves_of(LOSSES[name])
    if curves is None:
        return
    marks = ["braille", "dot"]
    for what in ("loss", "slope"):
        figure = plotext.figure
        figure.clear()
        figure.plot_size(72, 13)
        for curve, mark in zip(curves.lines, marks, strict=False):
            _draw(figure, curve, what, mark)
        figure.label(curves.axis, axis="x")
        text = str(figure.build())
        _say("")
        sys.stdout.write((text if sys.stdout.isatty() else plotext.uncolorize(text)) + "\n")


def _draw(figure: Any, curve: Curve, what: str, mark: str) -> None:
    signal = figure.signal(list(curve.margin), list(getattr(curve, what)), marker=mark)
    signal.lines()
    signal.label(f"{what} {curve.label}".strip())
    figure.draw(signal)


def _explain_transform(name: str) -> None:
    settings = settings_of(TRANSFORMS[name])
    _say(f"{name}: a transform\n\n{inspect.getdoc(TRANSFORMS[name])}\n")
    _settings(settings)
    _say(f"\nloss: {{name: dpo, with: [{_example(name, settings)}]}}")


def _settings(settings: Mapping[str, Setting]) -> None:
    if not settings:
        _say("It has no settings.")
        return
    rows = [[name, _scalar(setting.default), setting.legal] for name, setting in settings.items()]
    _table(["setting", "default", "legal"], rows)


def _example(name: str, settings: Mapping[str, Setting]) -> str:
    parts = [f"name: {name}", *(f"{key}: {_scalar(setting.default)}" for key, setting in settings.items())]
    return "{" + ", ".join(parts) + "}"


def _reference(contract: LossContract) -> str:
    return "yes" if contract.needs_reference else "no"


def _extras(contract: LossContract) -> str:
    """Name what the loss takes besides log-probs; what it can do without stands in brackets."""
    inputs = [name if is_required else f"[{name}]" for name, is_required in contract.inputs.items()]
    rows = [*contract.roles, *(f"{name} prompts" if name == "two" else name for name in contract.prompts)]
    stats = dict.fromkeys((*contract.policy_stats, *contract.reference_stats))
    return ", ".join([*rows, *stats, *inputs]) or "-"


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: ruled on a terminal, aligned columns elsewhere."""
    if sys.stdout.isatty():
        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        Console().print(table, markup=False)
        return
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
