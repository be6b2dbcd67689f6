"""What a loss needs and which settings it has, read from its signature and docstring alone.

Positional parameters (``policy``, then ``reference``) name the structure and the per-token stats;
keyword-only parameters named in ``types.INPUTS`` are tensors that the trainer supplies; every other
keyword-only parameter is a setting, with a default and, in its annotation, its legal values. Nothing
is declared twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from prefopt.losses._settings import WORDS, Setting
from prefopt.structures import BY_VALUES, Structure
from prefopt.types import (
    INPUTS,
    MASK_STATS,
    OTHER_REFERENCES,
    PAIRED_STATS,
    READS,
    STATS,
    Applies,
    Carried,
    LossOutput,
    OnlyWith,
    Prompts,
    Range,
    Reads,
    Refuses,
    Roles,
    Scale,
    Stats,
    WholeStep,
)

Loss = Callable[..., LossOutput]
"""A pure function from log-probs to one cost per unit; its signature says the rest."""

RESERVED = ("name", "with", "of", "weight")
"""Keys of a loss block that no setting may take."""


@dataclass(frozen=True, slots=True)
class LossContract:
    """What a trainer must hand a loss, which settings it has, and what its docstring says of it.

    ``inputs`` maps a name from ``types.INPUTS`` to whether the loss requires it. ``applies`` names the
    transforms the loss contains, ``refuses`` those it cannot take, ``roles`` the responses it needs
    besides the answers, ``prompts`` whether a pair's answers may reply to different prompts, ``scales`` on
    which scale it takes the data's scores, ``carried`` the parameters through which it hands values to itself
    in the next optimizer step.
    """

    name: str
    structure: str  # a name of structures.STRUCTURES
    needs_reference: bool
    policy_stats: tuple[str, ...]
    reference_stats: tuple[str, ...]
    inputs: Mapping[str, bool]
    settings: Mapping[str, Setting]
    summary: str  # first line of the docstring
    formula: str  # its Formula section, lines kept
    source: str  # its Source section, as one line
    when: tuple[str, ...] = ()  # its When section, by line: the places in the guide to losses
    reads: str = "sum"  # of an answer: a key of types.READS
    reads_only_with: OnlyWith | None = None  # the choice beside which it reads that and not the sum alone
    applies: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    is_whole_step: bool = False
    carried: tuple[str, ...] = ()

    @property
    def row_stats(self) -> tuple[str, ...]:
        """The statistics for which a live reference must hand over its hidden states."""
        return tuple(name for name in self.policy_stats if name in (*PAIRED_STATS, *MASK_STATS))


@lru_cache(maxsize=256)
def contract_of(loss: Loss) -> LossContract:
    """Read the contract of ``loss`` from its signature.

    Raises:
        TypeError: the signature breaks the rules for losses; the message says which.
    """
    name = name_of(loss)
    parameters = list(signature_of(loss).parameters.values())
    positional = [p for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    names = [p.name for p in positional]
    if names not in (["policy"], ["policy", "reference"]):
        raise TypeError(
            f"loss {name}: positional parameters are {names}. Take policy, then reference if used."
        )
    types = {base_of(p) for p in positional}
    structure = BY_VALUES.get(types.pop())
    if structure is None or types:
        known = ", ".join(kind.__name__ for kind in BY_VALUES)
        raise TypeError(f"loss {name}: annotate policy and reference alike, with one of {known}.")
    keyword = [p for p in parameters if p.kind is not Parameter.POSITIONAL_OR_KEYWORD]
    carried = tuple(p.name for p in keyword if _is_carried(p))
    is_whole_step = any(isinstance(mark, WholeStep) for mark in marks_of(positional[0]))
    if carried and not is_whole_step:
        raise TypeError(f"loss {name}: it carries '{carried[0]}' over steps. Mark policy with WholeStep().")
    _check_stats(name, positional)
    summary, sections = read_docstring(loss)
    return LossContract(
        name=name,
        structure=structure.name,
        needs_reference=len(positional) == 2,
        policy_stats=stats_of(positional[0]),
        reference_stats=stats_of(positional[1]) if len(positional) == 2 else (),
        inputs=_inputs(name, structure, keyword),
        settings={p.name: setting_of(name, p) for p in keyword if not is_handed_over(p)},
        summary=summary,
        formula=sections.get("Formula", ""),
        source=" ".join(sections.get("Source", "").split()),
        when=tuple(sections.get("When", "").splitlines()),
        reads=_reads(positional[0]),
        reads_only_with=next((m.only_with for m in marks_of(positional[0]) if isinstance(m, Reads)), None),
        applies=_marked(positional[0], Applies, "transforms"),
        refuses=_marked(positional[0], Refuses, "transforms"),
        roles=_marked(positional[0], Roles, "names"),
        prompts=_marked(positional[0], Prompts, "names"),
        scales=_marked(positional[0], Scale, "names"),
        is_whole_step=is_whole_step,
        carried=carried,
    )


def _inputs(name: str, structure: Structure, keyword: Iterable[Parameter]) -> dict[str, bool]:
    """Return the inputs that a signature names, and whether it requires each."""
    inputs = {p.name: p.default is Parameter.empty for p in keyword if p.name in INPUTS}
    for given in inputs:
        if given not in structure.inputs:
            raise TypeError(
                f"loss {name}: '{given}' is {INPUTS[given].shape}, but the loss learns from "
                f"{structure.learns_from}. Take it out."
            )
    return inputs


def _check_stats(name: str, positional: list[Parameter]) -> None:
    """Refuse statistics that nobody could supply."""
    for stat in stats_of(positional[0]):
        if stat in (*PAIRED_STATS, *MASK_STATS) and len(positional) == 1:
            raise TypeError(f"loss {name}: the stat '{stat}' comes from a reference. Take reference too.")
    for stat in stats_of(positional[1]) if len(positional) == 2 else ():
        if stat not in (*STATS, *OTHER_REFERENCES):
            raise TypeError(f"loss {name}: the stat '{stat}' is one of policy. Ask for it there.")


def settings_of(function: Callable[..., Any]) -> dict[str, Setting]:
    """Read the settings of a transform: its keyword-only parameters."""
    keyword = [p for p in signature_of(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    return {p.name: setting_of(name_of(function), p) for p in keyword}


def name_of(function: Callable[..., Any]) -> str:
    """Return the function's own name; a ``functools.partial`` goes by what it wraps."""
    return str(getattr(_unwrap(function), "__name__", function))


