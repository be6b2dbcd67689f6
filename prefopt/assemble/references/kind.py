"""What is known of a kind of reference between the recipe and the run, and what a kind is given for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from prefopt.assemble.model import Start
from prefopt.assemble.sources import WeightSource
from prefopt.engine import Engine
from prefopt.policy import Policy
from prefopt.recipe import Model
from prefopt.reference import Reference
from prefopt.reference.cache import LogpCache

E = TypeVar("E")

Score = Callable[[Reference], LogpCache]
"""Run a reference over all data once."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a reference is built from, and where it will stand."""

    start: Start  # what the policy is made of
    policy: Policy  # placed, but not yet wrapped for the engine
    engine: Engine
    score: Score
    is_resumed: bool  # the policy's weights are no longer those that training started from

    @property
    def settings(self) -> Model:
        """The block of the policy."""
        return self.start.settings

    def frozen(self, model: Any) -> Policy:
        """Place a model that computes as the policy does."""
        policy = Policy(model, attention=self.settings.attention, compile_for=self.start.compile_for)
        policy.place(self.engine)
        return policy


@dataclass(frozen=True, slots=True)
class Skeletons:
    """What the memory of a reference is planned from: models whose weights take none."""

    settings: Model  # of the policy
    model: nn.Module  # that is trained
    copy: Callable[[], nn.Module]  # builds it once more


def _any_will_do(entry: Any, key: str, tokenizer: Any, *, is_sharded: bool) -> None:
    """Find nothing to refuse."""


def _none_of_its_own(entry: Any, key: str) -> Iterable[WeightSource]:
    """Name nothing: it is made of the policy's weights."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[E]):
    """A kind of reference; ``E`` is what stands in the recipe, a name or a block.

    Every function gets that, and the setting that names it (``reference`` or ``reference.1``) for errors.

    Attributes:
        describe: say what it is in a few words.
        build: make it for a run.
        footprint: what of it scores beside the policy in every step, in the words of ``memory.plan_model_memory``;
            None where nothing does.
        check: refuse it before data or weights are read, by the policy's tokenizer and by whether weights
            are spread over ranks.
        sources: where its weights come from, as far as they are not the policy's, for a run that is resumed.
        is_live: it has hidden states to hand over.
        is_copy: it holds a copy of the policy, few bits included.
        lighter: the kind that says the same with less memory.
    """

    describe: Callable[[E], str]
    build: Callable[[E, str, Site], Reference]
    footprint: Callable[[E, str, Skeletons], nn.Module | str | None]
    check: Callable[..., None] = _any_will_do
    sources: Callable[[E, str], Iterable[WeightSource]] = _none_of_its_own
    is_live: Callable[[E], bool] = lambda entry: True
    is_copy: bool = False
    lighter: str | None = None
