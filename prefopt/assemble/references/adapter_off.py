"""``adapter_off``: the model without the adapter that is trained."""

from __future__ import annotations

from prefopt.assemble.references.kind import Kind, Site
from prefopt.reference import AdapterOffReference, Reference


def build(entry: str, key: str, site: Site) -> Reference:
    """Take the policy; a new adapter adds nothing at the start, one that is trained further does."""
    return AdapterOffReference(site.policy, is_start=site.settings.adapter is None)


KIND: Kind[str] = Kind(describe=str, build=build, footprint=lambda entry, key, skeletons: "adapter_off")
