"""Errors a user can meet, each with the exit code the command line ends with.

Every message reads *place: what, with the value. What to do.* A mistake of ours is an assert,
never one of these.
"""

from __future__ import annotations


class PrefoptError(ValueError):
    """Say in one line what is wrong, where, and the way out."""

    exit_code: int = 2


class RecipeError(PrefoptError):
    """A recipe, a setting or a combination of settings that cannot be carried out."""


class OwnCodeError(RecipeError):
    """Code of the user's own, named by a recipe, that failed; ``__cause__`` is what it raised."""


class ModelError(PrefoptError):
    """A model, adapter or tokenizer that is missing or that prefopt cannot train exactly."""


class DataError(PrefoptError):
    """A data source or row that cannot be read or used."""


class BadRowsError(DataError):
    """More bad rows than ``rows.max_bad`` allows."""

    exit_code = 3


class NonFiniteError(PrefoptError):
    """A loss or gradient that is not finite; the weights were not touched by it."""

    exit_code = 4


class ResumeError(PrefoptError):
    """A run that cannot be continued as asked."""

    exit_code = 5


class CorruptError(PrefoptError):
    """A stored file whose content is not what was written."""

    exit_code = 6
