"""What the policy is compared with: ``(batch, stats) -> SeqLogps`` outside the graph, one file a kind."""

from prefopt.reference.adapter_off import AdapterOffReference
from prefopt.reference.base import LiveReference, Reference, check_rows, needs_live_reference
from prefopt.reference.cached import CachedReference, fill_cache
from prefopt.reference.frozen import FrozenReference
from prefopt.reference.frozen_adapter import FrozenAdapterReference
from prefopt.reference.itself import SelfReference
from prefopt.reference.moving import MovingReference
from prefopt.reference.several import SeveralReferences, check_apart, check_number, own_stats

__all__ = [
    "AdapterOffReference",
    "CachedReference",
    "FrozenAdapterReference",
    "FrozenReference",
    "LiveReference",
    "MovingReference",
    "Reference",
    "SelfReference",
    "SeveralReferences",
    "check_apart",
    "check_number",
    "check_rows",
    "fill_cache",
    "needs_live_reference",
    "own_stats",
]
