"""Write docs/losses.md from the signatures and docstrings of the losses: `python docs/make_losses_page.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.losses import (
    LOSSES,
    TRANSFORMS,
    LossContract,
    Setting,
    contract_of,
    functional,
    mixed,
    settings_of,
)
from prefopt.structures import STRUCTURES
from prefopt.types import INPUTS, OTHER_RESPONSES, PROMPTS, READS, SCALES

PAGE = Path(__file__).with_name("losses.md")

INTRODUCTION = """\
# The losses

<!-- Written by docs/make_losses_page.py from prefopt/losses/. Edit those, then run `make pages`. -->

A loss is a pure function of log-probs: it knows no model, device, rank or padding. It returns one cost per unit
(a pair, an answer or a list of answers), and the trainer multiplies by the row's weight, adds up and divides by
the units of the whole optimizer step. All log-probs are in nats; "log-prob" of an answer is the sum over its
scored tokens.

`prefopt losses` prints this list, `prefopt losses NAME` one entry. From your own code see
[custom_trainer.md](custom_trainer.md).

Which one to take, and what ambiguous names stand for: [choosing_a_loss.md](choosing_a_loss.md). The picture draws
every loss at its defaults over its margin, with its slope.

What columns a loss needs stands with it; [data.md](data.md#what-the-loss-asks-for) says how rows give them.

![every loss and its slope](losses.png)
"""

COMPOSITION = """\
## Combining losses

`with` wraps the loss from left to right. Order matters: here the weight does not reach the NLL term.

```yaml
loss: {name: dpo, beta: 0.1, with: [{name: weighted}, {name: with_nll, alpha: 0.2}]}
```

`prefopt check` prints what was built: `with_nll(weighted(dpo(beta=0.1, label_smoothing=0.0), max_weight=1.0),
alpha=0.2, nll=sequence)`. A transform that a loss already contains is refused, and so is one on a loss that does
not learn from pairs. `wpo` is `weighted(dpo)` and `ld_dpo` is `length_desensitized(dpo)`.

Mixed preference optimization (Wang et al., 2024, arXiv 2411.10442) is such a block: a preference term, a term for the
quality of each answer, and likelihood.

```yaml
loss:
  name: mixed
  of: [{name: dpo, beta: 0.1, weight: 0.8}, {name: bco_pair, beta: 0.1, weight: 0.2}]
  with: [{name: with_nll, alpha: 1.0}]
```
"""

_SECTION = re.compile(
    r"^(When|Args|Returns|Raises|Formula|Source):\n((?:(?: +.*)?(?:\n|$))+)", flags=re.MULTILINE
)


def page() -> str:
    """Return the text of the page."""
    parts = [INTRODUCTION, _overview(), *(_loss(name) for name in LOSSES), COMPOSITION]
    parts += [_transform(name, transform) for name, transform in TRANSFORMS.items()]
    text = "\n".join([*parts, _mixed()])
    return re.sub(r"(?<!`)``(?!`)", "`", text)  # docstrings mark code with two


def _overview() -> str:
    rows = []
    for name, loss in LOSSES.items():
        contract = contract_of(loss)
        reference = "yes" if contract.needs_reference else "no"
        rows.append(
            [f"[`{name}`](#{name})", STRUCTURES[contract.structure].learns_from, reference, contract.summary]
        )
    return _table(["loss", "learns from", "reference", "what it does"], rows)


def _loss(name: str) -> str:
    loss = LOSSES[name]
    contract = contract_of(loss)
    sections = _sections(loss)
    return "\n".join(
        [
            f"## {name}\n",
            f"{contract.summary}\n",
            *(f"{text}\n" for text in _paragraphs(loss)),
            *_needs(name, contract),
            _settings(contract.settings, sections),
            f"```text\n{contract.formula}\n```\n",
            f"Returns: {_one_line(sections['Returns'])}\n",
            f"Source: {contract.source}\n",
            f"```yaml\nloss: {_example(name, contract.settings)}\n```\n",
        ]
    )


def _needs(name: str, contract: LossContract) -> Iterable[str]:
    yield f"- take it when: {'; '.join(contract.when)}"
    yield f"- learns from: {STRUCTURES[contract.structure].learns_from}"
    yield f"- reference: {'needed' if contract.needs_reference else 'not used'}"
    yield from (f"- prompts: {PROMPTS[name]}" for name in contract.prompts)
    yield from (f"- scores: {SCALES[name]}" for name in contract.scales)
    yield from (f"- further texts: {OTHER_RESPONSES[role]}" for role in contract.roles)
    stats = dict.fromkeys((*contract.policy_stats, *contract.reference_stats))
    if stats:
        yield f"- per-token statistics: {', '.join(f'`{stat}`' for stat in stats)}"
    if contract.roles:
        yield f"- further responses: {', '.join(f'`{role}`' for role in contract.roles)}"
    for given, is_required in contract.inputs.items():
        what = "" if is_required else ", if its settings ask for it"
        yield f"- from the trainer{what}: `{given}` {INPUTS[given].shape}, {INPUTS[given].source}"
    yield f"- reads of an answer: {READS[contract.reads]}"
    if hasattr(functional, f"{name}_loss"):
        yield f"- on plain tensors: `prefopt.losses.functional.{name}_loss`"
    yield ""


def _transform(name: str, transform: Callable[..., Any]) -> str:
    sections = _sections(transform)
    settings = settings_of(transform)
    return "\n".join(
        [
            f"## {name}\n",
            f"A transform. Take it when: {'; '.join(map(str.strip, sections['When'].strip().splitlines()))}\n",
            f"{_summary(transform)}\n",
            *(f"{text}\n" for text in _paragraphs(transform)),
            _settings(settings, sections),
            f"```text\n{inspect.cleandoc(chr(10) + sections['Formula'])}\n```\n",
            f"Returns: {_one_line(sections['Returns'])}\n",
            f"Source: {_one_line(sections['Source'])}\n",
            f"```yaml\nloss: {{name: dpo, with: [{_example(name, settings)}]}}\n```\n",
        ]
    )


def _mixed() -> str:
    sections = _sections(mixed)
    return "\n".join(
        [
            "## mixed\n",
            f"{_summary(mixed)}\n",
            *(f"{text}\n" for text in _paragraphs(mixed)),
            "`of` lists the losses, each with a `weight` above 0 (default 1) and, if wanted, its own `with`.\n",
            f"```text\n{inspect.cleandoc(chr(10) + sections['Formula'])}\n```\n",
            "```yaml\nloss: {name: mixed, of: [{name: dpo, weight: 0.8}, {name: simpo, weight: 0.2}]}\n```\n",
        ]
    )


def _settings(settings: Mapping[str, Setting], sections: Mapping[str, str]) -> str:
    if not settings:
        return "It has no settings.\n"
    notes = _arguments(sections.get("Args", ""))
    rows = [[f"`{name}`", f"`{_scalar(s.default)}`", s.legal, notes[name]] for name, s in settings.items()]
    return _table(["setting", "default", "legal", "meaning"], rows)


def _arguments(section: str) -> dict[str, str]:
    """Return what the Args section says of each argument, as one line."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: _one_line(text) for name, text in found}


def _sections(function: Callable[..., Any]) -> dict[str, str]:
    return dict(_SECTION.findall(inspect.getdoc(function) or ""))


def _paragraphs(function: Callable[..., Any]) -> list[str]:
    """Return the paragraphs between the first line and the first section."""
    text = _SECTION.sub("", inspect.getdoc(function) or "")
    return [_one_line(part) for part in text.split("\n\n")[1:] if part.strip()]


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _example(name: str, settings: Mapping[str, Setting]) -> str:
    parts = [f"name: {name}", *(f"{key}: {_scalar(setting.default)}" for key, setting in settings.items())]
    return "{" + ", ".join(parts) + "}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
