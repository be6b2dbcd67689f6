"""Reference log-probs by content: one entry per (prompt, response), whatever row or pair it serves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import CorruptError, NonFiniteError
from prefopt.ragged import on_device
from prefopt.structures.packs import row_of
from prefopt.types import PackedBatch, SeqLogps


class LogpCache:
    """Hold per-token log-probs (and statistics) of every response, in float32, on the host.

    Values are kept per token, so any loss, length rule or token weight can be applied to them later.
    Keys are ``PackedBatch.keys``: the digest of prompt ids and response ids.
    """

    def __init__(self, stats: Collection[str] = ()) -> None:
        self.stats = tuple(sorted(stats))
        self._values: dict[bytes, torch.Tensor] = {}  # [1 + stats, length]

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def put(self, batch: PackedBatch, logps: SeqLogps) -> None:
        """Store what was said of the responses of one batch.

        Raises:
            NonFiniteError: a value is not finite; names the row.
        """
        rows = torch.stack([logps.tokens, *[logps.stats[name] for name in self.stats]])
        rows = rows.detach().to("cpu", torch.float32)
        parts = torch.split(rows, list(logps.lengths), dim=1)
        if not torch.isfinite(rows).all():
            raise NonFiniteError(self._blame(batch, parts))
        for key, part in zip(batch.keys, parts, strict=True):
            self._values[key] = part.contiguous()

    def _blame(self, batch: PackedBatch, parts: Sequence[Tensor]) -> str:
        """Say which value of which answer is not finite."""
        at = next(i for i, part in enumerate(parts) if not torch.isfinite(part).all())
        name, token = (~torch.isfinite(parts[at])).nonzero()[0].tolist()
        what, row = ("log-prob", *self.stats)[name], row_of(batch, at)
        return (
            f"{batch.origins[row]}: the reference gives token {token + 1} of {batch.lengths[at]} of answer "
            f"{at - batch.groups[row]} the {what} {parts[at][name, token].item()}. Take the row out, or choose "
            f"another reference."
        )

    def get(self, batch: PackedBatch, device: torch.device | str = "cpu") -> SeqLogps:
        """Return the stored log-probs of a batch's responses.

        Raises:
            CorruptError: a response was never stored, or with another length.
        """
        parts = [self._find(key, at, batch) for at, key in enumerate(batch.keys)]
        rows = on_device(torch.cat(parts, dim=1), device)
        stats = {name: rows[i + 1] for i, name in enumerate(self.stats)}
        return SeqLogps(tokens=rows[0], lengths=batch.lengths, stats=stats)

    def _find(self, key: bytes, at: int, batch: PackedBatch) -> Tensor:
        values = self._values.get(key)
        if values is None or values.shape[1] != batch.lengths[at]:
            row = row_of(batch, at)
            what = "is not in the cache" if values is None else f"was stored with {values.shape[1]} tokens"
            raise CorruptError(
                f"{batch.origins[row]}: the reference log-prob of answer {at - batch.groups[row]} "
                f"({batch.lengths[at]} tokens) {what}. Score the reference again."
            )
        return values

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all entries as (keys uint8 [n, 16], lengths int64 [n], values float32 [tokens, 1 + stats])."""
        keys = np.frombuffer(b"".join(self._values), dtype=np.uint8).reshape(-1, 16).copy()
        lengths = torch.tensor([v.shape[1] for v in self._values.values()], dtype=torch.int64)
        empty = torch.empty(0, 1 + len(self.stats))
        values = torch.cat([empty, *[v.t() for v in self._values.values()]])
        return torch.from_numpy(keys), lengths, values

    def add_flat(self, keys: Tensor, lengths: Tensor, values: Tensor) -> None:
        """Add entries in the form that ``flat`` returns."""
        raw = keys.cpu().numpy().tobytes()
        host = values.cpu().t().contiguous()
        offsets = [0, *accumulate(lengths.tolist())]
        for i in range(len(offsets) - 1):
            part = host[:, offsets[i] : offsets[i + 1]]
            self._values[raw[16 * i : 16 * i + 16]] = part.contiguous()
