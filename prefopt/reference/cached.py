"""What another reference said in one pass over the data, looked up again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from prefopt.errors import NonFiniteError, RecipeError
from prefopt.reference.base import Reference
from prefopt.reference.cache import LogpCache
from prefopt.types import PackedBatch, SeqLogps


class CachedReference(Reference):
    """Look the log-probs up in a cache that another reference filled in one pass.

    Raises:
        RecipeError: on a call, for statistics that the cache was not filled with.
    """

    def __init__(self, cache: LogpCache, *, is_start: bool) -> None:
        self.cache = cache
        self.is_start = is_start

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        missing = set(stats) - set(self.cache.stats)
        if missing:
            names = ", ".join(sorted(missing))
            raise RecipeError(
                f"reference: the cache was filled without {names}. Fill one anew: LogpCache(stats=...)."
            )
        return self.cache.get(batch, batch.input_ids.device)


def fill_cache(
    cache: LogpCache,
    reference: Reference,
    batches: Iterable[PackedBatch],
    progress: Callable[[int], None] = lambda tokens: None,
    *,
    skip_known: bool = True,
) -> None:
    """Score every batch once and keep what the reference says about its responses.

    Args:
        cache: filled in place.
        reference: scores the batches.
        batches: on the reference's device.
        progress: called with the packed tokens of every batch done.
        skip_known: leave out batches of which the cache holds everything. False where ranks score
            together, each with a share of the weights, so that none may leave one out alone.

    Raises:
        NonFiniteError: the reference said something that is not finite; names the row.
    """
    problem = None
    for batch in batches:
        if not skip_known or not all(key in cache for key in batch.keys):
            said = reference(batch, stats=cache.stats)
            try:
                cache.put(batch, said)
            except NonFiniteError as error:
                problem = problem or error
                if skip_known:
                    break
        progress(batch.num_tokens)
    if problem is not None:
        raise problem