def signature_of(function: Callable[..., Any]) -> Signature:
    """Return the signature with every annotation resolved; a composed loss carries its own."""
    signature = inspect.signature(function)
    if hasattr(_unwrap(function), "__signature__"):
        return signature
    hints = get_type_hints(_unwrap(function), include_extras=True)
    resolved = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    return signature.replace(parameters=resolved, return_annotation=hints.get("return", LossOutput))


def _unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    return _unwrap(function.func) if isinstance(function, partial) else function


def base_of(parameter: Parameter) -> Any:
    """Return the type of a parameter without its markers."""
    annotation = parameter.annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def marks_of(parameter: Parameter) -> tuple[Any, ...]:
    """Return the markers of a parameter's annotation."""
    annotation = parameter.annotation
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def is_handed_over(parameter: Parameter) -> bool:
    """Tell whether a trainer supplies the parameter: an input, or what the loss carried over."""
    return parameter.name in INPUTS or _is_carried(parameter)


def _is_carried(parameter: Parameter) -> bool:
    return any(isinstance(mark, Carried) for mark in marks_of(parameter))


def stats_of(parameter: Parameter) -> tuple[str, ...]:
    """Return the per-token stats that a parameter's markers ask for."""
    return _marked(parameter, Stats, "names")


def _reads(policy: Parameter) -> str:
    """Return the most that the markers say is read of an answer; a statistic belongs to a token."""
    said = ("sum", *_marked(policy, Reads, "names"), *("tokens" for _ in stats_of(policy)[:1]))
    return max(said, key=list(READS).index)


def _marked(parameter: Parameter, marker: type, field: str) -> tuple[str, ...]:
    marks = [mark for mark in marks_of(parameter) if isinstance(mark, marker)]
    return tuple(name for mark in marks for name in getattr(mark, field))


def setting_of(owner: str, parameter: Parameter) -> Setting:
    """Return the setting that a keyword-only parameter declares; a TypeError where it breaks the rules."""
    place = f"{owner}: parameter '{parameter.name}'"
    if parameter.kind is not Parameter.KEYWORD_ONLY:
        raise TypeError(f"{place} is {parameter.kind.description}. Put settings after *, by name.")
    if parameter.default is Parameter.empty:
        raise TypeError(
            f"{place} has no default and is no input that a trainer supplies ({', '.join(INPUTS)}). "
            f"Give it a default or take one of those."
        )
    if parameter.name in RESERVED:
        raise TypeError(f"{place} has the name of a key of every loss block. Choose another name.")
    base = base_of(parameter)
    rule = next((mark for mark in marks_of(parameter) if isinstance(mark, OnlyWith)), None)
    if get_origin(base) is Literal:
        return Setting(default=parameter.default, type=str, choices=get_args(base), only_with=rule)
    if base not in WORDS:
        found = "not annotated" if base is Parameter.empty else f"annotated {base!r}"
        raise TypeError(f"{place} is {found}. Use float, int, bool or a Literal of strings.")
    legal = next((mark for mark in marks_of(parameter) if isinstance(mark, Range)), None)
    return Setting(default=parameter.default, type=base, range=legal, only_with=rule)


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the first line of a docstring, and its sections by name, dedented, lines kept."""
    text = inspect.getdoc(_unwrap(function)) or ""
    found = re.findall(r"^([A-Z]\w+):\n((?:(?: +.*)?(?:\n|$))+)", text, flags=re.MULTILINE)
    return text.partition("\n")[0], {name: inspect.cleandoc("\n" + section) for name, section in found}
