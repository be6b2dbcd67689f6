"""Write prefopt/losses/functional.pyi from the signatures of the losses: `python docs/make_functional_stub.py`.

The functions are made when they are asked for; type checkers and editors read what is written here.
"""

from __future__ import annotations

import re
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from prefopt.losses import functional
from prefopt.losses._contract import base_of

PAGE = Path(functional.__file__).with_suffix(".pyi")

HEAD = """\
# Written by docs/make_functional_stub.py from prefopt/losses/. Edit those, then run `make pages`.
# fmt: off
# ruff: noqa: E501, PYI021

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from prefopt.losses import Loss
from prefopt.losses._on_sums import AnswerLoss as AnswerLoss
from prefopt.losses._on_sums import CarriedAnswerLoss as CarriedAnswerLoss
from prefopt.losses._on_sums import CarriedPairLoss as CarriedPairLoss
from prefopt.losses._on_sums import PairLoss as PairLoss

def on_sums(loss: Loss) -> Callable[..., Any]:
    \"\"\"Return `loss` as a function of summed log-probs, with its own settings, defaults and ranges.\"\"\"
"""


def page() -> str:
    """Return the text of the stub."""
    names = [name for name in dir(functional) if name.endswith("_loss")]
    return "\n".join([HEAD, *map(_function, names)])


def _function(name: str) -> str:
    function = getattr(functional, name)
    parameters = list(signature(function).parameters.values())
    tensors = [_parameter(p) for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    keywords = [_parameter(p) for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
    rows = [tensors[i : i + 2] for i in range(0, len(tensors), 2)] + [["*", *keywords]] * bool(keywords)
    lines = "".join(f"    {', '.join(row)},\n" for row in rows)
    summary = (function.__doc__ or "").split("\n\n")[1]
    returned = signature(function).return_annotation.__name__
    return f'def {name}(\n{lines}) -> {returned}:\n    """{summary}"""\n'


def _parameter(parameter: Parameter) -> str:
    default = "" if parameter.default is Parameter.empty else f" = {parameter.default!r}".replace("'", '"')
    return f"{parameter.name}: {_annotation(base_of(parameter))}{default}"


def _annotation(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(kind)))}]".replace("'", '"')
    return kind.__name__ if isinstance(kind, type) else re.sub(r"\b(?:[a-z]+\.)+", "", str(kind))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
