"""``initial``: the weights that training starts from, without a second model where an adapter is trained."""

from __future__ import annotations

from torch import nn

from prefopt.assemble.model import REFERENCE_ADAPTER, load_start
from prefopt.assemble.references.kind import Kind, Site, Skeletons
from prefopt.reference import AdapterOffReference, FrozenAdapterReference, FrozenReference, Reference


def build(entry: str, key: str, site: Site) -> Reference:
    """Take the policy with its start adapter, or without one, or load its weights once more."""
    if site.settings.adapter is not None:
        return FrozenAdapterReference(site.policy, adapter=REFERENCE_ADAPTER)
    if site.settings.lora is not None:
        return AdapterOffReference(site.policy, is_start=True)
    return FrozenReference(site.frozen(load_start(site.settings, site.start.seed)), is_start=True)


def footprint(entry: str, key: str, skeletons: Skeletons) -> nn.Module | str:
    """Name the policy with an adapter or without, or hand over its skeleton, which is held twice."""
    if skeletons.settings.adapter is not None:
        return "adapter"
    return "adapter_off" if skeletons.settings.lora is not None else skeletons.model


KIND: Kind[str] = Kind(describe=str, build=build, footprint=footprint, lighter="cached")
