"""The verb ``losses``: list what a recipe's ``loss`` block can name, or explain one entry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefopt.errors import RecipeError
from prefopt.losses import LOSSES, TRANSFORMS, LossContract, Setting, contract_of, settings_of
from prefopt.structures import STRUCTURES
from prefopt.types import INPUTS, OTHER_RESPONSES, PROMPTS, READS
from prefopt.verbs.losses.curves import curves_of
from prefopt.verbs.losses.drawing import draw
from prefopt.verbs.losses.printing import entries, say, table
from prefopt.words import did_you_mean, spelled

OF_MIXED = "Add up several losses of one kind, each with its weight."


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
        say(f"mixed: a list of losses\n\n{OF_MIXED}\n")
        say("loss: {name: mixed, of: [{name: dpo, weight: 0.8}, {name: ipo, weight: 0.2}]}")
    else:
        known = [*LOSSES, *TRANSFORMS, "mixed"]
        hint = did_you_mean(name, known)
        raise RecipeError(f"losses: there is no loss '{name}'.{hint} There are: {', '.join(known)}.")


def _list_all() -> None:
    contracts = {name: contract_of(loss) for name, loss in LOSSES.items()}
    changes = [*((name, _summary(transform)) for name, transform in TRANSFORMS.items()), ("mixed", OF_MIXED)]
    if sys.stdout.isatty():
        _list_by_unit(contracts, changes)
    else:
        _list_in_lines(contracts, changes)
    say("\n`prefopt losses NAME` shows settings, ranges and source.")


def _list_by_unit(contracts: Mapping[str, LossContract], changes: Sequence[tuple[str, str]]) -> None:
    """Print what a terminal of 80 columns can show: a name and a sentence, and a remark where there is one."""
    for structure in dict.fromkeys(contract.structure for contract in contracts.values()):
        of_unit = {name: c for name, c in contracts.items() if c.structure == structure}
        found = [(name, contract.summary, _remark(contract)) for name, contract in of_unit.items()]
        entries(f"Losses over {STRUCTURES[structure].learns_from}", found)
        say("")
    entries("Transforms, with: [...]", [(name, what, "") for name, what in changes])


def _list_in_lines(contracts: Mapping[str, LossContract], changes: Sequence[tuple[str, str]]) -> None:
    """Print one line each, for other programs."""
    rows = [
        [name, STRUCTURES[c.structure].learns_from, _reference(c), _extras(c), c.summary]
        for name, c in contracts.items()
    ]
    table(["loss", "learns from", "reference", "also needs", "what it does"], rows)
    say("")
    table(["transform", "what it does to a loss (with: [...])"], changes)


def _explain_loss(name: str) -> None:
    contract = contract_of(LOSSES[name])
    say(f"{name}: learns from {STRUCTURES[contract.structure].learns_from}, reference {_reference(contract)}")
    if (extras := _extras(contract)) != "-":
        say(f"also needs: {extras}")
    say(f"reads of an answer: {READS[contract.reads]}")
    for role in contract.roles:
        say(f"  {role}: {OTHER_RESPONSES[role]}")
    for prompts in contract.prompts:
        say(f"  {PROMPTS[prompts]}")
    if contract.is_whole_step:
        say("reads all units of the optimizer step at once: packs are scored twice")
    if contract.carried:
        say(f"carries from step to step: {', '.join(contract.carried)}")
    for given in contract.inputs:
        say(f"  {given}: {INPUTS[given].source}")
    say(f"\n{inspect.getdoc(LOSSES[name])}\n")
    _settings(contract.settings)
    if (curves := curves_of(LOSSES[name])) is not None:
        draw(curves)
    say(f"\nloss: {_example(name, contract.settings)}")


def _explain_transform(name: str) -> None:
    settings = settings_of(TRANSFORMS[name])
    say(f"{name}: a transform\n\n{inspect.getdoc(TRANSFORMS[name])}\n")
    _settings(settings)
    say(f"\nloss: {{name: dpo, with: [{_example(name, settings)}]}}")


def _settings(settings: Mapping[str, Setting]) -> None:
    if not settings:
        say("It has no settings.")
        return
    rows = [[name, spelled(setting.default), setting.legal] for name, setting in settings.items()]
    table(["setting", "default", "legal"], rows)


def _example(name: str, settings: Mapping[str, Setting]) -> str:
    parts = [f"name: {name}", *(f"{key}: {spelled(setting.default)}" for key, setting in settings.items())]
    return "{" + ", ".join(parts) + "}"


def _reference(contract: LossContract) -> str:
    return "yes" if contract.needs_reference else "no"


def _remark(contract: LossContract) -> str:
    """Say what sets a loss apart from one that needs a reference and nothing else."""
    extras = _extras(contract)
    without = [] if contract.needs_reference else ["without a reference"]
    return "; ".join([*without, *([f"needs {extras}"] if extras != "-" else [])])


def _extras(contract: LossContract) -> str:
    """Name what the loss takes besides log-probs; what it can do without stands in brackets."""
    inputs = [name if is_required else f"[{name}]" for name, is_required in contract.inputs.items()]
    rows = [*contract.roles, *(f"{name} prompts" if name == "two" else name for name in contract.prompts)]
    stats = dict.fromkeys((*contract.policy_stats, *contract.reference_stats))
    return ", ".join([*rows, *stats, *inputs]) or "-"


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
