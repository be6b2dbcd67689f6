"""Code of the user's own behind a run: alike on all ranks, and the same when the run is resumed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefopt.engine import Engine
from prefopt.errors import RecipeError
from prefopt.plugins import Code


def check_same_code(engine: Engine, codes: Sequence[Code]) -> None:
    """Refuse ranks that imported different code under one name.

    Raises:
        RecipeError: names the first such code, and its file on this rank; on every rank.
    """
    if not codes:
        return
    raw = b"".join(bytes.fromhex(code.digest) for code in codes)
    own = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(torch.int64).view(1, len(codes), -1)
    found = engine.gather(own.to(engine.device), [1] * engine.world)  # [ranks, codes, bytes]
    for code, digests in zip(codes, found.unbind(1), strict=True):
        others = (digests != digests[0]).any(1).nonzero().flatten().tolist()
        if others:
            raise RecipeError(
                f"{code.where}: rank {others[0]} imported other code for {code.name} than rank 0; here it lies in "
                f"{code.path}. Give all ranks the same files."
            )


def code_facts(codes: Sequence[Code]) -> dict[str, str]:
    """Return the digest of each piece of code by its name, wherever its files lie."""
    facts: dict[str, str] = {}
    for code in codes:
        key = f"the code of {code.name}"
        # two files of one name, in different folders, stand under it both
        facts[key] = f"{facts[key]} {code.digest}" if key in facts else code.digest
    return facts
